"""How one frame's bytes are made smaller: which method, and the method itself.

Owns the four methods and the choice between them by sampling; knows nothing of files, headers or
checksums (frame.py). A 16-bit float has its information in the exponent: with the sign moved out
of the way, eight exponent bits lie in one byte plane, which Huffman coding halves or better, and
what is left is noise that nothing lossless shrinks (order-0 bound for bf16 KV: 1.504; this reaches
1.49). Matching (LZ) finds nothing in KV and costs half the speed, so the parameters turn it off
in all but name.
Holds: decode(encode(x)) == x; decode of garbage raises Corrupt, never anything else, and never
allocates more than the frame it was asked for.
"""

from __future__ import annotations

import enum
import struct

import zstandard

from kvfs.errors import Corrupt

try:
    from kvfs.codec._planes import join_lanes, split_lanes
except ImportError:  # no C compiler when the package was built
    from kvfs.codec.numpy_planes import join_lanes, split_lanes

__all__ = ["Buffer", "Method", "PlaneCodec", "join_lanes", "split_lanes", "take_sample"]

Buffer = bytes | bytearray | memoryview

SAMPLE_PIECES = 16
SAMPLE_PIECE_LENGTH = 4096
WORTHWHILE_RATIO = 0.9
"""Stored over logical length above which a block stays raw: reading raw is sendfile and mmap."""
_LENGTH = struct.Struct("<I")


class Method(enum.IntEnum):
    """How one frame is stored. The numbers are the format's."""

    RAW = 0
    ZSTD = 1
    """zstd level 1: text, padding, anything with repeats."""
    HUFFMAN = 2
    """Huffman coding of bytes: 8-bit floats."""
    PLANES = 3
    """u32 length, Huffman-coded exponent plane, mantissa plane, and the odd last byte if any."""


# Level 1 with the match finder starved: 1.1 GB/s instead of 0.5, same size. target_length 0 keeps
# Huffman coding on (negative levels set it and reach ratio 1.000).
_HUFFMAN_ONLY = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    window_log=17,
    hash_log=6,
    chain_log=6,
    min_match=7,
    target_length=0,
    write_content_size=True,
    write_checksum=False,
)


class PlaneCodec:
    """Encodes and decodes frames. Holds scratch memory of two frames: one instance a thread."""

    def __init__(self) -> None:
        self._huffman = zstandard.ZstdCompressor(compression_params=_HUFFMAN_ONLY)
        self._zstd = zstandard.ZstdCompressor(level=1, write_content_size=True)
        self._decompressor = zstandard.ZstdDecompressor()
        self._exponents = bytearray()
        self._mantissas = bytearray()

    def encode(self, data: Buffer, method: Method) -> tuple[Method, Buffer]:
        """Return the stored form of one frame, and RAW with `data` itself if it is not smaller."""
        if method is Method.RAW or not len(data):
            return Method.RAW, data
        stored = self._compress(data, method)
        return (method, stored) if len(stored) < len(data) else (Method.RAW, data)

    def decode(self, stored: Buffer, method: Method, out: memoryview) -> None:
        """Fill `out`, whose length is the frame's logical length.

        Raises: Corrupt if `stored` is not exactly what encode made for that length.
        """
        if method is Method.PLANES:
            self._decode_planes(memoryview(stored), out)
            return
        plain = stored if method is Method.RAW else self._expand(stored, len(out))
        if len(plain) != len(out):
            raise Corrupt(f"a raw frame holds {len(plain)} bytes instead of {len(out)}")
        out[:] = plain

    def choose(self, data: Buffer) -> Method:
        """Return the method that a 64 KiB sample of a block says is best (0.3 ms).

        RAW if nothing saves a tenth. A block has one dtype, so the choice holds for all of it;
        pieces start at even offsets, as the lanes do.
        """
        sample = take_sample(data)
        if not sample:
            return Method.RAW
        candidates = (Method.PLANES, Method.HUFFMAN, Method.ZSTD)
        sizes = {method: len(self._compress(sample, method)) for method in candidates}
        best = min(candidates, key=lambda method: sizes[method])
        return best if sizes[best] <= WORTHWHILE_RATIO * len(sample) else Method.RAW

    def _compress(self, data: Buffer, method: Method) -> bytes:
        if method is Method.PLANES:
            return self._encode_planes(memoryview(data))
        return (self._huffman if method is Method.HUFFMAN else self._zstd).compress(data)

    def _encode_planes(self, data: memoryview) -> bytes:
        count = len(data) // 2
        exponents, mantissas = self._scratch(count)
        split_lanes(data[: 2 * count], exponents, mantissas)
        coded = self._huffman.compress(exponents)
        return b"".join((_LENGTH.pack(len(coded)), coded, mantissas, data[2 * count :]))

    def _decode_planes(self, stored: memoryview, out: memoryview) -> None:
        count = len(out) // 2
        if len(stored) < _LENGTH.size:
            raise Corrupt("a frame of planes is cut short")
        (coded_length,) = _LENGTH.unpack_from(stored)
        start = _LENGTH.size + coded_length
        if len(stored) != start + count + len(out) % 2:
            raise Corrupt("a frame of planes has the wrong length")
        exponents = self._expand(stored[_LENGTH.size : start], count)
        join_lanes(exponents, stored[start : start + count], out[: 2 * count])
        out[2 * count :] = stored[start + count :]

    def _expand(self, coded: Buffer, length: int) -> bytes:
        try:
            # The library allocates what the frame's header claims: look at the claim first.
            if zstandard.frame_content_size(coded) != length:
                raise Corrupt("a frame expands to another length than its table says")
            plain = self._decompressor.decompress(coded, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Corrupt(f"a frame does not decode: {error}") from error
        if len(plain) != length:
            raise Corrupt(f"a frame expanded to {len(plain)} bytes instead of {length}")
        return plain

    def _scratch(self, count: int) -> tuple[memoryview, memoryview]:
        if len(self._exponents) < count:
            self._exponents, self._mantissas = bytearray(count), bytearray(count)
        return memoryview(self._exponents)[:count], memoryview(self._mantissas)[:count]


def take_sample(data: Buffer) -> bytes:
    """Return up to 64 KiB of `data`: sixteen pieces spread evenly, each at an even offset."""
    wanted = SAMPLE_PIECES * SAMPLE_PIECE_LENGTH
    if len(data) <= wanted:
        return bytes(data)
    view = memoryview(data)
    stride = (len(data) - SAMPLE_PIECE_LENGTH) // (SAMPLE_PIECES - 1)
    starts = (number * stride & ~1 for number in range(SAMPLE_PIECES))
    return b"".join(view[start : start + SAMPLE_PIECE_LENGTH] for start in starts)
