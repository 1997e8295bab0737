"""Files that stay mutable: rows with a file of their own in files/ instead of a block.

Owns how one comes to be, is opened, and is charged. Bytes go to the file directly, from any number
of openers in any process, and through passthrough without our knowing; so the row says what was so
when somebody last looked (size, time, bytes charged), and lookups ask the file itself.
Refuses to know which files shall be mutable: that is the mount's choice.

Holds: the row is committed after the file has its name (I2). What is charged is what the file has
allocated: a hole costs nothing. Whoever writes reserves first, or, where the kernel writes by
itself, soon after, and ahead of it (I4; the bound is in docs/mount.md). No block is touched (I3).
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from functools import partial
from itertools import islice

from kvfs.errors import KvfsError, NamespaceNotFound, NoSpace, NotFound
from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.index.schema import (
    FILE_PREFIX,
    FileRow,
    InodeRow,
    entry_of,
    mutable_etag,
    pack_u64,
    unpack_file,
)
from kvfs.model import NO_DIGEST, Codec, Durability, Entry, Place, PutOptions
from kvfs.store import mutable_paths
from kvfs.store.access_times import AccessTimes, touch
from kvfs.store.block_files import SECTOR, StagingFile, os_error, sectors
from kvfs.store.context import StoreContext
from kvfs.store.mutable_paths import allocated_bytes, look
from kvfs.store.objects import TrashKey, add_name, check_condition, resolve_target
from kvfs.store.publisher import Publisher
from kvfs.store.read_view import ReadView
from kvfs.store.row_limits import fit_options
from kvfs.store.space import Space
from kvfs.store.staging import STEP, Staging
from kvfs.store.trash import Trash

MAX_OPEN_ATTEMPTS = 5
BATCH = 100
MAX_LOOKED_AT = 100_000
"""Files looked at by one `settle_all` (I8)."""
TIME_STEP_NS = 1_000_000_000
"""A row whose size and charge are right waits this long for a newer time: an engine that syncs
after every write shall not pay a commit for each."""


class MutableFile:
    """One open mutable file: read and written through `fd` by whoever has it.

    Thread-safe as far as the file is; `make_room`, `settle` and `close` by one thread at a time.
    Close it, or use it as a context manager.
    """

    def __init__(
        self,
        files: MutableFiles,
        inode: int,
        generation: int,
        fd: int,
        charged: int,
        spare: int = 0,
    ) -> None:
        """Take over `fd`, and `spare` bytes that are reserved."""
        self.inode = inode
        self.generation = generation
        self.is_held = False
        """The kernel refuses writes to it, because the store is full."""
        self._files = files
        self._fd = fd
        self._charged = charged
        self._spare = spare

    @property
    def fd(self) -> int:
        """The descriptor; valid until close."""
        return self._fd

    @property
    def size(self) -> int:
        """Bytes in the file now."""
        return look(self._fd).st_size

    @property
    def reserved(self) -> int:
        """Bytes reserved for it beyond what its row is charged."""
        return self._spare

    def make_room(self, offset: int, length: int) -> None:
        """Reserve what writing `length` bytes at `offset` can take at most. Raises: NoSpace."""
        first = offset // SECTOR * SECTOR
        self.cover(sectors(offset + length) - first, STEP)

    def cover(self, ahead: int, step: int = 0) -> None:
        """Reserve all that the file has allocated uncharged, and `ahead` more; lets a held file go.

        step: reserve so much besides, if the store has it, to ask less often. Raises: NoSpace.
        """
        if self._files.is_read_only:
            return
        grown = max(0, allocated_bytes(look(self._fd)) - self._charged)
        if grown + ahead > self._spare:
            self._reserve(grown + ahead - self._spare, step)
        self.let_go()

    def let_go(self) -> None:
        """Let a held file be changed again; the next `watch` of a store still full holds it."""
        if self.is_held:
            mutable_paths.hold(self._fd, is_held=False)
            self.is_held = False

    def _reserve(self, missing: int, step: int) -> None:
        space = self._files.space
        if step and space.could_grant(missing + step):
            missing += step
        space.reserve(missing)
        self._spare += missing

    def watch(self, ahead: int) -> None:
        """Account for what the kernel wrote by itself; at a full store let it write no more."""
        try:
            self.cover(ahead)
        except NoSpace:
            if not self.is_held:
                self.is_held = mutable_paths.hold(self._fd, is_held=True)

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        """Write all of `data` at `offset`; return its length. Raises: NoSpace, Unavailable."""
        view = memoryview(data).cast("B")
        length = len(view)
        self.make_room(offset, length)
        try:
            while view:
                count = os.pwrite(self._fd, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise os_error(error, "cannot write a mutable file") from error
        return length

    def truncate(self, length: int) -> None:
        """Set the file's length; what is cut off is given back. Raises: NoSpace, Unavailable."""
        self.let_go()
        try:
            os.ftruncate(self._fd, length)
        except OSError as error:
            raise os_error(error, "cannot size a mutable file") from error
        self.settle()

    def settle(self) -> None:
        """Bring the row up to date: size, time, bytes charged. Raises: NoSpace, Unavailable."""
        try:
            self.cover(0)
        finally:
            spent, self._charged = self._files.settle(
                self.inode, self.generation, look(self._fd), self._spare
            )
            surplus, self._spare = self._spare - spent, 0
            self._files.space.release(surplus)

    def close(self) -> None:
        """Settle and close. Idempotent. Raises: NoSpace, Unavailable; it is closed all the same."""
        if self._fd < 0:
            return
        try:
            self.settle()
        finally:
            self.let_go()
            descriptor, self._fd = self._fd, -1
            os.close(descriptor)
            self._files.space.release(self._spare)
            self._spare = 0

    def __enter__(self) -> MutableFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MutableFiles:
    """The mutable files of one store. Thread-safe."""

    def __init__(
        self, context: StoreContext, space: Space, trash: Trash, access: AccessTimes
    ) -> None:
        self._context = context
        self.space = space
        self.is_read_only = context.is_read_only
        self._trash = trash
        self._access = access

    # -- coming to be

    def keep(
        self, staging: Staging, place: Place, options: PutOptions
    ) -> tuple[Entry, MutableFile]:
        """Make a staging file the mutable file at `place`; see Store.keep_mutable."""
        with contextlib.closing(staging):  # which does nothing any more once the file is taken
            options = fit_options(options)
            found = look(staging.fd)
            staging.ensure(allocated_bytes(found))
            inode = self._context.commit(lambda txn: txn.allocate_inode())
            file, reserved = staging.take()
        row = FileRow(self._context.generation(), allocated_bytes(found))
        made: MutableFile | None = None
        try:
            self._link(file, inode, row.generation)
            work = partial(
                self._insert, inode=inode, file=row, found=found, place=place, options=options
            )
            entry, trash = self._context.commit(work)
            # A name and no exclusive lock: from here on the shared one says that it is in use.
            mutable_paths.share(file.descriptor)
            spare = reserved - row.stored
            made = MutableFile(self, inode, row.generation, file.descriptor, row.stored, spare)
        finally:
            if made is None:
                self._give_up(file, inode, row, reserved)
        self._trash.add(trash)
        return entry, made

    def _give_up(self, file: StagingFile, inode: int, row: FileRow, reserved: int) -> None:
        """Something failed or was interrupted, perhaps behind the commit."""
        if self._was_committed(inode, row.generation):
            self.space.release(reserved - row.stored)
            os.close(file.descriptor)
            return
        with contextlib.suppress(OSError):
            mutable_paths.path_of(self._context.root, inode, row.generation).unlink()
        self._context.files.discard(file)
        self.space.release(reserved)

    def _link(self, file: StagingFile, inode: int, generation: int) -> None:
        is_durable = self._context.durability is Durability.DURABLE
        if is_durable:
            try:
                os.fdatasync(file.descriptor)
            except OSError as error:
                raise os_error(error, "cannot sync a mutable file") from error
        mutable_paths.link(self._context.root, file, inode, generation)
        if is_durable:
            mutable_paths.sync_directory(self._context.root)

    def _insert(
        self,
        txn: WriteTransaction,
        inode: int,
        file: FileRow,
        found: os.stat_result,
        place: Place,
        options: PutOptions,
    ) -> tuple[Entry, list[TrashKey]]:
        now_ns = self._context.clock.now_ns()
        target = resolve_target(txn, place)
        check_condition(txn, target, options.condition, now_ns // 1_000_000_000)
        namespace = txn.namespace(target.namespace_id)
        if namespace is None:
            raise NamespaceNotFound("the bucket was deleted meanwhile: create it again")
        row = Publisher.row(options, found.st_size, NO_DIGEST, now_ns, namespace.default_ttl_s)
        row.is_mutable, row.etag = True, ""
        row.mtime_ns = found.st_mtime_ns
        _, trash = add_name(txn, target, row, self._context.files, now_ns, inode)
        txn.put_mutable_file(inode, file)
        self.space.charge(txn, file.stored)
        return entry_of(inode, row), trash

    def _was_committed(self, inode: int, generation: int) -> bool:
        """Ask the index: an interrupt, or an error, may have hit after the commit."""
        try:
            with self._context.index.read() as txn:
                file = txn.mutable_file(inode)
        except KvfsError:
            return True  # the sweep will tell
        return file is not None and file.generation == generation

    # -- opening and looking

    def open(self, inode: int) -> MutableFile:
        """Open for reading and writing; counts as an access. Raises: NotFound, Unavailable."""
        for _ in range(MAX_OPEN_ATTEMPTS):
            with self._context.index.read() as txn:
                file = txn.mutable_file(inode)
            if file is None:
                break
            is_writer = not self._context.is_read_only
            descriptor = mutable_paths.open_shared(
                self._context.root, inode, file.generation, is_writer=is_writer
            )
            if descriptor is not None:
                self._access.note(inode, self._context.now_s())
                return MutableFile(self, inode, file.generation, descriptor, file.stored)
        raise NotFound("the file is gone: look its name up again")

    def view(self, entry: Entry) -> ReadView | None:
        """Return a view of what the file holds now, or None if it is gone: look again."""
        file = self._row_of(entry.inode)
        if file is None:
            return None
        descriptor = mutable_paths.open_shared(
            self._context.root, entry.inode, file.generation, is_writer=False
        )
        if descriptor is None:
            return None
        self._access.note(entry.inode, self._context.now_s())
        try:
            return ReadView(_as_found(entry, look(descriptor)), descriptor, Codec.RAW)
        except BaseException:
            os.close(descriptor)
            raise

    def live(self, entry: Entry) -> Entry | None:
        """Return a mutable file's entry as the file itself is now; None if that is gone."""
        file = self._row_of(entry.inode)
        if file is None:
            return None
        found = mutable_paths.find(self._context.root, entry.inode, file.generation)
        return None if found is None else _as_found(entry, found)

    def set_mtime(self, inode: int, mtime_ns: int) -> None:
        """Set when the file was last written, which is the file's own time."""
        file = self._row_of(inode)
        if file is not None:
            mutable_paths.set_mtime(self._context.root, inode, file.generation, mtime_ns)

    def _row_of(self, inode: int) -> FileRow | None:
        with self._context.index.read() as txn:
            return txn.mutable_file(inode)

    # -- accounting

    def settle(
        self, inode: int, generation: int, found: os.stat_result, reserved: int
    ) -> tuple[int, int]:
        """Write what the file is now into its row; return (bytes of `reserved` spent, charged)."""
        with self._context.index.read() as txn:
            file, row = _rows(txn, inode, generation)
        if self._context.is_read_only or file is None or _is_current(file, row, found):
            return 0, file.stored if file is not None else 0
        work = partial(
            self._settle, inode=inode, generation=generation, found=found, reserved=reserved
        )
        return self._context.commit(work)

    def _settle(
        self,
        txn: WriteTransaction,
        inode: int,
        generation: int,
        found: os.stat_result,
        reserved: int,
    ) -> tuple[int, int]:
        file, row = _rows(txn, inode, generation)
        if file is None:
            return 0, 0
        growth = min(allocated_bytes(found) - file.stored, reserved)
        if growth > 0:
            self.space.charge(txn, growth)
        else:
            txn.counters().resident += growth
        file.stored += growth
        if row is None:  # unlinked, and still open
            txn.put_count("trash", _trash_key(inode, generation), file.stored)
        else:
            txn.put_mutable_file(inode, file)
            _follow(txn, inode, row, found, self._context.now_s())
        return max(0, growth), file.stored

    def settle_all(self) -> int:
        """Settle every file of the store, also those that nobody has open; return how many changed.

        A writer that died left its last bytes uncharged, and one in another process may lag.
        """
        start, changed = FILE_PREFIX, 0
        for _ in range(MAX_LOOKED_AT // BATCH):
            with self._context.index.read() as txn:
                batch = list(islice(txn.rows("meta", FILE_PREFIX, start), BATCH))
            for key, raw in batch:
                changed += self._settle_unopened(int.from_bytes(key[1:], "big"), unpack_file(raw))
            if len(batch) < BATCH:
                break
            start = batch[-1][0] + b"\0"
        return changed

    def _settle_unopened(self, inode: int, file: FileRow) -> bool:
        found = mutable_paths.find(self._context.root, inode, file.generation)
        if found is None:
            return False
        growth = max(0, allocated_bytes(found) - file.stored)
        try:
            self.space.reserve(growth)
        except NoSpace:
            growth = 0  # the size and time are told all the same; the rest when there is room
        spent, charged = self.settle(inode, file.generation, found, growth)
        self.space.release(growth - spent)
        return charged != file.stored

    def let_all_go(self) -> None:
        """Let files be written again whose holder was killed; for who has the store first."""
        for name in mutable_paths.walk(self._context.root):
            parsed = mutable_paths.parse_name(name)
            if parsed is not None:
                with contextlib.suppress(OSError):
                    mutable_paths.let_go(mutable_paths.path_of(self._context.root, *parsed))

    def sweep(self) -> int:
        """Unlink files that no row names and nobody has open; return how many."""
        swept = 0
        for name in mutable_paths.walk(self._context.root):
            parsed = mutable_paths.parse_name(name)
            if parsed is not None and self.is_orphan(*parsed):
                with contextlib.suppress(KvfsError):
                    swept += mutable_paths.unlink_unused(self._context.root, *parsed)
        return swept

    def is_orphan(self, inode: int, generation: int) -> bool:
        """Return whether no row names the file and its maker is gone.

        The lock is asked first: a maker holds it until its commit.
        """
        try:
            if mutable_paths.is_in_use(self._context.root, inode, generation):
                return False
        except KvfsError:
            return False  # unlinked just now
        with self._context.index.read() as txn:
            return _rows(txn, inode, generation)[0] is None


def _as_found(entry: Entry, found: os.stat_result) -> Entry:
    size, mtime_ns = found.st_size, found.st_mtime_ns
    return entry._replace(
        size=size,
        mtime_ns=mtime_ns,
        etag=mutable_etag(entry.inode, size, mtime_ns),
        allocated_bytes=allocated_bytes(found),
    )


def _rows(
    txn: ReadTransaction, inode: int, generation: int
) -> tuple[FileRow | None, InodeRow | None]:
    """Return the file's row (as charged in the trash once it is unlinked) and its inode's."""
    file = txn.mutable_file(inode)
    if file is not None and file.generation == generation:
        return file, txn.inode(inode)
    raw = txn.get("trash", _trash_key(inode, generation))
    return None if raw is None else FileRow(generation, int.from_bytes(raw, "little")), None


def _trash_key(inode: int, generation: int) -> bytes:
    return pack_u64(inode) + pack_u64(generation)


def _is_current(file: FileRow, row: InodeRow | None, found: os.stat_result) -> bool:
    if file.stored != allocated_bytes(found):
        return False
    if row is None:
        return True
    is_fresh = 0 <= found.st_mtime_ns - row.mtime_ns < TIME_STEP_NS
    return row.size == found.st_size and is_fresh


def _follow(
    txn: WriteTransaction, inode: int, row: InodeRow, found: os.stat_result, now_s: int
) -> None:
    """Let the inode's row say what the file is; a write is an access."""
    before = replace(row)
    if row.mtime_ns != found.st_mtime_ns:
        touch(row, now_s)
        row.ctime_ns = max(row.ctime_ns, found.st_ctime_ns)
    namespace = txn.namespace(row.namespace_id)
    if namespace is not None and row.size != found.st_size:
        namespace.logical_bytes += row.nlink * (found.st_size - row.size)
        txn.put_namespace(row.namespace_id, namespace)
    row.size, row.mtime_ns = found.st_size, found.st_mtime_ns
    txn.update_inode(inode, before, row)
