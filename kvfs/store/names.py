"""Changing names: directories, links, renames, attributes, copies, removal.

Owns the POSIX and S3 rules of names; bytes come in only through publisher.py. Each operation is one
transaction: it checks everything, then changes rows, so a refused one has changed nothing.

Holds: labels of renamed files are cleared before the commit and rewritten after it, and directory
moves are journalled before their commit, so a rebuild never gives a block a name it no longer has.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import replace

from kvfs.errors import (
    AlreadyExists,
    CrossNamespace,
    DirectoryNotEmpty,
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
    end_of_life,
    entry_of,
    split_key,
)
from kvfs.model import (
    ROOT_INODE,
    AttributeChange,
    ChildName,
    Codec,
    Digest,
    Entry,
    Kind,
    NamespaceId,
    ObjectPath,
    Pin,
)
from kvfs.store.access_times import touch
from kvfs.store.block_files import BlockLabel
from kvfs.store.context import StoreContext
from kvfs.store.directory_moves import append_directory_move
from kvfs.store.objects import (
    TrashKey,
    count_name,
    drop_inode,
    drop_name,
    file_row,
    find_namespace,
    forget_label,
    forget_name,
    is_expired,
)
from kvfs.store.row_limits import check_attributes, fit_change
from kvfs.store.trash import Trash


class RenameMode(enum.Enum):
    """What rename does when the target exists."""

    REPLACE = "replace"
    NO_REPLACE = "no-replace"
    EXCHANGE = "exchange"


class Names:
    """Name operations of one store. Thread-safe."""

    def __init__(self, context: StoreContext, trash: Trash) -> None:
        self._context = context
        self._trash = trash

    # -- making ---------------------------------------------------------------------------------

    def mkdir(self, place: ChildName, mode: int, uid: int, gid: int) -> Entry:
        """Add an explicit directory below a namespace. Raises: AlreadyExists, NotFound."""
        now_ns = self._context.clock.now_ns()

        def work(txn: WriteTransaction) -> Entry:
            parent = tree.directory_row(txn, place.parent)
            tree.check_depth(txn, place.parent)
            _must_be_absent(txn, place)
            row = InodeRow(Kind.DIRECTORY, parent.namespace_id, mode=mode & 0o7777)
            row.uid, row.gid = uid, gid
            inode = tree.make_directory(txn, place.parent, place.name + b"/", row, now_ns)
            return entry_of(inode, row)

        check_component(place.name)
        return self._make(place, work)

    def symlink(self, place: ChildName, target: bytes, uid: int, gid: int) -> Entry:
        """Add a symbolic link (only the mount shows it). Raises: AlreadyExists, NotFound."""
        now_ns = self._context.clock.now_ns()
        check_component(place.name)
        if not target or len(target) > 4095 or b"\0" in target:
            raise InvalidArgument("a symlink's target has 1 to 4095 bytes and no NUL")

        def work(txn: WriteTransaction) -> Entry:
            parent = tree.directory_row(txn, place.parent)
            _must_be_absent(txn, place)
            inode = txn.allocate_inode()
            row = InodeRow(
                Kind.SYMLINK, parent.namespace_id, mode=0o777, uid=uid, gid=gid,
                size=len(target), mtime_ns=now_ns, ctime_ns=now_ns,
                parent=place.parent, name=place.name, target=target,
            )  # fmt: skip
            txn.create_inode(inode, row)
            tree.attach(txn, place.parent, place.name, inode, Kind.SYMLINK, False, now_ns)
            return entry_of(inode, row)

        return self._make(place, work)

    def link(self, inode: int, place: ChildName) -> Entry:
        """Add a hard link. Raises: AlreadyExists, NotFound, CrossNamespace, IsADirectory."""
        now_ns = self._context.clock.now_ns()
        check_component(place.name)

        def work(txn: WriteTransaction) -> Entry:
            parent = tree.directory_row(txn, place.parent)
            row = file_row(txn, inode)
            if parent.namespace_id != row.namespace_id:
                raise CrossNamespace("a hard link cannot cross buckets: copy the file")
            _must_be_absent(txn, place)
            before = replace(row)
            row.nlink += 1
            row.ctime_ns = now_ns
            txn.update_inode(inode, before, row)
            tree.add_link(txn, inode, place.parent, place.name)
            is_file = row.kind is Kind.FILE
            tree.attach(txn, place.parent, place.name, inode, row.kind, is_file, now_ns)
            count_name(txn, row, 1)
            return entry_of(inode, row)

        return self._make(place, work)

    def _make(self, place: ChildName, work: Callable[[WriteTransaction], Entry]) -> Entry:
        """Run `work`; a name that only an expired object still holds is freed for it first."""
        try:
            return self._context.commit(work)
        except AlreadyExists:
            trash = self._context.commit(lambda txn: self._drop_expired(txn, place))
            if trash is None:
                raise
            self._trash.add(trash)
            return self._context.commit(work)

    def _drop_expired(self, txn: WriteTransaction, place: ChildName) -> list[TrashKey] | None:
        """Remove the file at `place` if its lifetime is over; None if there is no such file."""
        now_ns = self._context.clock.now_ns()
        found = tree.lookup_child(txn, place.parent, place.name)
        row = None if found is None else txn.inode(found[0])
        if found is None or row is None or not is_expired(row, now_ns // 1_000_000_000):
            return None
        return drop_inode(txn, found[0], row, self._context.files, now_ns)

    # -- removing -------------------------------------------------------------------------------

    def delete(self, path: ObjectPath) -> Entry:
        """Remove the file at a literal key; implied directories it empties go too.

        Raises: NotFound, NamespaceNotFound.
        """
        now_ns = self._context.clock.now_ns()
        encoded_names = split_key(path.key)

        def work(txn: WriteTransaction) -> tuple[Entry, list[TrashKey]]:
            _, start = find_namespace(txn, path.namespace)
            parent = tree.lookup_parent(txn, start, encoded_names)
            found = None if parent is None else tree.lookup(txn, parent, encoded_names[-1])
            if parent is None or found is None or found[1] != tree.FILE:
                raise NotFound(f"{str(path)!r} does not exist")
            return self._drop(txn, parent, encoded_names[-1], found[0], now_ns)

        return self._run_drop(self._context.commit(work))

    def unlink(self, place: ChildName) -> Entry:
        """Remove a file or symlink. Raises: NotFound, IsADirectory."""
        now_ns = self._context.clock.now_ns()

        def work(txn: WriteTransaction) -> tuple[Entry, list[TrashKey]]:
            found = tree.lookup_child(txn, place.parent, place.name)
            if found is None:
                raise NotFound(f"{str(place)!r} does not exist")
            if found[1] == tree.DIRECTORY:
                raise IsADirectory(f"{str(place)!r} is a directory: use rmdir")
            return self._drop(txn, place.parent, place.name, found[0], now_ns)

        return self._run_drop(self._context.commit(work))

    def _drop(
        self, txn: WriteTransaction, parent: int, encoded: bytes, inode: int, now_ns: int
    ) -> tuple[Entry, list[TrashKey]]:
        entry = entry_of(inode, file_row(txn, inode))
        return entry, drop_name(txn, parent, encoded, inode, self._context.files, now_ns)

    def _run_drop(self, done: tuple[Entry, list[TrashKey]]) -> Entry:
        entry, trash = done
        self._trash.add(trash)
        return entry

    def rmdir(self, place: ChildName) -> None:
        """Remove an empty directory below a namespace.

        Raises: NotFound, NotADirectory, DirectoryNotEmpty.
        """
        now_ns = self._context.clock.now_ns()

        def work(txn: WriteTransaction) -> None:
            inode, row = _directory_at(txn, place)
            remove_empty_directory(txn, inode, row, now_ns)

        self._context.commit(work)

    # -- moving ---------------------------------------------------------------------------------

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

    # -- describing -----------------------------------------------------------------------------

    def set_attributes(self, inode: int, change: AttributeChange) -> Entry:
        """Change an inode's metadata; see AttributeChange.

        Raises: NotFound (inode, or attribute_must_exist), AlreadyExists, InvalidArgument.
        """
        now_ns = self._context.clock.now_ns()
        change = fit_change(change)

        def work(txn: WriteTransaction) -> Entry:
            row = txn.inode(inode)
            if row is None:
                raise NotFound("the file is gone: look its name up again")
            if row.kind is not Kind.FILE and (change.ttl_s or change.pin):
                raise InvalidArgument("only a file has a lifetime or a pin: set it on the files")
            before = replace(row)
            row.attributes = _changed_attributes(row, change)
            _apply(row, change, now_ns)
            row.ctime_ns = now_ns
            txn.update_inode(inode, before, row)
            return entry_of(inode, row)

        return self._context.commit(work)


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


def remove_empty_directory(txn: WriteTransaction, inode: int, row: InodeRow, now_ns: int) -> None:
    """Remove a directory (and, in the root, its namespace). Raises: DirectoryNotEmpty."""
    _drop_directory(txn, inode, row)
    tree.detach(txn, row.parent, row.name, False, now_ns)


def _drop_directory(txn: WriteTransaction, inode: int, row: InodeRow) -> None:
    """Remove a directory's row; its name is the caller's. Raises: DirectoryNotEmpty."""
    if tree.has_children(txn, inode):
        raise DirectoryNotEmpty("the directory is not empty: remove what is in it first")
    txn.delete_inode(inode, row)
    if row.parent == ROOT_INODE:
        txn.delete_namespace(row.namespace_id)


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
        _drop_directory(txn, present[0], tree.directory_row(txn, present[0]))


def _directory_path(txn: ReadTransaction, place: ChildName) -> tuple[NamespaceId, bytes] | None:
    """Return a directory's (namespace, key with "/"); None for a file, a bucket or nothing."""
    found = tree.lookup(txn, place.parent, place.name + b"/")
    if found is None or place.parent == ROOT_INODE:
        return None
    path = tree.path_of(txn, place.parent, place.name + b"/")
    return tree.directory_row(txn, found[0]).namespace_id, path.partition(b"/")[2]


def _directory_at(txn: ReadTransaction, place: ChildName) -> tuple[int, InodeRow]:
    found = tree.lookup_child(txn, place.parent, place.name)
    if found is None:
        raise NotFound(f"{str(place)!r} does not exist")
    if found[1] != tree.DIRECTORY:
        raise NotADirectory(f"{str(place)!r} is no directory")
    return found[0], tree.directory_row(txn, found[0])


def _must_be_absent(txn: ReadTransaction, place: ChildName) -> None:
    if tree.lookup_child(txn, place.parent, place.name) is not None:
        raise AlreadyExists(f"{str(place)!r} exists already")


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


def _changed_attributes(row: InodeRow, change: AttributeChange) -> dict[str, bytes]:
    attributes = dict(row.attributes)
    for name in change.remove_attributes:
        if name not in attributes:
            raise NotFound(f"there is no extended attribute {name!r}")
        del attributes[name]
    for name, value in change.set_attributes.items():
        if change.attribute_must_exist and name not in attributes:
            raise NotFound(f"there is no extended attribute {name!r}")
        if change.attribute_must_be_absent and name in attributes:
            raise AlreadyExists(f"the extended attribute {name!r} exists already")
        attributes[name] = value
    check_attributes(attributes)
    return attributes


def _apply(row: InodeRow, change: AttributeChange, now_ns: int) -> None:
    now_s = now_ns // 1_000_000_000
    if change.mode is not None:
        row.mode = change.mode & 0o7777
    if change.uid is not None:
        row.uid = change.uid
    if change.gid is not None:
        row.gid = change.gid
    if change.mtime_ns is not None:
        row.mtime_ns = change.mtime_ns
    if change.is_sliding is not None:
        row.is_sliding = change.is_sliding
    if change.ttl_class is not None:
        row.ttl_class = change.ttl_class
    if change.priority is not None:
        row.priority = change.priority
    if change.pin is not None:
        row.pin = Pin(change.pin)
    if change.ttl_s is not None:
        row.ttl_s = change.ttl_s
        row.expires_at_s = end_of_life(now_s, row.ttl_s)
    if change.accessed_s is not None:
        touch(row, now_s)
