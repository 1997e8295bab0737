"""Directories being listed: their rows page by page, and which of them the kernel was told of.

Owns the open directories of one mount. Refuses to know messages: a transport asks for rows, packs
those that fit, and tells. Rows come from the store, those of `.kvfs` from content_view.py.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kvfs.filesystem.content_view import ContentView, is_view
from kvfs.filesystem.mount_state import MountState, os_error
from kvfs.filesystem.records import DirectoryRow, EntryReply
from kvfs.model import DirectoryChild, Kind

LISTING_PAGE = 1000
DOTS = 2
"""Offsets 1 and 2 of a listing are behind `.` and `..`."""


@dataclass(slots=True)
class OpenDirectory:
    """A directory being listed.

    Offsets count rows. The page in hand is kept, so that they stay true while names come and go; of
    earlier pages only the beginning, so that seekdir can go back.
    """

    inode: int
    parent: int
    cursors: list[bytes] = field(default_factory=lambda: [b""])
    """cursors[p] is what `after` must be to read page p: one for every thousand rows."""
    page: int = -1
    rows: list[DirectoryChild] = field(default_factory=list)


class Listings:
    """The open directories of one mount. Lives on its loop."""

    def __init__(self, state: MountState, view: ContentView) -> None:
        self._state = state
        self._view = view
        self._directories: dict[int, OpenDirectory] = {}
        self._next_directory = 1

    def __len__(self) -> int:
        return len(self._directories)

    async def opendir(self, nodeid: int) -> int:
        """Open a directory for listing and return its handle."""
        opened = OpenDirectory(nodeid, nodeid)
        if not is_view(nodeid):
            node = self._state.inodes.get(nodeid)
            entry = self._state.entry(node)
            if not entry.is_directory:
                raise os_error(errno.ENOTDIR)
            opened = OpenDirectory(node.inode, entry.parent or node.inode)
        number = self._next_directory
        self._next_directory += 1
        self._directories[number] = opened
        return number

    def readdir(self, number: int, offset: int) -> Iterator[DirectoryRow]:
        """Yield rows from `offset` on in byte order, each page read when it is reached."""
        directory = self._directory(number)
        if is_view(directory.inode):
            yield from self._view.rows(directory.inode, offset)
            return
        if offset < 1:
            directory.page = -1  # rewinddir asks for what is there now
            yield DirectoryRow(b".", directory.inode, Kind.DIRECTORY, 1)
        if offset < DOTS:
            yield DirectoryRow(b"..", directory.parent, Kind.DIRECTORY, DOTS)
        page, skip = divmod(max(0, offset - DOTS), LISTING_PAGE)
        while page < len(directory.cursors):
            base = DOTS + page * LISTING_PAGE + 1
            rows = self._page(directory, page)
            for position in range(skip, len(rows)):
                row = rows[position]
                yield DirectoryRow(row.name, row.inode, row.kind, base + position)
            page, skip = page + 1, 0

    def _page(self, directory: OpenDirectory, page: int) -> list[DirectoryChild]:
        """Return the rows of page `page`: those in hand, or read anew."""
        if directory.page != page:
            directory.rows = self._state.store.read_directory(
                directory.inode, after=directory.cursors[page], limit=LISTING_PAGE
            )
            directory.page = page
            del directory.cursors[page + 1 :]
            if len(directory.rows) == LISTING_PAGE:
                directory.cursors.append(directory.rows[-1].cursor)
        return directory.rows

    def readdir_entry(self, row: DirectoryRow) -> EntryReply | None:
        """Return the row with attributes, None if it is gone; whoever gives it to the kernel tells
        (see `telling`)."""
        if is_view(row.inode):
            return self._view.listed(row)
        entry = self._state.store.stat_inode(row.inode)
        if entry is None:
            return None
        node = self._state.inodes.for_inode(entry.inode)
        try:
            return EntryReply(node.nodeid, self._state.attributes(node, entry))
        except BaseException:
            self._state.inodes.release(node)
            raise

    @contextlib.contextmanager
    def telling(self) -> Iterator[Callable[[int], None]]:
        """Yield what counts a row's nodeid as told to the kernel, for one answer to a listing.

        If the listing breaks off, the kernel is given an errno instead and will forget none of its
        rows: they are uncounted here.
        """
        told: list[int] = []

        def tell(nodeid: int) -> None:
            self._remember(nodeid)
            told.append(nodeid)

        try:
            yield tell
        except BaseException:
            for nodeid in told:
                self._forget(nodeid)
            raise

    def _remember(self, nodeid: int) -> None:
        if is_view(nodeid):
            self._view.remember(nodeid)
        else:
            self._state.inodes.remember(self._state.inodes.get(nodeid))

    def _forget(self, nodeid: int) -> None:
        if is_view(nodeid):
            self._view.forget(nodeid, 1)
        else:
            self._state.inodes.forget(nodeid, 1)

    async def releasedir(self, number: int) -> None:
        self._directories.pop(number, None)

    def _directory(self, number: int) -> OpenDirectory:
        directory = self._directories.get(number)
        if directory is None:
            raise os_error(errno.EBADF)
        return directory
