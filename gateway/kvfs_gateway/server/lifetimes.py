"""What a bucket's lifecycle rules make of its objects' lifetimes.

Owns the place of the document (`user.s3.lifecycle` of the bucket's directory, so the mount shows it
too) and how a rule's end becomes a row's: a fixed TTL in a class of its own, RULED_TTL_CLASS, which
tells it from a TTL that somebody set on the object. That one wins; the bucket's default does not.

Holds: what was written before a rule ends by it, too, and stops doing so when the rule goes:
`revise_page` brings the rows there, a page at a time; who walks is lifetime_walk.py's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvfs.model import RULED_TTL_CLASS, AttributeChange, Entry, Namespace, PutOptions
from kvfs.store.store import Store
from kvfs_gateway.s3.http_dates import render_http_date
from kvfs_gateway.s3.lifecycle_rules import Rule, soonest, stored_rules
from kvfs_gateway.server.bucket_handlers import require_bucket
from kvfs_gateway.server.object_headers import TAG_PREFIX
from kvfs_gateway.server.response import Header, clean
from kvfs_gateway.server.service import Call

ATTRIBUTE = "user.s3.lifecycle"
PAGE = 200
"""Objects looked at between two rests: 2 ms."""
NS_PER_S = 1_000_000_000


def stored_document(store: Store, namespace: Namespace) -> bytes:
    """Return a bucket's lifecycle document, b"" if it has none."""
    entry = store.stat_inode(namespace.inode)
    return entry.attributes.get(ATTRIBUTE, b"") if entry is not None else b""


def with_lifetime(call: Call, namespace: Namespace, options: PutOptions, size: int) -> PutOptions:
    """Return `options` with the lifetime that the bucket's rules give the object being written."""
    now_s = call.service.now_s()
    rules = stored_rules(stored_document(call.service.store, namespace))
    rule = _soonest(rules, call.route.key, options.attributes, size, now_s) if rules else None
    if rule is None:
        return options
    ends_s = max(rule.ends_s(now_s), now_s + 1)
    return replace(
        options,
        ttl_s=ends_s - now_s,
        expires_at_s=ends_s,
        is_sliding=False,
        ttl_class=RULED_TTL_CLASS,
    )


def retagged_lifetime(call: Call, entry: Entry, attributes: Mapping[str, bytes]) -> AttributeChange:
    """Return the change of lifetime that goes with other tags, which may be none."""
    namespace = require_bucket(call)
    rules = stored_rules(stored_document(call.service.store, namespace))
    key, written_s = call.route.key, entry.mtime_ns // NS_PER_S
    before = _soonest(rules, key, entry.attributes, entry.size, written_s)
    if before == _soonest(rules, key, attributes, entry.size, written_s):
        return AttributeChange()
    retagged = entry._replace(attributes=attributes)
    change = _revision(rules, namespace, key, retagged, call.service.now_s())
    return change or AttributeChange()


def expiration_header(call: Call, entry: Entry) -> list[Header]:
    """Return x-amz-expiration, if the object has an end; only some are of a rule."""
    if not entry.expires_at_s:
        return []
    rule = None
    if entry.ttl_class == RULED_TTL_CLASS:
        rules = stored_rules(stored_document(call.service.store, require_bucket(call)))
        written_s = entry.mtime_ns // NS_PER_S
        rule = _soonest(rules, call.route.key, entry.attributes, entry.size, written_s)
    date = render_http_date(entry.expires_at_s)
    rule_id = "ttl" if rule is None else clean(rule.rule_id)
    return [("x-amz-expiration", f'expiry-date="{date}", rule-id="{rule_id}"')]


def revise_page(
    store: Store, namespace: Namespace, after: bytes, now_s: int, *, only_new: bool
) -> bytes:
    """Give the objects behind `after` the ends that the rules want; return where to go on, b"" at
    the end of the bucket. only_new: leave those alone that have an end by a rule already.

    Raises: NamespaceNotFound, and as a commit.
    """
    rules = stored_rules(stored_document(store, namespace))
    page = store.list_objects(namespace.name, after=after, limit=PAGE)
    keys = {item.entry.inode: item.key for item in page.objects}

    def decide(entry: Entry) -> AttributeChange | None:
        if only_new and entry.ttl_class == RULED_TTL_CLASS:
            return None
        return _revision(rules, namespace, keys[entry.inode], entry, now_s)

    wanted = [item.entry.inode for item in page.objects if decide(item.entry) is not None]
    store.revise(wanted, decide)
    return page.next_after if page.is_truncated else b""


def _revision(
    rules: tuple[Rule, ...], namespace: Namespace, key: bytes, entry: Entry, now_s: int
) -> AttributeChange | None:
    """Return what gives an object the end that the rules want, None if it is to stay as it is.

    A file that stays mutable is a slab with an order of its own, and one with several names is
    ended by the rule of none: both keep what they have.
    """
    is_ruled = entry.ttl_class == RULED_TTL_CLASS
    is_default = entry.ttl_s == namespace.default_ttl_s and entry.is_sliding
    has_own = bool(entry.ttl_s) and not is_ruled and not is_default
    if has_own or entry.is_mutable or entry.nlink > 1:
        return None
    written_s = entry.mtime_ns // NS_PER_S
    rule = _soonest(rules, key, entry.attributes, entry.size, written_s)
    if rule is None:
        if not is_ruled:
            return None
        return AttributeChange(ttl_s=namespace.default_ttl_s, is_sliding=True, ttl_class=0)
    ends_s = max(rule.ends_s(written_s), now_s + 1)
    if is_ruled and entry.expires_at_s == ends_s:
        return None
    return AttributeChange(
        ttl_s=ends_s - now_s,
        expires_at_s=ends_s,
        is_sliding=False,
        ttl_class=RULED_TTL_CLASS,
    )


def _soonest(
    rules: tuple[Rule, ...], key: bytes, attributes: Mapping[str, bytes], size: int, written_s: int
) -> Rule | None:
    tags = {
        name.removeprefix(TAG_PREFIX): value
        for name, value in attributes.items()
        if name.startswith(TAG_PREFIX)
    }
    return soonest(rules, key, tags, size, written_s)
