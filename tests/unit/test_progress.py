"""The progress line: only on a terminal, with rate and time left."""

from __future__ import annotations

import io

from kvfs.clock import ManualClock
from kvfs_tools.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_no_progress() -> None:
    stream = io.StringIO()
    clock = ManualClock()
    with Progress("kv/a", 100, clock=clock, stream=stream) as progress:
        clock.advance(5)
        progress.add(50)
    assert stream.getvalue() == ""


def test_a_terminal_sees_share_rate_and_time_left() -> None:
    stream, clock = Terminal(), ManualClock()
    with Progress("kv/a", 40 * 2**20, clock=clock, stream=stream) as progress:
        clock.advance(2)
        progress.add(10 * 2**20)
        assert "kv/a: 10.0 MiB of 40.0 MiB, 25 %, 5.0 MiB/s, 6s left" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_an_unknown_total_shows_what_is_known() -> None:
    clock = ManualClock()
    progress = Progress("-", 0, clock=clock, stream=Terminal())
    clock.advance(1)
    progress.add(2**20)
    assert progress.line(clock.monotonic_ns()) == "-: 1.0 MiB, 1.0 MiB/s"


def test_the_line_is_drawn_at_most_five_times_a_second() -> None:
    stream, clock = Terminal(), ManualClock()
    progress = Progress("kv/a", 1000, clock=clock, stream=stream)
    for _ in range(100):
        clock.advance(0.01)
        progress.add(1)
    assert stream.getvalue().count("\r") == 5
