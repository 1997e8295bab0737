"""Moving names: rename in its three forms, and the labels that must follow.

Owns rename(2)'s rules. One transaction: it checks everything, then changes rows, so a refused
rename has changed nothing.

Holds: the label of a moved file is cleared before the commit and rewritten after it, and a
directory's move is journalled before its commit, so a rebuild never gives a block a name that it
no longer has.
"""

from __future__ import annotations

import enum
from dataclasses import replace

from kvfs.errors import (
    AlreadyExists,
    CrossNamespace,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotFound,
)
from kvfs.index import tree
from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.index.schema import (
    InodeRow,
    check_component,
)
from kvfs.model import (
    ROOT_INODE,
    ChildName,
    Codec,
    Digest,
    Kind,
    NamespaceId,
)
from kvfs.store.block_files import BlockLabel
from kvfs.store.context import StoreContext
from kvfs.store.directory_moves import append_directory_move
from kvfs.store.names import drop_directory
from kvfs.store.objects import (
    TrashKey,
    forget_label,
    forget_name,
    is_expired,
)
from kvfs.store.trash import Trash


class RenameMode(enum.Enum):
    """What rename does when the target exists."""

    REPLACE = "replace"
    NO_REPLACE = "no-replace"
    EXCHANGE = "exchange"


class Renames:
    """Rename operations of one store. Thread-safe."""

    def __init__(self, context: StoreContext, trash: Trash) -> None:
        self._context = context
        self._trash = trash

    def rename(self, source: ChildName, target: ChildName, mode: RenameMode) -> None:
        """Move a name, atomically replacing the target.

        Raises: NotFound, AlreadyExists (NO_REPLACE), IsADirectory, NotADirectory,
        DirectoryNotEmpty, CrossNamespace, InvalidArgument (into itself), InvalidName.
        """
        check_component(target.name)
        now_ns = self._context.clock.now_ns()
        moved, trash = self._context.commit(
            lambda txn: self._rename(txn, source, target, mode, now_ns)
        )
        self._trash.add(trash)
        for inode in moved:
            self._relabel(inode)

    def _rename(
        self,
        txn: WriteTransaction,
        source: ChildName,
        target: ChildName,
        mode: RenameMode,
        now_ns: int,
    ) -> tuple[list[int], list[TrashKey]]:
        found = tree.lookup_child(txn, source.parent, source.name)
        if found is None:
            raise NotFound(f"{str(source)!r} does not exist")
        inode, kind, encoded = found
        _check_move(txn, source, target, inode, kind)
        present = tree.lookup_child(txn, target.parent, target.name)
        if present is not None and mode is RenameMode.NO_REPLACE:
            row = txn.inode(present[0])
            if row is None or not is_expired(row, now_ns // 1_000_000_000):
                raise AlreadyExists(f"{str(target)!r} exists already")
        if present is not None and present[0] == inode:
            return [], []  # POSIX: two names of one file, or a name onto itself: nothing happens
        if mode is RenameMode.EXCHANGE:
            if present is None:
                raise NotFound(f"{str(target)!r} does not exist, so it cannot be exchanged")
            _check_move(txn, target, source, present[0], present[1])
            self._journal_directory_moves(txn, source, target)
            return self._exchange(txn, source, found, target, present, now_ns), []
        _clear_target(txn, target, kind, present)
        self._journal_directory_moves(txn, source)
        trash: list[TrashKey] = []
        new_encoded = target.name + b"/" if kind == tree.DIRECTORY else target.name
        self._move(txn, inode, (source.parent, encoded), (target.parent, new_encoded), now_ns,
                   is_replacing=present is not None)  # fmt: skip
        if present is not None and kind != tree.DIRECTORY:
            trash = forget_name(
                txn, target.parent, present[2], present[0], self._context.files, now_ns
            )
        return [inode], trash

    def _move(
        self,
        txn: WriteTransaction,
        inode: int,
        source: tuple[int, bytes],
        target: tuple[int, bytes],
        now_ns: int,
        *,
        is_replacing: bool,
    ) -> None:
        row = txn.inode(inode)
        assert row is not None, "a dirent names an inode that exists"
        is_live = row.kind is Kind.FILE or (row.kind is Kind.DIRECTORY and row.size > 0)
        if row.digest:
            forget_label(txn, row.digest, self._context.files)
        # The new name first: taking the old one away may remove an implied directory.
        if is_replacing:
            found = tree.lookup(txn, *target)
            assert found is not None, "the target was looked up in this transaction"
            delta = int(is_live) - int(found[1] == tree.FILE)
            tree.replace(txn, *target, inode, row.kind, delta, now_ns)
        else:
            tree.attach(txn, *target, inode, row.kind, is_live, now_ns)
        tree.detach(txn, *source, is_live, now_ns)
        self._rewrite_link(txn, inode, source, target, now_ns)

    def _rewrite_link(
        self,
        txn: WriteTransaction,
        inode: int,
        source: tuple[int, bytes],
        target: tuple[int, bytes],
        now_ns: int,
    ) -> None:
        row = txn.inode(inode)
        assert row is not None, "the inode moves with its name"
        tree.move_link(txn, inode, row, source, target)
        row.ctime_ns = now_ns
        txn.update_inode(inode, None, row)

    def _exchange(
        self,
        txn: WriteTransaction,
        source: ChildName,
        first: tuple[int, int, bytes],
        target: ChildName,
        second: tuple[int, int, bytes],
        now_ns: int,
    ) -> list[int]:
        sides = (
            (first, (source.parent, first[2]), target),
            (second, (target.parent, second[2]), source),
        )
        moves = []
        for found, old, place in sides:
            row = txn.inode(found[0])
            assert row is not None, "a dirent names an inode that exists"
            if row.digest:
                forget_label(txn, row.digest, self._context.files)
            is_live = row.kind is Kind.FILE or (row.kind is Kind.DIRECTORY and row.size > 0)
            suffix = b"/" if row.kind is Kind.DIRECTORY else b""
            moves.append((found[0], row.kind, is_live, old, (place.parent, place.name + suffix)))
        if (first[1] == tree.DIRECTORY) == (second[1] == tree.DIRECTORY):
            for (inode, kind, is_live, _, new), other in zip(moves, reversed(moves), strict=True):
                tree.replace(txn, *new, inode, kind, int(is_live) - int(other[2]), now_ns)
        else:
            for *_, new in moves:
                if tree.lookup(txn, *new) is not None:
                    raise AlreadyExists("a file of that name lies behind the directory: move it")
            for inode, kind, is_live, _, new in moves:
                tree.attach(txn, *new, inode, kind, is_live, now_ns)
            for _, _, is_live, old, _ in moves:
                tree.detach(txn, *old, is_live, now_ns)
        for inode, _, _, old, new in moves:
            self._rewrite_link(txn, inode, old, new, now_ns)
        return [inode for inode, *_ in moves]

    def _journal_directory_moves(self, txn: ReadTransaction, *places: ChildName) -> None:
        """Before a directory's move commits: labels below its old path stop being current.

        In the transaction, because a move that is refused must not cost the labels their names
        (about 2 ms under the write lock: directories move rarely).
        """
        for place in places:
            moved = _directory_path(txn, place)
            if moved is not None:
                append_directory_move(self._context.root, *moved)

    def _relabel(self, inode: int) -> None:
        """Give a renamed file's block its label back, with the name that was committed.

        Written under the write lock, if the name is still the same there: whoever changes it
        clears the label in a transaction too, so no label outlives its name.
        """
        now_ns = self._context.clock.now_ns()
        with self._context.index.read() as txn:
            wanted = _label_of_only_name(txn, inode, now_ns)
        if wanted is None:
            return
        digest, generation, label = wanted

        def work(txn: WriteTransaction) -> None:
            if _label_of_only_name(txn, inode, now_ns) == wanted:
                self._context.files.rewrite_label(digest, generation, label)

        self._context.commit(work)


def _label_of_only_name(
    txn: ReadTransaction, inode: int, now_ns: int
) -> tuple[Digest, int, BlockLabel] | None:
    """Return (digest, generation, label) of a file whose block has this one name, else None."""
    row = txn.inode(inode)
    block = None if row is None or not row.digest else txn.block(row.digest)
    if row is None or block is None or row.nlink != 1 or block.refs != 1:
        return None
    path = tree.path_of(txn, row.parent, row.name)
    path = path.partition(b"/")[2] if row.namespace_id else path
    return row.digest, block.generation, replace(label_of(row, now_ns, path), codec=block.codec)


def label_of(row: InodeRow, published_ns: int, path: bytes) -> BlockLabel:
    """Return the rebuild label of a row under `path`."""
    return BlockLabel(
        row.namespace_id, published_ns, row.mtime_ns, row.size, Codec.RAW, row.mode,
        row.uid, row.gid, row.priority, row.pin, row.expires_at_s, row.ttl_s,
        row.ttl_class, row.is_sliding, row.etag, path,
    )  # fmt: skip


def _clear_target(
    txn: WriteTransaction, target: ChildName, kind: int, present: tuple[int, int, bytes] | None
) -> None:
    """Check that a move of `kind` may replace `present`; a directory's row goes at once.

    Its name stays, to be rewritten: removing it could take an implied parent along.
    """
    if present is None:
        return
    if kind != tree.DIRECTORY and present[1] == tree.DIRECTORY:
        raise IsADirectory(f"{str(target)!r} is a directory")
    if kind == tree.DIRECTORY and present[1] != tree.DIRECTORY:
        raise NotADirectory(f"{str(target)!r} is no directory")
    if kind == tree.DIRECTORY:
        drop_directory(txn, present[0], tree.directory_row(txn, present[0]))


def _directory_path(txn: ReadTransaction, place: ChildName) -> tuple[NamespaceId, bytes] | None:
    """Return a directory's (namespace, key with "/"); None for a file, a bucket or nothing."""
    found = tree.lookup(txn, place.parent, place.name + b"/")
    if found is None or place.parent == ROOT_INODE:
        return None
    path = tree.path_of(txn, place.parent, place.name + b"/")
    return tree.directory_row(txn, found[0]).namespace_id, path.partition(b"/")[2]


def _check_move(
    txn: ReadTransaction, source: ChildName, target: ChildName, inode: int, kind: int
) -> None:
    """Raise unless `inode` may move to `target`'s directory."""
    above = tree.directory_row(txn, source.parent)
    below = tree.directory_row(txn, target.parent)
    is_bucket = kind == tree.DIRECTORY and source.parent == ROOT_INODE
    if is_bucket != (kind == tree.DIRECTORY and target.parent == ROOT_INODE) or (
        above.namespace_id != below.namespace_id
    ):
        raise CrossNamespace("a rename cannot cross buckets: copy, then delete")
    if kind == tree.DIRECTORY and tree.is_below(txn, target.parent, inode):
        raise InvalidArgument("a directory cannot move into itself")
    if kind == tree.DIRECTORY:
        tree.check_depth(txn, target.parent)
