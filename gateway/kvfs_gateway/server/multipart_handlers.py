"""Multipart uploads: begin, parts, copies of parts, lists, complete, abort.

Owns S3's part of it: ETags, checksums over parts, the documents. Where parts lie and how they
become one object is the store's. Holds: a part counts only when its body kept every promise;
Complete publishes exactly the listed parts, and repeating it gives the same answer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kvfs.errors import UploadNotFound
from kvfs.model import Entry, PartInfo, PutOptions, UploadInfo
from kvfs.store.read_view import ReadView
from kvfs.store.uploads import MAX_PARTS, CompletePart
from kvfs_gateway.s3 import xml
from kvfs_gateway.s3.checksums import (
    HEADER_PREFIX,
    Algorithm,
    combine_composite,
    combine_full,
    decode_base64,
    encode_base64,
    find_algorithm,
    new_hasher,
)
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.http_dates import render_iso_date
from kvfs_gateway.s3.ranges import parse_copy_range
from kvfs_gateway.s3.target import percent_encode
from kvfs_gateway.server.body import MAX_MD5_LENGTH
from kvfs_gateway.server.bucket_handlers import owner, parse_document, require_bucket
from kvfs_gateway.server.copy_handlers import open_copy_source
from kvfs_gateway.server.lifetimes import expiration_header, with_lifetime
from kvfs_gateway.server.object_handlers import (
    MAX_PUT_LENGTH,
    bucket_name,
    expected_length,
    read_write_condition,
    receive,
)
from kvfs_gateway.server.object_headers import (
    CHECKSUM_PREFIX,
    PARTS,
    checksum_attributes,
    read_attributes,
)
from kvfs_gateway.server.response import Header, Response, empty_response, xml_response
from kvfs_gateway.server.service import Call

MAX_LISTED = 1000
MAX_KEPT_CHECKSUMS = 256
"""Parts' checksums are kept up to here: 16 KiB of an object's 64 KiB of attributes."""

_UPLOAD_PREFIX = "user.s3.upload."
"""Attributes of an upload that say how to end it; the object does not get them."""
_ALGORITHM = _UPLOAD_PREFIX + "algorithm"
_TYPE = _UPLOAD_PREFIX + "checksum-type"
_MD5 = re.compile(r"[0-9a-f]{32}")

Document = dict[str, xml.Value]


# -- beginning and ending


async def create_multipart_upload(call: Call) -> Response:
    """Begin an upload; what the object shall be like is said here."""
    require_bucket(call)
    headers = call.head.headers
    attributes = read_attributes(headers)
    shown: list[Header] = []
    algorithm_name = headers.get("x-amz-checksum-algorithm", "")
    if algorithm_name:
        algorithm = find_algorithm(algorithm_name)
        kind = _checksum_type(algorithm, headers.get("x-amz-checksum-type", ""))
        attributes[_ALGORITHM] = algorithm.value.encode()
        attributes[_TYPE] = kind.encode()
        shown = [("x-amz-checksum-algorithm", algorithm.name), ("x-amz-checksum-type", kind)]
    await call.body.discard(MAX_MD5_LENGTH)
    options = PutOptions(attributes=attributes)
    info = await call.service.write(call.service.store.create_upload, call.path, options)
    document: Document = {
        "Bucket": bucket_name(call),
        "Key": call.route.key.decode(),
        "UploadId": info.upload_id,
    }
    return xml_response(xml.render("CreateMultipartUpload", document), headers=shown)


def _checksum_type(algorithm: Algorithm, wanted: str) -> str:
    default = "FULL_OBJECT" if algorithm is Algorithm.CRC64NVME else "COMPOSITE"
    kind = wanted.upper() or default
    is_possible = (
        algorithm.is_crc
        if kind == "FULL_OBJECT"
        else (kind == "COMPOSITE" and algorithm is not Algorithm.CRC64NVME)
    )
    if not is_possible:
        raise S3Error(
            "InvalidRequest", f"The {kind} checksum type cannot be used with {algorithm.name}."
        )
    return kind


async def abort_multipart_upload(call: Call) -> Response:
    """Drop the upload and its parts."""
    require_bucket(call)
    await call.service.write(call.service.store.abort_upload, call.parameter("uploadId"), call.path)
    return empty_response(204)


async def complete_multipart_upload(call: Call) -> Response:
    """Publish the listed parts as the object."""
    namespace = require_bucket(call)
    store = call.service.store
    upload_id = call.parameter("uploadId")
    condition = read_write_condition(call)
    call.body.begin_document(call.authentication)
    text = await call.body.read_all(xml.MAX_XML_LENGTH)
    listed = _listed_parts(await parse_document(call, "CompleteMultipartUpload", text))
    chosen = [CompletePart(_number(part), _etag(part)) for part in listed]
    try:
        info = store.find_upload(upload_id, call.path)
        found = await call.service.read(_all_parts, call, upload_id)
    except UploadNotFound:
        # It may be the repetition of a Complete whose answer was lost; the store knows.
        entry = await call.service.publish(store.complete_upload, upload_id, call.path, chosen)
        return _completed(call, entry)
    parts = [_match(part, found) for part in listed]
    options = _final_options(call, info, parts)
    size = sum(part.size for part in parts)
    options = with_lifetime(call, namespace, options, size)
    entry = await call.service.publish(
        store.complete_upload, upload_id, call.path, chosen, replace(options, condition=condition)
    )
    return _completed(call, entry)


def _all_parts(call: Call, upload_id: str) -> dict[int, PartInfo]:
    store = call.service.store
    parts = store.list_parts(upload_id, call.path, limit=MAX_PARTS)
    return {part.part_number: part for part in parts}


def _listed_parts(document: Mapping[str, xml.Value]) -> Sequence[Mapping[str, xml.Value]]:
    parts = document.get("Parts")
    if not isinstance(parts, list) or not 1 <= len(parts) <= MAX_PARTS:
        raise S3Error("MalformedXML")
    if any("PartNumber" not in part or "ETag" not in part for part in parts):
        raise S3Error("MalformedXML")
    # A part that was sent again while it was still being sent is listed once for each answer; the
    # last answer is the part.
    following = [*parts[1:], {}]
    return [
        part
        for part, after in zip(parts, following, strict=True)
        if part["PartNumber"] != after.get("PartNumber")
    ]


def _number(part: Mapping[str, xml.Value]) -> int:
    number = part["PartNumber"]
    assert isinstance(number, int), "the model says integer"
    if not 1 <= number <= MAX_PARTS:
        raise S3Error("InvalidPart")
    return number


def _etag(part: Mapping[str, xml.Value]) -> str:
    return str(part["ETag"]).strip().strip('"')


def _match(part: Mapping[str, xml.Value], found: Mapping[int, PartInfo]) -> PartInfo:
    """Return the stored part that a line of the list names. Raises: S3Error InvalidPart."""
    number = _number(part)
    info = found.get(number)
    fields = (("PartNumber", str(number)), ("UploadedETag", info.etag if info else ""))
    if info is None or info.etag != _etag(part):
        raise S3Error("InvalidPart", fields=fields)
    for algorithm in Algorithm:
        wanted = part.get(algorithm.field)
        stored = info.attributes.get(CHECKSUM_PREFIX + algorithm.value)
        if wanted is not None and stored is not None and str(wanted).encode() != stored:
            raise S3Error("InvalidPart", fields=fields)
    return info


def _final_options(call: Call, info: UploadInfo, parts: Sequence[PartInfo]) -> PutOptions:
    """Return what the finished object is like. Raises: S3Error InvalidRequest, BadDigest."""
    size = sum(part.size for part in parts)
    declared = call.head.headers.get("x-amz-mp-object-size", "")
    if declared and declared != str(size):
        raise S3Error(
            "InvalidRequest", f"The parts have {size} bytes, x-amz-mp-object-size says {declared}."
        )
    begun = info.options.attributes
    attributes = {
        name: value for name, value in begun.items() if not name.startswith(_UPLOAD_PREFIX)
    }
    attributes.update(_object_checksum(call, begun, parts))
    attributes[PARTS] = _part_list(begun, parts)
    return replace(info.options, attributes=attributes, etag=_object_etag(parts))


def _part_list(begun: Mapping[str, bytes], parts: Sequence[PartInfo]) -> bytes:
    """Return the parts' sizes, with their checksums where there are few enough to be kept."""
    algorithm = _common_algorithm(begun, parts) if len(parts) <= MAX_KEPT_CHECKSUMS else None
    if algorithm is None:
        return ",".join(str(part.size) for part in parts).encode()
    name = CHECKSUM_PREFIX + algorithm.value
    return ",".join(f"{part.size}:{part.attributes[name].decode()}" for part in parts).encode()


def _object_etag(parts: Sequence[PartInfo]) -> str:
    """Return S3's `<hash of the parts' hashes>-<count>`; of opaque ETags it hashes their text."""
    are_md5 = all(_MD5.fullmatch(part.etag) for part in parts)
    pieces = (bytes.fromhex(part.etag) if are_md5 else part.etag.encode() for part in parts)
    digest = hashlib.md5(b"".join(pieces), usedforsecurity=False).hexdigest()
    return f"{digest}-{len(parts)}"


def _object_checksum(
    call: Call, begun: Mapping[str, bytes], parts: Sequence[PartInfo]
) -> dict[str, bytes]:
    algorithm = _common_algorithm(begun, parts)
    if algorithm is None:
        return {}
    sums = [
        (decode_base64(part.attributes[CHECKSUM_PREFIX + algorithm.value].decode()) or b"", part)
        for part in parts
    ]
    kind = begun.get(_TYPE, b"").decode() or ("FULL_OBJECT" if algorithm.is_crc else "COMPOSITE")
    if kind == "FULL_OBJECT":
        value = combine_full(algorithm, [(value, part.size) for value, part in sums])
        suffix = ""
    else:
        value, count = combine_composite(algorithm, [value for value, _ in sums])
        suffix = f"-{count}"
    _check_declared(call, algorithm, encode_base64(value) + suffix, kind)
    return checksum_attributes((algorithm, value), kind, suffix)


def _common_algorithm(begun: Mapping[str, bytes], parts: Sequence[PartInfo]) -> Algorithm | None:
    """Return the algorithm of which every part has a sum, the declared one first."""
    declared = begun.get(_ALGORITHM, b"").decode()
    candidates = [Algorithm(declared)] if declared else list(Algorithm)
    for algorithm in candidates:
        if all(CHECKSUM_PREFIX + algorithm.value in part.attributes for part in parts):
            return algorithm
    return None


def _check_declared(call: Call, algorithm: Algorithm, computed: str, kind: str) -> None:
    headers = call.head.headers
    declared_kind = headers.get(HEADER_PREFIX + "type", "")
    if declared_kind and declared_kind.upper() != kind:
        raise S3Error("InvalidRequest", f"This upload's checksum type is {kind}.")
    declared = headers.get(algorithm.header, "")
    if declared and declared not in (computed, computed.partition("-")[0]):
        raise S3Error("BadDigest", f"The {algorithm.name} of the object is {computed}.")


def _completed(call: Call, entry: Entry) -> Response:
    host = call.head.get("host").partition("/")[0]
    path = percent_encode(b"/" + call.route.bucket + b"/" + call.route.key, keeps_slash=True)
    document: Document = {
        "Location": f"http://{host}{path}",
        "Bucket": bucket_name(call),
        "Key": call.route.key.decode(),
        "ETag": f'"{entry.etag}"',
    }
    for algorithm in Algorithm:
        value = entry.attributes.get(CHECKSUM_PREFIX + algorithm.value)
        if value is not None:
            document[algorithm.field] = value.decode("latin-1")
            kind = entry.attributes.get("user.s3.checksum-type", b"FULL_OBJECT")
            document["ChecksumType"] = kind.decode("latin-1")
    text = xml.render("CompleteMultipartUpload", document)
    return xml_response(text, headers=expiration_header(call, entry))


# -- parts


async def upload_part(call: Call) -> Response:
    """Store one part."""
    require_bucket(call)
    number, upload_id = _part_number(call), call.parameter("uploadId")
    length = expected_length(call)
    info = call.service.store.find_upload(upload_id, call.path)
    is_small = length is not None and length <= MAX_MD5_LENGTH
    call.body.begin(call.authentication, wants_md5=call.service.has_md5_etags or is_small)
    _choose_checksum(call, info)
    writer = await call.service.write(
        call.service.store.write_part, upload_id, call.path, number, size_bytes=length
    )
    try:
        size = await receive(call, writer, MAX_PUT_LENGTH)
        digests = call.body.finish()
        if length is not None and size != length:
            raise S3Error("IncompleteBody")
        assert digests.checksum is not None, "a part always has a checksum"
        etag = digests.md5_hex or _opaque_etag(digests.checksum[1], size)
        attributes = checksum_attributes(digests.checksum)
        await call.service.write(writer.finish, etag, attributes)
    finally:
        writer.close()
    headers: list[Header] = [("ETag", f'"{etag}"')]
    if call.body.was_algorithm_asked_for:
        algorithm, value = digests.checksum
        headers.append((algorithm.header, encode_base64(value)))
    return empty_response(200, headers)


def _opaque_etag(checksum: bytes, size: int) -> str:
    """Return a tag that clients do not take for an MD5 (it has a dash) and equal bytes share."""
    return f"{checksum.hex()}{size:010x}-1"


def _choose_checksum(call: Call, info: UploadInfo) -> None:
    """Make sure that the part gets the checksum that the upload was begun with, or any."""
    declared = info.options.attributes.get(_ALGORITHM, b"").decode()
    wanted = Algorithm(declared) if declared else Algorithm.CRC64NVME
    present = call.body.algorithm
    if present is None:
        call.body.add_checksum(wanted)
    elif declared and present is not wanted:
        raise S3Error(
            "InvalidRequest",
            f"Checksum Type mismatch occurred, expected checksum Type: {wanted.value}, "
            f"actual checksum Type: {present.value}",
        )


def _part_number(call: Call) -> int:
    text = call.parameter("partNumber")
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= MAX_PARTS):
        raise S3Error(
            "InvalidArgument",
            "Part number must be an integer between 1 and 10000, inclusive",
            fields=(("ArgumentName", "partNumber"), ("ArgumentValue", text)),
        )
    return int(text)


async def upload_part_copy(call: Call) -> Response:
    """Store one part from a range of another object."""
    require_bucket(call)
    number, upload_id = _part_number(call), call.parameter("uploadId")
    info = call.service.store.find_upload(upload_id, call.path)
    view = await open_copy_source(call)
    with view:
        text = call.head.headers.get("x-amz-copy-source-range", "")
        offset, length = 0, view.size
        if text:
            extent = parse_copy_range(text, view.size)
            offset, length = extent.offset, extent.length
        if length > MAX_PUT_LENGTH:
            raise S3Error("InvalidRequest", "A part has at most 5 GiB.")
        part = await call.service.write(_copy_part, call, info, number, view, offset, length)
    result: Document = {
        "ETag": f'"{part.etag}"',
        "LastModified": render_iso_date(part.modified_ns),
    }
    return xml_response(xml.render("UploadPartCopy", result))


def _copy_part(
    call: Call, info: UploadInfo, number: int, view: ReadView, offset: int, length: int
) -> PartInfo:
    """Copy the bytes, computing the sums that the end will need; runs in a thread."""
    declared = info.options.attributes.get(_ALGORITHM, b"").decode()
    algorithm = Algorithm(declared) if declared else Algorithm.CRC64NVME
    hasher = new_hasher(algorithm)
    store = call.service.store
    with store.write_part(info.upload_id, call.path, number, size_bytes=length) as writer:
        writer.copy_from(view, offset, length, hasher.update)
        value = hasher.digest()
        etag = _opaque_etag(value, length)
        return writer.finish(etag, checksum_attributes((algorithm, value)))


# -- lists


async def list_parts(call: Call) -> Response:
    """List the finished parts of an upload."""
    require_bucket(call)
    store, upload_id = call.service.store, call.parameter("uploadId")
    limit = call.count("max-parts", MAX_LISTED, MAX_LISTED)
    marker = call.count("part-number-marker", 0, MAX_PARTS)
    info = store.find_upload(upload_id, call.path)
    found = await call.service.read(
        store.list_parts, upload_id, call.path, after=marker, limit=limit + 1
    )
    page = found[:limit]
    document: Document = {
        "Bucket": bucket_name(call),
        "Key": call.route.key.decode(),
        "UploadId": upload_id,
        "PartNumberMarker": marker,
        "MaxParts": limit,
        "IsTruncated": len(found) > limit,
        "Parts": [_part_document(part) for part in page],
        "Initiator": owner(call),
        "Owner": owner(call),
        "StorageClass": "STANDARD",
        "NextPartNumberMarker": page[-1].part_number if page else 0,
    }
    declared = info.options.attributes.get(_ALGORITHM, b"").decode()
    if declared:
        document["ChecksumAlgorithm"] = Algorithm(declared).name
        document["ChecksumType"] = info.options.attributes.get(_TYPE, b"").decode()
    return xml_response(xml.render("ListParts", document))


def _part_document(part: PartInfo) -> Document:
    document: Document = {
        "PartNumber": part.part_number,
        "LastModified": render_iso_date(part.modified_ns),
        "ETag": f'"{part.etag}"',
        "Size": part.size,
    }
    for algorithm in Algorithm:
        value = part.attributes.get(CHECKSUM_PREFIX + algorithm.value)
        if value is not None:
            document[algorithm.field] = value.decode("latin-1")
    return document


async def list_multipart_uploads(call: Call) -> Response:
    """List the uploads in progress, by key and age of id."""
    require_bucket(call)
    limit = call.count("max-uploads", MAX_LISTED, MAX_LISTED)
    prefix, delimiter = call.parameter("prefix").encode(), call.parameter("delimiter").encode()
    key_marker = call.parameter("key-marker")
    id_marker = call.parameter("upload-id-marker") if key_marker else ""
    # Without an id the marker excludes all uploads of its key: "g" sorts behind every hex id.
    after = (key_marker.encode(), id_marker or "g") if key_marker else (b"", "")
    found = await call.service.read(
        call.service.store.list_uploads, call.route.bucket, prefix=prefix, after=after
    )
    uploads, prefixes, is_truncated = _group(found, prefix, delimiter, key_marker.encode(), limit)
    is_encoded = call.parameter("encoding-type") == "url"

    def encode(value: bytes) -> str:
        return percent_encode(value, keeps_slash=True) if is_encoded else value.decode()

    document: Document = {
        "Bucket": bucket_name(call),
        "KeyMarker": encode(key_marker.encode()),
        "UploadIdMarker": id_marker,
        "MaxUploads": limit,
        "IsTruncated": is_truncated,
        "Prefix": encode(prefix),
        "CommonPrefixes": [{"Prefix": encode(item)} for item in prefixes],
        "Uploads": [
            {
                "Key": encode(info.path.key),
                "UploadId": info.upload_id,
                "Initiated": render_iso_date(info.created_ns),
                "StorageClass": "STANDARD",
                "Owner": owner(call),
                "Initiator": owner(call),
            }
            for info in uploads
        ],
    }
    if delimiter:
        document["Delimiter"] = encode(delimiter)
    if is_encoded:
        document["EncodingType"] = "url"
    if is_truncated:
        last_key = max([info.path.key for info in uploads[-1:]] + prefixes[-1:])
        document["NextKeyMarker"] = encode(last_key)
        is_upload = bool(uploads) and uploads[-1].path.key == last_key
        document["NextUploadIdMarker"] = uploads[-1].upload_id if is_upload else ""
    return xml_response(xml.render("ListMultipartUploads", document))


def _group(
    found: Sequence[UploadInfo], prefix: bytes, delimiter: bytes, marker: bytes, limit: int
) -> tuple[list[UploadInfo], list[bytes], bool]:
    """Fold keys with the delimiter into common prefixes; return at most `limit` rows of both."""
    uploads: list[UploadInfo] = []
    prefixes: list[bytes] = []
    for info in found:
        cut = info.path.key.find(delimiter, len(prefix)) if delimiter else -1
        folded = info.path.key[: cut + len(delimiter)] if cut >= 0 else b""
        if folded and (folded == marker or folded in prefixes[-1:]):
            continue
        if len(uploads) + len(prefixes) >= limit:
            return uploads, prefixes, limit > 0
        if folded:
            prefixes.append(folded)
        else:
            uploads.append(info)
    return uploads, prefixes, False
