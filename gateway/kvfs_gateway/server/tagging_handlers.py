"""Tags of objects and buckets, and what else is told of an object without its bytes.

Owns small documents. A tag is an extended attribute, `user.s3.tag.<key>`, which lifecycle rules
may name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvfs.errors import NotFound
from kvfs.model import AttributeChange, Entry
from kvfs_gateway.s3 import xml
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.http_dates import render_http_date
from kvfs_gateway.server.bucket_handlers import read_document, require_bucket
from kvfs_gateway.server.lifetimes import retagged_lifetime
from kvfs_gateway.server.object_handlers import miss, part_list
from kvfs_gateway.server.object_headers import (
    MAX_TAGS,
    STORAGE_CLASS,
    TAG_PREFIX,
    Tags,
    check_tags,
    read_tags,
    stored_checksum,
    tag_attributes,
)
from kvfs_gateway.server.response import Response, empty_response, xml_response
from kvfs_gateway.server.service import Call

MAX_LISTED_PARTS = 1000
MAX_BUCKET_TAGS = 50
MAX_ATTEMPTS = 4
"""A change of tags is looked up, and made if the tags are still those that were seen."""
_ATTRIBUTES = frozenset({"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"})

Document = dict[str, xml.Value]


def _require(call: Call) -> Entry:
    entry = call.service.store.find(call.path)
    if entry is None:
        raise miss(call)
    return entry


async def get_object_tagging(call: Call) -> Response:
    """List an object's tags."""
    return _tag_document("GetObjectTagging", read_tags(_require(call).attributes))


def _tag_document(operation: str, tags: Tags) -> Response:
    pairs = [{"Key": key, "Value": value} for key, value in tags]
    return xml_response(xml.render(operation, {"TagSet": pairs}))


async def _read_tag_document(call: Call, operation: str, limit: int) -> Tags:
    document = await read_document(call, operation)
    listed = document.get("TagSet")
    if not isinstance(listed, list):
        raise S3Error("MalformedXML")
    return check_tags(tuple((str(item["Key"]), str(item["Value"])) for item in listed), limit)


async def put_object_tagging(call: Call) -> Response:
    """Replace an object's tags."""
    tags = await _read_tag_document(call, "PutObjectTagging", MAX_TAGS)
    await _replace_tags(call, tag_attributes(tags))
    return empty_response(200)


async def delete_object_tagging(call: Call) -> Response:
    """Remove an object's tags."""
    await _replace_tags(call, {})
    return empty_response(204)


async def _replace_tags(call: Call, wanted: dict[str, bytes]) -> None:
    for _ in range(MAX_ATTEMPTS):
        entry = _require(call)
        kept = {k: v for k, v in entry.attributes.items() if not k.startswith(TAG_PREFIX)}
        change = replace(
            retagged_lifetime(call, entry, {**kept, **wanted}),
            set_attributes=wanted,
            remove_attributes=tuple(entry.attributes.keys() - kept.keys() - wanted.keys()),
        )
        try:
            await call.service.write(call.service.store.set_attributes, entry.inode, change)
        except NotFound:
            continue  # replaced, or one of its tags removed, since it was looked up
        return
    raise S3Error("ServiceUnavailable", "The object changes all the time.")


# -- tags of buckets: kept like an object's, on the bucket's directory


async def get_bucket_tagging(call: Call) -> Response:
    """List a bucket's tags."""
    tags = read_tags(_bucket(call).attributes)
    if not tags:
        raise S3Error("NoSuchTagSet")
    return _tag_document("GetBucketTagging", tags)


async def put_bucket_tagging(call: Call) -> Response:
    """Replace a bucket's tags."""
    require_bucket(call)
    tags = await _read_tag_document(call, "PutBucketTagging", MAX_BUCKET_TAGS)
    await _replace_bucket_tags(call, tag_attributes(tags))
    return empty_response(204)


async def delete_bucket_tagging(call: Call) -> Response:
    """Remove a bucket's tags."""
    await _replace_bucket_tags(call, {})
    return empty_response(204)


def _bucket(call: Call) -> Entry:
    entry = call.service.store.stat_inode(require_bucket(call).inode)
    if entry is None:
        raise miss(call)
    return entry


async def _replace_bucket_tags(call: Call, wanted: dict[str, bytes]) -> None:
    for _ in range(MAX_ATTEMPTS):
        entry = _bucket(call)
        present = {name for name in entry.attributes if name.startswith(TAG_PREFIX)}
        change = AttributeChange(
            set_attributes=wanted, remove_attributes=tuple(present - wanted.keys())
        )
        try:
            await call.service.write(call.service.store.set_attributes, entry.inode, change)
        except NotFound:
            continue
        return
    raise S3Error("ServiceUnavailable", "The bucket changes all the time.")


async def get_object_attributes(call: Call) -> Response:
    """Tell what is known of an object without its bytes."""
    wanted = {
        word.strip() for word in call.head.get("x-amz-object-attributes").split(",") if word.strip()
    }
    if not wanted or wanted - _ATTRIBUTES:
        raise S3Error("InvalidArgument", "Invalid attribute name specified.")
    entry = _require(call)
    whole: Mapping[str, xml.Value] = {
        "ETag": entry.etag,
        "Checksum": _checksum(entry),
        "ObjectParts": _parts(call, entry),
        "StorageClass": entry.attributes.get(STORAGE_CLASS, b"STANDARD").decode("latin-1"),
        "ObjectSize": entry.size,
    }
    document = {name: value for name, value in whole.items() if name in wanted and value != {}}
    modified = render_http_date(entry.mtime_ns // 1_000_000_000)
    body = xml.render("GetObjectAttributes", document)
    return xml_response(body, headers=[("Last-Modified", modified)])


def _checksum(entry: Entry) -> Document:
    checksum = stored_checksum(entry.attributes)
    if checksum is None:
        return {}
    return {checksum[0].field: checksum[1], "ChecksumType": checksum[2]}


def _parts(call: Call, entry: Entry) -> Document:
    listed = part_list(entry)
    if not listed:
        return {}
    checksum = stored_checksum(entry.attributes)
    field = checksum[0].field if checksum is not None else ""
    limit = _number(call, "x-amz-max-parts", MAX_LISTED_PARTS)
    marker = _number(call, "x-amz-part-number-marker", 0)
    page = list(enumerate(listed, start=1))[marker : marker + min(limit, MAX_LISTED_PARTS)]
    return {
        "TotalPartsCount": len(listed),
        "PartNumberMarker": marker,
        "NextPartNumberMarker": page[-1][0] if page else 0,
        "MaxParts": limit,
        "IsTruncated": marker + len(page) < len(listed),
        "Parts": [
            {"PartNumber": number, "Size": size, **({field: value} if field and value else {})}
            for number, (size, value) in page
        ],
    }


def _number(call: Call, header: str, default: int) -> int:
    text = call.head.get(header)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise S3Error("InvalidArgument", f"{header} is no number.")
    return int(text)
