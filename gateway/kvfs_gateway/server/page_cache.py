"""Whether a file's pages are in memory, and getting them there without blocking the loop.

Owns cachestat(2) (Linux 6.5) and read-ahead. Holds: `is_cached` costs 2 us and never touches the
disk; where the kernel lacks the call everything counts as cold, which is slower but never blocks.
"""

from __future__ import annotations

import ctypes
import os

CACHESTAT = 451
PAGE = 4096
LOAD_STEP = 1024 * 1024

_LIBC = ctypes.CDLL(None, use_errno=True)


class _Range(ctypes.Structure):
    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _Stat(ctypes.Structure):
    _fields_ = (
        ("nr_cache", ctypes.c_uint64),
        ("nr_dirty", ctypes.c_uint64),
        ("nr_writeback", ctypes.c_uint64),
        ("nr_evicted", ctypes.c_uint64),
        ("nr_recently_evicted", ctypes.c_uint64),
    )


def is_cached(fd: int, offset: int, length: int) -> bool:
    """Return whether every page of the range is in the page cache right now."""
    wanted = (offset + length - 1) // PAGE - offset // PAGE + 1
    stat = _Stat()
    window = _Range(offset, length)
    result = _LIBC.syscall(CACHESTAT, fd, ctypes.byref(window), ctypes.byref(stat), 0)
    return result == 0 and int(stat.nr_cache) >= wanted


def load(fd: int, offset: int, length: int) -> None:
    """Read the range into the page cache; blocks, so call it in a thread. Raises: OSError.

    WILLNEED only starts the read (and of a whole file loads only read_ahead_kb); reading the bytes
    is what waits for them.
    """
    os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)
    scratch = bytearray(min(length, LOAD_STEP))
    end = offset + length
    while offset < end:
        count = os.preadv(fd, [memoryview(scratch)[: end - offset]], offset)
        if count == 0:
            return
        offset += count
