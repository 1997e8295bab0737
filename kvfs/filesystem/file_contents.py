"""Reading and writing open files: the requests that carry data.

Owns the way from a handle to its bytes: a sealed view, a private copy, or a generated text. Refuses
to know names and publishing.
"""

from __future__ import annotations

import errno
import os

from kvfs.filesystem.handles import Handle
from kvfs.filesystem.mount_state import MountState, os_error
from kvfs.filesystem.slabs import Slabs
from kvfs.model import Codec

INLINE_READ_BYTES = 128 * 1024
MAX_COPY_BYTES = 1 << 30
"""One copy_file_range moves at most this; the kernel's own limit is 2 GiB."""


class FileContents:
    """Operations on the bytes behind a handle."""

    def __init__(self, state: MountState, slabs: Slabs) -> None:
        self._state = state
        self._slabs = slabs

    async def read(self, number: int, offset: int, length: int) -> bytes:
        """Return up to `length` bytes at `offset`; short only at the end of the file."""
        handle = self._state.handles.get(number)
        if handle.writing is not None:
            return await self._state.writing.read(handle.writing, offset, length)
        if handle.reading is None:
            return handle.text[offset : offset + length]
        view = handle.reading.view
        if view.codec is Codec.RAW and length <= INLINE_READ_BYTES:
            return view.pread(offset, length)
        return await self._state.calls.run(view.pread, offset, length)

    async def write(self, number: int, offset: int, data: bytes | memoryview) -> int:
        """Write all of `data`."""
        handle = self._state.handles.get(number)
        if handle.writing is None or not handle.is_writer:
            raise os_error(errno.EBADF)
        return await self._state.writing.write(handle.writing, offset, data)

    async def allocate(self, number: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2)."""
        handle = self._state.handles.get(number)
        if handle.writing is None or not handle.is_writer:
            raise os_error(errno.EBADF)
        await self._state.writing.allocate(handle.writing, mode, offset, length)
        await self._slabs.keep_if_sized(self._state.inodes.get(handle.nodeid), handle.writing)

    async def seek(self, number: int, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE."""
        handle = self._state.handles.get(number)
        size = self._size(handle)
        descriptor = self._descriptor(handle)
        if offset >= size:
            raise os_error(errno.ENXIO)
        if descriptor is None:  # compressed: all data, and a hole only at the end
            return offset if whence == os.SEEK_DATA else size
        return os.lseek(descriptor, offset, whence)

    async def copy_range(
        self, source: int, source_offset: int, target: int, offset: int, length: int
    ) -> int:
        """copy_file_range(2): a whole sealed file becomes a row; other bytes stay in the kernel."""
        giver, taker = (self._state.handles.get(number) for number in (source, target))
        if taker.writing is None or not taker.is_writer:
            raise os_error(errno.EBADF)
        length = max(0, min(length, self._size(giver) - source_offset, MAX_COPY_BYTES))
        if not length:
            return 0
        if giver.reading is not None:
            view, extent = giver.reading.view, (source_offset, offset, length)
            if await self._state.writing.copy_whole(taker.writing, view, *extent):
                return length
        descriptor = self._descriptor(giver)
        if descriptor is None:
            raise os_error(errno.EOPNOTSUPP)  # the caller reads and writes instead
        return await self._state.writing.copy_in(
            taker.writing, descriptor, source_offset, offset, length
        )

    @staticmethod
    def _size(handle: Handle) -> int:
        if handle.writing is not None:
            return handle.writing.size()
        return len(handle.text) if handle.reading is None else handle.reading.view.size

    @staticmethod
    def _descriptor(handle: Handle) -> int | None:
        """Return a descriptor on the handle's bytes, None where they are compressed."""
        view = handle.writing.base if handle.writing is not None else None
        if handle.writing is not None and handle.writing.kept is not None:
            return handle.writing.kept.fd
        if handle.writing is not None and handle.writing.staging is not None:
            return handle.writing.staging.fd
        if handle.reading is not None:
            return handle.reading.descriptor
        return view.fd if view is not None and view.codec is Codec.RAW else None

    async def sync(self, number: int) -> None:
        handle = self._state.handles.get(number)
        if handle.writing is not None:
            await self._state.writing.sync(handle.writing)
