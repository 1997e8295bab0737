"""Several processes and threads on one store at once: space, names and bytes stay whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvfs.clock import ManualClock
from kvfs.errors import NoSpace, NotFound
from kvfs.model import ObjectPath, Pin, PutOptions, StoreUsage
from kvfs.open_store import init_store, open_store
from kvfs.store.store import Store
from tests.property.row_rules import broken_rules
from tests.property.store_worker import Worker

CAPACITY = 4 << 20
OBJECT = 200_000
PREFIX = ObjectPath(b"bucket", b"k")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "store"
    init_store(made, capacity_bytes=CAPACITY)
    return made


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    with open_store(root, clock=ManualClock()) as opened:
        opened.create_namespace(b"bucket")
        yield opened


@pytest.fixture
def workers(root: Path, store: Store) -> Iterator[list[Worker]]:
    processes = [Worker(), Worker()]
    for process in processes:
        process.call("open", root, ManualClock().now_ns())
    yield processes
    for process in processes:
        process.stop()


class Sampler:
    """A thread that looks at the usage all the time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.count = 0
        self.worst = 0

    def _run(self) -> None:
        while not self._stop.is_set():
            self.worst = max(self.worst, taken(self._store.usage()))
            self.count += 1

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def taken(usage: StoreUsage) -> int:
    return usage.resident_bytes + usage.reserved_bytes


def put_many(store: Store, seed: int) -> int:
    fitted = 0
    for number in range(25):
        try:
            data = bytes([seed, number]) * (OBJECT // 2)
            store.put(ObjectPath(b"bucket", b"k%d-%d" % (seed, number)), data)
            fitted += 1
        except NoSpace:
            continue
    return fitted


def test_i4_capacity_holds_under_concurrent_puts(
    root: Path, store: Store, workers: list[Worker]
) -> None:
    with Sampler(store) as sampler, ThreadPoolExecutor(2) as pool:
        for seed, worker in enumerate(workers):
            worker.start("put_many", PREFIX, 25, OBJECT, 100 + seed)
        here = [pool.submit(put_many, store, seed) for seed in (1, 2)]
        fitted = sum(future.result(60) for future in here)
        fitted += sum(worker.finish() for worker in workers)
    assert sampler.count > 10
    assert 0 < sampler.worst <= CAPACITY
    assert fitted * OBJECT > 2 * CAPACITY, "the store was filled over and over"
    keys = [item.key for item in store.list_objects(b"bucket").objects]
    assert keys
    for key in keys:
        seed, number = map(int, key[1:].split(b"-"))
        assert store.get(ObjectPath(b"bucket", key)) == bytes([seed, number]) * (OBJECT // 2)
    for worker in workers:
        worker.call("close")
    store.close()
    assert broken_rules(root) == []


def test_i4_what_a_killed_process_had_reserved_is_taken_back(
    store: Store, workers: list[Worker]
) -> None:
    for worker in workers:
        worker.call("put", ObjectPath(b"bucket", b"from a worker"), b"x" * OBJECT)
    before = store.usage()
    assert before.reserved_bytes > 0
    workers[0].kill()
    workers[1].kill()
    with store.stage(size_bytes=CAPACITY - before.resident_bytes):
        assert taken(store.usage()) == CAPACITY
    assert store.get(ObjectPath(b"bucket", b"from a worker")) == b"x" * OBJECT


def test_i5_a_store_full_of_pinned_objects_refuses_and_keeps_them(
    store: Store, workers: list[Worker]
) -> None:
    pinned = PutOptions(pin=Pin.HARD)
    for number in range(20):
        data = bytes([number]) * OBJECT
        store.put(ObjectPath(b"bucket", b"pinned-%d" % number), data, pinned)
    with pytest.raises(NoSpace):
        workers[0].call("put", PREFIX, b"z" * OBJECT)
    assert workers[1].call("put_many", PREFIX, 3, OBJECT, 5) == 0
    for number in range(20):
        path = ObjectPath(b"bucket", b"pinned-%d" % number)
        assert workers[0].call("get", path) == bytes([number]) * OBJECT


def test_i1_writers_of_one_key_never_leave_mixed_bytes(store: Store, workers: list[Worker]) -> None:
    lengths = [1, 5000, 70_000, 0]
    store.put(PREFIX, b"\1" * 100)
    seen: set[int] = set()
    for value, worker in enumerate(workers):
        worker.start("put_often", PREFIX, 40, lengths, 10 + value)
    for number in range(40):
        store.put(PREFIX, bytes([9]) * lengths[number % 4])
        with store.open_read(PREFIX) as view:
            data = view.read_all()
            assert len(data) == view.size
            assert len(set(data)) <= 1, "two writers' bytes in one object"
            seen |= set(data)
    for worker in workers:
        worker.finish()
    assert seen <= {9, 10, 11}
    assert store.usage().object_count == 1


def test_equal_bytes_put_by_several_processes_are_one_block(
    store: Store, workers: list[Worker]
) -> None:
    for worker in workers:
        worker.start("put_many", PREFIX, 10, OBJECT, 7)
    for worker in workers:
        assert worker.finish() == 10
    usage = store.usage()
    assert (usage.object_count, usage.block_count) == (10, 10)


def test_what_one_process_deletes_the_other_misses_at_once(
    store: Store, workers: list[Worker]
) -> None:
    workers[0].call("put", PREFIX, b"x" * OBJECT)
    with store.open_read(PREFIX) as view:
        workers[1].call("delete", PREFIX)
        workers[1].call("empty_trash")
        assert store.find(PREFIX) is None
        with pytest.raises(NotFound):
            workers[0].call("get", PREFIX)
        assert view.read_all() == b"x" * OBJECT
    report = store.sweep()
    assert (report.orphan_files, report.staging_files) == (0, 0)
