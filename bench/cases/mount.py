"""The mount against the disk's own file system: the same calls on the same bytes, in turns.

The floor of a read is the same read of a native file; of a write, writing and hashing the same
bytes; of a small operation, the same on a plain directory. Both transports run.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.report import Context, Measurement, throughput_gb_s
from kvfs.codec.digest import digest_file
from kvfs.filesystem.mount import mount_store, unmount
from kvfs.open_store import init_store

MIB = 1 << 20
FILE_BYTES = 64 * MIB
TRANSPORTS = ("kernel", "pyfuse3")

Action = Callable[[Path], object]


@contextlib.contextmanager
def mounted(context: Context, transport: str) -> Iterator[Path]:
    """Yield a first directory on a fresh mount."""
    store, root = context.directory / f"store-{transport}", context.directory / f"mnt-{transport}"
    root.mkdir()
    init_store(store, capacity_bytes=4 << 30)
    mount_store(store, root, transport=transport)
    try:
        (root / "bench").mkdir()
        yield root / "bench"
    finally:
        unmount(root)


def bench_mount_read__64MiB_by_1MiB(context: Context) -> Iterator[Measurement]:
    for transport in TRANSPORTS:
        with mounted(context, transport) as folder:
            ours, native = folder / "block", context.directory / f"native-{transport}"
            value = os.urandom(FILE_BYTES)
            ours.write_bytes(value)
            native.write_bytes(value)
            os.sync()
            for shape, read in READS.items():
                mine, floor = in_turns(context, read, ours, native, 7 if context.quick else 21)
                yield Measurement(
                    "GB/s",
                    throughput_gb_s(FILE_BYTES, mine),
                    {"transport": transport, "shape": shape},
                    floor=throughput_gb_s(FILE_BYTES, floor),
                    floor_name="the same read of a native file",
                )


def bench_mount_write__close(context: Context) -> Iterator[Measurement]:
    for transport in TRANSPORTS:
        with mounted(context, transport) as folder:
            plain = context.directory / f"plain-{transport}"
            plain.mkdir()
            for size_mib in (1, 4, 32):
                value = bytearray(os.urandom(size_mib * MIB))
                mine: list[float] = []
                floor: list[float] = []
                write_floor = partial(write_hashed, plain, value)
                write_mine = partial(write_plain, folder, value)
                for number in range(5 if context.quick else 15):
                    value[:8] = number.to_bytes(8, "little")
                    floor += context.times_s(write_floor, 1, warmup=0)
                    mine += context.times_s(write_mine, 1, warmup=0)
                yield Measurement(
                    "GB/s",
                    throughput_gb_s(size_mib * MIB, mine[2:]),
                    {"transport": transport, "MiB": size_mib},
                    floor=throughput_gb_s(size_mib * MIB, floor[2:]),
                    floor_name="native create + write + blake3 + close + rename",
                )


def bench_mount_small_operations__us(context: Context) -> Iterator[Measurement]:
    count = 200 if context.quick else 1000
    for transport in TRANSPORTS:
        with mounted(context, transport) as folder:
            plain = context.directory / f"small-{transport}"
            plain.mkdir()
            for place in (folder, plain):
                (place / "f").write_bytes(b"x" * 4096)
            for name, action in SMALL.items():
                mine, floor = in_turns(context, action, folder, plain, count)
                yield Measurement(
                    "us",
                    [taken * 1e6 for taken in mine],
                    {"transport": transport, "operation": name},
                    floor=[taken * 1e6 for taken in floor],
                    floor_name="the same on a plain directory",
                )


def in_turns(
    context: Context, action: Action, ours: Path, native: Path, count: int
) -> tuple[list[float], list[float]]:
    """Return the seconds of `action` on both, alternating so that noise meets both alike."""
    mine, floor = [], []
    for _ in range(count):
        floor += context.times_s(lambda: action(native), 1, warmup=0)
        mine += context.times_s(lambda: action(ours), 1, warmup=0)
    return mine[2:], floor[2:]


def read_buffered(path: Path) -> None:
    buffer = bytearray(MIB)
    descriptor = os.open(path, os.O_RDONLY)
    for offset in range(0, FILE_BYTES, MIB):
        os.preadv(descriptor, [buffer], offset)
    os.close(descriptor)


def read_cold(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    read_buffered(path)


def read_direct(path: Path) -> None:
    buffer = mmap.mmap(-1, MIB)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    for offset in range(0, FILE_BYTES, MIB):
        os.preadv(descriptor, [buffer], offset)
    os.close(descriptor)


def read_mapped(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        out = memoryview(bytearray(MIB))
        for offset in range(0, FILE_BYTES, MIB):
            out[:] = mapping[offset : offset + MIB]


READS: dict[str, Action] = {
    "warm pread": read_buffered,
    "pages dropped, then pread": read_cold,
    "O_DIRECT": read_direct,
    "mmap": read_mapped,
}


def write_plain(folder: Path, value: bytearray) -> None:
    """What LMCache does: a temporary name, one write, close, rename."""
    descriptor = os.open(folder / "f.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    assert os.write(descriptor, value) == len(value), "one write completes in full"
    os.close(descriptor)
    os.rename(folder / "f.tmp", folder / "f")


def write_hashed(folder: Path, value: bytearray) -> None:
    descriptor = os.open(folder / "f.tmp", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(descriptor, value)
    digest_file(b"s" * 32, descriptor, len(value))
    os.close(descriptor)
    os.rename(folder / "f.tmp", folder / "f")


def stat_hit(folder: Path) -> None:
    os.stat(folder / "f")


def stat_miss(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.stat(folder / "absent")


def open_close(folder: Path) -> None:
    os.close(os.open(folder / "f", os.O_RDONLY))


SMALL: dict[str, Action] = {
    "stat": stat_hit,
    "stat of an absent name": stat_miss,
    "open + close": open_close,
}


def bench_mount_transports__kernel_over_pyfuse3(context: Context) -> Iterator[Measurement]:
    """How many times faster our own session is, per operation (higher is better)."""
    medians: dict[str, dict[str, float]] = {}
    for transport in TRANSPORTS:
        with mounted(context, transport) as folder:
            (folder / "f").write_bytes(b"x" * 4096)
            (folder / "block").write_bytes(os.urandom(FILE_BYTES))
            found = {n: context.times_s(lambda a=a: a(folder), 300) for n, a in SMALL.items()}
            block = folder / "block"
            found["pages dropped, then pread"] = context.times_s(lambda p=block: read_cold(p), 5)
            medians[transport] = {name: statistics.median(taken) for name, taken in found.items()}
    for name, ours in medians["kernel"].items():
        yield Measurement("ratio", [medians["pyfuse3"][name] / ours], {"operation": name})
