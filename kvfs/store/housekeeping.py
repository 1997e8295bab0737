"""Keeping the store small and whole: expiry, eviction by recency, sweeping, syncing.

Owns the bounded steps; who calls them when is maintenance.py's (daemons), Space's (a full store) or
a tool's business. Names go as in any collection (removal.py): in short transactions, files behind.

Holds: a hard-pinned object has no place in the order of eviction (I5); an object noted as used in
this process is flushed to the index before anything is chosen.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from kvfs.errors import KvfsError, NotFound
from kvfs.index import tree
from kvfs.index.listing import list_page
from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.index.schema import (
    InodeRow,
    end_of_life,
    pack_u64,
    unpack_expiry_key,
    unpack_lru_key,
)
from kvfs.model import ROOT_NAMESPACE, Digest
from kvfs.policy.eviction import Reason, Removal
from kvfs.policy.settings import LifecycleSettings
from kvfs.policy.window import ColdName, choose_coldest
from kvfs.store import mutable_paths
from kvfs.store.access_times import AccessTimes
from kvfs.store.context import StoreContext
from kvfs.store.objects import find_namespace
from kvfs.store.removal import Outcome, Remover
from kvfs.store.timekeeping import Timekeeper
from kvfs.store.trash import Trash

WINDOW = 256
"""Names that are looked at before some of them go: more than the shares of any block."""
MAX_WINDOWS = 40
"""Windows one eviction looks through for something that may go (I8)."""
MAX_LOOKED_AT = 100_000
"""Names that are looked at before an eviction is taken to be worth a try (half a second, I8)."""
GRACE_S = LifecycleSettings().grace_s
MAX_EXPIRED = 10_000
"""Expired objects at most that a bucket's deletion clears away: a few seconds' work."""
MAX_QUARANTINE_BYTES = 1 << 30
MAX_QUARANTINE_AGE_S = 30 * 86_400
"""Damaged blocks are kept to be looked at, outside the capacity: the newest, and not for ever."""
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
    quarantined_files: int = 0
    """Removed because they were old, or too many."""


class Housekeeping:
    """The steps. Thread-safe; safe in any number of processes at once."""

    def __init__(self, context: StoreContext, access: AccessTimes, trash: Trash) -> None:
        self._context = context
        self._access = access
        self._trash = trash
        self._timekeeper = Timekeeper(context)
        self._remover = Remover(context, trash)
        self._removing = threading.Lock()
        """One thread at a time drops names; taken before the trash's lock and any commit."""

    def keep_time(self) -> int:
        """Look whether the clock jumped, and move stored times along; return the seconds."""
        return self._timekeeper.settle()

    def expire(self, limit: int = WINDOW) -> int:
        """Remove up to `limit` objects whose lifetime is over; return how many."""
        self._context.check_writable()
        outcome = Outcome()
        with self._removing:
            for _ in range(limit):
                removed = sum(outcome.removed.values())
                now_s = self._context.now_s()
                due, used = self._due(min(WINDOW, limit - removed), now_s)
                if used:
                    self._context.commit(partial(_postpone, used=used))
                self._remover.remove(due, now_s, outcome)
                is_done = sum(outcome.removed.values()) in (removed, limit)
                if is_done and not used:
                    break
            self._settle()
        return sum(outcome.removed.values())

    def expire_whole(self, namespace: bytes) -> None:
        """Remove all objects of a bucket in which none is alive; else change nothing.

        What nobody can see must not keep its bucket from being deleted. Raises: NamespaceNotFound.
        """
        self._access.flush()
        due: list[Removal] = []
        now_s, after = self._context.now_s(), b""
        while True:
            with self._context.index.read() as txn:
                namespace_id, inode = find_namespace(txn, namespace)
                page = list_page(
                    txn, inode, prefix=b"", delimiter=b"", after=after, limit=WINDOW,
                    is_live=lambda *_: True,
                )  # fmt: skip
            for item in page.objects:
                if not 0 < item.entry.expires_at_s <= now_s or len(due) == MAX_EXPIRED:
                    return
                due.append(Removal(item.entry.inode, namespace_id, Reason.EXPIRED, 0, -1))
            if not page.is_truncated:
                break
            after = page.next_after
        with self._removing:
            self._remover.remove(due, now_s, Outcome())
            self._settle()

    def evict(self, wanted_bytes: int, max_objects: int = 500) -> int:
        """Evict the coldest blocks until `wanted_bytes` are free or `max_objects` went.

        Whole blocks of each window of the order; nothing that was asked for moments ago.
        Returns the bytes freed, trash included: files are unlinked before it returns.
        """
        self._context.check_writable()
        self._access.flush()
        with self._removing:
            freed = self._trash.empty_waiting()
            if freed < wanted_bytes:
                freed += self._trash.empty_table()
            start, outcome = b"", Outcome()
            for _ in range(MAX_WINDOWS):
                left = max_objects - sum(outcome.removed.values())
                missing = wanted_bytes - freed - outcome.dropped_bytes
                if missing <= 0 or left <= 0:
                    break
                window, after, latest_s = self._window(start)
                chosen = choose_coldest(window, missing, left)
                # Read again from here after a removal: another process may have been faster.
                start = start if chosen else after
                if not start and not chosen:
                    break
                # Nothing of the window counts as used since: it was read just now.
                self._remover.remove(chosen, latest_s + 1, outcome)
            self._settle()
        return freed + outcome.dropped_bytes

    def could_evict(self, wanted_bytes: int) -> bool:
        """Return whether `wanted_bytes` would be free if all that may go went; changes nothing.

        What is promised counts, for promises end; what is pinned or mutable does not. Looks no
        further than it must: at a full store mostly at one name.
        """
        with self._context.index.read() as txn:
            found = sum(int.from_bytes(stored, "little") for _, stored in txn.rows("trash"))
        start = b""
        for _ in range(MAX_LOOKED_AT // WINDOW):
            if found >= wanted_bytes:
                return True
            with self._context.index.read() as txn:
                keys = list(islice(txn.keys("lru", start=start), WINDOW))
                for key in keys:
                    found += _evictable_bytes(txn, key)
                    if found >= wanted_bytes:
                        return True
            if len(keys) < WINDOW:
                return False
            start = keys[-1] + b"\0"
        return True

    def close(self) -> None:
        """Settle what this process dropped. Raises: Unavailable, Denied."""
        with self._removing:
            self._remover.close()

    def _settle(self) -> None:
        self._trash.empty_waiting()
        self._remover.settle()

    def sweep(self) -> SweepReport:
        """Remove block files that no row names, dead writers' staging files, old quarantine.

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
        quarantined = 0
        with contextlib.suppress(OSError):  # another process was faster: the next sweep goes on
            until_s = self._context.now_s() - MAX_QUARANTINE_AGE_S
            quarantined = self._context.files.trim_quarantine(MAX_QUARANTINE_BYTES, until_s)
        return SweepReport(orphans, orphan_bytes, self._sweep_staging(), examined, quarantined)

    def _due(self, limit: int, now_s: int) -> tuple[list[Removal], dict[int, int]]:
        """Return what has expired, and those that live on by a use that is only noted as yet."""
        due: list[Removal] = []
        used: dict[int, int] = {}
        until = now_s - EXPIRY_GRACE_S
        with self._context.index.read() as txn:
            if self._timekeeper.pending_s(txn):
                return due, used  # the clock has jumped: stored times are moved along first
            for key in islice(txn.keys("expiry"), limit):
                expires_at_s, inode = unpack_expiry_key(key)
                if expires_at_s > until:
                    break
                row = txn.inode(inode)
                if row is None:
                    continue
                if self._is_open_file(txn, inode, row):
                    used[inode] = end_of_life(now_s, row.ttl_s or EXPIRY_GRACE_S)
                    continue
                noted = self._access.expires_at_s(inode, expires_at_s, row.ttl_s, row.is_sliding)
                if noted > until:
                    used[inode] = noted
                else:
                    due.append(Removal(inode, row.namespace_id, Reason.EXPIRED, 0, -1))
        return due, used

    def _window(self, start: bytes) -> tuple[list[ColdName], bytes, int]:
        """Return the next names in the order of eviction, where to go on (b"" = nowhere), and the
        latest access among them."""
        window: list[ColdName] = []
        now_s = latest_s = self._context.now_s()
        with self._context.index.read() as txn:
            keys = list(islice(txn.keys("lru", start=start), WINDOW))
            for key in keys:
                _, accessed_s, inode = unpack_lru_key(key)
                row = txn.inode(inode)
                if row is None or row.is_mutable:
                    continue
                block = txn.block(row.digest) if row.digest else None
                is_last = block is not None and block.refs == 1 and not block.is_bad
                window.append(
                    ColdName(
                        inode,
                        row.namespace_id,
                        _key_below(txn, row),
                        block.stored if block is not None and is_last else 0,
                        now_s - GRACE_S < accessed_s <= now_s
                        and accessed_s > row.ctime_ns // 1_000_000_000,
                    )
                )
                latest_s = max(latest_s, accessed_s)
        return window, keys[-1] + b"\0" if keys else b"", latest_s

    def _is_open_file(self, txn: ReadTransaction, inode: int, row: InodeRow) -> bool:
        """Return whether a mutable file is in use: an engine that lost its slab would read zeros
        in its place, so its lifetime begins with its last close."""
        file = txn.mutable_file(inode) if row.is_mutable else None
        try:
            return file is not None and mutable_paths.is_in_use(
                self._context.root, inode, file.generation
            )
        except KvfsError:
            return False  # it has no file any more

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


def _postpone(txn: WriteTransaction, used: dict[int, int]) -> None:
    for inode, expires_at_s in used.items():
        row = txn.inode(inode)
        if row is not None and 0 < row.expires_at_s < expires_at_s:
            before = replace(row)
            row.expires_at_s = expires_at_s
            txn.update_inode(inode, before, row)


def _evictable_bytes(txn: ReadTransaction, lru_key: bytes) -> int:
    """Return one name's share of its block, rounded up: of all names together not too little."""
    row = txn.inode(unpack_lru_key(lru_key)[2])
    block = txn.block(row.digest) if row is not None and row.digest else None
    return 0 if block is None or block.is_bad else -(-block.stored // max(block.refs, 1))


def _key_below(txn: ReadTransaction, row: InodeRow) -> bytes:
    """Return a file's path below its namespace."""
    try:
        path = tree.path_of(txn, row.parent, row.name)
    except NotFound:
        return row.name
    return path if row.namespace_id == ROOT_NAMESPACE else path.partition(b"/")[2]
