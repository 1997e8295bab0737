"""Opens of compressed blocks, counted for the promotion: few, recent, and of all processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs.clock import ManualClock, SystemClock
from kvfs.model import ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.store.heat import KEY, MAX_HOT, WINDOW_S, Heat, Opens, read_heat
from kvfs.store.store import Store

PATH = ObjectPath(b"kv", b"block")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(SystemClock().now_ns())


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
    init_store(tmp_path / "s", capacity_bytes=1 << 24, clock=clock)
    with open_store(tmp_path / "s", clock=clock) as store:
        store.create_namespace(b"kv")
        yield store


def heat_of(store: Store) -> Opens:
    with store.context.index.read() as txn:
        return read_heat(txn, store.context.now_s())


def test_only_opens_of_compressed_blocks_count(store: Store) -> None:
    entry = store.put(PATH, b"kvfs" * 50_000)
    store.get(PATH)
    store.flush()
    assert heat_of(store) == {}
    store.compress(entry.digest)
    for _ in range(2):
        store.get(PATH)
    store.flush()
    store.get(PATH)
    store.flush()
    assert heat_of(store) == {entry.inode: (store.context.now_s(), 3)}


def test_counts_of_two_processes_add_up_and_end_with_the_window(
    store: Store, clock: ManualClock
) -> None:
    one, other = Heat(store.context), Heat(store.context)
    started_s = store.context.now_s()
    one.note(7)
    one.flush()
    clock.advance(WINDOW_S - 1)
    other.note(7)
    other.flush()
    other.flush()
    assert heat_of(store) == {7: (started_s, 2)}
    clock.advance(1)
    assert heat_of(store) == {}
    one.note(7)
    one.flush()
    assert heat_of(store) == {7: (store.context.now_s(), 1)}
    clock.advance(-3600)
    assert heat_of(store) == {}


def test_i8_the_hottest_stay_when_there_are_too_many(store: Store) -> None:
    for turn in range(3):
        heat = Heat(store.context)
        for inode in range(MAX_HOT + 10):
            heat.note(inode + 1000 * turn)
            if turn == 1:
                heat.note(inode + 1000)
        heat.flush()
    opens = heat_of(store)
    assert len(opens) == MAX_HOT
    assert {inode // 1000 for inode in opens} == {1}


def test_a_garbled_row_counts_anew(store: Store) -> None:
    store.context.commit(lambda txn: txn.put("meta", KEY, b"garbled"))
    assert heat_of(store) == {}
    heat = Heat(store.context)
    heat.note(5)
    heat.flush()
    assert list(heat_of(store)) == [5]
