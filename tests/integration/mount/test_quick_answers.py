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
from kvfs.filesystem.sealed_opens import MAX_IDLE, SealedOpens
from kvfs.model import ChildName
from kvfs.open_store import init_store, open_store

ME = Caller(thread=os.getpid())
UNIQUE = 4711


@dataclass(frozen=True, slots=True)
class Mounting:
    """What a session has, without a mount."""

    operations: Operations
    quick: QuickAnswers
    sealed: SealedOpens
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
        sealed = SealedOpens(operations.state)
        quick = QuickAnswers(operations.state, sealed, BackingFiles())
        nodeid = operations.state.inodes.for_inode(folder).nodeid
        yield Mounting(operations, quick, sealed, nodeid)
        for idle in sealed.idle.expire(everything=True):
            idle.reading.close()


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


def open_and_close(mounting: Mounting, nodeid: int) -> int:
    """Return the descriptor that the open led to."""
    reply = mounting.ask(Opcode.OPEN, nodeid, bytes(8))
    assert reply is not None
    handle = reply[wire.OUT_HEADER.size :][:8]
    reading = mounting.operations.state.handles.get(int.from_bytes(handle, "little")).reading
    assert reading is not None
    descriptor = reading.view.fd
    assert mounting.ask(Opcode.RELEASE, nodeid, handle + bytes(16)) is not None
    return descriptor


def test_a_file_just_read_is_opened_again_without_opening_it(mounting: Mounting) -> None:
    block = trio.run(mounting.operations.lookup, mounting.folder, b"block", ME).nodeid
    idle = mounting.sealed.idle
    first = open_and_close(mounting, block)
    assert (open_and_close(mounting, block), len(idle)) == (first, 1)
    assert idle.expire() == [], "a whole turn is waited for the next reader"
    assert open_and_close(mounting, block) == first
    assert idle.expire() == []
    [ended] = idle.expire()
    trio.run(mounting.sealed.close, ended)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(first)


def test_i1_an_idle_file_is_not_served_once_the_store_says_otherwise(mounting: Mounting) -> None:
    files, store = mounting.operations.files, mounting.operations.state.store
    value = b"compressible" * 100_000
    entry = store.put(ChildName(mounting.folder, b"block"), value)
    block = trio.run(mounting.operations.lookup, mounting.folder, b"block", ME).nodeid
    open_and_close(mounting, block)
    store.compress(entry.digest)
    assert mounting.ask(Opcode.OPEN, block, bytes(8)) is None, "another file holds it now"
    opened = trio.run(files.open, block, os.O_RDONLY, ME)
    assert trio.run(mounting.operations.contents.read, opened.handle, 0, 24) == value[:24]
    trio.run(files.release, opened.handle)
    [left] = mounting.sealed.idle.expire()
    trio.run(mounting.sealed.close, left)


def test_a_removed_file_is_closed_at_its_last_release(mounting: Mounting) -> None:
    store = mounting.operations.state.store
    block = trio.run(mounting.operations.lookup, mounting.folder, b"block", ME).nodeid
    reply = mounting.ask(Opcode.OPEN, block, bytes(8))
    assert reply is not None
    store.unlink(ChildName(mounting.folder, b"block"))
    store.empty_trash()
    handle = reply[wire.OUT_HEADER.size :][:8]
    assert mounting.ask(Opcode.RELEASE, block, handle + bytes(16)) is None, "it frees its blocks"
    trio.run(mounting.operations.files.release, int.from_bytes(handle, "little"))
    assert len(mounting.sealed.idle) == 0


def test_no_more_files_than_the_limit_stay_open(mounting: Mounting) -> None:
    store, idle = mounting.operations.state.store, mounting.sealed.idle
    for number in range(MAX_IDLE + 5):
        store.put(ChildName(mounting.folder, b"%d" % number), b"%d" % number)
        found = trio.run(mounting.operations.lookup, mounting.folder, b"%d" % number, ME)
        open_and_close(mounting, found.nodeid)
    assert len(idle) == MAX_IDLE


def test_a_backing_id_stays_only_with_the_view_it_was_made_of() -> None:
    backing, mine, other = BackingFiles(), object(), object()
    assert backing.acquire(7, None, is_writer=False, owner=mine, kept_id=3) == 3
    assert backing.acquire(7, None, is_writer=False, owner=other, kept_id=4) == 3, "one an inode"
    assert backing.release(7, mine) == 0, "the other still has it open"
    assert backing.release(7, other) == 0, "not its own"
    assert backing.acquire(7, None, is_writer=False, owner=mine, kept_id=5) == 5
    assert backing.release(7, mine) == 5


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


def test_attributes_of_others_and_terminals_are_denied_at_once(mounting: Mounting) -> None:
    none = wire.encode_error(UNIQUE, errno.ENODATA)
    for name in (b"security.capability", b"system.posix_acl_access"):
        assert mounting.ask(Opcode.GETXATTR, mounting.folder, bytes(8) + name + b"\0") == none
        with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):  # as the long way says
            trio.run(mounting.operations.getxattr, mounting.folder, name)
    assert mounting.ask(Opcode.GETXATTR, mounting.folder, bytes(8) + b"user.a\0") is None
    terminal = mounting.ask(Opcode.IOCTL, mounting.folder, bytes(32))
    assert terminal == wire.encode_error(UNIQUE, errno.ENOTTY)


def test_a_message_cut_short_is_left_to_the_decoder(mounting: Mounting) -> None:
    for opcode in Opcode:
        answer = mounting.ask(opcode, mounting.folder, b"")
        assert answer is None or opcode in (Opcode.GETATTR, Opcode.IOCTL), "they read no body"
        assert mounting.ask(opcode, mounting.folder, b"block\0", extensions=1) is None
    assert mounting.quick.answer(memoryview(b"short")) is None


def test_an_overwriting_thread_is_led_to_its_alias(mounting: Mounting) -> None:
    block = trio.run(mounting.operations.lookup, mounting.folder, b"block", ME).nodeid
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        trio.run(mounting.operations.files.open, block, os.O_WRONLY | os.O_TRUNC, ME)
    assert mounting.ask(Opcode.LOOKUP, mounting.folder, b"block\0") is None


def test_a_reader_that_came_too_late_walks_the_long_way(mounting: Mounting) -> None:
    store, place = mounting.operations.state.store, ChildName(mounting.folder, b"block")
    block = trio.run(mounting.operations.lookup, mounting.folder, b"block", ME).nodeid
    store.put(place, b"another")
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        trio.run(mounting.operations.files.open, block, os.O_RDONLY, ME)
    assert mounting.ask(Opcode.LOOKUP, mounting.folder, b"block\0") is None
    held = trio.run(mounting.operations.lookup, mounting.folder, b"block", ME).nodeid
    assert mounting.ask(Opcode.OPEN, held, bytes(8)) is None
    opened = trio.run(mounting.operations.files.open, held, os.O_RDONLY, ME)
    assert mounting.ask(Opcode.LOOKUP, mounting.folder, b"block\0") is not None
    trio.run(mounting.operations.files.release, opened.handle)
