"""Checking and repairing a whole store: what `kvfs-fsck` does, callable from a test.

Owns the order. A check reads only and may run beside any number of users. A repair corrects rows in
one write transaction (writers wait), moves lost blocks' files to quarantine, drops their names (a
cache may forget, it never lies: I1), and sweeps what dead processes left; then it checks again.
"""

from __future__ import annotations

from functools import partial
from itertools import islice

from kvfs.index.lmdb_index import WriteTransaction
from kvfs.index.schema import BlockRow, unpack_inode
from kvfs.model import Digest, NamespaceId
from kvfs.store.check_files import (
    MISSING_FILE,
    FileCounts,
    Progress,
    check_blocks,
    check_leftovers,
    check_mutable_files,
    check_orphans,
)
from kvfs.store.check_index import MAX_FINDINGS, correct_index, scan_index
from kvfs.store.context import StoreContext
from kvfs.store.findings import CheckReport, Finding, LostBlock
from kvfs.store.housekeeping import Housekeeping
from kvfs.store.mutable_files import MutableFiles
from kvfs.store.namespaces import Namespaces, SavedNamespace
from kvfs.store.objects import TrashKey, drop_inode
from kvfs.store.space import Space
from kvfs.store.trash import Trash
from kvfs.store.trust import Trust

BATCH = 50


class Checker:
    """Checks and repairs one open store."""

    def __init__(
        self,
        context: StoreContext,
        trust: Trust,
        trash: Trash,
        space: Space,
        housekeeping: Housekeeping,
        files: MutableFiles,
    ) -> None:
        self._context = context
        self._trust = trust
        self._trash = trash
        self._space = space
        self._housekeeping = housekeeping
        self._files = files

    def check(self, progress: Progress, *, is_full: bool) -> CheckReport:
        """Report what is wrong; change nothing. is_full: hash every block file."""
        counts = FileCounts()
        with self._context.index.read() as txn:
            inodes = txn.count("inodes")
            findings = list(islice(scan_index(txn, self._context.capacity_bytes), MAX_FINDINGS))
        lost: list[LostBlock] = []
        for finding, block in check_blocks(self._context, counts, progress, is_full=is_full):
            _keep(findings, finding)
            if block is not None:
                lost.append(block)
        for finding in check_orphans(self._context, counts, progress):
            _keep(findings, finding)
        for finding in check_mutable_files(self._context, self._files.is_orphan):
            _keep(findings, finding)
        for finding in check_leftovers(self._context):
            _keep(findings, finding)
        return CheckReport(
            tuple(findings), tuple(findings), tuple(lost), False, inodes, counts.blocks,
            counts.files, counts.bytes_hashed,
        )  # fmt: skip

    def repair(self, progress: Progress, *, is_full: bool) -> CheckReport:
        """Check, correct what can be corrected, check again. Raises: ReadOnly, Unavailable."""
        before = self.check(progress, is_full=is_full)
        capacity = self._context.capacity_bytes
        if any(finding.fix is not None for finding in before.findings):
            self._context.commit(partial(correct_index, capacity_bytes=capacity))
        doomed = self._inodes_without_bytes({lost.digest for lost in before.lost})
        for lost in before.lost:
            self._condemn(lost)
        self._drop_bad_names(doomed)
        self._forget_files(before.findings)
        self._save_salts()
        self._space.reclaim_dead()
        self._trash.empty_table()
        self._housekeeping.sweep()
        self._files.sweep()
        self._files.settle_all()
        after = self.check(progress, is_full=False)
        return CheckReport(
            before.findings, after.findings, after.lost, True, after.inodes, after.blocks,
            after.files, before.bytes_hashed, len(doomed),
        )  # fmt: skip

    def _forget_files(self, findings: tuple[Finding, ...]) -> None:
        """Drop mutable files that are not there, and then what named them."""
        fixes = [each.fix for each in findings if each.code == MISSING_FILE and each.fix]
        for fix in fixes:
            self._context.commit(fix)
        if fixes:
            capacity = self._context.capacity_bytes
            self._context.commit(partial(correct_index, capacity_bytes=capacity))

    def _condemn(self, lost: LostBlock) -> None:
        with self._context.index.read() as txn:
            block = txn.block(lost.digest)
        if block is not None and block.generation == lost.generation:
            self._trust.condemn(lost.digest, block)

    def _inodes_without_bytes(self, lost: set[Digest]) -> list[int]:
        """Return every inode whose block is bad, or about to be found so."""
        with self._context.index.read() as txn:
            return [
                int.from_bytes(key, "big")
                for key, raw in txn.rows("inodes")
                if (digest := unpack_inode(raw).digest)
                and (digest in lost or _is_bad(txn.block(digest)))
            ]

    def _drop_bad_names(self, inodes: list[int]) -> None:
        """Remove every name of those inodes whose block is bad."""
        for start in range(0, len(inodes), BATCH):
            batch = inodes[start : start + BATCH]
            self._trash.add(self._context.commit(partial(self._drop_batch, inodes=batch)))

    def _drop_batch(self, txn: WriteTransaction, inodes: list[int]) -> list[TrashKey]:
        now_ns = self._context.clock.now_ns()
        trash: list[TrashKey] = []
        for inode in inodes:
            row = txn.inode(inode)
            if row is not None and row.digest and _is_bad(txn.block(row.digest)):
                trash += drop_inode(txn, inode, row, self._context.files, now_ns)
        return trash

    def _save_salts(self) -> None:
        with self._context.index.read() as txn:
            rows = list(txn.namespaces())
            names: dict[NamespaceId, bytes] = {}
            for namespace_id, row in rows:
                directory = txn.inode(row.inode)
                names[namespace_id] = directory.name[:-1] if directory is not None else b""
        namespaces = Namespaces(self._context)
        for namespace_id, row in rows:
            saved = SavedNamespace(namespace_id, names[namespace_id], row.salt, row.created_ns)
            namespaces.save_if_different(saved)


def _is_bad(block: BlockRow | None) -> bool:
    return block is not None and block.is_bad


def _keep(findings: list[Finding], finding: Finding) -> None:
    if len(findings) < MAX_FINDINGS:
        findings.append(finding)
