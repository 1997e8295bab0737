"""Small operations of the mount: what a look-up, a stat, an open and a close cost.

Latency as a client sees it against a plain directory, the two transports against each other, and
the CPU time the daemon needs for one, which a busy machine changes least.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from bench.mounting import TRANSPORTS, Action, Mounted, in_turns, mounted
from bench.report import Context, Measurement

BATCH = 25
"""Operations a turn: alternating single ones would measure how processes wake up."""


def bench_mount_small_operations__us(context: Context) -> Iterator[Measurement]:
    count = 10 if context.quick else 80
    plain = context.directory / "plain"
    plain.mkdir()
    (plain / "f").write_bytes(b"x" * 4096)
    for transport in TRANSPORTS:
        with mounted(context, transport) as made:
            (made.folder / "f").write_bytes(b"x" * 4096)
            for name, action in SMALL.items():
                mine, floor = batches_us(context, action, [made.folder, plain], count)
                yield Measurement(
                    "us",
                    mine,
                    {"transport": transport, "operation": name},
                    floor=floor,
                    floor_name="the same on a plain directory",
                )


def bench_mount_small_operations__kernel_over_pyfuse3(context: Context) -> Iterator[Measurement]:
    """How many times less time an operation takes over our own session (target 2)."""
    count = 10 if context.quick else 120
    with mounted(context, "kernel") as kernel, mounted(context, "pyfuse3") as pyfuse3:
        for made in (kernel, pyfuse3):
            (made.folder / "f").write_bytes(b"x" * 4096)
        for name, action in SMALL.items():
            ours, theirs = batches_us(context, action, [kernel.folder, pyfuse3.folder], count)
            ratio = statistics.median(theirs) / statistics.median(ours)
            yield Measurement("ratio", [ratio], {"operation": name})


def bench_mount_small_operations__daemon_cpu_us(context: Context) -> Iterator[Measurement]:
    """CPU time of the daemon for one operation, all its threads."""
    count = 200 if context.quick else 2000
    for transport in TRANSPORTS:
        with mounted(context, transport) as made:
            (made.folder / "f").write_bytes(b"x" * 4096)
            for name, action in (SMALL | CHANGING).items():
                samples = [cpu_us(made, action, count // 10) for _ in range(10)]
                yield Measurement("us", samples, {"transport": transport, "operation": name})


def batches_us(
    context: Context, action: Action, folders: Sequence[Path], count: int
) -> list[list[float]]:
    """Return for each folder the microseconds of one operation, a sample a batch, in turns."""
    taken = in_turns(context, [partial(repeat, action, folder) for folder in folders], count)
    return [[seconds / BATCH * 1e6 for seconds in each] for each in taken]


def repeat(action: Action, folder: Path) -> None:
    for _ in range(BATCH):
        action(folder)


def cpu_us(made: Mounted, action: Action, count: int) -> float:
    action(made.folder)
    before = made.daemon_cpu_us()
    for _ in range(count):
        action(made.folder)
    return (made.daemon_cpu_us() - before) / count


def stat_hit(folder: Path) -> None:
    os.stat(folder / "f")


def stat_miss(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.stat(folder / "absent")


def open_close(folder: Path) -> None:
    os.close(os.open(folder / "f", os.O_RDONLY))


def open_read(folder: Path) -> None:
    with (folder / "f").open("rb") as file:
        file.read()


def create_close(folder: Path) -> None:
    os.close(os.open(folder / "new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    os.unlink(folder / "new")


SMALL: dict[str, Action] = {
    "stat of a name just seen": stat_hit,
    "stat of an absent name": stat_miss,
    "open + close": open_close,
    "open() + read 4 KiB + close": open_read,
}
CHANGING: dict[str, Action] = {"create + close + unlink": create_close}
