"""The arithmetic of space: what is granted, spent, given back and taken from the dead (I4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kvfs.clock import ManualClock, SystemRandomness
from kvfs.errors import NoSpace
from kvfs.index.committer import Committer
from kvfs.index.lmdb_index import LmdbIndex, WriteTransaction
from kvfs.model import Durability
from kvfs.store.block_files import BlockFiles, sectors
from kvfs.store.context import StoreContext
from kvfs.store.space import MAX_ROUNDS, Space, available_bytes

CAPACITY = 1 << 20
STEP = 64 * 1024
"""The allowance of so small a store."""


@dataclass
class Eviction:
    """Frees what it is told to, and remembers what it was asked for."""

    context: StoreContext
    frees: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    evictable: int = 1 << 40

    def could_free(self, wanted: int) -> bool:
        return wanted <= self.evictable

    def __call__(self, wanted: int) -> int:
        self.asked.append(wanted)
        freed = self.frees.pop(0) if self.frees else 0

        def work(txn: WriteTransaction) -> None:
            txn.counters().resident -= freed

        self.context.commit(work)
        return freed


@pytest.fixture
def context(tmp_path: Path) -> Iterator[StoreContext]:
    BlockFiles.create_directories(tmp_path)
    index = LmdbIndex(tmp_path / "index", durability=Durability.CACHE)
    randomness = SystemRandomness()
    files = BlockFiles(tmp_path, randomness)
    yield StoreContext(
        tmp_path, index, Committer(index), files, ManualClock(), randomness, Durability.CACHE,
        CAPACITY, False,
    )  # fmt: skip
    index.close()
    files.close()


@pytest.fixture
def eviction(context: StoreContext) -> Eviction:
    return Eviction(context)


@pytest.fixture
def space(context: StoreContext, eviction: Eviction) -> Iterator[Space]:
    made = Space(context, eviction, eviction.could_free)
    yield made
    made.close()


def granted(context: StoreContext) -> int:
    with context.index.read() as txn:
        return txn.counters().granted


def resident(context: StoreContext) -> int:
    with context.index.read() as txn:
        return txn.counters().resident


def charge(context: StoreContext, space: Space, length: int) -> None:
    context.commit(lambda txn: space.charge(txn, length))


@pytest.mark.parametrize(
    ("length", "charged"), [(0, 0), (1, 4096), (4096, 4096), (4097, 8192), (10**12, 10**12)]
)
def test_a_length_is_charged_in_whole_sectors(length: int, charged: int) -> None:
    assert sectors(length) == charged


def test_a_reservation_draws_a_step_ahead_and_the_next_come_from_memory(
    context: StoreContext, space: Space
) -> None:
    space.reserve(4096)
    assert granted(context) == 4096 + STEP
    for _ in range(STEP // 4096):
        space.reserve(4096)
    assert granted(context) == 4096 + STEP
    space.reserve(4096)
    assert granted(context) == 2 * (4096 + STEP)


def test_what_is_released_is_handed_out_again(context: StoreContext, space: Space) -> None:
    space.reserve(100_000)
    before = granted(context)
    space.release(100_000)
    space.reserve(100_000)
    assert granted(context) == before


def test_i4_a_charge_moves_bytes_from_granted_to_resident(
    context: StoreContext, space: Space
) -> None:
    space.reserve(8192)
    before = granted(context)
    charge(context, space, 8192)
    assert (granted(context), resident(context)) == (before - 8192, 8192)


def test_i4_the_last_bytes_are_granted_exactly(context: StoreContext, space: Space) -> None:
    space.reserve(CAPACITY - 4096)
    assert granted(context) == CAPACITY - 4096
    space.reserve(4096)
    assert granted(context) == CAPACITY
    with pytest.raises(NoSpace) as caught:
        space.reserve(1)
    assert caught.value.wanted_bytes == 1
    with context.index.read() as txn:
        assert available_bytes(txn, CAPACITY) == 0


def test_a_short_store_evicts_what_is_missing_and_then_grants(
    context: StoreContext, space: Space, eviction: Eviction
) -> None:
    space.reserve(CAPACITY)
    charge(context, space, CAPACITY)
    eviction.frees = [4096, 8192]
    space.reserve(8192)
    assert eviction.asked == [8192, 4096]
    assert granted(context) == 8192


def test_i8_a_writer_gives_up_after_a_bounded_number_of_rounds(
    context: StoreContext, space: Space, eviction: Eviction
) -> None:
    space.reserve(CAPACITY)
    charge(context, space, CAPACITY)
    eviction.frees = [1] * (MAX_ROUNDS * 2)
    with pytest.raises(NoSpace, match="full"):
        space.reserve(CAPACITY)
    assert len(eviction.asked) == MAX_ROUNDS


def test_a_failed_reservation_returns_what_it_took(context: StoreContext, space: Space) -> None:
    space.reserve(CAPACITY - 8192)
    charge(context, space, CAPACITY - 8192)
    space.reserve(4096)
    space.release(4096)
    with pytest.raises(NoSpace):
        space.reserve(12_288)
    space.reserve(8192)
    assert granted(context) == 8192


def test_more_than_the_capacity_is_refused_without_evicting_anything(
    space: Space, eviction: Eviction
) -> None:
    with pytest.raises(NoSpace, match="raise `capacity`"):
        space.reserve(CAPACITY + 1)
    assert eviction.asked == []


def test_what_can_never_fit_is_refused_without_evicting_anything(
    context: StoreContext, space: Space, eviction: Eviction
) -> None:
    space.reserve(CAPACITY)
    charge(context, space, CAPACITY)
    eviction.evictable = 8192
    with pytest.raises(NoSpace, match="full"):
        space.reserve(12_288)
    assert eviction.asked == []
    eviction.frees = [8192]
    space.reserve(8192)
    assert eviction.asked == [8192]


def test_trimming_keeps_one_step_and_returns_the_rest(context: StoreContext, space: Space) -> None:
    space.reserve(500_000)
    space.release(500_000)
    space.trim()
    assert granted(context) == STEP
    space.reserve(STEP)
    assert granted(context) == STEP


def test_closing_returns_everything_and_removes_the_lease(
    context: StoreContext, eviction: Eviction
) -> None:
    space = Space(context, eviction, eviction.could_free)
    space.reserve(4096)
    assert len(list((context.root / "leases").iterdir())) == 1
    space.close()
    space.close()
    assert granted(context) == 0
    assert list((context.root / "leases").iterdir()) == []


def test_i4_only_the_grants_of_the_dead_are_taken_back(
    context: StoreContext, space: Space, eviction: Eviction
) -> None:
    living = Space(context, eviction, eviction.could_free)
    living.reserve(4096)
    orphan = b"\1" * 8  # a process that died: a row, and a lease file that nobody locks
    lease = context.root / "leases" / orphan.hex()
    lease.touch()

    def leave_a_grant(txn: WriteTransaction) -> None:
        txn.put_count("meta", b"g" + orphan, 300_000)
        txn.counters().granted += 300_000

    context.commit(leave_a_grant)
    assert space.reclaim_dead() == 300_000
    assert not lease.exists()
    assert granted(context) == 4096 + STEP
    living.close()


def test_a_writer_in_need_takes_the_grants_of_the_dead_first(
    context: StoreContext, space: Space, eviction: Eviction
) -> None:
    def leave_a_grant(txn: WriteTransaction) -> None:
        txn.put_count("meta", b"g" + b"\2" * 8, CAPACITY)
        txn.counters().granted += CAPACITY

    context.commit(leave_a_grant)
    space.reserve(4096)
    assert granted(context) == 4096 + STEP
    assert eviction.asked == [], "nothing living had to go"
