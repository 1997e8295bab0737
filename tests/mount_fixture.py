"""A store mounted for a test:

The daemon is a real one, the mount point private, both gone after.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kvfs.clock import SystemClock
from kvfs.errors import KvfsError
from kvfs.filesystem import mount_points
from kvfs.filesystem.mount import mount_store, unmount
from kvfs.open_store import init_store

CAPACITY = 2 << 30
PATIENCE_SECONDS = 20.0

_libc = ctypes.CDLL(None, use_errno=True)


def missing_program(name: str) -> pytest.MarkDecorator:
    """Return the mark of tests that need a program of the system."""
    return pytest.mark.skipif(
        shutil.which(name) is None, reason=f"{name} is not installed: tools/install-system-packages"
    )


def transports() -> list[str]:
    """The transports that this machine and user can run."""
    return ["pyfuse3", "kernel"] if os.geteuid() == 0 else ["pyfuse3"]


@dataclass(slots=True)
class Mounted:
    """One mounted store."""

    store: Path
    root: Path
    transport: str
    others: list[Path] = field(default_factory=list)

    def daemon_pid(self) -> int:
        """The process that serves this mount, as it says in the store."""
        for mark in (self.store / "run").glob("mount-*"):
            return int(mark.read_text().split()[0])
        raise AssertionError("no mount process has left its mark in the store")

    def log(self) -> str:
        return (self.store / "logs" / "mount.log").read_text()

    def gauge(self, name: str) -> int:
        """One of the mount's own numbers."""
        return int(json.loads((self.root / ".kvfs" / "status.json").read_text())[name])

    def inodes_in_use(self) -> int:
        """How many inodes are left once the kernel was asked to forget all that it can (root)."""
        Path("/proc/sys/vm/drop_caches").write_text("2\n")
        return self.gauge("kvfs_mount_inodes")


@contextlib.contextmanager
def mounted_store(
    transport: str, *, capacity_bytes: int = CAPACITY, read_only: bool = False
) -> Iterator[Mounted]:
    """Make a store and mount it; unmount whatever happens, even if the daemon is dead."""
    with tempfile.TemporaryDirectory(prefix="kvfs-mount-") as folder:
        store, root = Path(folder) / "store", Path(folder) / "mnt"
        root.mkdir()
        init_store(store, capacity_bytes=capacity_bytes)
        mount_store(store, root, transport=transport, read_only=read_only)
        try:
            yield Mounted(store, root, transport)
        finally:
            end_mount(root)


def end_mount(root: Path) -> None:
    """Unmount for good: politely, then by force."""
    try:
        unmount(root)
    except KvfsError:
        with contextlib.suppress(KvfsError):
            mount_points.detach(str(root))


def wait_until(claim: Callable[[], bool], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Return when `claim` holds; fail the test if it does not within `seconds`."""
    clock = SystemClock()
    deadline = clock.monotonic_ns() + int(seconds * 1e9)
    while not claim():
        assert clock.monotonic_ns() < deadline, "it did not happen in time"
        os.sched_yield()


def run_python(
    code: str, *arguments: str | Path, **keywords: object
) -> subprocess.CompletedProcess:
    """Run `code` in a fresh process; its standard output must be what the test wants."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        **keywords,  # type: ignore[call-overload]
    )


def start_python(code: str, *arguments: str | Path) -> subprocess.Popen:
    """Start `code` in a fresh process that talks by lines; the caller ends it."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def end_process(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """Signal a process that the test started and reap it."""
    process.send_signal(number)
    process.wait(timeout=30)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def rename_with_flags(source: Path, target: Path, flags: int) -> None:
    """renameat2(2), which Python does not offer. Raises: OSError."""
    at_cwd = -100
    if _libc.renameat2(at_cwd, os.fsencode(source), at_cwd, os.fsencode(target), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(source))
