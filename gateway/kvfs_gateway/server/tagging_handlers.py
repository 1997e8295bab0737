"""Object tags, and GetObjectAttributes.

Owns two small documents. A tag is an extended attribute, `user.s3.tag.<key>`, which lifecycle rules
may name.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvfs.errors import NotFound
from kvfs.model import AttributeChange, Entry
from kvfs_gateway.s3 import xml
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.http_dates import render_http_date
from kvfs_gateway.server.bucket_handlers import read_document
from kvfs_gateway.server.object_handlers import miss, part_list
from kvfs_gateway.server.object_headers import (
    STORAGE_CLASS,
    TAG_PREFIX,
    check_tags,
    read_tags,
    stored_checksum,
    tag_attributes,
)
from kvfs_gateway.server.response import Response, empty_response, xml_response
from kvfs_gateway.server.service import Call

MAX_LISTED_PARTS = 1000
_ATTRIBUTES = frozenset({"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"})

Document = dict[str, xml.Value]


def _require(call: Call) -> Entry:
    entry = call.service.store.find(call.path)
    if entry is None:
        raise miss(call)
    return entry


async def get_object_tagging(call: Call) -> Response:
    """List an object's tags."""
    tags = read_tags(_require(call).attributes)
    pairs = [{"Key": key, "Value": value} for key, value in tags]
    return xml_response(xml.render("GetObjectTagging", {"TagSet": pairs}))


async def put_object_tagging(call: Call) -> Response:
    """Replace an object's tags."""
    document = await read_document(call, "PutObjectTagging")
    listed = document.get("TagSet")
    if not isinstance(listed, list):
        raise S3Error("MalformedXML")
    tags = check_tags(tuple((str(item["Key"]), str(item["Value"])) for item in listed))
    await _replace_tags(call, tag_attributes(tags))
    return empty_response(200)


async def delete_object_tagging(call: Call) -> Response:
    """Remove an object's tags."""
    await _replace_tags(call, {})
    return empty_response(204)


async def _replace_tags(call: Call, wanted: dict[str, bytes]) -> None:
    entry = _require(call)
    present = {name for name in entry.attributes if name.startswith(TAG_PREFIX)}
    removed = tuple(present - wanted.keys())
    change = AttributeChange(set_attributes=wanted, remove_attributes=removed)
    try:
        await call.service.write(call.service.store.set_attributes, entry.inode, change)
    except NotFound:
        raise miss(call) from None


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
