"""Group commit: many threads' index changes, one LMDB transaction.

The first thread to find no commit under way becomes the leader and commits everything queued, its
own change included; threads that arrive meanwhile wait and are committed by the next leader. There
is no committer thread to hand over to, because that hand-over (two thread switches) cost as much as
the commit itself for a lone writer: docs/adr/0007.

Holds: an operation sees the changes of those before it in the batch; one that fails leaves
nothing, and does not harm its neighbours. Lock order: `_leader` before LMDB's write lock; nothing
is acquired inside.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from kvfs.errors import KvfsError
from kvfs.index.lmdb_index import LmdbIndex, WriteTransaction

T = TypeVar("T")

MAX_BATCH = 64
"""Operations a transaction: bounds how long the machine-wide write lock is held (I8). Group commit
reached 1.1-1.6 puts a batch with four threads, so more buys nothing."""


class _Ticket(Generic[T]):
    __slots__ = ("error", "is_done", "operation", "result")

    def __init__(self, operation: Callable[[WriteTransaction], T]) -> None:
        self.operation = operation
        self.result: T | None = None
        self.error: BaseException | None = None
        self.is_done = False


class _BatchBroken(Exception):
    """An operation failed after it had changed rows: undo the batch, run each alone."""


class Committer:
    """Commits the operations of any thread."""

    def __init__(self, index: LmdbIndex) -> None:
        self._index = index
        self._queue: deque[_Ticket[object]] = deque()
        self._leader = threading.Lock()

    def commit(self, operation: Callable[[WriteTransaction], T]) -> T:
        """Run `operation` in a write transaction; return its result once it is committed.

        The operation may run twice (its first transaction is then undone), so it must change
        nothing but rows. Raises what the operation raises, or Unavailable / IndexFull.
        """
        ticket = _Ticket(operation)
        queued = cast("_Ticket[object]", ticket)
        self._queue.append(queued)
        try:
            while not ticket.is_done:
                with self._leader:
                    if not ticket.is_done:
                        self._commit_batch()
        except BaseException:
            self._withdraw(queued)
            raise
        if ticket.error is not None:
            raise ticket.error
        return cast("T", ticket.result)

    def _withdraw(self, ticket: _Ticket[object]) -> None:
        """An interrupt ended the wait: what nobody waits for must not be committed later."""
        with self._leader:
            if not ticket.is_done and ticket in self._queue:
                self._queue.remove(ticket)

    def _commit_batch(self) -> None:
        batch: list[_Ticket[object]] = []
        while self._queue and len(batch) < MAX_BATCH:
            batch.append(self._queue.popleft())
        try:
            self._run(batch)
        except BaseException as error:
            if len(batch) == 1:
                batch[0].error = batch[0].error or _unwrap(error)
            else:
                self._run_each_alone(batch)
            if not isinstance(error, Exception):
                raise
        finally:
            for ticket in batch:
                ticket.is_done = True

    def _run(self, batch: list[_Ticket[object]]) -> None:
        if len(batch) == 1:  # the usual case: an error undoes the transaction, and that is all
            batch[0].error = None
            batch[0].result = self._index.write(batch[0].operation)
            return

        def work(transaction: WriteTransaction) -> None:
            for ticket in batch:
                ticket.error = None
                transaction.is_dirty = False
                try:
                    ticket.result = ticket.operation(transaction)
                except KvfsError as error:
                    ticket.error = error
                    if transaction.is_dirty:
                        raise _BatchBroken from error

        self._index.write(work)

    def _run_each_alone(self, batch: list[_Ticket[object]]) -> None:
        for ticket in batch:
            try:
                self._run([ticket])
            except Exception as error:  # noqa: BLE001, RUF100 - it is re-raised in its own thread
                ticket.error = ticket.error or _unwrap(error)


def _unwrap(error: BaseException) -> BaseException:
    if isinstance(error, _BatchBroken) and error.__cause__ is not None:
        return error.__cause__
    return error
