"""Passthrough: letting the kernel read and write a file's backing file by itself.

Owns the two ioctls and, per nodeid, the one backing id and the one mode that its opens share.
Refuses to know operations. The kernel's rules, each EIO on open when broken: an inode has one mode
at a time (cached or passthrough); while it is open it has one backing id, also for opens that would
rather have another; passthrough excludes KEEP_CACHE.
Must hold: an id is closed exactly once: with the last RELEASE of its nodeid, or by who keeps it.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import struct
from dataclasses import dataclass

log = logging.getLogger(__name__)

BACKING_OPEN = 0x4010E501
BACKING_CLOSE = 0x4004E502
BACKING_MAP = struct.Struct("<iIQ")

# Its own handle: argument types declared once make a call cost 0.5 us instead of 1.5.
_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p)


@dataclass(slots=True)
class OpenMode:
    """How a nodeid is open at present."""

    backing_id: int
    """0 = cached: reads and writes come to us."""
    is_private: bool
    """The backing file is a writer's own, or mutable; not a sealed block."""
    owner: object = None
    """Whose descriptor the id was made of."""
    openers: int = 0


class BackingFiles:
    """The backing ids of one connection."""

    def __init__(self) -> None:
        self._device = -1
        self._is_enabled = False
        self._modes: dict[int, OpenMode] = {}

    def enable(self, device: int) -> None:
        """The kernel offered passthrough on this connection."""
        self._device, self._is_enabled = device, True

    def __len__(self) -> int:
        return sum(1 for mode in self._modes.values() if mode.backing_id)

    def acquire(
        self,
        nodeid: int,
        descriptor: int | None,
        *,
        is_writer: bool,
        is_mutable: bool = False,
        owner: object = None,
        kept_id: int = 0,
    ) -> int:
        """Count one open of `nodeid` and return the backing id to answer with; 0 = cached.

        descriptor: what could back it; used only if nothing has it open yet. is_mutable: it is no
        sealed block, so readers and writers may share it. owner: who may keep the id behind the
        last release; kept_id: the one that it kept.
        Raises: OSError EBUSY for a writer while readers pass through to a sealed block: the kernel
        would write into that block, even though it was registered from a read-only descriptor (I3).
        """
        mode = self._modes.get(nodeid)
        if mode is None:
            backing_id = kept_id or self._register(descriptor)
            mode = self._modes[nodeid] = OpenMode(backing_id, is_writer or is_mutable, owner)
        elif kept_id:
            self.close(kept_id)  # while an inode is open it has the one id it was opened with
        elif mode.backing_id and is_writer and not mode.is_private:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        mode.openers += 1
        return mode.backing_id

    def release(self, nodeid: int, keeper: object = None) -> int:
        """Count one RELEASE of `nodeid`.

        keeper: if it is the owner of an id that nobody uses any more, the id is returned to it
        instead of closed. Returns 0 otherwise.
        """
        mode = self._modes.get(nodeid)
        if mode is None:
            return 0
        mode.openers -= 1
        if mode.openers:
            return 0
        del self._modes[nodeid]
        if keeper is not None and mode.owner is keeper:
            return mode.backing_id
        self.close(mode.backing_id)
        return 0

    def close(self, backing_id: int) -> None:
        """Let the kernel forget an id; 0 = none."""
        if backing_id:
            _ioctl(self._device, BACKING_CLOSE, backing_id.to_bytes(4, "little"))

    def _register(self, descriptor: int | None) -> int:
        if descriptor is None or not self._is_enabled:
            return 0
        # Through ctypes: fcntl.ioctl with a buffer hides the return value, which is the id.
        # Both arguments are only read by the kernel, so bytes may be passed.
        number: int = _ioctl(self._device, BACKING_OPEN, BACKING_MAP.pack(descriptor, 0, 0))
        if number > 0:
            return number
        # A stacked file system below, or no CAP_SYS_ADMIN: everything works, only slower.
        log.info("passthrough_refused error=%s", os.strerror(ctypes.get_errno()))
        self._is_enabled = False
        return 0
