"""Which blocks may be served unread: synced ones, and those written since the last unclean stop.

Owns the suspect ranges in `meta` and the check of a suspect block. At durability `cache` files are
not synced before their commit, so after a power loss a committed row may name a torn file.
Every row carries the publish counter at its commit; one syncfs vouches for every row up to the
counter read before it (`synced_sequence`, one number instead of a mark on each row: docs/adr/0008).
An opener that finds itself alone after an unclean stop declares everything between that number and
the counter suspect: each such block is hashed once, at its first use, then trusted or dropped (I1).
SIGKILL makes nothing suspect while other processes, or the next one, sync in time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from functools import partial

from kvfs.codec.digest import digest_pieces
from kvfs.codec.frame import decode_frames, parse_table
from kvfs.errors import Corrupt, KvfsError
from kvfs.index import tree
from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.index.schema import BlockRow, split_key
from kvfs.model import Codec, Digest
from kvfs.store.block_files import BlockLabel, read_at
from kvfs.store.context import StoreContext
from kvfs.store.objects import drop_inode

log = logging.getLogger(__name__)

_RANGE = struct.Struct("<QQ")
_KEY = b"suspect ranges"
PIECE = 1 << 20
MAX_RANGES = 64
"""More unclean stops than this are merged: more is hashed, nothing is trusted too early."""


class Trust:
    """The suspect ranges of this store, fixed while the process runs (only a lone opener adds)."""

    def __init__(self, context: StoreContext) -> None:
        self._context = context
        with context.index.read() as txn:
            self._ranges = read_ranges(txn)

    def is_usable(self, block: BlockRow | None) -> bool:
        """Return whether new names may refer to the block as it is."""
        return block is not None and not block.is_bad and not self.is_suspect(block)

    def is_suspect(self, block: BlockRow) -> bool:
        """Return whether the block must be hashed before its next use."""
        return any(low < block.sequence <= high for low, high in self._ranges)

    def check(self, digest: Digest, block: BlockRow, salt: bytes, descriptor: int) -> bool:
        """Hash a block file; mark the row trusted or bad. Return whether it is good.

        Raises: Unavailable (the index could not be written; nothing was served).
        """
        if self.is_suspect(block):
            # What counts is what the disk holds: after a failed write-back the page cache still
            # shows the right bytes, marked clean. Dirty pages are not dropped by this.
            with contextlib.suppress(OSError):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        is_good = self.matches(digest, block, salt, descriptor)
        if self._context.is_read_only:
            return is_good
        if is_good and self.is_suspect(block):
            self._context.commit(partial(_mark_trusted, digest=digest, checked=block))
        if not is_good:
            self.condemn(digest, block)
        return is_good

    @staticmethod
    def matches(digest: Digest, block: BlockRow, salt: bytes, descriptor: int) -> bool:
        """Return whether the file holds exactly the bytes of its digest (reads all of it)."""
        try:
            length = os.fstat(descriptor).st_size
            if block.codec is Codec.FRAMED:
                table = parse_table(partial(read_at, descriptor), length)
                frames = decode_frames(table, partial(read_at, descriptor))
                return table.logical_size == block.size and digest_pieces(salt, frames) == digest
            # Read, not mapped: a page that the disk cannot give would be a SIGBUS.
            pieces = (read_at(descriptor, at, PIECE) for at in range(0, length, PIECE))
            return length == block.size and digest_pieces(salt, pieces) == digest
        except (OSError, Corrupt):
            return False  # an I/O error is as good as a wrong byte: a miss

    def condemn(self, digest: Digest, block: BlockRow) -> None:
        """Mark a block bad, move its file to quarantine, and drop the name that its label shows.

        Other names of it are dropped when they are opened (`drop_name_of`): all become misses.
        A store opened read-only leaves all of it to a writer.
        """
        if self._context.is_read_only:
            return
        label = self._context.files.read_label(digest, block.generation)
        if not self._context.commit(partial(_mark_bad, digest=digest, checked=block)):
            return
        self._context.files.quarantine(digest, block.generation)
        log.error("block condemned digest=%s generation=%016x", digest.hex(), block.generation)
        if label is None or not label.path:
            return
        with self._context.index.read() as txn:
            inode = _labelled_inode(txn, label)
        if inode is not None:
            self.drop_name_of(inode, digest)

    def drop_name_of(self, inode: int, digest: Digest) -> None:
        """Remove an inode whose block is bad: from now on it is a miss for HEAD and stat too."""
        if self._context.is_read_only:
            return
        files, now_ns = self._context.files, self._context.clock.now_ns()

        def work(txn: WriteTransaction) -> None:
            row, block = txn.inode(inode), txn.block(digest)
            if row is not None and row.digest == digest and block is not None and block.is_bad:
                drop_inode(txn, inode, row, files, now_ns)

        self._context.commit(work)

    def declare_suspects(self) -> int:
        """After an unclean stop: suspect all that no syncfs vouched for; return how many rows."""
        count = self._context.commit(_declare)
        with self._context.index.read() as txn:
            self._ranges = read_ranges(txn)
        return count

    def sync(self) -> int:
        """syncfs once and vouch for every row committed before it; return how many that were."""
        with self._context.index.read() as txn:
            counters = txn.counters()
            self._ranges = read_ranges(txn)  # another process' syncfs may have failed
        if counters.sequence == counters.synced_sequence:
            return 0
        try:
            self._context.files.sync_file_system()
        except KvfsError:
            # Reported once: the next syncfs would succeed, and vouch for pages that were dropped.
            self._context.commit(partial(_doubt, low=counters.synced_sequence))
            with self._context.index.read() as txn:
                self._ranges = read_ranges(txn)
            raise
        self._context.commit(partial(_vouch, sequence=counters.sequence))
        return counters.sequence - counters.synced_sequence


def _labelled_inode(txn: ReadTransaction, label: BlockLabel) -> int | None:
    namespace = txn.namespace(label.namespace_id)
    if namespace is None:
        return None
    encoded_names = split_key(label.path)
    parent = tree.lookup_parent(txn, namespace.inode, encoded_names)
    found = None if parent is None else tree.lookup(txn, parent, encoded_names[-1])
    return found[0] if found is not None and found[1] == tree.FILE else None


def read_ranges(txn: ReadTransaction) -> list[tuple[int, int]]:
    """Return the suspect ranges as (above, up to and including)."""
    return [(low, high) for low, high in _RANGE.iter_unpack(txn.get("meta", _KEY) or b"")]


def _declare(txn: WriteTransaction) -> int:
    return _doubt(txn, txn.counters().synced_sequence)


def _doubt(txn: WriteTransaction, low: int) -> int:
    """Suspect every row above `low`; return how many there are at most."""
    counters = txn.counters()
    high = counters.sequence
    if low >= high:
        return 0
    ranges = [*read_ranges(txn), (low, high)]
    while len(ranges) > MAX_RANGES:
        ranges[:2] = [(ranges[0][0], ranges[1][1])]
    txn.put("meta", _KEY, b"".join(_RANGE.pack(*pair) for pair in ranges))
    counters.synced_sequence = high
    return high - low


def _vouch(txn: WriteTransaction, sequence: int) -> None:
    counters = txn.counters()
    counters.synced_sequence = max(counters.synced_sequence, sequence)
    txn.is_dirty = True


def _mark_trusted(txn: WriteTransaction, digest: Digest, checked: BlockRow) -> None:
    block = txn.block(digest)
    if block is not None and block.generation == checked.generation:
        # Not 0: the right bytes may so far be in the page cache only (a SIGKILL loses no page), so
        # the row waits for the next syncfs like one just written.
        counters = txn.counters()
        counters.sequence += 1
        block.sequence = counters.sequence
        txn.put_block(digest, block)


def _mark_bad(txn: WriteTransaction, digest: Digest, checked: BlockRow) -> bool:
    block = txn.block(digest)
    if block is None or block.is_bad or block.generation != checked.generation:
        return False
    block.is_bad = True
    txn.put_block(digest, block)
    txn.counters().resident -= block.stored
    return True
