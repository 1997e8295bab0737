"""Capacity by reservation: resident + reserved <= capacity, always, across processes (I4).

Owns the grants in `meta` and the lease files. A process draws an allowance (about 1 % of capacity,
at most 256 MiB, the exact need when short) into its row, hands pieces of it to writers
from memory, and publish moves the bytes from granted to resident in its own transaction. A process
that died leaves its row; whoever is short takes it back, because the dead one's lease file is no
longer flocked (127 SIGKILLs, 25,400 checks in the prototype: 0 violations).

Lock order: `_lock` guards `_free` only and is never held over a commit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

from kvfs.errors import NoSpace
from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.index.schema import GRANT_PREFIX
from kvfs.store.context import StoreContext

MAX_ALLOWANCE = 256 << 20
MAX_LEASE_ATTEMPTS = 16
MAX_ROUNDS = 32
"""Attempts to make room for one reservation: bounds how long a writer evicts (I8)."""


class Space:
    """This process's share of the store's capacity."""

    def __init__(
        self,
        context: StoreContext,
        make_room: Callable[[int], int],
        could_make_room: Callable[[int], bool],
    ) -> None:
        """make_room(wanted_bytes) evicts a bounded amount and returns the bytes it freed;
        could_make_room(wanted_bytes) is False where evicting all that may go would not do."""
        self._context = context
        self._make_room = make_room
        self._could_make_room = could_make_room
        self._lock = threading.Lock()
        self._free = 0
        self._lease_id = context.randomness.token(8)
        self._lease = _create_lease(context, self._lease_id) if not context.is_read_only else -1
        self._step = min(MAX_ALLOWANCE, max(context.capacity_bytes // 100, 64 * 1024))

    def reserve(self, wanted: int) -> None:
        """Take `wanted` bytes for a writer, evicting a bounded amount when the store is full.

        Raises: NoSpace.
        """
        if wanted <= 0:
            return
        with self._lock:
            taken = min(self._free, wanted)
            self._free -= taken
        need = wanted - taken
        if not need:
            return
        try:
            self._draw(need)
        except BaseException:
            self.release(taken)
            raise

    def release(self, length: int) -> None:
        """Give back bytes that a writer reserved and did not publish."""
        with self._lock:
            self._free += length

    def could_grant(self, wanted: int) -> bool:
        """Return whether `wanted` bytes can be had now without evicting anything."""
        if self._free >= wanted:
            return True
        with self._context.index.read() as txn:
            available = available_bytes(txn, self._context.capacity_bytes)
        return available + self._free >= wanted

    def charge(self, txn: WriteTransaction, length: int) -> None:
        """Move `length` reserved bytes to resident, inside the transaction that publishes them."""
        self._add(txn, -length)
        txn.counters().resident += length

    def discharge_to_upload(self, txn: WriteTransaction, length: int) -> None:
        """Move `length` reserved bytes to those that multipart uploads hold (or back, negative)."""
        self._add(txn, -length)
        txn.counters().uploading += length

    def trim(self) -> None:
        """Return what this process will hardly need (housekeeping calls it)."""
        with self._lock:
            surplus = max(0, self._free - self._step)
            self._free -= surplus
        if surplus:
            self._context.commit(lambda txn: self._add(txn, -surplus))

    def close(self) -> None:
        """Return everything; the process holds nothing afterwards."""
        if self._lease < 0:
            return
        self._context.commit(lambda txn: _drop_grant(txn, self._lease_id))
        with contextlib.suppress(FileNotFoundError):
            _lease_path(self._context, self._lease_id).unlink()
        os.close(self._lease)
        self._lease = -1

    def reclaim_dead(self) -> int:
        """Take back the grants of processes that died, and their leases; return the bytes."""
        with self._context.index.read() as txn:
            others = {key[1:] for key in txn.keys("meta", GRANT_PREFIX)}
        others |= _lease_ids(self._context)
        return sum(self._reclaim(lease_id) for lease_id in others - {self._lease_id})

    def _draw(self, need: int) -> None:
        if need > self._context.capacity_bytes:
            raise NoSpace(
                f"{need} bytes are more than the store's capacity of "
                f"{self._context.capacity_bytes}: raise `capacity` in kvfs.toml",
                need,
            )
        short_by = need
        for attempt in range(MAX_ROUNDS):
            granted, short_by = self._context.commit(lambda txn: self._grant(txn, need))
            if granted:
                self.release(granted - need)
                return
            freed = self.reclaim_dead() if attempt == 0 else 0
            if attempt == 0 and freed < short_by and not self._could_make_room(short_by - freed):
                break  # others' blocks would go, and the writer be refused all the same
            if freed < short_by:
                freed += self._make_room(short_by - freed)
            if not freed:
                break
        raise NoSpace(
            f"the store is full: {short_by} bytes are missing and nothing more may be evicted; "
            "raise `capacity` in kvfs.toml, unpin objects, or run kvfs-gc",
            need,
        )

    def _grant(self, txn: WriteTransaction, need: int) -> tuple[int, int]:
        """Return (bytes granted, 0) or (0, bytes missing)."""
        available = available_bytes(txn, self._context.capacity_bytes)
        if available < need:
            return 0, need - available
        granted = need + self._step if available >= need + self._step else need
        self._add(txn, granted)
        return granted, 0

    def _add(self, txn: WriteTransaction, length: int) -> None:
        held = _read_grant(txn, self._lease_id) + length
        assert held >= 0, "a process spends only what it was granted (I4)"
        txn.put_count("meta", GRANT_PREFIX + self._lease_id, held)
        txn.counters().granted += length

    def _reclaim(self, lease_id: bytes) -> int:
        path = _lease_path(self._context, lease_id)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return self._context.commit(lambda txn: _drop_grant(txn, lease_id))
        except OSError:  # out of descriptors: not now
            return 0
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        else:
            freed = self._context.commit(lambda txn: _drop_grant(txn, lease_id))
            with contextlib.suppress(OSError):
                path.unlink()
            return freed
        finally:
            os.close(descriptor)


def available_bytes(txn: ReadTransaction, capacity_bytes: int) -> int:
    """Return the bytes that nobody has published, reserved or uploads."""
    counters = txn.counters()
    return capacity_bytes - counters.resident - counters.granted - counters.uploading


def _read_grant(txn: ReadTransaction, lease_id: bytes) -> int:
    return int.from_bytes(txn.get("meta", GRANT_PREFIX + lease_id) or b"", "little")


def _drop_grant(txn: WriteTransaction, lease_id: bytes) -> int:
    held = _read_grant(txn, lease_id)
    if txn.delete("meta", GRANT_PREFIX + lease_id):
        txn.counters().granted -= held
    return held


def _lease_path(context: StoreContext, lease_id: bytes) -> Path:
    return context.root / "leases" / lease_id.hex()


def _lease_ids(context: StoreContext) -> set[bytes]:
    """Return the leases there are; one without a grant is left by who died before drawing any."""
    found = set()
    for name in os.listdir(context.root / "leases"):
        with contextlib.suppress(ValueError):
            found.add(bytes.fromhex(name))
    return found


def _create_lease(context: StoreContext, lease_id: bytes) -> int:
    """Return the descriptor of a new, locked lease. Raises: OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    for _ in range(MAX_LEASE_ATTEMPTS):
        descriptor = os.open(_lease_path(context, lease_id), flags, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Another process may have taken it for a dead one's before it was locked.
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)
    raise BlockingIOError(errno.EAGAIN, "the lease was taken away again and again")
