"""The kernel transport: one mount served over /dev/fuse by our own loop.

Owns the device, the loop and the mapping request -> operation -> reply. Refuses to know message
layouts (wire.py) and what operations do. Needs CAP_SYS_ADMIN, for mount(2) and for passthrough.
One task reads. What an operation answers without waiting it serves at once; everything else gets a
task and the buffer that it came in.
Must hold: every request but FORGET and INTERRUPT is answered once; at most MAX_IN_FLIGHT are open.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import select
import stat
from collections.abc import Awaitable, Callable

import trio

from kvfs.errors import Denied, Unavailable
from kvfs.filesystem import mount_points
from kvfs.filesystem.edge import answer
from kvfs.filesystem.kernel import wire
from kvfs.filesystem.kernel.passthrough import BackingFiles
from kvfs.filesystem.kernel.quick import QuickAnswers, encode_opened
from kvfs.filesystem.kernel.wire import InitFlag, Opcode, OpenFlag, Request, SetattrValid
from kvfs.filesystem.open_files import wants_write
from kvfs.filesystem.operations import Operations
from kvfs.filesystem.records import (
    FILE_TYPES,
    SECTOR_BYTES,
    TIMEOUT_S,
    AttributeRequest,
    Caller,
    EntryReply,
    OpenReply,
)
from kvfs.filesystem.sealed_opens import IDLE_SECONDS, SealedOpens
from kvfs.model import MAX_MOUNT_NAME_LENGTH

log = logging.getLogger(__name__)

MAX_WRITE = 1 << 20
MAX_PAGES = 256
BUFFER_BYTES = MAX_WRITE + 8192
MAX_IN_FLIGHT = 64
"""Requests that wait at one time, each with a buffer (touched only as far as it was filled)."""
TURNS = 16
"""Requests served before other tasks get a turn."""
PATIENCE_MS = 1
"""How long to wait for the next request without trio, while nothing else is in flight that it could
bring on: 7.5 us a request instead of 10.6, and half of that CPU. A timer may be so much late."""
MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4

WANTED = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.AUTO_INVAL_DATA
    | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.HANDLE_KILLPRIV_V2
    | InitFlag.INIT_EXT
    | InitFlag.DIRECT_IO_ALLOW_MMAP
    | InitFlag.PASSTHROUGH
)
"""ATOMIC_O_TRUNC: otherwise truncation would reach the published file as a SETATTR. KILLPRIV_V2:
otherwise every write asks for security.capability first. Not WRITEBACK_CACHE: it excludes
passthrough."""

PROMPT = frozenset(
    {
        Opcode.LOOKUP,
        Opcode.GETATTR,
        Opcode.READLINK,
        Opcode.STATFS,
        Opcode.GETXATTR,
        Opcode.LISTXATTR,
        Opcode.OPENDIR,
        Opcode.READDIR,
        Opcode.READDIRPLUS,
        Opcode.RELEASEDIR,
        Opcode.FSYNCDIR,
        Opcode.INIT,
        Opcode.DESTROY,
        Opcode.ACCESS,
    }
)
"""Operations that never wait: a few lookups in the index, microseconds each."""

Handler = Callable[[Request], Awaitable[bytes]]

_libc = ctypes.CDLL(None, use_errno=True)


class KernelSession:
    """One mount over /dev/fuse."""

    def __init__(
        self, operations: Operations, *, source: str, allow_other: bool, read_only: bool
    ) -> None:
        self._operations = operations
        self._source = source
        self._allow_other = allow_other
        self._read_only = read_only
        self._device = -1
        self._mountpoint = ""
        self._scope = trio.CancelScope()
        self._slots = trio.Semaphore(MAX_IN_FLIGHT)
        self._spare: list[bytearray] = []
        self._backing = BackingFiles()
        self._sealed = SealedOpens(operations.state)
        self._quick = QuickAnswers(operations.state, self._sealed, self._backing)
        self._handlers = self._make_handlers()

    @property
    def name(self) -> str:
        return "kernel"

    def mount(self, mountpoint: str) -> None:
        """Mount. Raises: Denied with what to do instead."""
        self._device = os.open(mount_points.DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"
        options += ",default_permissions" + (",allow_other" if self._allow_other else "")
        flags = MS_NOSUID | MS_NODEV | (MS_RDONLY if self._read_only else 0)
        names = (self._source, mountpoint, mount_points.FILESYSTEM)
        source, target, kind = (os.fsencode(name) for name in names)
        if _libc.mount(source, target, kind, ctypes.c_ulong(flags), options.encode()):
            number = ctypes.get_errno()
            os.close(self._device)
            raise Denied(
                f"the kernel refuses to mount on {mountpoint} ({os.strerror(number)}): "
                "run as root, or use --transport pyfuse3"
            )
        self._mountpoint = mountpoint

    async def serve(self) -> None:
        """Answer requests until the file system is unmounted or `stop` is called."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_idle)
            with self._scope:
                await self._read_requests(nursery)
            nursery.cancel_scope.cancel()
        for idle in self._sealed.idle.expire(everything=True):
            idle.reading.close()

    async def _close_idle(self) -> None:
        """Close sealed files that nobody opened again."""
        while True:
            await trio.sleep(IDLE_SECONDS)
            for idle in self._sealed.idle.expire():
                self._backing.close(idle.backing_id)
                await self._sealed.close(idle)

    def stop(self) -> None:
        """Let `serve` return now."""
        self._scope.cancel()

    def close(self) -> None:
        """Unmount if need be and close the device. Idempotent."""
        if not self._mountpoint:
            return
        mountpoint, self._mountpoint = self._mountpoint, ""
        found = mount_points.find_mount(mountpoint)
        if found is not None and found.filesystem == mount_points.FILESYSTEM:
            mount_points.detach(mountpoint)
        os.close(self._device)

    # -- the loop

    async def _read_requests(self, nursery: trio.Nursery) -> None:
        buffer = bytearray(BUFFER_BYTES)
        turns = 0
        waiting = select.poll()
        waiting.register(self._device, select.POLLIN)
        while True:
            length = self._receive(buffer)
            if length < 0:
                return
            if not length:
                if self._slots.value == MAX_IN_FLIGHT and waiting.poll(PATIENCE_MS):
                    continue
                turns = 0
                await trio.lowlevel.wait_readable(self._device)
                continue
            turns += 1
            message = memoryview(buffer)[:length]
            reply = self._quick.answer(message)
            request = None if reply is not None else self._decode(message)
            if reply is not None:
                self._send(reply)
            elif request is None:
                pass
            elif request.opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
                for nodeid, count in wire.decode_forgets(request):
                    self._operations.forget(nodeid, count)
            elif request.opcode is Opcode.INTERRUPT:
                pass  # the operation finishes; the kernel has its own way with the caller
            elif is_prompt(request):
                await self._serve(request)
            else:
                await self._slots.acquire()
                nursery.start_soon(self._serve_in_task, request, buffer)
                buffer = self._spare.pop() if self._spare else bytearray(BUFFER_BYTES)
            if turns >= TURNS:
                turns = 0
                await trio.lowlevel.checkpoint()

    def _decode(self, message: memoryview) -> Request | None:
        """Return the request; what is none is logged, answered with EIO, and passed over."""
        try:
            return wire.decode_request(message)
        except wire.ProtocolError as error:
            log.error("kernel_message_refused error=%s", error)
            if len(message) >= wire.IN_HEADER.size:
                self._send(wire.encode_error(wire.IN_HEADER.unpack_from(message)[2], errno.EIO))
            return None

    def _receive(self, buffer: bytearray) -> int:
        """Read one message; 0 = none there, -1 = unmounted. Raises: Unavailable."""
        while True:
            try:
                return os.readv(self._device, [buffer])
            except BlockingIOError:
                return 0
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue  # the request was taken back between the kernel's queue and us
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return -1
                raise Unavailable(f"/dev/fuse broke off: {error.strerror}") from error

    async def _serve_in_task(self, request: Request, buffer: bytearray) -> None:
        try:
            await self._serve(request)
        finally:
            request.data.release()
            self._spare.append(buffer)
            self._slots.release()

    async def _serve(self, request: Request) -> None:
        handler = self._handlers.get(request.opcode)
        if handler is None:
            self._send(wire.encode_error(request.unique, errno.ENOSYS))
            return
        try:
            body = await answer(handler(request))
        except OSError as error:
            self._send(wire.encode_error(request.unique, error.errno or errno.EIO))
            return
        if len(body) > SECTOR_BYTES:
            self._send(wire.encode_header(request.unique, len(body)), body)
        else:
            self._send(wire.encode_reply(request.unique, body))

    def _send(self, *pieces: bytes) -> None:
        try:
            os.writev(self._device, pieces)
        except OSError as error:
            # ENOENT: the caller was killed while it waited; ENODEV: unmounted.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                log.warning("kernel_reply_refused error=%s", error.strerror)

    # -- requests, one method each

    def _make_handlers(self) -> dict[int, Handler]:
        return {
            Opcode.INIT: self._init,
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.READLINK: self._readlink,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename,
            Opcode.LINK: self._link,
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.TMPFILE: self._tmpfile,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.FLUSH: self._flush,
            Opcode.RELEASE: self._release,
            Opcode.FSYNC: self._fsync,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.LSEEK: self._lseek,
            Opcode.COPY_FILE_RANGE: self._copy_file_range,
            Opcode.STATFS: self._statfs,
            Opcode.SETXATTR: self._setxattr,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.REMOVEXATTR: self._removexattr,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: _nothing,
            Opcode.DESTROY: _nothing,
        }

    async def _init(self, request: Request) -> bytes:
        offer = wire.decode_init(request)
        flags = WANTED & offer.flags
        has_passthrough = InitFlag.PASSTHROUGH in flags
        if has_passthrough:
            self._backing.enable(self._device)
            self._operations.files.use_passthrough()
        log.info("kernel_protocol version=7.%d passthrough=%s", offer.minor, has_passthrough)
        return wire.encode_init(
            wire.InitReply(
                minor=min(offer.minor, wire.OUR_MINOR),
                max_readahead=min(offer.max_readahead, MAX_WRITE),
                flags=flags,
                max_write=MAX_WRITE,
                max_pages=MAX_PAGES,
                max_stack_depth=1 if has_passthrough else 0,
            )
        )

    async def _lookup(self, request: Request) -> bytes:
        found = await self._operations.lookup(request.nodeid, request.names[0], _caller(request))
        return _entry(found)

    async def _getattr(self, request: Request) -> bytes:
        found = await self._operations.getattr(request.nodeid)
        return wire.encode_attributes_out(found, TIMEOUT_S)

    async def _setattr(self, request: Request) -> bytes:
        change = attribute_request(request.fields)
        found = await self._operations.setattr(request.nodeid, change, _caller(request))
        return wire.encode_attributes_out(found, TIMEOUT_S)

    async def _readlink(self, request: Request) -> bytes:
        return await self._operations.readlink(request.nodeid)

    async def _symlink(self, request: Request) -> bytes:
        name, target = request.names
        caller = _caller(request)
        return _entry(await self._operations.symlink(request.nodeid, name, target, caller))

    async def _mknod(self, request: Request) -> bytes:
        mode, name, caller = request.fields[0], request.names[0], _caller(request)
        return _entry(await self._operations.mknod(request.nodeid, name, mode, caller))

    async def _mkdir(self, request: Request) -> bytes:
        mode, name, caller = request.fields[0], request.names[0], _caller(request)
        return _entry(await self._operations.mkdir(request.nodeid, name, mode, caller))

    async def _unlink(self, request: Request) -> bytes:
        await self._operations.unlink(request.nodeid, request.names[0], _caller(request))
        return b""

    async def _rmdir(self, request: Request) -> bytes:
        await self._operations.rmdir(request.nodeid, request.names[0])
        return b""

    async def _rename(self, request: Request) -> bytes:
        flags = request.fields[1] if request.opcode is Opcode.RENAME2 else 0
        source, target = request.names
        await self._operations.rename(
            request.nodeid, source, request.fields[0], target, flags, _caller(request)
        )
        return b""

    async def _link(self, request: Request) -> bytes:
        nodeid, name, caller = request.fields[0], request.names[0], _caller(request)
        return _entry(await self._operations.link(nodeid, request.nodeid, name, caller))

    # -- content

    async def _open(self, request: Request) -> bytes:
        flags, caller = request.fields[0], _caller(request)
        opened = await self._operations.files.open(request.nodeid, flags, caller)
        return await self._opened(request.nodeid, opened)

    async def _create(self, request: Request) -> bytes:
        flags, mode = request.fields[:2]
        entry, opened = await self._operations.files.create(
            request.nodeid, request.names[0], mode, flags, _caller(request)
        )
        return _entry(entry) + await self._opened(entry.nodeid, opened)

    async def _tmpfile(self, request: Request) -> bytes:
        flags, mode = request.fields[:2]
        entry, opened = await self._operations.files.create_unnamed(
            request.nodeid, mode, flags, _caller(request)
        )
        return _entry(entry) + await self._opened(entry.nodeid, opened)

    async def _opened(self, nodeid: int, reply: OpenReply) -> bytes:
        try:
            is_writer = reply.is_flushed
            backing_id = self._backing.acquire(
                nodeid, reply.descriptor, is_writer=is_writer, is_mutable=reply.is_mutable
            )
        except OSError:
            await self._operations.files.release(reply.handle)
            raise
        if is_writer and not backing_id:
            self._operations.files.write_through_us(reply.handle)
        return encode_opened(reply, backing_id)

    async def _read(self, request: Request) -> bytes:
        handle, offset, length = request.fields[:3]
        return await self._operations.contents.read(handle, offset, length)

    async def _write(self, request: Request) -> bytes:
        handle, offset = request.fields[:2]
        written = await self._operations.contents.write(handle, offset, request.data)
        return wire.WRITE_OUT.pack(written, 0)

    async def _flush(self, request: Request) -> bytes:
        await self._operations.files.flush(request.fields[0], _caller(request))
        return b""

    async def _release(self, request: Request) -> bytes:
        self._backing.release(request.nodeid)
        await self._operations.files.release(request.fields[0])
        return b""

    async def _fsync(self, request: Request) -> bytes:
        await self._operations.contents.sync(request.fields[0])
        return b""

    async def _fallocate(self, request: Request) -> bytes:
        handle, offset, length, mode, _ = request.fields
        await self._operations.contents.allocate(handle, mode, offset, length)
        return b""

    async def _lseek(self, request: Request) -> bytes:
        handle, offset, whence, _ = request.fields
        found = await self._operations.contents.seek(handle, offset, whence)
        return wire.LSEEK_OUT.pack(found)

    async def _copy_file_range(self, request: Request) -> bytes:
        source, source_offset, _, target, target_offset, length, _ = request.fields
        copied = await self._operations.contents.copy_range(
            source, source_offset, target, target_offset, length
        )
        return wire.WRITE_OUT.pack(copied, 0)

    # -- the rest

    async def _statfs(self, request: Request) -> bytes:
        report = await self._operations.statfs()
        return wire.encode_statfs(
            report.blocks,
            report.blocks_free,
            report.files,
            report.files_free,
            SECTOR_BYTES,
            MAX_MOUNT_NAME_LENGTH,
        )

    async def _setxattr(self, request: Request) -> bytes:
        value, flags = bytes(request.data), request.fields[1]
        await self._operations.setxattr(request.nodeid, request.names[0], value, flags)
        return b""

    async def _getxattr(self, request: Request) -> bytes:
        value = await self._operations.getxattr(request.nodeid, request.names[0])
        return _sized(value, request.fields[0])

    async def _listxattr(self, request: Request) -> bytes:
        names = await self._operations.listxattr(request.nodeid)
        return _sized(b"".join(name + b"\0" for name in names), request.fields[0])

    async def _removexattr(self, request: Request) -> bytes:
        await self._operations.removexattr(request.nodeid, request.names[0])
        return b""

    async def _opendir(self, request: Request) -> bytes:
        # Never ENOSYS: the kernel would then cache listings, and miss published files.
        return wire.encode_open(
            await self._operations.listings.opendir(request.nodeid), OpenFlag(0)
        )

    async def _readdir(self, request: Request) -> bytes:
        handle, offset, room = request.fields[:3]
        pieces = []
        for row in self._operations.listings.readdir(handle, offset):
            kind = stat.S_IFMT(FILE_TYPES[row.kind]) >> 12
            piece = wire.encode_dirent(row.inode, row.next_offset, kind, row.name)
            room -= len(piece)
            if room < 0:
                break
            pieces.append(piece)
        return b"".join(pieces)

    async def _readdirplus(self, request: Request) -> bytes:
        handle, offset, room = request.fields[:3]
        pieces = []
        with self._operations.listings.telling() as tell:
            for row in self._operations.listings.readdir(handle, offset):
                kind = stat.S_IFMT(FILE_TYPES[row.kind]) >> 12
                piece = wire.encode_dirent(row.inode, row.next_offset, kind, row.name)
                room -= len(piece) + wire.ENTRY_BYTES
                if room < 0:
                    break
                if row.name in (b".", b".."):
                    pieces.append(bytes(wire.ENTRY_BYTES) + piece)  # nodeid 0: no lookup counted
                    continue
                reply = self._operations.listings.readdir_entry(row)
                if reply is None:
                    room += len(piece) + wire.ENTRY_BYTES
                    continue
                tell(reply.nodeid)
                pieces.append(_entry(reply) + piece)
        return b"".join(pieces)

    async def _releasedir(self, request: Request) -> bytes:
        await self._operations.listings.releasedir(request.fields[0])
        return b""


def is_prompt(request: Request) -> bool:
    """Whether the operation will not wait, or in the rarest case only, and not for the mount."""
    if request.opcode is Opcode.OPEN:
        return not wants_write(request.fields[0])
    if request.opcode is Opcode.RELEASE:
        return not wants_write(request.fields[1])
    return request.opcode in PROMPT


async def _nothing(request: Request) -> bytes:
    return b""


def _caller(request: Request) -> Caller:
    return Caller(request.pid, request.uid, request.gid)


def _entry(reply: EntryReply) -> bytes:
    return wire.encode_entry(
        reply.nodeid, reply.attributes, reply.entry_timeout_s, reply.attribute_timeout_s
    )


def _sized(value: bytes, room: int) -> bytes:
    """Answer a getxattr or listxattr: room 0 asks for the length."""
    if not room:
        return wire.XATTR_OUT.pack(len(value), 0)
    if len(value) > room:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def attribute_request(fields: tuple[int, ...]) -> AttributeRequest:
    """Return what a SETATTR asks for; its `now` flags come with the kernel's time filled in."""
    valid, _, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = fields
    chosen = SetattrValid(valid & 0x1FF)
    return AttributeRequest(
        size=size if SetattrValid.SIZE in chosen else None,
        mode=mode if SetattrValid.MODE in chosen else None,
        uid=uid if SetattrValid.UID in chosen else None,
        gid=gid if SetattrValid.GID in chosen else None,
        atime_ns=_signed(atime) * 1_000_000_000 + atime_ns
        if SetattrValid.ATIME in chosen
        else None,
        mtime_ns=_signed(mtime) * 1_000_000_000 + mtime_ns
        if SetattrValid.MTIME in chosen
        else None,
        handle=handle if SetattrValid.FH in chosen else None,
    )


def _signed(seconds: int) -> int:
    """Times before 1970 travel as two's complement."""
    return seconds - (1 << 64) if seconds >> 63 else seconds
