"""Sealed files opened for reading at once, and kept open for the next reader.

Owns the shorter way of an open that cannot wait, and the views between a last close and the next
open, at most MAX_IDLE of them and for about IDLE_SECONDS: opening a block anew costs 20 us (open,
stat, register for passthrough, and all of it back), and engines open the same hot blocks again and
again. Refuses what is being written, hashed first, decoded, mutable or a lock: open_files.py.
Must hold: nothing is served from here that the store did not just confirm; a file removed
meanwhile gives its space back within two turns of `expire`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from kvfs.filesystem.content_view import is_view
from kvfs.filesystem.handles import Handle, SharedView
from kvfs.filesystem.mount_state import MountState
from kvfs.filesystem.open_files import LOCK_SUFFIX
from kvfs.model import Codec

MAX_IDLE = 64
IDLE_SECONDS = 1.0


@dataclass(slots=True)
class Idle:
    """One view nobody reads."""

    reading: SharedView
    backing_id: int
    """By which the kernel still knows its descriptor; 0 = it does not."""
    has_aged: bool = False


class IdleViews:
    """By the store's inode."""

    def __init__(self) -> None:
        self._idle: dict[int, Idle] = {}
        self._left: list[Idle] = []

    def __len__(self) -> int:
        return len(self._idle) + len(self._left)

    def park(self, inode: int, idle: Idle) -> bool:
        """Keep a view; False where there is no room, and the caller closes it."""
        if inode in self._idle or len(self) >= MAX_IDLE:
            return False
        self._idle[inode] = idle
        return True

    def find(self, inode: int) -> Idle | None:
        """Return the view of `inode`, to be taken or left."""
        return self._idle.get(inode)

    def take(self, inode: int) -> Idle:
        """Return the view of `inode`, which is the caller's again."""
        return self._idle.pop(inode)

    def leave(self, inode: int) -> None:
        """The view no longer shows what the store says: it will be closed with the others."""
        self._left.append(self._idle.pop(inode))

    def expire(self, *, everything: bool = False) -> list[Idle]:
        """Return what was parked before the last call, for the caller to close."""
        ended, self._left = self._left, []
        for inode, idle in list(self._idle.items()):
            if idle.has_aged or everything:
                ended.append(self._idle.pop(inode))
            idle.has_aged = True
        return ended


class SealedOpens:
    """Opens and closes for readers of one mount."""

    def __init__(self, state: MountState) -> None:
        self._state = state
        self.idle = IdleViews()

    def open(self, nodeid: int) -> tuple[Handle, int] | None:
        """Open a sealed raw file for reading; None = only OpenFiles can, which may wait.

        Returns the handle, and the backing id that was kept with its view (0 = none).
        Raises: KvfsError, OSError.
        """
        node = self._state.inodes.find(nodeid)
        if node is None or node.writing is not None or not node.inode:
            return None
        reading, backing_id = node.reading, 0
        if reading is None or not reading.openers or reading.view.entry.inode != node.inode:
            found = self._sealed(node.inode)
            if found is None:
                return None
            reading, backing_id = found.reading, found.backing_id
            node.reading = reading
        elif reading.view.entry.name.endswith(LOCK_SUFFIX):
            return None
        node.openers += 1
        return self._state.handles.add(nodeid, is_writer=False, reading=reading), backing_id

    def _sealed(self, inode: int) -> Idle | None:
        """Return a view of a sealed raw file, opened before if the store says it still holds."""
        idle = self.idle.find(inode)
        if idle is not None:
            if self._state.store.is_current(idle.reading.view):
                return self.idle.take(inode)
            self.idle.leave(inode)
        view = self._state.store.open_trusted(inode)
        if view is None:
            return None
        is_lock = view.entry.name.endswith(LOCK_SUFFIX)
        if view.codec is not Codec.RAW or view.entry.is_mutable or is_lock:
            view.close()
            return None
        return Idle(SharedView(view), 0)

    def closing(self, number: int) -> SharedView | None:
        """Return the view of a handle that `release` can close; None = only OpenFiles can."""
        handle = self._state.handles.find(number)
        reading = None if handle is None else handle.reading
        if handle is None or reading is None or handle.writing or is_view(handle.nodeid):
            return None
        if reading.openers > 1:
            return reading
        is_kept = reading.memory < 0 and os.fstat(reading.view.fd).st_nlink
        return reading if is_kept else None

    def release(self, number: int, backing_id: int) -> Idle | None:
        """Close such a handle; its view stays open for a while. Returns one there is no room for.

        backing_id: what the kernel knows the view's descriptor by; 0 = it does not.
        """
        handle = self._state.handles.remove(number)
        node, reading = self._state.inodes.get(handle.nodeid), handle.reading
        node.openers -= 1
        surplus = None
        if reading is not None and not reading.openers:
            if node.reading is reading:
                node.reading = None
            idle = Idle(reading, backing_id)
            if not reading.view.generation or not self.idle.park(reading.view.entry.inode, idle):
                surplus = idle
        self._state.inodes.release(node)
        return surplus

    async def close(self, idle: Idle) -> None:
        """Close a view that nobody came for."""
        if os.fstat(idle.reading.view.fd).st_nlink:
            idle.reading.close()
        else:  # removed meanwhile: its blocks are freed now, 28 ms for 100 MB
            await self._state.calls.run(idle.reading.close)
