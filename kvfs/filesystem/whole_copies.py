"""copy_file_range(2) of whole files: the copy becomes one more name of the block, no bytes move.

Owns how that is held and undone. The file being written is made as long as the source and stays a
hole; its close adds a row. Only a fresh file is taken that one description has open, for writing
alone: nobody reads through it, and whatever else is done to it comes to us and fills it first. What
does not come to us is a write(2) that the kernel passes through: behind the copy it is data behind
a hole, and the hole is filled; inside it bytes would be guessed, so the close fails with EIO (I1).
No program is known that copies and then patches through the same write-only descriptor.
Must hold: a file with a hole in it is never shown to a reader nor published as a block.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass

from kvfs.model import Codec
from kvfs.store.read_view import ReadView
from kvfs.store.staging import Staging

BLOCK_BYTES = 4096
"""Holes come in blocks. A part of one at the end is copied: what follows may lie in it too."""
PIECE_BYTES = 8 * 1024 * 1024


@dataclass(slots=True)
class WholeCopy:
    """The first `length` bytes of a file being written are those of `view`."""

    view: ReadView
    length: int

    @property
    def hole(self) -> int:
        """Bytes that were not copied."""
        return self.length // BLOCK_BYTES * BLOCK_BYTES

    def is_complete(self) -> bool:
        return self.length == self.view.size


def begin(staging: Staging, view: ReadView, length: int) -> WholeCopy | None:
    """Let the empty `staging` be a copy of the first `length` bytes of `view`; None = it cannot."""
    copy = WholeCopy(view.duplicate(), length)
    if _prepare(staging, copy):
        return copy
    copy.view.close()
    return None


def extend(staging: Staging, copy: WholeCopy, length: int) -> bool:
    """Let the copy go on to `length` bytes. Returns whether it could."""
    if copy.length % BLOCK_BYTES or not is_untouched(staging.fd, copy):
        return False
    longer = WholeCopy(copy.view, length)
    if not _prepare(staging, longer):
        return False
    copy.length = length
    return True


def _prepare(staging: Staging, copy: WholeCopy) -> bool:
    tail = copy.view.pread(copy.hole, copy.length - copy.hole)
    staging.ensure(len(tail))
    os.ftruncate(staging.fd, copy.length)
    _write_all(staging.fd, tail, copy.hole)
    return _is_hole(staging.fd, copy.hole)  # not so where the disk knows no holes


def is_untouched(descriptor: int, copy: WholeCopy) -> bool:
    """Whether the file is the copy and nothing but the copy."""
    if os.fstat(descriptor).st_size != copy.length or not _is_hole(descriptor, copy.hole):
        return False
    length = copy.length - copy.hole
    return os.pread(descriptor, length, copy.hole) == copy.view.pread(copy.hole, length)


def fill(descriptor: int, copy: WholeCopy) -> None:
    """Put the bytes where the hole is, and end the copy.

    Raises: OSError EIO if something was written there, for then nobody knows which of its bytes.
    """
    with contextlib.closing(copy.view) as view:
        if not _is_hole(descriptor, copy.hole):
            raise OSError(errno.EIO, "written to inside a range that was copied as a whole")
        if view.codec is Codec.RAW:
            copy_bytes(view.fd, descriptor, copy.hole)
            return
        for offset in range(0, copy.hole, PIECE_BYTES):
            piece = view.pread(offset, min(PIECE_BYTES, copy.hole - offset))
            _write_all(descriptor, piece, offset)


def copy_bytes(source: int, target: int, length: int) -> None:
    """Copy the first `length` bytes between files inside the kernel. Raises: OSError."""
    done = 0
    while done < length:
        moved = os.copy_file_range(source, target, min(PIECE_BYTES, length - done), done, done)
        if not moved:
            raise OSError(errno.EIO, "the file is shorter than it was")
        done += moved


def _is_hole(descriptor: int, length: int) -> bool:
    """Whether the first `length` bytes of the file hold no data."""
    try:
        return os.lseek(descriptor, 0, os.SEEK_DATA) >= length
    except OSError as error:
        if error.errno == errno.ENXIO:
            return True
        raise


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
