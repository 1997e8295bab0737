"""Multipart uploads in the store: any order, any process, in place when equal, or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs.clock import ManualClock
from kvfs.errors import (
    AlreadyExists,
    InvalidPart,
    InvalidPartOrder,
    NoSpace,
    PartTooSmall,
    UploadNotFound,
)
from kvfs.model import Codec, ObjectPath, PutOptions, WriteCondition
from kvfs.open_store import init_store, open_store
from kvfs.store.store import Store
from kvfs.store.uploads import CompletePart

MIB = 1 << 20
PATH = ObjectPath(b"b", b"d/k")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
    init_store(tmp_path / "store", capacity_bytes=512 * MIB)
    with open_store(tmp_path / "store", clock=clock) as opened:
        opened.create_namespace(b"b")
        yield opened


def put_part(store: Store, upload_id: str, number: int, data: bytes) -> CompletePart:
    writer = store.write_part(upload_id, PATH, number, size_bytes=len(data))
    writer.pwrite(data, 0)
    info = writer.finish(f"etag-{number}-{len(data)}-{data[:4].hex()}")
    return CompletePart(number, info.etag)


def staging_files(store: Store) -> list[str]:
    return sorted(path.name for path in (store.path / "staging").iterdir())


def refuse(*_: object) -> int:
    raise AssertionError("bytes were copied")


def test_equal_parts_in_any_order_are_assembled_without_copying(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [os.urandom(8 * MIB), os.urandom(8 * MIB), os.urandom(6 * MIB)]
    upload = store.create_upload(PATH, PutOptions(attributes={"user.x": b"y"}))
    parts = {
        number: put_part(store, upload.upload_id, number, data[number - 1]) for number in (3, 1, 2)
    }

    monkeypatch.setattr(os, "copy_file_range", refuse)
    entry = store.complete_upload(upload.upload_id, PATH, [parts[1], parts[2], parts[3]])
    assert store.get(PATH) == b"".join(data)
    assert entry.attributes == {"user.x": b"y"}
    assert staging_files(store) == []


def test_unequal_and_repeated_parts_are_copied_together_inside_the_kernel(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = store.create_upload(PATH).upload_id
    first, second, last = os.urandom(5 * MIB), os.urandom(7 * MIB + 3), os.urandom(11)
    put_part(store, upload, 1, os.urandom(5 * MIB))
    chosen = [put_part(store, upload, 1, first), put_part(store, upload, 2, second)]
    chosen.append(put_part(store, upload, 4, last))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", refuse)
        store.complete_upload(upload, PATH, chosen)
    assert store.get(PATH) == first + second + last
    assert staging_files(store) == []


def test_a_part_copied_from_a_raw_object_is_copied_inside_the_kernel(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, data = ObjectPath(b"b", b"source"), os.urandom(6 * MIB + 5)
    store.put(source, data)
    upload = store.create_upload(PATH).upload_id
    seen = bytearray()
    with monkeypatch.context() as patched, store.open_read(source) as view:
        patched.setattr(os, "pwrite", refuse)
        with store.write_part(upload, PATH, 1, size_bytes=5 * MIB) as writer:
            writer.copy_from(view, 5, 5 * MIB, seen.extend)
            info = writer.finish("etag")
    assert seen == data[5 : 5 * MIB + 5]
    assert info.size == 5 * MIB
    store.complete_upload(upload, PATH, [CompletePart(1, "etag")])
    assert store.get(PATH) == seen


def test_a_part_copied_from_a_compressed_object_is_decoded(store: Store) -> None:
    source, data = ObjectPath(b"b", b"source"), bytes(range(256)) * 4 * 6 * 1024
    digest = store.put(source, data).digest
    assert store.compress(digest).saved_bytes > 0
    upload = store.create_upload(PATH).upload_id
    seen = bytearray()
    with (
        store.open_read(source) as view,
        store.write_part(upload, PATH, 1, size_bytes=5 * MIB) as writer,
    ):
        assert view.codec is Codec.FRAMED
        writer.copy_from(view, 7, 5 * MIB, seen.extend)
        writer.finish("etag")
    store.complete_upload(upload, PATH, [CompletePart(1, "etag")])
    assert seen == data[7 : 5 * MIB + 7]
    assert store.get(PATH) == seen


def test_parts_left_out_are_dropped(store: Store) -> None:
    upload = store.create_upload(PATH).upload_id
    parts = [put_part(store, upload, number, bytes([number]) * (5 * MIB)) for number in (1, 2, 3)]
    store.complete_upload(upload, PATH, [parts[0], parts[2]])
    assert store.get(PATH) == b"\1" * (5 * MIB) + b"\3" * (5 * MIB)
    assert staging_files(store) == []


def test_i4_space_of_parts_is_reserved_and_comes_back(store: Store) -> None:
    before = store.usage()
    upload = store.create_upload(PATH).upload_id
    part = put_part(store, upload, 1, bytes(16 * MIB))
    assert store.usage().reserved_bytes >= 16 * MIB
    put_part(store, upload, 1, os.urandom(16 * MIB))
    store.abort_upload(upload, PATH)
    assert staging_files(store) == []
    with pytest.raises(UploadNotFound):
        store.complete_upload(upload, PATH, [part])
    store.close()
    with open_store(store.path) as again:
        assert again.usage().reserved_bytes == 0
        assert again.usage().resident_bytes == before.resident_bytes


def test_i4_after_complete_the_bytes_are_resident_and_nothing_is_reserved(store: Store) -> None:
    upload = store.create_upload(PATH).upload_id
    parts = [put_part(store, upload, number, os.urandom(8 * MIB)) for number in (1, 2)]
    store.complete_upload(upload, PATH, parts)
    same = store.create_upload(ObjectPath(b"b", b"d/k")).upload_id
    data = store.get(PATH)
    parts = [put_part(store, same, 1, data[: 8 * MIB]), put_part(store, same, 2, data[8 * MIB :])]
    store.complete_upload(same, PATH, parts)
    store.close()
    with open_store(store.path) as again:
        assert again.usage().reserved_bytes == 0
        assert again.usage().resident_bytes == 16 * MIB
        assert again.get(PATH) == data


def test_a_full_store_refuses_a_part_with_a_clear_error(store: Store) -> None:
    upload = store.create_upload(PATH).upload_id
    with pytest.raises(NoSpace):
        store.write_part(upload, PATH, 1, size_bytes=600 * MIB)
    put_part(store, upload, 1, b"small")


def test_an_unfinished_part_is_nothing(store: Store) -> None:
    upload = store.create_upload(PATH).upload_id
    with store.write_part(upload, PATH, 1, size_bytes=100) as writer:
        writer.pwrite(b"half", 0)
    assert store.list_parts(upload, PATH) == []
    with pytest.raises(InvalidPart):
        store.complete_upload(upload, PATH, [CompletePart(1, "x")])
    with store.write_part(upload, PATH, 1) as apart:
        apart.pwrite(b"half", 0)
    assert len(staging_files(store)) == 1


def test_i3_a_writer_still_at_work_never_touches_the_published_file(store: Store) -> None:
    upload = store.create_upload(PATH).upload_id
    parts = [put_part(store, upload, number, bytes([number]) * (8 * MIB)) for number in (1, 2)]
    late = store.write_part(upload, PATH, 3, size_bytes=8 * MIB)
    assert late.is_in_place
    store.complete_upload(upload, PATH, parts)
    late.pwrite(b"\xff" * 100, 0)
    with pytest.raises(UploadNotFound):
        late.finish("late")
    assert store.get(PATH) == b"\1" * (8 * MIB) + b"\2" * (8 * MIB)
    assert store.stat(PATH).size == 16 * MIB


def test_two_writers_of_one_part_never_share_bytes(store: Store) -> None:
    upload = store.create_upload(PATH).upload_id
    first = store.write_part(upload, PATH, 1, size_bytes=6 * MIB)
    second = store.write_part(upload, PATH, 1, size_bytes=6 * MIB)
    assert first.is_in_place
    assert not second.is_in_place
    first.pwrite(b"1" * (6 * MIB), 0)
    second.pwrite(b"2" * (6 * MIB), 0)
    first.finish("one")
    second.finish("two")
    store.complete_upload(upload, PATH, [CompletePart(1, "two")])
    assert store.get(PATH) == b"2" * (6 * MIB)


def test_bad_lists_are_refused_and_the_upload_stays(store: Store) -> None:
    upload = store.create_upload(PATH).upload_id
    parts = [put_part(store, upload, number, b"x" * MIB) for number in (1, 2)]
    with pytest.raises(InvalidPartOrder):
        store.complete_upload(upload, PATH, [parts[1], parts[0]])
    with pytest.raises(InvalidPart):
        store.complete_upload(upload, PATH, [CompletePart(1, "other")])
    with pytest.raises(InvalidPart):
        store.complete_upload(upload, PATH, [])
    with pytest.raises(PartTooSmall):
        store.complete_upload(upload, PATH, parts)
    with pytest.raises(UploadNotFound):
        store.complete_upload(upload, ObjectPath(b"b", b"other"), parts)
    with pytest.raises(UploadNotFound):
        store.write_part(upload, ObjectPath(b"b", b"other"), 1, size_bytes=1)
    store.complete_upload(upload, PATH, parts[:1])


def test_a_failed_condition_leaves_the_upload_usable(store: Store) -> None:
    store.put(PATH, b"old")
    upload = store.create_upload(PATH).upload_id
    parts = [put_part(store, upload, 1, b"new")]
    absent = PutOptions(condition=WriteCondition(must_be_absent=True))
    with pytest.raises(AlreadyExists):
        store.complete_upload(upload, PATH, parts, absent)
    assert store.get(PATH) == b"old"
    put_part(store, upload, 2, b"more")
    store.complete_upload(upload, PATH, parts)
    assert store.get(PATH) == b"new"


def test_complete_may_be_repeated(store: Store) -> None:
    upload = store.create_upload(PATH).upload_id
    parts = [put_part(store, upload, 1, b"x")]
    options = PutOptions(etag="abc-1")
    first = store.complete_upload(upload, PATH, parts, options)
    assert store.complete_upload(upload, PATH, parts, options).inode == first.inode
    store.put(PATH, b"newer")
    with pytest.raises(UploadNotFound):
        store.complete_upload(upload, PATH, parts, options)


def test_abandoned_uploads_expire(store: Store, clock: ManualClock) -> None:
    old = store.create_upload(PATH).upload_id
    put_part(store, old, 1, b"x" * MIB)
    clock.advance(24 * 3600 + 10)
    young = store.create_upload(PATH).upload_id
    assert store.expire_uploads() == 1
    assert [info.upload_id for info in store.list_uploads(b"b")] == [young]
    assert staging_files(store) == []


CHILD = """
import os, sys
from pathlib import Path
from kvfs.model import ObjectPath
from kvfs.open_store import open_store
store = open_store(Path(sys.argv[1]))
path = ObjectPath(b"b", b"d/k")
writer = store.write_part(sys.argv[2], path, int(sys.argv[3]), size_bytes=8 << 20)
writer.pwrite(bytes([int(sys.argv[3])]) * (8 << 20), 0)
if sys.argv[4] == "die":
    os.kill(os.getpid(), 9)
writer.finish("part")
store.close()
"""


def run_child(store: Store, upload_id: str, number: int, ending: str) -> int:
    command = [sys.executable, "-c", CHILD, str(store.path), upload_id, str(number), ending]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, check=False, timeout=60).returncode


def test_parts_of_other_processes_and_dead_ones(store: Store) -> None:
    upload = store.create_upload(PATH).upload_id
    assert run_child(store, upload, 1, "finish") == 0
    assert run_child(store, upload, 2, "die") == -9
    assert [part.part_number for part in store.list_parts(upload, PATH)] == [1]
    with store.write_part(upload, PATH, 2, size_bytes=8 * MIB) as writer:
        assert writer.is_in_place, "the dead writer's lock ended with it"
        writer.pwrite(b"\2" * (8 * MIB), 0)
        writer.finish("part")
    store.complete_upload(upload, PATH, [CompletePart(1, "part"), CompletePart(2, "part")])
    assert store.get(PATH) == b"\1" * (8 * MIB) + b"\2" * (8 * MIB)


def test_the_sweep_removes_what_no_upload_names(store: Store) -> None:
    upload = store.create_upload(PATH).upload_id
    put_part(store, upload, 1, b"a" * MIB)
    put_part(store, upload, 1, b"b" * MIB)
    orphan = store.path / "staging" / f"upload-{'0' * 32}"
    orphan.write_bytes(b"x")
    stray = store.path / "staging" / f"upload-{upload}.7.{1:016x}"
    stray.write_bytes(b"x")
    busy = store.write_part(upload, PATH, 9)
    assert store.sweep().staging_files == 2
    assert not orphan.exists()
    assert not stray.exists()
    busy.pwrite(b"y", 0)
    busy.finish("y")
    assert len(staging_files(store)) == 3
