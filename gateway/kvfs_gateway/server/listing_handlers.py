"""ListObjectsV2, ListObjects and ListObjectVersions: pages in byte order.

Owns the parameters and the documents; the order comes from the index. Keys are bytes: one that XML
cannot carry is shown with U+FFFD unless the client asks for `encoding-type=url`, as SDKs do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvfs.model import ListedObject, ListPage
from kvfs_gateway.s3 import xml
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.http_dates import render_iso_date
from kvfs_gateway.s3.target import percent_encode
from kvfs_gateway.server.bucket_handlers import decode_token, encode_token, owner, require_bucket
from kvfs_gateway.server.object_headers import STORAGE_CLASS, stored_checksum
from kvfs_gateway.server.response import Response, xml_response
from kvfs_gateway.server.service import Call

MAX_KEYS = 1000

Document = dict[str, xml.Value]


@dataclass(frozen=True, slots=True)
class _Query:
    prefix: bytes
    delimiter: bytes
    limit: int
    encode: Callable[[bytes], str]
    is_encoded: bool


def _read_query(call: Call) -> _Query:
    encoding = call.parameter("encoding-type")
    if encoding not in ("", "url"):
        raise S3Error("InvalidArgument", "Invalid Encoding Method specified in Request")
    return _Query(
        prefix=_value(call, "prefix"),
        delimiter=_value(call, "delimiter"),
        limit=call.count("max-keys", MAX_KEYS, MAX_KEYS),
        encode=_encode_url if encoding else _plain_text,
        is_encoded=bool(encoding),
    )


def _value(call: Call, name: str) -> bytes:
    return call.parameter(name).encode()


def _encode_url(value: bytes) -> str:
    return percent_encode(value, keeps_slash=True)


def _plain_text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


async def _page(call: Call, query: _Query, after: bytes) -> ListPage:
    require_bucket(call)
    if query.limit == 0:
        return ListPage((), (), False, b"")
    return await call.service.read(
        call.service.store.list_objects,
        call.route.bucket,
        prefix=query.prefix,
        delimiter=query.delimiter,
        after=after,
        limit=query.limit,
    )


def _document(call: Call, query: _Query, page: ListPage) -> Document:
    document: Document = {
        "Name": call.route.bucket.decode("utf-8", "replace"),
        "Prefix": query.encode(query.prefix),
        "MaxKeys": query.limit,
        "IsTruncated": page.is_truncated,
        "CommonPrefixes": [{"Prefix": query.encode(item)} for item in page.common_prefixes],
    }
    if query.delimiter:
        document["Delimiter"] = query.encode(query.delimiter)
    if query.is_encoded:
        document["EncodingType"] = "url"
    return document


def _contents(call: Call, query: _Query, item: ListedObject, *, with_owner: bool) -> Document:
    entry = item.entry
    contents: Document = {
        "Key": query.encode(item.key),
        "LastModified": render_iso_date(entry.mtime_ns),
        "ETag": f'"{entry.etag}"',
        "Size": entry.size,
        "StorageClass": entry.attributes.get(STORAGE_CLASS, b"STANDARD").decode("latin-1"),
    }
    checksum = stored_checksum(entry.attributes)
    if checksum is not None:
        contents["ChecksumAlgorithm"] = [checksum[0].name]
        contents["ChecksumType"] = checksum[2]
    if with_owner:
        contents["Owner"] = owner(call)
    return contents


async def list_objects_v2(call: Call) -> Response:
    """List with continuation tokens."""
    query = _read_query(call)
    token = call.parameter("continuation-token")
    start_after = _value(call, "start-after")
    page = await _page(call, query, decode_token(token) or start_after)
    with_owner = call.parameter("fetch-owner") == "true"
    document = _document(call, query, page)
    document["KeyCount"] = len(page.objects) + len(page.common_prefixes)
    document["Contents"] = [
        _contents(call, query, item, with_owner=with_owner) for item in page.objects
    ]
    if start_after:
        document["StartAfter"] = query.encode(start_after)
    if call.target.value(b"continuation-token") is not None:
        document["ContinuationToken"] = token
    if page.is_truncated:
        document["NextContinuationToken"] = encode_token(page.next_after)
    return xml_response(xml.render("ListObjectsV2", document))


async def list_objects(call: Call) -> Response:
    """List with markers, version 1."""
    query = _read_query(call)
    marker = _value(call, "marker")
    page = await _page(call, query, marker)
    document = _document(call, query, page)
    document["Marker"] = query.encode(marker)
    document["Prefix"] = _plain_text(query.prefix)  # botocore decodes it in version 2 only
    document["Contents"] = [_contents(call, query, item, with_owner=True) for item in page.objects]
    if page.is_truncated and query.delimiter:
        document["NextMarker"] = query.encode(page.next_after)
    return xml_response(xml.render("ListObjects", document))


async def list_object_versions(call: Call) -> Response:
    """List the one version, `null`, that every object of an unversioned bucket has."""
    query = _read_query(call)
    marker = _value(call, "key-marker")
    page = await _page(call, query, marker)
    document = _document(call, query, page)
    document["KeyMarker"] = query.encode(marker)
    document["VersionIdMarker"] = call.parameter("version-id-marker")
    document["Versions"] = [
        {
            **_contents(call, query, item, with_owner=True),
            "VersionId": "null",
            "IsLatest": True,
        }
        for item in page.objects
    ]
    if page.is_truncated:
        document["NextKeyMarker"] = query.encode(page.next_after)
        document["NextVersionIdMarker"] = "null"
    return xml_response(xml.render("ListObjectVersions", document))
