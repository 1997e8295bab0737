"""Lifetimes: classes, rules, deadlines and clocks that jump."""

from __future__ import annotations

import pytest

from kvfs.engine_keys import Engine
from kvfs.errors import InvalidArgument
from kvfs.policy.expiry import (
    BUILTIN_CLASSES,
    DAY,
    MINUTE,
    ClockReading,
    Rule,
    RuleSet,
    TtlClass,
    clamp_deadline_s,
    clock_jump_s,
    deadline_s,
    rebased_times,
    slid_deadline_s,
)

NOW = 1_700_000_000
MONTH = 30 * DAY
SGLANG_KEY = b"a" * 64 + b"_meta-llama_0_8.bin"


def class_of(rules: list[Rule], namespace: bytes, key: bytes, **tags: bytes) -> str:
    attributes = {f"user.s3.tag.{name}": value for name, value in tags.items()}
    return RuleSet(rules).for_namespace(namespace).classify(key, attributes).name


def test_chat_for_half_an_hour_and_system_prompts_for_weeks_are_one_rule_each() -> None:
    rules = [Rule("session", path=b"chat/*"), Rule("system", path=b"prompts/*")]
    assert class_of(rules, b"kv", b"chat/a/b") == "session"
    assert class_of(rules, b"kv", b"prompts/x") == "system"
    assert class_of(rules, b"kv", b"else") == "default"
    classes = {each.name: each for each in BUILTIN_CLASSES}
    assert classes["session"].ttl_s == 30 * MINUTE
    assert classes["system"].ttl_s >= 14 * DAY


def test_the_first_rule_whose_every_condition_holds_decides() -> None:
    rules = [
        Rule("keep", namespace=b"prod-*", engine=Engine.SGLANG, model=b"meta-*"),
        Rule("day", namespace=b"prod-*", path=b"*.bin"),
        Rule("week", tags={"user.s3.tag.kind": b"rag"}),
    ]
    assert class_of(rules, b"prod-1", SGLANG_KEY) == "keep"
    assert class_of(rules, b"prod-1", b"x.bin") == "day"
    assert class_of(rules, b"test", b"x.bin") == "default"
    assert class_of(rules, b"test", b"x.bin", kind=b"rag") == "week"
    assert class_of(rules, b"test", b"x.bin", kind=b"chat") == "default"


def test_a_model_rule_reads_the_name_as_people_spell_it() -> None:
    rules = [Rule("keep", model=b"org/m")]
    assert class_of(rules, b"kv", b"org-SEP-m@2@0@5c7b@half.data") == "keep"
    assert class_of(rules, b"kv", b"org-SEP-x@2@0@5c7b@half.data") == "default"


@pytest.mark.parametrize(
    ("glob", "key", "matches"),
    [
        (b"a/*", b"a/b/c", True),
        (b"a/*", b"ab", False),
        (b"*/c", b"a/b/c", True),
        (b"a/[bx]/?", b"a/b/c", True),
        (b"a/[bx]/?", b"a/c/c", False),
        (b"a.b*", b"axb", False),
        (b"\xff*", b"\xff\xfe", True),
    ],
)
def test_globs_match_bytes_and_slashes(glob: bytes, key: bytes, matches: bool) -> None:
    assert (class_of([Rule("keep", path=glob)], b"kv", key) == "keep") is matches


def test_a_namespace_without_name_rules_needs_no_look_at_names() -> None:
    rules = RuleSet([Rule("day", namespace=b"a"), Rule("keep", namespace=b"a", path=b"*.x")])
    in_a, elsewhere = rules.for_namespace(b"a"), rules.for_namespace(b"b")
    assert (in_a.is_by_folder, in_a.classify(b"b.x").name) == (True, "day")
    assert (elsewhere.is_by_folder, elsewhere.classify(b"b.x").name) == (True, "default")
    assert not RuleSet([Rule("day", path=b"x*")]).for_namespace(b"a").is_by_folder


def test_rules_that_cannot_work_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="unknown TTL class"):
        RuleSet([Rule("nonsense")])
    with pytest.raises(InvalidArgument, match="out of range"):
        RuleSet(classes=[TtlClass("x", ttl_s=-1)])
    with pytest.raises(InvalidArgument, match="at most"):
        RuleSet([Rule("day")] * 2000)


def test_sliding_counts_from_the_access_and_fixed_from_the_writing() -> None:
    sliding, fixed = TtlClass("s", ttl_s=100), TtlClass("f", ttl_s=100, is_sliding=False)
    assert deadline_s(sliding, NOW - 90, NOW - 10, NOW) == NOW + 90
    assert deadline_s(fixed, NOW - 90, NOW - 10, NOW) == NOW + 10


def test_the_maximum_age_holds_however_often_it_is_read() -> None:
    aged = TtlClass("a", ttl_s=100, max_age_s=150)
    assert deadline_s(aged, NOW - 120, NOW, NOW) == NOW + 30
    assert deadline_s(TtlClass("b", max_age_s=50), NOW - 60, NOW, NOW) == NOW - 10
    assert deadline_s(TtlClass("never"), NOW - 10 * MONTH, NOW, NOW) == 0


def test_times_from_the_future_make_nothing_immortal() -> None:
    sliding = TtlClass("s", ttl_s=100)
    assert deadline_s(sliding, NOW + MONTH, NOW + MONTH, NOW) == NOW + 100
    assert clamp_deadline_s(NOW + MONTH, 100, NOW) == NOW + 100
    assert clamp_deadline_s(NOW + 40, 100, NOW) == NOW + 40
    assert clamp_deadline_s(NOW + MONTH, 0, NOW) == NOW + MONTH


def test_a_deadline_slides_only_once_a_tenth_of_the_ttl_has_passed() -> None:
    assert slid_deadline_s(NOW + 1000, 1000, NOW) is None
    assert slid_deadline_s(NOW + 901, 1000, NOW) is None
    assert slid_deadline_s(NOW + 899, 1000, NOW) == NOW + 1000
    assert slid_deadline_s(NOW + 899, 1000, NOW, is_sliding=False) is None
    assert slid_deadline_s(0, 0, NOW) is None
    assert slid_deadline_s(NOW + MONTH, 1000, NOW) == NOW + 1000


BEFORE = ClockReading(NOW, 5000, "boot-1")


def test_time_that_really_passed_is_no_jump() -> None:
    assert clock_jump_s(BEFORE, ClockReading(NOW + 90_000, 95_000, "boot-1")) == 0


@pytest.mark.parametrize("jump", [MONTH, -MONTH])
def test_a_wall_clock_that_moves_without_the_machine_has_jumped(jump: int) -> None:
    assert clock_jump_s(BEFORE, ClockReading(NOW + 60 + jump, 5060, "boot-1")) == jump


def test_a_wrong_time_zone_is_followed_rather_than_fought() -> None:
    assert clock_jump_s(BEFORE, ClockReading(NOW + 7200, 5060, "boot-1")) == 0


def test_over_a_reboot_hours_are_believed_and_months_are_not() -> None:
    assert clock_jump_s(BEFORE, ClockReading(NOW + 8 * 3600, 30, "boot-2")) == 0
    assert clock_jump_s(BEFORE, ClockReading(NOW + MONTH, 30, "boot-2")) == MONTH - DAY
    assert clock_jump_s(BEFORE, ClockReading(NOW - MONTH, 30, "boot-2")) == -MONTH


def test_an_uptime_that_went_back_within_one_boot_is_taken_for_another_machine() -> None:
    assert clock_jump_s(BEFORE, ClockReading(NOW + 60, 10, "boot-1")) == 0


def test_after_a_leap_ahead_a_row_is_as_old_and_lives_as_long_as_before() -> None:
    now = NOW + MONTH
    assert rebased_times(NOW - 50, NOW + 10, 60, MONTH, now) == (now - 50, now + 10)
    written_since = rebased_times(now - 5, now + 55, 60, MONTH, now)
    assert written_since == (now, now + 60)


def test_after_a_leap_back_what_lies_in_the_future_comes_back_and_the_rest_stays() -> None:
    now = NOW - MONTH
    assert rebased_times(NOW - 50, NOW + 10, 60, -MONTH, now) == (now - 50, now + 10)
    assert rebased_times(now - 5, now + 55, 60, -MONTH, now) == (now - 5, now + 55)


def test_an_absolute_deadline_is_a_date_and_stays() -> None:
    assert rebased_times(NOW, NOW + 99, 0, MONTH, NOW + MONTH)[1] == NOW + 99
