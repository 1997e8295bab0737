"""Reading through the mount, against the very block file read natively, in turns.

The floor is the backing file itself: same bytes, same extents on the disk, same page cache.
"""

from __future__ import annotations

import mmap
import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bench.mounting import MIB, TRANSPORTS, Mounted, in_turns, mounted, read_whole
from bench.report import Context, Measurement, throughput_gb_s

FILE_BYTES = 64 * MIB
READERS = 64
BACKING = "the same read of the backing file"


def bench_mount_read__64MiB_by_1MiB(context: Context) -> Iterator[Measurement]:
    """Targets of the kernel transport: warm pread 0.85, mmap 0.9, O_DIRECT 0.9."""
    count = 7 if context.quick else 21
    for transport in TRANSPORTS:
        with mounted(context, transport) as made:
            ours, backing = sealed(made)
            for shape, read in READS.items():
                mine, floor = in_turns(
                    context, [partial(read, ours), partial(read, backing)], count
                )
                yield Measurement(
                    "GB/s",
                    throughput_gb_s(FILE_BYTES, mine),
                    {"transport": transport, "shape": shape},
                    floor=throughput_gb_s(FILE_BYTES, floor),
                    floor_name=BACKING,
                )


def bench_mount_read__64_readers_of_one_file(context: Context) -> Iterator[Measurement]:
    """Sixty-four threads, each with its own descriptor, read all of one file at once."""
    count = 3 if context.quick else 9
    buffers = [memoryview(bytearray(MIB)) for _ in range(READERS)]
    for transport in TRANSPORTS:
        with mounted(context, transport) as made, ThreadPoolExecutor(READERS) as pool:
            ours, backing = sealed(made)
            mine, floor = in_turns(
                context,
                [partial(read_by_all, pool, path, buffers) for path in (ours, backing)],
                count,
                warmup=1,
            )
            yield Measurement(
                "GB/s",
                throughput_gb_s(READERS * FILE_BYTES, mine),
                {"transport": transport, "readers": READERS},
                floor=throughput_gb_s(READERS * FILE_BYTES, floor),
                floor_name=BACKING,
            )


def bench_mount_read__cold_kernel_over_pyfuse3(context: Context) -> Iterator[Measurement]:
    """How many times faster 1 MiB reads are whose pages FUSE does not hold (target 4).

    The block files are warm, as they are after a write or a promotion; FUSE's own pages are
    dropped before each read.
    """
    with mounted(context, "kernel") as kernel, mounted(context, "pyfuse3") as pyfuse3:
        (ours, _), (theirs, _) = sealed(kernel), sealed(pyfuse3)
        taken: dict[Path, list[float]] = {ours: [], theirs: []}
        for _ in range(3 if context.quick else 9):
            for path in (ours, theirs):
                drop_pages(path)
                taken[path] += context.times_s(partial(read_whole, path), 1, warmup=0)
        ratio = statistics.median(taken[theirs]) / statistics.median(taken[ours])
        yield Measurement("ratio", [ratio], {"MiB": FILE_BYTES // MIB})
        for path, transport in ((ours, "kernel"), (theirs, "pyfuse3")):
            speeds = throughput_gb_s(FILE_BYTES, taken[path])
            yield Measurement("GB/s", speeds, {"transport": transport})


def sealed(made: Mounted) -> tuple[Path, Path]:
    """Write one file of FILE_BYTES; return its path on the mount and its block file, both warm."""
    path = made.folder / "block"
    path.write_bytes(os.urandom(FILE_BYTES))
    os.sync()
    backing = made.block_files()[0]
    read_whole(backing)
    return path, backing


def drop_pages(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def read_by_all(pool: ThreadPoolExecutor, path: Path, buffers: list[memoryview]) -> None:
    done = [pool.submit(read_whole, path, buffer=buffer) for buffer in buffers]
    for each in done:
        each.result()


def read_direct(path: Path) -> None:
    with mmap.mmap(-1, MIB) as pages:  # page aligned, as O_DIRECT wants
        view = memoryview(pages)
        read_whole(path, flags=os.O_DIRECT, buffer=view)
        view.release()


def read_mapped(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        out = memoryview(bytearray(MIB))
        for offset in range(0, FILE_BYTES, MIB):
            out[:] = mapping[offset : offset + MIB]


READS: dict[str, Callable[[Path], object]] = {
    "warm pread": read_whole,
    "mmap": read_mapped,
    "O_DIRECT": read_direct,
}
