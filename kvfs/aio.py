"""The single crossing between trio and the Store's blocking calls.

Owns the thread limiter. Lookups take microseconds and are called inline on the Store itself; what
touches the disk goes through `run`. A publish or an open is never abandoned half way: cancelling
waits for the thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import trio

P = ParamSpec("P")
T = TypeVar("T")

MAX_THREADS = 32
"""Threads a process: more only queue at the disk; each may hold one staging file (I8)."""


class BlockingCalls:
    """Runs blocking calls in a bounded pool of threads."""

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self._limiter = trio.CapacityLimiter(max_threads)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `call` in a thread; return or raise what it does."""
        return await trio.to_thread.run_sync(lambda: call(*args, **kwargs), limiter=self._limiter)
