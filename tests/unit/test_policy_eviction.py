"""Plans: who leaves, in which order, and who never does."""

from __future__ import annotations

import pytest

from kvfs.engine_keys import Engine
from kvfs.errors import InvalidArgument
from kvfs.model import Pin
from kvfs.policy.eviction import (
    PAGE_NAMES,
    TAIL_S,
    Budget,
    Plan,
    Planner,
    Quota,
    Reason,
    plan_removals,
)
from kvfs.policy.expiry import DAY, Rule, RuleSet, deadline_s
from kvfs.policy.survey import Candidate

NOW = 1_700_000_000
OLD = NOW - 10_000
NEVER = RuleSet([Rule("keep")])


def name(
    inode: int, *, age: int = 1000, key: bytes = b"", size: int = 10, **more: object
) -> Candidate:
    key = key or b"name-%d" % inode
    return Candidate(inode, 1, key, size, NOW - age, NOW - 9999)._replace(**more)  # type: ignore[arg-type]


def plan(candidates: list[Candidate], *, used: int, **more: object) -> Plan:
    budget = Budget(capacity_bytes=100, used_bytes=used, low_ratio=0.8, high_ratio=0.9, **more)  # type: ignore[arg-type]
    return plan_removals(candidates, budget, NOW, NEVER)


def inodes(made: Plan) -> list[int]:
    return [removal.inode for removal in made.removals]


def test_below_the_high_watermark_nothing_leaves() -> None:
    made = plan([name(1), name(2)], used=90)
    assert (inodes(made), made.freed_bytes, made.short_by) == ([], 0, 0)


def test_above_it_the_coldest_leave_down_to_the_low_watermark() -> None:
    names = [name(inode, age=1000 - inode) for inode in range(1, 10)]
    made = plan(names, used=95)
    assert inodes(made) == [1, 2]
    assert made.freed_bytes == 20
    assert {removal.reason for removal in made.removals} == {Reason.CAPACITY}


def test_lower_priority_leaves_before_colder() -> None:
    names = [name(1, age=9000), name(2, age=100, priority=10), name(3, age=5000)]
    assert inodes(plan(names, used=96)) == [2, 1]


def test_among_names_of_one_second_the_last_written_leaves_first() -> None:
    names = [name(inode, age=500) for inode in (1, 2, 3)]
    assert inodes(plan(names, used=91)) == [3, 2]


def unasked(inode: int, age: int, key: bytes = b"") -> Candidate:
    return name(inode, age=age, key=key, written_s=NOW - age)


def test_the_last_of_what_was_written_in_one_second_ages_twice_as_fast() -> None:
    names = [unasked(1, 150), unasked(2, 100), unasked(3, 100), unasked(4, 100), unasked(5, 40)]
    assert inodes(plan(names, used=120)) == [4, 1, 3, 2]


def test_a_tail_ages_faster_for_five_minutes_and_no_longer() -> None:
    warmer, colder = unasked(1, 1000 + TAIL_S - 1), unasked(2, 1000 + TAIL_S + 1)
    names = [warmer, colder, unasked(3, 1000), unasked(4, 1000)]
    assert inodes(plan(names, used=110)) == [2, 4, 1]


def test_a_tail_that_was_asked_for_and_a_block_written_alone_age_as_any() -> None:
    asked = name(3, age=90, written_s=NOW - 91)
    names = [unasked(1, 100), unasked(2, 120), unasked(4, 91), asked, unasked(5, 80)]
    assert inodes(plan(names, used=130)) == [2, 1, 4, 3, 5]


def test_a_tail_is_a_whole_block_whatever_the_number_of_its_shares() -> None:
    def share(inode: int, block: int, half: bytes) -> Candidate:
        return unasked(inode, 100, b"%064x_m_0_1_%s.bin" % (block, half))

    written = [(1, 7, b"k"), (2, 7, b"v"), (3, 8, b"k"), (4, 8, b"v")]
    names = [share(*each) for each in written] + [unasked(5, 150)]
    assert inodes(plan(names, used=110)) == [3, 4, 5]


def test_what_is_in_use_for_long_outlives_what_was_used_once() -> None:
    def used(inode: int, age: int, for_s: int) -> Candidate:
        return name(inode, age=age, written_s=NOW - age - for_s)

    names = [used(1, 100, 40), used(2, 95, 0), used(3, 500, 8 * 460), used(4, 129, 8 * 30)]
    assert inodes(plan(names, used=120)) == [4, 2, 1, 3]


def test_i5_pinned_leased_and_just_promised_names_stay_however_short_space_is() -> None:
    names = [
        name(1, pin=Pin.HARD),
        name(2, is_leased=True),
        name(3, age=3),
        name(4, age=2000, pin=Pin.HARD, priority=0),
    ]
    made = plan(names, used=100)
    assert inodes(made) == []
    assert made.short_by == 20
    assert made.kept_bytes[Reason.PINNED] == 20
    assert made.kept_bytes[Reason.LEASED] == 10
    assert made.kept_bytes[Reason.GRACE] == 10


def test_soft_pins_leave_last() -> None:
    names = [name(1, age=9000, pin=Pin.SOFT, priority=0), name(2, age=100), name(3, age=200)]
    assert inodes(plan(names, used=100)) == [3, 2]
    assert inodes(plan(names, used=105)) == [3, 2, 1]


def test_all_shares_of_a_block_leave_together_and_one_warm_share_keeps_all() -> None:
    ranks = [name(rank + 1, age=5000, key=b"m@4@%d@5c7b@half.data" % rank) for rank in range(4)]
    single = name(9, age=4000)
    made = plan([*ranks, single], used=91)
    assert sorted(inodes(made)) == [1, 2, 3, 4]
    assert len({removal.group for removal in made.removals}) == 1
    warm = ranks[2]._replace(accessed_s=NOW - 100)
    assert inodes(plan([ranks[0], ranks[1], warm, ranks[3], single], used=89, wanted_bytes=5)) == [
        9
    ]
    held = ranks[2]._replace(is_leased=True)
    assert inodes(plan([ranks[0], held, single], used=89, wanted_bytes=5)) == [9]


def test_shares_that_are_far_apart_in_a_walk_are_one_group_all_the_same() -> None:
    def share(inode: int, age: int) -> Candidate:
        return name(inode, age=age, key=b"m@4@%d@5c7b@half" % inode)

    between = [name(inode, age=5000) for inode in range(10, 10 + 2 * PAGE_NAMES)]
    cold = plan([share(1, 9000), *between, share(2, 8000)], used=89, wanted_bytes=15)
    assert inodes(cold) == [1, 2]
    warm = plan([share(1, 9000), *between, share(2, 100)], used=89, wanted_bytes=15)
    assert inodes(warm) == [between[-1].inode, between[-2].inode]
    assert (warm.examined, warm.groups) == (len(between) + 2, len(between) + 1)


def test_equal_names_in_two_namespaces_are_two_groups() -> None:
    one, two = name(1, key=b"x_k"), name(2, key=b"x_k", namespace_id=2, age=1)
    assert inodes(plan([one, two], used=85, wanted_bytes=1)) == [1]


def test_expired_names_leave_first_and_count_towards_what_is_wanted() -> None:
    names = [name(1, age=9000), name(2, expires_at_s=NOW - 1, ttl_s=60), name(3, expires_at_s=NOW)]
    made = plan(names, used=95)
    assert [(each.inode, each.reason) for each in made.removals] == [
        (2, Reason.EXPIRED),
        (3, Reason.EXPIRED),
    ]
    assert inodes(plan(names, used=110)) == [2, 3]
    assert inodes(plan(names, used=115)) == [2, 3, 1]


def test_expired_names_leave_even_when_there_is_room_unless_pinned_or_leased() -> None:
    expired = name(1, expires_at_s=NOW - 1)
    names = [
        expired,
        expired._replace(inode=2, pin=Pin.HARD),
        expired._replace(inode=3, is_leased=True),
    ]
    assert inodes(plan(names, used=10)) == [1]


def test_rules_give_lifetime_and_priority_where_the_writer_gave_none() -> None:
    rules = RuleSet([Rule("session", path=b"chat/*"), Rule("keep", namespace=b"prod")])
    names = [
        name(1, key=b"chat/a", age=3600),
        name(2, key=b"chat/b", age=60),
        name(3, key=b"chat/c", age=3600, expires_at_s=NOW + 5, ttl_s=9999),
        name(4, key=b"other", age=99_999_999),
    ]
    made = plan_removals(names, Budget(1000, 0), NOW, rules, {1: b"prod"})
    assert inodes(made) == [1]


def test_a_namespace_over_its_quota_gives_up_its_own_first() -> None:
    names = [
        name(1, age=9000, namespace_id=2),
        name(2, age=500),
        name(3, age=400),
        name(4, age=300),
    ]
    made = plan(
        names, used=50, quotas={1: Quota(limit_bytes=25, used_bytes=30), 2: Quota(100, 0, 10)}
    )
    assert [(each.inode, each.reason) for each in made.removals] == [(2, Reason.QUOTA_BYTES)]
    by_count = plan(names, used=50, quotas={1: Quota(limit_objects=3, used_objects=3)})
    assert [(each.inode, each.reason) for each in by_count.removals] == [(2, Reason.QUOTA_OBJECTS)]


def test_what_a_quota_freed_is_not_freed_again_for_capacity() -> None:
    names = [name(inode, age=1000 - inode, size=20) for inode in range(1, 5)]
    made = plan(names, used=95, quotas={1: Quota(limit_bytes=70, used_bytes=80)})
    assert inodes(made) == [1, 2]
    assert made.removals[0].reason is Reason.QUOTA_BYTES


def test_a_block_with_several_names_frees_its_bytes_with_the_last_one() -> None:
    names = [name(1, age=900), name(2, age=800), name(3, age=700)]
    names[:2] = [each._replace(block=b"d" * 32, block_refs=2) for each in names[:2]]
    made = plan(names, used=85, wanted_bytes=10)
    assert (inodes(made), made.freed_bytes) == ([1, 2], 10)
    half = plan([names[0], names[2]], used=85, wanted_bytes=10)
    assert (inodes(half), half.freed_bytes) == ([1, 3], 10)
    expired = [each._replace(expires_at_s=NOW - 1) for each in names[:2]]
    assert plan(expired, used=10).freed_bytes == 10


def test_an_access_time_from_the_future_counts_as_now_and_no_longer() -> None:
    ahead = name(1)._replace(accessed_s=NOW + 2_600_000)
    assert inodes(plan([ahead, name(2, age=70)], used=85, wanted_bytes=15, grace_s=0)) == [2, 1]


def test_watermarks_that_cannot_work_are_refused() -> None:
    for low, high in ((0.9, 0.8), (0.0, 0.5), (0.5, 1.1)):
        with pytest.raises(InvalidArgument):
            Budget(100, 0, low_ratio=low, high_ratio=high)


def test_explaining_a_name_says_why_when_and_how_far_from_the_edge_it_is() -> None:
    names = [name(inode, age=1000 - inode) for inode in range(1, 10)]
    names.append(name(10, expires_at_s=NOW - 1))
    names.append(name(11, pin=Pin.HARD, expires_at_s=NOW + 50, ttl_s=60))
    planner = Planner(Budget(100, 105, 0.9, 0.8), NOW, NEVER)
    planner.survey(names)
    first, last = planner.explain(names[0]), planner.explain(names[8])
    assert (first.reason, first.goes, first.bytes_before) == (Reason.CAPACITY, True, 0)
    assert (last.reason, last.goes, last.bytes_before) == (Reason.ROOM, False, 80)
    assert planner.explain(names[9]).reason is Reason.EXPIRED
    pinned = planner.explain(names[10])
    assert (pinned.reason, pinned.goes, pinned.deadline_s) == (Reason.PINNED, False, NOW + 50)
    assert inodes(planner.plan()) == [10, 1, 2]


def test_rules_that_ask_for_directories_give_each_name_the_class_it_would_get_alone() -> None:
    rules = RuleSet(
        [
            Rule("session", path=b"chat/*"),
            Rule("system", path=b"*/prompts/*"),
            Rule("month", engine=Engine.LMCACHE, model=b"*llama*"),
            Rule("day", path=b"a[/*"),
        ]
    )
    assert rules.for_namespace(b"kv").is_by_folder
    keys = [
        folder + name
        for folder in (b"", b"chat/", b"x/prompts/", b"x/prompts/y/", b"prompts/", b"a[/", b"a/")
        for name in (b"chat", b"prompts", b"llama@2@0@5c@half", b"m@2@0@5c@half", b"x-prompts-y")
    ]
    ages = (60, 2400, 3 * DAY, 40 * DAY)
    for age in ages:
        plan = plan_removals(
            [name(number, key=key, age=age, written_s=NOW - age)
             for number, key in enumerate(keys)],
            Budget(capacity_bytes=1 << 40, used_bytes=0), NOW, rules,
        )  # fmt: skip
        gone = {removal.inode for removal in plan.removals}
        classes = [rules.for_namespace(b"kv").classify(key) for key in keys]
        assert gone == {
            number
            for number, each in enumerate(classes)
            if 0 < deadline_s(each, NOW - age, NOW - age, NOW) <= NOW
        }


def test_a_rule_for_a_name_or_a_tag_is_asked_for_each_name() -> None:
    for rule in (
        Rule("day", path=b"*.bin"),
        Rule("day", path=b"a*"),
        Rule("day", tags={"x": b"1"}),
    ):
        assert not RuleSet([rule]).for_namespace(b"kv").is_by_folder
