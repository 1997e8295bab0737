"""DeleteObjects: up to a thousand keys in one request, many in a transaction.

Owns the document and the error of each key; one key that cannot go does not stop the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvfs.errors import KvfsError, NotFound
from kvfs.model import ObjectPath, WriteCondition
from kvfs_gateway.s3 import xml
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.routing import MAX_KEY_LENGTH
from kvfs_gateway.server.bucket_handlers import parse_document, require_bucket
from kvfs_gateway.server.error_map import to_s3_error
from kvfs_gateway.server.object_handlers import delete_condition
from kvfs_gateway.server.response import Response, xml_response
from kvfs_gateway.server.service import Call

MAX_OBJECTS = 1000

Document = dict[str, xml.Value]


async def delete_objects(call: Call) -> Response:
    """Remove the listed objects; absent ones count as removed."""
    require_bucket(call)
    call.body.begin_document(call.authentication)
    text = await call.body.read_all(xml.MAX_XML_LENGTH)
    document = await parse_document(call, "DeleteObjects", text)
    listed = document["Objects"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_OBJECTS:
        raise S3Error("MalformedXML")
    deleted, errors = await call.service.write(_delete_all, call, listed)
    result: Document = {"Errors": errors}
    if not document.get("Quiet"):
        result["Deleted"] = deleted
    return xml_response(xml.render("DeleteObjects", result))


def _delete_all(
    call: Call, listed: Sequence[Mapping[str, xml.Value]]
) -> tuple[list[Document], list[Document]]:
    """Delete what can be; return what went and the errors. Runs in a thread."""
    refusals: dict[int, S3Error] = {}
    wanted: dict[int, tuple[ObjectPath, WriteCondition]] = {}
    for number, item in enumerate(listed):
        try:
            wanted[number] = _wanted(call, item)
        except S3Error as error:
            refusals[number] = error
    answers = call.service.store.delete_many(list(wanted.values()))
    for number, answer in zip(wanted, answers, strict=True):
        if isinstance(answer, KvfsError) and not isinstance(answer, NotFound):
            refusals[number] = to_s3_error(answer)
    deleted: list[Document] = []
    errors: list[Document] = []
    for number, item in enumerate(listed):
        shown: Document = {"Key": item["Key"]}
        if "VersionId" in item:
            shown["VersionId"] = item["VersionId"]
        refusal = refusals.get(number)
        if refusal is None:
            deleted.append(shown)
        else:
            errors.append({**shown, "Code": refusal.code, "Message": refusal.message})
    return deleted, errors


def _wanted(call: Call, item: Mapping[str, xml.Value]) -> tuple[ObjectPath, WriteCondition]:
    """Return what one line asks for. Raises: S3Error."""
    key = str(item["Key"]).encode()
    if not key or len(key) > MAX_KEY_LENGTH:
        raise S3Error("KeyTooLongError" if key else "InvalidArgument")
    if item.get("VersionId", "null") not in ("null", ""):
        raise S3Error("NoSuchVersion")
    condition = delete_condition(
        str(item.get("ETag", "")).strip('"'),
        str(item.get("Size", "")),
        str(item.get("LastModifiedTime", "")),
    )
    return ObjectPath(call.route.bucket, key), condition
