"""A collection's journal of dropped blocks: a rebuild never gives a dropped name back (I1)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs.index.lmdb_index import WriteTransaction
from kvfs.model import ObjectPath, PutOptions
from kvfs.open_store import init_store, open_store
from kvfs.store.context import StoreContext
from kvfs.store.dropped_blocks import DroppedBlocks, read_dropped
from kvfs.store.objects import Labels, TrashKey, drop_inode
from kvfs.store.store import Store
from kvfs_tools.gc import collect, load_settings
from tests.crash.processes import abandon

pytestmark = [pytest.mark.crash, pytest.mark.expects_warnings]
KEPT, GONE = ObjectPath(b"kv", b"kept"), ObjectPath(b"kv", b"gone")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    init_store(tmp_path / "s", capacity_bytes=64 << 20)
    with open_store(tmp_path / "s") as store:
        store.create_namespace(b"kv")
        for path in (KEPT, GONE):
            store.put(path, path.key * 5000)
    return tmp_path / "s"


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    store = open_store(root)
    yield store
    store.close()


def journal(context: StoreContext) -> DroppedBlocks:
    return DroppedBlocks(context.root, context.files, context.randomness)


def file_of(store: Store, path: ObjectPath) -> TrashKey:
    digest = store.stat(path).digest
    with store.context.index.read() as txn:
        block = txn.block(digest)
    assert block is not None
    return digest, block.generation


def drop(store: Store, path: ObjectPath, labels: Labels) -> list[TrashKey]:
    inode = store.stat(path).inode

    def work(txn: WriteTransaction) -> list[TrashKey]:
        row = txn.inode(inode)
        assert row is not None
        return drop_inode(txn, inode, row, labels, 1)

    return store.context.commit(work)


def lose_index(store: Store) -> None:
    root = store.path
    abandon(store)
    (root / "index" / "data.mdb").unlink()


def test_a_name_dropped_but_not_yet_unlinked_does_not_come_back_with_a_rebuild(root: Path) -> None:
    store = open_store(root)
    labels = journal(store.context).note([file_of(store, GONE)])
    trash = drop(store, GONE, labels)
    label = store.context.files.read_label(*trash[0])
    assert label is not None
    assert label.path == b"gone", "the label itself was left alone: that is what is saved"
    lose_index(store)
    with open_store(root) as again:
        assert again.find(GONE) is None
        assert again.get(KEPT) == b"kept" * 5000


def test_a_block_that_keeps_another_name_has_its_label_cleared_in_the_transaction(
    store: Store,
) -> None:
    labels = journal(store.context).note([file_of(store, GONE)])
    store.copy(GONE, ObjectPath(b"kv", b"copy"))
    assert drop(store, GONE, labels) == []
    label = store.context.files.read_label(*file_of(store, ObjectPath(b"kv", b"copy")))
    assert label is not None
    assert label.path == b""


def test_a_settled_journal_is_empty_and_what_stayed_has_no_name_for_a_rebuild(store: Store) -> None:
    owner = journal(store.context)
    file = file_of(store, KEPT)
    owner.note([file])
    owner.settle()
    assert read_dropped(store.path) == set()
    label = store.context.files.read_label(*file)
    assert label is not None
    assert label.path == b""
    owner.close()
    assert not list((store.path / "index").glob("dropped-*"))


def test_a_dead_process_journal_is_settled_by_the_next_and_a_living_one_is_not(
    store: Store,
) -> None:
    living, dead = journal(store.context), journal(store.context)
    living.note([file_of(store, KEPT)])
    dead.note([file_of(store, GONE)])
    assert read_dropped(store.path) == {file_of(store, KEPT), file_of(store, GONE)}
    dead_journal = dead._descriptor
    living.adopt_dead()
    assert read_dropped(store.path) == {file_of(store, KEPT), file_of(store, GONE)}
    os.close(dead_journal)  # as the kernel does for a killed process
    living.adopt_dead()
    assert read_dropped(store.path) == {file_of(store, KEPT)}
    living.close()


def test_a_torn_last_entry_is_passed_over(store: Store) -> None:
    owner = journal(store.context)
    owner.note([file_of(store, KEPT), file_of(store, GONE)])
    (path,) = (store.path / "index").glob("dropped-*")
    with path.open("ab") as file:
        file.write(b"torn")
    assert len(read_dropped(store.path)) == 2
    owner.close()


def test_a_collection_leaves_no_journal(store: Store) -> None:
    store.put(ObjectPath(b"kv", b"short"), b"x", PutOptions(ttl_s=1))
    store.delete(GONE)
    collect(store, load_settings(store.path))
    assert not list((store.path / "index").glob("dropped-*"))
