"""A store without cron: what a daemon and a writer at a full store do by themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs.clock import ManualClock
from kvfs.errors import NoSpace
from kvfs.index.lmdb_index import WriteTransaction
from kvfs.model import Codec, ObjectPath, Pin, PutOptions
from kvfs.open_store import init_store, open_store
from kvfs.store.block_files import sectors
from kvfs.store.lifecycle import Lifecycle, only_one
from kvfs.store.store import Store

SIZE = 64 * 1024
CAPACITY = 100 * SIZE
HASH = "%032x"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
    init_store(tmp_path / "store", capacity_bytes=CAPACITY, clock=clock)
    with open_store(tmp_path / "store", clock=clock) as opened:
        opened.create_namespace(b"kv")
        yield opened


def configure(store: Store, text: str) -> None:
    (store.path / "lifecycle.toml").write_text(text)


def daemon(store: Store) -> Lifecycle:
    """What a daemon's thread runs, without the thread."""
    return Lifecycle(store.context, store._access, store._recoder, store._scrubber)


def put_block(store: Store, block: int, ranks: int = 4, options: PutOptions | None = None) -> None:
    for rank in range(ranks):
        key = f"org/model@{ranks}@{rank}@{HASH % block}@bfloat16.data".encode()
        store.put(ObjectPath(b"kv", key), os.urandom(SIZE), options)


def blocks_left(store: Store) -> dict[bytes, int]:
    """Return how many shares each block has."""
    left: dict[bytes, int] = {}
    for entry in store.list_objects(b"kv").objects:
        block = entry.key.split(b"@")[3]
        left[block] = left.get(block, 0) + 1
    return left


def test_a_daemon_brings_a_full_store_down_to_its_low_watermark_in_whole_blocks(
    store: Store, clock: ManualClock
) -> None:
    configure(store, "high_watermark = 0.5\nlow_watermark = 0.4\n")
    for block in range(15):
        put_block(store, block)
        clock.advance(2)
    clock.advance(10)
    outcome = daemon(store).step()
    assert outcome is not None
    assert sum(outcome.removed.values()) % 4 == 0
    assert store.usage().resident_bytes + store.usage().reserved_bytes <= 0.4 * CAPACITY
    assert set(blocks_left(store).values()) == {4}
    assert min(blocks_left(store)) == b"%032x" % (15 - len(blocks_left(store)))


def test_a_daemon_does_nothing_while_there_is_room_until_its_plan_is_due(
    store: Store, clock: ManualClock
) -> None:
    configure(store, '[[rule]]\nclass = "session"\n')
    put_block(store, 1)
    steps = daemon(store)
    assert steps.step() is None
    clock.advance(1900)
    outcome = steps.step()
    assert outcome is not None
    assert sum(outcome.removed.values()) == 4, "half an hour unread, as the rule says"
    assert steps.step() is None


def test_a_machines_daemons_plan_once_together(store: Store, clock: ManualClock) -> None:
    first, second = daemon(store), daemon(store)
    clock.advance(1000)
    assert first.step() is not None
    assert second.step() is None
    clock.advance(1000)
    assert second.step() is not None
    assert first.step() is None


def test_a_daemon_keeps_a_namespace_within_its_quota(store: Store, clock: ManualClock) -> None:
    for block in range(8):
        put_block(store, block)
        clock.advance(2)
    namespace = store.find_namespace(b"kv")
    assert namespace is not None

    def limit(txn: WriteTransaction) -> None:
        row = txn.namespace(namespace.namespace_id)
        assert row is not None
        row.quota_objects = 16
        txn.put_namespace(namespace.namespace_id, row)

    store.context.commit(limit)
    clock.advance(10)
    assert daemon(store).step() is not None
    assert set(blocks_left(store).values()) == {4}
    assert len(blocks_left(store)) <= 4


def test_i5_what_a_head_just_promised_survives_daemon_and_writer(
    store: Store, clock: ManualClock
) -> None:
    configure(store, "high_watermark = 0.02\nlow_watermark = 0.01\n")
    for block in range(5):
        put_block(store, block)
    clock.advance(100)
    promised = f"org/model@4@2@{HASH % 0}@bfloat16.data".encode()
    assert store.find(ObjectPath(b"kv", promised), touch=True) is not None
    store.evict(CAPACITY)
    assert blocks_left(store) == {b"%032x" % 0: 4}
    daemon(store).step()
    assert blocks_left(store) == {b"%032x" % 0: 4}
    clock.advance(6)
    daemon(store).step()
    assert blocks_left(store) == {}


def test_a_writer_at_a_full_store_evicts_whole_blocks(store: Store, clock: ManualClock) -> None:
    for block in range(60):
        put_block(store, block)
        clock.advance(1)
        usage = store.usage()
        assert usage.resident_bytes + usage.reserved_bytes <= CAPACITY
    left = blocks_left(store)
    partial = [block for block, shares in left.items() if shares != 4]
    assert not partial
    assert max(left) == b"%032x" % 59


def test_a_write_fails_rather_than_take_what_is_pinned_or_promised(
    store: Store, clock: ManualClock
) -> None:
    for block in range(20):
        put_block(store, block)
    clock.advance(100)
    for entry in store.list_objects(b"kv").objects:
        store.find(ObjectPath(b"kv", entry.key), touch=True)
    large = os.urandom(30 * SIZE)
    with pytest.raises(NoSpace):
        store.put(ObjectPath(b"kv", b"large"), large)
    clock.advance(6)
    store.put(ObjectPath(b"kv", b"large"), large)


def test_a_write_that_can_never_fit_evicts_nothing(store: Store, clock: ManualClock) -> None:
    pinned, shared = os.urandom(CAPACITY // 2), os.urandom(SIZE)
    store.put(ObjectPath(b"kv", b"pinned"), pinned, PutOptions(pin=Pin.HARD))
    for number in range(3):
        store.put(ObjectPath(b"kv", b"shared-%d" % number), shared)
    for block in range(5):
        put_block(store, block)
    clock.advance(100)
    before = [entry.key for entry in store.list_objects(b"kv").objects]
    largest = CAPACITY - sectors(len(pinned))
    with pytest.raises(NoSpace):
        store.put(ObjectPath(b"kv", b"large"), os.urandom(largest + 1))
    assert [entry.key for entry in store.list_objects(b"kv").objects] == before
    store.put(ObjectPath(b"kv", b"large"), os.urandom(largest))
    assert [entry.key for entry in store.list_objects(b"kv").objects] == [b"large", b"pinned"]


def test_only_one_process_of_the_machine_collects(store: Store, clock: ManualClock) -> None:
    configure(store, "high_watermark = 0.05\nlow_watermark = 0.01\n")
    for block in range(5):
        put_block(store, block)
    clock.advance(100)
    steps = daemon(store)
    with only_one(store.path) as is_first:
        assert is_first
        assert steps.step() is None
    clock.advance(6)
    assert steps.step() is not None


def test_a_stopping_daemon_gives_up_its_plan(store: Store, clock: ManualClock) -> None:
    configure(store, "high_watermark = 0.05\nlow_watermark = 0.01\n")
    for block in range(5):
        put_block(store, block)
    clock.advance(100)
    steps = daemon(store)
    steps.stop()
    assert steps.step() is None
    assert len(blocks_left(store)) == 5


@pytest.mark.expects_warnings
def test_a_bad_lifecycle_file_leaves_what_held_before(store: Store, clock: ManualClock) -> None:
    steps = daemon(store)
    configure(store, "hihg_watermark = 0.05\n")
    for block in range(5):
        put_block(store, block)
    clock.advance(100)
    assert steps.step() is None
    assert len(blocks_left(store)) == 5


@pytest.mark.parametrize("is_configured", [False, True])
def test_a_daemon_compresses_and_scrubs_only_when_configured(
    store: Store, clock: ManualClock, is_configured: bool
) -> None:
    more = "daemon_recode_seconds = 60\ndaemon_scrub = true\nscrub_pass_seconds = 60\n"
    configure(store, "daemon_plan_seconds = 60\n" + (more if is_configured else ""))
    path = ObjectPath(b"kv", b"cold")
    store.put(path, b"kvfs" * 50_000)
    steps = daemon(store)
    steps.step()
    clock.advance(2 * 3600)
    assert steps.step() is not None
    clock.advance(60)
    steps.step()
    with store.open_read(path) as view:
        assert view.codec is (Codec.FRAMED if is_configured else Codec.RAW)
    assert (store.path / "gc.last").exists() is is_configured


def test_a_store_with_its_background_threads_closes_at_once(tmp_path: Path) -> None:
    init_store(tmp_path / "s", capacity_bytes=CAPACITY)
    with open_store(tmp_path / "s", background=True) as store:
        store.create_namespace(b"kv")
        put_block(store, 1)
