"""Nothing grows with the number of look-ups: neither the table of inodes nor the daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from kvfs.aio import BlockingCalls
from kvfs.clock import SystemClock
from kvfs.filesystem.operations import Operations
from kvfs.filesystem.processes import ProcProcesses
from kvfs.filesystem.records import ROOT_NODEID, Caller
from kvfs.model import ChildName
from kvfs.open_store import init_store, open_store
from tests.mount_fixture import CAPACITY, mounted_store, transports, wait_until

CALLER = Caller(thread=os.getpid())
NAMES = [b"block-%04d" % number for number in range(500)]
GROWTH_BYTES = 8 << 20
"""What an allocator may keep; a table that grew by one entry a look-up would take 200 bytes each:
10 MB in the short run, 200 MB in the long one."""


def anonymous_bytes(pid: int | str = "self") -> int:
    """Memory of a process that is no file's."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel tells no RssAnon")


def test_i8_look_ups_and_forgets_leave_no_inode_and_no_memory_behind(
    tmp_path: Path, is_soak: bool
) -> None:
    init_store(tmp_path / "store", capacity_bytes=CAPACITY)
    with open_store(tmp_path / "store") as store:
        operations = Operations(store, SystemClock(), ProcProcesses(), BlockingCalls())

        async def look_up_and_forget(folder: int, rounds: int) -> None:
            for number in range(rounds):
                reply = await operations.lookup(folder, NAMES[number % len(NAMES)], CALLER)
                operations.forget(reply.nodeid, 1)

        async def run() -> int:
            folder = (await operations.mkdir(ROOT_NODEID, b"bucket", 0o755, CALLER)).nodeid
            for name in NAMES:
                store.put(ChildName(folder, name), b"bytes of " + name)
            await look_up_and_forget(folder, 5000)  # warm: pools, caches, notes of access
            before = anonymous_bytes()
            await look_up_and_forget(folder, 1_000_000 if is_soak else 50_000)
            return anonymous_bytes() - before

        grown = trio.run(run)
        assert len(operations._state.inodes) == 2  # the root and the first directory
        assert grown < GROWTH_BYTES


@pytest.mark.fuse
@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make the kernel forget inodes")
@pytest.mark.parametrize("transport", transports())
def test_i8_a_mount_is_as_small_after_a_million_look_ups(transport: str) -> None:
    with mounted_store(transport) as mounted:
        folder = mounted.root / "bucket"
        folder.mkdir()
        with open_store(mounted.store) as store:
            inode = int(os.getxattr(folder, "user.kvfs.inode"))
            for number in range(10_000):
                store.put(ChildName(inode, b"%05d" % number), b"x")
        pid, sizes = mounted.daemon_pid(), []
        for _ in range(100):
            for number in range(10_000):
                os.stat(f"{folder}/{number:05}")
            wait_until(lambda: mounted.inodes_in_use() == 1)  # the root
            sizes.append(anonymous_bytes(pid))
        assert sizes[-1] - sizes[10] < GROWTH_BYTES, sizes
