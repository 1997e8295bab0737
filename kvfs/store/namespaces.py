"""Buckets: the first directory, with a salt, a quota and a usage of its own.

Owns the namespace rows and <store>/namespaces/<id>.json, which keeps name and salt outside the
index: without the salt no digest could be checked after the index is lost. The file is written and
synced before the row commits, mode 0600, and never read while the index is good.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvfs.codec.digest import SALT_LENGTH
from kvfs.errors import AlreadyExists, NamespaceNotEmpty, NamespaceNotFound
from kvfs.index import tree
from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.index.schema import InodeRow, NamespaceRow, check_component, entry_of
from kvfs.model import ROOT_INODE, ROOT_NAMESPACE, Entry, Kind, NamespaceId
from kvfs.store.block_files import os_error
from kvfs.store.context import StoreContext
from kvfs.store.names import remove_empty_directory
from kvfs.store.objects import find_namespace

MAX_EMPTY_DIRECTORIES = 1000
"""Deleting a bucket clears at most so many empty directories that the mount left in it (I8)."""


@dataclass(frozen=True, slots=True)
class SavedNamespace:
    """What outlives the index."""

    namespace_id: NamespaceId
    name: bytes
    salt: bytes
    created_ns: int


class Namespaces:
    """Making, listing and removing namespaces. Thread-safe."""

    def __init__(self, context: StoreContext) -> None:
        self._context = context

    def create_root(self) -> None:
        """Make the root directory and its namespace, when a store is new."""
        now_ns = self._context.clock.now_ns()
        salt = self._context.randomness.token(SALT_LENGTH)
        self._save(SavedNamespace(ROOT_NAMESPACE, b"", salt, now_ns))

        def work(txn: WriteTransaction) -> None:
            row = InodeRow(Kind.DIRECTORY, ROOT_NAMESPACE, mode=0o755)
            row.mtime_ns = row.ctime_ns = now_ns
            row.parent = ROOT_INODE
            txn.create_inode(ROOT_INODE, row)
            txn.put_namespace(ROOT_NAMESPACE, NamespaceRow(ROOT_INODE, now_ns, salt=salt))
            txn.counters()

        self._context.commit(work)

    def create(self, name: bytes, mode: int, uid: int, gid: int) -> Entry:
        """Add a first directory. Raises: AlreadyExists, InvalidName."""
        check_component(name)
        now_ns = self._context.clock.now_ns()
        with self._context.index.read() as txn:
            _must_be_free(txn, name)
        namespace_id = self._context.commit(_allocate)
        salt = self._context.randomness.token(SALT_LENGTH)
        self._save(SavedNamespace(namespace_id, name, salt, now_ns))

        def work(txn: WriteTransaction) -> Entry:
            _must_be_free(txn, name)
            row = InodeRow(Kind.DIRECTORY, namespace_id, mode=mode & 0o7777, uid=uid, gid=gid)
            inode = tree.make_directory(txn, ROOT_INODE, name + b"/", row, now_ns)
            txn.put_namespace(namespace_id, NamespaceRow(inode, now_ns, salt=salt))
            return entry_of(inode, row)

        try:
            entry = self._context.commit(work)
        except BaseException:
            self._path(namespace_id).unlink(missing_ok=True)
            raise
        self._context.index.sync()  # at `cache` too: whoever made a bucket does not look again
        return entry

    def salt(self, namespace_id: NamespaceId) -> bytes:
        """Return what a namespace's digests are keyed with. Raises: NamespaceNotFound."""
        with self._context.index.read() as txn:
            namespace = txn.namespace(namespace_id)
        if namespace is None:
            raise NamespaceNotFound("the bucket was deleted meanwhile: create it again")
        return namespace.salt

    def delete(self, name: bytes) -> None:
        """Remove a bucket that holds no object. Raises: NamespaceNotFound, NamespaceNotEmpty."""
        now_ns = self._context.clock.now_ns()

        def work(txn: WriteTransaction) -> NamespaceId:
            namespace_id, inode = find_namespace(txn, name)
            namespace = txn.namespace(namespace_id)
            if namespace is not None and namespace.object_count:
                raise NamespaceNotEmpty("the bucket is not empty: delete its objects first")
            empty = _empty_directories(txn, inode)
            for child in [*reversed(empty), inode]:
                row = txn.inode(child)
                if row is not None:  # an implied one went with its last child
                    remove_empty_directory(txn, child, row, now_ns)
            return namespace_id

        namespace_id = self._context.commit(work)
        self.forget(namespace_id)

    def forget(self, namespace_id: NamespaceId) -> None:
        """Remove what outlives the index, after the namespace's row is gone.

        The index first: one from before the removal would have blocks that nothing can check.
        """
        self._context.index.sync()
        with contextlib.suppress(OSError):
            self._path(namespace_id).unlink(missing_ok=True)

    def rename_saved(self, namespace_id: NamespaceId, name: bytes) -> None:
        """Write a bucket's new name ("" before its rename commits: a rebuild must not guess)."""
        for saved in read_saved(self._context.root):
            if saved.namespace_id == namespace_id:
                self._save(SavedNamespace(namespace_id, name, saved.salt, saved.created_ns))

    def save_if_different(self, wanted: SavedNamespace) -> None:
        """Write what must outlive the index, unless it is there already."""
        if wanted not in list(read_saved(self._context.root)):
            self._save(wanted)

    def names(self) -> list[bytes]:
        """Return every bucket's name in byte order."""
        with self._context.index.read() as txn:
            return [
                piece[:-1] for piece, _, kind in txn.children(ROOT_INODE) if kind == tree.DIRECTORY
            ]

    def _path(self, namespace_id: NamespaceId) -> Path:
        return self._context.root / "namespaces" / f"{namespace_id:08x}.json"

    def _save(self, saved: SavedNamespace) -> None:
        text = json.dumps(
            {
                "id": saved.namespace_id,
                "name": saved.name.hex(),
                "salt": saved.salt.hex(),
                "created_ns": saved.created_ns,
            }
        )
        path = self._path(saved.namespace_id)
        fresh = path.with_suffix(".new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.write(descriptor, text.encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            fresh.replace(path)
            sync_directory(path.parent)
        except OSError as error:
            raise os_error(error, "cannot save the bucket's salt") from error


def read_saved(root: Path) -> Iterator[SavedNamespace]:
    """Yield the namespaces saved beside the index; damaged files are passed over."""
    for path in sorted((root / "namespaces").glob("*.json")):
        try:
            fields = json.loads(path.read_text())
            yield SavedNamespace(
                NamespaceId(int(fields["id"])),
                bytes.fromhex(fields["name"]),
                bytes.fromhex(fields["salt"]),
                int(fields["created_ns"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue


def sync_directory(path: Path) -> None:
    """fsync a directory. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _allocate(txn: WriteTransaction) -> NamespaceId:
    counters = txn.counters()
    counters.next_namespace += 1
    return NamespaceId(counters.next_namespace - 1)


def _must_be_free(txn: ReadTransaction, name: bytes) -> None:
    if tree.lookup_child(txn, ROOT_INODE, name) is not None:
        shown = name.decode("utf-8", "replace")
        raise AlreadyExists(f"the bucket or first directory {shown!r} exists already")


def _empty_directories(txn: WriteTransaction, inode: int) -> list[int]:
    """Return all directories under `inode`, parents first. Raises: NamespaceNotEmpty."""
    found: list[int] = []
    waiting = [inode]
    while waiting:
        for _, child, kind in txn.children(waiting.pop()):
            if kind != tree.DIRECTORY or len(found) == MAX_EMPTY_DIRECTORIES:
                raise NamespaceNotEmpty("the bucket is not empty: delete what is in it first")
            found.append(child)
            waiting.append(child)
    return found
