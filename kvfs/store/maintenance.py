"""The background thread of a daemon: small steps, so a store without cron stays in order too.

Owns when; what a step does is housekeeping's, trust's, trash's and access_times' business. A step
that fails is logged and tried again at its next turn: a full disk must not end the thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from kvfs.clock import Clock
from kvfs.errors import KvfsError

log = logging.getLogger(__name__)

TICK_S = 1.0


@dataclass(slots=True)
class Step:
    """One recurring job."""

    name: str
    every_s: float
    run: Callable[[], object]
    due_ns: int = 0


class Maintenance:
    """Runs steps until stopped."""

    def __init__(self, clock: Clock, steps: list[Step], at_start: list[Step]) -> None:
        """at_start: run once, in the thread, before the recurring steps (recovery's long tail)."""
        self._clock = clock
        self._steps = steps
        self._at_start = at_start
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvfs-maintenance", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the step under way; waits for it (steps are bounded)."""
        self._stop.set()
        self._thread.join()

    @property
    def is_stopping(self) -> bool:
        """Whether a long step should end early."""
        return self._stop.is_set()

    def _run(self) -> None:
        for step in self._at_start:
            self._run_step(step)
        while not self._stop.wait(TICK_S):
            for step in self._steps:
                now = self._clock.monotonic_ns()
                if now >= step.due_ns and not self._stop.is_set():
                    step.due_ns = now + int(step.every_s * 1e9)
                    self._run_step(step)

    def _run_step(self, step: Step) -> None:
        try:
            step.run()
        except (KvfsError, OSError) as error:
            log.warning("maintenance step=%s error=%s", step.name, error)
