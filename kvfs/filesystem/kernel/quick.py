"""The requests that come by the million, answered in one step.

Owns a shorter way to the same answers for what is usual: a name that leads to a sealed file or to
nothing, the attributes of a sealed file, opening it for reading and closing it. Refuses what is
not: a file being written, an overwrite or a rename on its way, `.kvfs`, a block to be hashed or
decoded; `answer` then returns None, having changed nothing, and operations.py answers.
Why: of the 26 us a LOOKUP took the daemon, 19 were records, coroutines and exceptions on the way
between one struct and another; this way it takes 10 (bench/cases/mount_small.py).
Must hold: the same bytes as the long way gives; never waits.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from kvfs.filesystem.content_view import NAME, VIEW
from kvfs.filesystem.edge import SHORT_WAY
from kvfs.filesystem.inodes import Node
from kvfs.filesystem.kernel import wire
from kvfs.filesystem.kernel.passthrough import BackingFiles
from kvfs.filesystem.kernel.wire import Opcode, OpenFlag
from kvfs.filesystem.mount_state import MountState, attributes_of
from kvfs.filesystem.open_files import wants_write
from kvfs.filesystem.records import ROOT_NODEID, TIMEOUT_S, OpenReply
from kvfs.filesystem.sealed_opens import SealedOpens
from kvfs.model import MAX_MOUNT_NAME_LENGTH, Entry

Answer = Callable[[int, int, int, memoryview], bytes | None]
"""(unique, nodeid, thread, what follows the header) -> the whole reply, or None."""

# As plain numbers: an operation on an IntFlag takes 1 us.
NOFLUSH, PASSTHROUGH = int(OpenFlag.NOFLUSH), int(OpenFlag.PASSTHROUGH)
DIRECT_IO, KEEP_CACHE = int(OpenFlag.DIRECT_IO), int(OpenFlag.KEEP_CACHE)
MAX_IMAGES = 4096
"""Packed attributes kept (I8): no more than the index keeps entries."""
ENTRY_TIMEOUTS = wire.encode_entry_timeouts(TIMEOUT_S, TIMEOUT_S)
ATTRIBUTES_TIMEOUT = wire.encode_attributes_timeout(TIMEOUT_S)


def encode_opened(reply: OpenReply, backing_id: int) -> bytes:
    """Return the answer to an OPEN; backing_id: 0 = reads and writes come to us."""
    # A reader's close publishes nothing: without FLUSH it costs one message less.
    flags = 0 if reply.is_flushed else NOFLUSH
    if backing_id:
        flags |= PASSTHROUGH
    elif reply.is_stream:
        flags |= DIRECT_IO
    elif reply.keep_cache:
        flags |= KEEP_CACHE
    return wire.encode_open(reply.handle, flags, backing_id)


class QuickAnswers:
    """Shorter ways for one mount; lives on its loop."""

    def __init__(self, state: MountState, sealed: SealedOpens, backing: BackingFiles) -> None:
        self._state = state
        self._sealed = sealed
        self._backing = backing
        self._find_child = state.store.find_child
        self._stat_inode = state.store.stat_inode
        self._stored_bytes = state.store.stored_bytes
        self._images: dict[int, tuple[Entry, int, bytes]] = {}
        """By nodeid: the entry, what its block takes on the disk, and the attributes of both."""
        self._ways: dict[int, Answer] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.OPEN: self._open,
            Opcode.RELEASE: self._release,
            Opcode.IOCTL: self._ioctl,
            Opcode.GETXATTR: self._getxattr,
        }

    def answer(self, message: memoryview) -> bytes | None:
        """Return the reply to one request, None where the long way must be gone."""
        if len(message) < wire.IN_HEADER.size:
            return None
        length, opcode, unique, nodeid, _, _, thread, extensions, _ = wire.IN_HEADER.unpack_from(
            message
        )
        way = self._ways.get(opcode)
        if way is None or extensions or length != len(message) or nodeid & VIEW:
            return None
        with SHORT_WAY:
            return way(unique, nodeid, thread, message[wire.IN_HEADER.size :])
        return None

    def _lookup(self, unique: int, nodeid: int, thread: int, body: memoryview) -> bytes | None:
        name = wire.decode_name(body)
        directory = self._state.inodes.find(nodeid)
        if name is None or directory is None or len(name) > MAX_MOUNT_NAME_LENGTH:
            return None
        if nodeid == ROOT_NODEID and name == NAME:
            return None
        if not self._state.pending.is_quiet(thread, directory.inode, name):
            return None
        entry = self._find_child(directory.inode, name, touch=True)
        if entry is None:
            return wire.encode_error(unique, errno.ENOENT)
        node = self._state.inodes.for_inode(entry.inode)
        image = self._image(node, entry)
        if image is None:
            self._state.inodes.release(node)
            return None
        node.lookups += 1
        return wire.encode_known_entry(unique, node.nodeid, ENTRY_TIMEOUTS, image)

    def _getattr(self, unique: int, nodeid: int, _thread: int, _body: memoryview) -> bytes | None:
        node = self._state.inodes.find(nodeid)
        entry = None if node is None or not node.inode else self._stat_inode(node.inode)
        if node is None or entry is None:
            return None
        image = self._image(node, entry)
        if image is None:
            return None
        return wire.encode_reply(unique, ATTRIBUTES_TIMEOUT + image)

    def _image(self, node: Node, entry: Entry) -> bytes | None:
        """Return the attributes of `entry` as the kernel wants them, packed once per entry."""
        if (
            entry.is_mutable
            or node.writing is not None
            or node.shown is not None
            or node.overwrites is not None
        ):
            return None
        stored = self._stored_bytes(entry.digest) if entry.digest else 0
        known = self._images.get(node.nodeid)
        if known is not None and known[0] is entry and known[1] == stored:
            return known[2]
        node.last = attributes_of(entry, node.ino, stored)
        packed = wire.encode_attributes(node.last)
        if len(self._images) >= MAX_IMAGES:
            self._images.clear()
        self._images[node.nodeid] = entry, stored, packed
        return packed

    def _open(self, unique: int, nodeid: int, thread: int, body: memoryview) -> bytes | None:
        if wants_write(wire.SIZES.unpack_from(body)[0]) or self._state.pending.is_walking(thread):
            return None
        opened = self._sealed.open(nodeid)
        if opened is None:
            return None
        handle, kept_id = opened
        reading = handle.reading
        assert reading is not None, "it was opened for reading"
        backing_id = self._backing.acquire(
            nodeid, reading.descriptor, is_writer=False, owner=reading, kept_id=kept_id
        )
        flags = PASSTHROUGH | NOFLUSH if backing_id else KEEP_CACHE | NOFLUSH
        return wire.encode_reply(unique, wire.encode_open(handle.number, flags, backing_id))

    def _release(self, unique: int, nodeid: int, _thread: int, body: memoryview) -> bytes | None:
        number = int.from_bytes(body[:8], "little")
        reading = self._sealed.closing(number)
        if reading is None:
            return None
        backing_id = self._backing.release(nodeid, reading if reading.openers == 1 else None)
        surplus = self._sealed.release(number, backing_id)
        if surplus is not None:
            self._backing.close(surplus.backing_id)
            surplus.reading.close()
        return wire.encode_reply(unique)

    @staticmethod
    def _ioctl(unique: int, _nodeid: int, _thread: int, _body: memoryview) -> bytes | None:
        """Python asks of every file it opens whether it is a terminal."""
        return wire.encode_error(unique, errno.ENOTTY)

    @staticmethod
    def _getxattr(unique: int, _nodeid: int, _thread: int, body: memoryview) -> bytes | None:
        """`ls -l` and `cp` ask for security.* and system.* of every file: there are only user.*."""
        name = wire.decode_name(body[wire.SIZES.size :])
        if name is None or name.startswith(b"user."):
            return None
        return wire.encode_error(unique, errno.ENODATA)
