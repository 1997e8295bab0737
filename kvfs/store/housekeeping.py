"""Keeping the store small and whole: expiry, eviction by recency, sweeping, syncing.

Owns the bounded steps; who calls them when is maintenance.py's (daemons), Space's (a full store) or
a tool's business. Each step is one transaction of at most BATCH objects, because 50 deletes hold
the machine-wide write lock for about 8 ms; files are unlinked outside.

Holds: a hard-pinned object has no place in the order of eviction (I5); an object noted as used in
this process is flushed to the index before anything is chosen.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import partial
from itertools import islice

from kvfs.errors import KvfsError
from kvfs.index.lmdb_index import WriteTransaction
from kvfs.index.schema import InodeRow, pack_u64, unpack_expiry_key, unpack_lru_key
from kvfs.model import Digest
from kvfs.store.access_times import AccessTimes
from kvfs.store.context import StoreContext
from kvfs.store.objects import TrashKey, drop_inode
from kvfs.store.timekeeping import Timekeeper
from kvfs.store.trash import Trash

BATCH = 50
EXPIRY_GRACE_S = 30
"""Expired rows are a miss at once but are removed only this much later: another process may hold a
newer access in memory for up to its flush interval."""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep of the store's files found and removed."""

    orphan_files: int
    orphan_bytes: int
    staging_files: int
    examined_files: int


class Housekeeping:
    """The steps. Thread-safe; safe in any number of processes at once."""

    def __init__(self, context: StoreContext, access: AccessTimes, trash: Trash) -> None:
        self._context = context
        self._access = access
        self._trash = trash
        self._timekeeper = Timekeeper(context)

    def keep_time(self) -> int:
        """Look whether the clock jumped, and move stored times along; return the seconds."""
        return self._timekeeper.settle()

    def expire(self, limit: int = BATCH) -> int:
        """Remove up to `limit` objects whose lifetime is over; return how many."""
        removed = 0
        while removed < limit:
            count, trash = self._context.commit(
                partial(self._expire_batch, limit=min(BATCH, limit - removed))
            )
            self._trash.add(trash)
            removed += count
            if not count:
                break
        return removed

    def evict(self, wanted_bytes: int, max_objects: int = 10 * BATCH) -> int:
        """Evict least recently used objects until `wanted_bytes` are free or `max_objects` went.

        Returns the bytes freed, trash included: files are unlinked before it returns.
        """
        self._access.flush()
        freed = self._trash.empty_waiting()
        if freed < wanted_bytes:
            freed += self._trash.empty_table()
        examined = 0
        while freed < wanted_bytes and examined < max_objects:
            count, released, trash = self._context.commit(
                partial(self._evict_batch, wanted=wanted_bytes - freed)
            )
            self._trash.add(trash)
            freed += released
            examined += count
            if not count:
                break
        self._trash.empty_waiting()
        return freed

    def sweep(self) -> SweepReport:
        """Remove block files that no row names and dead writers' staging files.

        Takes each file's lock first and only then asks the index: a writer holds it until its
        commit, so an unlocked file that no row names belongs to nobody.
        """
        orphans = orphan_bytes = examined = 0
        for digest, generation in self._context.files.walk():
            examined += 1
            if self._is_named(digest, generation):
                continue
            with contextlib.suppress(KvfsError):
                length = self._remove_orphan(digest, generation)
                orphans += length is not None
                orphan_bytes += length or 0
        return SweepReport(orphans, orphan_bytes, self._sweep_staging(), examined)

    def _expire_batch(self, txn: WriteTransaction, limit: int) -> tuple[int, list[TrashKey]]:
        now_ns = self._context.clock.now_ns()
        if self._timekeeper.pending_s(txn):
            return 0, []  # the clock has jumped: stored times are moved along first
        until = now_ns // 1_000_000_000 - EXPIRY_GRACE_S
        due = []
        for key in islice(txn.keys("expiry"), limit):
            expires_at_s, inode = unpack_expiry_key(key)
            if expires_at_s > until:
                break
            due.append(inode)
        trash: list[TrashKey] = []
        for inode in due:
            row = txn.inode(inode)
            assert row is not None, "a row in expiry names an inode that exists"
            noted = self._access.expires_at_s(inode, row.expires_at_s, row.ttl_s, row.is_sliding)
            if noted <= until:
                trash += drop_inode(txn, inode, row, self._context.files, now_ns)
            else:
                _postpone(txn, inode, row, noted)
        return len(due), trash

    def _evict_batch(self, txn: WriteTransaction, wanted: int) -> tuple[int, int, list[TrashKey]]:
        """Return (objects dropped, bytes that unlinking their files will free, the files)."""
        now_ns = self._context.clock.now_ns()
        trash: list[TrashKey] = []
        freed = 0
        count = 0
        for key in list(islice(txn.keys("lru"), BATCH)):
            _, _, inode = unpack_lru_key(key)
            row = txn.inode(inode)
            assert row is not None, "a row in lru names an inode that exists"
            count += 1
            block = txn.block(row.digest) if row.digest else None
            gone = drop_inode(txn, inode, row, self._context.files, now_ns)
            trash += gone
            if gone and block is not None:
                freed += block.stored
            if freed >= wanted:
                break
        return count, freed, trash

    def _is_named(self, digest: Digest, generation: int) -> bool:
        with self._context.index.read() as txn:
            block = txn.block(digest)
            if block is not None and block.generation == generation and not block.is_bad:
                return True
            return txn.get("trash", digest + pack_u64(generation)) is not None

    def _remove_orphan(self, digest: Digest, generation: int) -> int | None:
        descriptor = self._context.files.try_lock(digest, generation)
        if descriptor is None:
            return None
        try:
            if self._is_named(digest, generation):  # committed while we took the lock
                return None
            length = os.fstat(descriptor).st_size
            return length if self._context.files.unlink(digest, generation) else None
        finally:
            os.close(descriptor)

    def _sweep_staging(self) -> int:
        return sum(self._context.files.sweep_staging())


def _postpone(txn: WriteTransaction, inode: int, row: InodeRow, expires_at_s: int) -> None:
    before = InodeRow(row.kind, row.namespace_id, expires_at_s=row.expires_at_s)
    before.pin, before.priority, before.accessed_s = row.pin, row.priority, row.accessed_s
    row.expires_at_s = expires_at_s
    txn.update_inode(inode, before, row)
