"""A Store, used by two processes at once, against a model made of dictionaries.

Every rule is done by one of two actors, this process or a worker, and then both must agree with the
model: what a name holds, what a listing shows, which error a refused change raises. At the end the
rows and files of the closed store are checked one by one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kvfs.clock import ManualClock
from kvfs.errors import KvfsError
from kvfs.model import (
    MAX_KEY_LENGTH,
    ROOT_INODE,
    AttributeChange,
    ChildName,
    Entry,
    ListPage,
    ObjectPath,
    Pin,
    PutOptions,
    WriteCondition,
)
from kvfs.open_store import init_store
from kvfs.store.read_view import ReadView
from kvfs.store.renames import RenameMode
from tests.property.row_rules import broken_rules
from tests.property.store_model import Model, Node, holder_of
from tests.property.store_worker import Actor, Worker

CAPACITY = 1 << 20
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Thousands of commits: where sync is free they take milliseconds. Other tests sync to a disk."""
BUCKETS = (b"left", b"right")
LONG = b"n" * 441

buckets = st.sampled_from(BUCKETS)
components = st.sampled_from([b"a", b"b", b"c"])
mount_keys = st.lists(components, min_size=1, max_size=3).map(b"/".join)
"""Names that both doors can say."""
keys = st.one_of(
    mount_keys,
    mount_keys,
    st.lists(st.sampled_from([b"a", b"b", b"", LONG]), min_size=1, max_size=3)
    .map(b"/".join)
    .filter(lambda key: 0 < len(key) <= MAX_KEY_LENGTH),
)
"""Names that S3 can say: `a//b`, `a/`, and names of more than one piece."""
payloads = st.sampled_from(
    [b"", b"x", b"y" * 4096, b"z" * 5000, b"large" * 10_000, bytes(range(256)) * 300]
)
modes = st.sampled_from(list(RenameMode))
pins = st.sampled_from([Pin.NONE, Pin.NONE, Pin.NONE, Pin.SOFT, Pin.HARD])
lifetimes = st.sampled_from([0, 0, 20, 60])
actors = st.sampled_from([0, 1])
name_changes = st.sampled_from(["mkdir", "rmdir", "unlink"])


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    process = Worker()
    yield process
    process.stop()


class StoreMachine(RuleBasedStateMachine):
    """The rules."""

    worker: ClassVar[Worker]

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="kvfs-stateful-", dir=MEMORY)
        self.root = Path(self.directory.name) / "store"
        clock = ManualClock()
        init_store(self.root, capacity_bytes=CAPACITY, clock=clock)
        self.local = Actor()
        self.actors: tuple[Actor | Worker, Actor | Worker] = (self.local, self.worker)
        for actor in self.actors:
            actor.call("open", self.root, clock.now_ns())
        self.model = Model(clock.now_ns() // 1_000_000_000, *BUCKETS)
        self.views: list[tuple[ReadView, bytes]] = []

    @initialize()
    def make_buckets(self) -> None:
        for actor, name in zip(self.actors, BUCKETS, strict=True):
            actor.call("create_namespace", name)

    # -- doing the same to both -----------------------------------------------------------------

    def same(self, change: Callable[[], object], real: Callable[[], object]) -> bool:
        """Do `change` to the model and `real` to the store; both succeed or raise one error."""
        expected = self.outcome(change)
        found = self.outcome(real)
        assert found == expected, f"the store: {found or 'done'}, the model: {expected or 'done'}"
        return found is None

    @staticmethod
    def outcome(action: Callable[[], object]) -> type[KvfsError] | None:
        try:
            action()
        except KvfsError as error:
            return type(error)
        return None

    def reachable(self, bucket: bytes, key: bytes) -> bytes:
        """Return `key`, or its last component where the directory is not there."""
        is_there = holder_of(key) in self.model.buckets[bucket].directories
        return key if is_there else key.rpartition(b"/")[2]

    def child(self, who: int, bucket: bytes, key: bytes) -> ChildName:
        """Return a mount name, its directory looked up component by component."""
        directory = holder_of(key)
        inode = ROOT_INODE
        for name in [bucket, *directory.split(b"/")[:-1]]:
            entry: Entry | None = self.actors[who].call("find_child", inode, name)
            assert entry is not None
            assert entry.is_directory
            inode = entry.inode
        return ChildName(inode, key[len(directory) :])

    def node(self, data: bytes, ttl_s: int, pin: Pin) -> Node:
        return Node(data, self.model.now_s + ttl_s if ttl_s else 0, ttl_s, pin)

    def pick(self, data: st.DataObject) -> tuple[bytes, bytes]:
        """Return (bucket, key) of a file that can be seen."""
        present = [(bucket, key) for bucket in BUCKETS for key in self.model.keys(bucket)]
        return data.draw(st.sampled_from(present), label="present")

    def has_files(self) -> bool:
        return any(self.model.keys(bucket) for bucket in BUCKETS)

    # -- writing and reading --------------------------------------------------------------------

    @rule(
        who=actors, bucket=buckets, key=keys, data=payloads, ttl_s=lifetimes, pin=pins,
        must_be_absent=st.booleans(),
    )  # fmt: skip
    def put(
        self, who: int, bucket: bytes, key: bytes, data: bytes, ttl_s: int, pin: Pin,
        must_be_absent: bool,
    ) -> None:  # fmt: skip
        node = self.node(data, ttl_s, pin)
        options = PutOptions(
            ttl_s=ttl_s, is_sliding=False, pin=pin, condition=WriteCondition(must_be_absent)
        )
        self.same(
            lambda: self.model.put(bucket, key, node, must_be_absent=must_be_absent),
            lambda: self.actors[who].call("put", ObjectPath(bucket, key), data, options),
        )

    @rule(who=actors, bucket=buckets, key=mount_keys, data=payloads, must_be_absent=st.booleans())
    def put_through_the_mount(
        self, who: int, bucket: bytes, key: bytes, data: bytes, must_be_absent: bool
    ) -> None:
        key = self.reachable(bucket, key)
        place = self.child(who, bucket, key)
        options = PutOptions(condition=WriteCondition(must_be_absent))
        self.same(
            lambda: self.model.put_child(bucket, key, Node(data), must_be_absent=must_be_absent),
            lambda: self.actors[who].call("put", place, data, options),
        )

    @rule(who=actors, bucket=buckets, key=keys)
    def get(self, who: int, bucket: bytes, key: bytes) -> None:
        self.compare(who, bucket, key)

    def compare(self, who: int, bucket: bytes, key: bytes) -> None:
        found: list[bytes] = []
        if self.same(
            lambda: self.model.file(bucket, key),
            lambda: found.append(self.actors[who].call("get", ObjectPath(bucket, key))),
        ):
            node = self.model.file(bucket, key)
            assert found == [node.data]
            entry: Entry = self.actors[who].call("stat", ObjectPath(bucket, key))
            assert entry.nlink == len(self.model.names_of(node))
            assert (entry.size, entry.pin) == (len(node.data), node.pin)
            assert entry.expires_at_s == node.expires_at_s

    @precondition(lambda self: self.has_files() and len(self.views) < 4)
    @rule(data=st.data())
    def open_a_view(self, data: st.DataObject) -> None:
        bucket, key = self.pick(data)
        view = self.local.store.open_read(ObjectPath(bucket, key))
        self.views.append((view, self.model.file(bucket, key).data))

    @rule()
    def views_keep_their_bytes(self) -> None:
        for view, data in self.views:
            assert view.read_all() == data

    @precondition(lambda self: self.has_files())
    @rule(who=actors, data=st.data(), other=buckets, key=keys)
    def copy(self, who: int, data: st.DataObject, other: bytes, key: bytes) -> None:
        bucket, source = self.pick(data)
        old = self.model.file(bucket, source)
        self.same(
            lambda: self.model.put(
                other, key, self.node(old.data, old.ttl_s, old.pin), must_be_absent=False
            ),
            lambda: self.actors[who].call(
                "copy", ObjectPath(bucket, source), ObjectPath(other, key)
            ),
        )

    # -- names ----------------------------------------------------------------------------------

    @rule(who=actors, bucket=buckets, key=keys)
    def delete(self, who: int, bucket: bytes, key: bytes) -> None:
        self.same(
            lambda: self.model.delete(bucket, key),
            lambda: self.actors[who].call("delete", ObjectPath(bucket, key)),
        )

    @precondition(lambda self: self.has_files())
    @rule(who=actors, data=st.data())
    def delete_a_present_one(self, who: int, data: st.DataObject) -> None:
        bucket, key = self.pick(data)
        self.delete(who, bucket, key)

    @rule(who=actors, bucket=buckets, key=mount_keys, what=name_changes)
    def change_a_name(self, who: int, bucket: bytes, key: bytes, what: str) -> None:
        key = self.reachable(bucket, key)
        place = self.child(who, bucket, key)
        self.same(
            lambda: getattr(self.model, what)(bucket, key),
            lambda: self.actors[who].call(what, place),
        )

    @rule(who=actors, bucket=buckets, key=mount_keys)
    def symlink(self, who: int, bucket: bytes, key: bytes) -> None:
        key = self.reachable(bucket, key)
        place = self.child(who, bucket, key)
        self.same(
            lambda: self.model.symlink(bucket, key),
            lambda: self.actors[who].call("symlink", place, b"anywhere"),
        )

    @precondition(lambda self: self.has_files())
    @rule(who=actors, data=st.data(), other=buckets, key=mount_keys)
    def link(self, who: int, data: st.DataObject, other: bytes, key: bytes) -> None:
        bucket, source = self.pick(data)
        node = self.model.file(bucket, source)
        inode = self.actors[who].call("stat", ObjectPath(bucket, source)).inode
        key = self.reachable(other, key)
        place = self.child(who, other, key)
        self.same(
            lambda: self.model.link(bucket, node, other, key),
            lambda: self.actors[who].call("link", inode, place),
        )

    @rule(who=actors, bucket=buckets, other=buckets, old=mount_keys, new=mount_keys, mode=modes)
    def rename(
        self, who: int, bucket: bytes, other: bytes, old: bytes, new: bytes, mode: RenameMode
    ) -> None:
        old, new = self.reachable(bucket, old), self.reachable(other, new)
        source, target = self.child(who, bucket, old), self.child(who, other, new)
        self.same(
            lambda: self.model.rename((bucket, old), (other, new), mode),
            lambda: self.actors[who].call("rename", source, target, mode=mode),
        )

    @rule(who=actors, bucket=buckets)
    def delete_and_make_a_bucket(self, who: int, bucket: bytes) -> None:
        if self.same(
            lambda: self.model.empty_bucket(bucket),
            lambda: self.actors[who].call("delete_namespace", bucket),
        ):
            self.actors[1 - who].call("create_namespace", bucket)

    @precondition(lambda self: self.has_files())
    @rule(who=actors, data=st.data(), pin=pins)
    def pin(self, who: int, data: st.DataObject, pin: Pin) -> None:
        bucket, key = self.pick(data)
        node = self.model.file(bucket, key)
        inode = self.actors[who].call("stat", ObjectPath(bucket, key)).inode
        self.actors[who].call("set_attributes", inode, AttributeChange(pin=pin))
        node.pin = pin

    # -- time, space, processes -----------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 19, 20, 31, 100]))
    def time_passes(self, seconds: int) -> None:
        self.model.now_s += seconds
        for actor in self.actors:
            actor.call("advance", seconds)

    @rule(who=actors)
    def expire(self, who: int) -> None:
        self.model.expire()
        self.actors[who].call("expire")

    @rule(who=actors, wanted=st.sampled_from([1, 4096, 100_000, CAPACITY]))
    def evict(self, who: int, wanted: int) -> None:
        self.actors[who].call("evict", wanted)
        for bucket in BUCKETS:
            left = {item.key for item in self.whole_listing(who, bucket).objects}
            seen = self.model.keys(bucket)
            for key in self.model.keys(bucket, expired_too=True):
                if key not in seen:  # whether it went cannot be seen; deleting it makes it sure
                    path = ObjectPath(bucket, key)
                    self.outcome(lambda path=path: self.actors[who].call("delete", path))  # type: ignore[misc]
                elif key not in left:
                    pin = self.model.file(bucket, key).pin
                    assert pin is not Pin.HARD, "a pinned object was evicted (I5)"
                if key not in left:
                    self.model.drop(bucket, key)

    @rule(who=actors, what=st.sampled_from(["flush", "empty_trash"]))
    def tidy(self, who: int, what: str) -> None:
        self.actors[who].call(what)

    @rule(who=actors)
    def a_sweep_finds_nothing(self, who: int) -> None:
        report = self.actors[who].call("sweep")
        assert (report.orphan_files, report.staging_files) == (0, 0)

    @rule(who=actors)
    def reopen(self, who: int) -> None:
        self.actors[who].call("close")
        self.actors[who].call("open", self.root, self.local.clock.now_ns())

    # -- what always holds ----------------------------------------------------------------------

    def whole_listing(self, who: int, bucket: bytes) -> ListPage:
        page: ListPage = self.actors[who].call("list_objects", bucket)
        return page

    @invariant()
    def listings_show_the_model(self) -> None:
        for bucket in self.local.store.list_namespaces():
            page = self.whole_listing(0, bucket.name)
            assert [item.key for item in page.objects] == self.model.keys(bucket.name)
            shown = self.local.store.read_directory(bucket.inode)
            assert [row.name for row in shown] == self.model.shown(bucket.name, b"")

    @invariant()
    def i4_the_space_adds_up(self) -> None:
        usage = self.local.store.usage()
        assert usage.resident_bytes + usage.reserved_bytes <= usage.capacity_bytes
        every = [node for b in self.model.buckets.values() for node in b.nodes.values()]
        nodes = [node for node in every if not node.is_symlink]
        assert usage.object_count == len(nodes)
        assert usage.logical_bytes == sum(len(node.data) for node in nodes)
        blocks = {
            (name, node.data) for name, b in self.model.buckets.items() for node in b.nodes.values()
        }
        assert usage.block_count == sum(bool(data) for _, data in blocks)

    def teardown(self) -> None:
        try:
            for who in (0, 1):
                for bucket in BUCKETS:
                    for key in self.model.buckets[bucket].nodes:
                        self.compare(who, bucket, key)
            self.views_keep_their_bytes()
        finally:
            for view, _ in self.views:
                view.close()
            for actor in self.actors:
                actor.call("close")
            broken = broken_rules(self.root)
            self.directory.cleanup()
        assert not broken, broken


def test_two_processes_and_a_model_agree_about_every_name_and_byte(worker: Worker) -> None:
    class Machine(StoreMachine):
        pass

    Machine.worker = worker
    budget = settings(max_examples=settings().max_examples // 2, stateful_step_count=40)
    run_state_machine_as_test(Machine, settings=budget)
