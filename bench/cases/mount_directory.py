"""A directory of a million files behind the mount: does it behave like one of a thousand?

Both directories are in one store and one mount, looked up and created in by turns. Built through
the store's own row changes, many a transaction: a million closes would take an hour.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.mounting import in_turns, mounted
from bench.report import Context, Measurement, resident_bytes
from kvfs.index.lmdb_index import WriteTransaction
from kvfs.index.schema import InodeRow
from kvfs.model import ROOT_INODE, ChildName, Kind, NamespaceId
from kvfs.open_store import init_store, open_store
from kvfs.store.objects import add_name, resolve_target
from kvfs.store.store import Store

SMALL = 1000
WARMUP = 2
BATCH = 10
NAMES_A_COMMIT = 5000
STRIDE = 7919
"""A prime: successive look-ups are far apart, and none repeats before all were visited."""


def bench_mount_directory__a_million_against_a_thousand(context: Context) -> Iterator[Measurement]:
    """Target: within 20 % (a ratio to the floor of at most 1.2); entries are listed at once."""
    large = 50_000 if context.quick else 1_000_000
    store = context.directory / "store"
    init_store(store, capacity_bytes=8 << 30)
    build(store, {b"large": large, b"small": SMALL})
    params = {"files": large}
    with mounted(context, store=store) as made:
        big, little = made.root / "large", made.root / "small"
        turns = [Visitor(big, large), Visitor(little, SMALL)]
        for what in (Visitor.find, Visitor.miss, Visitor.create):
            # Names once each, neighbours of names seen before: a name found again within a second
            # would come from the kernel's cache, and an index page's first use is no steady state.
            actions = [partial(what, each) for each in turns]
            for each in turns:
                each.go_over(what, parity=0)
            count = SMALL // 2 // BATCH - WARMUP
            ours, floor = in_turns(context, actions, count, warmup=WARMUP)
            yield Measurement(
                "us",
                [taken / BATCH * 1e6 for taken in ours],
                params | {"operation": what.__name__},
                floor=[taken / BATCH * 1e6 for taken in floor],
                floor_name=f"the same among {SMALL} files",
            )
        before = resident_bytes(made.daemon)
        firsts = context.times_s(partial(list_some, big, 1), 5)
        yield Measurement("ms", [t * 1e3 for t in firsts], params | {"operation": "first entry"})
        whole = context.times_s(partial(list_some, big, large), 1, warmup=0)
        yield Measurement("1/s", [large / t for t in whole], params | {"operation": "list"})
        grown = resident_bytes(made.daemon) - before
        yield Measurement("bytes", [float(grown)], params | {"what": "daemon grew by listing"})


class Visitor:
    """Looks up and creates names in one directory, BATCH at a time, all over it."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._half = os.fspath(folder), count // 2
        self._step = self._parity = 0

    def go_over(self, what: Callable[[Visitor], None], *, parity: int) -> None:
        """Visit SMALL / 2 places by even numbers; what comes next visits their odd neighbours."""
        self._step, self._parity = 0, parity
        for _ in range(SMALL // 2 // BATCH):
            what(self)
        self._step, self._parity = 0, 1 - parity

    def _next(self) -> str:
        self._step += 1
        return f"{self._folder}/{self._step * STRIDE % self._half * 2 + self._parity:08}"

    def find(self) -> None:
        for _ in range(BATCH):
            os.stat(self._next())

    def miss(self) -> None:
        for _ in range(BATCH):
            with contextlib.suppress(FileNotFoundError):
                os.stat(self._next() + "x")

    def create(self) -> None:
        for _ in range(BATCH):
            os.close(os.open(self._next() + "n", os.O_WRONLY | os.O_CREAT | os.O_EXCL))


def list_some(folder: Path, count: int) -> None:
    with os.scandir(folder) as entries:
        for _ in zip(range(count), entries, strict=False):
            pass


def build(path: Path, sizes: dict[bytes, int]) -> None:
    """Fill directories with empty files."""
    with open_store(path) as store:
        for name, count in sizes.items():
            folder = store.mkdir(ChildName(ROOT_INODE, name)).inode
            for first in range(0, count, NAMES_A_COMMIT):
                numbers = range(first, min(first + NAMES_A_COMMIT, count))
                store.context.commit(
                    partial(add_names, store=store, folder=folder, numbers=numbers)
                )


def add_names(txn: WriteTransaction, *, store: Store, folder: int, numbers: range) -> None:
    now_ns = store.context.clock.now_ns()
    for number in numbers:
        target = resolve_target(txn, ChildName(folder, b"%08d" % number))
        row = InodeRow(Kind.FILE, NamespaceId(0), mtime_ns=now_ns)
        row.accessed_s = now_ns // 1_000_000_000
        add_name(txn, target, row, store.context.files, now_ns)
