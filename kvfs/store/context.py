"""What every part of one open Store shares; built once in open_store.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kvfs.clock import Clock, Randomness
from kvfs.errors import ReadOnly
from kvfs.index.committer import Committer
from kvfs.index.lmdb_index import LmdbIndex, WriteTransaction
from kvfs.model import DEFAULT_SEAL_LIMIT, Durability
from kvfs.store.block_files import BlockFiles

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoreContext:
    """The index, the files, time and chance of one open store."""

    root: Path
    index: LmdbIndex
    committer: Committer
    files: BlockFiles
    clock: Clock
    randomness: Randomness
    durability: Durability
    capacity_bytes: int
    is_read_only: bool
    seal_limit_bytes: int = DEFAULT_SEAL_LIMIT
    """A file of more bytes, written through the mount, stays mutable."""

    def now_s(self) -> int:
        """Return whole seconds since the epoch."""
        return self.clock.now_ns() // 1_000_000_000

    def generation(self) -> int:
        """Return a file generation that was never used before (64 random bits)."""
        return int.from_bytes(self.randomness.token(8), "big")

    def commit(self, operation: Callable[[WriteTransaction], T]) -> T:
        """Run one index change through the group commit. Raises: ReadOnly."""
        self.check_writable()
        return self.committer.commit(operation)

    def check_writable(self) -> None:
        """Raise ReadOnly where every change is refused."""
        if self.is_read_only:
            raise ReadOnly("the store is open read-only: open it for writing first")
