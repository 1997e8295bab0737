"""The directory tree in the index: names to inodes, and the counts that S3 listings need.

Owns dirents, links, and the rows of directories. Knows nothing of blocks, space or expiry: callers
decide whether a name may be added or removed, this module does it.

Holds: a directory's row counts its live children (files, and directories with a live child),
propagated upwards only on 0 <-> 1; an implied directory (made by a PUT) vanishes with its last
child; every name of an inode is its row's first link or a row in `links`; `nlink` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvfs.errors import InvalidName, NotADirectory, NotFound
from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.index.schema import InodeRow, pack_u64, split_pieces
from kvfs.model import MAX_DEPTH, ROOT_INODE, Kind, NamespaceId

FILE = int(Kind.FILE)
DIRECTORY = int(Kind.DIRECTORY)
SYMLINK = int(Kind.SYMLINK)
CONTINUATION = int(Kind.CONTINUATION)

MAX_CLIMB = 65_536
"""Levels that a walk up may pass (I8). MAX_DEPTH bounds where a directory may be made or moved to,
but what lies below a moved one can be deeper; a walk that stopped short would miscount."""


def lookup(txn: ReadTransaction, parent: int, encoded: bytes) -> tuple[int, int] | None:
    """Return (inode, kind) of one stored name (a directory's ends in "/"), or None."""
    if len(encoded) <= 440:
        return txn.dirent(parent, encoded)
    *heads, last = split_pieces(encoded)
    for head in heads:
        found = txn.dirent(parent, head)
        if found is None:
            return None
        parent = found[0]
    return txn.dirent(parent, last)


def lookup_child(txn: ReadTransaction, parent: int, name: bytes) -> tuple[int, int, bytes] | None:
    """Return (inode, kind, encoded name) as the mount sees it: a directory wins over a file."""
    found = lookup(txn, parent, name + b"/")
    if found is not None:
        return (*found, name + b"/")
    found = lookup(txn, parent, name)
    return None if found is None else (*found, name)


def lookup_parent(txn: ReadTransaction, start: int, encoded_names: list[bytes]) -> int | None:
    """Return the directory that `encoded_names[:-1]` lead to from `start`, or None."""
    for encoded in encoded_names[:-1]:
        found = lookup(txn, start, encoded)
        if found is None:
            return None
        start = found[0]
    return start


def has_children(txn: ReadTransaction, directory: int) -> bool:
    """Return whether any name, visible or not, is under `directory`."""
    return next(iter(txn.children(directory)), None) is not None


def directory_row(txn: ReadTransaction, inode: int) -> InodeRow:
    """Return a directory's row. Raises: NotFound, NotADirectory."""
    row = txn.inode(inode)
    if row is None:
        raise NotFound("the directory is gone: look its name up again")
    if row.kind is not Kind.DIRECTORY:
        raise NotADirectory("a path component is no directory")
    return row


def attach(
    txn: WriteTransaction, parent: int, encoded: bytes, inode: int, kind: Kind, is_live: bool,
    now_ns: int,
) -> None:  # fmt: skip
    """Add one name; the name must be absent and `parent` a directory."""
    *heads, last = split_pieces(encoded)
    holder = parent
    for head in heads:
        found = txn.dirent(holder, head)
        if found is None:
            found = (txn.allocate_inode(), CONTINUATION)
            txn.put_dirent(holder, head, *found)
        holder = found[0]
    txn.put_dirent(holder, last, inode, kind)
    _child_changed(txn, parent, 1 if is_live else 0, now_ns)


def replace(
    txn: WriteTransaction,
    parent: int,
    encoded: bytes,
    inode: int,
    kind: Kind,
    delta: int,
    now_ns: int,
) -> None:
    """Let a present name mean another inode; `delta` = change in live children (-1, 0, 1)."""
    *heads, last = split_pieces(encoded)
    holder = parent
    for head in heads:
        found = txn.dirent(holder, head)
        assert found is not None, "the name that is replaced is there"
        holder = found[0]
    txn.put_dirent(holder, last, inode, kind)
    _child_changed(txn, parent, delta, now_ns)


def detach(txn: WriteTransaction, parent: int, encoded: bytes, is_live: bool, now_ns: int) -> None:
    """Remove one name, and the implied directories that it leaves empty."""
    _remove_pieces(txn, parent, encoded)
    row = _child_changed(txn, parent, -1 if is_live else 0, now_ns)
    for _ in range(MAX_CLIMB):
        if not row.is_implied or row.size or has_children(txn, parent):
            return
        txn.delete_inode(parent, row)
        _remove_pieces(txn, row.parent, row.name)
        parent = row.parent
        row = _child_changed(txn, parent, 0, now_ns)


def _remove_pieces(txn: WriteTransaction, parent: int, encoded: bytes) -> None:
    holders = [parent]
    *heads, last = split_pieces(encoded)
    for head in heads:
        found = txn.dirent(holders[-1], head)
        assert found is not None, "a name's pieces are there as long as the name is"
        holders.append(found[0])
    txn.delete_dirent(holders[-1], last)
    for holder, above, head in zip(
        reversed(holders[1:]), reversed(holders[:-1]), reversed(heads), strict=True
    ):
        if has_children(txn, holder):
            return
        txn.delete_dirent(above, head)


def _child_changed(txn: WriteTransaction, directory: int, delta: int, now_ns: int) -> InodeRow:
    """Touch `directory` and count `delta` live children, upwards while it turns 0 <-> 1."""
    row = directory_row(txn, directory)
    row.mtime_ns = row.ctime_ns = now_ns
    first = row
    for _ in range(MAX_CLIMB):
        before = row.size
        row.size += delta
        assert row.size >= 0, "live children are counted once"
        txn.update_inode(directory, None, row)
        if directory == ROOT_INODE or (before == 0) == (row.size == 0):
            break
        directory = row.parent
        row = directory_row(txn, directory)
    return first


def make_directory(
    txn: WriteTransaction, parent: int, encoded: bytes, row: InodeRow, now_ns: int
) -> int:
    """Add an empty directory described by `row`; return its inode."""
    inode = txn.allocate_inode()
    row.parent, row.name = parent, encoded
    row.kind, row.size = Kind.DIRECTORY, 0
    row.mtime_ns = row.mtime_ns or now_ns
    row.ctime_ns = now_ns
    txn.create_inode(inode, row)
    attach(txn, parent, encoded, inode, Kind.DIRECTORY, False, now_ns)
    return inode


def make_parents(
    txn: WriteTransaction,
    start: int,
    encoded_names: list[bytes],
    namespace_id: NamespaceId,
    now_ns: int,
) -> int:
    """Return the directory of `encoded_names[-1]`, creating implied directories on the way."""
    for encoded in encoded_names[:-1]:
        found = lookup(txn, start, encoded)
        if found is None:
            row = InodeRow(Kind.DIRECTORY, namespace_id, mode=0o755, is_implied=True)
            start = make_directory(txn, start, encoded, row, now_ns)
        else:
            start = found[0]
    return start


def names_of(txn: ReadTransaction, inode: int, row: InodeRow) -> Iterator[tuple[int, bytes]]:
    """Yield (parent, encoded name) of every name of an inode."""
    if row.name or row.parent:
        yield row.parent, row.name
    if row.nlink > 1:
        yield from txn.links(inode)


def add_link(txn: WriteTransaction, inode: int, parent: int, encoded: bytes) -> None:
    """Remember one more name of `inode` (the caller attaches it and raises nlink)."""
    txn.put("links", pack_u64(inode) + pack_u64(parent) + encoded, b"")


def remove_link(
    txn: WriteTransaction, inode: int, row: InodeRow, parent: int, encoded: bytes
) -> None:
    """Forget one name of `row` (not yet written back), keeping its first link filled."""
    row.nlink -= 1
    if (row.parent, row.name) != (parent, encoded):
        removed = txn.delete("links", pack_u64(inode) + pack_u64(parent) + encoded)
        assert removed, "every name of an inode is its first link or a row in links"
        return
    if row.nlink:
        row.parent, row.name = next(iter(txn.links(inode)))
        txn.delete("links", pack_u64(inode) + pack_u64(row.parent) + row.name)


def move_link(
    txn: WriteTransaction,
    inode: int,
    row: InodeRow,
    source: tuple[int, bytes],
    target: tuple[int, bytes],
) -> None:
    """Rename one name of `row` (not yet written back)."""
    if (row.parent, row.name) == source:
        row.parent, row.name = target
        return
    txn.delete("links", pack_u64(inode) + pack_u64(source[0]) + source[1])
    add_link(txn, inode, *target)


def path_of(txn: ReadTransaction, parent: int, encoded: bytes) -> bytes:
    """Return the path from the root: `bucket/dir/name` (bytes; a directory's ends in "/").

    Raises: NotFound (an ancestor vanished).
    """
    pieces = [encoded]
    for _ in range(MAX_CLIMB):
        if parent == ROOT_INODE:
            break
        row = directory_row(txn, parent)
        pieces.append(row.name)
        parent = row.parent
    return b"".join(reversed(pieces))


def check_depth(txn: ReadTransaction, parent: int) -> None:
    """Raise InvalidName unless `parent` may hold one more directory."""
    for _ in range(MAX_DEPTH):
        if parent == ROOT_INODE:
            return
        parent = directory_row(txn, parent).parent
    raise InvalidName(f"the directory would lie over {MAX_DEPTH} levels deep: make it higher up")


def is_below(txn: ReadTransaction, inode: int, ancestor: int) -> bool:
    """Return whether `inode` is `ancestor` or lies under it."""
    for _ in range(MAX_CLIMB):
        if inode == ancestor:
            return True
        if inode == ROOT_INODE:
            return False
        inode = directory_row(txn, inode).parent
    return False
