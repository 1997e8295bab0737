"""kvfs-fsck finds each kind of damage, repairs what it can, and says so by its exit code."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvfs.index.lmdb_index import WriteTransaction
from kvfs.index.schema import GRANT_PREFIX, FileRow, pack_u64
from kvfs.model import ChildName, NamespaceId, ObjectPath, Pin, PutOptions
from kvfs.open_store import init_store, open_store
from kvfs.store.findings import CheckReport, Severity
from kvfs.store.store import Store

ROOT = Path(__file__).resolve().parents[2]
LONG = b"long/" + b"n" * 600


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with one of everything that has a count somewhere."""
    root = tmp_path / "store"
    init_store(root, capacity_bytes=64 << 20)
    with open_store(root) as store:
        store.create_namespace(b"kv")
        store.put(ObjectPath(b"kv", b"a/one"), b"1" * 5000)
        store.put(ObjectPath(b"kv", b"a/same"), b"1" * 5000)
        store.put(ObjectPath(b"kv", b"two"), b"2" * 9000, PutOptions(ttl_s=3600))
        store.put(ObjectPath(b"kv", b"pinned"), b"3" * 10, PutOptions(pin=Pin.HARD))
        store.put(ObjectPath(b"kv", LONG), b"")
        inode = store.stat(ObjectPath(b"kv", b"two")).inode
        namespace = store.find_namespace(b"kv")
        assert namespace is not None
        store.link(inode, ChildName(namespace.inode, b"linked"))
        store.mkdir(ChildName(namespace.inode, b"empty"))
        staging = store.stage(namespace.namespace_id)
        staging.pwrite(b"slab", 1 << 20)
        store.keep_mutable(staging, ObjectPath(b"kv", b"slab"))[1].close()
    return root


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    with open_store(root) as store:
        yield store


def change(store: Store, work: Callable[[WriteTransaction], object]) -> None:
    """Damage rows behind the store's back."""
    store._context.commit(work)


def block_file(store: Store, key: bytes) -> Path:
    digest = store.stat(ObjectPath(b"kv", key)).digest
    (path,) = (store.path / "blocks" / f"{digest[0]:02x}").glob(f"{digest.hex()}.*")
    return path


def codes(report: CheckReport) -> set[str]:
    return {finding.code for finding in report.findings}


def inode_of(store: Store, key: bytes) -> int:
    return store.stat(ObjectPath(b"kv", key)).inode


def set_fields(
    key: bytes, **fields: object
) -> Callable[[Store], Callable[[WriteTransaction], None]]:
    """Return a damage that sets fields of the inode at `key`, and nothing else."""

    def prepare(store: Store) -> Callable[[WriteTransaction], None]:
        inode = inode_of(store, key)

        def work(txn: WriteTransaction) -> None:
            row = txn.inode(inode)
            assert row is not None
            for name, value in fields.items():
                setattr(row, name, value)
            txn.update_inode(inode, None, row)

        return work

    return prepare


def set_block(**fields: object) -> Callable[[Store], Callable[[WriteTransaction], None]]:
    """Return a damage that sets fields of the block of `two`."""

    def prepare(store: Store) -> Callable[[WriteTransaction], None]:
        digest = store.stat(ObjectPath(b"kv", b"two")).digest

        def work(txn: WriteTransaction) -> None:
            row = txn.block(digest)
            assert row is not None
            for name, value in fields.items():
                setattr(row, name, value)
            txn.put_block(digest, row)

        return work

    return prepare


def set_counter(name: str, value: int) -> Callable[[Store], Callable[[WriteTransaction], None]]:
    def work(txn: WriteTransaction) -> None:
        setattr(txn.counters(), name, value)

    return lambda _store: work


def drop_rows(table: str) -> Callable[[Store], Callable[[WriteTransaction], None]]:
    def work(txn: WriteTransaction) -> None:
        for key in list(txn.keys(table)):
            txn.delete(table, key)

    return lambda _store: work


def delete_inode_row(store: Store) -> Callable[[WriteTransaction], object]:
    inode = inode_of(store, b"a/one")
    return lambda txn: txn.delete("inodes", pack_u64(inode))


def delete_block_row(store: Store) -> Callable[[WriteTransaction], object]:
    digest = store.stat(ObjectPath(b"kv", b"two")).digest
    return lambda txn: txn.delete("blocks", digest)


def delete_name(store: Store) -> Callable[[WriteTransaction], object]:
    namespace = store.find_namespace(b"kv")
    assert namespace is not None
    return lambda txn: txn.delete_dirent(namespace.inode, b"two")


def add_stray_name(store: Store) -> Callable[[WriteTransaction], object]:
    namespace = store.find_namespace(b"kv")
    assert namespace is not None
    inode = inode_of(store, b"two")
    return lambda txn: txn.put_dirent(namespace.inode, b"stray", inode, 1)


def trash_live_block(store: Store) -> Callable[[WriteTransaction], None]:
    digest = store.stat(ObjectPath(b"kv", b"two")).digest

    def work(txn: WriteTransaction) -> None:
        block = txn.block(digest)
        assert block is not None
        txn.put_count("trash", digest + pack_u64(block.generation), block.stored)

    return work


def delete_file_row(store: Store) -> Callable[[WriteTransaction], object]:
    inode = inode_of(store, b"slab")
    return lambda txn: txn.delete_mutable_file(inode)


def stray_file_row(_store: Store) -> Callable[[WriteTransaction], None]:
    return lambda txn: txn.put_mutable_file(777_777, FileRow(1, 4096))


def trash_live_file(store: Store) -> Callable[[WriteTransaction], None]:
    inode = inode_of(store, b"slab")

    def work(txn: WriteTransaction) -> None:
        file = txn.mutable_file(inode)
        assert file is not None
        txn.put_count("trash", pack_u64(inode) + pack_u64(file.generation), file.stored)

    return work


def wrong_usage(_store: Store) -> Callable[[WriteTransaction], None]:
    def work(txn: WriteTransaction) -> None:
        row = txn.namespace(NamespaceId(1))
        assert row is not None
        row.object_count += 7
        txn.put_namespace(NamespaceId(1), row)

    return work


def stray_rows(_store: Store) -> Callable[[WriteTransaction], None]:
    def work(txn: WriteTransaction) -> None:
        txn.put("lru", b"\x00" * 5 + pack_u64(999_999), b"")
        txn.put("expiry", b"\x00" * 4 + pack_u64(999_999), b"")
        txn.put("links", pack_u64(999_999) + pack_u64(2) + b"x", b"")
        txn.put("dirents", pack_u64(888_888) + b"x", b"\x01" * 9)

    return work


def garbage_row(_store: Store) -> Callable[[WriteTransaction], None]:
    return lambda txn: txn.put("inodes", pack_u64(777), b"no inode")


DAMAGES: dict[str, tuple[Callable[[Store], Callable[[WriteTransaction], object]], set[str]]] = {
    "nlink": (set_fields(b"two", nlink=5), {"inode-nlink"}),
    "a file's size": (set_fields(b"two", size=1), {"inode-size"}),
    "a directory's count": (lambda s: set_directory_count(s), {"directory-count"}),
    "refs": (set_block(refs=9), {"block-refs"}),
    "a block's charge": (set_block(stored=4096), {"block-charge"}),
    "a block from the future": (set_block(sequence=10**6), {"block-sequence"}),
    "resident": (set_counter("resident", 1), {"counter-resident"}),
    "granted": (set_counter("granted", 1), {"counter-granted"}),
    "uploading": (set_counter("uploading", 1), {"counter-uploading"}),
    "block count": (set_counter("block_count", 0), {"counter-block_count"}),
    "trash count": (set_counter("trash_count", 3), {"counter-trash_count"}),
    "next inode": (set_counter("next_inode", 2), {"counter-next_inode"}),
    "lost lru": (drop_rows("lru"), {"lru-missing"}),
    "lost expiry": (drop_rows("expiry"), {"expiry-missing"}),
    "lost links": (drop_rows("links"), {"name-unknown", "inode-nlink"}),
    "lost inode": (delete_inode_row, {"name-without-inode"}),
    "lost block row": (delete_block_row, {"inode-without-block"}),
    "lost name": (delete_name, {"inode-without-name"}),
    "stray name": (add_stray_name, {"name-unknown"}),
    "live block in the trash": (trash_live_block, {"trash-live"}),
    "lost file row": (delete_file_row, {"mutable-without-file", "counter-resident"}),
    "stray file row": (stray_file_row, {"file-without-inode"}),
    "live file in the trash": (trash_live_file, {"trash-live"}),
    "usage": (wrong_usage, {"namespace-usage"}),
    "stray rows": (stray_rows, {"lru-stale", "expiry-stale", "link-without-inode",
                                "name-without-directory"}),
    "garbage row": (garbage_row, {"row-unreadable"}),
    "garbled heat": (
        lambda _: lambda txn: txn.put("meta", b"heat", b"no row"), {"row-unreadable"}),
    "garbled counts of uses": (
        lambda _: lambda txn: txn.put("meta", b"uses", b"no counts"), {"row-unreadable"}),
}  # fmt: skip


def set_directory_count(store: Store) -> Callable[[WriteTransaction], None]:
    namespace = store.find_namespace(b"kv")
    assert namespace is not None

    def work(txn: WriteTransaction) -> None:
        row = txn.inode(namespace.inode)
        assert row is not None
        row.size = 77
        txn.update_inode(namespace.inode, None, row)

    return work


def test_a_store_with_everything_in_it_is_clean(store: Store) -> None:
    report = store.check(is_full=True)
    assert report.is_clean, report.findings
    assert report.bytes_hashed == 5000 + 9000 + 10


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_rows_are_found_and_repaired(store: Store, name: str) -> None:
    prepare, expected = DAMAGES[name]
    change(store, prepare(store))
    found = store.check()
    assert expected <= codes(found), found.findings
    assert found.has_damage_left
    repaired = store.check(repair=True)
    assert not repaired.left, repaired.left
    assert store.check(is_full=True).is_clean
    assert store.get(ObjectPath(b"kv", b"a/same")) == b"1" * 5000


@pytest.mark.expects_warnings
@pytest.mark.parametrize("how", ["gone", "short", "torn"])
def test_the_names_of_a_lost_block_are_dropped_and_the_others_stay(store: Store, how: str) -> None:
    path = block_file(store, b"a/one")
    if how == "gone":
        path.unlink()
    elif how == "short":
        os.truncate(path, 100)
    else:
        with path.open("r+b") as file:
            file.write(b"other")
    report = store.check(is_full=True, repair=True)
    assert codes(report) & {"block-file-missing", "block-file-length", "block-bytes"}
    assert report.names_dropped == 2
    assert store.find(ObjectPath(b"kv", b"a/one")) is None
    assert store.find(ObjectPath(b"kv", b"a/same")) is None
    assert store.get(ObjectPath(b"kv", b"two")) == b"2" * 9000
    assert store.check(is_full=True).is_clean
    store.put(ObjectPath(b"kv", b"a/one"), b"1" * 5000)
    assert store.get(ObjectPath(b"kv", b"a/one")) == b"1" * 5000


def test_other_bytes_of_the_right_length_are_found_only_by_hashing(store: Store) -> None:
    with block_file(store, b"two").open("r+b") as file:
        file.write(b"other")
    assert store.check().is_clean
    assert codes(store.check(is_full=True)) == {"block-bytes"}


def test_an_orphan_is_a_warning_and_a_writer_s_locked_file_is_none(store: Store) -> None:
    orphan = store.path / "blocks" / "ab" / ("ab" * 32 + "." + "0" * 16)
    orphan.write_bytes(b"left by a crash")
    with orphan.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert store.check().is_clean
    report = store.check()
    assert [(each.code, each.severity) for each in report.findings] == [
        ("orphan-file", Severity.WARNING)
    ]
    assert not store.check(repair=True).left
    assert not orphan.exists()


def test_a_file_that_is_not_the_store_s_is_named_and_left_alone(store: Store) -> None:
    stranger = store.path / "blocks" / "00" / ("ab" * 32 + "." + "0" * 16)
    stranger.write_bytes(b"in the wrong directory")
    assert codes(store.check(repair=True)) == {"foreign-file"}
    assert stranger.exists()


def test_what_dead_processes_left_is_taken_back(store: Store) -> None:
    (store.path / "staging" / "stage-dead").write_bytes(b"half a block")
    (store.path / "leases" / ("ee" * 8)).touch()

    def grant(txn: WriteTransaction) -> None:
        txn.put_count("meta", GRANT_PREFIX + b"\xee" * 8, 1 << 20)
        txn.counters().granted += 1 << 20

    change(store, grant)
    assert codes(store.check()) == {"dead-staging", "dead-lease"}
    assert not store.check(repair=True).left
    assert not list((store.path / "staging").iterdir())


def test_a_mutable_file_that_is_gone_takes_its_name_along(store: Store) -> None:
    (path,) = (store.path / "files").iterdir()
    path.unlink()
    report = store.check()
    assert codes(report) == {"mutable-file-missing"}
    assert report.has_damage_left
    assert not store.check(repair=True).left
    assert store.find(ObjectPath(b"kv", b"slab")) is None


def test_a_mutable_file_without_a_row_is_swept_unless_it_is_being_made(store: Store) -> None:
    orphan = store.path / "files" / f"{99:016x}.{1:016x}"
    orphan.write_bytes(b"left by a crash")
    stranger = store.path / "files" / "notes.txt"
    stranger.write_bytes(b"not ours")
    with orphan.open("rb") as maker:
        fcntl.flock(maker, fcntl.LOCK_EX)
        assert codes(store.check()) == {"foreign-file"}
        assert store.sweep().orphan_files == 0
    assert codes(store.check()) == {"foreign-file", "orphan-file"}
    assert codes(store.check(repair=True)) == {"foreign-file", "orphan-file"}
    assert not orphan.exists()
    assert stranger.exists()


def test_a_bucket_s_salt_is_saved_again(store: Store) -> None:
    (store.path / "namespaces" / "00000001.json").unlink()
    assert codes(store.check()) == {"salt-unsaved"}
    assert not store.check(repair=True).left


def fsck(root: Path, *flags: str) -> tuple[int, dict[str, object]]:
    """Run the command; return its exit code and its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "kvfs_tools.fsck", "--store", str(root), "--json", *flags],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT}/gateway:{ROOT}/tools"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, json.loads(done.stdout or "{}")


@pytest.mark.slow
def test_the_command_ends_with_the_documented_codes(root: Path, tmp_path: Path) -> None:
    assert fsck(root)[0] == 0
    with open_store(root) as store:
        block_file(store, b"two").unlink()
    code, record = fsck(root)
    assert (code, record["state"]) == (4, "damaged")
    code, record = fsck(root, "--repair")
    assert (code, record["state"], record["objects_dropped"]) == (3, "repaired", 1)
    assert fsck(root, "--full")[0] == 0
    assert fsck(tmp_path / "nothing")[0] == 10
    assert fsck(root, "--no-such-flag")[0] == 2


@pytest.mark.slow
def test_an_index_that_was_damaged_after_a_clean_stop_is_rebuilt_on_request(root: Path) -> None:
    with (root / "index" / "data.mdb").open("r+b") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(8192)
        file.write(b"\xff" * (length - 8192))
    assert fsck(root)[0] == 4
    code, record = fsck(root, "--repair")
    assert (code, record["is_index_rebuilt"]) == (3, True)
    assert fsck(root, "--full")[0] == 0
    with open_store(root) as store:
        assert store.get(ObjectPath(b"kv", b"two")) == b"2" * 9000


@pytest.mark.slow
def test_a_store_in_use_is_checked_beside_its_user(store: Store) -> None:
    staging = store.stage(size_bytes=100)
    staging.write(b"x" * 100)
    assert fsck(store.path, "--full")[0] == 0
    store.publish(staging, ObjectPath(b"kv", b"later"))
    assert fsck(store.path, "--full")[0] == 0
