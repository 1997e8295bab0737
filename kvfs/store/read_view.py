"""An open object, raw or compressed: readers need not know which.

Owns descriptors on immutable block files and the decoding of frames; never the index. What a
compressed block's checksum refuses is reported to `condemn`, so the next lookup is a miss (I1).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from kvfs.codec.frame import FrameTable, decode_frames, decode_into, parse_table
from kvfs.errors import Closed, Corrupt
from kvfs.model import Codec, Entry, Extent
from kvfs.store.block_files import os_error, read_at

T = TypeVar("T")


class ReadView:
    """An open object: its entry as looked up, and a descriptor on immutable bytes.

    The bytes stay readable after the object is deleted, replaced, recompressed or evicted. For
    `codec` RAW byte i of the object is byte i of `fd`, so sendfile, mmap and O_DIRECT readers may
    use it directly; for FRAMED use `pread`, or `decode_to_memory_file`. Thread-safe but for close.
    Close it, or use it as a context manager.
    """

    __slots__ = ("_condemn", "_fd", "_table", "codec", "entry", "generation")

    def __init__(
        self,
        entry: Entry,
        fd: int,
        codec: Codec,
        condemn: Callable[[], None] | None = None,
        generation: int = 0,
    ) -> None:
        """Take over `fd`. generation: which file of its block it is.

        Raises: Corrupt (a compressed block's table is damaged; condemned).
        """
        self.entry = entry
        self.codec = codec
        self.generation = generation
        self._fd = fd
        self._condemn = condemn
        self._table: FrameTable | None = None
        if codec is Codec.FRAMED:
            self._table = self._checked(
                lambda: parse_table(partial(read_at, fd), os.fstat(fd).st_size)
            )

    @property
    def fd(self) -> int:
        """The read-only descriptor of the block file. Raises: Closed."""
        if self._fd < 0:
            raise Closed("this view was closed: open the object again")
        return self._fd

    @property
    def size(self) -> int:
        """Logical bytes."""
        return self.entry.size

    def pread(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`: fewer only at the end of the object.

        Copies: 1 raw, 2 compressed (only the frames touched are read).
        Raises: Unavailable (I/O error), Corrupt (compressed; the block is condemned), Closed.
        """
        table = self._table
        if table is None:
            return self._checked(lambda: read_at(self.fd, offset, length))
        length = max(0, min(length, self.size - offset))
        out = bytearray(length)
        self._checked(
            lambda: decode_into(
                table, partial(read_at, self.fd), Extent(offset, length), memoryview(out)
            )
        )
        return bytes(out)

    def read_all(self) -> bytes:
        """Return the whole object. Copies and errors: as pread."""
        return self.pread(0, self.size)

    def decode_to_memory_file(self) -> int:
        """Return a new memfd with the whole payload at offset 0, for passthrough; caller closes.

        Raises: as pread; NoSpace or Unavailable (no memory).
        """
        descriptor = os.memfd_create("kvfs-block", os.MFD_CLOEXEC)
        try:
            if self._table is None:
                self._checked(lambda: self._copy_raw(descriptor))
            else:
                self._checked(lambda: self._decode_all(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def is_unchanged(self) -> bool:
        """Whether the bytes are still those of `entry`: a mutable file may be written meanwhile.

        A page that was dirty in a mapping before the view was opened may change unnoticed.
        """
        if not self.entry.is_mutable:
            return True
        try:
            found = os.fstat(self.fd)
        except OSError as error:
            raise os_error(error, "cannot look at a mutable file") from error
        return (found.st_size, found.st_mtime_ns) == (self.size, self.entry.mtime_ns)

    def duplicate(self) -> ReadView:
        """Return a view of the same bytes with a descriptor of its own. Raises: Unavailable."""
        try:
            descriptor = os.dup(self.fd)
        except OSError as error:
            raise os_error(error, "cannot open a block file once more") from error
        try:
            return ReadView(self.entry, descriptor, self.codec, self._condemn)
        except BaseException:
            os.close(descriptor)
            raise

    def detach(self) -> int:
        """Hand the descriptor to the caller, who closes it."""
        fd, self._fd = self.fd, -1
        return fd

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> ReadView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode_all(self, target: int) -> None:
        assert self._table is not None, "only a compressed block is decoded"
        for frame in decode_frames(self._table, partial(read_at, self.fd)):
            _write_all(target, frame)

    def _copy_raw(self, target: int) -> None:
        done = 0
        while done < self.size:
            moved = os.sendfile(target, self.fd, done, self.size - done)
            if not moved:
                return
            done += moved

    def _checked(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:
            raise os_error(error, "cannot read a block file") from error
        except Corrupt:
            if self._condemn is not None:
                self._condemn()
            raise


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
