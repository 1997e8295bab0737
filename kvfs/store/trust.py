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

import os
import struct
from functools import partial

from kvfs.codec.digest import digest_file
from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.index.schema import BlockRow
from kvfs.model import Codec, Digest
from kvfs.store.block_files import sectors
from kvfs.store.context import StoreContext

_RANGE = struct.Struct("<QQ")
_KEY = b"suspect ranges"
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
        is_good = self.matches(digest, block, salt, descriptor)
        if is_good:
            self._context.commit(partial(_mark_trusted, digest=digest, checked=block))
        else:
            self.condemn(digest, block)
        return is_good

    @staticmethod
    def matches(digest: Digest, block: BlockRow, salt: bytes, descriptor: int) -> bool:
        """Return whether the file holds exactly the bytes of its digest (reads all of it)."""
        try:
            length = os.fstat(descriptor).st_size
            if block.codec is not Codec.RAW or length != block.size:
                return False
            return digest_file(salt, descriptor, length) == digest
        except OSError:
            return False  # an I/O error is as good as a wrong byte: a miss

    def condemn(self, digest: Digest, block: BlockRow) -> None:
        """Mark a block bad and move its file to quarantine; its names become misses."""
        if self._context.commit(partial(_mark_bad, digest=digest, checked=block)):
            self._context.files.quarantine(digest, block.generation)

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
        if counters.sequence == counters.synced_sequence:
            return 0
        self._context.files.sync_file_system()
        self._context.commit(partial(_vouch, sequence=counters.sequence))
        return counters.sequence - counters.synced_sequence


def read_ranges(txn: ReadTransaction) -> list[tuple[int, int]]:
    """Return the suspect ranges as (above, up to and including)."""
    return [(low, high) for low, high in _RANGE.iter_unpack(txn.get("meta", _KEY) or b"")]


def _declare(txn: WriteTransaction) -> int:
    counters = txn.counters()
    low, high = counters.synced_sequence, counters.sequence
    if low == high:
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
        block.sequence = 0
        txn.put_block(digest, block)


def _mark_bad(txn: WriteTransaction, digest: Digest, checked: BlockRow) -> bool:
    block = txn.block(digest)
    if block is None or block.is_bad or block.generation != checked.generation:
        return False
    block.is_bad = True
    txn.put_block(digest, block)
    txn.counters().resident -= sectors(block.stored)
    return True
