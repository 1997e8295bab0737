"""The store's names as candidates in, and a plan carried out with its files unlinked behind it.

Owns the walk over all names, and a run's execution (removal.py owns the transactions); what goes
and why is policy's choice.
Holds: a walk never keeps a read transaction for longer than a page; files are unlinked behind the
transactions, never inside.
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Callable, Iterator, Sequence

from kvfs.errors import KvfsError, NotFound
from kvfs.index import tree
from kvfs.index.lmdb_index import ReadTransaction
from kvfs.index.schema import (
    DIGEST_AT,
    NAME_AT,
    PLAIN_FILE,
    PLAIN_FLAGS,
    pack_u64,
    unpack_block,
    unpack_inode,
    unpack_plan_fields,
    unusual_blocks,
)
from kvfs.model import ROOT_NAMESPACE, Codec, Kind, NamespaceId
from kvfs.policy.eviction import Budget, Quota, Removal
from kvfs.policy.settings import LifecycleSettings
from kvfs.policy.survey import Candidate, CandidateRow, Form
from kvfs.store.block_files import SECTOR, sectors
from kvfs.store.context import StoreContext
from kvfs.store.recoder import MIN_SIZE
from kvfs.store.removal import Outcome, Remover, believed_deadline_s
from kvfs.store.trash import Trash

PAGE_ROWS = 4096
"""Rows a read transaction: a long one would keep old pages from being used again."""
MAX_FOLDERS = 100_000
"""Folder paths kept while walking; beyond it they are looked up again (I8)."""
UNLINK_EVERY_S = 0.02
MAX_REST_WAIT_S = 0.1
"""A file waits no longer for a rest between two transactions."""
NS_PER_S = 1_000_000_000
# Plain integers and no calls: the survey asks a million times.
_RAW, _SETTLED, _FILE = int(Form.RAW), int(Form.SETTLED), int(Kind.FILE)
UNLINK_BATCH = 128
"""Files whose bytes are freed in one transaction: each costs the writers its fdatasync, and more
files hold the lock for longer than a transaction of removals may."""


class Walk:
    """Every live file of the store as a Candidate, in order of inodes; use it once.

    Costs one short read transaction a page, so what it yields is not one moment's state.
    """

    def __init__(self, context: StoreContext, pace: Callable[[], None] = lambda: None) -> None:
        """pace: called after every page; a daemon leaves the processor to others there."""
        self._context = context
        self._pace = pace
        self._folders: dict[int, bytes] = {}
        self._unusual: dict[bytes, tuple[int, int, Form]] = {}
        self.names: dict[int, bytes] = {}
        """Namespace ids and names, filled while walking."""

    def __iter__(self) -> Iterator[Candidate]:
        return itertools.starmap(Candidate, self.rows())

    def rows(self) -> Iterator[CandidateRow]:
        """Yield the candidates as bare tuples."""
        return itertools.chain.from_iterable(self._pages())

    def _pages(self) -> Iterator[list[CandidateRow]]:
        self._survey_blocks()
        start = 0
        while True:
            with self._context.index.read() as txn:
                page = list(itertools.islice(txn.rows("inodes", start=pack_u64(start)), PAGE_ROWS))
                found = self._candidates(txn, page)
            yield found
            self._pace()
            if len(page) < PAGE_ROWS:
                return
            start = int.from_bytes(page[-1][0], "big") + 1

    def one(self, inode: int) -> Candidate | None:
        """Return one file as a Candidate."""
        with self._context.index.read() as txn:
            key = pack_u64(inode)
            raw = txn.get("inodes", key)
            found = self._candidates(txn, [(key, raw)]) if raw is not None else ()
            return next(itertools.starmap(Candidate, found), None)

    def _survey_blocks(self) -> None:
        """Note the blocks that are shared or compressed: all others follow from the inode alone."""
        start = b""
        while True:
            with self._context.index.read() as txn:
                page = list(itertools.islice(txn.rows("blocks", start=start), PAGE_ROWS))
            for digest, raw in unusual_blocks(page):
                block = unpack_block(raw)
                if block.is_bad:
                    self._unusual[digest] = 0, block.refs, Form.SETTLED
                elif block.codec is not Codec.RAW:
                    self._unusual[digest] = block.stored, block.refs, Form.COMPRESSED
                elif block.refs > 1 or block.is_incompressible:
                    form = Form.SETTLED if block.is_incompressible else Form.RAW
                    self._unusual[digest] = block.stored, block.refs, form
            self._pace()
            if len(page) < PAGE_ROWS:
                return
            start = page[-1][0] + b"\0"

    def _candidates(
        self, txn: ReadTransaction, page: Sequence[tuple[bytes, bytes]]
    ) -> list[CandidateRow]:
        # No call and no attribute that can be spared: this loop runs a million times.
        folders, unusual = self._folders, self._unusual
        inodes = struct.unpack(f">{len(page)}Q", b"".join([key for key, _ in page]))
        found: list[CandidateRow] = []
        for inode, (_, raw) in zip(inodes, page, strict=True):
            (
                kind, flags, namespace_id, size, ctime_ns, accessed_s, lifetime, priority, pin,
                parent, name_length, etag_length,
            ) = unpack_plan_fields(raw)  # fmt: skip
            end = NAME_AT + name_length
            if (
                lifetime
                or kind != _FILE
                or flags & PLAIN_FLAGS != PLAIN_FILE
                or len(raw) != end + etag_length
                or raw[DIGEST_AT:NAME_AT] in unusual
            ):
                candidate = self._odd_candidate(txn, inode, raw)
                if candidate is not None:
                    found.append(candidate)
                continue
            folder = folders.get(parent)
            if folder is None:
                folder = self._folder(txn, parent, NamespaceId(namespace_id))
            found.append((
                inode, namespace_id, folder + raw[NAME_AT:end], -(-size // SECTOR) * SECTOR,
                accessed_s, ctime_ns // NS_PER_S, 0, 0, priority, pin, b"", 1, False,
                _RAW if size >= MIN_SIZE else _SETTLED, None,
            ))  # fmt: skip
        return found

    def _odd_candidate(self, txn: ReadTransaction, inode: int, raw: bytes) -> Candidate | None:
        """Return a file that not all columns of most follow from; None: it is no file."""
        row = unpack_inode(raw)
        if row.kind is not Kind.FILE:
            return None
        stored, refs, form = (sectors(row.size) if row.digest else 0), 1, Form.SETTLED
        if row.is_mutable:
            file = txn.mutable_file(inode)
            stored = file.stored if file is not None else 0
        elif row.digest in self._unusual:
            stored, refs, form = self._unusual[row.digest]
        elif row.size >= MIN_SIZE and row.digest:
            form = Form.RAW
        return Candidate(
            inode,
            row.namespace_id,
            self._folder(txn, row.parent, row.namespace_id) + row.name,
            stored,
            row.accessed_s,
            row.ctime_ns // NS_PER_S,
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
        self._trash = Trash(
            context,
            has_background=True,
            batch=UNLINK_BATCH,
            pace=lambda: self._remover.resting.wait(MAX_REST_WAIT_S),
        )
        self._remover = Remover(context, self._trash)

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
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Remove what the plan made at `now_s` names; return what was done.

        is_enough: asked between transactions once only space is left to make; True ends it early
        (somebody else has made room). is_stopping: True ends it early, whatever is left.
        """
        outcome = Outcome()
        start_ns = self._context.clock.monotonic_ns()
        stop = threading.Event()
        unlinker = threading.Thread(
            target=self._unlink_behind, args=(stop, outcome), name="kvfs-unlink", daemon=True
        )
        unlinker.start()
        try:
            self._remover.remove(
                removals, now_s, outcome, is_enough=is_enough, is_stopping=is_stopping
            )
        finally:
            outcome.rows_ns = self._context.clock.monotonic_ns() - start_ns
            stop.set()
            self._remover.resting.set()
            unlinker.join()
        outcome.freed_bytes += self._trash.empty_waiting()
        self._remover.adopt_dead()
        self._remover.close()
        return outcome

    def _unlink_behind(self, stop: threading.Event, outcome: Outcome) -> None:
        """Unlink at the disk's pace while rows go at the index's; alone writes `freed_bytes`."""
        while not stop.wait(UNLINK_EVERY_S):
            try:
                outcome.freed_bytes += self._trash.empty_waiting()
            except KvfsError:
                return  # what is left is in the table; the caller's own attempt reports the cause

    def empty_trash(self) -> int:
        """Unlink what any process left in the trash; return the bytes freed."""
        self._remover.resting.set()
        return self._trash.empty_table()
