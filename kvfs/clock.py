"""The one place that reads the time and makes randomness (I7).

Everything else is given a `Clock` and a `Randomness`, so a test can move time and repeat names.
"""

from __future__ import annotations

import os
import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for what is stored, monotonic time for what is waited for."""

    def now_ns(self) -> int:
        """Return nanoseconds since the epoch (may jump with the machine's clock)."""
        ...

    def monotonic_ns(self) -> int:
        """Return nanoseconds since an arbitrary start; never goes back."""
        ...


class Randomness(Protocol):
    """Unpredictable bytes: salts, generation names, upload ids."""

    def token(self, length: int) -> bytes:
        """Return `length` random bytes."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()


class SystemRandomness:
    """The kernel's generator."""

    def token(self, length: int) -> bytes:
        return os.urandom(length)


class ManualClock:
    """A clock that moves only when told; wall and monotonic time advance together."""

    def __init__(self, now_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_ns = now_ns
        self._monotonic_ns = 1_000_000_000

    def now_ns(self) -> int:
        return self._now_ns

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        step = int(seconds * 1e9)
        self._now_ns += step
        self._monotonic_ns += step

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back by `seconds`, as an administrator or NTP would."""
        self._now_ns += int(seconds * 1e9)
