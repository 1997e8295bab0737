"""The operations, called without a mount, against a plain directory that is the oracle.

Random histories of whole-file writes, in-place writes, truncations, renames and removals; after
each step both sides hold the same names with the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvfs.aio import BlockingCalls
from kvfs.clock import SystemClock
from kvfs.errors import KvfsError
from kvfs.filesystem.errno_map import errno_of
from kvfs.filesystem.operations import Operations
from kvfs.filesystem.records import ROOT_NODEID, AttributeRequest, Caller
from kvfs.open_store import init_store, open_store

NAMES = st.sampled_from([b"a", b"b", b"c.tmp", b"d.lock"])
DATA = st.binary(max_size=9000)
CALLER = Caller(thread=1)


class OneProcess:
    """Every thread is of one living process that closes what it opens."""

    def group_of(self, thread: int) -> int:
        return 1

    def is_killed(self, thread: int) -> bool:
        return False

    def is_closing(self, thread: int) -> bool:
        return True

    def holds_file(self, group: int, ino: int) -> bool:
        return False


class Client:
    """What the kernel does with the operations: walk, open (twice on ESTALE), write, close."""

    def __init__(self, operations: Operations, folder: int) -> None:
        self._operations = operations
        self._folder = folder

    async def find(self, name: bytes) -> int:
        reply = await self._operations.lookup(self._folder, name, CALLER)
        return reply.nodeid

    async def open(self, name: bytes, flags: int) -> tuple[int, int]:
        for _ in range(2):
            try:
                nodeid = await self.find(name)
                opened = await self._operations.files.open(nodeid, flags, CALLER)
            except OSError as error:
                if error.errno == errno.ENOENT and flags & os.O_CREAT:
                    entry, opened = await self._operations.create(
                        self._folder, name, 0o644, flags, CALLER
                    )
                    return entry.nodeid, opened.handle
                if error.errno != errno.ESTALE:
                    raise
                continue
            return nodeid, opened.handle
        raise AssertionError("ESTALE twice: the kernel would hand it to the program")

    async def close(self, handle: int) -> None:
        await self._operations.files.flush(handle, CALLER)
        await self._operations.files.release(handle)

    async def write(self, name: bytes, data: bytes, offset: int, flags: int) -> None:
        _, handle = await self.open(name, flags)
        await self._operations.contents.write(handle, offset, data)
        await self.close(handle)

    async def truncate(self, name: bytes, size: int) -> None:
        await self._operations.setattr(await self.find(name), AttributeRequest(size=size), CALLER)

    async def read(self, name: bytes) -> bytes:
        _, handle = await self.open(name, os.O_RDONLY)
        content = await self._operations.contents.read(handle, 0, 1 << 20)
        await self.close(handle)
        return content

    async def names(self) -> list[bytes]:
        number = await self._operations.listings.opendir(self._folder)
        rows = [row.name for row in self._operations.listings.readdir(number, 0)]
        await self._operations.listings.releasedir(number)
        return sorted(name for name in rows if name not in (b".", b".."))


class MountAgainstDirectory(RuleBasedStateMachine):
    """One history, on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="kvfs-model-"))
        self.plain = self.root / "plain"
        self.plain.mkdir()
        init_store(self.root / "store", capacity_bytes=1 << 28)
        self.store = open_store(self.root / "store")
        self.operations = Operations(self.store, SystemClock(), OneProcess(), BlockingCalls())
        made = trio.run(self.operations.mkdir, ROOT_NODEID, b"bucket", 0o755, CALLER)
        self.client = Client(self.operations, made.nodeid)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.root)

    def path(self, name: bytes) -> Path:
        return self.plain / os.fsdecode(name)

    def both(self, action: object, plain: object) -> None:
        """Do it on both sides; both succeed or both fail with the same errno."""
        outcomes = []
        for side in (action, plain):
            try:
                side()  # type: ignore[operator]
                outcomes.append(0)
            except (OSError, KvfsError) as error:
                outcomes.append(errno_of(error))
        assert outcomes[0] == outcomes[1], (
            f"errno {outcomes[0]}, a plain directory says {outcomes[1]}"
        )

    @rule(name=NAMES, data=DATA)
    def replace_file(self, name: bytes, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self.both(
            lambda: trio.run(self.client.write, name, data, 0, flags),
            lambda: self.path(name).write_bytes(data),
        )

    @rule(name=NAMES, data=DATA, offset=st.integers(0, 12000))
    def write_in_place(self, name: bytes, data: bytes, offset: int) -> None:
        def plain() -> None:
            descriptor = os.open(self.path(name), os.O_RDWR)
            with contextlib.closing(os.fdopen(descriptor, "r+b", buffering=0)) as file:
                os.pwrite(file.fileno(), data, offset)

        self.both(lambda: trio.run(self.client.write, name, data, offset, os.O_RDWR), plain)

    @rule(name=NAMES, size=st.integers(0, 12000))
    def truncate(self, name: bytes, size: int) -> None:
        self.both(
            lambda: trio.run(self.client.truncate, name, size),
            lambda: os.truncate(self.path(name), size),
        )

    @rule(source=NAMES, goal=NAMES)
    def rename(self, source: bytes, goal: bytes) -> None:
        folder = self.client._folder
        self.both(
            lambda: trio.run(self.operations.rename, folder, source, folder, goal, 0, CALLER),
            lambda: os.rename(self.path(source), self.path(goal)),
        )

    @rule(source=NAMES)
    def unlink(self, source: bytes) -> None:
        self.both(
            lambda: trio.run(self.operations.unlink, self.client._folder, source, CALLER),
            lambda: os.unlink(self.path(source)),
        )

    @invariant()
    def both_hold_the_same(self) -> None:
        names = sorted(os.listdir(os.fsencode(self.plain)))
        assert trio.run(self.client.names) == names
        for name in names:
            assert trio.run(self.client.read, name) == self.path(name).read_bytes()


TestMountAgainstDirectory = MountAgainstDirectory.TestCase
TestMountAgainstDirectory.settings = settings(
    max_examples=15,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
