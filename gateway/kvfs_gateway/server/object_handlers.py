"""PUT, GET, HEAD and DELETE of one object.

Owns the order of the checks: conditions before the body is asked for, every promise about the body
before it becomes visible. HEAD and a miss run on the event loop alone: an index lookup takes
microseconds, a hop to a thread more than that.
"""

from __future__ import annotations

import contextlib

from kvfs.errors import Corrupt, NotFound
from kvfs.model import Entry, PutOptions, WriteCondition
from kvfs.store.part_files import PartWriter
from kvfs.store.staging import Staging
from kvfs_gateway.s3.conditions import (
    READ_CONDITIONS,
    Outcome,
    decide,
    read_conditions,
    write_if_match,
    write_if_none_match,
)
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.http_dates import parse_http_date
from kvfs_gateway.s3.ranges import ByteRange, parse_range
from kvfs_gateway.server.body import MAX_MD5_LENGTH
from kvfs_gateway.server.bucket_handlers import require_bucket
from kvfs_gateway.server.lifetimes import expiration_header, with_lifetime
from kvfs_gateway.server.object_headers import (
    PARTS,
    apply_overrides,
    checksum_attributes,
    object_headers,
    read_attributes,
    stored_checksum,
)
from kvfs_gateway.server.response import Header, Response, clean, empty_response
from kvfs_gateway.server.service import Call

SLOW_WRITE_NS = 10_000_000
"""A write into the page cache takes 0.1 ms. One that took this long met a disk that throttles: the
next goes through a thread (50 us more), so that only this upload waits."""
MAX_PUT_LENGTH = 5 * 1024**3
"""S3's limit on one PUT; larger objects come in parts."""


def read_write_condition(call: Call) -> WriteCondition:
    """Return what must hold of the present object. Raises: S3Error NotImplemented."""
    etag = write_if_match(call.head.headers)
    other = write_if_none_match(call.head.headers)
    if other and etag:
        raise S3Error("InvalidRequest", "If-Match and If-None-Match exclude each other.")
    if other == "*":
        return WriteCondition(must_be_absent=True)
    return WriteCondition(etag=etag, other_etag=other)


async def put_object(call: Call) -> Response:
    """Store the body under the key, all of it or nothing."""
    options = PutOptions(
        attributes=read_attributes(call.head.headers), condition=read_write_condition(call)
    )
    length = expected_length(call)
    namespace = require_bucket(call)
    _refuse_early(call, options.condition)
    wants_md5 = call.service.has_md5_etags or (length is not None and length <= MAX_MD5_LENGTH)
    call.body.begin(call.authentication, wants_md5=wants_md5)
    store = call.service.store
    staging = await call.service.write(
        store.stage_in_order, namespace.namespace_id, size_bytes=length
    )
    try:
        size = await receive(call, staging, MAX_PUT_LENGTH)
        digests = call.body.finish()
        if length is not None and size != length:
            raise S3Error("IncompleteBody")
        options = with_digests(options, digests.md5_hex, checksum_attributes(digests.checksum))
        options = with_lifetime(call, namespace, options, size)
        entry = await call.service.publish(store.publish, staging, call.path, options)
    finally:
        staging.close()
    return empty_response(200, put_headers(entry) + expiration_header(call, entry))


def expected_length(call: Call) -> int | None:
    """Return the payload's declared length. Raises: S3Error (absent, or too large)."""
    if "content-length" not in call.head.headers and "transfer-encoding" not in call.head.headers:
        raise S3Error("MissingContentLength")
    length = call.body.decoded_length(call.authentication)
    if length is not None and length > MAX_PUT_LENGTH:
        raise S3Error("EntityTooLarge")
    return length


def _refuse_early(call: Call, condition: WriteCondition) -> None:
    """Refuse before the body is sent what publishing would refuse in its transaction anyway."""
    if condition == WriteCondition():
        return
    entry = call.service.store.find(call.path)
    if entry is None:
        if condition.etag:
            raise S3Error("NoSuchKey")
    elif condition.must_be_absent or condition.other_etag == entry.etag:
        raise S3Error("PreconditionFailed", fields=(("Condition", "If-None-Match"),))
    elif condition.etag not in ("", "*", entry.etag):
        raise S3Error("PreconditionFailed", fields=(("Condition", "If-Match"),))


async def receive(call: Call, staging: Staging | PartWriter, limit: int) -> int:
    """Write the payload into `staging`; return its length. Raises: S3Error, NoSpace."""
    offset = 0
    is_slow = False
    now_ns = call.service.clock.monotonic_ns
    while True:
        slices = await call.body.read()
        if not slices:
            return offset
        end = offset + sum(len(piece) for piece in slices)
        if end > limit:
            raise S3Error("EntityTooLarge", closes=True)
        if end > staging.reserved:
            # Growing the reservation commits to the index and may evict.
            await call.service.write(staging.ensure, min(end + 8 * 1024 * 1024, limit))
        started = now_ns()
        for piece in slices:
            if is_slow:
                offset += await call.service.write(staging.pwrite, piece, offset)
            else:
                offset += staging.pwrite(piece, offset)
        is_slow = now_ns() - started > SLOW_WRITE_NS


def with_digests(options: PutOptions, md5_hex: str, attributes: dict[str, bytes]) -> PutOptions:
    """Return `options` with the ETag and checksum that the body turned out to have."""
    return PutOptions(
        mode=options.mode,
        attributes={**options.attributes, **attributes},
        etag=md5_hex,
        ttl_s=options.ttl_s,
        expires_at_s=options.expires_at_s,
        is_sliding=options.is_sliding,
        ttl_class=options.ttl_class,
        priority=options.priority,
        condition=options.condition,
    )


def put_headers(entry: Entry) -> list[Header]:
    """Return what a PUT answers with."""
    headers = object_headers(entry, with_checksum=True)
    return [
        header
        for header in headers
        if header[0] == "ETag" or header[0].startswith("x-amz-checksum-")
    ]


async def head_object(call: Call) -> Response:
    """Answer a HEAD from the index alone."""
    entry = call.service.store.find(call.path, touch=True)
    if entry is None:
        # 404 without a body, whether or not the bucket exists: asking that too costs 6 us, a tenth
        # of the answer that engines wait for most.
        raise S3Error("NoSuchKey")
    response, _ = read_response(call, entry)
    return response


async def get_object(call: Call) -> Response:
    """Answer with the object's bytes, or a range of them."""
    service = call.service
    entry = service.store.find(call.path, touch=True)
    if entry is None:
        raise miss(call)
    response, extent = read_response(call, entry)
    if response.status == 304 or extent.length == 0:
        return response
    try:
        view = await service.read(service.store.open_read, call.path)
    except (NotFound, Corrupt):
        raise miss(call) from None
    try:
        # Replaced between lookup and open, or a mutable file that was written to.
        if (view.entry.inode, view.entry.etag) != (entry.inode, entry.etag):
            response, extent = read_response(call, view.entry)
        if response.status == 304 or extent.length == 0:
            view.close()
            return response
    except BaseException:
        view.close()
        raise
    response.view, response.offset, response.length = view, extent.offset, extent.length
    return response


def read_response(call: Call, entry: Entry) -> tuple[Response, ByteRange]:
    """Return the head of a read's answer and the range it covers. Raises: S3Error 412, 416."""
    headers = call.head.headers
    outcome = Outcome.PROCEED
    if not READ_CONDITIONS.isdisjoint(headers):
        outcome = decide(read_conditions(headers), entry.etag, entry.mtime_ns // 1_000_000_000)
    if outcome is Outcome.FAILED:
        raise S3Error("PreconditionFailed")
    wants_checksum = headers.get("x-amz-checksum-mode", "").upper() == "ENABLED"
    extent, status, extra = _extent(call, entry)
    shown = object_headers(entry, with_checksum=wants_checksum and status == 200)
    if outcome is Outcome.NOT_MODIFIED:
        kept = ("ETag", "Last-Modified", "Cache-Control", "Expires")
        return empty_response(304, [header for header in shown if header[0] in kept]), extent
    shown = apply_overrides(shown, call.target) if len(call.target.query) else shown
    shown = shown + expiration_header(call, entry) + extra
    return Response(status, shown, length=extent.length), extent


def _extent(call: Call, entry: Entry) -> tuple[ByteRange, int, list[Header]]:
    """Return the bytes that Range or partNumber ask for, the status, and headers to say so."""
    text = call.head.headers.get("range", "")
    part = call.parameter("partNumber") if call.target.query else ""
    if part:
        if text:
            raise S3Error("InvalidRequest", "Cannot specify both Range header and partNumber.")
        return _part_extent(entry, part)
    found = parse_range(text, entry.size) if text else None
    if found is None:
        return ByteRange(0, entry.size, entry.size), 200, []
    return found, 206, [("Content-Range", found.content_range)]


def _part_extent(entry: Entry, part: str) -> tuple[ByteRange, int, list[Header]]:
    listed = part_list(entry)
    sizes = [size for size, _ in listed]
    if not (part.isascii() and part.isdigit() and 1 <= int(part[:6]) <= 10_000):
        raise S3Error("InvalidArgument", "Part number must be an integer between 1 and 10000")
    number = int(part[:6])
    if number > max(len(sizes), 1):
        raise S3Error("InvalidPart")
    counted = [("x-amz-mp-parts-count", str(len(sizes)))] if sizes else []
    checksum = stored_checksum(entry.attributes)
    if listed and listed[number - 1][1] and checksum is not None:
        counted.append((checksum[0].header, listed[number - 1][1]))
        counted.append(("x-amz-checksum-type", checksum[2]))
    if not sizes:
        sizes = [entry.size]
    extent = ByteRange(sum(sizes[: number - 1]), sizes[number - 1], entry.size)
    if not extent.length:
        return extent, 200, counted
    return extent, 206, [*counted, ("Content-Range", extent.content_range)]


def part_list(entry: Entry) -> list[tuple[int, str]]:
    """Return (size, checksum or "") of the parts an object was uploaded in; [] for a single PUT."""
    stored = entry.attributes.get(PARTS, b"").decode("latin-1")
    parts = []
    for item in stored.split(",") if stored else ():
        size, _, checksum = item.partition(":")
        if not (size.isascii() and size.isdigit() and len(size) < 16):
            return []
        parts.append((int(size), clean(checksum)))
    # Somebody else may have changed the file or the list.
    return parts if sum(size for size, _ in parts) == entry.size else []


def miss(call: Call) -> S3Error:
    """Return the 404 for a key that is not there, or whose bucket is not."""
    if call.service.store.find_namespace(call.route.bucket) is None:
        return S3Error("NoSuchBucket", fields=(("BucketName", bucket_name(call)),))
    return S3Error("NoSuchKey", fields=(("Key", call.route.key.decode("utf-8", "replace")),))


def bucket_name(call: Call) -> str:
    """Return the bucket for an error body."""
    return call.route.bucket.decode("utf-8", "replace")


def delete_condition(etag: str, size: str, modified: str) -> WriteCondition:
    """Return what a delete demands of the object; each as sent, "" = nothing.

    Raises: S3Error InvalidArgument.
    """
    if size and not (size.isascii() and size.isdigit() and len(size) < 20):
        raise S3Error("InvalidArgument", "The size demanded of the object is no number.")
    mtime_s = parse_http_date(modified) if modified else None
    if modified and mtime_s is None:
        raise S3Error("InvalidArgument", "The modification time demanded of the object is none.")
    return WriteCondition(etag=etag, size=int(size) if size else None, mtime_s=mtime_s)


async def delete_object(call: Call) -> Response:
    """Remove the object; a key that is not there is success, as S3 has it."""
    headers = call.head.headers
    condition = delete_condition(
        write_if_match(headers),
        headers.get("x-amz-if-match-size", ""),
        headers.get("x-amz-if-match-last-modified-time", ""),
    )
    store = call.service.store
    if store.find(call.path) is None:  # the index answers this without the write lock
        if store.find_namespace(call.route.bucket) is None:
            raise miss(call)
        return empty_response(204)
    with contextlib.suppress(NotFound):  # a racing delete was first: the outcome is the same
        await call.service.write(store.delete, call.path, condition)
    return empty_response(204)
