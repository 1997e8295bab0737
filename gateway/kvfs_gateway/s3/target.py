"""Request targets: path and query taken apart once, percent-decoded to the bytes the client meant.

Owns percent-encoding in both directions. Works on bytes: a key is bytes, and whether they are UTF-8
is routing's question. Holds: a decoded part is never decoded again, so `%252F` stays `%2F`.
"""

from __future__ import annotations

import re
import urllib.parse
from typing import NamedTuple

from kvfs_gateway.s3.errors import S3Error

MAX_QUERY_PARAMETERS = 64

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)([^#]*)", re.IGNORECASE)
_UNRESERVED = re.compile(rb"[A-Za-z0-9\-._~]*")
_UNRESERVED_PATH = re.compile(rb"[A-Za-z0-9\-._~/]*")


class Target(NamedTuple):
    """What stands between the method and the version."""

    raw_path: bytes
    path: bytes
    """Percent-decoded; starts with a slash."""
    query: tuple[tuple[bytes, bytes], ...]
    """Decoded, in the order sent; a name without `=` has the value b""."""
    authority: str
    """Host of an absolute-form target; "" otherwise."""

    def value(self, name: bytes) -> bytes | None:
        """Return the value of a query parameter, None when it is absent."""
        for key, value in self.query:
            if key == name:
                return value
        return None


def parse_target(raw: bytes) -> Target:
    """Take a target apart. Raises: S3Error for bad escapes, fragments and repeated names."""
    authority = ""
    if not raw.startswith(b"/"):
        match = _ABSOLUTE.fullmatch(raw)
        if match is None:
            raise S3Error("InvalidURI", closes=True)
        authority = match[1].decode("latin-1")
        raw = match[2]
        if not raw.startswith(b"/"):
            raw = b"/" + raw
    raw_path, _, raw_query = raw.partition(b"?")
    if b"#" in raw:
        raise S3Error("InvalidURI")
    query = _parse_query(raw_query) if raw_query else ()
    return Target(raw_path, percent_decode(raw_path), query, authority)


def percent_decode(data: bytes) -> bytes:
    """Decode `%XX` once. Raises: S3Error InvalidURI for a `%` without two hexadecimal digits."""
    if b"%" not in data:
        return data
    if _BAD_ESCAPE.search(data):
        raise S3Error("InvalidURI")
    return urllib.parse.unquote_to_bytes(data)


def percent_encode(data: bytes, *, keeps_slash: bool = False) -> str:
    """Encode as SigV4 and S3's `encoding-type=url` do: all but letters, digits and `-._~`."""
    if (_UNRESERVED_PATH if keeps_slash else _UNRESERVED).fullmatch(data):
        return data.decode("ascii")
    return urllib.parse.quote_from_bytes(data, safe="/" if keeps_slash else "")


def _parse_query(raw: bytes) -> tuple[tuple[bytes, bytes], ...]:
    items = [item for item in raw.split(b"&") if item]
    if len(items) > MAX_QUERY_PARAMETERS:
        raise S3Error("InvalidArgument", "Too many query parameters.")
    pairs = []
    for item in items:
        name, _, value = item.replace(b"+", b" ").partition(b"=")
        pairs.append((percent_decode(name), percent_decode(value)))
    if len({name for name, _ in pairs}) != len(pairs):
        raise S3Error("InvalidArgument", "A query parameter occurs twice.")
    return tuple(pairs)
