"""Which names should leave, and why: expiry, quotas, then space.

Owns the choice; never touches files, the index or the clock (callers pass `now_s`). A plan is
data: the executor obeys it and checks each name again in its transaction.
Order: what has expired goes first. Then a namespace over its quota gives up its own, then all
namespaces together come down to the low watermark. Within each: soft-pinned last, lower priority
first, least recently used first (ADR 0017 says what else counts), and among equals the one written
last: a prefix is written front to back and read as a whole, and its tail is worth nothing without
its front.
Holds: a hard-pinned or leased name, and one asked for within the grace period, is never named
(I5); all shares of a block go or stay together; freed bytes reach what was asked, or the plan says
`short_by`.
Cost: one pass over the candidates, and O(n log n) over their groups only if space is short;
1,000,000 entries within the budget of bench/cases/eviction.py.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from kvfs.engine_keys import MAX_FOLDERS, Shape, identify
from kvfs.errors import InvalidArgument
from kvfs.model import Pin
from kvfs.policy.expiry import (
    DEFAULT_PRIORITY,
    Limits,
    NamespaceRules,
    RuleSet,
    clamp_deadline_s,
    deadline_s,
)
from kvfs.policy.survey import (
    PRIORITY_SHIFT,
    STATE_SHIFT,
    Candidate,
    CandidateRow,
    Columns,
    Form,
    State,
)

HOT_SHARE = 4
"""A compressed block that is opened often, lastly within a quarter of the time after which it would
be compressed, is hot; the gap keeps a block from being recoded back and forth."""
PAGE_NAMES = 4096
"""Names that are surveyed at once: their columns are lists for a moment, which fill faster."""
MAX_NEXT = 1000
"""Blocks that `next_inodes` looks ahead."""
PROVEN_USE_S = 30
"""A name in use counts as used a quarter of the time later for which it has been in use, up to this
much, and an eighth without limit: a prefix that was asked for twice is asked for again more often
than one that was not, and what is asked for all day is a system prompt (bench eviction)."""
TAIL_S = 300
"""The last of the blocks that were written in one second, never asked for since, ages twice as fast
for this long: what was written of one prompt ends there, and another prompt parts from it there."""
# Plain integers: an enum's attribute costs a look-up each, a million times over.
_FREE, _SOFT, _GRACE, _LEASED, _HARD = (int(state) for state in State)


class Reason(enum.Enum):
    """Why a name goes or stays."""

    EXPIRED = "expired"
    QUOTA_BYTES = "namespace over its byte quota"
    QUOTA_OBJECTS = "namespace over its object quota"
    CAPACITY = "store over its high watermark"
    PINNED = "pinned"
    LEASED = "leased"
    GRACE = "asked for moments ago"
    ROOM = "there is room"


@dataclass(frozen=True, slots=True)
class Quota:
    """One namespace's limits and what it uses now; a limit of 0 is none."""

    limit_bytes: int = 0
    limit_objects: int = 0
    used_bytes: int = 0
    used_objects: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """How much there is, how much is used, and when to start and stop."""

    capacity_bytes: int
    used_bytes: int
    """Resident and reserved."""
    high_ratio: float = 0.95
    low_ratio: float = 0.90
    wanted_bytes: int = 0
    """Free at least this much, whatever the watermarks say: a writer is waiting."""
    grace_s: int = 5
    """How long a HEAD, stat or read keeps a name safe: engines ask first and read then. Writing
    promises nothing, so a store that is filled faster than that can still make room. A minute
    instead of 5 s costs 4 % of the hits on a cache that turns over as fast (bench eviction)."""
    quotas: Mapping[int, Quota] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.low_ratio <= self.high_ratio <= 1:
            raise InvalidArgument("watermarks must satisfy 0 < low <= high <= 1")


class Removal(NamedTuple):
    """One name to remove."""

    inode: int
    namespace_id: int
    reason: Reason
    freed_bytes: int
    """0 where the block has other names now."""
    group: int
    """Equal numbers belong to one block: remove them in one transaction where they fit."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why one name goes or stays."""

    reason: Reason
    goes: bool
    deadline_s: int = 0
    """When it expires if nobody asks for it; 0 = never."""
    bytes_before: int | None = None
    """How many bytes would be evicted before it; None if it is not evictable."""
    group_size: int = 1


@dataclass(slots=True)
class Plan:
    """What to remove, in order, with reasons; and what was left."""

    now_s: int
    removals: list[Removal]
    freed_bytes: int
    short_by: int
    """Bytes that were asked for and that nothing evictable covers."""
    examined: int
    groups: int
    written_last_hour_bytes: int
    """Of what is still there: how fast the store fills."""
    cold: Sequence[int]
    """Inodes whose raw blocks have been idle for longer than their class says: compress them."""
    hot: Sequence[int]
    """Inodes whose compressed blocks are in use again: make them raw."""
    kept_bytes: Mapping[Reason, int]
    """Bytes that may not be evicted now, by what keeps them."""

    def count(self, reason: Reason) -> int:
        """Return how many names go for `reason`."""
        return sum(removal.reason is reason for removal in self.removals)


_KEEPERS = {
    State.GRACE: Reason.GRACE,
    State.LEASED: Reason.LEASED,
    State.HARD: Reason.PINNED,
}


def plan_removals(
    candidates: Iterable[CandidateRow],
    budget: Budget,
    now_s: int,
    rules: RuleSet | None = None,
    namespaces: Mapping[int, bytes] | None = None,
) -> Plan:
    """Return what should leave now. `namespaces` names the ids, for rules that ask for a name."""
    planner = Planner(budget, now_s, rules, namespaces)
    planner.survey(candidates)
    return planner.plan()


class Planner:
    """Surveys candidates once, then plans and explains. Not thread-safe; used once."""

    def __init__(
        self,
        budget: Budget,
        now_s: int,
        rules: RuleSet | None = None,
        namespaces: Mapping[int, bytes] | None = None,
        often_opened: Set[int] = frozenset(),
    ) -> None:
        """often_opened: inodes whose compressed blocks were opened again and again lately."""
        self._often_opened = often_opened
        self._budget, self._now_s = budget, now_s
        self._rules, self._names = rules or RuleSet(), namespaces or {}
        self._rules_of: dict[int, NamespaceRules] = {}
        self._limits: dict[int, dict[Shape, Limits]] = {}
        """By namespace; empty where the rules ask for more than a name's shape."""
        self._columns = Columns()
        self._expired: list[Removal] = []
        self._expired_bytes = 0
        self._cold, self._hot = array("Q"), array("Q")
        self._examined = 0
        self._recent_bytes = 0

    def survey(self, candidates: Iterable[CandidateRow]) -> None:
        """Take in every live name; keeps columns, not the candidates."""
        rest = iter(candidates)
        while page := list(islice(rest, PAGE_NAMES)):
            self._survey(page)
        self._columns.age_tails(self._now_s, TAIL_S)
        self._examined = len(self._columns.inodes) + len(self._expired)

    def _survey(self, page: list[CandidateRow]) -> None:
        often, hard = self._often_opened, int(Pin.HARD)
        now_s, grace_from_s = self._now_s, self._now_s - self._budget.grace_s
        hour_ago_s = now_s - 3600
        raw, default_compress_after_s = int(Form.RAW), self._rules.default.compress_after_s
        limits_of_namespace, limits_by_shape = -1, dict[Shape, Limits]()
        columns: tuple[list[int], ...] = [], [], [], [], []
        identities, inodes, namespaces, sizes, ranks = columns
        shared: list[tuple[int, Candidate]] = []
        for row in page:
            # Unpacked once, and no call that can be spared: this loop runs a million times.
            (
                inode, namespace_id, key, size, accessed_s, written_s, expires_at_s, ttl_s,
                priority, pin, _, block_refs, is_leased, form, attributes,
            ) = row  # fmt: skip
            shape, group = identify(key)
            if ttl_s or expires_at_s:
                is_over = 0 < clamp_deadline_s(expires_at_s, ttl_s, now_s) <= now_s
                compress_after_s = default_compress_after_s
            else:
                if namespace_id != limits_of_namespace:
                    limits_of_namespace = namespace_id
                    limits_by_shape = self._limits.setdefault(namespace_id, {})
                limits = limits_by_shape.get(shape)
                if limits is None:
                    limits = self._limits_of(namespace_id, key, attributes, shape)
                ttl_s, max_age_s, is_sliding, class_priority, compress_after_s = limits
                since_s = accessed_s if is_sliding and accessed_s > written_s else written_s
                is_over = since_s + ttl_s <= now_s or written_s + max_age_s <= now_s
                if priority == DEFAULT_PRIORITY:
                    priority = class_priority
            if is_over and pin != hard and not is_leased:
                self._expire(Candidate(*row))
                continue
            if accessed_s > now_s:
                accessed_s = now_s
            if form and compress_after_s:
                idle_s = now_s - accessed_s
                if form == raw and idle_s > compress_after_s:
                    self._cold.append(inode)
                elif form != raw and inode in often and idle_s * HOT_SHARE < compress_after_s:
                    self._hot.append(inode)
            state, recency = _FREE, accessed_s << 1
            if accessed_s > written_s:
                if accessed_s > grace_from_s:
                    state = _GRACE  # asked for since it was written: somebody counts on it
                used_s = accessed_s - written_s
                credit_s = used_s >> 2 if used_s < 4 * PROVEN_USE_S else PROVEN_USE_S
                recency += (max(credit_s, used_s >> 3) << 1) + 1
            if pin or is_leased:
                state = _HARD if pin == hard else _LEASED if is_leased else max(state, _SOFT)
            if written_s > hour_ago_s:
                self._recent_bytes += size
            identity = hash((namespace_id, group))
            if block_refs > 1:
                shared.append((identity, Candidate(*row)))
                size = 0
            identities.append(identity)
            inodes.append(inode)
            namespaces.append(namespace_id)
            sizes.append(size)
            ranks.append(state << STATE_SHIFT | priority << PRIORITY_SHIFT | recency)
        self._columns.add(*columns)
        for identity, candidate in shared:
            self._columns.share(identity, candidate)

    def plan(self) -> Plan:
        """Return the plan over all that was surveyed."""
        removals, freed = list(self._expired), self._expired_bytes
        wants = self._wants(freed)
        if wants.is_any:
            chosen, evicted = self._choose(wants)
            removals.extend(self._removals_of(chosen))
            freed += evicted
        return Plan(
            now_s=self._now_s,
            removals=removals,
            freed_bytes=freed,
            short_by=max(0, wants.total_bytes),
            examined=self._examined,
            groups=self._columns.group_count,
            written_last_hour_bytes=self._recent_bytes,
            cold=self._cold,
            hot=self._hot,
            kept_bytes={
                _KEEPERS[state]: size for state, size in self._columns.kept_bytes().items()
            },
        )

    def explain(self, candidate: Candidate) -> Verdict:
        """Say why one surveyed name goes or stays. Does not change what plan() returns."""
        deadline = self._deadline_s(candidate)
        if any(removal.inode == candidate.inode for removal in self._expired):
            return Verdict(Reason.EXPIRED, goes=True, deadline_s=deadline)
        columns = self._columns
        number = columns.group_number(candidate)
        size, state = columns.counts[number], columns.state(number)
        if state in _KEEPERS:
            return Verdict(_KEEPERS[state], False, deadline, None, size)
        before = sum(columns.bytes[each] for each in _until(columns.order, number))
        reason = self._dry_choice().get(number)
        return Verdict(reason or Reason.ROOM, reason is not None, deadline, before, size)

    def next_inodes(self) -> Iterator[int]:
        """Yield what would be evicted next, first to go first, were space short."""
        columns = self._columns
        shares: dict[int, list[int]] = {number: [] for number in columns.order[:MAX_NEXT]}
        for entry, number in enumerate(columns.group_of_entry):
            if number in shares:
                shares[number].append(columns.inodes[entry])
        for inodes in shares.values():
            yield from inodes

    def _dry_choice(self) -> dict[int, Reason]:
        names = dict(self._columns.remaining_names)
        chosen, _ = self._choose(self._wants(self._expired_bytes))
        self._columns.remaining_names = names
        return dict(chosen)

    def _deadline_s(self, candidate: Candidate) -> int:
        """Return when a name expires, or 0: the writer's own word, or else the rules'."""
        expires_at_s, ttl_s = candidate.expires_at_s, candidate.ttl_s
        if ttl_s or expires_at_s:
            return clamp_deadline_s(expires_at_s, ttl_s, self._now_s)
        rules = self._rules_for(candidate.namespace_id)
        ttl_class = rules.classify(candidate.key, candidate.attributes)
        return deadline_s(ttl_class, candidate.written_s, candidate.accessed_s, self._now_s)

    def _limits_of(
        self,
        namespace_id: int,
        key: bytes,
        attributes: Mapping[str, bytes] | None,
        shape: Shape,
    ) -> Limits:
        """Return what the rules say, and keep it where it holds for every name of that shape."""
        rules = self._rules_for(namespace_id)
        limits = rules.classify(key, attributes, shape).limits
        known = self._limits[namespace_id]
        if rules.is_by_folder and len(known) < MAX_FOLDERS:
            known[shape] = limits
        return limits

    def _rules_for(self, namespace_id: int) -> NamespaceRules:
        rules = self._rules_of.get(namespace_id)
        if rules is None:
            rules = self._rules.for_namespace(self._names.get(namespace_id, b""))
            self._rules_of[namespace_id] = rules
        return rules

    def _expire(self, candidate: Candidate) -> None:
        freed = candidate.stored_bytes
        if candidate.block_refs > 1 and not self._columns.drop_name(candidate):
            freed = 0
        self._expired_bytes += freed
        self._expired.append(
            Removal(candidate.inode, candidate.namespace_id, Reason.EXPIRED, freed, -1)
        )

    def _wants(self, expired_bytes: int) -> _Wants:
        budget = self._budget
        used = budget.used_bytes - expired_bytes
        total = budget.wanted_bytes - expired_bytes
        if used > budget.high_ratio * budget.capacity_bytes:
            total = max(total, used - int(budget.low_ratio * budget.capacity_bytes))
        wants = _Wants(total_bytes=total)
        gone = self._gone_by_namespace()
        for namespace_id, quota in budget.quotas.items():
            gone_bytes, gone_objects = gone.get(namespace_id, (0, 0))
            for reason, limit, used in (
                (Reason.QUOTA_BYTES, quota.limit_bytes, quota.used_bytes - gone_bytes),
                (Reason.QUOTA_OBJECTS, quota.limit_objects, quota.used_objects - gone_objects),
            ):
                if limit and used > budget.high_ratio * limit:
                    excess = used - int(budget.low_ratio * limit)
                    wants.quotas[namespace_id, reason] = excess
        return wants

    def _gone_by_namespace(self) -> dict[int, tuple[int, int]]:
        gone: dict[int, tuple[int, int]] = {}
        if self._budget.quotas:
            for removal in self._expired:
                size, count = gone.get(removal.namespace_id, (0, 0))
                gone[removal.namespace_id] = size + removal.freed_bytes, count + 1
        return gone

    def _choose(self, wants: _Wants) -> tuple[list[tuple[int, Reason]], int]:
        """Walk the groups coldest first: quotas, then space. Uses up `wants`."""
        columns, order = self._columns, self._columns.order
        chosen: list[tuple[int, Reason]] = []
        taken: set[int] = set()
        freed = 0
        for number in order if wants.quotas else ():
            reason = wants.quota_reason(columns.namespaces[number])
            if reason is not None:
                size = columns.take(number)
                wants.note(columns.namespaces[number], size, columns.counts[number])
                chosen.append((number, reason))
                taken.add(number)
                freed += size
        for number in order:
            if wants.total_bytes <= 0:
                break
            if number not in taken:
                size = columns.take(number)
                wants.total_bytes -= size
                chosen.append((number, Reason.CAPACITY))
                freed += size
        return chosen, freed

    def _removals_of(self, chosen: list[tuple[int, Reason]]) -> Iterator[Removal]:
        """Yield the names of the chosen groups, groups in the order of choice."""
        columns = self._columns
        position = {number: place for place, (number, _) in enumerate(chosen)}
        entries = [
            (position[number], entry)
            for entry, number in enumerate(columns.group_of_entry)
            if number in position
        ]
        for place, entry in sorted(entries):
            number, reason = chosen[place]
            namespace_id = columns.namespaces[number]
            yield Removal(columns.inodes[entry], namespace_id, reason, columns.sizes[entry], number)


@dataclass(slots=True)
class _Wants:
    """What is still to be freed; used up while groups are chosen."""

    total_bytes: int
    quotas: dict[tuple[int, Reason], int] = field(default_factory=dict)

    @property
    def is_any(self) -> bool:
        return self.total_bytes > 0 or bool(self.quotas)

    def quota_reason(self, namespace_id: int) -> Reason | None:
        for reason in (Reason.QUOTA_BYTES, Reason.QUOTA_OBJECTS):
            if self.quotas.get((namespace_id, reason), 0) > 0:
                return reason
        return None

    def note(self, namespace_id: int, size: int, count: int) -> None:
        self.total_bytes -= size
        for reason, amount in ((Reason.QUOTA_BYTES, size), (Reason.QUOTA_OBJECTS, count)):
            if (namespace_id, reason) in self.quotas:
                self.quotas[namespace_id, reason] -= amount


def _until(order: list[int], number: int) -> Iterator[int]:
    for each in order:
        if each == number:
            return
        yield each
