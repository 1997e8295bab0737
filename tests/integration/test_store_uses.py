"""Hits and misses of all processes are one sum, written in batches, that no door depends on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs.clock import ManualClock, SystemClock
from kvfs.model import ChildName, ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.store.store import Store
from kvfs.store.use_counts import KEY, MARK_EVERY_S, MAX_MARKS, MAX_RECENT_MISSES, UseCounts

ROOT = Path(__file__).resolve().parents[2]
ASK_TWICE = """
import sys
from pathlib import Path
from kvfs.model import ObjectPath
from kvfs.open_store import open_store
with open_store(Path(sys.argv[1])) as store:
    for _ in range(2):
        store.find(ObjectPath(b"kv", b"there"), touch=True)
"""
THERE, ABSENT = ObjectPath(b"kv", b"there"), ObjectPath(b"kv", b"absent")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(SystemClock().now_ns())


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
    init_store(tmp_path / "s", capacity_bytes=1 << 24, clock=clock)
    with open_store(tmp_path / "s", clock=clock) as store:
        store.create_namespace(b"kv")
        store.put(THERE, b"x" * 5000)
        store.put(ObjectPath(b"kv", b"empty"), b"")
        yield store


def ask(store: Store, *, hits: int, misses: int) -> None:
    for path, times in ((THERE, hits), (ABSENT, misses)):
        for _ in range(times):
            store.find(path, touch=True)


def test_lookups_that_touch_count_and_others_do_not(store: Store) -> None:
    ask(store, hits=3, misses=2)
    for path in (THERE, ABSENT):
        store.find(path)
    store.find(ObjectPath(b"kv", b"empty"), touch=True)
    namespace = store.find_namespace(b"kv")
    assert namespace is not None
    assert store.find_child(1, b"kv", touch=True) is not None  # a directory
    store.get(THERE)
    usage = store.usage()
    assert (usage.hits_total, usage.misses_total) == (3, 2)
    assert (usage.opens_total, usage.opened_bytes_total) == (1, 5000)


def test_counts_of_processes_add_up_and_outlive_them(tmp_path: Path, store: Store) -> None:
    ask(store, hits=1, misses=1)
    subprocess.run(
        [sys.executable, "-c", ASK_TWICE, str(tmp_path / "s")], check=True, timeout=60, cwd=ROOT
    )
    store.flush()
    store.flush()
    usage = store.usage()
    assert (usage.hits_total, usage.misses_total) == (3, 1)


def test_a_miss_that_became_a_create_is_taken_back_once(store: Store) -> None:
    place = ChildName(1, b"new")
    for _ in range(2):
        store.find_child(place.parent, place.name, touch=True)
    store.flush()
    store.take_back_miss(place)
    store.take_back_miss(place)
    assert store.usage().misses_total == 1
    store.flush()
    store.find(ABSENT, touch=True)
    store.flush()
    assert store.usage().misses_total == 1 + 1
    assert store.usage().hits_total == 0


def test_a_window_has_what_was_asked_within_it(store: Store, clock: ManualClock) -> None:
    ask(store, hits=9, misses=1)
    store.flush()
    clock.advance(120)
    ask(store, hits=1, misses=3)
    store.flush()
    assert store.recent_uses(60) == UseCounts(hits=1, misses=3)
    assert store.recent_uses(60).hit_ratio == 0.25
    assert store.recent_uses(300) == UseCounts(hits=10, misses=4)
    clock.advance(400)
    assert store.recent_uses(60).hit_ratio is None


def test_the_row_is_bounded_whatever_the_clock_does(store: Store, clock: ManualClock) -> None:
    for step in range(MAX_MARKS + 20):
        ask(store, hits=1, misses=0)
        store.flush()
        clock.advance(MARK_EVERY_S if step != MAX_MARKS else -3600)
    with store.context.index.read() as txn:
        assert len(txn.get("meta", KEY) or b"") < 1700
    assert store.usage().hits_total == MAX_MARKS + 20
    assert store.recent_uses(10_000).hits <= MAX_MARKS + 20


def test_i8_misses_that_may_be_taken_back_are_bounded(store: Store) -> None:
    for number in range(MAX_RECENT_MISSES + 10):
        store.find_child(1, b"n%d" % number, touch=True)
    for number in range(MAX_RECENT_MISSES + 10):
        store.take_back_miss(ChildName(1, b"n%d" % number))
    assert store.usage().misses_total == 10


def test_a_garbled_row_counts_anew_and_fails_no_door(store: Store) -> None:
    store.context.commit(lambda txn: txn.put("meta", KEY, b"garbled"))
    ask(store, hits=1, misses=0)
    assert store.usage().hits_total == 1
    store.flush()
    assert store.usage().hits_total == 1
