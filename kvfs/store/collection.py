"""Carrying out a plan of removals: the store's names as candidates in, transactions out.

Owns the walk over all names and the execution; what goes and why is policy's choice. A plan is
old when it is carried out, so each name is judged again inside the transaction that removes it:
gone, touched, prolonged or pinned since, it stays.
Holds: a transaction ends after TRANSACTION_NS of work (a block's shares are not split unless they
alone take longer); the lock is left to others in between; files are unlinked
behind the transactions, never inside; killed anywhere, trash and orphans are found by the next run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from kvfs.errors import KvfsError, NotFound
from kvfs.index import tree
from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.index.schema import InodeRow, pack_u64, unpack_block, unpack_inode
from kvfs.model import ROOT_NAMESPACE, Codec, Kind, NamespaceId, Pin
from kvfs.policy.eviction import Budget, Quota, Reason, Removal
from kvfs.policy.expiry import clamp_deadline_s
from kvfs.policy.settings import LifecycleSettings
from kvfs.policy.survey import Candidate, Form
from kvfs.store.block_files import sectors
from kvfs.store.context import StoreContext
from kvfs.store.dropped_blocks import DroppedBlocks
from kvfs.store.objects import Labels, TrashKey, drop_inode
from kvfs.store.recoder import MIN_SIZE
from kvfs.store.trash import Trash

PAGE_ROWS = 4096
"""Rows a read transaction: a long one would keep old pages from being used again."""
MAX_FOLDERS = 100_000
"""Folder paths kept while walking; beyond it they are looked up again (I8)."""
TRANSACTION_NS = 5_000_000
"""Work inside one transaction; with its commit the lock is held for about 8 ms."""
MAX_ROWS = 64
"""Rows of a transaction at most."""
JOURNAL_ROWS = 256
"""Removals that are journalled at once: one fdatasync instead of four."""
PAUSE_SHARE = 4
"""The lock is left alone for this part of the time it was held."""
UNLINK_EVERY_S = 0.02
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
    transactions: int = 0
    rows_ns: int = 0
    """Time until the last row was gone; files are unlinked behind that, at the disk's pace."""
    held_ns: list[int] = field(default_factory=list)
    """How long each transaction had the lock, its commit included; the first MAX_HELD."""

    def count(self, reason: Reason, number: int) -> None:
        self.removed[reason] = self.removed.get(reason, 0) + number


MAX_HELD = 10_000


class Walk:
    """Every live file of the store as a Candidate, in order of inodes; use it once.

    Needs about 5 us a name. Costs one short read transaction a page, so what it yields is not one
    moment's state.
    """

    def __init__(self, context: StoreContext) -> None:
        self._context = context
        self._folders: dict[int, bytes] = {}
        self._unusual: dict[bytes, tuple[int, int, Form]] = {}
        self.names: dict[int, bytes] = {}
        """Namespace ids and names, filled while walking."""

    def __iter__(self) -> Iterator[Candidate]:
        self._survey_blocks()
        start = 0
        while True:
            with self._context.index.read() as txn:
                page = list(islice(txn.rows("inodes", start=pack_u64(start)), PAGE_ROWS))
                found = [
                    candidate
                    for key, raw in page
                    if (candidate := self._candidate(txn, int.from_bytes(key, "big"), raw))
                ]
            yield from found
            if len(page) < PAGE_ROWS:
                return
            start = int.from_bytes(page[-1][0], "big") + 1

    def one(self, inode: int) -> Candidate | None:
        """Return one file as a Candidate."""
        with self._context.index.read() as txn:
            raw = txn.get("inodes", pack_u64(inode))
            return None if raw is None else self._candidate(txn, inode, raw)

    def _survey_blocks(self) -> None:
        """Note the blocks that are shared or compressed: all others follow from the inode alone."""
        start = b""
        while True:
            with self._context.index.read() as txn:
                page = list(islice(txn.rows("blocks", start=start), PAGE_ROWS))
            for digest, raw in page:
                block = unpack_block(raw)
                if block.is_bad:
                    self._unusual[digest] = 0, block.refs, Form.SETTLED
                elif block.codec is not Codec.RAW:
                    self._unusual[digest] = block.stored, block.refs, Form.COMPRESSED
                elif block.refs > 1 or block.is_incompressible:
                    form = Form.SETTLED if block.is_incompressible else Form.RAW
                    self._unusual[digest] = block.stored, block.refs, form
            if len(page) < PAGE_ROWS:
                return
            start = page[-1][0] + b"\0"

    def _candidate(self, txn: ReadTransaction, inode: int, raw: bytes) -> Candidate | None:
        row = unpack_inode(raw)
        if row.kind is not Kind.FILE:
            return None
        stored, refs, form = (sectors(row.size) if row.digest else 0), 1, Form.SETTLED
        if row.digest in self._unusual:
            stored, refs, form = self._unusual[row.digest]
        elif row.size >= MIN_SIZE and row.digest:
            form = Form.RAW
        return Candidate(
            inode,
            row.namespace_id,
            self._folder(txn, row.parent, row.namespace_id) + row.name,
            stored,
            row.accessed_s,
            row.ctime_ns // 1_000_000_000,
            believed_deadline_s(row),
            row.ttl_s,
            row.priority,
            row.pin,
            row.digest if refs > 1 else b"",
            refs,
            row.is_mutable,
            form,
            row.attributes or None,
        )

    def _folder(self, txn: ReadTransaction, parent: int, namespace_id: NamespaceId) -> bytes:
        known = self._folders.get(parent)
        if known is not None:
            return known
        path = b""
        try:
            row = tree.directory_row(txn, parent)
            path = tree.path_of(txn, row.parent, row.name) if row.parent else b""
        except NotFound:
            return path  # removed while we walk: its names are gone, too
        name, _, below = path.partition(b"/")
        if namespace_id != ROOT_NAMESPACE:
            self.names[namespace_id] = name
            path = below
        if len(self._folders) < MAX_FOLDERS:
            self._folders[parent] = path
        return path


class Collector:
    """Executes plans. One a run; any number of processes at once."""

    def __init__(self, context: StoreContext) -> None:
        self._context = context
        # "Background": this object empties it itself, between transactions.
        self._trash = Trash(context, has_background=True)
        self._dropped = DroppedBlocks(context.root, context.files, context.randomness)
        self._pause = threading.Event()

    def budget(self, settings: LifecycleSettings) -> Budget:
        """Return capacity, use and quotas as of now; what is trash already counts as free."""
        with self._context.index.read() as txn:
            counters = txn.counters()
            pending = sum(int.from_bytes(size, "little") for _, size in txn.rows("trash"))
            quotas = {
                int(namespace_id): Quota(
                    row.quota_bytes, row.quota_objects, row.logical_bytes, row.object_count
                )
                for namespace_id, row in txn.namespaces()
                if row.quota_bytes or row.quota_objects
            }
        return Budget(
            capacity_bytes=self._context.capacity_bytes,
            used_bytes=counters.resident + counters.granted + counters.uploading - pending,
            high_ratio=settings.high_ratio,
            low_ratio=settings.low_ratio,
            grace_s=settings.grace_s,
            quotas=quotas,
        )

    def execute(
        self,
        removals: Sequence[Removal],
        now_s: int,
        *,
        is_enough: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Remove what the plan made at `now_s` names; return what was done.

        is_enough: asked between transactions once only space is left to make; True ends it early
        (somebody else has made room).
        """
        outcome = Outcome()
        start_ns = self._context.clock.monotonic_ns()
        stop = threading.Event()
        unlinker = threading.Thread(
            target=self._unlink_behind, args=(stop, outcome), name="kvfs-unlink", daemon=True
        )
        unlinker.start()
        try:
            self._remove_all(removals, now_s, is_enough, outcome)
        finally:
            outcome.rows_ns = self._context.clock.monotonic_ns() - start_ns
            stop.set()
            unlinker.join()
        outcome.freed_bytes += self._trash.empty_waiting()
        self._dropped.adopt_dead()
        self._dropped.close()
        return outcome

    def _unlink_behind(self, stop: threading.Event, outcome: Outcome) -> None:
        """Unlink at the disk's pace while rows go at the index's; alone writes `freed_bytes`."""
        while not stop.wait(UNLINK_EVERY_S):
            try:
                outcome.freed_bytes += self._trash.empty_waiting()
            except KvfsError:
                return  # what is left is in the table; the caller's own attempt reports the cause

    def _remove_all(
        self,
        removals: Sequence[Removal],
        now_s: int,
        is_enough: Callable[[], bool],
        outcome: Outcome,
    ) -> None:
        clock = self._context.clock
        position = journalled_to = 0
        labels: Labels = self._context.files
        while position < len(removals):
            if removals[position].reason is Reason.CAPACITY and is_enough():
                break
            end = _batch_end(removals, position)
            if end > journalled_to:
                journalled_to = max(end, position + JOURNAL_ROWS)
                labels = self._journal(removals[position:journalled_to])
            locked_ns, count, done, trash = self._context.commit(
                partial(
                    self._remove_some, removals=removals[position:end], now_s=now_s, labels=labels
                )
            )
            held_ns = clock.monotonic_ns() - locked_ns
            position += count
            self._trash.add(trash)
            outcome.transactions += 1
            if len(outcome.held_ns) < MAX_HELD:
                outcome.held_ns.append(held_ns)
            for reason, number in done.items():
                outcome.count(reason, number)
            # LMDB's lock is not fair: a writer that waits must get its turn.
            self._pause.wait(min(held_ns / PAUSE_SHARE, 50e6) / 1e9)
        outcome.kept = position - sum(outcome.removed.values())

    def empty_trash(self) -> int:
        """Unlink what any process left in the trash; return the bytes freed."""
        return self._trash.empty_table()

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
    ) -> tuple[int, int, dict[Reason, int], list[TrashKey]]:
        """Return (when the lock was there, how many were dealt with, what went, trash)."""
        clock, now_ns = self._context.clock, self._context.clock.now_ns()
        start_ns = clock.monotonic_ns()
        done: dict[Reason, int] = {}
        trash: list[TrashKey] = []
        group, count = removals[0].group, 0
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
        return start_ns, count, done, trash


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
    if row.kind is not Kind.FILE or row.pin is Pin.HARD or row.is_mutable:
        return False
    if reason is Reason.EXPIRED and (row.expires_at_s or row.ttl_s):
        deadline_s = clamp_deadline_s(believed_deadline_s(row), row.ttl_s, now_s)
        return 0 < deadline_s <= now_s
    return row.accessed_s < now_s  # else: used since the plan was made
