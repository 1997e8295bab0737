"""Lifecycle configurations: S3's expiration rules as lifetimes of the objects written under them.

Owns the translation. The document is kept as an extended attribute of the bucket's directory
(`user.s3.lifecycle`, so the mount shows it too) and read at each write: the first enabled rule
whose prefix and tags match gives the object a fixed TTL of so many days. Objects written before
the rule keep what they had; rules for those stand in the store's own lifecycle.toml.

Holds: a rule that asks for anything this does not do (dates, transitions) is refused, not ignored.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvfs.model import AttributeChange, Namespace, PutOptions
from kvfs_gateway.s3 import xml
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.server.bucket_handlers import require_bucket
from kvfs_gateway.server.object_headers import TAG_PREFIX
from kvfs_gateway.server.response import Response, empty_response, xml_response
from kvfs_gateway.server.service import Call

ATTRIBUTE = "user.s3.lifecycle"
MAX_RULES = 1000
MAX_STORED_LENGTH = 32 * 1024
SECONDS_A_DAY = 24 * 3600
MAX_DAYS = 36_500

_OPERATION = "PutBucketLifecycleConfiguration"
_SERVED = frozenset(
    {"ID", "Status", "Prefix", "Filter", "Expiration", "AbortIncompleteMultipartUpload"}
)
"""AbortIncompleteMultipartUpload is kept anyhow: uploads go a day after their last part."""

Document = Mapping[str, xml.Value]


@dataclass(frozen=True, slots=True)
class _Rule:
    days: int
    prefix: bytes
    tags: tuple[tuple[str, bytes], ...]

    def matches(self, key: bytes, attributes: Mapping[str, bytes]) -> bool:
        return key.startswith(self.prefix) and all(
            attributes.get(TAG_PREFIX + name) == value for name, value in self.tags
        )


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
    document = xml.parse(_OPERATION, text)
    return xml_response(xml.render("GetBucketLifecycleConfiguration", document))


async def delete_bucket_lifecycle(call: Call) -> Response:
    """Remove the configuration; objects keep their lifetimes."""
    namespace = require_bucket(call)
    if _stored(call, namespace):
        await _change(call, namespace, AttributeChange(remove_attributes=(ATTRIBUTE,)))
    return empty_response(204)


def with_lifetime(call: Call, namespace: Namespace, options: PutOptions) -> PutOptions:
    """Return `options` with the lifetime that the bucket's rules give the object being written."""
    text = _stored(call, namespace)
    if not text:
        return options
    for rule in _rules(text):
        if rule.matches(call.route.key, options.attributes):
            return replace(options, ttl_s=rule.days * SECONDS_A_DAY, is_sliding=False)
    return options


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


def _parse_rules(text: bytes) -> tuple[_Rule, ...]:
    listed = xml.parse(_OPERATION, text)["Rules"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_RULES:
        raise S3Error("MalformedXML")
    rules = []
    for rule in listed:
        unserved = sorted(set(rule) - _SERVED)
        if unserved:
            raise S3Error("NotImplemented", f"Not served in a rule: {', '.join(unserved)}.")
        if rule.get("Status") not in ("Enabled", "Disabled"):
            raise S3Error("MalformedXML")
        if "Expiration" in rule and rule["Status"] == "Enabled":
            rules.append(_parse_rule(rule))
    return tuple(rules)


def _parse_rule(rule: Document) -> _Rule:
    expiration = rule["Expiration"]
    assert isinstance(expiration, Mapping), "the model says structure"
    if set(expiration) != {"Days"}:
        raise S3Error("NotImplemented", "An expiration is given in Days.")
    days = expiration["Days"]
    if not isinstance(days, int) or not 1 <= days <= MAX_DAYS:
        raise S3Error("InvalidArgument", "'Days' for Expiration action must be a positive integer")
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
    return _Rule(days, prefix.encode(), tags)
