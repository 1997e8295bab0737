"""Rules hold for what was there before them: the walk, on a clock that tests move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio.testing

from kvfs.clock import ManualClock, SystemRandomness
from kvfs.config import Credential
from kvfs.model import (
    RULED_TTL_CLASS,
    AttributeChange,
    ChildName,
    Entry,
    Namespace,
    ObjectPath,
    PutOptions,
)
from kvfs.open_store import init_store, open_store
from kvfs.store.store import Store
from kvfs_gateway.server.lifetime_walk import (
    NOTE_PREFIX,
    PROMPT_PAGES,
    SETTLE_S,
    WALK_EVERY_S,
    LifetimeWalk,
    changed_document,
    walk_promptly,
)
from kvfs_gateway.server.lifetimes import PAGE, revise_page
from kvfs_gateway.server.service import Service

DAY_S = 86_400


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock: ManualClock, tmp_path: Path) -> Iterator[Store]:
    init_store(tmp_path / "store", capacity_bytes=1 << 30, clock=clock)
    with open_store(tmp_path / "store", clock=clock) as opened:
        opened.create_namespace(b"bucket")
        yield opened


@pytest.fixture
def service(store: Store, clock: ManualClock) -> Service:
    return Service(store, clock, SystemRandomness(), Credential("key", "secret"))


@pytest.fixture
def walk(service: Service) -> LifetimeWalk:
    return LifetimeWalk(service)


def bucket(store: Store) -> Namespace:
    namespace = store.find_namespace(b"bucket")
    assert namespace is not None
    return namespace


def rules(days: int, chosen: str = "") -> bytes:
    return (
        f"<LifecycleConfiguration><Rule><ID>r</ID><Status>Enabled</Status><Filter>{chosen}</Filter>"
        f"<Expiration><Days>{days}</Days></Expiration></Rule></LifecycleConfiguration>"
    ).encode()


def set_rules(store: Store, clock: ManualClock, text: bytes) -> None:
    inode = bucket(store).inode
    entry = store.stat_inode(inode)
    assert entry is not None
    store.set_attributes(inode, changed_document(entry, text, clock.now_ns()))


def notes(store: Store) -> list[str]:
    entry = store.stat_inode(bucket(store).inode)
    assert entry is not None
    return [name for name in entry.attributes if name.startswith(NOTE_PREFIX)]


def put(store: Store, key: str, **options: object) -> Entry:
    return store.put(ObjectPath(b"bucket", key.encode()), b"x", PutOptions(**options))  # type: ignore[arg-type]


def find(store: Store, key: str) -> Entry | None:
    return store.find(ObjectPath(b"bucket", key.encode()))


def end_of(store: Store, key: str) -> int:
    entry = find(store, key)
    assert entry is not None
    return entry.expires_at_s


async def test_objects_from_before_a_rule_end_by_it(
    store: Store, clock: ManualClock, walk: LifetimeWalk
) -> None:
    for key in ("tmp/a", "tmp/b/c", "keep/a"):
        put(store, key)
    clock.advance(3600)
    set_rules(store, clock, rules(1, "<Prefix>tmp/</Prefix>"))
    await walk.step()
    entry = find(store, "tmp/a")
    assert entry is not None
    assert entry.expires_at_s % DAY_S == 0
    written_s = entry.mtime_ns // 1_000_000_000
    assert DAY_S <= entry.expires_at_s - written_s < 2 * DAY_S, "counted from its writing"
    assert end_of(store, "keep/a") == 0
    clock.advance(entry.expires_at_s - clock.now_ns() // 1_000_000_000 - 1)
    assert find(store, "tmp/a") is not None
    clock.advance(1)
    assert find(store, "tmp/a") is None
    assert find(store, "tmp/b/c") is None
    assert find(store, "keep/a") is not None


async def test_what_is_past_its_days_already_goes_at_once(
    store: Store, clock: ManualClock, walk: LifetimeWalk
) -> None:
    put(store, "old")
    clock.advance(10 * DAY_S)
    put(store, "new")
    set_rules(store, clock, rules(3))
    await walk.step()
    clock.advance(2)
    assert find(store, "old") is None
    assert find(store, "new") is not None


async def test_tags_choose_among_the_objects_from_before(
    store: Store, clock: ManualClock, walk: LifetimeWalk
) -> None:
    put(store, "chat", attributes={"user.s3.tag.class": b"chat"})
    put(store, "prompt", attributes={"user.s3.tag.class": b"prompt"})
    tag = "<Tag><Key>class</Key><Value>chat</Value></Tag>"
    set_rules(store, clock, rules(1, tag))
    await walk.step()
    assert end_of(store, "chat") > 0
    assert end_of(store, "prompt") == 0


async def test_other_rules_move_the_end_and_none_takes_it_away(
    store: Store, clock: ManualClock, walk: LifetimeWalk
) -> None:
    put(store, "k")
    set_rules(store, clock, rules(1))
    await walk.step()
    soon_s = end_of(store, "k")
    set_rules(store, clock, rules(8))
    await walk.step()
    assert end_of(store, "k") == soon_s + 7 * DAY_S
    set_rules(store, clock, b"")
    await walk.step()
    entry = find(store, "k")
    assert entry is not None
    assert (entry.expires_at_s, entry.ttl_s, entry.ttl_class) == (0, 0, 0)


async def test_a_lifetime_of_an_objects_own_stays(
    store: Store, clock: ManualClock, walk: LifetimeWalk
) -> None:
    own = put(store, "own", ttl_s=90 * DAY_S)
    ruled = put(store, "ruled")
    set_rules(store, clock, rules(1))
    await walk.step()
    assert end_of(store, "own") == own.expires_at_s
    store.set_attributes(ruled.inode, AttributeChange(ttl_s=5 * DAY_S))
    entry = find(store, "ruled")
    assert entry is not None
    assert entry.ttl_class == 0, "it is its owner's now"
    set_rules(store, clock, b"")
    await walk.step()
    assert end_of(store, "ruled") == entry.expires_at_s


async def test_a_file_with_two_names_is_left_alone(
    store: Store, clock: ManualClock, walk: LifetimeWalk
) -> None:
    linked = put(store, "tmp/a")
    store.link(linked.inode, ChildName(bucket(store).inode, b"kept"))
    set_rules(store, clock, rules(1, "<Prefix>tmp/</Prefix>"))
    await walk.step()
    assert end_of(store, "tmp/a") == 0


async def test_a_file_that_stays_mutable_is_left_alone(
    store: Store, clock: ManualClock, walk: LifetimeWalk
) -> None:
    with store.stage(size_bytes=10) as staging:
        staging.write(bytes(10))
        store.keep_mutable(staging, ObjectPath(b"bucket", b"slab"))
    set_rules(store, clock, rules(1))
    await walk.step()
    assert end_of(store, "slab") == 0


async def test_a_file_that_came_by_the_mount_gets_its_end_with_a_later_walk(
    store: Store, clock: ManualClock, walk: LifetimeWalk
) -> None:
    set_rules(store, clock, rules(1))
    clock.advance(SETTLE_S)
    await walk.step()
    assert notes(store) == []
    put(store, "late")
    await walk.step()
    assert end_of(store, "late") == 0, "nothing is due"
    clock.advance(WALK_EVERY_S)
    await walk.step()
    assert end_of(store, "late") > 0


async def test_a_change_is_walked_until_a_walk_began_after_it_had_settled(
    store: Store, clock: ManualClock, walk: LifetimeWalk
) -> None:
    set_rules(store, clock, rules(1))
    await walk.step()
    assert len(notes(store)) == 1
    put(store, "k")  # its writer had read the rules before they changed
    clock.advance(SETTLE_S)
    await LifetimeWalk(walk.service).step()  # of the worker that took this one's place
    assert end_of(store, "k") > 0
    assert notes(store) == []


async def test_a_change_during_a_walk_stays_noted(
    store: Store, clock: ManualClock, walk: LifetimeWalk
) -> None:
    set_rules(store, clock, rules(1))
    clock.advance(SETTLE_S)
    set_rules(store, clock, rules(2))
    await walk.step()
    assert len(notes(store)) == 1
    put(store, "k")
    clock.advance(SETTLE_S)
    await walk.step()
    assert end_of(store, "k") > 0
    assert notes(store) == []


async def test_a_large_bucket_is_walked_page_by_page(
    store: Store, clock: ManualClock, walk: LifetimeWalk, autojump_clock: trio.testing.MockClock
) -> None:
    count = 2 * PAGE + 1
    for number in range(count):
        put(store, f"{number:05}")
    set_rules(store, clock, rules(1))
    after = revise_page(store, bucket(store), b"", clock.now_ns() // 1_000_000_000, only_new=False)
    assert after == b"%05d" % (PAGE - 1)
    assert end_of(store, f"{PAGE:05}") == 0
    await walk.step()
    assert all(end_of(store, f"{number:05}") > 0 for number in range(count))


async def test_a_small_bucket_is_revised_before_the_change_is_answered(
    store: Store, clock: ManualClock, service: Service
) -> None:
    for number in range(PAGE + 1):
        put(store, f"{number:05}")
    set_rules(store, clock, rules(1))
    await walk_promptly(service, bucket(store))
    assert PROMPT_PAGES > 1
    assert end_of(store, f"{PAGE:05}") > 0


async def test_ruled_lifetimes_outlive_a_clock_that_leapt(
    store: Store, clock: ManualClock, walk: LifetimeWalk
) -> None:
    put(store, "k")
    set_rules(store, clock, rules(1))
    clock.advance(SETTLE_S)
    await walk.step()
    entry = find(store, "k")
    assert entry is not None
    assert entry.ttl_class == RULED_TTL_CLASS
    moved = AttributeChange(ttl_s=30 * DAY_S, ttl_class=RULED_TTL_CLASS)
    store.set_attributes(entry.inode, moved)  # as timekeeping moves rows along with the clock
    clock.advance(WALK_EVERY_S)
    await walk.step()
    now_s = clock.now_ns() // 1_000_000_000
    assert end_of(store, "k") > now_s + 29 * DAY_S
