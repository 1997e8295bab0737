"""Conditional requests in the order of precedence of RFC 9110, section 13.2.2.

Owns the decision and nothing else: it is given the object's tag and time, and says what the
request's conditions make of it. Write conditions are only parsed here; the store decides them
inside the transaction that publishes, which makes them atomic across workers and the mount.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import NamedTuple

from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.http_dates import parse_http_date

_ENTITY_TAG = re.compile(r'[ \t]*(W/)?(?:"([^"]*)"|([^",\s]+))[ \t]*(?:,|$)')
_MAX_TAGS = 64
READ_CONDITIONS = frozenset(
    {"if-match", "if-none-match", "if-modified-since", "if-unmodified-since"}
)
"""Headers without which a read has no conditions."""


class Outcome(enum.Enum):
    """What the conditions of a read come to."""

    PROCEED = 0
    NOT_MODIFIED = 304
    FAILED = 412


class Conditions(NamedTuple):
    """The four headers, as sent; "" when absent."""

    if_match: str = ""
    if_none_match: str = ""
    if_modified_since: str = ""
    if_unmodified_since: str = ""


def read_conditions(headers: Mapping[str, str], prefix: str = "") -> Conditions:
    """Collect a read's conditions; prefix `x-amz-copy-source-` for those on a copy's source."""
    return Conditions(
        headers.get(f"{prefix}if-match", ""),
        headers.get(f"{prefix}if-none-match", ""),
        headers.get(f"{prefix}if-modified-since", ""),
        headers.get(f"{prefix}if-unmodified-since", ""),
    )


def decide(conditions: Conditions, etag: str, modified_s: int) -> Outcome:
    """Return what a GET or HEAD with `conditions` does with an object of this tag and time."""
    if conditions.if_match:
        if not _matches(conditions.if_match, etag, is_weak=False):
            return Outcome.FAILED
    elif conditions.if_unmodified_since:
        limit = parse_http_date(conditions.if_unmodified_since)
        if limit is not None and modified_s > limit:
            return Outcome.FAILED
    if conditions.if_none_match:
        if _matches(conditions.if_none_match, etag, is_weak=True):
            return Outcome.NOT_MODIFIED
    elif conditions.if_modified_since:
        since = parse_http_date(conditions.if_modified_since)
        if since is not None and modified_s <= since:
            return Outcome.NOT_MODIFIED
    return Outcome.PROCEED


def write_if_match(headers: Mapping[str, str]) -> str:
    """Return the tag a write demands of the present object, unquoted; `*` = any; "" = no demand."""
    return _single_tag(headers, "if-match")


def write_if_none_match(headers: Mapping[str, str]) -> str:
    """Return the tag that the present object must not have; `*` = there must be none; "" = any."""
    return _single_tag(headers, "if-none-match")


def _single_tag(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "").strip()
    if not value or value == "*":
        return value
    tags = _tags(value)
    if len(tags) != 1 or tags[0][0]:
        raise S3Error("NotImplemented", f"{name} on a write takes one strong entity tag.")
    return tags[0][1]


def _matches(value: str, etag: str, *, is_weak: bool) -> bool:
    if value.strip() == "*":
        return True
    return any(tag == etag and (is_weak or not weak) for weak, tag in _tags(value))


def _tags(value: str) -> list[tuple[bool, str]]:
    """Split a list of entity tags; SDKs send them with and without quotes."""
    tags: list[tuple[bool, str]] = []
    position = 0
    while position < len(value) and len(tags) < _MAX_TAGS:
        match = _ENTITY_TAG.match(value, position)
        if match is None:
            break
        tags.append((match[1] is not None, match[2] if match[2] is not None else match[3]))
        position = match.end()
    return tags
