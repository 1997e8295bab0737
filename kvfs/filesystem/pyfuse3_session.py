"""The portable transport: the operations behind libfuse, through pyfuse3.

Owns every use of pyfuse3: its types in, its types out, its loop. Refuses to decide anything about
files. It needs no CAP_SYS_ADMIN (fusermount3 mounts) and runs on any kernel with FUSE, but has no
passthrough, no O_TMPFILE, fallocate, copy_file_range or lseek, and its flush() is not told who
closes: operations then judge by the creating process alone (processes.py).
Must hold: a handler raises nothing but FUSEError; pyfuse3 ends the whole session otherwise.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

from kvfs.errors import Denied, Unavailable
from kvfs.filesystem.edge import answer
from kvfs.filesystem.operations import Operations
from kvfs.filesystem.records import (
    SECTOR_BYTES,
    TIMEOUT_S,
    AttributeRequest,
    Attributes,
    Caller,
    EntryReply,
    OpenReply,
)
from kvfs.model import MAX_MOUNT_NAME_LENGTH

try:
    import pyfuse3
except ImportError:  # an installation for the kernel transport alone
    if not TYPE_CHECKING:
        pyfuse3 = None

T = TypeVar("T")

MAX_TASKS = 64
"""Requests served at once; each may wait for a thread, and trio has 40 of those."""


def is_available() -> bool:
    """Whether pyfuse3 could be imported."""
    return pyfuse3 is not None


class Pyfuse3Session:
    """One mount through pyfuse3. pyfuse3 keeps its state in globals: one a process."""

    def __init__(
        self, operations: Operations, *, source: str, allow_other: bool, read_only: bool
    ) -> None:
        self._operations = operations
        self._options = set(pyfuse3.default_options)
        self._options |= {f"fsname={source.replace(',', '?')}", "subtype=kvfs"}
        if allow_other:
            self._options.add("allow_other")
        if read_only:
            self._options.add("ro")
        self._is_mounted = False

    @property
    def name(self) -> str:
        return "pyfuse3"

    def mount(self, mountpoint: str) -> None:
        """Mount. Raises: Denied with what to check."""
        try:
            # It asks for the methods of its Operations class, not for the class.
            handlers = cast("pyfuse3.Operations", Handlers(self._operations))
            pyfuse3.init(handlers, mountpoint, self._options)
        except RuntimeError as error:
            raise Denied(
                f"libfuse could not mount {mountpoint} ({error}): run as root, or install fuse3 "
                "and, for allow_other, add user_allow_other to /etc/fuse.conf"
            ) from error
        self._is_mounted = True

    async def serve(self) -> None:
        """Answer requests until the file system is unmounted or `stop` is called."""
        try:
            await pyfuse3.main(min_tasks=4, max_tasks=MAX_TASKS)
        except OSError as error:
            raise Unavailable(f"the FUSE session broke off: {error}") from error

    def stop(self) -> None:
        """Let `serve` return after the requests at hand."""
        pyfuse3.terminate()

    def close(self) -> None:
        """Unmount if need be and free the session. Idempotent."""
        if self._is_mounted:
            self._is_mounted = False
            pyfuse3.close(unmount=True)


class Handlers:
    """pyfuse3's handler methods over `Operations`. Names and parameters are pyfuse3's."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def init(self) -> None:
        """Nothing to prepare."""

    # -- names

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _entry(await _edge(self._operations.lookup(parent_inode, name, _caller(ctx))))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for nodeid, count in inode_list:
            self._operations.forget(nodeid, count)

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _entry(await _edge(self._operations.mkdir(parent_inode, name, mode, _caller(ctx))))

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _entry(await _edge(self._operations.mknod(parent_inode, name, mode, _caller(ctx))))

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        made = self._operations.symlink(parent_inode, name, target, _caller(ctx))
        return _entry(await _edge(made))

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await _edge(self._operations.readlink(inode))

    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await _edge(self._operations.unlink(parent_inode, name, _caller(ctx)))

    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await _edge(self._operations.rmdir(parent_inode, name))

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        await _edge(
            self._operations.rename(
                parent_inode_old, name_old, parent_inode_new, name_new, flags, _caller(ctx)
            )
        )

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        made = self._operations.link(inode, new_parent_inode, new_name, _caller(ctx))
        return _entry(await _edge(made))

    # -- attributes

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return _attributes(inode, await _edge(self._operations.getattr(inode)))

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        request = AttributeRequest(
            size=attr.st_size if fields.update_size else None,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            handle=fh,
        )
        changed = self._operations.setattr(inode, request, _caller(ctx))
        return _attributes(inode, await _edge(changed))

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return await _edge(self._operations.getxattr(inode, name))

    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return await _edge(self._operations.listxattr(inode))

    async def setxattr(
        self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        # pyfuse3 decides XATTR_CREATE and XATTR_REPLACE itself, by a getxattr before this.
        await _edge(self._operations.setxattr(inode, name, value, 0))

    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await _edge(self._operations.removexattr(inode, name))

    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        """Never asked: the kernel checks modes itself (default_permissions)."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        report = await _edge(self._operations.statfs())
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = SECTOR_BYTES
        data.f_blocks = report.blocks
        data.f_bfree = data.f_bavail = report.blocks_free
        data.f_files = report.files
        data.f_ffree = data.f_favail = report.files_free
        data.f_namemax = MAX_MOUNT_NAME_LENGTH
        return data

    # -- directories

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return await _edge(self._operations.listings.opendir(inode))

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        await _edge(self._list(fh, start_id, token))

    async def _list(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        with self._operations.listings.telling() as tell:
            for row in self._operations.listings.readdir(fh, start_id):
                reply = self._operations.listings.readdir_entry(row)
                if reply is None:
                    continue
                is_given = pyfuse3.readdir_reply(token, row.name, _entry(reply), row.next_offset)
                # The kernel counts no lookup for the two dots (fs/fuse/readdir.c).
                if is_given and row.name not in (b".", b".."):
                    tell(reply.nodeid)
                else:
                    self._operations.forget(reply.nodeid, 0)
                if not is_given:
                    return

    async def releasedir(self, fh: int) -> None:
        await _edge(self._operations.listings.releasedir(fh))

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """A name is as durable as the store's durability level makes it when it is published."""

    # -- content

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return _opened(await _edge(self._operations.files.open(inode, flags, _caller(ctx))))

    async def create(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        made = self._operations.files.create(parent_inode, name, mode, flags, _caller(ctx))
        entry, opened = await _edge(made)
        return _opened(opened), _entry(entry)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await _edge(self._operations.contents.read(fh, off, size))

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await _edge(self._operations.contents.write(fh, off, buf))

    async def flush(self, fh: int) -> None:
        await _edge(self._operations.files.flush(fh, Caller()))

    async def release(self, fh: int) -> None:
        await _edge(self._operations.files.release(fh))

    async def fsync(self, fh: int, datasync: bool) -> None:
        await _edge(self._operations.contents.sync(fh))

    async def poll(
        self,
        inode: int,
        fh: int,
        ph: pyfuse3.PollHandle | None,
        ctx: pyfuse3.RequestContext,
    ) -> int:
        """Never asked again after this: plain files are always ready."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    def stacktrace(self) -> None:
        """pyfuse3's debugging attribute; there is nothing to show."""


async def _edge(work: Awaitable[T]) -> T:
    """Run an operation; its errno goes to pyfuse3 in the one exception that it takes."""
    try:
        return await answer(work)
    except OSError as error:
        raise pyfuse3.FUSEError(error.errno or errno.EIO) from None


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.pid, ctx.uid, ctx.gid)


def _entry(reply: EntryReply) -> pyfuse3.EntryAttributes:
    attributes = _attributes(reply.nodeid, reply.attributes)
    attributes.entry_timeout = reply.entry_timeout_s
    attributes.attr_timeout = reply.attribute_timeout_s
    return attributes


def _attributes(nodeid: int, found: Attributes) -> pyfuse3.EntryAttributes:
    """pyfuse3 takes nodeid and st_ino from one field, so st_ino is the nodeid here."""
    found = replace(found, ino=nodeid)
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = pyfuse3.InodeT(found.ino)
    attributes.st_mode = pyfuse3.ModeT(found.mode)
    attributes.st_nlink = found.nlink
    attributes.st_uid = found.uid
    attributes.st_gid = found.gid
    attributes.st_size = found.size
    attributes.st_blksize = SECTOR_BYTES
    attributes.st_blocks = found.blocks
    attributes.st_atime_ns = found.atime_ns
    attributes.st_mtime_ns = found.mtime_ns
    attributes.st_ctime_ns = found.ctime_ns
    attributes.attr_timeout = TIMEOUT_S  # pyfuse3's own default is 300 s
    return attributes


def _opened(reply: OpenReply) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(
        fh=pyfuse3.FileHandleT(reply.handle),
        keep_cache=reply.keep_cache,
        direct_io=reply.is_stream,
    )
