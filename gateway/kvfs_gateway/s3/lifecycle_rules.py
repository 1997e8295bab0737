"""S3's expiration rules: a lifecycle document parsed, and when an object ends by it.

Owns the grammar and the arithmetic of days; knows neither the store nor the time. Where several
rules fit an object the soonest end counts, as in S3.

Holds: a rule that asks for anything this does not do (transitions) is refused, not ignored. What
speaks of older versions and their markers is taken: no bucket has any, so it holds as it stands.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from kvfs_gateway.s3 import xml
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.http_dates import parse_iso_date

MAX_RULES = 1000
SECONDS_A_DAY = 24 * 3600
MAX_DAYS = 36_500
MAX_ID_LENGTH = 255
ANY_SIZE = (-1, 1 << 63)

_OPERATION = "PutBucketLifecycleConfiguration"
_SERVED = frozenset(
    {
        "ID", "Status", "Prefix", "Filter", "Expiration", "AbortIncompleteMultipartUpload",
        "NoncurrentVersionExpiration",
    }
)  # fmt: skip
"""AbortIncompleteMultipartUpload is kept anyhow: uploads go a day after their last part."""
_ENDS = frozenset({"Days", "Date", "ExpiredObjectDeleteMarker"})
_FILTERS = frozenset({"Prefix", "Tag", "Tags", "ObjectSizeGreaterThan", "ObjectSizeLessThan"})

Document = Mapping[str, xml.Value]


@dataclass(frozen=True, slots=True)
class Rule:
    """One enabled rule that ends objects."""

    rule_id: str
    days: int
    """0 = at the date instead."""
    date_s: int
    prefix: bytes
    tags: tuple[tuple[str, bytes], ...]
    larger_than: int = ANY_SIZE[0]
    smaller_than: int = ANY_SIZE[1]

    def fits(self, key: bytes, tags: Mapping[str, bytes], size: int) -> bool:
        """Return whether the rule speaks of an object."""
        return (
            key.startswith(self.prefix)
            and self.larger_than < size < self.smaller_than
            and all(tags.get(name) == value for name, value in self.tags)
        )

    def ends_s(self, written_s: int) -> int:
        """Return when an object written then ends: the midnight (UTC) after its days."""
        if not self.days:
            return self.date_s
        ends_s = written_s + self.days * SECONDS_A_DAY
        return ends_s + -ends_s % SECONDS_A_DAY


def soonest(
    rules: tuple[Rule, ...], key: bytes, tags: Mapping[str, bytes], size: int, written_s: int
) -> Rule | None:
    """Return the rule that ends an object first, None if it has no end."""
    fitting = (rule for rule in rules if rule.fits(key, tags, size))
    return min(fitting, key=lambda rule: rule.ends_s(written_s), default=None)


@functools.lru_cache(maxsize=256)
def stored_rules(text: bytes) -> tuple[Rule, ...]:
    """Return the rules of a kept document; none when somebody else wrote nonsense there."""
    try:
        return parse_rules(text) if text else ()
    except S3Error:
        return ()


def list_rules(text: bytes) -> list[Document]:
    """Return a document's rules as they were given, each with an id; S3 invents those missing."""
    listed = xml.parse(_OPERATION, text)["Rules"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_RULES:
        raise S3Error("MalformedXML")
    invented = hashlib.sha256(text).hexdigest()[:32]
    return [
        {**rule, "ID": str(rule.get("ID", "")) or f"{invented}-{number}"}
        for number, rule in enumerate(listed)
    ]


def parse_rules(text: bytes) -> tuple[Rule, ...]:
    """Return the enabled rules that end objects. Raises: S3Error."""
    listed = list_rules(text)
    if len({rule["ID"] for rule in listed}) != len(listed):
        raise S3Error("InvalidArgument", "Rule ID must be unique. Found same ID for two rules.")
    parsed = [(_parse_rule(rule), rule["Status"]) for rule in listed]
    return tuple(rule for rule, status in parsed if rule is not None and status == "Enabled")


def _parse_rule(rule: Document) -> Rule | None:
    rule_id = str(rule["ID"])
    if len(rule_id) > MAX_ID_LENGTH:
        raise S3Error("InvalidArgument", "ID length should not exceed allowed limit of 255")
    unserved = sorted(set(rule) - _SERVED)
    if unserved:
        raise S3Error("NotImplemented", f"Not served in a rule: {', '.join(unserved)}.")
    if rule.get("Status") not in ("Enabled", "Disabled"):
        raise S3Error("MalformedXML")
    end = _parse_end(rule)
    if end is None:
        return None
    chosen = rule.get("Filter", {})
    assert isinstance(chosen, Mapping), "the model says structure"
    both = chosen.get("And", chosen)
    assert isinstance(both, Mapping), "the model says structure"
    unserved = sorted(set(both) - _FILTERS)
    if unserved:
        raise S3Error("NotImplemented", f"Not served in a filter: {', '.join(unserved)}.")
    listed = both.get("Tags", [both["Tag"]] if "Tag" in both else [])
    assert isinstance(listed, list), "the model says list"
    return Rule(
        rule_id,
        *end,
        prefix=str(both.get("Prefix", rule.get("Prefix", ""))).encode(),
        tags=tuple((str(tag["Key"]), str(tag["Value"]).encode()) for tag in listed),
        larger_than=_size(both, "ObjectSizeGreaterThan", ANY_SIZE[0]),
        smaller_than=_size(both, "ObjectSizeLessThan", ANY_SIZE[1]),
    )


def _size(chosen: Document, name: str, default: int) -> int:
    value = chosen.get(name, default)
    assert isinstance(value, int), "the model says integer"
    return value


def _parse_end(rule: Document) -> tuple[int, int] | None:
    """Return (days, 0) or (0, date in seconds); None for a rule that ends no object."""
    expiration = rule.get("Expiration", {})
    assert isinstance(expiration, Mapping), "the model says structure"
    if set(expiration) - _ENDS or len(expiration) > 1 or ("Expiration" in rule and not expiration):
        raise S3Error("MalformedXML")
    if "Date" in expiration:
        date_s = parse_iso_date(str(expiration["Date"]))
        if date_s is None or date_s % SECONDS_A_DAY:
            raise S3Error("InvalidArgument", "'Date' must be at midnight GMT")
        return 0, date_s
    if "Days" not in expiration:
        return None
    days = expiration["Days"]
    if not isinstance(days, int) or not 1 <= days <= MAX_DAYS:
        raise S3Error("InvalidArgument", "'Days' for Expiration action must be a positive integer")
    return days, 0
