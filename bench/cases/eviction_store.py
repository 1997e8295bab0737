"""Collection through the real store: expiry at scale beside writers, and a trace with real gc."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.report import Context, Measurement, percentile
from bench.trace_replay import Lru, Trace, load_trace, replay
from kvfs.clock import ManualClock, SystemClock
from kvfs.model import ObjectPath, PutOptions
from kvfs.open_store import init_store, open_store
from kvfs.policy.expiry import Rule, RuleSet
from kvfs.policy.settings import LifecycleSettings
from kvfs.store.store import Store
from kvfs_tools.gc import collect

ROOT = Path(__file__).resolve().parents[2]
SECTOR = 4096
EPOCH_S = 1_700_000_000


def bench_gc__expired_rows_beside_four_writers(context: Context) -> Iterator[Measurement]:
    """`kvfs-gc` removes expired objects while this process publishes with four threads.

    Seconds for 100,000 rows (files are unlinked behind that), time of a transaction, and the
    writers' put, whose floor is a put without a collection.
    """
    count = 2_000 if context.quick else 20_000
    root = context.directory / "s"
    init_store(root, capacity_bytes=64 << 30)
    with open_store(root) as store:
        store.create_namespace(b"kv")
        for number in range(count):
            options = PutOptions(ttl_s=1, is_sliding=False)
            store.put(ObjectPath(b"kv", b"old-%d" % number), b"%016d" % number, options)
        alone = _beside(store, "alone", lambda stop: stop.wait(5.0))
        documents: list[dict[str, Any]] = []
        beside = _beside(store, "beside", lambda _stop: documents.append(_collect(root)))
    document = documents[0]
    removed = document["removed"]["expired"]
    params = {"rows": removed, "transactions": document["transactions"]}
    for what in ("rows_removed_in_ns", "taken_ns"):
        scaled_s = document[what] / 1e9 * 100_000 / max(1, removed)
        yield Measurement("s", [scaled_s], params | {"for_rows": 100_000, "what": what})
    for share in ("median", "p99"):
        held_ms = document[f"lock_held_ns_{share}"] / 1e6
        yield Measurement("ms", [held_ms], params | {"of_transactions": share})
    yield Measurement("ms", beside, {"what": "put of 4 KiB"}, alone, "without a collection")
    yield Measurement(
        "ms", [percentile(beside, 0.99)], {"what": "p99 of a put of 4 KiB"},
        [percentile(alone, 0.99)], "without a collection",
    )  # fmt: skip


def _collect(root: Path) -> dict[str, Any]:
    """Run kvfs-gc; return what it printed, and how long it took."""
    clock = SystemClock()
    start_ns = clock.monotonic_ns()
    printed = subprocess.run(
        [sys.executable, "-m", "kvfs_tools.gc", "--store", str(root), "--json"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=False,
        env={"PYTHONPATH": f"{ROOT}:{ROOT}/tools:{ROOT}/gateway", "PATH": "/usr/bin:/bin"},
    ).stdout
    document: dict[str, Any] = json.loads(printed)
    return document | {"taken_ns": clock.monotonic_ns() - start_ns}


def _beside(store: Store, prefix: str, action: Callable[[threading.Event], object]) -> list[float]:
    """Return how long the puts of four threads took while `action` ran, in ms."""
    stop = threading.Event()
    taken: list[float] = []
    writers = [
        threading.Thread(target=lambda n=n: taken.extend(_puts_ms(store, f"{prefix}-{n}", stop)))
        for n in range(4)
    ]
    for writer in writers:
        writer.start()
    action(stop)
    stop.set()
    for writer in writers:
        writer.join()
    return taken


def _puts_ms(store: Store, prefix: str, stop: threading.Event) -> list[float]:
    clock = SystemClock()
    taken: list[float] = []
    while not stop.is_set():
        data = os.urandom(SECTOR)
        start_ns = clock.monotonic_ns()
        store.put(ObjectPath(b"kv", f"{prefix}-{len(taken)}".encode()), data)
        taken.append((clock.monotonic_ns() - start_ns) / 1e6)
    return taken


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
            low_ratio=0.99 * full,
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
    """The synthetic trace through Store and kvfs-gc's collection; the floor is LRU in memory."""
    trace = load_trace("synthetic")
    if context.quick:
        trace = Trace(trace.name, trace.requests[:400])
    for share in (5, 20):
        capacity = trace.unique_blocks * share // 100
        cache = StoreCache(context.directory / f"s{share}", capacity)
        ours = replay(trace, cache)
        cache.close()
        yield Measurement(
            unit="ratio",
            samples=[ours],
            params={
                "trace": trace.name,
                "capacity_percent": share,
                "collections": cache.collections,
            },
            floor=[replay(trace, Lru(capacity))],
            floor_name="lru",
        )
