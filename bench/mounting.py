"""What the cases about the mount share: mounts of their own, turns, and what the daemon used.

Owns nothing measured. Two things are always measured in turns, never one after the other: what
else a machine does meets both alike.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.report import Context
from kvfs.filesystem.mount import mount_store, unmount
from kvfs.open_store import init_store

MIB = 1 << 20
TRANSPORTS = ("kernel", "pyfuse3")

Action = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Mounted:
    """One store on one mount point."""

    store: Path
    root: Path
    daemon: int

    @property
    def folder(self) -> Path:
        """A first directory."""
        return self.root / "bench"

    def block_files(self) -> list[Path]:
        """The sealed blocks, the largest first."""
        found = (self.store / "blocks").glob("*/*")
        return sorted(found, key=lambda path: path.stat().st_size, reverse=True)

    def daemon_cpu_us(self) -> float:
        """CPU time of all the daemon's threads, to the nanosecond."""
        tasks = Path(f"/proc/{self.daemon}/task")
        return (
            sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e3
        )


@contextlib.contextmanager
def mounted(
    context: Context, transport: str = "kernel", *, store: Path | None = None
) -> Iterator[Mounted]:
    """Mount `store`, or a fresh one, below the context's directory."""
    root = context.directory / f"mnt-{transport}"
    root.mkdir()
    if store is None:
        store = context.directory / f"store-{transport}"
        init_store(store, capacity_bytes=8 << 30)
    mount_store(store, root, transport=transport)
    try:
        [mark] = (store / "run").glob("mount-*")
        made = Mounted(store, root, int(mark.read_text().split()[0]))
        made.folder.mkdir(exist_ok=True)
        yield made
    finally:
        unmount(root)


def in_turns(
    context: Context, actions: Sequence[Callable[[], object]], count: int, *, warmup: int = 2
) -> list[list[float]]:
    """Return the seconds of `count` runs of each action; every turn begins with another one."""
    taken: list[list[float]] = [[] for _ in actions]
    for turn in range(warmup + count):
        for step in range(len(actions)):
            number = (turn + step) % len(actions)
            seconds = context.times_s(actions[number], 1, warmup=0)
            if turn >= warmup:
                taken[number] += seconds
    return taken


def read_whole(path: Path, *, flags: int = 0, buffer: memoryview | None = None) -> None:
    """Read a file by preads of 1 MiB."""
    room = buffer if buffer is not None else memoryview(bytearray(MIB))
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        offset = 0
        while count := os.preadv(descriptor, [room], offset):
            offset += count
    finally:
        os.close(descriptor)
