"""A real mount against a plain directory: random histories of what fsx does, and of names.

Whatever is done to a file in the mount is done to one beside it; both succeed with the same bytes
or fail with the same errno. One process, so it sees its own unclosed files as a plain directory
would show them; names are compared once all is closed.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.mount_fixture import Mounted

pytestmark = pytest.mark.fuse

NAMES = st.sampled_from(["a", "b", "c.tmp"])
OFFSETS = st.one_of(st.integers(0, 20_000), st.sampled_from([0, 4095, 4096, 8192, 12_288]))
DATA = st.binary(min_size=1, max_size=9000)
MODES = st.sampled_from(
    [
        os.O_RDWR | os.O_CREAT,
        os.O_RDWR,
        os.O_RDWR | os.O_CREAT | os.O_TRUNC,
        os.O_RDWR | os.O_CREAT | os.O_EXCL,
        os.O_RDWR | os.O_CREAT | os.O_APPEND,
    ]
)
MAX_OPEN = 3


class MountAgainstDirectory(RuleBasedStateMachine):
    """One history on both sides; `folder` is set by the test."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.mount = Path(tempfile.mkdtemp(dir=self.folder))
        self.plain = Path(tempfile.mkdtemp(prefix="kvfs-model-"))
        self.opened: list[tuple[str, int, int]] = []
        """(name, descriptor in the mount, descriptor beside it)."""

    def teardown(self) -> None:
        self.close_all()
        shutil.rmtree(self.mount)
        shutil.rmtree(self.plain)

    def close_all(self) -> None:
        for _, ours, plain in self.opened:
            os.close(ours)
            os.close(plain)
        self.opened.clear()

    def both(self, action: object, *names: str) -> list[object]:
        """Run `action` on the paths of both sides; return what each gave, an errno if it failed."""
        given: list[object] = []
        for folder in (self.mount, self.plain):
            try:
                given.append(action(*(folder / name for name in names)))  # type: ignore[operator]
            except OSError as error:
                given.append(("failed", errno.errorcode[error.errno or 0]))
        return given

    def same(self, action: object, *names: str) -> object:
        ours, plain = self.both(action, *names)
        assert ours == plain
        return ours

    def is_open(self, *names: str) -> bool:
        return any(name in names for name, _, _ in self.opened)

    # -- through descriptors

    @precondition(lambda self: len(self.opened) < MAX_OPEN)
    @rule(name=NAMES, flags=MODES)
    def open(self, name: str, flags: int) -> None:
        if self.is_open(name):
            return  # a second open has bytes of its own by design; it is tested elsewhere
        ours, plain = self.both(lambda path: os.open(path, flags, 0o644), name)
        if isinstance(ours, int) and isinstance(plain, int):
            self.opened.append((name, ours, plain))
        else:
            assert ours == plain

    @precondition(lambda self: self.opened)
    @rule(which=st.integers(0, MAX_OPEN), data=DATA, offset=OFFSETS)
    def write(self, which: int, data: bytes, offset: int) -> None:
        _, ours, plain = self.opened[which % len(self.opened)]
        assert os.pwrite(ours, data, offset) == os.pwrite(plain, data, offset) == len(data)

    @precondition(lambda self: self.opened)
    @rule(which=st.integers(0, MAX_OPEN), size=OFFSETS)
    def truncate(self, which: int, size: int) -> None:
        _, ours, plain = self.opened[which % len(self.opened)]
        os.ftruncate(ours, size)
        os.ftruncate(plain, size)

    @precondition(lambda self: self.opened)
    @rule(which=st.integers(0, MAX_OPEN), data=DATA, offset=OFFSETS)
    def write_mapped(self, which: int, data: bytes, offset: int) -> None:
        _, ours, plain = self.opened[which % len(self.opened)]
        size = os.fstat(plain).st_size
        if offset >= size:
            return
        for descriptor in (ours, plain):
            with mmap.mmap(descriptor, size) as mapping:
                piece = data[: size - offset]
                mapping[offset : offset + len(piece)] = piece

    @precondition(lambda self: self.opened)
    @rule(which=st.integers(0, MAX_OPEN), offset=OFFSETS, length=st.integers(1, 9000))
    def copy_within(self, which: int, offset: int, length: int) -> None:
        _, ours, plain = self.opened[which % len(self.opened)]
        for descriptor in (ours, plain):
            piece = os.pread(descriptor, length, 0)
            os.pwrite(descriptor, piece, offset)

    @precondition(lambda self: self.opened)
    @rule(which=st.integers(0, MAX_OPEN))
    def sync(self, which: int) -> None:
        os.fsync(self.opened[which % len(self.opened)][1])

    @precondition(lambda self: self.opened)
    @rule(which=st.integers(0, MAX_OPEN))
    def close(self, which: int) -> None:
        _, ours, plain = self.opened.pop(which % len(self.opened))
        os.close(ours)
        os.close(plain)

    # -- through names; of unopened files, since whoever is open is published where it was opened

    @rule(name=NAMES, size=OFFSETS)
    def truncate_by_name(self, name: str, size: int) -> None:
        if not self.is_open(name):
            self.same(lambda path: os.truncate(path, size), name)

    @rule(name=NAMES, data=DATA)
    def replace(self, name: str, data: bytes) -> None:
        if not self.is_open(name):
            self.same(lambda path: path.write_bytes(data), name)

    @rule(name=NAMES, data=DATA)
    def append(self, name: str, data: bytes) -> None:
        def add(path: Path) -> None:
            with path.open("ab") as file:
                file.write(data)

        if not self.is_open(name):
            self.same(add, name)

    @rule(first=NAMES, second=NAMES)
    def rename(self, first: str, second: str) -> None:
        if not self.is_open(first, second):
            self.same(lambda old, new: os.rename(old, new), first, second)

    @rule(first=NAMES, second=NAMES)
    def copy(self, first: str, second: str) -> None:
        def copied(old: Path, new: Path) -> None:
            with old.open("rb") as giver, new.open("xb") as taker:
                while os.copy_file_range(giver.fileno(), taker.fileno(), 1 << 20):
                    pass

        if first != second and not self.is_open(first, second):
            self.same(copied, first, second)

    @rule(first=NAMES, second=NAMES)
    def link(self, first: str, second: str) -> None:
        if not self.is_open(first, second):
            self.same(lambda old, new: os.link(old, new), first, second)
            self.same(lambda path: os.unlink(path), first)

    @rule(name=NAMES)
    def unlink(self, name: str) -> None:
        if not self.is_open(name):
            self.same(lambda path: os.unlink(path), name)

    # -- what both must show

    @invariant()
    def open_files_hold_the_same(self) -> None:
        for _, ours, plain in self.opened:
            size = os.fstat(plain).st_size
            assert os.fstat(ours).st_size == size
            assert os.pread(ours, size + 1, 0) == os.pread(plain, size + 1, 0)

    @invariant()
    def closed_files_hold_the_same(self) -> None:
        for name in ("a", "b", "c.tmp"):
            if not self.is_open(name):
                self.same(lambda path: path.read_bytes(), name)
        if not self.opened:
            assert sorted(os.listdir(self.mount)) == sorted(os.listdir(self.plain))


@pytest.mark.slow
def test_i1_a_mount_does_what_a_plain_directory_does(
    mounted: Mounted, bucket: Path, is_soak: bool
) -> None:
    machine = type("Machine", (MountAgainstDirectory,), {"folder": bucket})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=1500 if is_soak else 12,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
