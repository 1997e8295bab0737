"""Traces through the real store, emptied by the real collection.

The store's capacity is the cell's, so that its own accounting (I4) bounds what is resident; blocks
are scaled down to one sector. Each cell is a process of its own, as many at once as there are
processors: what is measured is hits, not time. The ten cells take about a quarter of an hour on
two cores; let TMPDIR name a tmpfs with 1 GiB.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.report import Context, Measurement
from bench.trace_replay import (
    LOW_RATIO,
    TRACES,
    Lru,
    LruInBatches,
    Trace,
    belady,
    load_trace,
    replay,
)
from kvfs.clock import ManualClock
from kvfs.model import ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.policy.expiry import Rule, RuleSet
from kvfs.policy.settings import LifecycleSettings
from kvfs_tools.gc import collect

SECTOR = 4096
EPOCH_S = 1_700_000_000
SHARES = (1, 5, 10, 20, 40)
QUICK_REQUESTS = 400
"""Of the synthetic trace from its start; the shares are of the blocks that these name."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One trace, or its start, at one share of its blocks."""

    trace: str
    percent: int
    requests: int | None = None


class StoreCache:
    """The real store as a cache of one-sector blocks, emptied by the real collection."""

    def __init__(self, root: Path, capacity: int) -> None:
        self._capacity = capacity
        self._clock = ManualClock(EPOCH_S * 1_000_000_000)
        init_store(root, capacity_bytes=capacity * SECTOR, clock=self._clock)
        self._store = open_store(root, clock=self._clock)
        self._store.create_namespace(b"kv")
        self._settings = LifecycleSettings(
            rules=RuleSet([Rule("keep")]),
            high_ratio=1 - 0.5 / capacity,  # a full store is over it, one block fewer is not
            low_ratio=min(LOW_RATIO, 1 - 1 / capacity),
            snapshot_every_s=0,
        )
        self.collections = self.refused = 0
        self._count = 0
        self._stuck_s = -1

    def holds(self, block: int) -> bool:
        return self._store.find(ObjectPath(b"kv", b"%d" % block)) is not None

    def touch(self, block: int, at_ms: int) -> None:
        self._move_to(at_ms)
        self._store.find(ObjectPath(b"kv", b"%d" % block), touch=True)

    def write(self, block: int, at_ms: int) -> None:
        self._move_to(at_ms)
        if self._count >= self._capacity and self._stuck_s != self._clock.now_ns() // 10**9:
            self._collect()
        if self._count >= self._capacity:
            self.refused += 1  # all that is there was used in this very second, as this one is
            return
        self._store.put(ObjectPath(b"kv", b"%d" % block), block.to_bytes(8, "big"))
        self._count += 1

    def _collect(self) -> None:
        self.collections += 1
        self._store.flush()
        with self._store.context.index.read() as txn:
            resident = txn.counters().resident // SECTOR
        assert resident == self._count <= self._capacity, "the cell's capacity holds"
        removed = sum(collect(self._store, self._settings).outcome.removed.values())
        self._count -= removed
        self._stuck_s = -1 if removed else self._clock.now_ns() // 10**9

    def close(self) -> None:
        self._store.close()

    def _move_to(self, at_ms: int) -> None:
        behind_s = EPOCH_S + at_ms / 1000 - self._clock.now_ns() / 1e9
        if behind_s > 0:
            self._clock.advance(behind_s)


def bench_replay__real_store(context: Context) -> Iterator[Measurement]:
    """Both traces whole through Store and kvfs-gc's collection; the floor is LRU in memory."""
    if context.quick:
        cells = [Cell("synthetic", percent, QUICK_REQUESTS) for percent in (5, 20)]
    else:
        cells = [Cell(name, percent) for name in TRACES for percent in SHARES]
    # Spawned: an LMDB environment does not survive a fork.
    workers = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), workers) as pool:
        yield from pool.map(partial(_replayed, context.directory), cells)


def _replayed(directory: Path, cell: Cell) -> Measurement:
    whole = load_trace(cell.trace)
    trace = Trace(whole.name, whole.requests[: cell.requests])
    capacity = trace.unique_blocks * cell.percent // 100
    cache = StoreCache(directory / f"{trace.name}-{cell.percent}", capacity)
    ours = replay(trace, cache)
    cache.close()
    return Measurement(
        unit="ratio",
        samples=[ours],
        params={
            "trace": trace.name,
            "capacity_percent": cell.percent,
            "requests": len(trace.requests),
            "blocks": capacity,
            "collections": cache.collections,
            "refused": cache.refused,
            "lru_in_batches": round(replay(trace, LruInBatches(capacity)), 4),
            "belady": round(belady(trace, capacity), 4),
        },
        floor=[replay(trace, Lru(capacity))],
        floor_name="lru",
    )
