"""What a plan looks at: every live name, first as it comes, then as columns.

Owns the candidate and the columns that a million of them become; decides nothing (eviction.py).
Holds: one group per block, whatever the number of its shares; a group ranks as its best protected
share does, for one share in use means that the block is.
Cost: 160 bytes a group and 20 a name.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Mapping
from functools import cached_property
from itertools import chain, islice
from typing import NamedTuple

from kvfs.engine_keys import group_of

_INODE_LIMIT = 1 << 64
STATE_SHIFT, PRIORITY_SHIFT = 48, 40
_RECENCY_MASK = (1 << PRIORITY_SHIFT) - 1


class Candidate(NamedTuple):
    """One name as the plan sees it: a CandidateRow with names for its fields."""

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


CandidateRow = tuple[
    int, int, bytes, int, int, int, int, int, int, int, bytes, int, bool, int,
    Mapping[str, bytes] | None,
]  # fmt: skip
"""A Candidate's fields as a bare tuple: a walk makes a million, in a quarter less time."""


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
    """All candidates that stay unless space is short. Filled page by page, then read."""

    def __init__(self) -> None:
        self.inodes, self.sizes, self.group_of_entry = array("Q"), array("Q"), array("L")
        self.ranks = array("Q")
        """State, priority (8 bits), last use (39 bits), whether ever asked for (1 bit):
        the order of leaving, as a number."""
        self.newest, self.namespaces = array("Q"), array("L")
        # A 64-bit hash in place of the group's name. Two names among a million meet with odds of
        # 3e-8, and then leave together: no harm.
        self._index: dict[int, int] = {}
        self._shared: dict[int, list[tuple[int, bytes]]] = {}
        self.remaining_names: dict[bytes, int] = {}

    @property
    def group_count(self) -> int:
        return len(self.ranks)

    def add(
        self,
        identities: list[int],
        inodes: list[int],
        namespaces: list[int],
        sizes: list[int],
        ranks: list[int],
    ) -> None:
        """Take in a page of names, column by column. identities: what stands for their groups."""
        index, before = self._index, len(self.ranks)
        number_of = index.setdefault
        numbers = [number_of(identity, len(index)) for identity in identities]
        self.inodes.fromlist(inodes)
        self.sizes.fromlist(sizes)
        self.group_of_entry.fromlist(numbers)
        if len(index) - before == len(numbers):
            # Each is a group of its own, as nearly all are: no loop at all.
            self.ranks.fromlist(ranks)
            self.newest.fromlist(inodes)
            self.namespaces.fromlist(namespaces)
            return
        for number, inode, namespace_id, rank in zip(
            numbers, inodes, namespaces, ranks, strict=True
        ):
            if number == len(self.ranks):
                self.ranks.append(rank)
                self.newest.append(inode)
                self.namespaces.append(namespace_id)
                continue
            if self.ranks[number] < rank:
                self.ranks[number] = rank
            if self.newest[number] < inode:
                self.newest[number] = inode

    def age_tails(self, now_s: int, limit_s: int) -> None:
        """Let a block that ends a run and was never asked for age twice as fast, up to `limit_s`.

        A run: blocks written one after another in one second. Call once, when all names are in.
        """
        ranks = self.ranks
        following = chain(islice(ranks, 2, None), (0,))
        triples = zip(ranks, islice(ranks, 1, None), following, strict=False)
        tails = [
            (number, rank)
            for number, (before, rank, after) in enumerate(triples, start=1)
            if before == rank != after and not rank & 1
        ]
        for number, rank in tails:
            accessed_s = (rank & _RECENCY_MASK) >> 1
            ranks[number] = rank - (min(now_s - accessed_s, accessed_s, limit_s) << 1)

    def share(self, identity: int, candidate: Candidate) -> None:
        """Note, after adding it with size 0, a name whose block has others."""
        number = self._index[identity]
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

    def kept_bytes(self) -> dict[State, int]:
        """Return the bytes of the groups in each state that never goes."""
        least = State.GRACE << STATE_SHIFT
        total = [0] * len(State)
        for number in [number for number, rank in enumerate(self.ranks) if rank >= least]:
            total[self.ranks[number] >> STATE_SHIFT] += self.bytes[number]
        return {state: total[state] for state in State if state > State.SOFT}
