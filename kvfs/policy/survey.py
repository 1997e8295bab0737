"""What a plan looks at: every live name, first as it comes, then as columns.

Owns the candidate and the columns that a million of them become; decides nothing (eviction.py).
Holds: one group per block, whatever the number of its shares; a group ranks as its best protected
share does, for one share in use means that the block is.
Cost: 160 bytes a group and 20 a name; about 1.5 us a name.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple

from kvfs.engine_keys import group_of

_INODE_LIMIT = 1 << 64
STATE_SHIFT, PRIORITY_SHIFT = 48, 40


class Candidate(NamedTuple):
    """One name as the plan sees it. A NamedTuple: a million are made, at a fifth of the cost."""

    inode: int
    namespace_id: int
    key: bytes
    """Path below the namespace."""
    stored_bytes: int
    """What the disk gets back when the block's last name goes."""
    accessed_s: int
    written_s: int
    expires_at_s: int = 0
    ttl_s: int = 0
    """0 with expires_at_s 0: the writer said nothing, and the rules decide."""
    priority: int = 100
    pin: int = 0
    block: bytes = b""
    """The digest where several names share the block, else b""."""
    block_refs: int = 1
    is_leased: bool = False
    form: int = 0
    """How the block is kept: a Form."""
    attributes: Mapping[str, bytes] | None = None


class Form(enum.IntEnum):
    """How a candidate's block is kept, as far as recoding cares."""

    SETTLED = 0
    """Raw, and not worth compressing (too small, tried before, no block at all)."""
    RAW = 1
    COMPRESSED = 2


class State(enum.IntEnum):
    """How evictable a name is; what is above SOFT never goes."""

    FREE = 0
    SOFT = 1
    GRACE = 2
    LEASED = 3
    HARD = 4


class Columns:
    """All candidates that stay unless space is short. Filled by an `adder`, then read."""

    def __init__(self) -> None:
        self.inodes, self.sizes, self.group_of_entry = array("Q"), array("Q"), array("L")
        self.ranks = array("Q")
        """State, priority (8 bits) and last access (40 bits): the order of leaving, as a number."""
        self.newest, self.namespaces = array("Q"), array("L")
        # A 64-bit hash in place of the group's name. Two names among a million meet with odds of
        # 3e-8, and then leave together: no harm.
        self._index: dict[int, int] = {}
        self._shared: dict[int, list[tuple[int, bytes]]] = {}
        self.remaining_names: dict[bytes, int] = {}

    @property
    def group_count(self) -> int:
        return len(self.ranks)

    def adder(self) -> Callable[[int, int, int, int, int], None]:
        """Return the function that takes in one name: (what stands for its group, inode, namespace,
        size, rank). Looking its columns up once instead of a million times is a third of it."""
        ranks, newest, number_of = self.ranks, self.newest, self._index.setdefault
        note_inode, note_size = self.inodes.append, self.sizes.append
        note_group, note_namespace = self.group_of_entry.append, self.namespaces.append
        note_rank, note_newest = ranks.append, newest.append

        def add(identity: int, inode: int, namespace_id: int, size: int, rank: int) -> None:
            count = len(ranks)
            number = number_of(identity, count)
            note_inode(inode)
            note_size(size)
            note_group(number)
            if number == count:
                note_rank(rank)
                note_newest(inode)
                note_namespace(namespace_id)
                return
            if ranks[number] < rank:
                ranks[number] = rank
            if newest[number] < inode:
                newest[number] = inode

        return add

    def share(self, identity: int, candidate: Candidate) -> None:
        """Note, before adding it with size 0, a name whose block has others."""
        number = self._index.get(identity, len(self.ranks))
        self._shared.setdefault(number, []).append((candidate.stored_bytes, candidate.block))
        self.remaining_names.setdefault(candidate.block, candidate.block_refs)

    def drop_name(self, candidate: Candidate) -> bool:
        """Note that one name of a shared block goes; return whether it was the last."""
        self.remaining_names.setdefault(candidate.block, candidate.block_refs)
        self.remaining_names[candidate.block] -= 1
        return self.remaining_names[candidate.block] == 0

    def group_number(self, candidate: Candidate) -> int:
        """Return the group of a candidate that was added."""
        return self._index[hash((candidate.namespace_id, group_of(candidate.key)))]

    def state(self, number: int) -> State:
        """Return how evictable a group is."""
        return State(self.ranks[number] >> STATE_SHIFT)

    @cached_property
    def bytes(self) -> array[int]:
        """Bytes a group, without shared blocks. Call when all names are in."""
        total = array("Q", bytes(8 * self.group_count))
        for number, size in zip(self.group_of_entry, self.sizes, strict=True):
            total[number] += size
        return total

    @cached_property
    def counts(self) -> array[int]:
        """Names a group. Call when all names are in."""
        total = array("L", bytes(8 * self.group_count))
        for number in self.group_of_entry:
            total[number] += 1
        return total

    @cached_property
    def order(self) -> list[int]:
        """The evictable groups, first to go first; among equals the one written last."""
        ranks, newest = self.ranks, self.newest
        evictable = [
            number for number, rank in enumerate(ranks) if rank >> STATE_SHIFT <= State.SOFT
        ]
        evictable.sort(key=lambda number: ranks[number] << 64 | _INODE_LIMIT - newest[number])
        return evictable

    def take(self, number: int) -> int:
        """Return the bytes that the group's leaving frees, and note its names as gone."""
        freed = self.bytes[number]
        for size, block in self._shared.get(number, ()):
            self.remaining_names[block] -= 1
            freed += size if self.remaining_names[block] == 0 else 0
        return freed

    def bytes_in(self, state: State) -> int:
        """Return the bytes of all groups in one state."""
        pairs = zip(self.ranks, self.bytes, strict=True)
        return sum(size for rank, size in pairs if rank >> STATE_SHIFT == state)
