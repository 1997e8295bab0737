"""CopyObject, and the source that it and UploadPartCopy read from.

Owns x-amz-copy-source and the directives. Within a bucket a copy is a row in the index, whatever
the object's size; across buckets the bytes are copied, because digests of two namespaces never meet
(I6).
"""

from __future__ import annotations

from kvfs.errors import Corrupt, NotFound
from kvfs.model import Entry, ObjectPath, PutOptions, WriteCondition
from kvfs.store.read_view import ReadView
from kvfs_gateway.s3 import xml
from kvfs_gateway.s3.conditions import Outcome, decide, read_conditions
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.http_dates import render_iso_date
from kvfs_gateway.s3.target import percent_decode
from kvfs_gateway.server.bucket_handlers import require_bucket
from kvfs_gateway.server.lifetimes import with_lifetime
from kvfs_gateway.server.object_handlers import MAX_PUT_LENGTH, read_write_condition
from kvfs_gateway.server.object_headers import (
    CHECKSUM_PREFIX,
    CHECKSUM_TYPE,
    PARTS,
    TAG_PREFIX,
    read_attributes,
    stored_checksum,
)
from kvfs_gateway.server.response import Response, xml_response
from kvfs_gateway.server.service import Call

MAX_ATTEMPTS = 4
"""A source that is replaced while it is copied is copied again."""


def read_copy_source(call: Call) -> ObjectPath:
    """Return what x-amz-copy-source names.

    Raises: S3Error InvalidArgument, NoSuchVersion, AccessDenied (the credential is for others).
    """
    text, _, query = call.head.headers["x-amz-copy-source"].partition("?")
    if query and query != "versionId=null":
        raise S3Error("NoSuchVersion" if query.startswith("versionId=") else "InvalidArgument")
    path = percent_decode(text.encode("latin-1")).removeprefix(b"/")
    bucket, slash, key = path.partition(b"/")
    if not slash or not bucket or not key:
        raise S3Error(
            "InvalidArgument",
            "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
        )
    if not call.may_see(bucket):
        raise S3Error("AccessDenied")
    return ObjectPath(bucket, key)


def find_copy_source(call: Call) -> Entry:
    """Return the source's entry, its conditions checked. Raises: S3Error 403, 404, 412."""
    source = read_copy_source(call)
    store = call.service.store
    entry = store.find(source)
    if entry is None:
        if store.find_namespace(source.namespace) is None:
            raise S3Error("NoSuchBucket")
        raise S3Error("NoSuchKey")
    conditions = read_conditions(call.head.headers, "x-amz-copy-source-")
    if decide(conditions, entry.etag, entry.mtime_ns // 1_000_000_000) is not Outcome.PROCEED:
        raise S3Error("PreconditionFailed")
    return entry


async def open_copy_source(call: Call) -> ReadView:
    """Return the opened source of UploadPartCopy. Raises: S3Error 403, 404, 412."""
    entry = find_copy_source(call)
    try:
        return await call.service.read(call.service.store.open_inode, entry.inode)
    except (NotFound, Corrupt):
        raise S3Error("NoSuchKey") from None


async def copy_object(call: Call) -> Response:
    """Give an object's bytes another name, or other metadata under its own."""
    namespace = require_bucket(call)
    headers = call.head.headers
    replaces_metadata = _directive(headers.get("x-amz-metadata-directive", "COPY"))
    replaces_tags = _directive(headers.get("x-amz-tagging-directive", "COPY"))
    condition = read_write_condition(call)
    source = read_copy_source(call)
    changes = replaces_metadata or replaces_tags or "x-amz-storage-class" in headers
    if source == call.path and not changes:
        raise S3Error(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself "
            "without changing the object's metadata, storage class, website redirect location "
            "or encryption attributes.",
        )
    for _ in range(MAX_ATTEMPTS):
        entry = find_copy_source(call)
        if entry.size > MAX_PUT_LENGTH:
            raise S3Error("InvalidRequest", "The specified copy source is larger than 5 GiB.")
        attributes = _attributes(call, entry, replaces_metadata, replaces_tags)
        etag = "" if entry.is_mutable else entry.etag  # the copy of such a file is sealed
        options = PutOptions(attributes=attributes, etag=etag, condition=condition)
        options = with_lifetime(call, namespace, options, entry.size)
        store = call.service.store
        copied = await call.service.write(store.copy, source, call.path, options)
        if _is_of(call, copied, entry, source):
            return xml_response(xml.render("CopyObject", _result(copied)))
        condition = WriteCondition()
    raise S3Error("ServiceUnavailable", "The source changes all the time.")


def _is_of(call: Call, copied: Entry, entry: Entry, source: ObjectPath) -> bool:
    """Return whether the copied bytes are those of `entry`, whose ETag and checksums they got."""
    if entry.is_mutable:  # a copy that it was written into meanwhile was refused
        return True
    if copied.namespace_id == entry.namespace_id:
        return copied.digest == entry.digest
    now = call.service.store.find(source)  # digests of two namespaces cannot be compared
    return now is not None and now.digest == entry.digest


def _directive(value: str) -> bool:
    if value not in ("COPY", "REPLACE"):
        raise S3Error("InvalidArgument", "A directive is COPY or REPLACE.")
    return value == "REPLACE"


def _attributes(
    call: Call, entry: Entry, replaces_metadata: bool, replaces_tags: bool
) -> dict[str, bytes]:
    given = read_attributes(call.head.headers)
    of_the_bytes = (CHECKSUM_PREFIX, CHECKSUM_TYPE, PARTS)
    kept = {}
    for origin, is_given in ((entry.attributes, False), (given, True)):
        for name, value in origin.items():
            if name.startswith(of_the_bytes):
                is_kept = not is_given
            elif name.startswith(TAG_PREFIX):
                is_kept = is_given is replaces_tags
            else:
                is_kept = is_given is replaces_metadata
            if is_kept:
                kept[name] = value
    return kept


def _result(entry: Entry) -> dict[str, xml.Value]:
    result: dict[str, xml.Value] = {
        "ETag": f'"{entry.etag}"',
        "LastModified": render_iso_date(entry.mtime_ns),
    }
    checksum = stored_checksum(entry.attributes)
    if checksum is not None:
        result[checksum[0].field] = checksum[1]
        result["ChecksumType"] = checksum[2]
    return result
