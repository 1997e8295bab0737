"""`Store`: the one API that the mount, the gateway, the tools and Python programs share.

Owns nothing but the wiring of its parts; each method says what the caller must know and hands on.
Synchronous and thread-safe: LMDB and file calls block anyway, engines' connectors are threads, and
one code path gets all the tests (docs/adr/0001). Event loops call through kvfs/aio.py; the lookups
(find, stat, find_child, stat_inode, list_objects, read_directory) take microseconds and may run
inline. Any number of processes may have one store open; open it after forking, never before.
Length: one method for each thing a caller may ask, mostly docstring.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kvfs.errors import KvfsError, NamespaceNotEmpty, NotFound, Unavailable
from kvfs.index.lmdb_index import WriteTransaction
from kvfs.index.schema import entry_of
from kvfs.model import (
    NO_CONDITION,
    ROOT_INODE,
    ROOT_NAMESPACE,
    AttributeChange,
    ChildName,
    Digest,
    DirectoryChild,
    Durability,
    Entry,
    ListPage,
    Namespace,
    NamespaceId,
    ObjectPath,
    PartInfo,
    Place,
    PutOptions,
    StoreUsage,
    UploadInfo,
    WriteCondition,
)
from kvfs.store.access_times import AccessTimes
from kvfs.store.block_files import os_error
from kvfs.store.check import Checker
from kvfs.store.check_files import Progress
from kvfs.store.context import StoreContext
from kvfs.store.epoch import Epoch
from kvfs.store.findings import CheckReport
from kvfs.store.heat import Heat
from kvfs.store.housekeeping import Housekeeping, SweepReport
from kvfs.store.lifecycle import Lifecycle
from kvfs.store.maintenance import Maintenance, Step
from kvfs.store.mutable_files import MutableFile, MutableFiles
from kvfs.store.names import Names
from kvfs.store.namespaces import Namespaces
from kvfs.store.objects import TrashKey, add_name, add_reference, check_condition, resolve_target
from kvfs.store.part_files import PartWriter
from kvfs.store.publisher import Publisher
from kvfs.store.read_view import ReadView
from kvfs.store.reader import Reader
from kvfs.store.recoder import Recoder, Recoding
from kvfs.store.renames import RenameMode, Renames
from kvfs.store.row_limits import fit_options
from kvfs.store.scrubber import Scrubber, ScrubReport
from kvfs.store.space import Space
from kvfs.store.staging import Staging
from kvfs.store.trash import Trash
from kvfs.store.trust import Trust
from kvfs.store.uploads import CompletePart, Uploads
from kvfs.store.use_counts import UseCounts, Uses, read_uses

log = logging.getLogger(__name__)

COPY_PIECE = 8 << 20

SYNC_EVERY_S = 5.0
"""At `cache` this is what a power loss can turn into misses."""
FLUSH_EVERY_S = 10.0
EXPIRE_EVERY_S = 10.0
EXPIRE_LIMIT = 1000
CLOCK_EVERY_S = 30.0
"""How long after a jump of the clock expired-looking objects may be misses; none is removed."""


class Store:
    """One open store; see open_store(). A context manager."""

    def __init__(
        self, context: StoreContext, epoch: Epoch, *, background: bool, is_first: bool
    ) -> None:
        """Use open_store(). is_first: nobody else had it open, so every old grant is dead."""
        self._context = context
        self._epoch = epoch
        self._close_lock = threading.Lock()
        self._is_closed = False
        self._access = AccessTimes(context)
        self._uses = Uses(context)
        self._heat = Heat(context)
        self._trust = Trust(context)
        self._trash = Trash(context, has_background=background)
        self._housekeeping = Housekeeping(context, self._access, self._trash)
        self._space = Space(context, self._housekeeping.evict, self._housekeeping.could_evict)
        self._files = MutableFiles(context, self._space, self._trash, self._access)
        self._reader = Reader(
            context, self._access, self._uses, self._heat, self._trust, self._files
        )
        self._publisher = Publisher(context, self._space, self._trash, self._trust)
        self._recoder = Recoder(context, self._space, self._trash, self._trust)
        self._scrubber = Scrubber(context, self._trust)
        self._names = Names(context, self._trash)
        self._renames = Renames(context, self._trash)
        self._namespaces = Namespaces(context)
        self._uploads = Uploads(context, self._space, self._publisher, self._reader)
        self._lifecycle = Lifecycle(context, self._access, self._recoder, self._scrubber)
        self._maintenance: Maintenance | None = None
        self._collections: Maintenance | None = None
        if is_first and not context.is_read_only:
            self._space.reclaim_dead()
        if background and not context.is_read_only:
            self._maintenance = self._start_maintenance(is_first)
            # A thread of its own: a plan over all names takes its time.
            step = Step("collection", 1.0, self._lifecycle.step)
            self._collections = Maintenance(context.clock, [step], [])
            self._collections.start()

    # -- the store itself -----------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The store's directory."""
        return self._context.root

    @property
    def context(self) -> StoreContext:
        """The index and files underneath, for tools that check or rebuild them. Not for doors."""
        return self._context

    @property
    def durability(self) -> Durability:
        """What an acknowledged write survives."""
        return self._context.durability

    @property
    def capacity_bytes(self) -> int:
        """Bytes that block files and reservations may take."""
        return self._context.capacity_bytes

    @property
    def seal_limit_bytes(self) -> int:
        """A file written through the mount that is larger than this stays mutable."""
        return self._context.seal_limit_bytes

    @property
    def is_read_only(self) -> bool:
        """Whether every change is refused."""
        return self._context.is_read_only

    def usage(self) -> StoreUsage:
        """Return the space as the index accounts for it."""
        with self._context.index.read() as txn:
            counters = txn.counters()
            rows = [row for _, row in txn.namespaces()]
            uses = self._uses.sums(txn)
        return StoreUsage(
            self._context.capacity_bytes,
            counters.resident,
            counters.granted + counters.uploading,
            sum(row.logical_bytes for row in rows),
            sum(row.object_count for row in rows),
            counters.block_count,
            uses.hits,
            uses.misses,
            uses.opens,
            uses.opened_bytes,
        )

    def recent_uses(self, window_s: int) -> UseCounts:
        """Return what all processes were asked in the last seconds (ten minutes at most).

        What a process has not written down yet (up to 10 s) is not in it.
        """
        with self._context.index.read() as txn:
            return read_uses(txn).since(self._context.now_s() - window_s)

    def take_back_miss(self, place: ChildName) -> None:
        """Say that the last lookup of an absent name was on the way to making it: no miss."""
        self._uses.take_back(place.parent, place.name)

    def flush(self) -> None:
        """Write access times, empty the trash, and make everything committed survive power loss."""
        if self._context.is_read_only:
            return
        self._flush_notes()
        self._trash.empty_waiting()
        self._trust.sync()

    def _flush_notes(self) -> None:
        self._access.flush()
        self._uses.flush()
        self._heat.flush()

    def close(self) -> None:
        """Flush and close; the last process out marks the stop as clean. Idempotent."""
        with self._close_lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._lifecycle.stop()
        for thread in (self._collections, self._maintenance):
            if thread is not None:
                thread.stop()
        try:
            if not self._context.is_read_only:
                self._close_writable()
        finally:
            self._context.index.close()
            self._context.files.close()
            self._epoch.release()

    def _close_writable(self) -> None:
        try:
            with self._epoch.closing():
                try:
                    self._flush_notes()
                except Unavailable as error:
                    # A full disk has no room for them, and recency is worth no half-open store.
                    log.warning("event=last_notes_lost error=%s", error)
                self._trash.empty_waiting()
                self._trust.sync()
                self._housekeeping.close()
                self._space.close()
                self._context.index.sync()
        except OSError as error:
            raise os_error(error, "cannot close the store in order") from error

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- namespaces -----------------------------------------------------------------------------

    def create_namespace(
        self, name: bytes, *, mode: int = 0o755, uid: int = 0, gid: int = 0
    ) -> Namespace:
        """Add a bucket (first directory). Raises: AlreadyExists, InvalidName."""
        self._namespaces.create(name, mode, uid, gid)
        namespace = self._reader.find_namespace(name)
        if namespace is None:
            raise NotFound("the bucket was deleted while it was created")
        return namespace

    def find_namespace(self, name: bytes) -> Namespace | None:
        """Return the bucket called `name`, or None."""
        return self._reader.find_namespace(name)

    def list_namespaces(self) -> list[Namespace]:
        """Return every bucket, in byte order of the names."""
        found = (self._reader.find_namespace(name) for name in self._namespaces.names())
        return [namespace for namespace in found if namespace is not None]

    def delete_namespace(self, name: bytes) -> None:
        """Remove a bucket without a live object. Raises: NamespaceNotFound, NamespaceNotEmpty."""
        try:
            self._namespaces.delete(name)
        except NamespaceNotEmpty:
            self._housekeeping.expire_whole(name)
            self._namespaces.delete(name)

    # -- looking up -----------------------------------------------------------------------------

    def find(self, place: Place, *, touch: bool = False) -> Entry | None:
        """Return the entry at `place`, or None (absent or expired).

        An ObjectPath finds only the file of that literal key; a ChildName finds what the mount
        shows (a directory wins over a file). touch: count it as an access (slides the TTL).
        """
        return self._reader.find(place, touch=touch)

    def stat(self, place: Place, *, touch: bool = False) -> Entry:
        """Return the entry at `place`. Raises: NotFound, NamespaceNotFound."""
        return self._reader.stat(place, touch=touch)

    def find_many(self, paths: Sequence[ObjectPath]) -> list[Entry | None]:
        """Return the entries of `paths` in their order, as of one moment."""
        return self._reader.find_many(paths)

    def find_child(self, parent: int, name: bytes, *, touch: bool = False) -> Entry | None:
        """Return what the mount shows under `name` in directory `parent`, or None."""
        return self._reader.find_child(parent, name, touch=touch)

    def stat_inode(self, inode: int) -> Entry | None:
        """Return the entry of an inode, or None."""
        return self._reader.stat_inode(inode)

    def touch(self, inode: int) -> None:
        """Count an access to `inode` (in memory; written in batches), unless it has expired."""
        if self._reader.stat_inode(inode) is not None:
            self._access.note(inode, self._context.now_s())

    def list_objects(
        self,
        namespace: bytes,
        *,
        prefix: bytes = b"",
        delimiter: bytes = b"",
        after: bytes = b"",
        limit: int = 1000,
    ) -> ListPage:
        """Return one page of a namespace's keys in byte order, `after` excluded.

        after: a key or a common prefix. A page may be shorter than `limit` and still be truncated
        (it examines a bounded number of names). Raises: NamespaceNotFound.
        """
        return self._reader.list_objects(
            namespace, prefix=prefix, delimiter=delimiter, after=after, limit=limit
        )

    def read_directory(
        self, inode: int, *, after: bytes = b"", limit: int = 1000
    ) -> list[DirectoryChild]:
        """Return the mount's view of a directory behind cursor `after`.

        Raises: NotFound, NotADirectory.
        """
        return self._reader.read_directory(inode, after=after, limit=limit)

    # -- reading --------------------------------------------------------------------------------

    def open_read(self, place: Place) -> ReadView:
        """Open an object's bytes; counts as an access.

        A block that an unclean stop left in doubt is hashed first, once; a bad one is quarantined
        and its names are dropped: a miss, never wrong bytes (I1).
        Raises: NotFound, NamespaceNotFound, IsADirectory, Corrupt, Unavailable.
        """
        return self._reader.open_read(place)

    def open_inode(self, inode: int) -> ReadView:
        """Open an object's bytes by its inode. Raises: as open_read."""
        return self._reader.open_inode(inode)

    def open_block(self, digest: Digest) -> ReadView:
        """Open a block by its digest, whatever names it has; for operators, not for tenants (I6).

        Raises: NotFound (also for one that failed its check), Unavailable.
        """
        return self._reader.open_block(digest)

    def list_blocks(
        self, prefix: bytes = b"", *, after: bytes = b"", limit: int = 1000
    ) -> list[tuple[Digest, int]]:
        """Return (digest, logical size) of blocks whose digest begins with `prefix`, in order.

        after: exclusive, the last digest of the page before.
        """
        return self._reader.list_blocks(prefix, after, limit)

    def stored_bytes(self, digest: Digest) -> int:
        """Return what a block takes on the disk, in whole sectors; 0 if there is none."""
        return self._reader.stored_bytes(digest)

    def open_trusted(self, inode: int) -> ReadView | None:
        """Open an object's bytes in microseconds, for an event loop; None = use `open_inode`.

        None where the block would have to be hashed first, or vanished. Raises: as open_read.
        """
        return self._reader.open_trusted(inode)

    def is_current(self, view: ReadView) -> bool:
        """Return whether opening the view's inode would give this view again; counts as an open.

        False also where the block would have to be hashed, for an object without bytes, and for a
        mutable file: open it anew. Raises: IsADirectory.
        """
        return self._reader.is_current(view)

    def recheck(self, namespace_id: NamespaceId, digest: Digest) -> bool:
        """Hash a block file anew; return whether it is good. A bad one is quarantined (I1).

        For a door that let somebody keep a sealed file open for writing. True if there is no such
        block any more. Raises: Unavailable.
        """
        return self._reader.recheck(namespace_id, digest)

    def get(self, place: Place) -> bytes:
        """Return a whole object (one copy). Raises: as open_read."""
        with self.open_read(place) as view:
            return view.read_all()

    # -- writing --------------------------------------------------------------------------------

    def stage(
        self, namespace_id: NamespaceId = ROOT_NAMESPACE, *, size_bytes: int | None = None
    ) -> Staging:
        """Return a private file to write to, its space reserved (all of a known size at once).

        When the store is full, a bounded number of old objects is evicted first.
        Raises: NoSpace, TooLarge, Unavailable.
        """
        return Staging(self._context.files, self._space, namespace_id, size_bytes)

    def stage_in_order(
        self, namespace_id: NamespaceId, *, size_bytes: int | None = None
    ) -> Staging:
        """As `stage`, for a writer that calls only `write` and `pwrite`, front to back.

        The bytes are hashed on their way, and publishing in that namespace reads none again.
        Raises: as stage, NamespaceNotFound.
        """
        salt = self._namespaces.salt(namespace_id)
        return Staging(self._context.files, self._space, namespace_id, size_bytes, salt)

    def publish(self, staging: Staging, place: Place, options: PutOptions | None = None) -> Entry:
        """Make a staging file the object at `place`: the only way in; all or nothing.

        An ObjectPath implies its parent directories; a ChildName needs its parent. Replacing is
        atomic, and readers of the old object keep its bytes. The staging file is consumed,
        whatever happens. Equal bytes in one namespace are stored once. In a bucket that compresses
        inline (`kvfs compress`) it is visible first, and returns when it is compressed.
        Raises: NamespaceNotFound, NotFound, AlreadyExists, PreconditionFailed, IsADirectory,
        InvalidName, NoSpace, Unavailable.
        """
        entry = self._publisher.publish(staging, place, options or PutOptions())
        self._recoder.compress_published(entry)
        return entry

    def keep_mutable(
        self, staging: Staging, place: Place, options: PutOptions | None = None
    ) -> tuple[Entry, MutableFile]:
        """Make a staging file, as it is, a file at `place` that stays mutable: never hashed.

        It is visible from this moment and may be written from then on through what is returned
        (which the caller closes), through `open_mutable`, and through descriptors that were on the
        staging file. The staging file is consumed, whatever happens. Raises: as publish.
        """
        return self._files.keep(staging, place, options or PutOptions())

    def open_mutable(self, inode: int) -> MutableFile:
        """Open a mutable file's own bytes, for writing unless the store is read-only.

        Counts as an access. Raises: NotFound (also where the inode is no mutable file).
        """
        return self._files.open(inode)

    def put(
        self, place: Place, data: bytes | memoryview, options: PutOptions | None = None
    ) -> Entry:
        """Store `data` at `place` (one copy, into the page cache). Raises: as stage and publish."""
        entry = self._publisher.put(place, memoryview(data).cast("B"), options or PutOptions())
        self._recoder.compress_published(entry)
        return entry

    def copy(self, source: Place, target: ObjectPath, options: PutOptions | None = None) -> Entry:
        """Give an object's bytes a second name: a row within a namespace, a byte copy across.

        The copy of a mutable file is sealed; one that was written to meanwhile is Unavailable.
        options: None = the source's attributes, times and lifetime.
        Raises: NotFound, NamespaceNotFound, IsADirectory, and as publish.
        """
        with self.open_read(source) as view:
            entry = view.entry
            options = _options_of(entry) if options is None else fit_options(options)
            shared = self.share(view, target, options)
            if shared is not None:
                return shared
            with self.stage(size_bytes=view.size) as staging:
                for offset in range(0, view.size, COPY_PIECE):
                    staging.write(view.pread(offset, COPY_PIECE))
                if not view.is_unchanged():
                    raise Unavailable("the file was written to while it was copied: retry")
                return self.publish(staging, target, options)

    def share(self, view: ReadView, place: Place, options: PutOptions) -> Entry | None:
        """Give an open object's bytes one more name, a row that shares its block.

        None where bytes must be copied: another namespace, a mutable file, or a block that is gone.
        Raises: as publish.
        """
        options = fit_options(options)
        copied = self._context.commit(lambda txn: self._copy_row(txn, view.entry, place, options))
        if copied is None:
            return None
        self._trash.add(copied[1])
        return copied[0]

    def _copy_row(
        self, txn: WriteTransaction, entry: Entry, place: Place, options: PutOptions
    ) -> tuple[Entry, list[TrashKey]] | None:
        """Add a row that shares the block; None where bytes must be copied."""
        now_ns = self._context.clock.now_ns()
        target = resolve_target(txn, place)
        check_condition(txn, target, options.condition, now_ns // 1_000_000_000)
        block = txn.block(entry.digest) if entry.digest else None
        if entry.is_mutable or target.namespace_id != entry.namespace_id:
            return None
        if entry.digest:
            if block is None or not self._trust.is_usable(block):
                return None
            add_reference(txn, entry.digest, block)
        namespace = txn.namespace(target.namespace_id)
        default_ttl_s = namespace.default_ttl_s if namespace is not None else 0
        row = self._publisher.row(options, entry.size, entry.digest, now_ns, default_ttl_s)
        inode, trash = add_name(txn, target, row, self._context.files, now_ns)
        return entry_of(inode, row), trash

    # -- multipart uploads ----------------------------------------------------------------------

    def create_upload(self, path: ObjectPath, options: PutOptions | None = None) -> UploadInfo:
        """Begin an upload of `path` in parts. Raises: NamespaceNotFound, InvalidName."""
        return self._uploads.create(path, options or PutOptions())

    def find_upload(self, upload_id: str, path: ObjectPath) -> UploadInfo:
        """Return an upload in progress. Raises: UploadNotFound (also when it is another key's)."""
        return self._uploads.find(upload_id, path)

    def list_uploads(
        self, namespace: bytes, *, prefix: bytes = b"", after: tuple[bytes, str] = (b"", "")
    ) -> list[UploadInfo]:
        """Return the uploads in progress by (key, upload id), those behind `after`.

        Raises: NamespaceNotFound.
        """
        return self._uploads.in_progress(namespace, prefix=prefix, after=after)

    def write_part(
        self, upload_id: str, path: ObjectPath, part_number: int, *, size_bytes: int | None = None
    ) -> PartWriter:
        """Return a writer for one part; it counts once its `finish` returned.

        Parts may be written in any order, at once, again, and by any process.
        Raises: UploadNotFound, InvalidArgument, NoSpace, TooLarge, Unavailable.
        """
        return self._uploads.write_part(upload_id, path, part_number, size_bytes)

    def list_parts(
        self, upload_id: str, path: ObjectPath, *, after: int = 0, limit: int = 1000
    ) -> list[PartInfo]:
        """Return up to `limit` finished parts behind number `after`. Raises: UploadNotFound."""
        return self._uploads.list_parts(upload_id, path, after=after, limit=limit)

    def complete_upload(
        self,
        upload_id: str,
        path: ObjectPath,
        parts: Sequence[CompletePart],
        options: PutOptions | None = None,
    ) -> Entry:
        """Publish `parts` as the object, all or nothing; repeating it returns the same.

        options: None = what the upload was begun with. Equal parts are not copied.
        Raises: UploadNotFound, InvalidPart, InvalidPartOrder, PartTooSmall, and as publish.
        """
        entry = self._uploads.complete(upload_id, path, parts, options)
        self._recoder.compress_published(entry)
        return entry

    def expire_uploads(self, limit: int = 50) -> int:
        """Drop up to `limit` uploads that nobody continued for a day; return how many."""
        return self._uploads.expire(limit)

    def abort_upload(self, upload_id: str, path: ObjectPath) -> None:
        """Drop an upload and its parts. Raises: UploadNotFound."""
        self._uploads.abort(upload_id, path)

    # -- names ----------------------------------------------------------------------------------

    def delete(self, path: ObjectPath, condition: WriteCondition | None = None) -> Entry:
        """Remove the file of a literal key, if `condition` holds of it; return what it was.

        Raises: NotFound, PreconditionFailed.
        """
        return self._names.delete(path, condition or NO_CONDITION)

    def delete_many(
        self, wanted: Sequence[tuple[ObjectPath, WriteCondition]]
    ) -> list[Entry | KvfsError]:
        """Do as `delete` for each, in few transactions; return what each was, or its refusal."""
        return self._names.delete_many(wanted)

    def mkdir(self, place: ChildName, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Entry:
        """Add a directory; in the root, a namespace. Raises: AlreadyExists, NotFound."""
        if place.parent == ROOT_INODE:
            return self._namespaces.create(place.name, mode, uid, gid)
        return self._names.mkdir(place, mode, uid, gid)

    def symlink(self, place: ChildName, target: bytes, *, uid: int = 0, gid: int = 0) -> Entry:
        """Add a symbolic link. Raises: AlreadyExists, NotFound, InvalidArgument."""
        return self._names.symlink(place, target, uid, gid)

    def link(self, inode: int, place: ChildName) -> Entry:
        """Add a hard link. Raises: AlreadyExists, NotFound, CrossNamespace, IsADirectory."""
        return self._names.link(inode, place)

    def unlink(self, place: ChildName) -> Entry:
        """Remove a file or symlink; return what it was. Raises: NotFound, IsADirectory."""
        return self._names.unlink(place)

    def rmdir(self, place: ChildName) -> None:
        """Remove an empty directory; in the root, its namespace.

        Raises: NotFound, NotADirectory, DirectoryNotEmpty.
        """
        entry = self.find(place) if place.parent == ROOT_INODE else None
        self._names.rmdir(place)
        if entry is not None and entry.is_directory:
            self._namespaces.forget(entry.namespace_id)

    def rename(
        self, source: ChildName, target: ChildName, *, mode: RenameMode = RenameMode.REPLACE
    ) -> None:
        """Move a name, atomically replacing the target. Raises: see Names.rename."""
        entry = self.find(source) if source.parent == ROOT_INODE else None
        if entry is None or not entry.is_directory:
            self._renames.rename(source, target, mode)
            return
        if source.name == target.name or self.is_read_only:
            self._renames.rename(source, target, mode)
            return
        self._rename_namespace(entry.namespace_id, source, target, mode)

    def _rename_namespace(
        self, namespace_id: NamespaceId, source: ChildName, target: ChildName, mode: RenameMode
    ) -> None:
        touched = {namespace_id: target.name}
        other = self.find(target)
        if other is not None and other.is_directory:
            touched[other.namespace_id] = source.name if mode is RenameMode.EXCHANGE else b""
        for each in touched:
            self._namespaces.rename_saved(each, b"")
        try:
            self._renames.rename(source, target, mode)
        except BaseException:
            touched[namespace_id] = source.name
            if other is not None and other.is_directory:
                touched[other.namespace_id] = target.name
            raise
        finally:
            for each, name in touched.items():
                if name:
                    self._namespaces.rename_saved(each, name)
                else:
                    self._namespaces.forget(each)

    def set_attributes(self, inode: int, change: AttributeChange) -> Entry:
        """Change mode, owner, times, lifetime, pin or extended attributes.

        Raises: NotFound, AlreadyExists (attribute), InvalidArgument.
        """
        entry = self._names.set_attributes(inode, change)
        if entry.is_mutable and change.mtime_ns is not None:
            self._files.set_mtime(inode, change.mtime_ns)
        return entry

    def revise(
        self, inodes: Sequence[int], decide: Callable[[Entry], AttributeChange | None]
    ) -> int:
        """Change many files as `decide` wants of each, in few transactions; return how many.

        decide: called on each file's entry inside a transaction, so it must be quick and pure.
        """
        return self._names.revise(inodes, decide)

    # -- lifecycle ------------------------------------------------------------------------------

    def expire(self, limit: int = EXPIRE_LIMIT) -> int:
        """Remove up to `limit` objects whose lifetime is over; return how many."""
        return self._housekeeping.expire(limit)

    def evict(self, wanted_bytes: int) -> int:
        """Evict least recently used objects for `wanted_bytes`; return the bytes freed.

        Bounded: at most 500 objects a call. Hard-pinned objects stay (I5).
        """
        return self._housekeeping.evict(wanted_bytes)

    def empty_trash(self) -> int:
        """Unlink every file waiting for it, dead processes' included; return the bytes freed."""
        return self._trash.empty_table()

    def sweep(self) -> SweepReport:
        """Remove block and staging files that crashed writers left. Walks all files."""
        report = self._housekeeping.sweep()
        return replace(
            report,
            staging_files=report.staging_files + self._uploads.sweep(),
            orphan_files=report.orphan_files + self._files.sweep(),
        )

    def compress(self, digest: Digest) -> Recoding:
        """Compress one raw block if that saves 10 %; readers never notice.

        Raises: NoSpace (no room for the copy), Unavailable, Corrupt (left as it is).
        """
        return self._recoder.compress(digest)

    def promote(self, digest: Digest) -> Recoding:
        """Make one compressed block raw again. Raises: as compress."""
        return self._recoder.promote(digest)

    def scrub(self, max_bytes: int) -> ScrubReport:
        """Check blocks until `max_bytes` were read, from where the last scrub stopped.

        A bad block is quarantined and its names become misses. Raises: Unavailable.
        """
        return self._scrubber.step(max_bytes)

    def check(
        self, *, is_full: bool = False, repair: bool = False, progress: Progress | None = None
    ) -> CheckReport:
        """Compare index and files both ways; with `repair` correct what can be corrected.

        is_full: hash every block file too. A check changes nothing and may run on a store in use;
        a repair holds the write lock while it corrects rows. Raises: ReadOnly, Unavailable.
        """
        checker = Checker(
            self._context, self._trust, self._trash, self._space, self._housekeeping, self._files
        )
        report = checker.repair if repair else checker.check
        return report(progress or (lambda _what, _count: None), is_full=is_full)

    def _start_maintenance(self, is_first: bool) -> Maintenance:
        steps = [
            Step("trash", 1.0, self._trash.empty_waiting),
            Step("sync", SYNC_EVERY_S, self._trust.sync),
            Step("access times", FLUSH_EVERY_S, self._flush_notes),
            Step("mutable files", FLUSH_EVERY_S, self._files.settle_all),
            Step("clock", CLOCK_EVERY_S, self._housekeeping.keep_time),
            Step("expiry", EXPIRE_EVERY_S, self.expire),
            Step("uploads", 60.0, self._uploads.expire),
            Step("space", FLUSH_EVERY_S, self._space.trim),
            Step("readers", 60.0, self._context.index.free_dead_readers),
        ]
        at_start = [Step("old trash", 0, self.empty_trash)]
        if is_first:
            at_start.append(Step("orphans", 0, self.sweep))
            at_start.append(Step("held files", 0, self._files.let_all_go))
        maintenance = Maintenance(self._context.clock, steps, at_start)
        maintenance.start()
        return maintenance


def _options_of(entry: Entry) -> PutOptions:
    options = PutOptions(
        mode=entry.mode, uid=entry.uid, gid=entry.gid, attributes=entry.attributes,
        ttl_s=entry.ttl_s, is_sliding=entry.is_sliding, ttl_class=entry.ttl_class,
        priority=entry.priority, pin=entry.pin,
    )  # fmt: skip
    return replace(options, etag=entry.etag) if len(entry.etag) == 32 else options
