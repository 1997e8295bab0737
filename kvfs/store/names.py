"""Making, describing and removing names: directories, links, attributes.

Owns the POSIX and S3 rules of names but for moving them (renames.py); bytes come in only through
publisher.py. Each operation is one transaction: it checks everything, then changes rows, so a
refused one has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

from kvfs.errors import (
    AlreadyExists,
    CrossNamespace,
    DirectoryNotEmpty,
    InvalidArgument,
    IsADirectory,
    KvfsError,
    NotADirectory,
    NotFound,
)
from kvfs.index import tree
from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.index.schema import InodeRow, check_component, end_of_life, entry_of
from kvfs.model import (
    ROOT_INODE,
    ROOT_NAMESPACE,
    RULED_TTL_CLASS,
    AttributeChange,
    ChildName,
    Entry,
    Kind,
    ObjectPath,
    Pin,
    WriteCondition,
)
from kvfs.store.access_times import touch
from kvfs.store.context import StoreContext
from kvfs.store.objects import (
    TrashKey,
    check_condition,
    count_name,
    drop_inode,
    drop_name,
    file_row,
    is_expired,
    resolve_target,
)
from kvfs.store.reader import VERIFY_ATTRIBUTE
from kvfs.store.recoder import COMPRESS_ATTRIBUTE
from kvfs.store.row_limits import check_attributes, fit_change
from kvfs.store.trash import Trash

BATCH_ROWS = 128
BATCH_NS = 4_000_000
"""What one transaction of many changes names or works at most: a writer elsewhere waits for it."""


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

    def delete(self, path: ObjectPath, condition: WriteCondition) -> Entry:
        """Remove the file at a literal key; implied directories it empties go too.

        Raises: NotFound, NamespaceNotFound, PreconditionFailed.
        """
        now_ns = self._context.clock.now_ns()

        def work(txn: WriteTransaction) -> tuple[Entry, list[TrashKey]]:
            return self._drop(txn, *_deletable(txn, path, condition, now_ns), now_ns)

        return self._run_drop(self._context.commit(work))

    def delete_many(
        self, wanted: Sequence[tuple[ObjectPath, WriteCondition]]
    ) -> list[Entry | KvfsError]:
        """Do as `delete` for each, many in a transaction; return what each was, or its refusal.

        Raises: as a commit; what was removed by then stays removed.
        """
        done: list[Entry | KvfsError] = []
        while len(done) < len(wanted):
            some, trash = self._context.commit(partial(self._delete_some, wanted, len(done)))
            done += some
            self._trash.add(trash)
        return done

    def _delete_some(
        self,
        wanted: Sequence[tuple[ObjectPath, WriteCondition]],
        start: int,
        txn: WriteTransaction,
    ) -> tuple[list[Entry | KvfsError], list[TrashKey]]:
        now_ns, clock = self._context.clock.now_ns(), self._context.clock
        until_ns = clock.monotonic_ns() + BATCH_NS
        done: list[Entry | KvfsError] = []
        trash: list[TrashKey] = []
        for path, condition in islice(wanted, start, start + BATCH_ROWS):
            try:
                found = _deletable(txn, path, condition, now_ns)
            except KvfsError as error:  # it looked only: the others' changes stand
                done.append(error)
                continue
            entry, dropped = self._drop(txn, *found, now_ns)
            done.append(entry)
            trash += dropped
            if clock.monotonic_ns() > until_ns:
                break
        return done, trash

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
            return _change(txn, inode, row, change, now_ns)

        return self._context.commit(work)

    def revise(
        self, inodes: Sequence[int], decide: Callable[[Entry], AttributeChange | None]
    ) -> int:
        """Make the change that `decide` wants of each file that is still there; return how many.

        decide: called in the transaction, on the entry as it is then; None = no change.
        Raises: as set_attributes.
        """
        changed = 0
        for start in range(0, len(inodes), BATCH_ROWS):
            batch = inodes[start : start + BATCH_ROWS]
            changed += self._context.commit(partial(self._revise_some, batch, decide))
        return changed

    def _revise_some(
        self,
        inodes: Sequence[int],
        decide: Callable[[Entry], AttributeChange | None],
        txn: WriteTransaction,
    ) -> int:
        now_ns, changed = self._context.clock.now_ns(), 0
        for inode in inodes:
            row = txn.inode(inode)
            change = decide(entry_of(inode, row)) if row is not None else None
            if row is not None and change is not None:
                _change(txn, inode, row, fit_change(change), now_ns)
                changed += 1
        return changed


def _deletable(
    txn: ReadTransaction, path: ObjectPath, condition: WriteCondition, now_ns: int
) -> tuple[int, bytes, int]:
    """Return (parent, name, inode) of the file that a delete removes. Raises: as Names.delete."""
    target = resolve_target(txn, path)
    present = target.present
    if target.parent is None or present is None or present[1] != tree.FILE:
        raise NotFound(f"{str(path)!r} does not exist")
    check_condition(txn, target, condition, now_ns // 1_000_000_000)
    return target.parent, target.encoded_names[-1], present[0]


def _change(
    txn: WriteTransaction, inode: int, row: InodeRow, change: AttributeChange, now_ns: int
) -> Entry:
    if row.kind is not Kind.FILE and (change.ttl_s or change.pin):
        raise InvalidArgument("only a file has a lifetime or a pin: set it on the files")
    before = replace(row)
    row.attributes = _changed_attributes(row, change)
    _apply(row, change, now_ns)
    row.ctime_ns = now_ns
    txn.update_inode(inode, before, row)
    if row.kind is Kind.DIRECTORY and row.parent == ROOT_INODE:
        _tell_namespace(txn, row)
    return entry_of(inode, row)


def _tell_namespace(txn: WriteTransaction, row: InodeRow) -> None:
    """Keep what a reader asks at every open where it looks anyway."""
    namespace = txn.namespace(row.namespace_id)
    if namespace is not None and row.namespace_id != ROOT_NAMESPACE:
        names = (VERIFY_ATTRIBUTE, COMPRESS_ATTRIBUTE)
        wanted = {name: row.attributes[name] for name in names if name in row.attributes}
        if dict(namespace.attributes) != wanted:
            namespace.attributes = wanted
            txn.put_namespace(row.namespace_id, namespace)


def remove_empty_directory(txn: WriteTransaction, inode: int, row: InodeRow, now_ns: int) -> None:
    """Remove a directory (and, in the root, its namespace). Raises: DirectoryNotEmpty."""
    drop_directory(txn, inode, row)
    tree.detach(txn, row.parent, row.name, False, now_ns)


def drop_directory(txn: WriteTransaction, inode: int, row: InodeRow) -> None:
    """Remove a directory's row; its name is the caller's. Raises: DirectoryNotEmpty."""
    if tree.has_children(txn, inode):
        raise DirectoryNotEmpty("the directory is not empty: remove what is in it first")
    txn.delete_inode(inode, row)
    if row.parent == ROOT_INODE:
        txn.delete_namespace(row.namespace_id)


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
    elif change.ttl_s is not None and row.ttl_class == RULED_TTL_CLASS:
        row.ttl_class = 0
    if change.priority is not None:
        row.priority = change.priority
    if change.pin is not None:
        row.pin = Pin(change.pin)
    if change.ttl_s is not None:
        row.ttl_s = change.ttl_s
        row.expires_at_s = end_of_life(now_s, row.ttl_s)
        if row.ttl_s and change.expires_at_s:
            row.expires_at_s = change.expires_at_s
    if change.accessed_s is not None:
        touch(row, now_s)
