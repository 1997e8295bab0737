"""The kernel session's short ways give the very bytes of the long ones, or stand aside."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from kvfs.aio import BlockingCalls
from kvfs.clock import SystemClock
from kvfs.filesystem.content_view import NAME, TOP
from kvfs.filesystem.kernel import wire
from kvfs.filesystem.kernel.passthrough import BackingFiles
from kvfs.filesystem.kernel.quick import QuickAnswers
from kvfs.filesystem.kernel.wire import Opcode
from kvfs.filesystem.operations import Operations
from kvfs.filesystem.processes import ProcProcesses
from kvfs.filesystem.records import ROOT_NODEID, TIMEOUT_S, Caller, EntryReply
from kvfs.model import ChildName
from kvfs.open_store import init_store, open_store

ME = Caller(thread=os.getpid())
UNIQUE = 4711


@dataclass(frozen=True, slots=True)
class Mounting:
    """What a session has, without a mount."""

    operations: Operations
    quick: QuickAnswers
    folder: int

    def ask(self, opcode: Opcode, nodeid: int, body: bytes, extensions: int = 0) -> bytes | None:
        size = wire.IN_HEADER.size + len(body)
        head = wire.IN_HEADER.pack(size, opcode, UNIQUE, nodeid, 0, 0, ME.thread, extensions, 0)
        return self.quick.answer(memoryview(head + body))

    def lookups(self, nodeid: int) -> int:
        return self.operations.state.inodes.get(nodeid).lookups


@pytest.fixture
def mounting(tmp_path: Path) -> Iterator[Mounting]:
    init_store(tmp_path / "store", capacity_bytes=64 << 20)
    with open_store(tmp_path / "store") as store:
        folder = store.mkdir(ChildName(ROOT_NODEID, b"b")).inode
        store.put(ChildName(folder, b"block"), b"bytes")
        store.put(ChildName(folder, b"empty"), b"")
        store.mkdir(ChildName(folder, b"sub"))
        store.symlink(ChildName(folder, b"link"), b"block")
        operations = Operations(store, SystemClock(), ProcProcesses(), BlockingCalls())
        quick = QuickAnswers(operations.state, operations.files, BackingFiles())
        yield Mounting(operations, quick, operations.state.inodes.for_inode(folder).nodeid)


def encoded(reply: EntryReply) -> bytes:
    timeouts = reply.entry_timeout_s, reply.attribute_timeout_s
    return wire.encode_reply(UNIQUE, wire.encode_entry(reply.nodeid, reply.attributes, *timeouts))


@pytest.mark.parametrize("name", [b"block", b"empty", b"sub", b"link"])
def test_a_lookup_and_its_attributes_are_the_same_bytes(mounting: Mounting, name: bytes) -> None:
    long = trio.run(mounting.operations.lookup, mounting.folder, name, ME)
    for count in (2, 3):
        assert mounting.ask(Opcode.LOOKUP, mounting.folder, name + b"\0") == encoded(long)
        assert mounting.lookups(long.nodeid) == count, "each answer is counted for FORGET"
    attributes = wire.encode_attributes_out(long.attributes, TIMEOUT_S)
    short = mounting.ask(Opcode.GETATTR, long.nodeid, bytes(16))
    assert short == wire.encode_reply(UNIQUE, attributes)


def test_what_changed_in_the_store_shows_in_the_next_answer(mounting: Mounting) -> None:
    store, place = mounting.operations.state.store, ChildName(mounting.folder, b"block")
    before = mounting.ask(Opcode.LOOKUP, mounting.folder, b"block\0")
    store.put(place, b"others and longer")
    after = mounting.ask(Opcode.LOOKUP, mounting.folder, b"block\0")
    long = trio.run(mounting.operations.lookup, mounting.folder, b"block", ME)
    assert after == encoded(long) != before
    assert long.attributes.size == 17
    store.unlink(place)
    absent = mounting.ask(Opcode.LOOKUP, mounting.folder, b"block\0")
    assert absent == wire.encode_error(UNIQUE, errno.ENOENT)
    assert mounting.ask(Opcode.GETATTR, long.nodeid, bytes(16)) is None, "gone: the long way knows"


def test_an_open_for_reading_shares_one_view_until_the_last_release(mounting: Mounting) -> None:
    found = trio.run(mounting.operations.lookup, mounting.folder, b"block", ME)
    handles = []
    for _ in range(2):
        reply = mounting.ask(Opcode.OPEN, found.nodeid, bytes(8))
        assert reply is not None
        handles.append(reply[wire.OUT_HEADER.size :][:8])
        contents = mounting.operations.contents
        assert trio.run(contents.read, int.from_bytes(handles[-1], "little"), 0, 9) == b"bytes"
    node = mounting.operations.state.inodes.get(found.nodeid)
    assert (node.openers, len(mounting.operations.state.handles)) == (2, 2)
    for handle in handles:
        closed = mounting.ask(Opcode.RELEASE, found.nodeid, handle + bytes(16))
        assert closed == wire.encode_reply(UNIQUE)
    assert (node.openers, node.reading, len(mounting.operations.state.handles)) == (0, None, 0)


def test_what_is_unusual_is_left_to_the_long_way(mounting: Mounting) -> None:
    folder, operations = mounting.folder, mounting.operations
    hidden, opened = trio.run(operations.create, folder, b"new", 0o644, os.O_RDWR, ME)
    written = hidden.nodeid
    handle = opened.handle.to_bytes(8, "little") + bytes(16)
    block = trio.run(operations.lookup, folder, b"block", ME).nodeid
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):  # an overwrite is announced
        trio.run(operations.files.open, block, os.O_WRONLY, Caller(thread=ME.thread + 1))
    assert mounting.ask(Opcode.LOOKUP, folder, b"new\0") is None
    assert mounting.ask(Opcode.GETATTR, written, bytes(16)) is None
    assert mounting.ask(Opcode.OPEN, written, bytes(8)) is None
    assert mounting.ask(Opcode.RELEASE, written, handle) is None
    assert mounting.ask(Opcode.OPEN, block, os.O_WRONLY.to_bytes(8, "little")) is None
    assert mounting.ask(Opcode.LOOKUP, ROOT_NODEID, NAME + b"\0") is None
    assert mounting.ask(Opcode.GETATTR, TOP, bytes(16)) is None
    trio.run(operations.files.release, opened.handle)


@pytest.mark.parametrize("body", [b"", b"\0", b"block", b"a\0b\0", b"x" * 300 + b"\0"])
def test_a_name_that_is_none_is_left_to_the_decoder(mounting: Mounting, body: bytes) -> None:
    assert mounting.ask(Opcode.LOOKUP, mounting.folder, body) is None


def test_a_message_cut_short_is_left_to_the_decoder(mounting: Mounting) -> None:
    for opcode in Opcode:
        assert mounting.ask(opcode, mounting.folder, b"") is None or opcode is Opcode.GETATTR
        assert mounting.ask(opcode, mounting.folder, b"block\0", extensions=1) is None
    assert mounting.quick.answer(memoryview(b"short")) is None


def test_an_overwriting_thread_is_led_to_its_alias(mounting: Mounting) -> None:
    block = trio.run(mounting.operations.lookup, mounting.folder, b"block", ME).nodeid
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        trio.run(mounting.operations.files.open, block, os.O_WRONLY | os.O_TRUNC, ME)
    assert mounting.ask(Opcode.LOOKUP, mounting.folder, b"block\0") is None
