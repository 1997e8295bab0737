"""Open files: private staging per writer, and when a close publishes it.

Owns `WritingFile` (one private copy while somebody may write it), `SharedView` (one sealed file
while somebody reads it), the handles the kernel holds, and the steps stage -> fill -> publish on
the store.
Refuses to know names' lookups, the kernel's inodes and transports.
Must hold: bytes reach a name only through Store.publish (I2). A file is written only while its
staging is private; after a publish the next write starts from a copy (I3). A writer whose write
failed, or that was killed, publishes nothing.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import trio

from kvfs.aio import BlockingCalls
from kvfs.errors import KvfsError
from kvfs.filesystem.errno_map import errno_of
from kvfs.filesystem.processes import Creator
from kvfs.filesystem.whole_copies import (
    WholeCopy,
    begin,
    copy_bytes,
    extend,
    fill,
    is_untouched,
)
from kvfs.model import (
    NO_CONDITION,
    NO_DIGEST,
    ChildName,
    Codec,
    Digest,
    Entry,
    NamespaceId,
    PutOptions,
    WriteCondition,
)
from kvfs.store.mutable_files import MutableFile
from kvfs.store.read_view import ReadView
from kvfs.store.staging import Staging
from kvfs.store.store import Store

T = TypeVar("T")

INLINE_BYTES = 64 * 1024
"""Copies up to this size run on the loop: a thread costs about 60 us, the copy 10."""
COPY_BYTES = 8 * 1024 * 1024
FALLOC_PUNCH_HOLE = 2
FALLOC_ZERO_RANGE = 16

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True, eq=False)
class WritingFile:
    """One file while it may be written.

    `base` is the sealed file it started from or was last published as; `staging` the private copy,
    made at the first change. Both None: an empty file that is already published.
    """

    place: ChildName | None
    """Where it will be published; None once that name was removed."""
    namespace_id: NamespaceId
    creator: Creator
    options: PutOptions
    staging: Staging | None = None
    kept: MutableFile | None = None
    """It stays mutable: the file itself, one for all openers; there is no staging any more."""
    base: ReadView | None = None
    nodeid: int = 0
    """The kernel's inode through which it is written."""
    inode: int = 0
    """The store's inode it is, or was opened from; 0 = none yet."""
    is_hidden: bool = True
    """Its name does not lead to it yet."""
    is_shared: bool = False
    """A lock file: one copy for all openers, published by any close."""
    is_changed: bool = False
    is_discarded: bool = False
    has_twin: bool = False
    sealed_size: int = 0
    """Length of the sealed file that it started from or became."""
    sealing: os.stat_result | None = None
    """What its staging looked like, while the store is publishing it."""
    failure: int = 0
    """errno of the first write that failed: the close reports it and publishes nothing."""
    openers: int = 0
    writers: int = 0
    direct: int = -1
    """A descriptor of its own on the bytes that the kernel writes by itself; -1 = it does not."""
    sealed_at: tuple[int, int] | None = None
    """Size and mtime of `direct` before it was hashed for the last publish."""
    sealed_digest: Digest = NO_DIGEST
    published_ns: int = 0
    """When, on the monotonic clock."""
    copied: WholeCopy | None = None
    """Its beginning is a hole that stands for a sealed file's bytes."""
    is_mappable: bool = False
    """Opened for reading and writing: a mapping can change it without a new mtime."""
    is_marked: bool = False
    """Its writer asked for it to stay mutable (user.kvfs.mutable)."""
    watched: int = 0
    """Bytes it had allocated when they were last accounted for."""
    lock: trio.Lock = field(default_factory=trio.Lock)

    def staged(self) -> os.stat_result | None:
        """Return the stat of the bytes it has of its own, None if a sealed file is all there is."""
        if self.kept is not None:
            return os.fstat(self.kept.fd)
        if self.staging is not None:
            return os.fstat(self.staging.fd)
        if self.sealing is not None:
            return self.sealing
        return os.fstat(self.direct) if self.direct >= 0 and self.has_changed() else None

    def has_changed(self) -> bool:
        """Whether it holds bytes that no publish has seen."""
        if self.kept is not None:
            return False
        if self.direct < 0 or self.sealed_at is None:
            return self.is_changed
        return self.is_changed or mark_of(os.fstat(self.direct)) != self.sealed_at

    def size(self) -> int:
        found = self.staged()
        if found is not None:
            return found.st_size
        return self.sealed_size


@dataclass(frozen=True, slots=True)
class DirectFile:
    """A published file that the kernel can still write to: its changes are sealed later."""

    fd: int

    def make_room(self, offset: int, length: int) -> None:
        """Space is reserved when it is sealed again."""

    def truncate(self, length: int) -> None:
        os.ftruncate(self.fd, length)

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        view = memoryview(data)
        while view:
            count = os.pwrite(self.fd, view, offset)
            view, offset = view[count:], offset + count
        return len(data)


@dataclass(slots=True, eq=False)
class SharedView:
    """One sealed file, open once for all its readers."""

    view: ReadView
    memory: int = -1
    """A memfd with the decoded bytes of a compressed block, for a transport with passthrough."""
    openers: int = 0

    @property
    def descriptor(self) -> int | None:
        """Byte i of this is byte i of the file; None where nothing has them plain."""
        if self.memory >= 0:
            return self.memory
        # An empty file has no block to point at.
        return self.view.fd if self.view.size and self.view.codec is Codec.RAW else None

    def close(self) -> None:
        self.view.close()
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1


@dataclass(slots=True, eq=False)
class Handle:
    """One open file description of the kernel."""

    number: int
    nodeid: int
    is_writer: bool
    writing: WritingFile | None = None
    reading: SharedView | None = None
    text: bytes = b""
    """What a generated file says; it neither writes nor reads otherwise."""


class HandleTable:
    """The handles of one mount."""

    def __init__(self) -> None:
        self._handles: dict[int, Handle] = {}
        self._writers: dict[WritingFile, None] = {}
        self._serial = itertools.count(1)

    def __len__(self) -> int:
        return len(self._handles)

    def add(
        self,
        nodeid: int,
        *,
        is_writer: bool,
        writing: WritingFile | None = None,
        reading: SharedView | None = None,
        text: bytes = b"",
    ) -> Handle:
        handle = Handle(next(self._serial), nodeid, is_writer, writing, reading, text)
        self._handles[handle.number] = handle
        if writing is not None:
            writing.openers += 1
            writing.writers += is_writer
            if is_writer:
                self._writers[writing] = None
        if reading is not None:
            reading.openers += 1
        return handle

    def find(self, number: int) -> Handle | None:
        """Return the handle, None if there is none."""
        return self._handles.get(number)

    def get(self, number: int) -> Handle:
        """Return the handle. Raises: OSError EBADF."""
        handle = self._handles.get(number)
        if handle is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle

    def writers(self) -> list[WritingFile]:
        """Return the files that are open for writing."""
        return list(self._writers)

    def remove(self, number: int) -> Handle:
        handle = self.get(number)
        del self._handles[number]
        if handle.writing is not None:
            handle.writing.openers -= 1
            handle.writing.writers -= handle.is_writer
            if not handle.writing.writers:
                self._writers.pop(handle.writing, None)
        if handle.reading is not None:
            handle.reading.openers -= 1
        return handle


class Writing:
    """The steps on a WritingFile, each atomic under the file's lock."""

    def __init__(self, store: Store, calls: BlockingCalls) -> None:
        self._store = store
        self._in_thread = calls.run

    async def begin_empty(self, writing: WritingFile, *, is_direct: bool) -> None:
        """Give the file an empty staging: it will be published even if nothing is written.

        is_direct: the kernel may write to it by itself.
        """
        # On the loop: without a size nothing is reserved yet, and opening O_TMPFILE costs less than
        # the way to a thread.
        writing.staging = self._store.stage(writing.namespace_id)
        writing.is_changed = True
        if is_direct:
            writing.direct = os.dup(writing.staging.fd)

    async def read(self, writing: WritingFile, offset: int, length: int) -> bytes:
        """Return up to `length` bytes as the writer sees them."""
        async with writing.lock:
            await self.fill_copy(writing)
            source = writing.direct if writing.staging is None else writing.staging.fd
            if writing.kept is not None:
                source = writing.kept.fd
            if source >= 0:
                return await self._run(length, os.pread, source, length, offset)
            if writing.base is None and writing.inode and not writing.is_hidden:
                writing.base = await self._in_thread(self._store.open_inode, writing.inode)
            if writing.base is None:
                return b""
            return await self._run(length, writing.base.pread, offset, length)

    async def write(self, writing: WritingFile, offset: int, data: bytes | memoryview) -> int:
        """Write all of `data`; the first failure is remembered for close()."""
        async with writing.lock:
            try:
                staging = await self.make_private(writing)
                await self._run(len(data), staging.pwrite, data, offset)
            except (KvfsError, OSError) as error:
                _fail(writing, error)
                raise
            writing.is_changed = True
            return len(data)

    async def truncate(self, writing: WritingFile, size: int) -> None:
        async with writing.lock:
            if size == writing.size() and not writing.has_changed():
                return
            try:
                staging = await self.make_private(writing, keep=size)
                await self._in_thread(staging.truncate, size)
            except (KvfsError, OSError) as error:
                _fail(writing, error)
                raise
            writing.is_changed = True

    async def allocate(self, writing: WritingFile, mode: int, offset: int, length: int) -> None:
        """fallocate(2) on the private copy: reserve, punch a hole, zero a range."""
        async with writing.lock:
            try:
                staging = await self.make_private(writing)
                if not mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
                    await self._in_thread(staging.make_room, offset, length)
                if writing.kept is not None:
                    writing.kept.let_go()  # a hole is how a full store gets room again
                await self._in_thread(fallocate, staging.fd, mode, offset, length)
                if writing.kept is not None:
                    await self._in_thread(writing.kept.settle)
            except KvfsError as error:
                _fail(writing, error)
                raise
            writing.is_changed = True

    async def copy_in(
        self, writing: WritingFile, source: int, source_offset: int, offset: int, length: int
    ) -> int:
        """Copy from the descriptor `source` without passing the bytes through user space."""
        async with writing.lock:
            try:
                staging = await self.make_private(writing)
                await self._in_thread(staging.make_room, offset, length)
                copied = await self._in_thread(
                    os.copy_file_range, source, staging.fd, length, source_offset, offset
                )
            except KvfsError as error:
                _fail(writing, error)
                raise
            writing.is_changed = True
            return copied

    async def copy_whole(
        self, writing: WritingFile, view: ReadView, source_offset: int, offset: int, length: int
    ) -> bool:
        """Let the file share what it is given of `view`, from its beginning on.

        Returns False where the bytes must be copied.
        """
        async with writing.lock:
            staging, copied = writing.staging, writing.copied
            done = 0 if copied is None else copied.length
            if staging is None or not _may_share(writing, view):
                return False
            if offset != source_offset or offset != done or done != staging.size:
                return False
            if copied is not None:
                return await self._in_thread(extend, staging, copied, done + length)
            writing.copied = await self._in_thread(begin, staging, view, length)
            return writing.copied is not None

    async def fill_copy(self, writing: WritingFile) -> None:
        """Give a whole copy bytes of its own. Caller holds the lock."""
        copied, writing.copied = writing.copied, None
        if copied is None:
            return
        try:
            if writing.staging is not None:
                await self._in_thread(writing.staging.ensure, copied.length)
            descriptor = writing.direct if writing.staging is None else writing.staging.fd
            await self._in_thread(fill, descriptor, copied)
        except (KvfsError, OSError) as error:
            writing.failure = writing.failure or errno_of(error)
            raise

    def _seal(
        self, writing: WritingFile, staging: Staging, place: ChildName, options: PutOptions
    ) -> Entry:
        """Publish the bytes, or a row that shares those of a whole copy. Runs in a thread.

        place: as it was when the close came; the name may be removed meanwhile.
        """
        copied = writing.copied
        if copied is not None and copied.is_complete() and is_untouched(staging.fd, copied):
            entry = self._store.share(copied.view, place, options)
            if entry is not None:
                staging.close()
                return entry
        if copied is not None:
            writing.copied = None
            staging.ensure(staging.size)
            fill(staging.fd, copied)
        return self._store.publish(staging, place, options)

    async def sync(self, writing: WritingFile) -> None:
        async with writing.lock:
            if writing.kept is not None:
                await self._in_thread(os.fdatasync, writing.kept.fd)
                await self._in_thread(writing.kept.settle)
            elif writing.staging is not None:
                await self._in_thread(os.fdatasync, writing.staging.fd)

    async def publish(
        self, writing: WritingFile, condition: WriteCondition = NO_CONDITION
    ) -> Entry | None:
        """Make the file visible under its name; None if it has none. Caller holds `writing.lock`.

        Whatever fails, nothing becomes visible and the file is finished; what was sealed of it
        before is withdrawn if its bytes are no longer its own (I3).
        """
        if writing.place is None or (writing.staging is None and writing.direct < 0):
            return None
        if writing.staging is None:
            writing.staging = await self._copy_direct(writing)
        staging, former = writing.staging, writing.sealed_digest
        found = os.fstat(writing.direct if writing.direct >= 0 else staging.fd)
        options = replace(writing.options, condition=condition)
        if not options.mtime_ns:
            options = replace(options, mtime_ns=found.st_mtime_ns)
        writing.sealing, writing.staging = found, None
        try:
            entry = await self._in_thread(self._seal, writing, staging, writing.place, options)
        except (KvfsError, OSError) as error:
            writing.failure = writing.failure or errno_of(error)
            await self.discard(writing)
            if former:
                await self._in_thread(self._store.recheck, writing.namespace_id, former)
            raise
        finally:
            writing.sealing = None
        self._close_base(writing)
        if writing.direct < 0:
            self._end_copy(writing)
        writing.inode, writing.sealed_size = entry.inode, entry.size
        writing.sealed_at, writing.sealed_digest = mark_of(found), entry.digest
        writing.is_changed = writing.is_hidden = False
        # A time set through the descriptor holds for what was written before it.
        writing.options = replace(writing.options, mtime_ns=0)
        if former and former != entry.digest and writing.direct >= 0:
            await self._in_thread(self._store.recheck, writing.namespace_id, former)
        return entry

    async def keep(self, writing: WritingFile) -> Entry | None:
        """Make it a mutable file under its name; None if it has none. Caller holds `writing.lock`.

        Whatever fails, nothing becomes visible and the file is finished.
        """
        staging, place = writing.staging, writing.place
        if staging is None or place is None:
            return None
        writing.sealing, writing.staging = os.fstat(staging.fd), None
        keep = self._store.keep_mutable
        try:
            entry, kept = await self._in_thread(keep, staging, place, writing.options)
        except (KvfsError, OSError) as error:
            writing.failure = writing.failure or errno_of(error)
            await self.discard(writing)
            raise
        finally:
            writing.sealing = None
        self._close_base(writing)
        writing.kept, writing.inode = kept, entry.inode
        writing.is_hidden = writing.is_changed = False
        writing.options = replace(writing.options, mtime_ns=0)
        return entry

    async def _copy_direct(self, writing: WritingFile) -> Staging:
        """Copy what the kernel wrote since the file was sealed; the old one is withdrawn (I3)."""
        await self.fill_copy(writing)
        staging = await self._in_thread(self._store.stage, writing.namespace_id)
        try:
            size = os.fstat(writing.direct).st_size
            await self._in_thread(staging.ensure, size)
            await self._in_thread(copy_bytes, writing.direct, staging.fd, size)
        except BaseException:
            staging.close()
            raise
        return staging

    async def discard(self, writing: WritingFile) -> None:
        """Throw away what was written. Caller holds `writing.lock`."""
        writing.is_discarded = True
        writing.is_changed = False
        staging, writing.staging = writing.staging, None
        if staging is not None:
            await self._in_thread(staging.close)

    async def close(self, writing: WritingFile) -> None:
        """The last handle is gone."""
        async with writing.lock:
            kept, writing.kept = writing.kept, None
            if kept is not None:
                await self._in_thread(kept.close)
            await self.discard(writing)
            self._close_base(writing)
            self._end_copy(writing)
            if writing.direct >= 0:
                os.close(writing.direct)
                writing.direct = -1

    async def make_private(
        self, writing: WritingFile, keep: int | None = None
    ) -> Staging | DirectFile | MutableFile:
        """Return the file's staging, filled from its base if it is new. Caller holds the lock."""
        if writing.kept is not None:
            return writing.kept
        if writing.is_discarded:
            raise OSError(writing.failure or errno.EIO, "the file was given up by its writer")
        await self.fill_copy(writing)
        if writing.staging is not None:
            return writing.staging
        if writing.direct >= 0:
            return DirectFile(writing.direct)
        if writing.base is None and writing.inode:
            writing.base = await self._in_thread(self._store.open_inode, writing.inode)
        staging = await self._in_thread(self._store.stage, writing.namespace_id)
        if writing.base is not None:
            try:
                await self._in_thread(fill_base, staging, writing.base, keep)
            except BaseException:
                staging.close()
                raise
        writing.staging = staging
        return staging

    async def _run(self, length: int, call: Callable[..., T], *arguments: object) -> T:
        if length <= INLINE_BYTES:
            return call(*arguments)
        return await self._in_thread(call, *arguments)

    @staticmethod
    def _end_copy(writing: WritingFile) -> None:
        copied, writing.copied = writing.copied, None
        if copied is not None:
            copied.view.close()

    @staticmethod
    def _close_base(writing: WritingFile) -> None:
        base, writing.base = writing.base, None
        if base is not None:
            base.close()


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), which Python offers without its modes. Raises: OSError."""
    arguments = (ctypes.c_int64(offset), ctypes.c_int64(length))
    if _libc.fallocate(descriptor, mode, *arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def fill_base(staging: Staging, view: ReadView, keep: int | None) -> None:
    """Copy a sealed file into staging, at most `keep` bytes of it.

    Copies: none in user space for raw blocks (copy_file_range; a reflink where the disk can).
    """
    wanted = view.size if keep is None else min(keep, view.size)
    staging.ensure(wanted)
    if view.codec is Codec.RAW:
        copy_bytes(view.fd, staging.fd, wanted)
        return
    for offset in range(0, wanted, COPY_BYTES):
        staging.pwrite(view.pread(offset, min(COPY_BYTES, wanted - offset)), offset)


def _may_share(writing: WritingFile, view: ReadView) -> bool:
    """Whether a whole copy of `view` may stay a hole: see whole_copies.py."""
    is_alone = writing.openers == 1 and not writing.is_mappable and not writing.is_shared
    is_fit = bool(view.entry.digest) and not view.entry.is_mutable
    is_healthy = not writing.failure and not writing.is_discarded
    return is_alone and is_fit and is_healthy and view.entry.namespace_id == writing.namespace_id


def _fail(writing: WritingFile, error: KvfsError | OSError) -> None:
    """Remember for the close that a write failed; that of a mutable file can undo nothing."""
    if writing.kept is None:
        writing.failure = writing.failure or errno_of(error)


def mark_of(found: os.stat_result) -> tuple[int, int]:
    """Return what changes with every write(2): linking and labelling leave it alone."""
    return found.st_size, found.st_mtime_ns
