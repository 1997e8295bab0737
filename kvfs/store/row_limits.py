"""What a caller may ask for, brought within what a row can hold.

Owns the ranges of PutOptions and AttributeChange. Numbers with a natural end (times, priorities)
are cut to it; those that would mean something else when cut (owners, classes, ETags) are refused.
Holds: whatever passes here can be packed; `struct.error` never reaches a caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvfs.errors import InvalidArgument
from kvfs.index.schema import MAX_ATTRIBUTES_LENGTH, MAX_TIME_S, attributes_length
from kvfs.model import AttributeChange, PutOptions

MAX_OWNER = (1 << 32) - 1
MAX_CLASS = (1 << 16) - 1
MAX_TIME_NS = (1 << 64) - 1
MAX_PRIORITY = 254
"""255 is the place of soft pins in the order of eviction."""
MAX_ETAG_LENGTH = 255


def fit_options(options: PutOptions) -> PutOptions:
    """Return `options` as a row can hold them. Raises: InvalidArgument."""
    check_attributes(options.attributes)
    _check_numbers(options.uid, options.gid, options.ttl_class)
    if not options.etag.isascii() or len(options.etag) > MAX_ETAG_LENGTH:
        raise InvalidArgument("an ETag has at most 255 ASCII characters: give a shorter one")
    ttl_s = options.ttl_s
    is_fit = (
        0 <= options.priority <= MAX_PRIORITY
        and 0 <= options.mtime_ns <= MAX_TIME_NS
        and (ttl_s is None or 0 <= ttl_s <= MAX_TIME_S)
        and 0 <= options.expires_at_s <= MAX_TIME_S
    )
    if is_fit:
        return options
    return replace(
        options,
        priority=_between(options.priority, MAX_PRIORITY),
        mtime_ns=_between(options.mtime_ns, MAX_TIME_NS) or 1,  # 0 would mean "now"
        ttl_s=None if ttl_s is None else _between(ttl_s, MAX_TIME_S),
        expires_at_s=_between(options.expires_at_s, MAX_TIME_S),
    )


def fit_change(change: AttributeChange) -> AttributeChange:
    """Return `change` as a row can hold it. Raises: InvalidArgument."""
    _check_numbers(change.uid or 0, change.gid or 0, change.ttl_class or 0)
    fitted = {
        "priority": (change.priority, MAX_PRIORITY),
        "mtime_ns": (change.mtime_ns, MAX_TIME_NS),
        "ttl_s": (change.ttl_s, MAX_TIME_S),
        "expires_at_s": (change.expires_at_s, MAX_TIME_S),
    }
    cut = {
        name: _between(value, most)
        for name, (value, most) in fitted.items()
        if value is not None and not 0 <= value <= most
    }
    return replace(change, **cut) if cut else change  # type: ignore[arg-type]


def check_attributes(attributes: Mapping[str, bytes]) -> None:
    """Raise InvalidArgument unless one inode can hold `attributes`."""
    if attributes and attributes_length(attributes) > MAX_ATTRIBUTES_LENGTH:
        raise InvalidArgument("the extended attributes exceed 64 KiB: store fewer or shorter")


def _check_numbers(uid: int, gid: int, ttl_class: int) -> None:
    if not (0 <= uid <= MAX_OWNER and 0 <= gid <= MAX_OWNER):
        raise InvalidArgument(f"an owner is a number from 0 to {MAX_OWNER}")
    if not 0 <= ttl_class <= MAX_CLASS:
        raise InvalidArgument(f"a TTL class is a number from 0 to {MAX_CLASS}")


def _between(value: int, most: int) -> int:
    return max(0, min(value, most))
