"""The mount's tables: nothing leaks, nothing is unbounded, nothing is believed too long."""

from __future__ import annotations

import pytest

from kvfs.clock import ManualClock
from kvfs.errors import InvalidArgument
from kvfs.filesystem.handles import WritingFile
from kvfs.filesystem.inodes import PRIVATE, InodeTable, Node
from kvfs.filesystem.pending_names import MAX_CREDITS, MAX_OVERWRITES, PendingNames
from kvfs.filesystem.processes import Creator
from kvfs.filesystem.records import Attributes
from kvfs.filesystem.xattrs import change_virtual, parse_duration
from kvfs.model import ROOT_NAMESPACE, ChildName, Pin, PutOptions

LOOKS = Attributes(1, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0)


def writing(place: ChildName, thread: int, group: int = 1) -> WritingFile:
    return WritingFile(place, ROOT_NAMESPACE, Creator(thread, group), PutOptions(), inode=7)


def test_a_hundred_thousand_lookups_and_forgets_leave_only_the_root() -> None:
    table = InodeTable()
    for inode in range(2, 100_000):
        node = table.for_inode(inode)
        table.remember(node)
        table.remember(node)
        table.forget(node.nodeid, 1)
        table.forget(node.nodeid, 1)
    assert len(table) == 1


def test_a_node_that_is_open_survives_being_forgotten() -> None:
    table = InodeTable()
    node = table.for_inode(5)
    table.remember(node)
    node.openers = 1
    table.forget(node.nodeid, 1)
    assert table.get(node.nodeid) is node
    node.openers = 0
    table.release(node)
    assert table.find_inode(5) is None


def test_publishing_pairs_the_writers_node_with_the_new_inode() -> None:
    table = InodeTable()
    node = table.make_private()
    assert node.nodeid & PRIVATE
    assert node.ino == node.nodeid
    table.pair(node, 9)
    assert table.for_inode(9) is node
    assert node.ino == 9


def test_the_kernel_naming_a_forgotten_node_is_told_to_walk_again() -> None:
    with pytest.raises(OSError, match="Stale"):
        InodeTable().get(12345)


class Dropped:
    """Collects the aliases that no overwrite will come for."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def __call__(self, node: Node) -> None:
        self.nodes.append(node)


def test_i8_announced_overwrites_are_bounded_and_forgotten_in_time() -> None:
    clock, dropped = ManualClock(), Dropped()
    pending = PendingNames(clock, dropped)
    for thread in range(1, 3 * MAX_OVERWRITES):
        assert pending.announce_overwrite(thread, nodeid=2, is_emptying=True)
    place = ChildName(1, b"f")
    assert pending.find_overwrite(1, place) is None
    newest = pending.find_overwrite(3 * MAX_OVERWRITES - 1, place)
    assert newest is not None
    clock.advance(11)
    assert pending.find_overwrite(3 * MAX_OVERWRITES - 1, place) is None


def test_an_open_that_comes_back_without_a_walk_is_served_in_place() -> None:
    pending = PendingNames(ManualClock(), Dropped())
    assert pending.announce_overwrite(5, nodeid=2, is_emptying=True)
    assert not pending.announce_overwrite(5, nodeid=2, is_emptying=True)
    assert not pending.announce_overwrite(0, nodeid=2, is_emptying=True)


def test_a_credit_counts_only_where_another_thread_wrote_the_same_name() -> None:
    pending = PendingNames(ManualClock(), Dropped())
    place = ChildName(1, b"key.tmp")
    alone = writing(place, thread=1)
    pending.add_writer(alone)
    pending.give_credit(alone, LOOKS)
    pending.remove_writer(alone)
    assert pending.credit(place, group=1) is None
    twin = writing(place, thread=2)
    pending.add_writer(twin)
    assert pending.credit(place, group=1) is not None


def test_each_rename_uses_up_one_credit_and_removal_all() -> None:
    pending = PendingNames(ManualClock(), Dropped())
    place = ChildName(1, b"key.tmp")
    first, second = writing(place, thread=1), writing(place, thread=2)
    pending.add_writer(first)
    pending.add_writer(second)
    pending.give_credit(first, LOOKS)
    pending.give_credit(second, LOOKS)
    pending.use_credit(place, first.creator)
    assert pending.credit(place, group=1) is not None
    pending.use_credit(place, second.creator)
    assert pending.credit(place, group=1) is None
    pending.give_credit(second, LOOKS)
    pending.drop_credits(place)
    assert not pending.has_credits(place)


def test_i8_credits_are_bounded_and_expire() -> None:
    clock = ManualClock()
    pending = PendingNames(clock, Dropped())
    for number in range(MAX_CREDITS + 10):
        file = writing(ChildName(1, b"%d" % number), thread=1)
        file.has_twin = True
        pending.give_credit(file, LOOKS)
    assert not pending.has_credits(ChildName(1, b"0"))
    newest = ChildName(1, b"%d" % (MAX_CREDITS + 9))
    assert pending.credit(newest, group=1) is not None
    clock.advance(11)
    assert pending.credit(newest, group=1) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("never", 0), ("90", 90), ("90s", 90), ("2h", 7200), ("7d", 604800)],
)
def test_durations_are_read_with_their_units(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1", "1.5h", "soon", "9" * 11, "\u0663"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_duration(text)


def test_virtual_attributes_become_changes_of_the_entry() -> None:
    assert change_virtual("user.kvfs.ttl", b"1h\0").ttl_s == 3600
    assert change_virtual("user.kvfs.pin", b"SOFT").pin is Pin.SOFT
    assert change_virtual("user.kvfs.priority", b"255").priority == 255
    with pytest.raises(InvalidArgument):
        change_virtual("user.kvfs.priority", b"256")
    with pytest.raises(InvalidArgument):
        change_virtual("user.kvfs.nonsense", b"1")
    with pytest.raises(PermissionError):
        change_virtual("user.kvfs.digest", b"00")
