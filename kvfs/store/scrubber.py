"""Reading every block now and then, before somebody needs it.

Owns the walk over the blocks table and its bookmark in `meta`, so a scrub goes on where the last
one stopped, in any process. A block that fails its check is quarantined and its names become
misses (I1).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from itertools import islice

from kvfs.errors import KvfsError
from kvfs.index.lmdb_index import WriteTransaction
from kvfs.index.schema import BlockRow, unpack_block
from kvfs.model import Digest
from kvfs.store.context import StoreContext
from kvfs.store.trust import Trust

BOOKMARK = b"scrub bookmark"
BATCH = 64


@dataclass(frozen=True, slots=True)
class ScrubReport:
    """What one step found."""

    checked_blocks: int
    checked_bytes: int
    """Stored bytes read."""
    bad_digests: tuple[Digest, ...]
    is_pass_complete: bool
    """The walk reached the end; the next step starts over."""


class Scrubber:
    """Checks blocks in the order of their digests. Thread-safe."""

    def __init__(self, context: StoreContext, trust: Trust) -> None:
        self._context = context
        self._trust = trust

    def step(self, max_bytes: int) -> ScrubReport:
        """Check blocks until `max_bytes` were read (at least one); remember where to go on.

        The caller sets the rate by how often it calls. Raises: Unavailable.
        """
        with self._context.index.read() as txn:
            bookmark = txn.get("meta", BOOKMARK) or b""
        blocks = done = 0
        bad: list[Digest] = []
        while done < max_bytes:
            batch = self._next(bookmark)
            for digest, block, salt in batch:
                bookmark = digest
                blocks += 1
                done += block.stored
                if not self._check(digest, block, salt):
                    bad.append(digest)
                if done >= max_bytes:
                    break
            if not batch:
                bookmark = b""
                break
        self._context.commit(partial(_set_bookmark, bookmark=bookmark))
        return ScrubReport(blocks, done, tuple(bad), not bookmark)

    def _next(self, after: bytes) -> list[tuple[Digest, BlockRow, bytes]]:
        batch = []
        with self._context.index.read() as txn:
            for key, raw in islice(txn.rows("blocks", start=after + b"\0"), BATCH):
                block = unpack_block(raw)
                namespace = txn.namespace(block.namespace_id)
                batch.append((Digest(key), block, namespace.salt if namespace else b""))
        return batch

    def _check(self, digest: Digest, block: BlockRow, salt: bytes) -> bool:
        """Return whether the block is good (or gone, or already known to be bad)."""
        if block.is_bad:
            return True
        try:
            descriptor = self._context.files.open(digest, block.generation)
        except KvfsError:
            return True  # out of descriptors, say: that says nothing about the block
        if descriptor is None:
            return self._is_gone(digest, block)
        try:
            return self._trust.check(digest, block, salt, descriptor)
        finally:
            os.close(descriptor)

    def _is_gone(self, digest: Digest, block: BlockRow) -> bool:
        with self._context.index.read() as txn:
            now = txn.block(digest)
        if now is None or now.generation != block.generation:
            return True
        self._trust.condemn(digest, block)
        return False


def _set_bookmark(txn: WriteTransaction, bookmark: bytes) -> None:
    txn.put("meta", BOOKMARK, bookmark)
