"""What one close of a file being written means: every row of the table."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

import pytest

from kvfs.filesystem.processes import Creator, ProcProcesses, Verdict, judge

CREATOR = Creator(thread=101, group=100)
INO = 7


@dataclass
class Table:
    """Processes as a table says."""

    groups: dict[int, int] = field(default_factory=lambda: {100: 100, 101: 100, 200: 200})
    killed: set[int] = field(default_factory=set)
    closing: set[int] = field(default_factory=set)
    holders: set[int] = field(default_factory=set)

    def group_of(self, thread: int) -> int:
        return self.groups.get(thread, 0)

    def is_killed(self, thread: int) -> bool:
        return thread in self.killed

    def is_closing(self, thread: int) -> bool:
        return thread in self.closing

    def holds_file(self, group: int, ino: int) -> bool:
        assert ino == INO
        return group in self.holders


@pytest.mark.parametrize(
    ("closing", "size", "table", "verdict"),
    [
        (101, 5, Table(), Verdict.PUBLISH),
        (100, 5, Table(), Verdict.PUBLISH),
        (200, 5, Table(), Verdict.WAIT),
        (999, 5, Table(), Verdict.WAIT),
        (101, 5, Table(killed={101}), Verdict.DISCARD),
        (101, 0, Table(), Verdict.PUBLISH),
        (101, 0, Table(holders={100}), Verdict.WAIT),
        (101, 5, Table(holders={100}), Verdict.PUBLISH),
        # The transport cannot tell who closes: the creator's doings decide.
        (0, 5, Table(closing={101}), Verdict.PUBLISH),
        (0, 5, Table(closing={101}, holders={100}), Verdict.PUBLISH),
        (0, 5, Table(holders={100}), Verdict.WAIT),
        (0, 0, Table(closing={101}, holders={100}), Verdict.WAIT),
        (0, 5, Table(), Verdict.PUBLISH),
        (0, 5, Table(killed={100}), Verdict.DISCARD),
        (0, 5, Table(killed={101}), Verdict.DISCARD),
    ],
)
def test_a_close_means_what_the_table_says(
    closing: int, size: int, table: Table, verdict: Verdict
) -> None:
    assert judge(table, CREATOR, closing, INO, size) is verdict


def test_a_creator_in_another_pid_namespace_leaves_only_the_last_close() -> None:
    unknown = Creator(thread=0, group=0)
    assert judge(Table(), unknown, 0, INO, 5) is Verdict.WAIT


def test_proc_knows_this_process() -> None:
    processes = ProcProcesses()
    thread = threading.get_native_id()
    assert processes.group_of(thread) == os.getpid()
    assert not processes.is_killed(thread)
    assert not processes.is_closing(thread)


def test_proc_says_nothing_of_a_process_that_is_not_there() -> None:
    processes = ProcProcesses("/proc/no-such-folder")
    assert processes.group_of(1) == 0
    assert not processes.is_killed(1)
    assert not processes.holds_file(1, 1)
