"""Looking names up and opening their bytes.

Owns the read side of the store: one read transaction a lookup, no lock, no write on the path. An
access is a note in memory. A block whose file is gone or torn is a miss, never wrong bytes (I1):
the file may have been evicted between lookup and open (look again), or lost with the power.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from itertools import islice

from kvfs.errors import Corrupt, IsADirectory, NotFound
from kvfs.index import tree
from kvfs.index.listing import list_page, read_children
from kvfs.index.lmdb_index import ReadTransaction
from kvfs.index.schema import (
    PIECE_LENGTH,
    BlockRow,
    InodeRow,
    NamespaceRow,
    entry_of,
    unpack_block,
)
from kvfs.model import (
    MAX_MOUNT_NAME_LENGTH,
    ChildName,
    Codec,
    Digest,
    DirectoryChild,
    Entry,
    Kind,
    ListPage,
    Namespace,
    NamespaceId,
    ObjectPath,
    Pin,
    Place,
)
from kvfs.store.access_times import AccessTimes
from kvfs.store.block_files import os_error
from kvfs.store.context import StoreContext
from kvfs.store.heat import Heat
from kvfs.store.mutable_files import MutableFiles
from kvfs.store.objects import find_inode, find_namespace
from kvfs.store.read_view import ReadView
from kvfs.store.trust import Trust
from kvfs.store.use_counts import Uses

MAX_OPEN_ATTEMPTS = 5
"""A file that vanished between lookup and open was evicted or replaced: the name may mean another
file by now. The protocol's model needed at most 4 retries."""

VERIFY_ATTRIBUTE = "user.kvfs.verify"
"""On a namespace: b"always" hashes every block each time it is opened."""
_VERIFY_NAME = VERIFY_ATTRIBUTE.encode()


def _open_nothing() -> int:
    """Return a descriptor that reads as an empty file. Raises: Unavailable."""
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise os_error(error, "cannot open an empty object") from error


class Reader:
    """Lookups, listings and opening. Thread-safe."""

    def __init__(
        self,
        context: StoreContext,
        access: AccessTimes,
        uses: Uses,
        heat: Heat,
        trust: Trust,
        files: MutableFiles,
    ) -> None:
        self._context = context
        self._files = files
        self._index = context.index
        self._access = access
        self._uses = uses
        self._heat = heat
        self._trust = trust

    def find(self, place: Place, *, touch: bool = False) -> Entry | None:
        """Return the entry at `place`, or None (absent or expired)."""
        if isinstance(place, ChildName):
            return self.find_child(place.parent, place.name, touch=touch)
        if 0 < len(place.key) <= PIECE_LENGTH:
            entry = self._index.find_file(place.namespace, place.key)
        else:
            entry = self._find_slowly(place)
        found = self._as_it_is(entry, touch=touch)
        if found is None and touch:
            self._uses.missed()
        return found

    def find_child(self, parent: int, name: bytes, *, touch: bool = False) -> Entry | None:
        """Return what the mount shows under `name` in `parent`, or None (absent or expired)."""
        if len(name) > MAX_MOUNT_NAME_LENGTH:
            entry = self._find_slowly(ChildName(parent, name))
        else:
            entry = self._index.find_child(parent, name)
        found = self._as_it_is(entry, touch=touch)
        if found is None and touch:
            self._uses.missed((parent, name))
        return found

    def _as_it_is(self, entry: Entry | None, *, touch: bool = False) -> Entry | None:
        """Return the entry if it is live, of a mutable file as the file is now."""
        if entry is None or not self._is_live(entry):
            return None
        if touch:
            self._access.note(entry.inode, self._context.now_s())
            self._uses.found(entry)
        return self._files.live(entry) if entry.is_mutable else entry

    def _find_slowly(self, place: Place) -> Entry | None:
        with self._index.read() as txn:
            inode = find_inode(txn, place)
            return None if inode is None else txn.entry(inode)

    def find_many(self, paths: Sequence[ObjectPath]) -> list[Entry | None]:
        """Return the entries of `paths`, in their order, as of one moment."""
        found: list[Entry | None] = []
        with self._index.read() as txn:
            for path in paths:
                inode = find_inode(txn, path)
                entry = None if inode is None else txn.entry(inode)
                found.append(entry if entry is not None and self._is_live(entry) else None)
        return found

    def stat(self, place: Place, *, touch: bool = False) -> Entry:
        """Return the entry at `place`. Raises: NotFound, NamespaceNotFound."""
        entry = self.find(place, touch=touch)
        if entry is None:
            raise self._absent(place)
        return entry

    def stat_inode(self, inode: int) -> Entry | None:
        """Return the entry of an inode, or None."""
        return self._as_it_is(self._index.find_entry(inode))

    def open_read(self, place: Place) -> ReadView:
        """Open the object at `place`; counts as an access.

        Raises: NotFound, NamespaceNotFound, IsADirectory, Unavailable.
        """
        for _ in range(MAX_OPEN_ATTEMPTS):
            with self._index.read() as txn:
                inode = find_inode(txn, place)
                found = None if inode is None else self._load(txn, inode)
            if found is None:
                break
            view = self._open(*found)
            if view is not None:
                return view
        raise self._absent(place)

    def open_inode(self, inode: int) -> ReadView:
        """Open an object by its inode; counts as an access. Raises: as open_read."""
        for _ in range(MAX_OPEN_ATTEMPTS):
            with self._index.read() as txn:
                found = self._load(txn, inode)
            if found is None:
                break
            view = self._open(*found)
            if view is not None:
                return view
        raise NotFound("the file is gone: look its name up again")

    def open_trusted(self, inode: int) -> ReadView | None:
        """Open without hashing; see Store.open_trusted."""
        with self._index.read() as txn:
            found = self._load(txn, inode)
        if found is None:
            raise NotFound("the file is gone: look its name up again")
        is_suspect = bool(found[2])
        return None if is_suspect else self._open(*found)

    def is_current(self, view: ReadView) -> bool:
        """Whether opening the view's inode anew would give this view; see Store.is_current."""
        entry = view.entry
        with self._index.read() as txn:
            found = self._load(txn, entry.inode)
        if found is None:
            return False
        now, block, salt = found
        if salt or block is None or block.is_bad or now.is_mutable:
            return False
        if now.digest != entry.digest or block.generation != view.generation:
            return False
        self._access.note(entry.inode, self._context.now_s())
        self._uses.opened(entry.size)
        return True

    def open_block(self, digest: Digest) -> ReadView:
        """Open a block by its digest; see Store.open_block."""
        with self._index.read() as txn:
            block = txn.block(digest)
            namespace = None if block is None else txn.namespace(block.namespace_id)
        if block is None or namespace is None or block.is_bad:
            raise NotFound("there is no such block: it was evicted, or never stored")
        descriptor = self._context.files.open(digest, block.generation)
        if descriptor is None:
            raise NotFound("the block was evicted just now")
        must_check = self._trust.is_suspect(block) or is_always_verified(namespace)
        try:
            salt = namespace.salt if must_check else b""
            if not self._is_good(digest, block, salt, descriptor):
                raise NotFound("the block failed its check and is served no more")
            row = InodeRow(Kind.FILE, block.namespace_id, mode=0o400, nlink=block.refs)
            row.size, row.digest = block.size, digest
            condemn = partial(self._trust.condemn, digest, block)
            return ReadView(entry_of(0, row), descriptor, block.codec, condemn)
        except BaseException:
            os.close(descriptor)
            raise

    def list_blocks(self, prefix: bytes, after: bytes, limit: int) -> list[tuple[Digest, int]]:
        """Return (digest, size) of one page; see Store.list_blocks."""
        with self._index.read() as txn:
            start = prefix if not after else after + bytes(1)
            page = []
            for key, raw in islice(txn.rows("blocks", prefix, start), limit):
                page.append((Digest(key), unpack_block(raw).size))
            return page

    def stored_bytes(self, digest: Digest) -> int:
        """Return what a block takes on the disk; see Store.stored_bytes."""
        return self._index.find_stored(digest)

    def recheck(self, namespace_id: NamespaceId, digest: Digest) -> bool:
        """Hash a block file anew; see Store.recheck."""
        with self._index.read() as txn:
            block, namespace = txn.block(digest), txn.namespace(namespace_id)
        if block is None or namespace is None or block.is_bad:
            return True
        descriptor = self._context.files.open(digest, block.generation)
        if descriptor is None:
            return True
        try:
            return self._trust.check(digest, block, namespace.salt, descriptor)
        finally:
            os.close(descriptor)

    def _load(
        self, txn: ReadTransaction, inode: int
    ) -> tuple[Entry, BlockRow | None, bytes] | None:
        """Return (entry, block, salt where the block must be hashed), or None when it is a miss."""
        entry = txn.entry(inode)
        if entry is None or not self._is_live(entry):
            return None
        if entry.is_directory:
            raise IsADirectory("this is a directory: name a file in it")
        if not entry.digest:
            return entry, None, b""
        block = txn.block(entry.digest)
        if block is None:
            return None
        is_suspect = self._trust.is_suspect(block)
        if not is_suspect and not txn.namespace_mentions(entry.namespace_id, _VERIFY_NAME):
            return entry, block, b""  # what is nearly always so, without unpacking the row
        namespace = txn.namespace(entry.namespace_id)
        must_check = is_suspect or is_always_verified(namespace)
        return entry, block, namespace.salt if must_check and namespace is not None else b""

    def _open(self, entry: Entry, block: BlockRow | None, salt: bytes) -> ReadView | None:
        """Return a view, or None to look again (evicted, replaced, or bad and now dropped)."""
        if entry.is_mutable:
            return self._files.view(entry)
        if block is None:
            self._access.note(entry.inode, self._context.now_s())
            return ReadView(entry, _open_nothing(), Codec.RAW)
        if block.is_bad:
            if self._context.is_read_only:
                raise Corrupt("its bytes failed their check: store it again", entry.digest)
            self._trust.drop_name_of(entry.inode, entry.digest)
            return None
        descriptor = self._context.files.open(entry.digest, block.generation)
        if descriptor is None:
            self._forget_if_lost(entry.digest, block)
            return None
        try:
            if not self._is_good(entry.digest, block, salt, descriptor):
                if self._context.is_read_only:
                    raise Corrupt("its bytes failed their check: open the store for writing once")
                os.close(descriptor)
                return None
            condemn = partial(self._trust.condemn, entry.digest, block)
            view = ReadView(entry, descriptor, block.codec, condemn, block.generation)
        except OSError as error:
            os.close(descriptor)
            raise os_error(error, "cannot look at a block file") from error
        except BaseException:
            os.close(descriptor)
            raise
        self._access.note(entry.inode, self._context.now_s())
        self._uses.opened(entry.size)
        if block.codec is not Codec.RAW:
            self._heat.note(entry.inode)
        return view

    def _is_good(self, digest: Digest, block: BlockRow, salt: bytes, descriptor: int) -> bool:
        """Return whether the file may be served; one that may not is condemned."""
        if block.codec is Codec.RAW and os.fstat(descriptor).st_size != block.size:
            self._trust.condemn(digest, block)
            return False
        return not salt or self._trust.check(digest, block, salt, descriptor)

    def _forget_if_lost(self, digest: Digest, block: BlockRow) -> None:
        """The file was not there: if its row still names it, it is lost, not evicted."""
        if self._context.is_read_only:
            return
        with self._index.read() as txn:
            now = txn.block(digest)
        if now is not None and now.generation == block.generation and not now.is_bad:
            self._trust.condemn(digest, now)

    def _is_live(self, entry: Entry) -> bool:
        return not entry.expires_at_s or self._is_live_row(entry.inode, entry)

    def _is_live_row(self, inode: int, row: InodeRow | Entry) -> bool:
        """Return whether the row is unexpired, counting notes not yet written; a hard pin is."""
        if not row.expires_at_s or row.pin is Pin.HARD:
            return True
        if row.expires_at_s > self._context.now_s():
            return True
        access = self._access
        expires = access.expires_at_s(inode, row.expires_at_s, row.ttl_s, row.is_sliding)
        return expires > self._context.now_s()

    def _absent(self, place: Place) -> NotFound:
        if isinstance(place, ChildName):
            return NotFound(f"{str(place)!r} does not exist")
        with self._index.read() as txn:
            try:
                find_namespace(txn, place.namespace)
            except NotFound as error:
                return error
        return NotFound(f"{str(place)!r} does not exist")

    def list_objects(
        self, namespace: bytes, *, prefix: bytes, delimiter: bytes, after: bytes, limit: int
    ) -> ListPage:
        """Return one page of a namespace's keys. Raises: NamespaceNotFound."""
        with self._index.read() as txn:
            _, inode = find_namespace(txn, namespace)
            return list_page(
                txn,
                inode,
                prefix=prefix,
                delimiter=delimiter,
                after=after,
                limit=limit,
                is_live=self._is_live_row,
            )

    def read_directory(self, inode: int, *, after: bytes, limit: int) -> list[DirectoryChild]:
        """Return the mount's view of a directory. Raises: NotFound, NotADirectory."""
        with self._index.read() as txn:
            tree.directory_row(txn, inode)
            return read_children(txn, inode, after=after, limit=limit, is_live=self._is_live_row)

    def find_namespace(self, name: bytes) -> Namespace | None:
        """Return the bucket called `name`, or None."""
        with self._index.read() as txn:
            try:
                namespace_id, _ = find_namespace(txn, name)
            except NotFound:
                return None
            row = txn.namespace(namespace_id)
        if row is None:
            return None
        return Namespace(
            namespace_id, name, row.inode, row.created_ns, row.object_count, row.logical_bytes,
            row.quota_bytes, row.quota_objects, row.default_ttl_s, row.attributes,
        )  # fmt: skip


def is_always_verified(namespace: NamespaceRow | None) -> bool:
    """Return whether every open of a namespace's blocks hashes them."""
    return namespace is not None and namespace.attributes.get(VERIFY_ATTRIBUTE) == b"always"
