"""The daemon's memory over a million look-ups that the kernel forgets again.

Rounds over the same names, the kernel's caches of names dropped after each (as root only): what
RssAnon shows after the first rounds must be what it shows after the last.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from bench.cases.mount_directory import build
from bench.mounting import Mounted, mounted
from bench.report import Context, Measurement, resident_bytes
from kvfs.open_store import init_store

DROP_NAMES = "2"
"""/proc/sys/vm/drop_caches: names and inodes, not pages."""
SETTLED = 2
"""Rounds after which the daemon's tables and allocator have reached their size."""
WAITS = 200


def bench_mount_memory__a_million_lookups_and_forgets(context: Context) -> Iterator[Measurement]:
    """Bytes that the daemon grew between the second round and the last (target: flat)."""
    names, rounds = (5_000, 4) if context.quick else (100_000, 10)
    store = context.directory / "store"
    init_store(store, capacity_bytes=1 << 30)
    build(store, {b"names": names})
    with mounted(context, store=store) as made:
        seen: list[int] = []
        for _ in range(rounds):
            for number in range(names):
                os.stat(f"{made.root}/names/{number:08}")
            forget_all(made)
            seen.append(resident_bytes(made.daemon))
    params = {"lookups": names * rounds}
    yield Measurement("bytes", [float(seen[-1] - seen[SETTLED - 1])], params | {"what": "growth"})
    yield Measurement("bytes", [float(each) for each in seen], params | {"what": "RssAnon"})


def forget_all(made: Mounted) -> None:
    """Make the kernel forget every name, and wait until the daemon was told."""
    for _ in range(WAITS):
        Path("/proc/sys/vm/drop_caches").write_text(DROP_NAMES)
        if known_inodes(made) < 100:
            return
        os.stat(made.root)  # answered in order: behind the forgets queued so far
    raise AssertionError(f"the kernel still holds {known_inodes(made)} names")


def known_inodes(made: Mounted) -> int:
    for line in (made.root / ".kvfs" / "metrics").read_text().splitlines():
        if line.startswith("kvfs_mount_inodes "):
            return int(line.split()[1])
    raise AssertionError("the mount does not tell its inodes")
