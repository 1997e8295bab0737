"""How often the store was asked and had it: counted in memory, added to one row in batches.

Owns the row `uses` in `meta`, which sums every process of the machine, and its marks: what the sums
were at moments of the last minutes, so a rate over a window needs one look. A lookup costs one
addition, never a transaction; the row is written together with the access times.

What counts: a lookup by which a door answers "is it there?" (the mount's LOOKUP, S3 HEAD and GET,
`find`, `stat` and `find_child` with touch). It is a hit when it finds a sealed object that has
bytes, a miss when it finds nothing; directories, symlinks, empty and mutable files are neither. A
kernel looks a name up before it creates it or renames to it: such a miss is taken back. Opens are
counted apart.
Holds: a process that is killed loses the counts of its last seconds, and nothing else.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass, fields
from functools import partial

from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.model import Entry
from kvfs.store.context import StoreContext

KEY = b"uses"
MARK_EVERY_S = 15
MAX_MARKS = 40
"""With the sums 1.5 KB: LMDB keeps a longer value on a page of its own. Ten minutes at least."""
MAX_RECENT_MISSES = 256
"""Absent names that a create may still take back: what is between a LOOKUP and its CREATE (I8)."""
MAX_COUNT = (1 << 64) - 1
_SUMS = struct.Struct("<QQQQ")
_MARK = struct.Struct("<IQQQQ")


@dataclass(slots=True)
class UseCounts:
    """Sums since the store was made, or differences of them."""

    hits: int = 0
    misses: int = 0
    opens: int = 0
    opened_bytes: int = 0

    def plus(self, other: UseCounts, sign: int = 1) -> UseCounts:
        """Return the sum, with `sign` -1 the difference, field by field; never below 0."""
        return UseCounts(
            *(
                max(0, getattr(self, each.name) + sign * getattr(other, each.name))
                for each in fields(self)
            )
        )

    @property
    def hit_ratio(self) -> float | None:
        """Of the lookups, how many found something; None without any."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


@dataclass(frozen=True, slots=True)
class UseRow:
    """The row: the sums, and (time, the sums before it) of the last minutes, oldest first."""

    sums: UseCounts
    marks: tuple[tuple[int, UseCounts], ...] = ()

    def since(self, then_s: int) -> UseCounts:
        """Return what was counted from `then_s` on, to a quarter of a minute."""
        for marked_s, before in self.marks:
            if marked_s >= then_s:
                return self.sums.plus(before, -1)
        return UseCounts()


class Uses:
    """The counts of this process; read by anybody. A count lost between threads costs nothing."""

    def __init__(self, context: StoreContext) -> None:
        self._context = context
        self._new = UseCounts()
        self._flushing = threading.Lock()
        self._recent_misses: dict[tuple[int, bytes], None] = {}

    def found(self, entry: Entry) -> None:
        """Count a lookup that found `entry`."""
        if entry.digest:
            self._new.hits += 1

    def missed(self, child: tuple[int, bytes] | None = None) -> None:
        """Count a lookup that found nothing; child: what a create may take back."""
        self._new.misses += 1
        if child is not None:
            recent = self._recent_misses
            recent[child] = None
            if len(recent) > MAX_RECENT_MISSES:
                recent.pop(next(iter(recent)), None)

    def take_back(self, parent: int, name: bytes) -> None:
        """That lookup was the kernel's on its way to make the name: nobody asked for bytes."""
        if (parent, name) in self._recent_misses:
            self._recent_misses.pop((parent, name), None)
            self._new.misses -= 1

    def opened(self, size: int) -> None:
        """Count an open of `size` bytes."""
        self._new.opens += 1
        self._new.opened_bytes += size

    def sums(self, txn: ReadTransaction) -> UseCounts:
        """Return the sums, with what this process has not written yet."""
        return read_uses(txn).sums.plus(self._new)

    def flush(self) -> None:
        """Add what is new to the row; keeps it for the next time if that fails."""
        with self._flushing:
            new = UseCounts().plus(self._new)
            if new == UseCounts():
                return
            now_s = self._context.now_s()
            self._context.commit(partial(_add, new=new, now_s=now_s))
            self._new.hits -= new.hits
            self._new.misses -= new.misses
            self._new.opens -= new.opens
            self._new.opened_bytes -= new.opened_bytes


def read_uses(txn: ReadTransaction) -> UseRow:
    """Return the row; one that cannot be read counts from 0: no door fails for a statistic."""
    raw = txn.get("meta", KEY)
    try:
        return UseRow(UseCounts()) if raw is None else unpack_uses(raw)
    except struct.error:
        return UseRow(UseCounts())


def unpack_uses(raw: bytes) -> UseRow:
    """Return the row. Raises: struct.error."""
    marks = tuple(
        (marked_s, UseCounts(*sums)) for marked_s, *sums in _MARK.iter_unpack(raw[_SUMS.size :])
    )
    return UseRow(UseCounts(*_SUMS.unpack_from(raw)), marks)


def _add(txn: WriteTransaction, new: UseCounts, now_s: int) -> None:
    row = read_uses(txn)
    marks = [mark for mark in row.marks if mark[0] <= now_s]  # a clock went back: those are wrong
    if not marks or now_s - marks[-1][0] >= MARK_EVERY_S:
        marks.append((now_s, row.sums))
    packed = [_MARK.pack(marked_s, *_numbers(sums)) for marked_s, sums in marks[-MAX_MARKS:]]
    txn.put("meta", KEY, _SUMS.pack(*_numbers(row.sums.plus(new))) + b"".join(packed))


def _numbers(counts: UseCounts) -> tuple[int, ...]:
    return tuple(min(getattr(counts, each.name), MAX_COUNT) for each in fields(counts))
