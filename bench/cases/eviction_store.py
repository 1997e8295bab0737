"""Traces through the real store, emptied by the real collection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.report import Context, Measurement
from bench.trace_replay import TRACES, Lru, Trace, belady, load_trace, replay
from kvfs.clock import ManualClock
from kvfs.model import ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.policy.expiry import Rule, RuleSet
from kvfs.policy.settings import LifecycleSettings
from kvfs_tools.gc import collect

SECTOR = 4096
EPOCH_S = 1_700_000_000
SHARES = (1, 5, 10, 20, 40)
LOW_SHARE = 0.98
"""A collection starts at the capacity and ends at this share of it."""
REQUESTS = 1000
"""Of each trace from its start; the shares are of the blocks that these name. A collection passes
every file, so the time grows with the square: the whole traces take hours."""


class LruInBatches(Lru):
    """Least recently used, emptied like the store: down to the low watermark at once. What it loses
    against LRU is the price of batches; what the store loses against it would be the store's."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._low = int(capacity * LOW_SHARE)

    def write(self, block: int, at_ms: int) -> None:
        if len(self._blocks) >= self._capacity:
            while len(self._blocks) > min(self._low, self._capacity - 1):
                self._blocks.popitem(last=False)
        self._blocks[block] = None


class StoreCache:
    """The real store as a cache of one-sector blocks, emptied by the real collection."""

    def __init__(self, root: Path, capacity: int) -> None:
        self._capacity = capacity
        self._clock = ManualClock(EPOCH_S * 1_000_000_000)
        # Twice the room: what may be resident is set by the watermarks, not by writers that wait.
        total = 2 * max(capacity, 512) * SECTOR
        init_store(root, capacity_bytes=total, clock=self._clock)
        self._store = open_store(root, clock=self._clock)
        self._store.create_namespace(b"kv")
        full = capacity * SECTOR / total
        self._settings = LifecycleSettings(
            rules=RuleSet([Rule("keep")]),
            high_ratio=full,
            low_ratio=LOW_SHARE * full,
            snapshot_every_s=0,
        )
        self.collections = 0
        self._count = 0

    def holds(self, block: int) -> bool:
        return self._store.find(ObjectPath(b"kv", b"%d" % block)) is not None

    def touch(self, block: int, at_ms: int) -> None:
        self._move_to(at_ms)
        self._store.find(ObjectPath(b"kv", b"%d" % block), touch=True)

    def write(self, block: int, at_ms: int) -> None:
        self._move_to(at_ms)
        if self._count >= self._capacity:
            self.collections += 1
            self._store.flush()
            report = collect(self._store, self._settings)
            self._count -= sum(report.outcome.removed.values())
        if self._count < self._capacity:
            self._store.put(ObjectPath(b"kv", b"%d" % block), block.to_bytes(8, "big"))
            self._count += 1

    def close(self) -> None:
        self._store.close()

    def _move_to(self, at_ms: int) -> None:
        behind_s = EPOCH_S + at_ms / 1000 - self._clock.now_ns() / 1e9
        if behind_s > 0:
            self._clock.advance(behind_s)


def bench_replay__real_store(context: Context) -> Iterator[Measurement]:
    """The start of both traces through Store and kvfs-gc's collection; the floor is LRU in memory.

    Each block is one sector. Minutes: let TMPDIR name a tmpfs.
    """
    for name in TRACES[1:] if context.quick else TRACES:
        trace = load_trace(name)
        trace = Trace(trace.name, trace.requests[: 400 if context.quick else REQUESTS])
        for share in (5, 20) if context.quick else SHARES:
            yield _replayed(context, trace, share)


def _replayed(context: Context, trace: Trace, share: int) -> Measurement:
    capacity = trace.unique_blocks * share // 100
    cache = StoreCache(context.directory / f"{trace.name}-{share}", capacity)
    ours = replay(trace, cache)
    cache.close()
    return Measurement(
        unit="ratio",
        samples=[ours],
        params={
            "trace": trace.name,
            "capacity_percent": share,
            "collections": cache.collections,
            "belady": round(belady(trace, capacity), 4),
            "lru_in_batches": round(replay(trace, LruInBatches(capacity)), 4),
        },
        floor=[replay(trace, Lru(capacity))],
        floor_name="lru",
    )
