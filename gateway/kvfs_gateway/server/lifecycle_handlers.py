"""Lifecycle configurations: S3's expiration rules as lifetimes of the objects written under them.

Owns the translation. The document is kept as an extended attribute of the bucket's directory
(`user.s3.lifecycle`, so the mount shows it too) and read at each write and change of tags: the
first enabled rule whose prefix and tags match gives the object a fixed TTL, until the midnight
(UTC) that ends the rule's days, as S3 counts them, or until the rule's date. Objects written
before the rule keep what they had; rules for those stand in the store's own lifecycle.toml.

Holds: a rule that asks for anything this does not do (transitions) is refused, not ignored.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvfs.model import AttributeChange, Entry, Namespace, PutOptions
from kvfs_gateway.s3 import xml
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.http_dates import parse_iso_date, render_http_date
from kvfs_gateway.server.bucket_handlers import require_bucket
from kvfs_gateway.server.object_headers import TAG_PREFIX
from kvfs_gateway.server.response import Header, Response, clean, empty_response, xml_response
from kvfs_gateway.server.service import Call

ATTRIBUTE = "user.s3.lifecycle"
MAX_RULES = 1000
MAX_STORED_LENGTH = 32 * 1024
SECONDS_A_DAY = 24 * 3600
MAX_DAYS = 36_500
MAX_ID_LENGTH = 255

_OPERATION = "PutBucketLifecycleConfiguration"
_SERVED = frozenset(
    {"ID", "Status", "Prefix", "Filter", "Expiration", "AbortIncompleteMultipartUpload"}
)
"""AbortIncompleteMultipartUpload is kept anyhow: uploads go a day after their last part."""

Document = Mapping[str, xml.Value]


@dataclass(frozen=True, slots=True)
class _Rule:
    rule_id: str
    days: int
    """0 = at the date instead."""
    date_s: int
    prefix: bytes
    tags: tuple[tuple[str, bytes], ...]

    def matches(self, key: bytes, attributes: Mapping[str, bytes]) -> bool:
        return key.startswith(self.prefix) and all(
            attributes.get(TAG_PREFIX + name) == value for name, value in self.tags
        )

    def ttl_s(self, written_s: int, now_s: int) -> int:
        """Return how long an object written then still lives; at least a second (0 = forever)."""
        if not self.days:
            return max(1, self.date_s - now_s)
        ends_s = written_s + self.days * SECONDS_A_DAY
        return max(1, ends_s + -ends_s % SECONDS_A_DAY - now_s)


async def put_bucket_lifecycle(call: Call) -> Response:
    """Replace the bucket's configuration."""
    namespace = require_bucket(call)
    call.body.begin(call.authentication)
    text = await call.body.read_all(xml.MAX_XML_LENGTH)
    if len(text) > MAX_STORED_LENGTH:
        raise S3Error("InvalidRequest", "The configuration is over 32 KiB.")
    _parse_rules(text)
    await _change(call, namespace, AttributeChange(set_attributes={ATTRIBUTE: text}))
    return empty_response(200)


async def get_bucket_lifecycle(call: Call) -> Response:
    """Return the configuration as it was given."""
    text = _stored(call, require_bucket(call))
    if not text:
        raise S3Error("NoSuchLifecycleConfiguration")
    rules = _listed(text)
    shown: dict[str, xml.Value] = {
        "Rules": [{**rule, "ID": _rule_id(text, n, rule)} for n, rule in enumerate(rules)]
    }
    return xml_response(xml.render("GetBucketLifecycleConfiguration", shown))


async def delete_bucket_lifecycle(call: Call) -> Response:
    """Remove the configuration; objects keep their lifetimes."""
    namespace = require_bucket(call)
    if _stored(call, namespace):
        await _change(call, namespace, AttributeChange(remove_attributes=(ATTRIBUTE,)))
    return empty_response(204)


def with_lifetime(call: Call, namespace: Namespace, options: PutOptions) -> PutOptions:
    """Return `options` with the lifetime that the bucket's rules give the object being written."""
    rule = _find_rule(call, namespace, options.attributes)
    if rule is None:
        return options
    now_s = call.service.now_s()
    return replace(options, ttl_s=rule.ttl_s(now_s, now_s), is_sliding=False)


def lifetime_change(call: Call, entry: Entry, attributes: Mapping[str, bytes]) -> AttributeChange:
    """Return the change of lifetime that goes with other tags: none, or what the rules give now."""
    namespace = require_bucket(call)
    rule = _find_rule(call, namespace, attributes)
    if rule == _find_rule(call, namespace, entry.attributes):
        return AttributeChange()
    if rule is None:
        return AttributeChange(ttl_s=namespace.default_ttl_s, is_sliding=True)
    ttl_s = rule.ttl_s(entry.mtime_ns // 1_000_000_000, call.service.now_s())
    return AttributeChange(ttl_s=ttl_s, is_sliding=False)


def expiration_header(call: Call, entry: Entry) -> list[Header]:
    """Return x-amz-expiration, if the object has an end; a sliding one is of no rule."""
    if not entry.expires_at_s:
        return []
    rule = None
    if not entry.is_sliding:
        rule = _find_rule(call, require_bucket(call), entry.attributes)
    date = render_http_date(entry.expires_at_s)
    rule_id = "ttl" if rule is None else clean(rule.rule_id)
    return [("x-amz-expiration", f'expiry-date="{date}", rule-id="{rule_id}"')]


def _find_rule(call: Call, namespace: Namespace, attributes: Mapping[str, bytes]) -> _Rule | None:
    text = _stored(call, namespace)
    rules = _rules(text) if text else ()
    return next((rule for rule in rules if rule.matches(call.route.key, attributes)), None)


def _stored(call: Call, namespace: Namespace) -> bytes:
    entry = call.service.store.stat_inode(namespace.inode)
    return entry.attributes.get(ATTRIBUTE, b"") if entry is not None else b""


async def _change(call: Call, namespace: Namespace, change: AttributeChange) -> None:
    await call.service.write(call.service.store.set_attributes, namespace.inode, change)


@functools.lru_cache(maxsize=256)
def _rules(text: bytes) -> tuple[_Rule, ...]:
    """Return the stored rules; none when somebody else wrote nonsense into the attribute."""
    try:
        return _parse_rules(text)
    except S3Error:
        return ()


def _listed(text: bytes) -> list[Document]:
    listed = xml.parse(_OPERATION, text)["Rules"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_RULES:
        raise S3Error("MalformedXML")
    return listed


def _rule_id(text: bytes, number: int, rule: Document) -> str:
    """Return the rule's id; S3 invents one where the client gave none."""
    given = str(rule.get("ID", ""))
    return given or f"{hashlib.sha256(text).hexdigest()[:32]}-{number}"


def _parse_rules(text: bytes) -> tuple[_Rule, ...]:
    listed = _listed(text)
    ids = [_rule_id(text, number, rule) for number, rule in enumerate(listed)]
    if len(set(ids)) != len(ids):
        raise S3Error("InvalidArgument", "Rule ID must be unique. Found same ID for two rules.")
    rules = []
    for rule_id, rule in zip(ids, listed, strict=True):
        if len(rule_id) > MAX_ID_LENGTH:
            raise S3Error("InvalidArgument", "ID length should not exceed allowed limit of 255")
        unserved = sorted(set(rule) - _SERVED)
        if unserved:
            raise S3Error("NotImplemented", f"Not served in a rule: {', '.join(unserved)}.")
        if rule.get("Status") not in ("Enabled", "Disabled"):
            raise S3Error("MalformedXML")
        if "Expiration" in rule:
            parsed = _parse_rule(rule_id, rule)
            rules += [parsed] if rule["Status"] == "Enabled" else []
    return tuple(rules)


def _parse_rule(rule_id: str, rule: Document) -> _Rule:
    expiration = rule["Expiration"]
    assert isinstance(expiration, Mapping), "the model says structure"
    if not set(expiration) <= {"Days", "Date"}:
        raise S3Error("NotImplemented", "An expiration is given in Days or as a Date.")
    if len(expiration) != 1:
        raise S3Error("MalformedXML")
    chosen = rule.get("Filter", {})
    assert isinstance(chosen, Mapping), "the model says structure"
    both = chosen.get("And", chosen)
    assert isinstance(both, Mapping), "the model says structure"
    if set(both) - {"Prefix", "Tag", "Tags"}:
        raise S3Error("NotImplemented", "A filter names a prefix and tags.")
    listed = both.get("Tags", [both["Tag"]] if "Tag" in both else [])
    assert isinstance(listed, list), "the model says list"
    tags = tuple((str(tag["Key"]), str(tag["Value"]).encode()) for tag in listed)
    prefix = str(both.get("Prefix", rule.get("Prefix", "")))
    days, date_s = _parse_end(expiration)
    return _Rule(rule_id, days, date_s, prefix.encode(), tags)


def _parse_end(expiration: Document) -> tuple[int, int]:
    """Return (days, 0) or (0, date in seconds)."""
    if "Date" in expiration:
        date_s = parse_iso_date(str(expiration["Date"]))
        if date_s is None or date_s % SECONDS_A_DAY:
            raise S3Error("InvalidArgument", "'Date' must be at midnight GMT")
        return 0, date_s
    days = expiration["Days"]
    if not isinstance(days, int) or not 1 <= days <= MAX_DAYS:
        raise S3Error("InvalidArgument", "'Days' for Expiration action must be a positive integer")
    return days, 0
