"""Whether the clock may be believed, and putting stored times right after it jumped.

Owns the row `clock` in `meta`: the last reading, and a jump that is being worked off. A look that
finds a jump notes it in the same transaction; then every row is moved by it in steps, whose place
is noted with each step, so a kill anywhere loses nothing and moves nothing twice. Until the last
step nothing expires.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from kvfs.clock import Clock, SystemClock
from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.index.schema import pack_u64, unpack_inode
from kvfs.model import Kind
from kvfs.policy.expiry import ClockReading, clock_jump_s, rebased_times
from kvfs.store.context import StoreContext

_KEY = b"clock"
_ROW = struct.Struct("<QQqQ")
STEP_ROWS = 250
"""Rows a transaction: 250 rewritten rows hold the write lock for about 10 ms."""
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ClockRow:
    """The last reading and the jump under way."""

    reading: ClockReading
    jump_s: int = 0
    """Not 0: rows from `next_inode` on still have to be moved by it."""
    next_inode: int = 0


def read_clock(clock: Clock) -> ClockReading:
    """Return the wall clock beside time since boot.

    Taken from /proc, which neither a jump of the wall clock nor a faked clock library reaches;
    a clock that is not the machine's own is asked for its monotonic time instead.
    """
    wall_s = clock.now_ns() // NS_PER_S
    if not isinstance(clock, SystemClock):
        return ClockReading(wall_s, clock.monotonic_ns() // NS_PER_S, "given")
    uptime = Path("/proc/uptime").read_text(encoding="ascii").split(".")[0]
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ClockReading(wall_s, int(uptime), boot_id)


def read_row(txn: ReadTransaction) -> ClockRow | None:
    """Return what the store remembers of the clock, or None before the first look."""
    raw = txn.get("meta", _KEY)
    if raw is None:
        return None
    wall_s, uptime_s, jump_s, next_inode = _ROW.unpack_from(raw)
    boot_id = raw[_ROW.size :].decode("ascii", "replace")
    return ClockRow(ClockReading(wall_s, uptime_s, boot_id), jump_s, next_inode)


class Timekeeper:
    """Looks at the clock and works jumps off. Thread-safe; any number of processes."""

    def __init__(self, context: StoreContext) -> None:
        self._context = context

    def pending_s(self, txn: ReadTransaction) -> int:
        """Return the seconds by which stored times are behind the clock as it stands now.

        0: deadlines may be judged by the clock. Else judge them by `now - pending_s`, or not.
        """
        row = read_row(txn)
        if row is None:
            return 0
        return row.jump_s + clock_jump_s(row.reading, read_clock(self._context.clock))

    def look(self) -> int:
        """Remember the present reading; return the seconds still to be worked off (0: steady)."""
        return self._context.commit(partial(_look, now=read_clock(self._context.clock)))

    def step(self) -> bool:
        """Move the next rows; return whether any are left."""
        return self._context.commit(partial(_step, now_s=self._context.now_s()))

    def settle(self) -> int:
        """Look, and work off whatever jump there is; return its seconds."""
        jump_s = self.look()
        while jump_s and self.step():
            pass
        return jump_s


def _look(txn: WriteTransaction, now: ClockReading) -> int:
    row = read_row(txn)
    jump_s = 0 if row is None else clock_jump_s(row.reading, now)
    if row is None or jump_s == 0:
        jump_s = 0 if row is None else row.jump_s
        next_inode = 0 if row is None else row.next_inode
        _write(txn, ClockRow(now, jump_s, next_inode))
        return jump_s
    # A second jump while one is worked off: rows behind the place have made the first, those
    # before it have not. Starting over with the sum lets rebased_times sort out both.
    _write(txn, ClockRow(now, row.jump_s + jump_s, 0))
    return row.jump_s + jump_s


def _step(txn: WriteTransaction, now_s: int) -> bool:
    row = read_row(txn)
    if row is None or not row.jump_s:
        return False
    start = pack_u64(row.next_inode)
    # Listed first: rows must not change under the cursor.
    found = list(islice(txn.rows("inodes", start=start), STEP_ROWS))
    for key, raw in found:
        inode = unpack_inode(raw)
        if inode.kind is not Kind.FILE:
            continue
        before = replace(inode)
        inode.accessed_s, inode.expires_at_s = rebased_times(
            inode.accessed_s, inode.expires_at_s, inode.ttl_s, row.jump_s, now_s
        )
        written_s = inode.ctime_ns // NS_PER_S
        moved_s, _ = rebased_times(written_s, 0, 0, row.jump_s, now_s)
        inode.ctime_ns += (moved_s - written_s) * NS_PER_S
        if inode != before:
            txn.update_inode(int.from_bytes(key, "big"), before, inode)
    if len(found) < STEP_ROWS:
        _write(txn, ClockRow(row.reading))
        return False
    next_inode = int.from_bytes(found[-1][0], "big") + 1
    _write(txn, ClockRow(row.reading, row.jump_s, next_inode))
    return True


def _write(txn: WriteTransaction, row: ClockRow) -> None:
    reading = row.reading
    head = _ROW.pack(reading.wall_s, reading.uptime_s, row.jump_s, row.next_inode)
    txn.put("meta", _KEY, head + reading.boot_id.encode("ascii", "replace"))
