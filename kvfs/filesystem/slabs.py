"""Files that stay mutable, as the mount sees them: which ones, from when on, and how they are open.

Owns the choice (too large to seal, sparse, or marked), the change from a private file to a kept one
and the one open file that all openers of a node share. How they are kept is the store's.
Must hold: a file is kept under the very backing file that its writer has open, so nothing is copied
and a passthrough goes on; a file that was sealed once is not kept while it is open, because the
kernel may still write to the block that was sealed.
"""

from __future__ import annotations

import errno
import logging
import os

from kvfs.errors import KvfsError, NoSpace, NotFound
from kvfs.filesystem.errno_map import errno_of
from kvfs.filesystem.handles import WritingFile
from kvfs.filesystem.inodes import Node
from kvfs.filesystem.mount_state import MountState, os_error
from kvfs.filesystem.processes import Creator
from kvfs.model import Entry, PutOptions

log = logging.getLogger(__name__)

AHEAD = 2
"""Reserved ahead of a growing file at each look: so many times what it grew since the last."""
MAX_AHEAD = 64 << 20
"""And no more than this: a writer that pauses keeps it from others until its close."""
SPARSE_BYTES = 4 << 20
"""A hole in less than this is an engine's block written out of order, or its last sector: sealing
it costs a millisecond. Slabs begin at hundreds of MiB."""
SPARSE_RATIO = 0.5
"""Less than this part of a sparse file is allocated at its close. A block that an engine sized
first is written whole before it is closed; a slab has hardly anything in it."""


class Slabs:
    """The mutable files of one mount."""

    def __init__(self, state: MountState) -> None:
        self._state = state

    def is_kept(self, node: Node) -> bool:
        """Return whether the node is a mutable file now."""
        if node.writing is not None:
            return node.writing.kept is not None
        entry = self._state.find_entry(node) if node.inode else None
        return entry is not None and entry.is_mutable

    def is_slab(self, writing: WritingFile) -> bool:
        """Return whether the private file shall be kept where it would be sealed."""
        staging = writing.staging
        if staging is None or writing.is_shared or writing.copied is not None:
            return False
        found = os.fstat(staging.fd)
        if writing.is_marked or found.st_size > self._state.store.seal_limit_bytes:
            return True
        allocated = found.st_blocks * 512
        if found.st_size - allocated < SPARSE_BYTES or allocated > SPARSE_RATIO * found.st_size:
            return False
        # A file system that compresses allocates less, too: only a hole is a hole.
        return os.lseek(staging.fd, 0, os.SEEK_HOLE) < found.st_size

    async def keep_if_sized(self, node: Node, writing: WritingFile) -> None:
        """Keep a private file whose length was set beyond the seal limit: now it is visible.

        One that was written so far is kept by its close: half of it shall not be seen.
        """
        if writing.kept is not None or writing.staging is None or writing.place is None:
            return
        async with writing.lock:
            staging = writing.staging
            if staging is not None and staging.size > self._state.store.seal_limit_bytes:
                await self.keep(node, writing)

    async def keep(self, node: Node, writing: WritingFile) -> None:
        """Make the private file a mutable one under its name. Caller holds `writing.lock`.

        Raises: as Store.keep_mutable; then nothing is visible and the file is finished.
        """
        state = self._state
        entry = await state.writing.keep(writing)
        if entry is None:
            return
        state.pending.give_credit(writing, state.published(entry, entry.inode))
        state.pending.remove_writer(writing)
        state.inodes.pair(node, entry.inode)
        node.overwrites = None

    async def open(self, node: Node) -> WritingFile:
        """Return the node's one open file. Raises: OSError ESTALE if it is gone."""
        state = self._state
        if node.writing is not None:
            return node.writing
        entry = state.entry(node)
        try:
            kept = await state.calls.run(state.store.open_mutable, entry.inode)
        except NotFound:
            raise os_error(errno.ESTALE) from None
        if node.writing is not None:  # another open was faster
            await state.calls.run(kept.close)
            return node.writing
        options = PutOptions(mode=entry.mode, uid=entry.uid, gid=entry.gid)
        writing = WritingFile(None, entry.namespace_id, Creator(0, 0), options, kept=kept)
        writing.inode, writing.is_hidden, writing.nodeid = entry.inode, False, node.nodeid
        if state.has_passthrough:
            writing.direct = os.dup(kept.fd)
        node.writing, node.shown = writing, None
        return writing

    async def truncate(self, entry: Entry, size: int) -> None:
        """Set the length of a mutable file that nobody has open here."""
        state = self._state
        kept = await state.calls.run(state.store.open_mutable, entry.inode)
        try:
            await state.calls.run(kept.truncate, size)
        finally:
            await state.calls.run(kept.close)

    async def watch(self) -> None:
        """Account for what the kernel wrote by itself since the last look (I4).

        One that is being sealed is accounted for by that.
        """
        for writing in self._state.handles.writers():
            if writing.direct >= 0 and not writing.lock.locked():
                async with writing.lock:
                    await self._watch(writing)

    def let_go(self) -> None:
        """The mount ends: nobody watches any more, and held files must not stay so."""
        for writing in self._state.handles.writers():
            if writing.kept is not None:
                writing.kept.let_go()

    async def _watch(self, writing: WritingFile) -> None:
        kept, staging = writing.kept, writing.staging
        if kept is None and staging is None:
            return  # sealed already: what is written since is accounted for when it is sealed again
        allocated = os.fstat(writing.direct).st_blocks * 512
        growth, writing.watched = allocated - writing.watched, allocated
        is_stopped = kept.is_held if kept is not None else writing.failure
        if growth <= 0 and not is_stopped:
            return
        watch = kept.watch if kept is not None else staging.watch if staging is not None else None
        assert watch is not None, "one of the two is there"
        try:
            await self._state.calls.run(watch, min(MAX_AHEAD, AHEAD * max(0, growth)))
        except NoSpace as error:
            writing.failure = writing.failure or errno_of(error)
        except KvfsError as error:  # the close will report it, if it lasts
            log.info("mount_watch_failed error=%s", error)
