"""Lifecycle configurations: put, get and delete.

Owns the document on its way in and out; what its rules mean is lifecycle_rules.py's, and what they
make of objects lifetimes.py's.
"""

from __future__ import annotations

from kvfs.errors import NotFound
from kvfs.model import Namespace
from kvfs_gateway.s3 import xml
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.lifecycle_rules import list_rules, parse_rules
from kvfs_gateway.server.bucket_handlers import require_bucket
from kvfs_gateway.server.lifetime_walk import changed_document, walk_promptly
from kvfs_gateway.server.lifetimes import stored_document
from kvfs_gateway.server.response import Response, empty_response, xml_response
from kvfs_gateway.server.service import Call

MAX_STORED_LENGTH = 32 * 1024
MAX_ATTEMPTS = 4
"""A change is looked up, and made if what it replaces is still there."""


async def put_bucket_lifecycle(call: Call) -> Response:
    """Replace the bucket's configuration."""
    namespace = require_bucket(call)
    call.body.begin(call.authentication)
    text = await call.body.read_all(xml.MAX_XML_LENGTH)
    if len(text) > MAX_STORED_LENGTH:
        raise S3Error("InvalidRequest", "The configuration is over 32 KiB.")
    parse_rules(text)
    await _replace(call, namespace, text)
    return empty_response(200)


async def get_bucket_lifecycle(call: Call) -> Response:
    """Return the configuration as it was given."""
    text = stored_document(call.service.store, require_bucket(call))
    if not text:
        raise S3Error("NoSuchLifecycleConfiguration")
    shown: dict[str, xml.Value] = {"Rules": list_rules(text)}
    return xml_response(xml.render("GetBucketLifecycleConfiguration", shown))


async def delete_bucket_lifecycle(call: Call) -> Response:
    """Remove the configuration; what lived by its rules has no end any more."""
    namespace = require_bucket(call)
    if stored_document(call.service.store, namespace):
        await _replace(call, namespace, b"")
    return empty_response(204)


async def _replace(call: Call, namespace: Namespace, text: bytes) -> None:
    service = call.service
    for _ in range(MAX_ATTEMPTS):
        entry = service.store.stat_inode(namespace.inode)
        if entry is None:
            raise S3Error("NoSuchBucket")
        change = changed_document(entry, text, service.clock.now_ns())
        try:
            await service.write(service.store.set_attributes, namespace.inode, change)
        except NotFound:
            continue  # another change, or the end of a walk, was first
        await walk_promptly(service, namespace)
        return
    raise S3Error("ServiceUnavailable", "The bucket changes all the time.")
