"""Lifecycle rules as arithmetic: what they fit, when they end it, what is refused."""

from __future__ import annotations

import pytest

from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.lifecycle_rules import SECONDS_A_DAY, Rule, parse_rules, soonest, stored_rules

NOON_S = 20_000 * SECONDS_A_DAY + 12 * 3600


def document(*rules: str) -> bytes:
    inner = "".join(f"<Rule>{rule}</Rule>" for rule in rules)
    return f"<LifecycleConfiguration>{inner}</LifecycleConfiguration>".encode()


def enabled(text: str, rule_id: str = "a") -> str:
    return f"<ID>{rule_id}</ID><Status>Enabled</Status>{text}"


def ends(days: int) -> str:
    return f"<Expiration><Days>{days}</Days></Expiration>"


def test_days_end_at_the_midnight_after_them() -> None:
    (rule,) = parse_rules(document(enabled(ends(1))))
    assert rule.ends_s(NOON_S) == 20_002 * SECONDS_A_DAY
    assert rule.ends_s(20_000 * SECONDS_A_DAY) == 20_001 * SECONDS_A_DAY


def test_of_the_rules_that_fit_the_soonest_end_counts() -> None:
    rules = parse_rules(
        document(
            enabled(f"<Filter/>{ends(9)}", "all"),
            enabled(f"<Filter><Prefix>tmp/</Prefix></Filter>{ends(2)}", "tmp"),
            enabled(f"<Prefix>tmp/x</Prefix>{ends(5)}", "x"),
        )
    )
    chosen = [soonest(rules, key, {}, 1, NOON_S) for key in (b"a", b"tmp/x", b"tmp/y")]
    assert [rule.rule_id for rule in chosen if rule] == ["all", "tmp", "tmp"]


@pytest.mark.parametrize(
    ("text", "fitting"),
    [
        ("<ObjectSizeGreaterThan>5</ObjectSizeGreaterThan>", [6, 7]),
        ("<ObjectSizeLessThan>6</ObjectSizeLessThan>", [4, 5]),
        (
            "<And><Prefix>k</Prefix><ObjectSizeGreaterThan>4</ObjectSizeGreaterThan>"
            "<ObjectSizeLessThan>6</ObjectSizeLessThan></And>",
            [5],
        ),
    ],
)
def test_a_filter_may_name_sizes(text: str, fitting: list[int]) -> None:
    (rule,) = parse_rules(document(enabled(f"<Filter>{text}</Filter>{ends(1)}")))
    assert [size for size in range(4, 8) if rule.fits(b"key", {}, size)] == fitting


def test_all_tags_of_a_filter_must_be_there() -> None:
    tags = "<Tag><Key>a</Key><Value>1</Value></Tag><Tag><Key>b</Key><Value>2</Value></Tag>"
    (rule,) = parse_rules(document(enabled(f"<Filter><And>{tags}</And></Filter>{ends(1)}")))
    assert rule.fits(b"k", {"a": b"1", "b": b"2", "c": b"3"}, 0)
    assert not rule.fits(b"k", {"a": b"1"}, 0)
    assert not rule.fits(b"k", {"a": b"1", "b": b"1"}, 0)


@pytest.mark.parametrize(
    "text",
    [
        "<Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>",
        "<NoncurrentVersionExpiration><NoncurrentDays>3</NoncurrentDays>"
        "</NoncurrentVersionExpiration>",
        "<AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation>"
        "</AbortIncompleteMultipartUpload>",
    ],
)
def test_what_no_object_here_can_be_is_taken_and_ends_none(text: str) -> None:
    assert parse_rules(document(enabled(text))) == ()


def test_a_document_that_somebody_else_wrote_has_no_rules() -> None:
    assert stored_rules(b"nonsense") == ()
    assert stored_rules(b"") == ()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("<Expiration/>", "MalformedXML"),
        ("<Expiration><Days>1</Days><Date>2100-01-01</Date></Expiration>", "MalformedXML"),
        (f"<Filter><Prefix>a</Prefix></Filter>{ends(0)}", "InvalidArgument"),
        (ends(40_000), "InvalidArgument"),
        (
            "<Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition>",
            "NotImplemented",
        ),
    ],
)
def test_a_rule_that_cannot_be_kept_is_refused(text: str, code: str) -> None:
    with pytest.raises(S3Error) as raised:
        parse_rules(document(enabled(text)))
    assert raised.value.code == code


def test_equal_ids_are_refused() -> None:
    with pytest.raises(S3Error, match="unique"):
        parse_rules(document(enabled(ends(1)), enabled(ends(2))))


def test_a_disabled_rule_ends_nothing() -> None:
    assert parse_rules(document(f"<Status>Disabled</Status>{ends(1)}")) == ()
    (rule,) = parse_rules(document(f"<Status>Enabled</Status>{ends(1)}"))
    assert isinstance(rule, Rule)
    assert len(rule.rule_id) > 30, "an id is invented"
