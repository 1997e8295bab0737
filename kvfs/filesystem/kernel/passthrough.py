"""Passthrough: letting the kernel read and write a file's backing file by itself.

Owns the two ioctls and, per nodeid, the one backing id and the one mode that its opens share.
Refuses to know operations. The kernel's rules, each EIO on open when broken: an inode has one mode
at a time (cached or passthrough); while it is open it has one backing id, also for opens that would
rather have another; passthrough excludes KEEP_CACHE.
Must hold: an id is closed exactly once, with the last RELEASE of its nodeid.
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

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class OpenMode:
    """How a nodeid is open at present."""

    backing_id: int
    """0 = cached: reads and writes come to us."""
    is_private: bool
    """The backing file is one writer's own, not a sealed block."""
    openers: int = 0


class BackingFiles:
    """The backing ids of one connection."""

    def __init__(self, device: int, *, is_enabled: bool) -> None:
        self._device = device
        self._is_enabled = is_enabled
        self._modes: dict[int, OpenMode] = {}

    def __len__(self) -> int:
        return sum(1 for mode in self._modes.values() if mode.backing_id)

    def acquire(self, nodeid: int, descriptor: int | None, *, is_writer: bool) -> int:
        """Count one open of `nodeid` and return the backing id to answer with; 0 = cached.

        descriptor: what could back it; used only if nothing has it open yet.
        Raises: OSError EBUSY for a writer while readers pass through to a sealed block: the kernel
        would write into that block, even though it was registered from a read-only descriptor (I3).
        """
        mode = self._modes.get(nodeid)
        if mode is None:
            mode = self._modes[nodeid] = OpenMode(self._register(descriptor), is_writer)
        elif mode.backing_id and is_writer and not mode.is_private:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        mode.openers += 1
        return mode.backing_id

    def release(self, nodeid: int) -> None:
        """Count one RELEASE of `nodeid`."""
        mode = self._modes.get(nodeid)
        if mode is None:
            return
        mode.openers -= 1
        if mode.openers:
            return
        del self._modes[nodeid]
        if mode.backing_id:
            number = ctypes.c_uint32(mode.backing_id)
            _libc.ioctl(self._device, ctypes.c_ulong(BACKING_CLOSE), ctypes.byref(number))

    def _register(self, descriptor: int | None) -> int:
        if descriptor is None or not self._is_enabled:
            return 0
        # Through ctypes: fcntl.ioctl with a buffer hides the return value, which is the id.
        argument = ctypes.create_string_buffer(BACKING_MAP.pack(descriptor, 0, 0))
        number: int = _libc.ioctl(self._device, ctypes.c_ulong(BACKING_OPEN), argument)
        if number > 0:
            return number
        # A stacked file system below, or no CAP_SYS_ADMIN: everything works, only slower.
        log.info("passthrough_refused error=%s", os.strerror(ctypes.get_errno()))
        self._is_enabled = False
        return 0
