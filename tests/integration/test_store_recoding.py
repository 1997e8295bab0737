"""Compressed blocks and scrub on a real store: readers never notice, flips never pass."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kvfs.errors import Corrupt, NotFound, Unavailable
from kvfs.model import AttributeChange, Codec, Entry, ObjectPath, Pin, PutOptions
from kvfs.open_store import init_store, open_store
from kvfs.store.recoder import COMPRESS_ATTRIBUTE, Outcome
from kvfs.store.store import Store
from kvfs.store.uploads import CompletePart

MIB = 1 << 20
PATH = ObjectPath(b"kv", b"model/block")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    init_store(tmp_path / "store", capacity_bytes=256 * MIB)
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    with open_store(root) as opened:
        opened.create_namespace(b"kv")
        yield opened


def kv_bytes(count: int = 3 * MIB // 2, seed: int = 1) -> bytes:
    """bf16 values as a model's K and V have them, and a ragged end."""
    values = np.random.default_rng(seed).standard_normal(count, dtype=np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes() + b"end"


def block_file(root: Path, entry: Entry) -> Path:
    (path,) = (root / "blocks").glob(f"*/{entry.digest.hex()}.*")
    return path


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))


def test_a_compressed_block_reads_as_before_at_every_kind_of_range(store: Store) -> None:
    data = kv_bytes()
    entry = store.put(PATH, data)
    before = store.usage().resident_bytes
    assert store.compress(entry.digest).outcome is Outcome.RECODED
    store.empty_trash()
    assert store.usage().resident_bytes < 0.75 * before
    with store.open_read(PATH) as view:
        assert view.codec is Codec.FRAMED
        assert view.entry.etag == entry.etag
        for offset, length in ((0, 1), (MIB - 1, 2), (5, 2 * MIB), (len(data) - 2, 99)):
            assert view.pread(offset, length) == data[offset : offset + length]
        assert view.pread(len(data) + 1, 10) == b""
        descriptor = view.decode_to_memory_file()
        try:
            assert os.pread(descriptor, len(data) + 1, 0) == data
        finally:
            os.close(descriptor)


def test_i3_an_open_view_keeps_its_bytes_while_its_block_is_recoded(store: Store) -> None:
    data = kv_bytes()
    entry = store.put(PATH, data)
    with store.open_read(PATH) as raw_view:
        store.compress(entry.digest)
        with store.open_read(PATH) as framed_view:
            store.promote(entry.digest)
            store.empty_trash()
            assert raw_view.read_all() == data
            assert framed_view.read_all() == data
    with store.open_read(PATH) as view:
        assert view.codec is Codec.RAW
        assert view.read_all() == data


def test_a_block_that_would_save_too_little_stays_raw_and_is_not_tried_again(store: Store) -> None:
    entry = store.put(PATH, random.Random(1).randbytes(MIB))
    assert store.compress(entry.digest).outcome is Outcome.KEPT
    with store.context.index.read() as txn:
        block = txn.block(entry.digest)
    assert block is not None
    assert block.is_incompressible
    assert store.usage().reserved_bytes + store.usage().resident_bytes <= store.capacity_bytes


def test_a_deleted_block_is_gone_for_the_recoder(store: Store) -> None:
    entry = store.put(PATH, kv_bytes())
    store.delete(PATH)
    assert store.compress(entry.digest).outcome is Outcome.GONE


def test_equal_bytes_put_again_share_the_compressed_block(store: Store) -> None:
    data = kv_bytes()
    entry = store.put(PATH, data)
    store.compress(entry.digest)
    again = store.put(ObjectPath(b"kv", b"other"), data)
    assert again.digest == entry.digest
    assert store.usage().block_count == 1
    store.delete(PATH)
    assert store.get(ObjectPath(b"kv", b"other")) == data


def set_inline(store: Store, value: bytes = b"inline") -> None:
    namespace = store.find_namespace(b"kv")
    assert namespace is not None
    store.set_attributes(
        namespace.inode, AttributeChange(set_attributes={COMPRESS_ATTRIBUTE: value})
    )


def put_whole(store: Store, path: ObjectPath, data: bytes) -> None:
    store.put(path, data)


def put_staged(store: Store, path: ObjectPath, data: bytes) -> None:
    with store.stage() as staging:
        staging.write(data)
        store.publish(staging, path)


def put_parts(store: Store, path: ObjectPath, data: bytes) -> None:
    upload = store.create_upload(path)
    with store.write_part(upload.upload_id, path, 1, size_bytes=len(data)) as writer:
        writer.pwrite(data, 0)
        part = writer.finish("etag")
    store.complete_upload(upload.upload_id, path, [CompletePart(1, part.etag)])


@pytest.mark.parametrize("put", [put_whole, put_staged, put_parts])
def test_a_bucket_that_compresses_inline_does_so_on_every_way_in(
    store: Store, put: Callable[[Store, ObjectPath, bytes], None]
) -> None:
    data = kv_bytes()
    set_inline(store)
    put(store, PATH, data)
    store.empty_trash()
    assert store.usage().resident_bytes < 0.75 * len(data)
    with store.open_read(PATH) as view:
        assert view.codec is Codec.FRAMED
        assert view.pread(MIB - 5, 10) == data[MIB - 5 : MIB + 5]
        assert view.read_all() == data
    assert store.check(is_full=True).is_clean
    set_inline(store, b"idle")
    put(store, ObjectPath(b"kv", b"later"), data[:-1])
    with store.open_read(ObjectPath(b"kv", b"later")) as view:
        assert view.codec is Codec.RAW


def test_inline_compression_without_room_for_the_copy_leaves_the_object_raw(
    tmp_path: Path,
) -> None:
    data = kv_bytes()
    init_store(tmp_path / "small", capacity_bytes=len(data) + len(data) // 2)
    with open_store(tmp_path / "small") as store:
        store.create_namespace(b"kv")
        set_inline(store)
        pinned = PutOptions(pin=Pin.HARD)
        store.put(PATH, data, pinned)
        with store.open_read(PATH) as view:
            assert view.codec is Codec.RAW
            assert view.read_all() == data


@pytest.mark.expects_warnings
def test_i1_inline_compression_of_bytes_that_went_bad_is_no_error_of_the_publish(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_inline(store)
    monkeypatch.setattr("kvfs.store.recoder.choose_method", _fail)
    entry = store.put(PATH, kv_bytes())
    assert store.find(PATH) == entry
    assert store.get(PATH) == kv_bytes()


def _fail(_payload: bytes) -> None:
    raise Unavailable("the disk is away")


@pytest.mark.expects_warnings
@pytest.mark.parametrize("is_compressed", [False, True])
def test_i1_a_scrub_finds_a_flipped_bit_and_the_name_becomes_a_miss(
    store: Store, root: Path, is_compressed: bool
) -> None:
    entry = store.put(PATH, kv_bytes())
    keep = store.put(ObjectPath(b"kv", b"good"), kv_bytes(seed=2))
    if is_compressed:
        store.compress(entry.digest)
        store.empty_trash()
    flip(block_file(root, entry), 70_000)
    report = store.scrub(1 << 30)
    assert report.bad_digests == (entry.digest,)
    assert report.is_pass_complete
    assert store.find(PATH) is None
    with pytest.raises(NotFound):
        store.open_read(PATH)
    assert list((root / "quarantine").iterdir())
    assert store.find(ObjectPath(b"kv", b"good")) == keep


@pytest.mark.expects_warnings
def test_i1_a_flipped_bit_in_a_frame_is_never_served(store: Store, root: Path) -> None:
    data = kv_bytes()
    entry = store.put(PATH, data)
    store.compress(entry.digest)
    store.empty_trash()
    path = block_file(root, entry)
    flip(path, path.stat().st_size // 2)
    with pytest.raises(Corrupt), store.open_read(PATH) as view:
        view.read_all()
    assert store.find(PATH) is None
    store.put(PATH, data)
    assert store.get(PATH) == data


@pytest.mark.expects_warnings
def test_all_names_of_a_bad_block_become_misses_when_they_are_opened(
    store: Store, root: Path
) -> None:
    entry = store.put(PATH, kv_bytes())
    other = ObjectPath(b"kv", b"copy")
    store.copy(PATH, other)
    flip(block_file(root, entry), 1000)
    store.scrub(1 << 30)
    for path in (PATH, other):
        with pytest.raises(NotFound):
            store.open_read(path)
        assert store.find(path) is None
    assert store.usage().block_count == 0


def test_a_scrub_goes_on_where_the_last_one_stopped(root: Path) -> None:
    seen: list[int] = []
    with open_store(root) as store:
        store.create_namespace(b"kv")
        for number in range(5):
            store.put(ObjectPath(b"kv", b"%d" % number), b"x%d" % number)
    for _ in range(5):
        with open_store(root) as store:
            report = store.scrub(1)
            seen.append(report.checked_blocks)
            assert not report.is_pass_complete
    with open_store(root) as store:
        assert store.scrub(1 << 20).is_pass_complete
    assert seen == [1] * 5
