"""What the operations of one mount share: the tables, the store, and how a node looks.

Owns the wiring of the tables and the translation Entry -> Attributes. Refuses to know requests.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, replace

from kvfs.aio import BlockingCalls
from kvfs.clock import Clock
from kvfs.filesystem import xattrs
from kvfs.filesystem.handles import HandleTable, SharedView, Writing, WritingFile
from kvfs.filesystem.inodes import InodeTable, Node
from kvfs.filesystem.pending_names import PendingNames
from kvfs.filesystem.processes import Processes
from kvfs.filesystem.records import FILE_TYPES, SECTOR_BYTES, TIMEOUT_S, Attributes, EntryReply
from kvfs.model import ChildName, Entry
from kvfs.store.store import Store

OWNER, OWNER_GROUP = os.geteuid(), os.getegid()
"""Whose mount this is. What the store holds as root's (what other doors made, the root directory)
is shown as theirs: a user's own mount would otherwise be closed to that user."""


def os_error(number: int) -> OSError:
    """Return the OSError that carries `number` and the system's sentence for it."""
    return OSError(number, os.strerror(number))


def blocks_of(size: int) -> int:
    """Return st_blocks for `size` bytes held in whole sectors."""
    return -(-size // SECTOR_BYTES) * (SECTOR_BYTES // 512)


def attributes_of(entry: Entry, ino: int, stored_bytes: int) -> Attributes:
    """Return the stat(2) answer for a published entry.

    stored_bytes: what its block takes on the disk, which is less than its size once compressed.
    """
    atime_ns = xattrs.access_time_ns(entry.attributes)
    if atime_ns is None:
        atime_ns = entry.accessed_s * 1_000_000_000 or entry.mtime_ns
    return Attributes(
        ino=ino,
        mode=FILE_TYPES[entry.kind] | entry.mode,
        nlink=entry.nlink,
        uid=entry.uid or OWNER,
        gid=entry.gid or OWNER_GROUP,
        size=SECTOR_BYTES if entry.is_directory else entry.size,
        blocks=8 if entry.is_directory else blocks_of(stored_bytes),
        atime_ns=atime_ns,
        mtime_ns=entry.mtime_ns,
        ctime_ns=entry.ctime_ns,
    )


def staged_attributes(writing: WritingFile, found: os.stat_result, ino: int) -> Attributes:
    """Return the stat(2) answer for a file that exists only in its staging."""
    options = writing.options
    atime_ns = xattrs.access_time_ns(options.attributes)
    return Attributes(
        ino=ino,
        mode=stat.S_IFREG | options.mode,
        nlink=1 if writing.place is not None else 0,
        uid=options.uid,
        gid=options.gid,
        size=found.st_size,
        blocks=found.st_blocks,
        atime_ns=found.st_mtime_ns if atime_ns is None else atime_ns,
        mtime_ns=options.mtime_ns or found.st_mtime_ns,
        ctime_ns=found.st_ctime_ns,
    )


@dataclass(slots=True, eq=False)
class MountState:
    """The tables of one mount. Lives on the loop; nothing here is touched from a thread."""

    store: Store
    clock: Clock
    processes: Processes
    calls: BlockingCalls
    is_read_only: bool
    inodes: InodeTable
    handles: HandleTable
    pending: PendingNames
    writing: Writing
    has_passthrough: bool = False
    """The transport lets the kernel read and write files by itself."""

    @classmethod
    def build(
        cls,
        store: Store,
        clock: Clock,
        processes: Processes,
        calls: BlockingCalls,
        *,
        is_read_only: bool,
    ) -> MountState:
        inodes = InodeTable()
        return cls(
            store,
            clock,
            processes,
            calls,
            is_read_only,
            inodes,
            HandleTable(),
            PendingNames(clock, inodes.release),
            Writing(store, calls),
        )

    def require_writable(self) -> None:
        """Raises: OSError EROFS on a read-only mount."""
        if self.is_read_only:
            raise os_error(errno.EROFS)

    def find_entry(self, node: Node) -> Entry | None:
        """Return what the store says of the node; a removed open file as it was, linkless."""
        entry = self.store.stat_inode(node.inode) if node.inode else None
        if entry is None:
            view = self._open_view(node)
            if view is not None:
                entry = view.view.entry._replace(nlink=0)
        return entry

    def entry(self, node: Node) -> Entry:
        """Like `find_entry`. Raises: OSError ESTALE, upon which the kernel walks the path again."""
        entry = self.find_entry(node)
        if entry is None:
            raise os_error(errno.ESTALE)
        return entry

    def attributes(self, node: Node, entry: Entry | None = None) -> Attributes:
        """Return the stat(2) answer for the node as this mount's openers see it.

        entry: the node's entry, if it was just read: by a second look it might be gone.
        """
        writing = node.writing
        if writing is None and node.shown is not None:
            return node.shown
        found = None if writing is None else writing.staged()
        if writing is None or found is None:
            return self._published_attributes(node, entry)
        staged = staged_attributes(writing, found, node.ino)
        entry = entry or self.find_entry(node)
        if entry is None:
            return staged
        published = self.published(entry, node.ino)
        return replace(published, size=staged.size, blocks=staged.blocks, mtime_ns=staged.mtime_ns)

    def _published_attributes(self, node: Node, entry: Entry | None) -> Attributes:
        """Return the store's answer, or the last one known if the file is gone.

        Not ESTALE: an open that checks permissions asks for attributes first, the kernel walks a
        path only twice, and the second walk is needed for the alias of an overwrite.
        """
        entry = entry or self.find_entry(node)
        if entry is not None:
            node.last = self.published(entry, node.ino)
            return node.last
        if node.last is None:
            raise os_error(errno.ESTALE)
        return replace(node.last, nlink=0)

    def published(self, entry: Entry, ino: int) -> Attributes:
        """Return the stat(2) answer for a published entry, with what it takes on the disk."""
        stored = entry.allocated_bytes
        if entry.digest:
            stored = self.store.stored_bytes(entry.digest)
        return attributes_of(entry, ino, stored)

    def move_opener(self, writing: WritingFile, place: ChildName, mover: int = 0) -> None:
        """Publish an open file elsewhere, since thread `mover` renamed what it was opened as.

        A twin whose file moves is owed the rename that it will ask for: its bytes are there.
        """
        base = writing.base
        if base is not None and writing.has_twin and writing.creator.thread != mover:
            self.pending.give_credit(writing, self.published(base.entry, writing.inode))
        self.pending.move_writer(writing, place)

    def reply(
        self, node: Node, entry: Entry | None = None, *, is_fleeting: bool = False
    ) -> EntryReply:
        """Return the answer that makes the kernel know `node`, and count it as told."""
        try:
            attributes = self.attributes(node, entry)
            self.inodes.remember(node)
        finally:
            self.inodes.release(node)  # if there is nothing to tell
        return EntryReply(node.nodeid, attributes, 0.0 if is_fleeting else TIMEOUT_S)

    def _open_view(self, node: Node) -> SharedView | None:
        return node.reading if node.reading is not None and node.reading.openers else None
