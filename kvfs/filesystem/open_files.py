"""Opening, creating, truncating and closing files: which bytes an open leads to, what a close does.

Owns the choice of what an open leads to: a view of a sealed file, a private file of its own, or the
one copy of a lock file. Refuses to know transports.
Must hold: a name changes only by publish; the name's old readers keep their bytes.
Length: what an open leads to decides what its close does; apart, each would repeat half the cases.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import AsyncIterator

from kvfs.errors import AlreadyExists, KvfsError, NotFound, PreconditionFailed
from kvfs.filesystem.content_view import ContentView, is_view
from kvfs.filesystem.handles import Handle, SharedView, WritingFile
from kvfs.filesystem.inodes import Node
from kvfs.filesystem.mount_state import MountState, os_error
from kvfs.filesystem.processes import Creator, Verdict, judge
from kvfs.filesystem.records import Caller, EntryReply, OpenReply
from kvfs.filesystem.slabs import Slabs
from kvfs.model import (
    CONTENT_ATTRIBUTES,
    MAX_MOUNT_NAME_LENGTH,
    NO_CONDITION,
    ChildName,
    Codec,
    Entry,
    Kind,
    PutOptions,
    WriteCondition,
)
from kvfs.store.read_view import ReadView

log = logging.getLogger(__name__)

LOCK_SUFFIX = b".lock"
"""Visible at once and one inode for all openers; otherwise flock would let two of them in."""
MAX_DECODED_BYTES = 1 << 30
"""Memory for decoded blocks open at one time (I8); beyond it they are read frame by frame."""
PROMPT_RELEASE_NS = 50_000_000
"""Without a mapping RELEASE follows the last FLUSH within a millisecond."""


def wants_write(flags: int) -> bool:
    return bool(flags & (os.O_ACCMODE | os.O_TRUNC))


class OpenFiles:
    """Operations on content."""

    def __init__(self, state: MountState, view: ContentView, slabs: Slabs) -> None:
        self._state = state
        self._slabs = slabs
        self._view = view
        self._decoded_bytes = 0

    # -- create and open

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[EntryReply, OpenReply]:
        """Create `name` and open it, or open it if it exists and O_EXCL does not forbid that."""
        state = self._state
        state.require_writable()
        directory = state.inodes.get(parent)
        place = ChildName(directory.inode, check_name(name))
        state.store.take_back_miss(place)
        existing = state.store.find_child(place.parent, name)
        if existing is None and flags & os.O_EXCL and state.pending.writers(place):
            raise os_error(errno.EEXIST)
        if existing is None and name.endswith(LOCK_SUFFIX):
            existing = await self._create_lock_file(place, mode, caller)
        elif existing is not None and flags & os.O_EXCL:
            raise os_error(errno.EEXIST)
        if existing is not None:
            try:
                return await self._create_on_existing(place, existing, flags, caller)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise  # else a twin took it away since: then this is the first of its name
        state.pending.finish_overwrite(caller.thread)
        writing = await self._begin(directory, place, mode, caller)
        await state.writing.begin_empty(writing, is_direct=state.has_passthrough)
        writing.is_mappable = flags & os.O_ACCMODE == os.O_RDWR
        return self._reply_hidden(state.inodes.make_private(), writing)

    async def create_unnamed(
        self, parent: int, mode: int, flags: int, caller: Caller
    ) -> tuple[EntryReply, OpenReply]:
        """Open a file without a name (O_TMPFILE); `link` may give it one."""
        state = self._state
        state.require_writable()
        directory = state.inodes.get(parent)
        writing = await self._begin(directory, None, mode, caller)
        await state.writing.begin_empty(writing, is_direct=state.has_passthrough)
        writing.is_mappable = flags & os.O_ACCMODE == os.O_RDWR
        return self._reply_hidden(state.inodes.make_private(), writing)

    async def open(self, nodeid: int, flags: int, caller: Caller) -> OpenReply:
        """Open the file behind `nodeid`.

        Raises: OSError ESTALE on the first try to write a published file: the kernel walks the path
        again, finds an alias, and opens that (see pending_names.py).
        """
        if is_view(nodeid):
            return await self._open_in_view(nodeid, flags)
        node = self._state.inodes.get(nodeid)
        if node.writing is not None and node.writing.copied is not None:
            async with node.writing.lock:  # its bytes will be looked at
                await self._state.writing.fill_copy(node.writing)
        if not wants_write(flags):
            return await self._open_for_reading(node, caller)
        self._state.require_writable()
        if self._slabs.is_kept(node):
            return await self._open_kept(node, flags)
        if self._is_shared(node):
            return await self._open_shared(node, flags, caller)
        if node.overwrites is not None and node.writing is None:
            return await self._open_alias(node, node.overwrites, flags, caller)
        if self._may_join(node, flags, caller):
            return self._opened(node, is_writer=True, writing=node.writing)
        is_emptying = bool(flags & os.O_TRUNC)
        if self._state.pending.announce_overwrite(caller.thread, nodeid, is_emptying=is_emptying):
            raise os_error(errno.ESTALE)
        return await self._open_in_place(node, flags, caller)

    async def _open_in_view(self, nodeid: int, flags: int) -> OpenReply:
        if wants_write(flags):
            raise os_error(errno.EROFS)
        digest = self._view.digest(nodeid)
        if digest is None:
            handle = self._state.handles.add(nodeid, is_writer=False, text=self._view.text(nodeid))
            return OpenReply(handle.number, keep_cache=False, is_flushed=False, is_stream=True)
        view = await self._state.calls.run(self._state.store.open_block, digest)
        reading = SharedView(view)
        handle = self._state.handles.add(nodeid, is_writer=False, reading=reading)
        return OpenReply(
            handle.number, keep_cache=True, is_flushed=False, descriptor=reading.descriptor
        )

    async def _create_lock_file(self, place: ChildName, mode: int, caller: Caller) -> Entry:
        options = PutOptions(
            mode=mode & 0o7777,
            uid=caller.uid,
            gid=caller.gid,
            condition=WriteCondition(must_be_absent=True),
        )
        try:
            return await self._state.calls.run(self._state.store.put, place, b"", options)
        except AlreadyExists:
            found = self._state.store.find_child(place.parent, place.name)
            if found is None:
                raise
            return found

    async def _create_on_existing(
        self, place: ChildName, entry: Entry, flags: int, caller: Caller
    ) -> tuple[EntryReply, OpenReply]:
        """Open, as open(2) would, a name that appeared between lookup and CREATE."""
        state = self._state
        if entry.kind is not Kind.FILE:
            raise os_error(errno.EISDIR if entry.is_directory else errno.ELOOP)
        with state.inodes.held(entry.inode) as node:
            if not wants_write(flags):
                opened = await self._open_for_reading(node, caller)
            elif self._slabs.is_kept(node):
                opened = await self._open_kept(node, flags)
            elif self._is_shared(node):
                opened = await self._open_shared(node, flags, caller)
            else:
                node = state.inodes.make_private(entry.inode)
                node.overwrites = place
                try:
                    opened = await self._open_alias(node, place, flags, caller)
                except BaseException:
                    state.inodes.release(node)
                    raise
            return state.reply(node, entry, is_fleeting=True), opened

    async def _begin(
        self, directory: Node, place: ChildName | None, mode: int, caller: Caller
    ) -> WritingFile:
        parent = self._state.entry(directory)
        gid = parent.gid if parent.mode & 0o2000 else caller.gid
        options = PutOptions(mode=mode & 0o7777, uid=caller.uid, gid=gid)
        return WritingFile(place, parent.namespace_id, self._creator(caller), options)

    def _creator(self, caller: Caller) -> Creator:
        return Creator(caller.thread, self._state.processes.group_of(caller.thread))

    def _reply_hidden(self, node: Node, writing: WritingFile) -> tuple[EntryReply, OpenReply]:
        self._adopt(node, writing)
        opened = self._opened(node, is_writer=True, writing=writing)
        return self._state.reply(node, is_fleeting=True), opened

    def _opened(
        self,
        node: Node,
        *,
        is_writer: bool,
        writing: WritingFile | None = None,
        reading: SharedView | None = None,
    ) -> OpenReply:
        handle = self._state.handles.add(
            node.nodeid, is_writer=is_writer, writing=writing, reading=reading
        )
        node.openers += 1
        # A lock file's bytes change under its inode: neither passed through nor cached.
        is_lock = reading is not None and reading.view.entry.name.endswith(LOCK_SUFFIX)
        descriptor = None
        if writing is not None and writing.direct >= 0:
            descriptor = writing.direct
        elif reading is not None and not is_lock:
            descriptor = reading.descriptor
        return OpenReply(
            handle.number,
            keep_cache=writing is None and not is_lock,
            is_flushed=is_writer,
            descriptor=descriptor,
            is_mutable=writing is not None and writing.kept is not None,
        )

    async def _open_kept(self, node: Node, flags: int) -> OpenReply:
        """Open a mutable file: the one that all its openers share."""
        writing = await self._slabs.open(node)
        async with self._held(node, writing):
            if flags & os.O_TRUNC:
                await self._state.writing.truncate(writing, 0)
            return self._opened(node, is_writer=wants_write(flags), writing=writing)

    async def _open_for_reading(self, node: Node, caller: Caller) -> OpenReply:
        writing = node.writing
        if writing is not None and (
            writing.kept is not None
            or writing.is_hidden
            or writing.is_shared
            or writing.has_changed()
        ):
            return self._opened(node, is_writer=False, writing=writing)
        reading = node.reading
        if reading is None or not reading.openers or reading.view.entry.inode != node.inode:
            reading = await self._open_reading(node, caller)
            if reading.view.entry.is_mutable:
                reading.close()
                return await self._open_kept(node, os.O_RDONLY)
            node.reading = reading
        self._state.pending.finish_overwrite(caller.thread)
        return self._opened(node, is_writer=False, reading=reading)

    async def _open_reading(self, node: Node, caller: Caller) -> SharedView:
        """Open a sealed file; decode a compressed one if the kernel can then read it."""
        base = self._state.pending.take_base(caller.thread, node)
        try:
            reading = SharedView(base or await self._open_view(node))
        except OSError as error:
            if error.errno == errno.ESTALE:
                self._state.pending.announce_reading(caller.thread, node.nodeid)
            raise
        if reading.view.codec is Codec.RAW or not self._state.has_passthrough:
            return reading
        if self._decoded_bytes + reading.view.size > MAX_DECODED_BYTES:
            return reading  # read frame by frame, through us
        self._decoded_bytes += reading.view.size
        try:
            reading.memory = await self._state.calls.run(reading.view.decode_to_memory_file)
        except BaseException:
            self._decoded_bytes -= reading.view.size
            reading.close()
            raise
        return reading

    async def _open_view(self, node: Node) -> ReadView:
        if not node.inode:
            raise os_error(errno.ENOENT)  # the shadow of a renamed temporary
        store = self._state.store
        try:
            view = store.open_trusted(node.inode)
            if view is not None:
                return view
            return await self._state.calls.run(store.open_inode, node.inode)
        except NotFound:
            # Removed since the kernel looked it up: ESTALE makes it look again, and report ENOENT.
            raise os_error(errno.ESTALE) from None

    def _is_shared(self, node: Node) -> bool:
        if node.writing is not None:
            return node.writing.is_shared
        entry = self._state.find_entry(node)
        return entry is not None and entry.name.endswith(LOCK_SUFFIX)

    async def _open_shared(self, node: Node, flags: int, caller: Caller) -> OpenReply:
        if node.writing is None:
            entry = self._state.entry(node)
            writing = self._from_entry(entry, ChildName(entry.parent, entry.name), caller)
            writing.is_shared = True
            self._adopt(node, writing)
        else:
            writing = node.writing
        async with self._held(node, writing):
            if flags & os.O_TRUNC:
                await self._state.writing.truncate(writing, 0)
            return self._opened(node, is_writer=True, writing=writing)

    async def _open_alias(
        self, node: Node, place: ChildName, flags: int, caller: Caller
    ) -> OpenReply:
        """Start a private file that replaces `place`: empty with O_TRUNC, otherwise a lazy copy.

        Of what the name led to when it was walked; if a twin has moved that away meanwhile, the
        copy is a new file, published under the name that was opened.
        """
        state = self._state
        base = state.pending.take_base(caller.thread, node)
        entry = named = state.store.find_child(place.parent, place.name)
        if base is not None:
            entry = base.entry
        elif entry is None and node.inode:
            entry = state.store.stat_inode(node.inode)
        if entry is not None:
            writing = self._from_entry(entry, place, caller)
            writing.base, writing.is_hidden = base, named is None
        elif node.shown is not None:
            with state.inodes.held(place.parent) as directory:
                writing = await self._begin(directory, place, node.shown.mode, caller)
            flags |= os.O_TRUNC
        else:
            raise os_error(errno.ESTALE)
        if flags & os.O_TRUNC:
            writing.inode = writing.sealed_size = 0
            await state.writing.begin_empty(writing, is_direct=state.has_passthrough)
        elif entry is not None:
            node.inode = entry.inode
            if writing.base is None:  # now, not at the first write: by then it may be gone
                writing.base = await self._open_view(node)
            if named is None:
                writing.inode, writing.is_changed = 0, True
        writing.is_mappable = flags & os.O_ACCMODE == os.O_RDWR
        self._adopt(node, writing)
        opened = self._opened(node, is_writer=True, writing=writing)
        state.pending.finish_overwrite(caller.thread)
        return opened

    async def _open_in_place(self, node: Node, flags: int, caller: Caller) -> OpenReply:
        """Serve an open for writing that came without a walk: /proc/self/fd, /dev/stdout."""
        writing = node.writing
        if writing is None:
            entry = self._state.entry(node)
            writing = self._from_entry(entry, ChildName(entry.parent, entry.name), caller)
            self._adopt(node, writing)
        async with self._held(node, writing):
            if flags & os.O_TRUNC:
                await self._state.writing.truncate(writing, 0)
            return self._opened(node, is_writer=True, writing=writing)

    def _from_entry(self, entry: Entry, place: ChildName, caller: Caller) -> WritingFile:
        """Return a writer that starts from `entry` and keeps what a stat shows of it."""
        options = PutOptions(
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            attributes={
                name: value
                for name, value in entry.attributes.items()
                if not name.startswith(CONTENT_ATTRIBUTES)
            },
            ttl_s=entry.ttl_s,
            is_sliding=entry.is_sliding,
            ttl_class=entry.ttl_class,
            priority=entry.priority,
            pin=entry.pin,
        )
        writing = WritingFile(place, entry.namespace_id, self._creator(caller), options)
        writing.inode, writing.sealed_size = entry.inode, entry.size
        writing.is_hidden = False
        return writing

    def _adopt(self, node: Node, writing: WritingFile) -> None:
        node.writing, node.shown = writing, None
        writing.nodeid = node.nodeid
        self._state.pending.add_writer(writing)

    def _may_join(self, node: Node, flags: int, caller: Caller) -> bool:
        """A thread may open its own unpublished file once more, and then shares it."""
        writing = node.writing
        if writing is None or not writing.is_hidden or flags & os.O_TRUNC or writing.is_discarded:
            return False
        return writing.creator.thread == caller.thread

    def use_passthrough(self) -> None:
        """The transport can let the kernel read and write files by itself."""
        self._state.has_passthrough = True

    def write_through_us(self, number: int) -> None:
        """The kernel did not take the file's descriptor: all its writes come to `write`."""
        writing = self._state.handles.get(number).writing
        if writing is not None and writing.direct >= 0 and writing.staging is not None:
            os.close(writing.direct)
            writing.direct = -1

    async def link_unpublished(self, node: Node, writing: WritingFile, target: ChildName) -> None:
        """Give a file without a name (O_TMPFILE) its first one, which publishes it at once."""
        if self._state.store.find_child(target.parent, target.name) is not None:
            raise os_error(errno.EEXIST)
        async with writing.lock:
            self._state.pending.move_writer(writing, target)
            await self._publish(node, writing)

    async def make_mutable(self, node: Node, value: bytes) -> None:
        """Set `user.kvfs.mutable`: keep a file that is being written, or a copy of a sealed one.

        Raises: OSError EINVAL for another value than 1 (copy a mutable file to seal it), EBUSY for
        a sealed file that is open.
        """
        if value.strip(b"\0 \n") != b"1":
            raise os_error(errno.EINVAL)
        if self._slabs.is_kept(node):
            return
        writing = node.writing
        if node.openers and (writing is None or not writing.is_hidden):
            raise os_error(errno.EBUSY)
        if writing is None:
            await self._keep_copy(node)
            return
        async with self._held(node, writing), writing.lock:
            await self._state.writing.fill_copy(writing)
            writing.is_marked = True
            if writing.place is not None:
                await self._slabs.keep(node, writing)

    async def _keep_copy(self, node: Node) -> None:
        """Let a mutable copy take a sealed file's name, and the node lead to it."""
        entry = self._state.entry(node)
        if not entry.is_file:
            raise os_error(errno.EINVAL)
        writing = self._from_entry(entry, ChildName(entry.parent, entry.name), Caller())
        try:
            async with writing.lock:
                await self._state.writing.make_private(writing)
                self._follow_rename(writing)
                kept = await self._state.writing.keep(writing)
        finally:
            await self._state.writing.close(writing)
        if kept is not None:
            self._state.inodes.pair(node, kept.inode)

    # -- length

    async def truncate(self, node: Node, size: int, number: int | None, caller: Caller) -> None:
        """Set the length: of the open private file, or of the published file as a replacement."""
        writing = node.writing
        if writing is not None and (
            number is not None or writing.kept is not None or writing.is_hidden or writing.is_shared
        ):
            async with self._held(node, writing):
                await self._state.writing.truncate(writing, size)
                await self._slabs.keep_if_sized(node, writing)
                if writing.is_shared:
                    async with writing.lock:
                        await self._publish(node, writing)
            return
        entry = self._state.entry(node)
        if entry.is_mutable:
            await self._slabs.truncate(entry, size)
        elif entry.size != size:
            await self._replace_by_length(node, entry, size, caller)

    async def _replace_by_length(self, node: Node, entry: Entry, size: int, caller: Caller) -> None:
        """truncate(2) by name: publish a copy of that length at once.

        It is a new inode, found by the next lookup: this one may be open, and its readers keep
        their bytes.
        """
        writing = self._from_entry(entry, ChildName(entry.parent, entry.name), caller)
        try:
            await self._state.writing.truncate(writing, size)
            async with writing.lock:
                self._follow_rename(writing)
                if self._slabs.is_slab(writing):
                    replacement = await self._state.writing.keep(writing)
                else:
                    replacement = await self._state.writing.publish(writing)
        finally:
            await self._state.writing.close(writing)
        if replacement is not None:
            node.last = self._state.published(replacement, node.ino)

    @contextlib.asynccontextmanager
    async def _held(self, node: Node, writing: WritingFile) -> AsyncIterator[None]:
        """Keep the private file although its last handle may be released meanwhile."""
        writing.openers += 1
        try:
            yield
        finally:
            writing.openers -= 1
            await self._drop_unused(node, writing)

    # -- closing

    async def flush(self, number: int, caller: Caller) -> None:
        """One descriptor is being closed. Publishes if that close counts; errors reach close(2)."""
        handle = self._state.handles.get(number)
        writing = handle.writing
        if writing is None or not handle.is_writer:
            return
        node = self._state.inodes.get(handle.nodeid)
        async with writing.lock:
            if writing.kept is not None:
                await self._state.calls.run(writing.kept.settle)
                return
            if writing.failure:
                await self._give_up(writing)
                raise os_error(writing.failure)
            if not writing.has_changed() or writing.is_discarded:
                return
            verdict = self._judge(node, writing, caller)
            if verdict is Verdict.DISCARD:
                await self._give_up(writing)
            elif verdict is Verdict.PUBLISH:
                await self._publish(node, writing)

    async def _give_up(self, writing: WritingFile) -> None:
        self._state.pending.remove_writer(writing)
        await self._state.writing.discard(writing)

    async def release(self, number: int) -> None:
        """The last descriptor is gone. What no close published is published now, or dropped."""
        handle = self._state.handles.remove(number)
        if is_view(handle.nodeid):
            if handle.reading is not None:
                await self._close_reading(handle.reading)
            return
        node = self._state.inodes.get(handle.nodeid)
        try:
            if handle.writing is not None:
                await self._release_writer(node, handle, handle.writing)
            reading = handle.reading
            if reading is not None and not reading.openers:
                if node.reading is reading:
                    node.reading = None
                await self._close_reading(reading)
        finally:
            node.openers -= 1
            self._state.inodes.release(node)

    async def _close_reading(self, reading: SharedView) -> None:
        if reading.memory >= 0:
            self._decoded_bytes -= reading.view.size
        if os.fstat(reading.view.fd).st_nlink:
            reading.close()
        else:  # the last close of a removed file frees its blocks: 28 ms for 100 MB
            await self._state.calls.run(reading.close)

    async def _release_writer(self, node: Node, handle: Handle, writing: WritingFile) -> None:
        if handle.is_writer and not writing.writers and writing.kept is None:
            async with writing.lock:
                is_wanted = not writing.is_discarded and not writing.failure
                if is_wanted and (writing.has_changed() or self._may_have_drifted(writing)):
                    await self._publish_late(node, writing)
        await self._drop_unused(node, writing)

    def _may_have_drifted(self, writing: WritingFile) -> bool:
        """Whether a mapping that outlived the close may have changed what was sealed by it.

        A page that was dirty already is written to without a new mtime; only time tells.
        """
        if writing.direct < 0 or writing.is_hidden or not writing.is_mappable:
            return False
        return self._state.clock.monotonic_ns() - writing.published_ns > PROMPT_RELEASE_NS

    async def _drop_unused(self, node: Node, writing: WritingFile) -> None:
        if writing.openers:
            return
        if node.writing is writing:
            node.writing = None
        self._state.pending.remove_writer(writing)
        try:
            await self._state.writing.close(writing)
        except KvfsError as error:
            log.error("mount_settle_failed inode=%d error=%s", writing.inode, error)
        if writing.is_hidden:
            self._state.inodes.unpair(node)

    async def _publish_late(self, node: Node, writing: WritingFile) -> None:
        """Publish at RELEASE: nobody is left to be told of an error.

        What a close published already is sealed again only where its name still means it: what was
        done to the name since is newer.
        """
        is_again = writing.published_ns and not writing.is_shared
        condition = WriteCondition(inode=writing.inode) if is_again else NO_CONDITION
        try:
            await self._publish(node, writing, condition)
        except (NotFound, PreconditionFailed) as error:
            log.info("mount_late_change_dropped name=%s error=%s", writing.place, error)
        except (KvfsError, OSError) as error:
            log.error("mount_publish_failed name=%s error=%s", writing.place, error)

    def _judge(self, node: Node, writing: WritingFile, caller: Caller) -> Verdict:
        if writing.is_shared:
            return Verdict.PUBLISH
        return judge(
            self._state.processes, writing.creator, caller.thread, node.ino, writing.size()
        )

    async def _publish(
        self, node: Node, writing: WritingFile, condition: WriteCondition = NO_CONDITION
    ) -> None:
        state = self._state
        if not writing.is_hidden and not writing.is_shared:
            self._follow_rename(writing)
        try:
            if self._slabs.is_slab(writing):
                await self._slabs.keep(node, writing)
                return
            entry = await state.writing.publish(writing, condition)
        except (KvfsError, OSError):
            if writing.is_discarded:  # its name leads nowhere from now on, whoever has it open
                state.pending.remove_writer(writing)
            raise
        if entry is None:
            return
        writing.published_ns = state.clock.monotonic_ns()
        if writing.copied is None:
            state.inodes.pair(node, entry.inode)
        else:  # the kernel would show its openers a hole: they are led to a node of their own
            state.inodes.unpair(node)
            node.inode = entry.inode
        node.overwrites = None
        if not writing.is_shared:
            state.pending.give_credit(writing, state.published(entry, entry.inode))

    def _follow_rename(self, writing: WritingFile) -> None:
        """A published file that was renamed since is published where it is now."""
        entry = self._state.store.stat_inode(writing.inode) if writing.inode else None
        if entry is not None and writing.place is not None:
            place = ChildName(entry.parent, entry.name)
            if entry.nlink == 1 and place != writing.place:
                self._state.move_opener(writing, place)


def check_name(name: bytes) -> bytes:
    """Return `name`. Raises: OSError ENAMETOOLONG."""
    if len(name) > MAX_MOUNT_NAME_LENGTH:
        raise os_error(errno.ENAMETOOLONG)
    return name
