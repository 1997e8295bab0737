"""Which compressed blocks are opened again and again: counted in memory, summed in one small row.

Owns the row `heat` in `meta`: of the inodes whose compressed blocks were opened lately, how often
and since when, by every process of the machine. Decoding costs each open, promotion costs once and
gives back the space that was saved; so it takes several opens, not one, to make a block raw again.
Holds: MAX_HOT inodes at most, the most opened ones (I8): what is left out stays compressed, and a
run of the recoder promotes no more than that. A row that cannot be read is empty.
"""

from __future__ import annotations

import struct
import threading
from functools import partial

from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.store.context import StoreContext

KEY = b"heat"
WINDOW_S = 900
"""Opens count for a quarter of an hour from the first one."""
MAX_HOT = 120
"""1.7 KB: LMDB keeps a longer value on a page of its own."""
_ENTRY = struct.Struct("<QIH")
_MAX_OPENS = 0xFFFF

Opens = dict[int, tuple[int, int]]
"""By inode: when it was opened first, and how often since."""


class Heat:
    """The opens of this process; a count lost between threads costs nothing."""

    def __init__(self, context: StoreContext) -> None:
        self._context = context
        self._opens: dict[int, int] = {}
        self._flushing = threading.Lock()

    def note(self, inode: int) -> None:
        """Count an open of a compressed block; left out where too many are waiting."""
        if len(self._opens) < MAX_HOT or inode in self._opens:
            self._opens[inode] = self._opens.get(inode, 0) + 1

    def flush(self) -> None:
        """Add what is new to the row; keeps it for the next time if that fails."""
        with self._flushing:
            new = dict(self._opens)
            if not new:
                return
            self._context.commit(partial(_add, new=new, now_s=self._context.now_s()))
            for inode, count in new.items():
                if self._opens.get(inode) == count:
                    del self._opens[inode]
                else:
                    self._opens[inode] -= count


def read_heat(txn: ReadTransaction, now_s: int) -> Opens:
    """Return what was opened within the window."""
    try:
        opens = unpack_heat(txn.get("meta", KEY) or b"")
    except struct.error:
        return {}
    return {
        inode: (first_s, count)
        for inode, (first_s, count) in opens.items()
        if 0 <= now_s - first_s < WINDOW_S
    }


def unpack_heat(raw: bytes) -> Opens:
    """Return the row. Raises: struct.error."""
    return {inode: (first_s, count) for inode, first_s, count in _ENTRY.iter_unpack(raw)}


def _add(txn: WriteTransaction, new: dict[int, int], now_s: int) -> None:
    opens = read_heat(txn, now_s)
    for inode, count in new.items():
        first_s, before = opens.get(inode, (now_s, 0))
        opens[inode] = first_s, min(before + count, _MAX_OPENS)
    hottest = sorted(opens.items(), key=lambda each: each[1][1], reverse=True)[:MAX_HOT]
    packed = [_ENTRY.pack(inode, first_s, count) for inode, (first_s, count) in hottest]
    txn.put("meta", KEY, b"".join(packed))
