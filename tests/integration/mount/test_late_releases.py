"""A RELEASE that comes late takes nothing back that happened to the name since the close.

The kernel sends it when it likes: a busy machine, or a mapping, lets it come long after the FLUSH
that published. The file may have changed meanwhile, so it is sealed once more; but only if its name
still means it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest
import trio

from kvfs.aio import BlockingCalls
from kvfs.clock import ManualClock
from kvfs.errors import NotFound
from kvfs.filesystem.operations import Operations
from kvfs.filesystem.processes import ProcProcesses
from kvfs.filesystem.records import ROOT_NODEID, AttributeRequest, Caller
from kvfs.model import ChildName
from kvfs.store.store import Store

CALLER = Caller(thread=os.getpid())
PLACE = ChildName(ROOT_NODEID, b"block")


@pytest.fixture
def operations(store: Store, clock: ManualClock) -> Operations:
    made = Operations(store, clock, ProcProcesses(), BlockingCalls())
    made.files.use_passthrough()
    return made


async def write_and_close(operations: Operations, data: bytes) -> int:
    """Publish `data` under the name by a descriptor that could be mapped; return its handle."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    _, opened = await operations.create(PLACE.parent, PLACE.name, 0o644, flags, CALLER)
    assert opened.descriptor is not None
    os.pwrite(opened.descriptor, data, 0)
    await operations.files.flush(opened.handle, CALLER)
    assert operations.state.store.find_child(PLACE.parent, PLACE.name) is not None
    return opened.handle


async def truncate_by_name(operations: Operations) -> None:
    reply = await operations.lookup(PLACE.parent, PLACE.name, CALLER)
    await operations.setattr(reply.nodeid, AttributeRequest(size=3), CALLER)


async def replace(operations: Operations) -> None:
    operations.state.store.put(PLACE, b"new")


async def remove(operations: Operations) -> None:
    operations.state.store.unlink(PLACE)


def content(store: Store) -> bytes | None:
    entry = store.find_child(PLACE.parent, PLACE.name)
    if entry is None:
        return None
    with store.open_inode(entry.inode) as view:
        return view.pread(0, view.size)


@pytest.mark.parametrize(
    ("step", "left"), [(truncate_by_name, b"old"), (replace, b"new"), (remove, None)]
)
@pytest.mark.parametrize("is_changed", [False, True])
def test_what_came_after_the_close_stays(
    store: Store,
    clock: ManualClock,
    operations: Operations,
    step: Callable[[Operations], Awaitable[None]],
    left: bytes | None,
    is_changed: bool,
) -> None:
    async def run() -> None:
        handle = await write_and_close(operations, b"older")
        await step(operations)
        writing = operations.state.handles.get(handle).writing
        assert writing is not None
        if is_changed:
            os.pwrite(writing.direct, b"mapped", 0)
        clock.advance(1)
        await operations.files.release(handle)

    trio.run(run)
    assert content(store) == left


@pytest.mark.expects_warnings
def test_i3_a_block_that_was_written_to_is_withdrawn_although_its_name_is_gone(
    store: Store, clock: ManualClock, operations: Operations
) -> None:
    """Another name may lead to it: equal bytes are one block."""

    async def run() -> None:
        handle = await write_and_close(operations, b"older")
        other.append(store.put(ChildName(ROOT_NODEID, b"equal"), b"older").inode)
        store.unlink(PLACE)
        writing = operations.state.handles.get(handle).writing
        assert writing is not None
        os.pwrite(writing.direct, b"WRONG", 0)
        clock.advance(1)
        await operations.files.release(handle)

    other: list[int] = []
    trio.run(run)
    with pytest.raises(NotFound):  # a miss, never wrong bytes
        store.open_inode(other[0])
