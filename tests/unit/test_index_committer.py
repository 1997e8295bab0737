"""Group commit: who shares a transaction with whom, and what one's failure means to the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from kvfs.errors import Closed, NotFound, Unavailable
from kvfs.index.committer import MAX_BATCH, Committer
from kvfs.index.lmdb_index import LmdbIndex, WriteTransaction
from kvfs.model import Durability

Operation = Callable[[WriteTransaction], int]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[LmdbIndex]:
    opened = LmdbIndex(tmp_path, durability=Durability.CACHE)
    yield opened
    opened.close()


@pytest.fixture
def committer(index: LmdbIndex) -> Committer:
    return Committer(index)


def put(key: bytes) -> Operation:
    def operation(txn: WriteTransaction) -> int:
        txn.put("meta", key, b"1")
        return txn.count("meta")

    return operation


def fail(key: bytes, error: BaseException, *, after_change: bool) -> Operation:
    def operation(txn: WriteTransaction) -> int:
        if after_change:
            txn.put("meta", key, b"1")
            txn.counters().resident += 1
        raise error

    return operation


def keys(index: LmdbIndex) -> set[bytes]:
    with index.read() as txn:
        return set(txn.keys("meta", b"k"))


def in_one_batch(committer: Committer, operations: list[Operation]) -> list[Future[int]]:
    """Commit `operations` from a thread each, all queued while one commit is under way."""
    entered, release = threading.Event(), threading.Event()

    def hold(_: WriteTransaction) -> None:
        entered.set()
        assert release.wait(30)

    with ThreadPoolExecutor(len(operations) + 1) as pool:
        first = pool.submit(committer.commit, hold)
        assert entered.wait(30)
        started = [threading.Event() for _ in operations]

        def run(operation: Operation, event: threading.Event) -> int:
            event.set()
            return committer.commit(operation)

        futures = [
            pool.submit(run, operation, event)
            for operation, event in zip(operations, started, strict=True)
        ]
        for event in started:
            assert event.wait(30)
        release.set()
        first.result(30)
    return futures


def test_an_operation_gives_its_result_once_committed(
    committer: Committer, index: LmdbIndex
) -> None:
    assert committer.commit(put(b"k1")) == 1
    assert keys(index) == {b"k1"}


@pytest.mark.parametrize("after_change", [False, True])
def test_a_failing_operation_leaves_nothing_and_its_neighbours_are_committed(
    committer: Committer, index: LmdbIndex, after_change: bool
) -> None:
    error = NotFound("it is not there")
    operations = [
        put(b"k1"),
        fail(b"kx", error, after_change=after_change),
        put(b"k2"),
        fail(b"ky", error, after_change=after_change),
        put(b"k3"),
    ]
    futures = in_one_batch(committer, operations)
    assert keys(index) == {b"k1", b"k2", b"k3"}
    assert [future.exception() is error for future in futures] == [False, True, False, True, False]
    with index.read() as txn:
        assert txn.counters().resident == 0


def test_an_error_that_is_no_decision_harms_no_neighbour_either(
    committer: Committer, index: LmdbIndex
) -> None:
    broken = AssertionError("a broken invariant")
    futures = in_one_batch(
        committer, [put(b"k1"), fail(b"kx", broken, after_change=True), put(b"k2")]
    )
    assert keys(index) == {b"k1", b"k2"}
    assert futures[1].exception() is broken


def test_a_lone_failing_operation_raises_what_it_raised(
    committer: Committer, index: LmdbIndex
) -> None:
    with pytest.raises(NotFound, match="not there"):
        committer.commit(fail(b"kx", NotFound("not there"), after_change=True))
    with pytest.raises(KeyboardInterrupt):
        committer.commit(fail(b"kx", KeyboardInterrupt(), after_change=True))
    assert keys(index) == set()
    committer.commit(put(b"k1"))
    assert keys(index) == {b"k1"}


def test_i8_a_batch_is_bounded_and_nobody_is_forgotten(
    committer: Committer, index: LmdbIndex
) -> None:
    count = MAX_BATCH + 5
    futures = in_one_batch(committer, [put(b"k%d" % number) for number in range(count)])
    assert all(future.exception() is None for future in futures)
    assert len(keys(index)) == count


def test_many_threads_lose_no_change(committer: Committer, index: LmdbIndex) -> None:
    def add(txn: WriteTransaction) -> int:
        txn.counters().resident += 1
        return txn.counters().resident

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: committer.commit(add), range(400)))
    assert sorted(results) == list(range(1, 401)), "each saw the changes of those before it"


def test_a_closed_index_says_so(tmp_path: Path) -> None:
    index = LmdbIndex(tmp_path, durability=Durability.CACHE)
    committer = Committer(index)
    index.close()
    with pytest.raises(Closed):
        committer.commit(put(b"k1"))
    with pytest.raises(Closed):
        index.read()


def test_an_index_opened_twice_in_one_process_is_refused(index: LmdbIndex, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="already open"):
        LmdbIndex(tmp_path, durability=Durability.CACHE)
