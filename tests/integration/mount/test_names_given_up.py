"""What a caller began and never finished leaves no inode and no open file behind."""

from __future__ import annotations

import errno
import os

import pytest
import trio

from kvfs.aio import BlockingCalls
from kvfs.clock import ManualClock
from kvfs.errors import StoreDamaged
from kvfs.filesystem.operations import Operations
from kvfs.filesystem.processes import ProcProcesses
from kvfs.filesystem.records import ROOT_NODEID, Caller
from kvfs.model import ChildName, Entry
from kvfs.store.store import Store

CALLER, OTHER = Caller(thread=os.getpid()), Caller(thread=1)
NAME = b"block"


@pytest.fixture
def operations(store: Store, clock: ManualClock) -> Operations:
    return Operations(store, clock, ProcProcesses(), BlockingCalls())


def put(store: Store, data: bytes) -> None:
    store.put(ChildName(ROOT_NODEID, NAME), data)


def known(operations: Operations) -> int:
    """Inodes in the table beside the root."""
    return len(operations.state.inodes) - 1


async def look_up(operations: Operations) -> int:
    return (await operations.lookup(ROOT_NODEID, NAME, CALLER)).nodeid


async def begin_overwrite(operations: Operations) -> None:
    """Open a published file for writing as far as ESTALE; the kernel then forgets what it knew."""
    nodeid = await look_up(operations)
    with pytest.raises(OSError, match="Stale") as caught:
        await operations.files.open(nodeid, os.O_WRONLY, CALLER)
    assert caught.value.errno == errno.ESTALE
    operations.forget(nodeid, 1)


async def read_and_forget(operations: Operations, nodeid: int, data: bytes) -> None:
    """Open a file, read `data` from it, and let the kernel forget it."""
    opened = await operations.files.open(nodeid, os.O_RDONLY, CALLER)
    assert await operations.contents.read(opened.handle, 0, 9) == data
    await operations.files.release(opened.handle)
    operations.forget(nodeid, 1)


def test_i8_an_open_that_never_comes_back_is_given_up_after_a_while(
    store: Store, clock: ManualClock, operations: Operations
) -> None:
    async def run() -> None:
        await begin_overwrite(operations)
        alias = await look_up(operations)
        operations.forget(alias, 1)

    put(store, b"bytes")
    trio.run(run)
    assert known(operations) == 1, "the open may still come"
    clock.advance(11)
    operations.state.pending.expire()
    assert known(operations) == 0


def test_the_file_that_a_name_led_to_is_not_kept_for_the_walk_to_its_alias(
    store: Store, clock: ManualClock, operations: Operations
) -> None:
    async def run() -> None:
        await begin_overwrite(operations)
        put(store, b"of a twin")  # another inode: the kernel was never told of it
        alias = await look_up(operations)
        opened = await operations.files.open(alias, os.O_WRONLY, CALLER)
        await operations.files.release(opened.handle)
        operations.forget(alias, 1)

    put(store, b"bytes")
    trio.run(run)
    assert known(operations) == 0


def test_a_reader_opens_a_whole_file_however_often_its_name_is_given_another(
    store: Store, operations: Operations
) -> None:
    """The kernel walks a path twice, no more: what the second walk leads to is held."""

    async def run() -> None:
        first = await look_up(operations)
        put(store, b"second")
        with pytest.raises(OSError, match="Stale"):
            await operations.files.open(first, os.O_RDONLY, CALLER)
        operations.forget(first, 1)
        second = await look_up(operations)
        put(store, b"third")
        operations.forget(second, 1)
        assert await look_up(operations) == second, "one walk may ask twice"
        put(store, b"fourth")
        await read_and_forget(operations, second, b"second")
        assert known(operations) == 0
        newest = await look_up(operations)
        await read_and_forget(operations, newest, b"fourth")

    put(store, b"first")
    trio.run(run)
    assert known(operations) == 0


def test_a_reader_whose_file_is_gone_sees_the_next_one_as_it_is(
    store: Store, operations: Operations
) -> None:
    """Its walk ended at the absent name: nothing is held for it any more."""

    async def run() -> None:
        first = await look_up(operations)
        store.unlink(ChildName(ROOT_NODEID, NAME))
        with pytest.raises(OSError, match="Stale"):
            await operations.files.open(first, os.O_RDONLY, CALLER)
        operations.forget(first, 1)
        with pytest.raises(OSError, match="No such file"):
            await look_up(operations)
        put(store, b"second")
        second = await look_up(operations)
        put(store, b"third")
        third = await look_up(operations)
        assert third != second
        for nodeid in (second, third):
            operations.forget(nodeid, 1)

    put(store, b"first")
    trio.run(run)
    assert known(operations) == 0


def test_what_is_held_for_a_reader_that_never_comes_is_given_up(
    store: Store, clock: ManualClock, operations: Operations
) -> None:
    async def run() -> None:
        first = await look_up(operations)
        put(store, b"second")
        with pytest.raises(OSError, match="Stale"):
            await operations.files.open(first, os.O_RDONLY, CALLER)
        operations.forget(first, 1)
        second = await look_up(operations)
        put(store, b"third")
        clock.advance(1)
        newest = await look_up(operations)
        assert newest != second, "what others did is seen within a second"
        for nodeid in (second, newest):
            operations.forget(nodeid, 1)

    put(store, b"first")
    trio.run(run)
    operations.state.pending.expire()
    assert known(operations) == 0


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY])
def test_a_create_that_finds_the_name_taken_leaves_only_what_it_opened(
    store: Store, operations: Operations, flags: int
) -> None:
    async def run() -> None:
        reply, opened = await operations.create(ROOT_NODEID, NAME, 0o644, flags, CALLER)
        await operations.files.release(opened.handle)
        operations.forget(reply.nodeid, 1)

    put(store, b"bytes")
    trio.run(run)
    assert known(operations) == 0


def test_what_a_create_is_about_to_open_outlives_that_others_forget_it(
    store: Store, operations: Operations
) -> None:
    """Emptying a lock file waits for a thread: meanwhile its only lookup may be forgotten."""
    name, flags = b"key.lock", os.O_WRONLY | os.O_TRUNC

    async def come_and_go() -> None:
        reply = await operations.lookup(ROOT_NODEID, name, OTHER)
        operations.forget(reply.nodeid, 1)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_and_go)
            reply, opened = await operations.create(ROOT_NODEID, name, 0o644, flags, CALLER)
        assert operations.state.inodes.find(reply.nodeid) is not None
        await operations.files.release(opened.handle)
        operations.forget(reply.nodeid, 1)

    store.put(ChildName(ROOT_NODEID, name), b"bytes")
    trio.run(run)
    assert known(operations) == 0


def test_a_listing_that_breaks_off_leaves_no_inode_behind(
    store: Store, operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index error in the middle: the kernel gets an errno, and none of the rows before it."""
    healthy, last = store.stat_inode, store.put(ChildName(ROOT_NODEID, b"z"), b"bytes").inode

    def stat_inode(inode: int) -> Entry | None:
        if inode == last:
            raise StoreDamaged("the index cannot be read: a bad page")
        return healthy(inode)

    async def list_all() -> None:
        handle = await operations.listings.opendir(ROOT_NODEID)
        with operations.listings.telling() as tell:
            for row in operations.listings.readdir(handle, 2):
                reply = operations.listings.readdir_entry(row)
                assert reply is not None
                tell(reply.nodeid)

    for number in range(3):
        store.put(ChildName(ROOT_NODEID, b"%d" % number), b"%d" % number)
    with monkeypatch.context() as patch:
        patch.setattr(store, "stat_inode", stat_inode)
        with pytest.raises(StoreDamaged):
            trio.run(list_all)
    assert known(operations) == 0
    trio.run(list_all)
    assert known(operations) == 4
