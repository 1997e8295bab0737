"""Notes of accesses: what a lookup sees at once, and what is worth a row."""

from __future__ import annotations

import pytest

from kvfs.index.schema import MAX_TIME_S, InodeRow
from kvfs.model import Kind, NamespaceId, Pin
from kvfs.store.access_times import MAX_STEP_S, is_worth_writing, recency_step_s, touch
from kvfs.store.objects import is_expired


def file(**fields: int | bool | Pin) -> InodeRow:
    return InodeRow(Kind.FILE, NamespaceId(1), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ttl_s", "is_sliding", "age_s", "is_worth"),
    [
        (0, False, MAX_STEP_S - 1, False),
        (0, False, MAX_STEP_S, True),
        (1000, True, 99, False),
        (1000, True, 100, True),
        (5, True, 0, False),
        (5, True, 1, True),
        (1000, False, MAX_STEP_S, True),
        (1000, True, -500, False),  # the clock was set back
    ],
)
def test_a_row_is_rewritten_only_when_it_is_stale(
    ttl_s: int, is_sliding: bool, age_s: int, is_worth: bool
) -> None:
    row = file(accessed_s=10_000, ttl_s=ttl_s, is_sliding=is_sliding)
    assert is_worth_writing(row, 10_000 + age_s, MAX_STEP_S) is is_worth


@pytest.mark.parametrize(
    ("coldest_idle_s", "step_s"),
    [(0, 1), (20, 1), (59, 2), (400, 20), (600, MAX_STEP_S), (10_000, MAX_STEP_S), (-500, 1)],
)
def test_the_faster_a_store_turns_over_the_finer_is_recency(
    coldest_idle_s: int, step_s: int
) -> None:
    assert recency_step_s(10_000 - coldest_idle_s, 10_000) == step_s


def test_a_touch_slides_only_a_sliding_lifetime() -> None:
    sliding = file(ttl_s=60, is_sliding=True, expires_at_s=100)
    fixed = file(ttl_s=60, is_sliding=False, expires_at_s=100)
    eternal = file(is_sliding=True)
    for row in (sliding, fixed, eternal):
        touch(row, 90)
    assert [row.expires_at_s for row in (sliding, fixed, eternal)] == [150, 100, 0]
    assert [row.accessed_s for row in (sliding, fixed, eternal)] == [90, 90, 90]


def test_a_lifetime_slides_no_further_than_a_row_can_hold() -> None:
    row = file(ttl_s=MAX_TIME_S, is_sliding=True, expires_at_s=5)
    touch(row, 1000)
    assert row.expires_at_s == MAX_TIME_S


@pytest.mark.parametrize(
    ("expires_at_s", "pin", "expired"),
    [(0, Pin.NONE, False), (99, Pin.NONE, True), (100, Pin.NONE, True), (101, Pin.NONE, False),
     (99, Pin.SOFT, True), (99, Pin.HARD, False)],
)  # fmt: skip
def test_a_row_expires_at_its_second_unless_it_is_pinned_hard(
    expires_at_s: int, pin: Pin, expired: bool
) -> None:
    assert is_expired(file(expires_at_s=expires_at_s, pin=pin), 100) is expired
