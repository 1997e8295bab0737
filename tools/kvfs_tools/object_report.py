"""Objects and buckets as text and as JSON records; the fields' names are stable."""

from __future__ import annotations

import datetime

from kvfs.model import Entry, Namespace, ObjectPath
from kvfs_tools.sizes import render_bytes, render_duration, render_json_name, render_size


def entry_record(path: ObjectPath, entry: Entry) -> dict[str, object]:
    """Return an object as `--json` prints it; times are UTC in ISO 8601, null = never."""
    return {
        "bucket": render_json_name(path.namespace),
        "key": render_json_name(path.key),
        "size": entry.size,
        "etag": entry.etag,
        "digest": entry.digest.hex(),
        "modified": _instant(entry.mtime_ns / 1e9),
        "accessed": _instant(entry.accessed_s),
        "expires": _instant(entry.expires_at_s),
        "ttl_s": entry.ttl_s,
        "sliding": entry.is_sliding,
        "pin": entry.pin.name.lower(),
        "priority": entry.priority,
        "links": entry.nlink,
        "mutable": entry.is_mutable,
        "allocated": entry.allocated_bytes if entry.is_mutable else None,
        "attributes": {
            name: value.decode("utf-8", "backslashreplace")
            for name, value in sorted(entry.attributes.items())
        },
    }


def entry_text(path: ObjectPath, entry: Entry) -> str:
    """Return an object for a reader."""
    ttl = f" (TTL {render_duration(entry.ttl_s)})" if entry.ttl_s else ""
    lines = [
        f"object    {render_bytes(path.namespace)}/{render_bytes(path.key)}",
        f"size      {entry.size} bytes ({render_size(entry.size)})",
        f"digest    {entry.digest.hex() or '-'}",
        f"etag      {entry.etag}",
        f"modified  {_instant(entry.mtime_ns / 1e9)}",
        f"accessed  {_instant(entry.accessed_s) or '-'}",
        f"expires   {_instant(entry.expires_at_s) or 'never'}{ttl}",
    ]
    if entry.is_mutable:
        lines.insert(2, f"mutable   {render_size(entry.allocated_bytes)} allocated")
    lines += [
        f"attribute {name} = {render_bytes(value)}"
        for name, value in sorted(entry.attributes.items())
    ]
    return "\n".join(lines)


def namespace_record(namespace: Namespace) -> dict[str, object]:
    """Return a bucket as `--json` prints it."""
    return {
        "bucket": render_json_name(namespace.name),
        "created": _instant(namespace.created_ns / 1e9),
        "objects": namespace.object_count,
        "bytes": namespace.logical_bytes,
        "quota_bytes": namespace.quota_bytes,
        "quota_objects": namespace.quota_objects,
        "default_ttl_s": namespace.default_ttl_s,
    }


def namespace_text(namespace: Namespace) -> str:
    """Return a bucket for a reader."""
    quota = render_size(namespace.quota_bytes) if namespace.quota_bytes else "none"
    ttl = render_duration(namespace.default_ttl_s) if namespace.default_ttl_s else "none"
    return "\n".join(
        [
            f"bucket    {render_bytes(namespace.name)}",
            f"objects   {namespace.object_count}",
            f"size      {render_size(namespace.logical_bytes)}",
            f"quota     {quota}",
            f"ttl       {ttl}",
            f"created   {_instant(namespace.created_ns / 1e9)}",
        ]
    )


def _instant(seconds: float) -> str | None:
    if not seconds:
        return None
    moment = datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
