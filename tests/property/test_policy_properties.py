"""What must hold of every plan, whatever is in the store."""

from __future__ import annotations

from collections import Counter

from hypothesis import example, given
from hypothesis import strategies as st

from kvfs.engine_keys import group_of
from kvfs.model import Pin
from kvfs.policy.eviction import Budget, Reason, plan_removals
from kvfs.policy.expiry import (
    Rule,
    RuleSet,
    TtlClass,
    clamp_deadline_s,
    deadline_s,
    rebased_times,
)
from kvfs.policy.survey import Candidate

NOW = 1_700_000_000
KEYS = [b"m@4@%d@%02x@half.data" % (rank, block) for rank in range(3) for block in range(4)]
SIZES = {b"": 0, b"a": 8192, b"b": 4096}

candidates = st.lists(
    st.builds(
        Candidate,
        inode=st.integers(1, 1 << 40),
        namespace_id=st.integers(1, 2),
        key=st.sampled_from([*KEYS, b"x", b"y/z"]),
        stored_bytes=st.integers(0, 10_000),
        accessed_s=st.integers(NOW - 5000, NOW + 100),
        written_s=st.integers(NOW - 5000, NOW + 100),
        expires_at_s=st.sampled_from([0, 0, NOW - 5, NOW + 5]),
        ttl_s=st.sampled_from([0, 60]),
        priority=st.integers(0, 255),
        pin=st.sampled_from([Pin.NONE, Pin.NONE, Pin.SOFT, Pin.HARD]),
        is_leased=st.booleans(),
    ),
    max_size=40,
    unique_by=lambda candidate: candidate.inode,
)


@given(candidates, st.integers(0, 200_000), st.integers(0, 100_000))
@example([Candidate(1, 1, b"x", 10, NOW - 2, NOW - 2)], 0, 10)
def test_i5_no_plan_names_what_is_pinned_leased_or_just_promised(
    names: list[Candidate], used: int, wanted: int
) -> None:
    budget = Budget(100_000, used, wanted_bytes=wanted)
    made = plan_removals(names, budget, NOW, RuleSet([Rule("keep")]))
    by_inode = {each.inode: each for each in names}
    for removal in made.removals:
        gone = by_inode[removal.inode]
        assert gone.pin != Pin.HARD
        assert not gone.is_leased
        if removal.reason is not Reason.EXPIRED:
            asked_s = min(gone.accessed_s, NOW)  # writing alone promises nothing
            assert asked_s <= NOW - budget.grace_s or asked_s <= gone.written_s


@given(candidates, st.integers(0, 200_000), st.integers(0, 100_000))
def test_a_plan_frees_what_was_asked_or_says_how_much_is_missing(
    names: list[Candidate], used: int, wanted: int
) -> None:
    budget = Budget(100_000, used, wanted_bytes=wanted)
    made = plan_removals(names, budget, NOW, RuleSet([Rule("keep")]))
    asked = wanted
    if used > 0.95 * 100_000:
        asked = max(asked, used - 90_000)
    assert made.freed_bytes + made.short_by >= min(asked, used) - 1 or not names
    assert made.freed_bytes == sum(removal.freed_bytes for removal in made.removals)
    counts = Counter(removal.inode for removal in made.removals)
    assert all(count == 1 for count in counts.values())


@given(
    candidates,
    st.builds(
        TtlClass,
        st.just("default"),
        ttl_s=st.sampled_from([0, 1, 1000]),
        is_sliding=st.booleans(),
        max_age_s=st.sampled_from([0, 1, 2000]),
    ),
)
def test_what_a_rule_lets_expire_is_what_is_past_its_deadline(
    names: list[Candidate], ttl_class: TtlClass
) -> None:
    made = plan_removals(names, Budget(1 << 40, 0), NOW, RuleSet(classes=[ttl_class]))
    assert {removal.inode for removal in made.removals} == {
        each.inode
        for each in names
        if 0 < deadline_of(each, ttl_class) <= NOW and each.pin != Pin.HARD and not each.is_leased
    }


def deadline_of(name: Candidate, ttl_class: TtlClass) -> int:
    if name.ttl_s or name.expires_at_s:
        return clamp_deadline_s(name.expires_at_s, name.ttl_s, NOW)
    return deadline_s(ttl_class, name.written_s, name.accessed_s, NOW)


@given(candidates, st.integers(0, 200_000))
def test_the_shares_of_a_block_leave_together_or_not_at_all(
    names: list[Candidate], used: int
) -> None:
    made = plan_removals(names, Budget(100_000, used), NOW, RuleSet([Rule("keep")]))
    gone = {removal.inode for removal in made.removals}
    expired = {removal.inode for removal in made.removals if removal.reason is Reason.EXPIRED}
    groups: dict[tuple[int, bytes], list[int]] = {}
    for each in names:
        if each.inode not in expired:
            groups.setdefault((each.namespace_id, group_of(each.key)), []).append(each.inode)
    for members in groups.values():
        assert len(gone.intersection(members)) in (0, len(members))


@given(
    st.integers(NOW - 9_000_000, NOW + 9_000_000),
    st.sampled_from([0, 60, 1800, 604_800]),
    st.integers(-40 * 86_400, 40 * 86_400),
)
def test_no_jump_makes_a_row_immortal_or_sends_it_into_the_future(
    accessed_s: int, ttl_s: int, jump_s: int
) -> None:
    expires_at_s = accessed_s + ttl_s if ttl_s else 0
    accessed, expires = rebased_times(accessed_s, expires_at_s, ttl_s, jump_s, NOW)
    assert accessed <= NOW
    assert expires <= NOW + ttl_s
    if jump_s > 0 and accessed_s + jump_s <= NOW:
        assert expires - accessed == expires_at_s - accessed_s or not ttl_s
