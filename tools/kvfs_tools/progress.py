"""One line of progress on a terminal: done, rate, and when it will be over.

Owns that line; nothing is printed when stderr is no terminal, so logs and pipes stay clean.
Cost: one clock reading a call, one write at most every 0.2 s.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from kvfs.clock import Clock, SystemClock
from kvfs_tools.sizes import render_duration, render_size

_REDRAW_NS = 200_000_000


class Progress:
    """Bytes done of `total_bytes` (0 = unknown). A context manager; clears its line at the end."""

    def __init__(
        self,
        label: str,
        total_bytes: int,
        *,
        clock: Clock | None = None,
        stream: TextIO | None = None,
        render: Callable[[float], str] = render_size,
    ) -> None:
        """render: how an amount is shown; anything countable may take the place of bytes."""
        self._label = label
        self._render = render
        self._total_bytes = total_bytes
        self._clock = clock or SystemClock()
        self._stream = stream or sys.stderr
        self._is_shown = self._stream.isatty()
        self._done_bytes = 0
        self._started_ns = self._drawn_ns = self._clock.monotonic_ns()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def add(self, length: int) -> None:
        """Count `length` more bytes, and redraw when the line is due."""
        self._done_bytes += length
        if not self._is_shown:
            return
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._drawn_ns >= _REDRAW_NS:
            self._drawn_ns = now_ns
            self._stream.write(f"\r\x1b[K{self.line(now_ns)}")
            self._stream.flush()

    def line(self, now_ns: int) -> str:
        """Return the line as it stands at `now_ns` on the monotonic clock."""
        elapsed_s = max(1e-9, (now_ns - self._started_ns) / 1e9)
        rate = self._done_bytes / elapsed_s
        parts = [f"{self._label}: {self._render(self._done_bytes)}"]
        if self._total_bytes:
            parts[0] += f" of {self._render(self._total_bytes)}"
            parts.append(f"{100 * self._done_bytes // self._total_bytes} %")
        parts.append(f"{self._render(rate)}/s")
        if self._total_bytes and rate:
            parts.append(f"{render_duration((self._total_bytes - self._done_bytes) / rate)} left")
        return ", ".join(parts)
