"""The codec for cold blocks: ratio and speed a core, beside general compressors on the same bytes.

The data are keys and values of a small model (bench/model_kv.py) where its package is there, and
otherwise imitated (normal values, a scale and an offset of their own in each channel); each line
says which. They are rounded to the dtype. CPU seconds, so a busy neighbour does not matter.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import zstandard

from bench.model_kv import SOURCE, Array, model_folder, model_values
from bench.report import Context, Measurement, throughput_gb_s
from kvfs.codec.frame import (
    FrameTable,
    ReadAt,
    choose_method,
    decode_into,
    encode_block,
    parse_table,
)
from kvfs.codec.planes import Buffer
from kvfs.model import Extent

SIZE = 18 << 20
COUNT = 12
DATA = SOURCE if model_folder() else "imitated"


def keys_and_values(dtype: str, length: int) -> bytes:
    """Return `length` bytes of KV in `bf16`, `fp16` or `fp8` (E4M3)."""
    values = _values(length // (1 if dtype == "fp8" else 2))
    if dtype == "fp16":
        return values.astype(np.float16).tobytes()
    bits = values.view(np.uint32)
    if dtype == "bf16":
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()
    exponent = np.clip((bits >> 23 & 255).astype(np.int32) - 120, 0, 15).astype(np.uint32)
    return (bits >> 31 << 7 | exponent << 3 | bits >> 20 & 7).astype(np.uint8).tobytes()


@cache
def _values(count: int) -> Array:
    found = model_values(count)
    return _imitated_values(count) if found is None else found


def _imitated_values(count: int) -> Array:
    generator = np.random.default_rng(7)
    channels = 1024
    scale = np.exp(generator.normal(0, 0.5, channels)).astype(np.float32)
    offset = generator.normal(0, 0.5, channels).astype(np.float32)
    normal = generator.standard_normal((count // channels, channels), dtype=np.float32)
    values: Array = (normal * scale + offset).reshape(-1)
    return values


def bench_encode__18MiB_block(context: Context) -> Iterator[Measurement]:
    """Encode by the sampled method; the floor is zstd level 1 on the same bytes."""
    size, count = (SIZE // 8, 3) if context.quick else (SIZE, COUNT)
    for dtype in ("bf16", "fp16", "fp8"):
        data = keys_and_values(dtype, size)
        stored = _assemble(data)
        plain = zstandard.ZstdCompressor(level=1)
        yield Measurement(
            unit="GB/s",
            samples=_speed(context, size, partial(_encode, data), count),
            params={"data": DATA, "dtype": dtype, "ratio": round(size / len(stored), 3)},
            floor=_speed(context, size, partial(plain.compress, data), count),
            floor_name=f"zstd-1, ratio {size / len(plain.compress(data)):.3f}",
        )


def bench_decode__18MiB_block(context: Context) -> Iterator[Measurement]:
    """Decode a whole block; the floor is zstd level 1."""
    size, count = (SIZE // 8, 3) if context.quick else (SIZE, COUNT)
    out = memoryview(bytearray(size))
    for dtype in ("bf16", "fp16", "fp8"):
        data = keys_and_values(dtype, size)
        stored = _assemble(data)
        plain = zstandard.ZstdCompressor(level=1).compress(data)
        unpack = zstandard.ZstdDecompressor()
        table, read_at = _open(stored)

        decode = partial(decode_into, table, read_at, Extent(0, size), out)
        yield Measurement(
            unit="GB/s",
            samples=_speed(context, size, decode, count),
            params={"data": DATA, "dtype": dtype, "ratio": round(size / len(stored), 3)},
            floor=_speed(context, size, partial(unpack.decompress, plain), count),
            floor_name="zstd-1",
        )
        assert bytes(out) == data


def bench_decode__256KiB_range(context: Context) -> Measurement:
    """Read 256 KiB from the middle of a block: one frame, not the object."""
    data = keys_and_values("bf16", SIZE // 2)
    table, read_at = _open(_assemble(data))
    out = memoryview(bytearray(256 << 10))
    extent = Extent(SIZE // 4 + 12_345, len(out))
    taken = context.cpu_times_s(lambda: _repeat(table, read_at, extent, out, 20), 20)
    return Measurement("us", [each / 20 * 1e6 for each in taken], {"length": len(out)})


def bench_choose__sample(context: Context) -> Measurement:
    """What it costs to find out how a block is best compressed."""
    data = keys_and_values("bf16", 4 << 20)
    taken = context.cpu_times_s(lambda: [choose_method(data) for _ in range(20)], 20)
    return Measurement("us", [each / 20 * 1e6 for each in taken])


def bench_peers__blosc2_and_zipnn(context: Context) -> Iterator[Measurement]:
    """The specialists, where they are installed: encode, with decode and ratio beside it."""
    data = keys_and_values("bf16", SIZE // 8 if context.quick else SIZE)
    for name, pack, unpack in _peers():
        stored = pack(data)
        decode = _speed(context, len(data), partial(unpack, stored), 3)
        yield Measurement(
            unit="GB/s",
            samples=_speed(context, len(data), partial(pack, data), 3),
            params={
                "data": DATA,
                "peer": name,
                "ratio": round(len(data) / len(stored), 3),
                "decode_gb_s": round(sorted(decode)[1], 3),
            },
            floor=_speed(context, len(data), partial(_encode, data), 3),
            floor_name="kvfs",
        )


def _peers() -> Iterator[tuple[str, Callable[[bytes], bytes], Callable[[bytes], object]]]:
    blosc2 = _optional("blosc2")
    if blosc2 is not None:
        blosc2.set_nthreads(1)
        for filter_name in ("SHUFFLE", "BITSHUFFLE"):
            settings = {
                "typesize": 2,
                "clevel": 1,
                "codec": blosc2.Codec.ZSTD,
                "filter": getattr(blosc2.Filter, filter_name),
            }
            yield (
                f"blosc2 zstd-1 {filter_name.lower()}",
                partial(blosc2.compress, **settings),
                blosc2.decompress,
            )
    zipnn = _optional("zipnn")
    if zipnn is not None:
        codec = zipnn.ZipNN(input_format="byte", bytearray_dtype="bfloat16", threads=1)
        yield "zipnn", codec.compress, codec.decompress


def _optional(name: str) -> Any:  # noqa: ANN401 - untyped third party, used here alone
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _speed(context: Context, length: int, action: Callable[[], object], count: int) -> list[float]:
    return throughput_gb_s(length, context.cpu_times_s(action, count))


def _encode(data: bytes) -> None:
    for _ in encode_block(data, choose_method(data)):
        pass


def _assemble(data: bytes) -> bytes:
    pieces = [
        (piece.offset, bytes(piece.data)) for piece in encode_block(data, choose_method(data))
    ]
    return b"".join(content for _, content in sorted(pieces))


def _open(stored: bytes) -> tuple[FrameTable, ReadAt]:
    view = memoryview(stored)  # as a mapped file is read: without a copy

    def read_at(offset: int, length: int) -> Buffer:
        return view[offset : offset + length]

    return parse_table(read_at, len(stored)), read_at


def _repeat(
    table: FrameTable,
    read_at: ReadAt,
    extent: Extent,
    out: memoryview,
    count: int,
) -> None:
    for _ in range(count):
        decode_into(table, read_at, extent, out)
