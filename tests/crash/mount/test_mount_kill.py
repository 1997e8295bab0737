"""The daemon killed with -9 at any moment: the next mount shows whole files or none."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from kvfs.filesystem.mount import mount_store
from tests.mount_fixture import (
    Mounted,
    end_process,
    mounted_store,
    start_python,
    transports,
    wait_until,
)

pytestmark = [pytest.mark.fuse, pytest.mark.crash]

CHURN = """
import os, sys
folder, worker = sys.argv[1], int(sys.argv[2])
print("go", flush=True)
turn = 0
while True:
    turn += 1
    stamp = f"{worker}:{turn};".encode()
    value = stamp * (200_000 // len(stamp))
    name = f"{folder}/{turn % 7}"
    try:
        with open(f"{name}.{worker}.tmp", "wb", buffering=0) as file:
            file.write(value)
        os.rename(f"{name}.{worker}.tmp", name)
        if turn % 5 == 0:
            os.unlink(name)
    except FileNotFoundError:
        pass
    except OSError:
        break
"""


def torn_files(folder: Path) -> list[str]:
    """The files whose content is not one stamp repeated."""
    torn = []
    for path in folder.iterdir():
        value = path.read_bytes()
        stamp = value[: value.find(b";") + 1]
        if not stamp or value != stamp * (200_000 // len(stamp)):
            torn.append(path.name)
    return torn


def kill_while_busy(mounted: Mounted, written: int) -> None:
    """Let two writers work until the store has changed `written` times more, then kill -9."""
    bucket = mounted.root / "b"
    writers = [start_python(CHURN, bucket, str(worker)) for worker in range(2)]
    try:
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        seen: set[int] = set()

        def is_busy() -> bool:
            seen.update(row.inode() for row in os.scandir(bucket))
            return len(seen) >= written

        wait_until(is_busy)
        pid = mounted.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{pid}").exists())
    finally:
        for writer in writers:
            end_process(writer)


@pytest.mark.parametrize("transport", transports())
def test_i1_i2_after_each_kill_every_visible_file_is_whole(transport: str, is_soak: bool) -> None:
    with mounted_store(transport) as mounted:
        (mounted.root / "b").mkdir()
        for turn in range(40 if is_soak else 3):
            kill_while_busy(mounted, written=10 + 7 * (turn % 5))
            mount_store(mounted.store, mounted.root, transport=transport)
            assert torn_files(mounted.root / "b") == []


@pytest.mark.parametrize("transport", transports())
def test_what_was_written_to_a_slab_is_there_and_charged_after_a_kill(transport: str) -> None:
    with mounted_store(transport) as mounted:
        (mounted.root / "b").mkdir()
        slab = mounted.root / "b" / "slab"
        descriptor = os.open(slab, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(descriptor, 4 << 30)
        os.pwrite(descriptor, b"x" * (8 << 20), 1 << 30)
        pid = mounted.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{pid}").exists())
        with contextlib.suppress(OSError):  # ENOTCONN: there is nobody to tell
            os.close(descriptor)
        mount_store(mounted.store, mounted.root, transport=transport)
        assert slab.stat().st_size == 4 << 30
        with slab.open("r+b", buffering=0) as file:
            assert os.pread(file.fileno(), 8 << 20, 1 << 30) == b"x" * (8 << 20)
            os.pwrite(file.fileno(), b"y", 0)
        assert slab.stat().st_blocks * 512 >= 8 << 20
        space = os.statvfs(mounted.root)
        assert (space.f_blocks - space.f_bfree) * space.f_frsize >= 8 << 20
