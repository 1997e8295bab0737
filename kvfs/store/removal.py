"""Carrying out removals: rows go in transactions that are bounded by time.

Owns the loop that kvfs-gc, the daemons' collection, expiry and a writer's own eviction share. What
goes and why is policy's choice; it is old when it is carried out, so each name is judged again
inside the transaction that removes it: gone, touched, prolonged or pinned since, it stays.
Holds: a transaction ends after TRANSACTION_NS of work (a block's shares are not split unless they
alone take longer); the lock is left to others in between; files are unlinked by the caller, behind
the transactions; killed anywhere, trash and orphans are found by the next run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from kvfs.index.lmdb_index import WriteTransaction
from kvfs.index.schema import InodeRow
from kvfs.model import Kind, Pin
from kvfs.policy.eviction import Reason, Removal
from kvfs.policy.expiry import clamp_deadline_s
from kvfs.store.context import StoreContext
from kvfs.store.dropped_blocks import DroppedBlocks
from kvfs.store.objects import Labels, TrashKey, drop_inode
from kvfs.store.trash import Trash

TRANSACTION_NS = 4_000_000
"""Work inside one transaction at most; 120 rows need 3 ms of it, and their commit 3-4 ms."""
NS_PER_S = 1_000_000_000
MAX_ROWS = 96
"""Rows of a transaction at most."""
JOURNAL_ROWS = 1024
"""Removals that are journalled at once: one fdatasync instead of eight."""
ROWS_PER_S = 4_500
"""No faster, though three times that is possible: 100,000 rows go in 24 s, and a writer that meets
a transaction waits for its fdatasync, too (bench expired_rows)."""
REST_SHARE = 1
"""However slow the disk: the lock is left alone for this many times as long as it was held."""
MAX_PAUSE_NS = 50_000_000
MAX_HELD = 10_000
GROUP_FACTOR = 4
"""A block's shares may stretch a transaction to this many times the time."""
SLIDING_GRACE_S = 30
"""A deadline that slides is believed this much later (a tenth of a shorter TTL): another process
may hold a newer access in memory."""


@dataclass(slots=True)
class Outcome:
    """What an execution did."""

    removed: dict[Reason, int] = field(default_factory=dict)
    kept: int = 0
    """Planned, but gone or wanted again by the time of removal."""
    freed_bytes: int = 0
    """Unlinked."""
    dropped_bytes: int = 0
    """Of what went, as planned: unlinked by now or soon."""
    transactions: int = 0
    rows_ns: int = 0
    """Time until the last row was gone; files are unlinked behind that, at the disk's pace."""
    held_ns: list[int] = field(default_factory=list)
    """How long each transaction had the lock, its commit included; the first MAX_HELD."""

    def count(self, reason: Reason, number: int) -> None:
        self.removed[reason] = self.removed.get(reason, 0) + number


class Remover:
    """Removes names for one process. One thread at a time uses it."""

    def __init__(self, context: StoreContext, trash: Trash) -> None:
        self._context = context
        self._trash = trash
        self._dropped = DroppedBlocks(context.root, context.files, context.randomness)
        self._pause = threading.Event()
        self.resting = threading.Event()
        """Set while the lock is left to others: the time to unlink. A thread that unlinks beside a
        transaction makes it wait for the interpreter at every row, with the lock held."""

    def settle(self) -> None:
        """Empty the journal, once the files are unlinked. Raises: Unavailable, Denied."""
        self._dropped.settle()

    def adopt_dead(self) -> None:
        """Settle the journals of processes that died. Raises: Unavailable, Denied."""
        self._dropped.adopt_dead()

    def close(self) -> None:
        """Settle, and remove the journal. Raises: Unavailable, Denied."""
        self._dropped.close()

    def remove(
        self,
        removals: Sequence[Removal],
        now_s: int,
        outcome: Outcome,
        *,
        is_enough: Callable[[], bool] = lambda: False,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Remove what was planned at `now_s`, noting it in `outcome` as it goes.

        is_enough: asked between transactions once only space is left to make; True ends it early.
        """
        clock = self._context.clock
        position = journalled_to = 0
        before = sum(outcome.removed.values())
        labels: Labels = self._context.files
        while position < len(removals) and not is_stopping():
            if removals[position].reason is Reason.CAPACITY and is_enough():
                break
            end = _batch_end(removals, position)
            if end > journalled_to:
                journalled_to = max(end, position + JOURNAL_ROWS)
                labels = self._journal(removals[position:journalled_to])
            locked_ns, count, done, dropped, trash = self._context.commit(
                partial(
                    self._remove_some, removals=removals[position:end], now_s=now_s, labels=labels
                )
            )
            held_ns = clock.monotonic_ns() - locked_ns
            position += count
            self._trash.add(trash)
            outcome.transactions += 1
            outcome.dropped_bytes += dropped
            if len(outcome.held_ns) < MAX_HELD:
                outcome.held_ns.append(held_ns)
            for reason, number in done.items():
                outcome.count(reason, number)
            # LMDB's lock is not fair: a writer that waits must get its turn.
            rest_ns = max(held_ns * REST_SHARE, count * NS_PER_S // ROWS_PER_S - held_ns)
            self.resting.set()
            self._pause.wait(min(rest_ns, MAX_PAUSE_NS) / NS_PER_S)
            self.resting.clear()
        outcome.kept += position + before - sum(outcome.removed.values())

    def _journal(self, removals: Sequence[Removal]) -> Labels:
        """Note the blocks that are about to go, before the lock is taken; see dropped_blocks.py.

        A name that stays after all is lost to a rebuild.
        """
        found: list[TrashKey] = []
        with self._context.index.read() as txn:
            for removal in removals:
                row = txn.inode(removal.inode)
                block = txn.block(row.digest) if row is not None and row.digest else None
                if row is not None and block is not None and block.refs == 1:
                    found.append((row.digest, block.generation))
        return self._dropped.note(found)

    def _remove_some(
        self, txn: WriteTransaction, removals: Sequence[Removal], now_s: int, labels: Labels
    ) -> tuple[int, int, dict[Reason, int], int, list[TrashKey]]:
        """Return (when the lock was there, how many were dealt with, what went, bytes, trash)."""
        clock, now_ns = self._context.clock, self._context.clock.now_ns()
        start_ns = clock.monotonic_ns()
        done: dict[Reason, int] = {}
        trash: list[TrashKey] = []
        group, count, dropped = removals[0].group, 0, 0
        for removal in removals:
            spent_ns = clock.monotonic_ns() - start_ns
            is_new_group = removal.group != group or removal.group < 0
            if spent_ns > TRANSACTION_NS * (1 if is_new_group else GROUP_FACTOR):
                break
            group = removal.group
            count += 1
            row = txn.inode(removal.inode)
            if row is None or not _still_goes(row, removal.reason, now_s):
                continue
            trash += drop_inode(txn, removal.inode, row, labels, now_ns)
            done[removal.reason] = done.get(removal.reason, 0) + 1
            dropped += removal.freed_bytes
        return start_ns, count, done, dropped, trash


def believed_deadline_s(row: InodeRow) -> int:
    """Return a row's own deadline as a plan may use it; 0 = it has none."""
    if row.expires_at_s and row.is_sliding and row.ttl_s:
        return row.expires_at_s + min(SLIDING_GRACE_S, row.ttl_s // 10)
    return row.expires_at_s


def _batch_end(removals: Sequence[Removal], start: int) -> int:
    """Return where a transaction from `start` on ends: after MAX_ROWS, or with its last block."""
    end = min(start + MAX_ROWS, len(removals))
    limit = min(start + MAX_ROWS * GROUP_FACTOR, len(removals))
    while 0 < end < limit and removals[end].group == removals[end - 1].group >= 0:
        end += 1
    return end


def _still_goes(row: InodeRow, reason: Reason, now_s: int) -> bool:
    if row.kind is not Kind.FILE or row.pin is Pin.HARD:
        return False
    if row.is_mutable and reason is not Reason.EXPIRED:  # its engine keeps its own order in it
        return False
    if reason is Reason.EXPIRED and (row.expires_at_s or row.ttl_s):
        deadline_s = clamp_deadline_s(believed_deadline_s(row), row.ttl_s, now_s)
        return 0 < deadline_s <= now_s
    return row.accessed_s < now_s  # else: used since the plan was made
