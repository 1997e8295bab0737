"""S3 listings and directory listings, straight from LMDB's order.

Owns the walk; reads only. S3's order of keys is the walk of the tree in LMDB's order (see
schema.py), so a page is a range scan: nothing is collected, nothing sorted.

Holds: a page examines at most MAX_STEPS names and may return short with a token (I8); expired
objects are not listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kvfs.index.lmdb_index import ReadTransaction
from kvfs.index.schema import InodeRow, entry_of, split_pieces
from kvfs.index.tree import CONTINUATION, DIRECTORY, FILE, SYMLINK
from kvfs.model import (
    MAX_KEY_LENGTH,
    MAX_MOUNT_NAME_LENGTH,
    DirectoryChild,
    Kind,
    ListedObject,
    ListPage,
)

MAX_STEPS = 20_000
"""Names one page may pass over (expired, hidden): a few tens of milliseconds."""

IsLive = Callable[[int, InodeRow], bool]


class _Walk:
    """All keys under one directory in byte order, from any starting point."""

    def __init__(self, txn: ReadTransaction, directory: int) -> None:
        self._txn = txn
        self._root = directory
        self._frames: list[tuple[bytes, Iterator[tuple[bytes, int, int]]]] = []

    def seek(self, key: bytes) -> None:
        """Go to the first key >= `key`."""
        self._frames = []
        directory, path, rest = self._root, b"", key
        while True:
            piece = _first_piece(rest)
            found = self._txn.dirent(directory, piece) if piece else None
            children = self._txn.children(directory, piece)
            self._frames.append((path, children))
            if found is None or found[1] not in (DIRECTORY, CONTINUATION):
                return
            next(children)  # the child that we now go into
            taken = piece[:-1] if found[1] == CONTINUATION else piece
            directory, path, rest = found[0], path + taken, rest[len(taken) :]

    def steps(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield (key so far, inode, kind): files as they come, each directory before its keys.

        Send-free: after a directory is yielded the walk goes into it unless `skip` was called.
        """
        while self._frames:
            path, children = self._frames[-1]
            step = next(children, None)
            if step is None:
                self._frames.pop()
                continue
            piece, inode, kind = step
            taken = piece[:-1] if kind == CONTINUATION else piece
            if kind in (DIRECTORY, CONTINUATION):
                self._frames.append((path + taken, self._txn.children(inode)))
            yield path + taken, inode, kind

    def skip(self) -> None:
        """Do not go into the directory just yielded."""
        self._frames.pop()


def _first_piece(rest: bytes) -> bytes:
    """Return the stored piece that a key beginning with `rest` would pass first."""
    slash = rest.find(b"/")
    name = rest if slash < 0 else rest[: slash + 1]
    return split_pieces(name)[0]


def list_page(
    txn: ReadTransaction,
    directory: int,
    *,
    prefix: bytes,
    delimiter: bytes,
    after: bytes,
    limit: int,
    is_live: IsLive,
) -> ListPage:
    """Return one page of the keys under `directory`; see Store.list_objects."""
    if limit <= 0:
        return ListPage((), (), False, b"")
    walk = _Walk(txn, directory)
    walk.seek(max(prefix, after + b"\0" if after else b""))
    objects: list[ListedObject] = []
    prefixes: list[bytes] = []
    last = examined = after
    steps = walk.steps()
    for _ in range(MAX_STEPS):
        step = next(steps, None)
        if step is None or not _may_match(step[0], prefix, step[2]):
            return ListPage(tuple(objects), tuple(prefixes), False, b"")
        key, inode, kind = step
        row = txn.inode(inode) if kind != CONTINUATION else None
        common = _common_prefix(key, prefix, delimiter)
        if kind in (FILE, SYMLINK):
            examined = key
        if kind == DIRECTORY and row is not None and row.size == 0:
            walk.skip()
            examined = key
            continue
        if kind != FILE and not (common and kind == DIRECTORY and delimiter == b"/"):
            continue
        if row is None or (kind == FILE and not is_live(inode, row)):
            continue
        if common and common <= after:
            _leave(walk, common)
            steps = walk.steps()
            continue
        if len(objects) + len(prefixes) == limit:
            return ListPage(tuple(objects), tuple(prefixes), True, last)
        if common:
            prefixes.append(common)
            last = common
            _leave(walk, common)
            steps = walk.steps()
        else:
            objects.append(ListedObject(key, entry_of(inode, row)))
            last = key
    return ListPage(tuple(objects), tuple(prefixes), True, max(last, examined))


def _may_match(key: bytes, prefix: bytes, kind: int) -> bool:
    """Return whether `key` (or a key under it) can still begin with `prefix`."""
    if key.startswith(prefix):
        return True
    return kind != FILE and prefix.startswith(key)


def _common_prefix(key: bytes, prefix: bytes, delimiter: bytes) -> bytes:
    if not delimiter or not key.startswith(prefix):
        return b""
    at = key.find(delimiter, len(prefix))
    return b"" if at < 0 else key[: at + len(delimiter)]


def _leave(walk: _Walk, common: bytes) -> None:
    """Go behind every key that begins with `common`."""
    following = common.rstrip(b"\xff")
    if not following:
        walk.seek(b"\xff" * (MAX_KEY_LENGTH + 1))
        return
    walk.seek(following[:-1] + bytes([following[-1] + 1]))


def read_children(
    txn: ReadTransaction, directory: int, *, after: bytes, limit: int, is_live: IsLive
) -> list[DirectoryChild]:
    """Return the names that the mount shows, in stored order, behind cursor `after`.

    Hidden: "" (the S3 key `dir/`), "." and "..", names over 255 bytes, and a file beside a
    directory of the same name, and what has expired (a lookup would not find it).
    """
    rows: list[DirectoryChild] = []
    for piece, inode, kind in txn.children(directory, after + b"\0" if after else b""):
        name = piece[:-1] if kind == DIRECTORY else piece
        if kind == CONTINUATION or name in (b"", b".", b"..") or len(name) > MAX_MOUNT_NAME_LENGTH:
            continue
        if kind != DIRECTORY and txn.dirent(directory, name + b"/") is not None:
            continue
        if kind == FILE:
            row = txn.inode(inode)
            if row is None or not is_live(inode, row):
                continue
        rows.append(DirectoryChild(name, inode, Kind(kind), piece))
        if len(rows) == limit:
            break
    return rows
