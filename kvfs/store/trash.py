"""Block files that no row names any more: unlinked outside every transaction.

Owns the `trash` table's way out; a mutable file waits for its last opener. A delete commits with
the file named in `trash`; then the file is unlinked; then a second transaction clears the row and
only now frees its bytes (I4). A crash in between leaves a row, and the next `empty` finishes it:
unlinking twice does no harm, because names carry generations and are never used again.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice

from kvfs.errors import KvfsError
from kvfs.index.lmdb_index import WriteTransaction
from kvfs.index.schema import pack_u64
from kvfs.model import Digest
from kvfs.store import mutable_paths
from kvfs.store.context import StoreContext
from kvfs.store.objects import TrashKey

BATCH = 64
"""Files between two clearing transactions, where somebody waits for the space."""
INODE_LENGTH = 8
"""A digest so short is a mutable file's inode."""
MAX_WAITING = 64
"""Without a background thread the deleting thread empties the trash itself from here on."""


class Trash:
    """Files waiting to be unlinked. Thread-safe."""

    def __init__(
        self,
        context: StoreContext,
        *,
        has_background: bool,
        batch: int = BATCH,
        pace: Callable[[], object] = lambda: None,
    ) -> None:
        """batch: files between two clearing transactions. pace: called before each file."""
        self._context = context
        self._batch = batch
        self._pace = pace
        self._has_background = has_background
        self._waiting: deque[TrashKey] = deque()
        self._lock = threading.Lock()

    def add(self, keys: list[TrashKey]) -> None:
        """Take over files that a committed transaction put into `trash`."""
        self._waiting.extend(keys)
        if len(self._waiting) >= MAX_WAITING and not self._has_background:
            # The change is committed: that its files cannot go yet is no failure of it.
            with contextlib.suppress(KvfsError):
                self.empty_waiting()

    def empty_waiting(self) -> int:
        """Unlink what this process deleted; return the bytes freed.

        Waits for another thread that is at it: on return everything added before is gone, but for
        mutable files that somebody still has open.
        """
        freed = 0
        with self._lock:
            busy: list[TrashKey] = []
            while self._waiting:
                count = min(self._batch, len(self._waiting))
                freed += self._remove([self._waiting.popleft() for _ in range(count)], busy)
            self._waiting.extend(busy)
        return freed

    def empty_table(self, limit: int = 1 << 62) -> int:
        """Unlink whatever any process, dead ones too, left in the table; return the bytes freed.

        A file that cannot be unlinked is passed over, so it never wedges the others.
        """
        freed = 0
        start = b""
        while limit > 0:
            with self._context.index.read() as txn:
                keys = list(islice(txn.keys("trash", start=start), min(BATCH, limit)))
            if not keys:
                break
            freed += self._remove([_parse(key) for key in keys], [])
            start = keys[-1] + b"\0"
            limit -= len(keys)
        return freed

    def _remove(self, keys: list[TrashKey], busy: list[TrashKey]) -> int:
        """Unlink files and clear their rows; what is still open is added to `busy`."""
        gone: list[TrashKey] = []
        for key in keys:
            self._pace()
            try:
                is_gone = self._unlink(*key)
            except KvfsError:
                continue  # one file that cannot go must not stop the others; the row stays
            (gone if is_gone else busy).append(key)
        if not gone:
            return 0
        return self._context.commit(partial(_clear, keys=gone))

    def _unlink(self, digest: Digest, generation: int) -> bool:
        """Unlink one file; return False for a mutable one that somebody has open."""
        if len(digest) == INODE_LENGTH:
            inode = int.from_bytes(digest, "big")
            return mutable_paths.unlink_unused(self._context.root, inode, generation)
        self._context.files.unlink(digest, generation)
        return True


def _clear(txn: WriteTransaction, keys: list[TrashKey]) -> int:
    freed = 0
    for digest, generation in keys:
        key = digest + pack_u64(generation)
        stored = int.from_bytes(txn.get("trash", key) or b"", "little")
        if txn.delete("trash", key):
            freed += stored
            txn.counters().trash_count -= 1
    txn.counters().resident -= freed
    return freed


def _parse(key: bytes) -> TrashKey:
    return Digest(key[:-8]), int.from_bytes(key[-8:], "big")
