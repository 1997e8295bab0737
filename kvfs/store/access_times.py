"""When objects were last used: noted in memory, written to the index in batches.

Owns the notes of this process. A read costs one dictionary store, never a transaction;
housekeeping flushes every 10 s (2.4-7 us a key). A row is rewritten only when over 10 % of its TTL
has passed, so a hot object costs ten writes a lifetime however often it is read; without a TTL,
when over 5 % of the time has passed in which the store turns over.

Holds: at most MAX_NOTES are kept (I8; the newest wins); a lookup in this process sees its own notes
at once, so what was just used here is not expired by its stale row.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice

from kvfs.index.lmdb_index import WriteTransaction
from kvfs.index.schema import InodeRow, end_of_life, unpack_lru_key
from kvfs.model import Kind
from kvfs.store.context import StoreContext

MAX_NOTES = 200_000
BATCH = 250
"""Rows a transaction: 250 touches hold the write lock for about 10 ms."""
MAX_STEP_S = 30
STEP_SHARE = 20
"""Without a TTL, recency is kept to this share of the coldest name's idle time, and no coarser than
MAX_STEP_S. Coarser than the time in which a store turns over, eviction would be by age of writing:
30 s cost a store that turns over in 42 s 2.6 % of its hits (bench eviction)."""


class AccessTimes:
    """Notes of accesses; thread-safe because each step is one dictionary operation."""

    def __init__(self, context: StoreContext) -> None:
        self._context = context
        self._notes: dict[int, int] = {}

    def note(self, inode: int, now_s: int) -> None:
        """Remember that `inode` was used; dropped when too many are waiting."""
        if len(self._notes) < MAX_NOTES or inode in self._notes:
            self._notes[inode] = now_s

    def expires_at_s(self, inode: int, row_expires_at_s: int, ttl_s: int, is_sliding: bool) -> int:
        """Return when the object expires, counting a note that is not written yet."""
        if not is_sliding or not ttl_s or not row_expires_at_s:
            return row_expires_at_s
        noted = self._notes.get(inode)
        if noted is None:
            return row_expires_at_s
        return max(row_expires_at_s, end_of_life(noted, ttl_s))

    def flush(self) -> int:
        """Write all notes to the index; return how many rows changed."""
        changed = 0
        waiting = iter(list(self._notes.items()))  # what comes meanwhile waits for the next flush
        while batch := list(islice(waiting, BATCH)):
            changed += self._context.commit(partial(write_notes, notes=batch))
            for inode, noted in batch:
                if self._notes.get(inode) == noted:
                    del self._notes[inode]
        return changed


def write_notes(txn: WriteTransaction, notes: list[tuple[int, int]]) -> int:
    """Move the noted inodes in the orders of eviction and expiry; return how many moved."""
    changed = 0
    step_s = recency_step_s(_coldest_s(txn), max((noted_s for _, noted_s in notes), default=0))
    for inode, noted_s in notes:
        row = txn.inode(inode)
        if row is None or row.kind is not Kind.FILE or not is_worth_writing(row, noted_s, step_s):
            continue
        before = replace(row)
        touch(row, noted_s)
        txn.update_inode(inode, before, row)
        changed += 1
    return changed


def is_worth_writing(row: InodeRow, noted_s: int, step_s: int) -> bool:
    """Return whether the row is stale enough to be rewritten. step_s: where no lifetime slides."""
    step = max(1, row.ttl_s // 10) if row.ttl_s and row.is_sliding else step_s
    return noted_s - row.accessed_s >= step


def recency_step_s(coldest_s: int, now_s: int) -> int:
    """Return how stale a row may be, where what leaves next was used at `coldest_s`."""
    return min(MAX_STEP_S, max(1, (now_s - coldest_s) // STEP_SHARE))


def _coldest_s(txn: WriteTransaction) -> int:
    """Return the last use of the first name in the order of eviction; 0 = there is none."""
    first = next(iter(txn.keys("lru")), None)
    return 0 if first is None else unpack_lru_key(first)[1]


def touch(row: InodeRow, now_s: int) -> None:
    """Make `row` used at `now_s`: its sliding lifetime starts anew."""
    row.accessed_s = now_s
    if row.is_sliding and row.ttl_s:
        row.expires_at_s = end_of_life(now_s, row.ttl_s)
