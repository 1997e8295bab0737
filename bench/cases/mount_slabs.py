"""Files that are written in place: slabs that stay mutable, and published blocks rewritten.

The floor of slab I/O is the same on a sparse file of the disk's own file system; of a rewritten
block, rewriting a native file in place and hashing it. `copy` is what a rewrite pays for not
changing the block that readers may have open (docs/adr/0012).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.mounting import MIB, mounted
from bench.report import Context, Measurement, throughput_gb_s
from kvfs.codec.digest import digest_file

SLAB_BYTES = 4 << 30
SPAN = 256 * MIB
"""Of the slab that is written: the rest stays a hole."""
PIECES = 64


def bench_slab__1MiB_at_random(context: Context) -> Iterator[Measurement]:
    for transport in ("kernel", "pyfuse3"):
        with mounted(context, transport) as mount:
            ours, native = mount.folder / "slab", context.directory / f"slab-{transport}"
            for path in (ours, native):
                with path.open("xb", buffering=0) as file:
                    os.ftruncate(file.fileno(), SLAB_BYTES)
            for name, work in (("pwrite", write_pieces), ("pread", read_pieces)):
                mine: list[float] = []
                floor: list[float] = []
                for _ in range(5 if context.quick else 15):
                    floor += context.times_s(partial(work, native), 1, warmup=0)
                    mine += context.times_s(partial(work, ours), 1, warmup=0)
                yield Measurement(
                    "GB/s",
                    throughput_gb_s(PIECES * MIB, mine[1:]),
                    {"transport": transport, "shape": name},
                    floor=throughput_gb_s(PIECES * MIB, floor[1:]),
                    floor_name="the same on a native sparse file",
                )


def bench_block__rewritten_in_place(context: Context) -> Iterator[Measurement]:
    for transport in ("kernel", "pyfuse3"):
        with mounted(context, transport) as mount:
            for size_mib in (1, 4, 32):
                ours, native = (
                    mount.folder / f"{size_mib}",
                    context.directory / f"{transport}{size_mib}",
                )
                value = bytearray(os.urandom(size_mib * MIB))
                ours.write_bytes(value)
                native.write_bytes(value)
                mine: list[float] = []
                floor: list[float] = []
                copy: list[float] = []
                for number in range(5 if context.quick else 15):
                    value[:8] = number.to_bytes(8, "little")
                    floor += context.times_s(partial(rewrite_hashed, native, value), 1, warmup=0)
                    mine += context.times_s(partial(rewrite, ours, value), 1, warmup=0)
                    copy += context.times_s(partial(copy_whole, native, context), 1, warmup=0)
                yield Measurement(
                    "GB/s",
                    throughput_gb_s(size_mib * MIB, mine[1:]),
                    {
                        "transport": transport,
                        "MiB": size_mib,
                        "copy_ms": round(sorted(copy)[len(copy) // 2] * 1000, 2),
                    },
                    floor=throughput_gb_s(size_mib * MIB, floor[1:]),
                    floor_name="a native file rewritten in place, and hashed",
                )


def offsets() -> list[int]:
    return random.Random(1).sample(range(0, SPAN, MIB), PIECES)


def write_pieces(path: Path) -> None:
    piece = bytes(MIB)
    with path.open("r+b", buffering=0) as file:
        for offset in offsets():
            os.pwrite(file.fileno(), piece, offset)


def read_pieces(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        for offset in offsets():
            os.pread(file.fileno(), MIB, offset)


def rewrite(path: Path, value: bytearray) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.pwrite(descriptor, value, 0)
    os.close(descriptor)


def rewrite_hashed(path: Path, value: bytearray) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.pwrite(descriptor, value, 0)
    digest_file(bytes(32), descriptor, len(value))
    os.close(descriptor)


def copy_whole(path: Path, context: Context) -> None:
    """What the mount does with the old bytes before the first write changes them."""
    source = os.open(path, os.O_RDONLY)
    target = os.open(context.directory, os.O_RDWR | os.O_TMPFILE, 0o600)
    done, length = 0, os.fstat(source).st_size
    while done < length:
        done += os.copy_file_range(source, target, length - done, done, done)
    os.close(target)
    os.close(source)
