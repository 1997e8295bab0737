"""Every operation of the mount, once: plain async methods on plain records.

Owns names and attributes; opening and closing are in open_files.py, data in file_contents.py,
directories being listed in listings.py. Refuses to know pyfuse3 and the kernel's messages: a test
calls these methods without a mount. They raise KvfsError and OSError; edge.py turns both into an
errno.
Must hold: between two awaits nothing else runs, so a table is read and changed without one between.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncIterator
from dataclasses import replace

from kvfs.aio import BlockingCalls
from kvfs.clock import Clock
from kvfs.errors import NotFound
from kvfs.filesystem import content_view, xattrs
from kvfs.filesystem.content_view import ContentView, is_view
from kvfs.filesystem.file_contents import FileContents
from kvfs.filesystem.inodes import Node
from kvfs.filesystem.listings import Listings
from kvfs.filesystem.mount_state import MountState, os_error
from kvfs.filesystem.open_files import OpenFiles, check_name
from kvfs.filesystem.pending_names import Credit, Overwrite
from kvfs.filesystem.processes import Creator, Processes
from kvfs.filesystem.records import (
    ROOT_NODEID,
    SECTOR_BYTES,
    AttributeRequest,
    Attributes,
    Caller,
    EntryReply,
    OpenReply,
    SpaceReport,
)
from kvfs.filesystem.slabs import Slabs
from kvfs.model import AttributeChange, ChildName, Entry, Kind, PutOptions
from kvfs.store.read_view import ReadView
from kvfs.store.renames import RenameMode
from kvfs.store.store import Store

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
XATTR_CREATE = 1
XATTR_REPLACE = 2


class Operations:
    """The mount's operations. One instance a mount, on one loop."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        processes: Processes,
        calls: BlockingCalls,
        *,
        is_read_only: bool = False,
    ) -> None:
        self._state = MountState.build(store, clock, processes, calls, is_read_only=is_read_only)
        self._view = ContentView(store, self._gauges)
        self.slabs = Slabs(self._state)
        self.files = OpenFiles(self._state, self._view, self.slabs)
        self.contents = FileContents(self._state, self.slabs)
        self.listings = Listings(self._state, self._view)

    @property
    def state(self) -> MountState:
        """The mount's tables, for a transport that answers the commonest requests by itself."""
        return self._state

    def _gauges(self) -> dict[str, int]:
        """The mount's own numbers, for status and metrics."""
        return {
            "kvfs_mount_inodes": len(self._state.inodes),
            "kvfs_mount_open_files": len(self._state.handles),
            "kvfs_mount_open_directories": len(self.listings),
        }

    # -- names

    async def lookup(self, parent: int, name: bytes, caller: Caller) -> EntryReply:
        """Resolve one component. Raises: OSError ENOENT, also for what others are still writing."""
        state = self._state
        if is_view(parent) or (parent == ROOT_NODEID and name == content_view.NAME):
            return self._view.lookup(parent, name)
        place = ChildName(state.inodes.get(parent).inode, check_name(name))
        # A lookup is how engines ask "is it there?": it counts as an access, and the file will not
        # be evicted before they open it.
        entry = state.store.find_child(place.parent, name, touch=True)
        if entry is None:
            reply = self._lookup_absent(place, caller)
            state.store.take_back_miss(place)
            return reply
        overwrite = state.pending.find_overwrite(caller.thread, place)
        if overwrite is not None and overwrite.is_reading and entry.is_file:
            return self._lookup_held(overwrite, place, entry)
        if overwrite is not None and entry.is_file:
            with state.inodes.held(entry.inode) as node:
                return self._lookup_alias(overwrite, place, node, entry)
        node = state.inodes.for_inode(entry.inode)
        return state.reply(node, entry, is_fleeting=bool(state.pending.writers(place)))

    def _lookup_absent(self, place: ChildName, caller: Caller) -> EntryReply:
        state = self._state
        writing = state.pending.own_hidden(place, caller.thread)
        overwrite = state.pending.find_overwrite(caller.thread, place)
        is_reading = overwrite is None or overwrite.is_reading
        if writing is not None:
            node = state.inodes.get(writing.nodeid)
            if overwrite is not None and not is_reading:
                return self._lookup_alias(overwrite, place, node, None)
            return state.reply(node, is_fleeting=True)
        if overwrite is not None and overwrite.alias is not None:
            return state.reply(overwrite.alias, is_fleeting=True)  # renamed away since the first
        if overwrite is not None and overwrite.is_reading:
            state.pending.finish_overwrite(caller.thread)  # its walk ends here
        if is_reading and state.pending.has_credits(place):
            group = state.processes.group_of(caller.thread)
            credit = state.pending.credit(place, group)
            if credit is not None:
                return state.reply(self._owed(credit), is_fleeting=True)
        raise os_error(errno.ENOENT)

    def _owed(self, credit: Credit) -> Node:
        """Return what a twin's rename moves: the file, or a shadow of it if it is gone already."""
        if self._state.store.stat_inode(credit.inode) is not None:
            return self._state.inodes.for_inode(credit.inode)
        shadow = self._state.inodes.make_private()
        shadow.shown = replace(credit.attributes, ino=shadow.nodeid)
        return shadow

    def _lookup_alias(
        self, overwrite: Overwrite, place: ChildName, node: Node, entry: Entry | None
    ) -> EntryReply:
        """Lead a thread that opens a file for writing to an inode of its own."""
        alias = overwrite.alias
        if alias is None:
            if entry is not None and not overwrite.is_emptying:
                overwrite.base = self._hold(entry)
            looks = self._state.attributes(node, entry)
            alias = self._state.inodes.make_private(node.inode)
            alias.overwrites = place
            overwrite.place = place
            alias.holds = 1
            alias.shown = replace(looks, ino=alias.nodeid)
            overwrite.alias = alias
        return self._state.reply(alias, is_fleeting=True)

    def _lookup_held(self, overwrite: Overwrite, place: ChildName, entry: Entry) -> EntryReply:
        """Hold what a reader's second walk leads to: the name's file of this moment, until it is
        opened. The kernel may ask twice; it is told the same."""
        state = self._state
        if overwrite.alias is None:
            overwrite.base = self._hold(entry)
            overwrite.alias = state.inodes.for_inode(entry.inode)
            overwrite.alias.holds += 1
            overwrite.place = place
        same = entry if overwrite.alias.inode == entry.inode else None
        return state.reply(overwrite.alias, same, is_fleeting=True)

    def _hold(self, entry: Entry) -> ReadView | None:
        """Open what a name just led to; None if it is gone by now, or must be hashed first."""
        try:
            return self._state.store.open_trusted(entry.inode)
        except NotFound:
            return None

    def forget(self, nodeid: int, count: int) -> None:
        """The kernel drops `count` references to `nodeid`."""
        if is_view(nodeid):
            self._view.forget(nodeid, count)
        else:
            self._state.inodes.forget(nodeid, count)

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> EntryReply:
        state = self._state
        state.require_writable()
        directory = state.inodes.get(parent)
        above = state.entry(directory)
        gid = above.gid if above.mode & 0o2000 else caller.gid
        place = ChildName(directory.inode, check_name(name))
        state.store.take_back_miss(place)
        bits = (mode & 0o7777) | (above.mode & 0o2000)
        entry = await state.calls.run(state.store.mkdir, place, mode=bits, uid=caller.uid, gid=gid)
        return state.reply(state.inodes.for_inode(entry.inode), entry)

    async def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> EntryReply:
        state = self._state
        state.require_writable()
        place = ChildName(state.inodes.get(parent).inode, check_name(name))
        state.store.take_back_miss(place)
        entry = await state.calls.run(
            state.store.symlink, place, target, uid=caller.uid, gid=caller.gid
        )
        return state.reply(state.inodes.for_inode(entry.inode), entry)

    async def readlink(self, nodeid: int) -> bytes:
        entry = self._state.entry(self._state.inodes.get(nodeid))
        if entry.kind is not Kind.SYMLINK:
            raise os_error(errno.EINVAL)
        return entry.target

    async def unlink(self, parent: int, name: bytes, caller: Caller) -> None:
        """Remove a name. Open files keep their bytes; one's own unpublished file loses its name."""
        state = self._state
        state.require_writable()
        place = ChildName(state.inodes.get(parent).inode, name)
        state.pending.drop_credits(place)
        async with self._settled(place):
            try:
                removed = await state.calls.run(state.store.unlink, place)
            except NotFound:
                writing = state.pending.own_hidden(place, caller.thread)
                if writing is None:
                    raise
                state.pending.move_writer(writing, None)
                return
            for writing in state.pending.writers(place):
                if writing.inode == removed.inode:
                    state.pending.move_writer(writing, None)

    @contextlib.asynccontextmanager
    async def _settled(self, place: ChildName) -> AsyncIterator[None]:
        """Keep files published under `place`, and still open, from being published again meanwhile:
        the name would come back."""
        async with contextlib.AsyncExitStack() as locks:
            for writing in self._state.pending.writers(place):
                if writing.inode and not writing.is_hidden:
                    await locks.enter_async_context(writing.lock)
            yield

    async def rmdir(self, parent: int, name: bytes) -> None:
        state = self._state
        state.require_writable()
        place = ChildName(state.inodes.get(parent).inode, name)
        entry = state.store.find_child(place.parent, name)
        if entry is not None and state.pending.has_hidden_below(entry.inode):
            raise os_error(errno.ENOTEMPTY)
        await state.calls.run(state.store.rmdir, place)

    async def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> None:
        """rename(2) with RENAME_NOREPLACE and RENAME_EXCHANGE.

        One's own unpublished file is retargeted; a temporary that a twin renamed first counts as
        renamed (see pending_names.py).
        """
        state = self._state
        state.require_writable()
        source = ChildName(state.inodes.get(parent).inode, name)
        target = ChildName(state.inodes.get(new_parent).inode, check_name(new_name))
        mode = _rename_mode(flags)
        state.store.take_back_miss(target)
        renamer = Creator(caller.thread, 0)
        if state.pending.has_credits(source):
            renamer = Creator(caller.thread, state.processes.group_of(caller.thread))
        async with self._settled(source):
            try:
                await state.calls.run(state.store.rename, source, target, mode=mode)
            except NotFound:
                await self._rename_absent(source, target, renamer)
                return
            state.pending.use_credit(source, renamer)
            self._move_openers(source, target, mode, caller)

    async def _rename_absent(self, source: ChildName, target: ChildName, renamer: Creator) -> None:
        state = self._state
        writing = state.pending.own_hidden(source, renamer.thread)
        if writing is not None:
            state.pending.move_writer(writing, target)
            return
        credit = state.pending.credit(source, renamer.group) if renamer.group else None
        if credit is None:
            raise os_error(errno.ENOENT)
        state.pending.use_credit(source, renamer)
        is_gone = state.store.stat_inode(credit.inode) is None
        if not is_gone and state.store.find_child(target.parent, target.name) is None:
            await state.calls.run(state.store.link, credit.inode, target)

    def _move_openers(
        self, source: ChildName, target: ChildName, mode: RenameMode, caller: Caller
    ) -> None:
        """Files opened for writing through a name that moved are published under the new one.

        Not the hidden ones: a twin's temporary stays where its writer put it.
        """
        pairs = [(source, target)]
        if mode is RenameMode.EXCHANGE:
            pairs.append((target, source))
        moves = [
            (writing, to)
            for at, to in pairs
            for writing in self._state.pending.writers(at)
            if writing.inode and not writing.is_hidden
        ]
        for writing, to in moves:
            self._state.move_opener(writing, to, caller.thread)

    async def link(
        self, nodeid: int, new_parent: int, new_name: bytes, caller: Caller
    ) -> EntryReply:
        """Give a file one more name; a file without any (O_TMPFILE) is published by it."""
        state = self._state
        state.require_writable()
        node = state.inodes.get(nodeid)
        target = ChildName(state.inodes.get(new_parent).inode, check_name(new_name))
        state.store.take_back_miss(target)
        if node.writing is not None and node.writing.is_hidden:
            await self.files.link_unpublished(node, node.writing, target)
        else:
            await state.calls.run(state.store.link, node.inode, target)
        return state.reply(node)

    # -- attributes

    async def getattr(self, nodeid: int) -> Attributes:
        if is_view(nodeid):
            return self._view.attributes(nodeid)
        return self._state.attributes(self._state.inodes.get(nodeid))

    async def setattr(self, nodeid: int, request: AttributeRequest, caller: Caller) -> Attributes:
        """Change size, mode, owner or times; a time set is a touch."""
        state = self._state
        state.require_writable()
        node = state.inodes.get(nodeid)
        if request.size is not None:
            await self.files.truncate(node, request.size, request.handle, caller)
        change = AttributeChange(
            mode=None if request.mode is None else request.mode & 0o7777,
            uid=request.uid,
            gid=request.gid,
            mtime_ns=request.mtime_ns,
        )
        if request.atime_ns is not None:
            # Shown as it was set. Recency is the store's own: a touch with an old time is one too.
            shown = {xattrs.ATIME: str(request.atime_ns).encode()}
            change = replace(change, accessed_s=0, set_attributes=shown)
        if change != AttributeChange():
            await self._apply(node, change)
        return state.attributes(node)

    async def _apply(self, node: Node, change: AttributeChange) -> None:
        """Change the published inode, and what the file being written will be published with."""
        writing = node.writing
        if writing is None:
            await self._apply_published(node, change)
            return
        async with writing.lock:  # a publish on its way would make another inode of it
            if writing.kept is None:
                writing.options = _with_change(writing.options, change)
            if not writing.is_hidden:
                await self._apply_published(node, change)

    async def _apply_published(self, node: Node, change: AttributeChange) -> None:
        if self._state.store.stat_inode(node.inode) is not None:
            await self._state.calls.run(self._state.store.set_attributes, node.inode, change)

    async def getxattr(self, nodeid: int, name: bytes) -> bytes:
        """Return a value. Raises: OSError ENODATA."""
        key = name.decode("utf-8", "surrogateescape")
        if is_view(nodeid) or not key.startswith("user."):
            raise os_error(errno.ENODATA)
        node = self._state.inodes.get(nodeid)
        if key.startswith(xattrs.PREFIX):
            entry = self._state.find_entry(node)
            value = None if entry is None else xattrs.read_virtual(entry, key)
        else:
            value = self._stored_xattrs(node).get(key)
        if value is None:
            raise os_error(errno.ENODATA)
        return value

    async def listxattr(self, nodeid: int) -> list[bytes]:
        if is_view(nodeid):
            return []
        node = self._state.inodes.get(nodeid)
        entry = self._state.find_entry(node)
        if entry is None:
            names = sorted(xattrs.stored_names(self._stored_xattrs(node)))
        else:
            names = xattrs.list_names(entry)
        return [name.encode("utf-8", "surrogateescape") for name in names]

    async def setxattr(self, nodeid: int, name: bytes, value: bytes, flags: int) -> None:
        """Set a user.* attribute; `user.kvfs.*` ones change the entry's fields."""
        state = self._state
        state.require_writable()
        node = state.inodes.get(nodeid)
        key = self._check_xattr(name)
        if len(value) > xattrs.MAX_VALUE_BYTES:
            raise os_error(errno.E2BIG)
        if key == xattrs.MUTABLE:
            await self.files.make_mutable(node, value)
            return
        if key.startswith(xattrs.PREFIX):
            entry = state.find_entry(node)
            await self._apply(node, xattrs.change_virtual(key, value, entry))
            return
        exists = key in self._stored_xattrs(node)
        if flags & XATTR_CREATE and exists:
            raise os_error(errno.EEXIST)
        if flags & XATTR_REPLACE and not exists:
            raise os_error(errno.ENODATA)
        await self._apply(node, AttributeChange(set_attributes={key: value}))

    async def removexattr(self, nodeid: int, name: bytes) -> None:
        state = self._state
        state.require_writable()
        node = state.inodes.get(nodeid)
        key = self._check_xattr(name)
        if key.startswith(xattrs.PREFIX):
            entry = state.find_entry(node)
            await self._apply(node, xattrs.remove_virtual(key, entry))
            return
        if key not in self._stored_xattrs(node):
            raise os_error(errno.ENODATA)
        await self._apply(node, AttributeChange(remove_attributes=(key,)))

    @staticmethod
    def _check_xattr(name: bytes) -> str:
        key = name.decode("utf-8", "surrogateescape")
        if not key.startswith("user."):
            raise os_error(errno.EOPNOTSUPP)
        return key

    def _stored_xattrs(self, node: Node) -> dict[str, bytes]:
        if node.writing is not None and node.writing.is_hidden:
            return dict(node.writing.options.attributes)
        return dict(self._state.entry(node).attributes)

    # -- the whole

    async def statfs(self) -> SpaceReport:
        """Return capacity and what is left of it; engines' cleaners trust these numbers.

        What they unlinked is free by the time they are told: SGLang's looks after each batch of
        files, and would go on deleting until the background thread came by.
        """
        if not self._state.store.is_read_only:
            await self._state.calls.run(self._state.store.empty_trash)
        usage = self._state.store.usage()
        used = usage.resident_bytes + usage.reserved_bytes
        free = max(0, usage.capacity_bytes - used) // SECTOR_BYTES
        return SpaceReport(
            blocks=usage.capacity_bytes // SECTOR_BYTES,
            blocks_free=free,
            files=usage.object_count + free,
            files_free=free,
        )

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[EntryReply, OpenReply]:
        return await self.files.create(parent, name, mode, flags, caller)

    async def mknod(self, parent: int, name: bytes, mode: int, caller: Caller) -> EntryReply:
        """Make an empty regular file; devices, pipes and sockets have no place in a cache."""
        if mode & 0o170000 not in (0, 0o100000):
            raise os_error(errno.EPERM)
        reply, opened = await self.files.create(parent, name, mode, os.O_EXCL, caller)
        await self.files.flush(opened.handle, caller)
        await self.files.release(opened.handle)
        return replace(reply, attributes=await self.getattr(reply.nodeid))


def _rename_mode(flags: int) -> RenameMode:
    if flags == 0:
        return RenameMode.REPLACE
    if flags == RENAME_NOREPLACE:
        return RenameMode.NO_REPLACE
    if flags == RENAME_EXCHANGE:
        return RenameMode.EXCHANGE
    raise os_error(errno.EINVAL)


def _with_change(options: PutOptions, change: AttributeChange) -> PutOptions:
    """Return what a file will be published with after `change`."""
    attributes = {**options.attributes, **change.set_attributes}
    for name in change.remove_attributes:
        attributes.pop(name, None)
    fields = (
        "mode",
        "uid",
        "gid",
        "mtime_ns",
        "ttl_s",
        "is_sliding",
        "ttl_class",
        "priority",
        "pin",
    )
    changed = {name: value for name in fields if (value := getattr(change, name)) is not None}
    if change.mtime_ns == 0:
        changed["mtime_ns"] = 1  # 0 would mean "when it was written"
    return replace(options, attributes=attributes, **changed)
