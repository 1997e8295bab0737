"""Expiry at scale: `kvfs-gc` removes 100,000 objects while four writers publish.

Owns the one run that says what a collection costs writers: they write before, beside and after it,
so that what the machine does meanwhile is in both numbers.
"""

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
from kvfs.clock import SystemClock
from kvfs.model import ObjectPath, PutOptions
from kvfs.open_store import init_store, open_store
from kvfs.store.store import Store

ROOT = Path(__file__).resolve().parents[2]
SECTOR = 4096
WRITERS = 4
ROWS = 100_000
ALONE_S = 5.0
EXPIRY_GRACE_S = 2.0
"""The last of the objects lives for a second and is believed for a little longer."""


def bench_gc__expired_rows_beside_four_writers(context: Context) -> Iterator[Measurement]:
    """Seconds until the rows are gone and until the run ends (files are unlinked behind the rows),
    the time of a transaction, and the writers' put, whose floor is a put without a collection."""
    count = ROWS // 50 if context.quick else ROWS
    alone_s = ALONE_S / 5 if context.quick else ALONE_S
    root = context.directory / "s"
    init_store(root, capacity_bytes=64 << 30)
    with open_store(root) as store:
        store.create_namespace(b"kv")
        _in_threads(lambda number: _load(store, range(number, count, WRITERS)))
        threading.Event().wait(EXPIRY_GRACE_S)
        alone = _beside(store, "before", lambda stop: stop.wait(alone_s))
        documents: list[dict[str, Any]] = []
        beside = _beside(store, "beside", lambda _stop: documents.append(_collect(root)))
        alone += _beside(store, "after", lambda stop: stop.wait(alone_s))
    document = documents[0]
    params = {"rows": document["removed"]["expired"], "transactions": document["transactions"]}
    for what in ("rows_removed_in_ns", "taken_ns"):
        yield Measurement("s", [document[what] / 1e9], params | {"what": what.removesuffix("_ns")})
    for share in ("median", "p99"):
        held_ms = document[f"lock_held_ns_{share}"] / 1e6
        yield Measurement("ms", [held_ms], params | {"lock_held": share})
    yield Measurement("ms", beside, {"what": "put of 4 KiB"}, alone, "without a collection")
    yield Measurement(
        "ms", [percentile(beside, 0.99)], {"what": "p99 of a put of 4 KiB"},
        [percentile(alone, 0.99)], "without a collection",
    )  # fmt: skip


def _load(store: Store, numbers: range) -> None:
    for number in numbers:
        options = PutOptions(ttl_s=1, is_sliding=False)
        store.put(ObjectPath(b"kv", b"old-%d" % number), b"%016d" % number, options)


def _collect(root: Path) -> dict[str, Any]:
    """Run kvfs-gc; return what it printed, and how long it took."""
    clock = SystemClock()
    start_ns = clock.monotonic_ns()
    printed = subprocess.run(
        [sys.executable, "-m", "kvfs_tools.gc", "--store", str(root), "--json"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=1800,
        check=False,
        env={"PYTHONPATH": f"{ROOT}:{ROOT}/tools:{ROOT}/gateway", "PATH": "/usr/bin:/bin"},
    ).stdout
    document: dict[str, Any] = json.loads(printed)
    return document | {"taken_ns": clock.monotonic_ns() - start_ns}


def _beside(store: Store, prefix: str, action: Callable[[threading.Event], object]) -> list[float]:
    """Return how long the puts of four threads took while `action` ran, in ms."""
    stop = threading.Event()
    taken: list[float] = []

    def run(number: int) -> None:
        if number == WRITERS:
            action(stop)
            stop.set()
        else:
            taken.extend(_puts_ms(store, f"{prefix}-{number}", stop))

    _in_threads(run, WRITERS + 1)
    return taken


def _in_threads(run: Callable[[int], None], count: int = WRITERS) -> None:
    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _puts_ms(store: Store, prefix: str, stop: threading.Event) -> list[float]:
    clock = SystemClock()
    taken: list[float] = []
    while not stop.is_set():
        data = os.urandom(SECTOR)
        start_ns = clock.monotonic_ns()
        store.put(ObjectPath(b"kv", f"{prefix}-{len(taken)}".encode()), data)
        taken.append((clock.monotonic_ns() - start_ns) / 1e6)
    return taken
