"""The mount and the gateway as child processes of `kvfs up`: started, watched, ended.

Owns their lifetime: every wait is bounded, and none outlives the block that started it. They run in
a session of their own, so that Ctrl-C reaches only the parent, which then ends them in order.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvfs.clock import Clock, SystemClock
from kvfs.errors import Unavailable

START_SECONDS = 30.0
"""A store of a million objects opens in two after a crash; the rest is a slow machine's margin."""
STOP_SECONDS = 20.0
POLL_SECONDS = 0.05

RUN_GATEWAY = "import sys; from kvfs_gateway.main import main; sys.exit(main())"
RUN_CLI = "import sys; from kvfs_tools.cli import main; sys.exit(main())"
"""Started through this interpreter, so that the installed scripts need not be on the path."""


@dataclass(frozen=True, slots=True)
class Child:
    """One running part."""

    name: str
    process: subprocess.Popen[bytes]

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None


def start_child(name: str, code: str, arguments: Sequence[str]) -> Child:
    """Start one part; its messages go where ours go."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    return Child(name, process)


def wait_until_ready(
    child: Child,
    is_ready: Callable[[], bool],
    *,
    seconds: float = START_SECONDS,
    clock: Clock | None = None,
) -> None:
    """Return when `is_ready()` says so.

    Raises: Unavailable when the part ends first or `seconds` pass.
    """
    clock = clock or SystemClock()
    deadline_ns = clock.monotonic_ns() + int(seconds * 1e9)
    pause = threading.Event()
    while not is_ready():
        if not child.is_running:
            code = child.process.returncode
            raise Unavailable(
                f"The {child.name} ended with code {code} before it served; see above."
            )
        if clock.monotonic_ns() > deadline_ns:
            raise Unavailable(f"The {child.name} did not serve within {seconds:.0f} s.")
        pause.wait(POLL_SECONDS)


def stop_child(child: Child, *, seconds: float = STOP_SECONDS) -> bool:
    """End one part with SIGTERM, after `seconds` with SIGKILL; return whether it ended itself."""
    if not child.is_running:
        return True
    with contextlib.suppress(ProcessLookupError):
        child.process.send_signal(signal.SIGTERM)
    try:
        child.process.wait(seconds)
    except subprocess.TimeoutExpired:
        child.process.kill()
        child.process.wait(seconds)
        return False
    return True
