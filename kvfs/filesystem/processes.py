"""What /proc tells about the process behind a close(): enough to decide whether it publishes.

Owns the reading of /proc and the choice PUBLISH, DISCARD or WAIT. Refuses to know files and the
store. Why it is needed: the kernel sends FLUSH for every close of every descriptor of an open file,
also for those of forked children and for those that a killed process leaves behind.
"""

from __future__ import annotations

import enum
import os
import platform
from dataclasses import dataclass
from typing import Protocol

PF_EXITING = 4
"""include/linux/sched.h: the task is being torn down."""
MAX_DESCRIPTORS = 65536
"""At most so many descriptors of one process are looked at (I8); beyond, nothing is claimed."""
CLOSE_CALLS = {"x86_64": 3, "aarch64": 57}
"""The number of close(2), as /proc/TID/syscall shows it."""


class Verdict(enum.Enum):
    """What one FLUSH means for a file that has not been published yet."""

    PUBLISH = enum.auto()
    DISCARD = enum.auto()
    WAIT = enum.auto()


class Processes(Protocol):
    """The questions asked of the system; a test answers them from a table."""

    def group_of(self, thread: int) -> int:
        """Return the thread group (process) of `thread`; 0 if there is none."""
        ...

    def is_killed(self, thread: int) -> bool:
        """Return whether `thread` is being torn down by a signal."""
        ...

    def is_closing(self, thread: int) -> bool:
        """Return whether `thread` is inside close(2) right now."""
        ...

    def holds_file(self, group: int, ino: int) -> bool:
        """Return whether the process has a descriptor of the file with inode number `ino`."""
        ...


class ProcProcesses:
    """The answers from /proc."""

    def __init__(self, root: str = "/proc") -> None:
        self._root = root
        self._close_call = CLOSE_CALLS.get(platform.machine(), -1)

    def group_of(self, thread: int) -> int:
        for line in self._read(f"{thread}/status").splitlines():
            if line.startswith(b"Tgid:"):
                return int(line[5:])
        return 0

    def is_killed(self, thread: int) -> bool:
        # The command name in parentheses may hold spaces and parentheses: fields count behind it.
        fields = self._read(f"{thread}/stat").rpartition(b")")[2].split()
        if len(fields) < 50:
            return False
        is_exiting = int(fields[6]) & PF_EXITING
        return bool(is_exiting and int(fields[49]) & 0x7F)

    def is_closing(self, thread: int) -> bool:
        fields = self._read(f"{thread}/syscall").split()
        return bool(fields) and fields[0] == str(self._close_call).encode()

    def holds_file(self, group: int, ino: int) -> bool:
        wanted = b"ino:\t%d\n" % ino
        folder = f"{self._root}/{group}/fdinfo"
        try:
            descriptors = os.listdir(folder)
        except OSError:
            return False
        return any(
            wanted in self._read(f"{group}/fdinfo/{d}") for d in descriptors[:MAX_DESCRIPTORS]
        )

    def _read(self, name: str) -> bytes:
        """Return a file of /proc, b"" when the process is gone or closed to us."""
        try:
            descriptor = os.open(f"{self._root}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            return os.read(descriptor, 8192)
        except OSError:
            return b""
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Creator:
    """Who opened a file for writing."""

    thread: int
    group: int


def judge(processes: Processes, creator: Creator, closing: int, ino: int, size: int) -> Verdict:
    """Decide what one close of a file being written means.

    closing: the thread that closes, 0 when the transport cannot tell. ino: st_ino as its
    descriptors show it. size: bytes written so far.
    """
    if not creator.group:
        return Verdict.WAIT  # another pid namespace: only the last close of all is certain
    if not closing:
        return _judge_by_creator(processes, creator, ino, size)
    if closing != creator.thread and processes.group_of(closing) != creator.group:
        return Verdict.WAIT  # a child's copy of the descriptor
    if processes.is_killed(closing):
        return Verdict.DISCARD
    if size == 0 and processes.holds_file(creator.group, ino):
        return Verdict.WAIT  # `cmd > f`: opened, duplicated, closed, and only then written
    return Verdict.PUBLISH


def _judge_by_creator(processes: Processes, creator: Creator, ino: int, size: int) -> Verdict:
    """Decide without knowing who closes: by what the creating process is doing and still holds.

    The usual case costs one read: the thread that created the file is inside close(2).
    """
    if size and processes.is_closing(creator.thread):
        return Verdict.PUBLISH
    if processes.is_killed(creator.group) or processes.is_killed(creator.thread):
        return Verdict.DISCARD
    if processes.holds_file(creator.group, ino):
        return Verdict.WAIT
    return Verdict.PUBLISH
