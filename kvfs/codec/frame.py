"""The compressed block file: header, seek table, independently decodable frames.

Owns the byte layout (docs/lifecycle.md has the table) and the arithmetic from an extent to the
frames that hold it; knows nothing of files (callers give `read_at`), blocks or the index.

    header   magic "KVFSFRM1" | logical size u64 | frame count u32 | log2 frame size u8 | 3 x 0
             | xxh3-64 of the header before it and the whole table
    table    one row a frame: xxh3-64 of the stored bytes | stored length u32 | method u8 | 3 x 0
    frames   back to back, in order

The table stands in front, so one read of 4 KiB opens a block of up to 254 MiB. All numbers are
little-endian. A frame is 1 MiB: decoding runs at 3.6 GB/s there and 2.3 at 64 KiB, the ratio is
the same from 64 KiB to 4 MiB.
Holds: a range costs only the frames it touches; every stored bit is under a checksum, so a flip
anywhere is Corrupt; garbage raises Corrupt and nothing else, before any large allocation (I8).
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import xxhash

from kvfs.codec.planes import Buffer, Method, PlaneCodec
from kvfs.errors import Corrupt, InvalidArgument
from kvfs.model import Extent

MAGIC = b"KVFSFRM1"
FRAME_SIZE_LOG = 20
MIN_FRAME_SIZE_LOG, MAX_FRAME_SIZE_LOG = 12, 24
MAX_FRAMES = 1 << 20
"""1 TiB in frames of 1 MiB; a table of 16 MiB."""
OPENING_READ = 4096
_HEAD = struct.Struct("<8sQIB3x")
_SUM = struct.Struct("<Q")
_ROW = struct.Struct("<QIB3x")
HEADER_LENGTH = _HEAD.size + _SUM.size
_METHODS = {int(method): method for method in Method}

ReadAt = Callable[[int, int], Buffer]
"""(offset, length) -> the bytes there; fewer only at the end of the file. A view of a mapped file
saves the copy."""


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.codec = PlaneCodec()


_per_thread = _PerThread()


@dataclass(frozen=True, slots=True)
class Frame:
    """Where one frame lies in the file and how to read it."""

    offset: int
    stored_length: int
    method: Method
    checksum: int


@dataclass(frozen=True, slots=True)
class FrameTable:
    """A parsed header and seek table: small, immutable, worth keeping while a block is open."""

    logical_size: int
    frame_size: int
    frames: tuple[Frame, ...]

    @property
    def stored_size(self) -> int:
        """Length of the whole file."""
        return body_offset(len(self.frames)) + sum(frame.stored_length for frame in self.frames)

    def frame_length(self, number: int) -> int:
        """Logical length of a frame: full but for the last."""
        return min(self.frame_size, self.logical_size - number * self.frame_size)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of the encoded file and where they go."""

    offset: int
    data: Buffer


def body_offset(frame_count: int) -> int:
    """Return where the first frame starts."""
    return HEADER_LENGTH + frame_count * _ROW.size


def choose_method(data: Buffer) -> Method:
    """Return how to compress a block, by a 64 KiB sample; RAW: leave it as it is."""
    return _per_thread.codec.choose(data)


def encode_block(
    data: Buffer, method: Method, *, frame_size_log: int = FRAME_SIZE_LOG
) -> Iterator[Piece]:
    """Yield the pieces of the compressed file: the frames in order, header and table last.

    data: the payload, e.g. an mmap; read once. Memory: two frames. A piece is valid until the next
    is asked for. Until the last piece is written the file has no header: cut short, it is garbage.
    Raises: InvalidArgument (frame size, or more frames than MAX_FRAMES).
    """
    if not MIN_FRAME_SIZE_LOG <= frame_size_log <= MAX_FRAME_SIZE_LOG:
        raise InvalidArgument(f"frame size 2^{frame_size_log} is out of range")
    view, frame_size = memoryview(data), 1 << frame_size_log
    count = -(-len(view) // frame_size)
    if count > MAX_FRAMES:
        raise InvalidArgument(f"{len(view)} bytes are more than {MAX_FRAMES} frames")
    codec, rows, offset = _per_thread.codec, bytearray(), body_offset(count)
    for start in range(0, len(view), frame_size):
        used, stored = codec.encode(view[start : start + frame_size], method)
        rows += _ROW.pack(xxhash.xxh3_64_intdigest(stored), len(stored), used)
        yield Piece(offset, stored)
        offset += len(stored)
    head = _HEAD.pack(MAGIC, len(view), count, frame_size_log)
    checksum = xxhash.xxh3_64_intdigest(head + rows)
    yield Piece(0, b"".join((head, _SUM.pack(checksum), rows)))


def parse_table(read_at: ReadAt, stored_size: int) -> FrameTable:
    """Read and check header and table of a compressed block file of `stored_size` bytes.

    Raises: Corrupt.
    """
    opening = bytes(read_at(0, min(OPENING_READ, stored_size)))
    if len(opening) < HEADER_LENGTH:
        raise Corrupt("a compressed block is shorter than its header")
    magic, logical_size, count, frame_size_log = _HEAD.unpack_from(opening)
    (checksum,) = _SUM.unpack_from(opening, _HEAD.size)
    if magic != MAGIC or not MIN_FRAME_SIZE_LOG <= frame_size_log <= MAX_FRAME_SIZE_LOG:
        raise Corrupt("a compressed block does not start with its header")
    frame_size, end = 1 << frame_size_log, body_offset(count)
    if count > MAX_FRAMES or end > stored_size or count != -(-logical_size // frame_size):
        raise Corrupt("a compressed block's header contradicts itself")
    if end > len(opening):
        opening += bytes(read_at(len(opening), end - len(opening)))
    rows = opening[HEADER_LENGTH:end]
    if len(opening) < end or xxhash.xxh3_64_intdigest(opening[: _HEAD.size] + rows) != checksum:
        raise Corrupt("a compressed block's table fails its checksum")
    table = FrameTable(logical_size, frame_size, _parse_rows(rows, end))
    if table.stored_size != stored_size:
        raise Corrupt(f"a compressed block has {stored_size} bytes, not {table.stored_size}")
    return table


def decode_into(table: FrameTable, read_at: ReadAt, extent: Extent, out: memoryview) -> int:
    """Fill `out` with the bytes of `extent`, cut at the logical end; return their number.

    out: writable, at least extent.length long. Reads and decodes only the frames touched; each is
    checked before a byte of it is used. Raises: Corrupt. Copies: 1, and one more at ragged ends.
    """
    start, end = max(extent.offset, 0), min(extent.offset + extent.length, table.logical_size)
    if start >= end:
        return 0
    size, scratch = table.frame_size, bytearray()
    for number in range(start // size, -(-end // size)):
        first, length = number * size, table.frame_length(number)
        low, high = max(start, first), min(end, first + length)
        target = out[low - start : high - start]
        if high - low == length:
            _decode_frame(table.frames[number], read_at, target)
            continue
        scratch = scratch or bytearray(size)
        whole = memoryview(scratch)[:length]
        _decode_frame(table.frames[number], read_at, whole)
        target[:] = whole[low - first : high - first]
    return end - start


def decode_frames(table: FrameTable, read_at: ReadAt) -> Iterator[memoryview]:
    """Yield the payload frame by frame, each valid until the next: for hashing and promotion.

    Raises: Corrupt.
    """
    scratch = bytearray(min(table.frame_size, table.logical_size))
    for number, frame in enumerate(table.frames):
        out = memoryview(scratch)[: table.frame_length(number)]
        _decode_frame(frame, read_at, out)
        yield out


def _decode_frame(frame: Frame, read_at: ReadAt, out: memoryview) -> None:
    stored = read_at(frame.offset, frame.stored_length)
    if len(stored) != frame.stored_length:
        raise Corrupt("a frame is cut short")
    if xxhash.xxh3_64_intdigest(stored) != frame.checksum:
        raise Corrupt("a frame fails its checksum")
    _per_thread.codec.decode(stored, frame.method, out)


def _parse_rows(rows: bytes, first_offset: int) -> tuple[Frame, ...]:
    fields = list(cast("Iterator[tuple[int, int, int]]", _ROW.iter_unpack(rows)))
    offsets = itertools.accumulate((length for _, length, _ in fields), initial=first_offset)
    try:
        return tuple(
            Frame(offset, length, _METHODS[method], checksum)
            for offset, (checksum, length, method) in zip(offsets, fields, strict=False)
        )
    except KeyError as error:
        raise Corrupt(f"a frame is stored by the unknown method {error}") from error
