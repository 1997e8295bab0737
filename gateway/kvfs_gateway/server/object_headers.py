"""An object's S3 headers, and the extended attributes in which both doors keep them.

Owns the mapping `Content-Type` <-> `user.s3.content-type`, `x-amz-meta-x` <-> `user.s3.meta.x`, and
so on. Values are the header's bytes as latin-1 text. Holds: what a client may set is limited to
2 KiB of metadata, as S3 limits it; what the mount wrote there is cleaned before it is a header.
"""

from __future__ import annotations

import functools
import urllib.parse
from collections.abc import Mapping

from kvfs.model import Entry
from kvfs_gateway.s3.checksums import HEADER_PREFIX, Algorithm, encode_base64
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.http_dates import render_http_date
from kvfs_gateway.s3.target import Target
from kvfs_gateway.server.response import Header, clean

MAX_METADATA_LENGTH = 2048
MAX_TAGS = 10
DEFAULT_CONTENT_TYPE = "binary/octet-stream"

PREFIX = "user.s3."
META_PREFIX = PREFIX + "meta."
CHECKSUM_PREFIX = PREFIX + "checksum."
CHECKSUM_TYPE = PREFIX + "checksum-type"
PARTS = PREFIX + "parts"
"""A multipart object's parts, `size` or `size:checksum`, comma-separated, for `partNumber`."""
TAG_PREFIX = PREFIX + "tag."
"""One attribute a tag, so that lifecycle rules can name it."""
STORAGE_CLASS = PREFIX + "storage-class"

_CHECKSUM_ATTRIBUTES = tuple((CHECKSUM_PREFIX + item.value, item) for item in Algorithm)
_PLAIN_HEADERS = (
    "content-type",
    "content-encoding",
    "content-disposition",
    "content-language",
    "cache-control",
    "expires",
)
_SHOWN_AS = {name: "-".join(word.title() for word in name.split("-")) for name in _PLAIN_HEADERS}
_OVERRIDES = {f"response-{name}".encode(): name for name in _PLAIN_HEADERS}
_STORAGE_CLASSES = frozenset({"STANDARD", "REDUCED_REDUNDANCY"})


def read_attributes(headers: Mapping[str, str]) -> dict[str, bytes]:
    """Return the attributes that a PUT, copy or CreateMultipartUpload sets.

    Raises: S3Error MetadataTooLarge, InvalidStorageClass, InvalidTag.
    """
    attributes: dict[str, bytes] = {}
    metadata_length = 0
    for name, value in headers.items():
        if name.startswith("x-amz-meta-"):
            metadata_length += len(name) - len("x-amz-meta-") + len(value)
            attributes[META_PREFIX + name.removeprefix("x-amz-meta-")] = value.encode("latin-1")
        elif name in _PLAIN_HEADERS:
            kept = _without_aws_chunked(value) if name == "content-encoding" else value
            if kept:
                attributes[PREFIX + name] = kept.encode("latin-1")
    if metadata_length > MAX_METADATA_LENGTH:
        raise S3Error("MetadataTooLarge")
    storage_class = headers.get("x-amz-storage-class", "STANDARD")
    if storage_class not in _STORAGE_CLASSES:
        raise S3Error("InvalidStorageClass")
    if storage_class != "STANDARD":
        attributes[STORAGE_CLASS] = storage_class.encode("ascii")
    if headers.get("x-amz-tagging"):
        attributes.update(tag_attributes(parse_tagging_header(headers["x-amz-tagging"])))
    return attributes


def _without_aws_chunked(value: str) -> str:
    codings = [coding.strip() for coding in value.split(",")]
    return ", ".join(coding for coding in codings if coding and coding.lower() != "aws-chunked")


def checksum_attributes(
    checksum: tuple[Algorithm, bytes] | None, kind: str = "FULL_OBJECT", suffix: str = ""
) -> dict[str, bytes]:
    """Return the attributes that keep a computed checksum; suffix: `-<parts>` of a composite."""
    if checksum is None:
        return {}
    algorithm, value = checksum
    return {
        CHECKSUM_PREFIX + algorithm.value: (encode_base64(value) + suffix).encode("ascii"),
        CHECKSUM_TYPE: kind.encode("ascii"),
    }


def stored_checksum(entry_attributes: Mapping[str, bytes]) -> tuple[Algorithm, str, str] | None:
    """Return (algorithm, base64 text, type) that an object keeps."""
    for name, algorithm in _CHECKSUM_ATTRIBUTES:
        value = entry_attributes.get(name)
        if value is not None:
            kind = entry_attributes.get(CHECKSUM_TYPE, b"FULL_OBJECT")
            return algorithm, clean(value.decode("latin-1")), clean(kind.decode("latin-1"))
    return None


def object_headers(entry: Entry, *, with_checksum: bool) -> list[Header]:
    """Return the headers of a GET or HEAD of `entry`, but for length, range and expiration."""
    headers: list[Header] = [
        ("Last-Modified", render_http_date(entry.mtime_ns // 1_000_000_000)),
        ("ETag", f'"{entry.etag}"'),
        ("Accept-Ranges", "bytes"),
    ]
    attributes = entry.attributes
    if not attributes:
        headers.append(("Content-Type", DEFAULT_CONTENT_TYPE))
        return headers
    if PREFIX + "content-type" not in attributes:
        headers.append(("Content-Type", DEFAULT_CONTENT_TYPE))
    tag_count = 0
    for name, value in attributes.items():
        header = _header_of(name)
        if header:
            headers.append((header, clean(value.decode("latin-1"))))
        elif name.startswith(TAG_PREFIX):
            tag_count += 1
    if tag_count:
        headers.append(("x-amz-tagging-count", str(tag_count)))
    checksum = stored_checksum(attributes) if with_checksum else None
    if checksum is not None:
        headers.append((checksum[0].header, checksum[1]))
        headers.append((HEADER_PREFIX + "type", checksum[2]))
    return headers


@functools.lru_cache(maxsize=1024)
def _header_of(attribute: str) -> str:
    """Return the header that shows an attribute, "" if none does."""
    if not attribute.startswith(PREFIX):
        return ""
    if attribute.startswith(META_PREFIX):
        name = "x-amz-meta-" + attribute.removeprefix(META_PREFIX)
        return name if name.isascii() and name.isprintable() and not set(name) & set(" :") else ""
    if attribute == STORAGE_CLASS:
        return "x-amz-storage-class"
    return _SHOWN_AS.get(attribute.removeprefix(PREFIX), "")


def apply_overrides(headers: list[Header], target: Target) -> list[Header]:
    """Return `headers` with the response-* parameters of the query in their place.

    Raises: S3Error InvalidArgument for a value that would break out of its header.
    """
    wanted: dict[str, str] = {}
    for name, value in target.query:
        shown = _SHOWN_AS.get(_OVERRIDES.get(name, ""), "")
        if shown:
            text = value.decode("latin-1")
            if clean(text) != text:
                raise S3Error(
                    "InvalidArgument", f"The value of {name.decode()} is no header value."
                )
            wanted[shown] = text
    if not wanted:
        return headers
    return [header for header in headers if header[0] not in wanted] + list(wanted.items())


# -- tags

Tags = tuple[tuple[str, str], ...]


def parse_tagging_header(text: str) -> Tags:
    """Return the tags of x-amz-tagging, which is written like a query. Raises: S3Error."""
    try:
        pairs = urllib.parse.parse_qsl(
            text, keep_blank_values=True, max_num_fields=64, errors="strict"
        )
    except ValueError:
        raise S3Error("InvalidArgument", "The x-amz-tagging header is malformed.") from None
    return check_tags(tuple(pairs))


def check_tags(tags: Tags, limit: int = MAX_TAGS) -> Tags:
    """Return `tags` if S3 would take them. Raises: S3Error InvalidTag."""
    if len(tags) > limit:
        raise S3Error("InvalidTag", f"There cannot be more than {limit} tags.")
    if len({key for key, _ in tags}) != len(tags):
        raise S3Error("InvalidTag", "Cannot provide multiple Tags with the same key")
    for key, value in tags:
        if not 1 <= len(key) <= 128 or len(value) > 256 or key.startswith("aws:"):
            raise S3Error("InvalidTag")
    return tags


def tag_attributes(tags: Tags) -> dict[str, bytes]:
    """Return the attributes that keep tags."""
    return {TAG_PREFIX + key: value.encode() for key, value in tags}


def read_tags(attributes: Mapping[str, bytes]) -> Tags:
    """Return an object's tags, whoever wrote them."""
    return tuple(
        (name.removeprefix(TAG_PREFIX), value.decode("utf-8", "replace"))
        for name, value in sorted(attributes.items())
        if name.startswith(TAG_PREFIX)
    )
