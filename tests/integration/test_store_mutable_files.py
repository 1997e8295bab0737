"""Files that stay mutable, in the store: what they cost, who may drop them, what is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kvfs.clock import ManualClock
from kvfs.errors import NoSpace, NotFound, PreconditionFailed, Unavailable
from kvfs.model import ChildName, Entry, ObjectPath, Pin, PutOptions, WriteCondition
from kvfs.open_store import init_store, open_store
from kvfs.store.mutable_files import MutableFile
from kvfs.store.store import Store
from kvfs_tools.object_report import entry_text

MIB = 1 << 20
SLAB = ObjectPath(b"kv", b"slabs/0")
CAPACITY = 64 * MIB
ROOT = Path(__file__).resolve().parents[2]
WRITE_MORE = """
import sys
from kvfs.open_store import open_store
with open_store(sys.argv[1]) as store, store.open_mutable(int(sys.argv[2])) as file:
    file.pwrite(b"x" * (4 << 20), 4 << 20)
    file.settle()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    init_store(root, capacity_bytes=CAPACITY)
    with open_store(root) as store:
        store.create_namespace(b"kv")
    return root


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    with open_store(root) as store:
        yield store


def keep(store: Store, *, size: int = 4 << 30, options: PutOptions | None = None) -> MutableFile:
    """Make a sparse mutable file of `size` bytes at SLAB."""
    namespace = store.find_namespace(b"kv")
    assert namespace is not None
    staging = store.stage(namespace.namespace_id)
    os.ftruncate(staging.fd, size)
    return store.keep_mutable(staging, SLAB, options)[1]


def files_of(store: Store) -> list[str]:
    return os.listdir(store.path / "files")


def resident(store: Store) -> int:
    return store.usage().resident_bytes


def test_it_is_visible_at_once_and_has_no_digest(store: Store) -> None:
    with keep(store) as file:
        entry = store.stat(SLAB)
        assert (entry.is_mutable, entry.size, entry.digest) == (True, 4 << 30, b"")
        assert entry.inode == file.inode
        assert list(store.list_blocks()) == []


def test_i4_a_sparse_file_costs_what_is_written_to_it(store: Store) -> None:
    with keep(store) as file:
        assert resident(store) == 0
        file.pwrite(b"x" * (10 * MIB), 3 << 30)
        file.settle()
        entry = store.stat(SLAB)
        assert 10 * MIB <= resident(store) < 11 * MIB
        assert resident(store) == entry.allocated_bytes
        assert "mutable   10.0 MiB allocated" in entry_text(SLAB, entry)
        assert entry.size == 4 << 30


def test_i4_writing_beyond_the_capacity_is_refused_before_it_happens(store: Store) -> None:
    with keep(store) as file:
        piece = b"x" * MIB
        written = 0
        with suppress(NoSpace):
            while written < 2 * CAPACITY:
                file.pwrite(piece, written)
                written += MIB
        usage = store.usage()
        assert usage.resident_bytes + usage.reserved_bytes <= CAPACITY
        assert CAPACITY - 4 * MIB <= written <= CAPACITY
        assert os.fstat(file.fd).st_blocks * 512 <= CAPACITY


def test_i4_a_punched_hole_and_a_shorter_length_give_back(store: Store) -> None:
    with keep(store, size=0) as file:
        file.pwrite(b"x" * (8 * MIB), 0)
        file.settle()
        before = resident(store)
        file.truncate(MIB)
        assert before - resident(store) >= 7 * MIB


def test_i4_overwriting_in_place_costs_nothing_more(store: Store) -> None:
    with keep(store, size=0) as file:
        for _ in range(20):
            file.pwrite(b"y" * (8 * MIB), 0)  # 160 MiB through a store of 64
        file.settle()
        assert resident(store) < 9 * MIB


def test_several_openers_share_one_file_and_the_row_follows(store: Store) -> None:
    with keep(store, size=MIB) as one, store.open_mutable(one.inode) as two:
        one.pwrite(b"from one", 0)
        assert os.pread(two.fd, 8, 0) == b"from one"
        two.truncate(2 * MIB)
        assert os.fstat(one.fd).st_size == 2 * MIB
        namespace = store.find_namespace(b"kv")
        assert namespace is not None
        assert namespace.logical_bytes == 2 * MIB


def test_two_processes_never_charge_the_same_bytes_twice(root: Path) -> None:
    with open_store(root) as store:
        with keep(store, size=0) as file:
            file.pwrite(b"x" * (4 * MIB), 0)
            arguments = [sys.executable, "-c", WRITE_MORE, str(root), str(file.inode)]
            subprocess.run(arguments, check=True, timeout=60, cwd=ROOT)
            file.settle()
            assert 8 * MIB <= resident(store) < 9 * MIB
        assert store.check().is_clean


def test_an_unlinked_file_is_charged_until_its_last_close(store: Store) -> None:
    file = keep(store, size=0)
    file.pwrite(b"x" * (4 * MIB), 0)
    file.settle()
    store.delete(SLAB)
    store.flush()
    assert resident(store) >= 4 * MIB
    file.pwrite(b"y" * (4 * MIB), 4 * MIB)  # it lives on for who has it open
    file.settle()
    assert resident(store) >= 8 * MIB
    file.close()
    store.flush()
    assert (resident(store), files_of(store)) == (0, [])
    assert store.check().is_clean


def test_a_put_over_it_replaces_it(store: Store) -> None:
    with keep(store, size=MIB) as file:
        store.put(SLAB, b"sealed")
        assert store.get(SLAB) == b"sealed"
        assert os.fstat(file.fd).st_size == MIB  # its openers keep it
    store.flush()
    assert files_of(store) == []
    assert store.check().is_clean


def test_rename_and_hard_links_keep_the_one_file(store: Store) -> None:
    namespace = store.find_namespace(b"kv")
    assert namespace is not None
    with keep(store, size=MIB) as file:
        parent = store.stat(SLAB).parent
        store.link(file.inode, ChildName(parent, b"second"))
        store.rename(ChildName(parent, b"0"), ChildName(parent, b"first"))
        file.pwrite(b"bytes", 0)
    store.unlink(ChildName(parent, b"first"))
    store.flush()
    with store.open_read(ChildName(parent, b"second")) as view:
        assert view.pread(0, 5) == b"bytes"
    store.unlink(ChildName(parent, b"second"))
    store.flush()
    assert files_of(store) == []
    assert store.check().is_clean


def test_its_etag_changes_with_every_write_and_matches_no_condition(store: Store) -> None:
    with keep(store, size=MIB) as file:
        seen = {store.stat(SLAB).etag}
        for number in range(5):
            file.pwrite(b"%d" % number, 0)
            seen.add(store.stat(SLAB).etag)
        assert len(seen) == 6
        last = store.stat(SLAB).etag
        with pytest.raises(PreconditionFailed):
            store.put(SLAB, b"x", PutOptions(condition=WriteCondition(etag=last)))


def test_a_copy_of_it_is_sealed(store: Store) -> None:
    with keep(store, size=0) as file:
        file.pwrite(b"content", 0)
    copied = store.copy(SLAB, ObjectPath(b"kv", b"copy"))
    assert not copied.is_mutable
    assert copied.digest
    assert store.get(ObjectPath(b"kv", b"copy")) == b"content"


def test_a_copy_that_somebody_wrote_into_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with keep(store, size=0) as file:
        file.pwrite(b"content", 0)
        publish = type(store).stage

        def stage_late(self: Store, *args: object, **words: object) -> object:
            file.pwrite(b"CONTENT", 0)
            return publish(self, *args, **words)  # type: ignore[arg-type]

        monkeypatch.setattr(type(store), "stage", stage_late)
        with pytest.raises(Unavailable):
            store.copy(SLAB, ObjectPath(b"kv", b"copy"))
        assert store.find(ObjectPath(b"kv", b"copy")) is None


def test_eviction_passes_it_over_and_takes_blocks(store: Store) -> None:
    with keep(store, size=0) as file:
        file.pwrite(b"s" * (40 * MIB), 0)
    for number in range(40):
        store.put(ObjectPath(b"kv", b"block-%d" % number), os.urandom(MIB))
    assert store.stat(SLAB).size == 40 * MIB
    assert store.find(ObjectPath(b"kv", b"block-39")) is not None
    assert store.find(ObjectPath(b"kv", b"block-0")) is None
    assert store.check().is_clean


def test_its_lifetime_begins_with_the_last_close(root: Path) -> None:
    clock = ManualClock()
    with open_store(root, clock=clock) as store:
        file = keep(store, size=MIB, options=PutOptions(ttl_s=100))
        clock.advance(1000)
        store.expire()
        assert files_of(store)  # an engine that lost its slab would read zeros
        file.close()
        clock.advance(1000)
        store.expire()
        store.flush()
        assert files_of(store) == []
        assert store.find(SLAB) is None
        assert store.check().is_clean


def test_what_a_dead_writer_wrote_is_charged_by_the_next_look(store: Store) -> None:
    with keep(store, size=0) as file:
        path = store.path / "files" / files_of(store)[0]
        assert file.size == 0
    with path.open("r+b") as passed_through:
        passed_through.write(b"x" * (4 * MIB))
    assert store.stat(SLAB).size == 4 * MIB  # a lookup asks the file
    assert resident(store) == 0
    assert {each.code for each in store.check().findings} == {"mutable-file-charge"}
    assert not store.check(repair=True).left
    assert resident(store) >= 4 * MIB


def test_a_read_only_store_serves_it(root: Path) -> None:
    with open_store(root) as store, keep(store, size=0) as file:
        file.pwrite(b"content", 0)
    with open_store(root, read_only=True) as store:
        assert store.get(SLAB) == b"content"
        with store.open_mutable(store.stat(SLAB).inode) as file:
            assert os.pread(file.fd, 7, 0) == b"content"


def test_a_sealed_file_is_not_opened_as_a_mutable_one(store: Store) -> None:
    entry: Entry = store.put(SLAB, b"sealed")
    with pytest.raises(NotFound):
        store.open_mutable(entry.inode)


def test_a_refused_one_leaves_nothing(store: Store) -> None:
    store.put(SLAB, b"there")
    with pytest.raises(Exception, match="exists"):
        keep(store, options=PutOptions(condition=WriteCondition(must_be_absent=True)))
    assert files_of(store) == []
    assert store.get(SLAB) == b"there"
    assert store.check().is_clean


def test_the_kernel_refuses_what_outgrows_the_store_and_goes_on_when_there_is_room(
    store: Store,
) -> None:
    store.put(ObjectPath(b"kv", b"other"), b"x" * (60 * MIB), PutOptions(pin=Pin.HARD))
    with keep(store, size=0) as file:
        direct = os.open(f"/proc/self/fd/{file.fd}", os.O_RDWR)  # as the kernel writes, past us
        try:
            os.pwrite(direct, b"y" * (8 * MIB), 0)
            file.watch(MIB)
            if not file.is_held:
                pytest.skip("no CAP_LINUX_IMMUTABLE here, or no file attributes on this disk")
            with pytest.raises(PermissionError):
                os.pwrite(direct, b"more", 8 * MIB)
            with pytest.raises(NoSpace):
                file.settle()
            usage = store.usage()
            assert usage.resident_bytes + usage.reserved_bytes <= CAPACITY
            store.delete(ObjectPath(b"kv", b"other"))
            file.watch(MIB)
            assert os.pwrite(direct, b"more", 8 * MIB) == 4
        finally:
            os.close(direct)
    assert store.check().is_clean
