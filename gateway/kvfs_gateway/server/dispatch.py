"""From an authenticated call to its handler: the table, and the health paths beside it.

Owns the completeness of the table: a test proves that every operation that routing can name has a
handler here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kvfs_gateway.s3.head import Head
from kvfs_gateway.s3.operations import Operation
from kvfs_gateway.s3.routing import Addressing
from kvfs_gateway.server import (
    bucket_handlers,
    configuration_handlers,
    copy_handlers,
    delete_handlers,
    lifecycle_handlers,
    listing_handlers,
    multipart_handlers,
    object_handlers,
    tagging_handlers,
)
from kvfs_gateway.server.access_log import Access
from kvfs_gateway.server.body import RequestBody
from kvfs_gateway.server.response import Response
from kvfs_gateway.server.service import Call, Service

Handler = Callable[[Call], Awaitable[Response]]

HANDLERS: dict[Operation, Handler] = {
    Operation.LIST_BUCKETS: bucket_handlers.list_buckets,
    Operation.CREATE_BUCKET: bucket_handlers.create_bucket,
    Operation.HEAD_BUCKET: bucket_handlers.head_bucket,
    Operation.DELETE_BUCKET: bucket_handlers.delete_bucket,
    Operation.GET_BUCKET_LOCATION: bucket_handlers.get_bucket_location,
    Operation.GET_BUCKET_VERSIONING: bucket_handlers.get_bucket_versioning,
    Operation.LIST_OBJECTS: listing_handlers.list_objects,
    Operation.LIST_OBJECTS_V2: listing_handlers.list_objects_v2,
    Operation.LIST_OBJECT_VERSIONS: listing_handlers.list_object_versions,
    Operation.GET_BUCKET_LIFECYCLE: lifecycle_handlers.get_bucket_lifecycle,
    Operation.PUT_BUCKET_LIFECYCLE: lifecycle_handlers.put_bucket_lifecycle,
    Operation.DELETE_BUCKET_LIFECYCLE: lifecycle_handlers.delete_bucket_lifecycle,
    Operation.GET_BUCKET_TAGGING: tagging_handlers.get_bucket_tagging,
    Operation.PUT_BUCKET_TAGGING: tagging_handlers.put_bucket_tagging,
    Operation.DELETE_BUCKET_TAGGING: tagging_handlers.delete_bucket_tagging,
    Operation.GET_BUCKET_ACL: configuration_handlers.get_acl,
    Operation.PUT_BUCKET_ACL: configuration_handlers.put_acl,
    Operation.GET_BUCKET_POLICY: configuration_handlers.tell_unset,
    Operation.GET_BUCKET_POLICY_STATUS: configuration_handlers.tell_default,
    Operation.DELETE_BUCKET_POLICY: configuration_handlers.remove_unset,
    Operation.GET_BUCKET_CORS: configuration_handlers.tell_unset,
    Operation.DELETE_BUCKET_CORS: configuration_handlers.remove_unset,
    Operation.GET_BUCKET_ENCRYPTION: configuration_handlers.tell_unset,
    Operation.DELETE_BUCKET_ENCRYPTION: configuration_handlers.remove_unset,
    Operation.GET_BUCKET_WEBSITE: configuration_handlers.tell_unset,
    Operation.DELETE_BUCKET_WEBSITE: configuration_handlers.remove_unset,
    Operation.GET_BUCKET_REPLICATION: configuration_handlers.tell_unset,
    Operation.DELETE_BUCKET_REPLICATION: configuration_handlers.remove_unset,
    Operation.GET_BUCKET_LOGGING: configuration_handlers.tell_default,
    Operation.GET_BUCKET_NOTIFICATION: configuration_handlers.tell_default,
    Operation.GET_BUCKET_REQUEST_PAYMENT: configuration_handlers.tell_default,
    Operation.GET_BUCKET_ACCELERATE: configuration_handlers.tell_default,
    Operation.GET_PUBLIC_ACCESS_BLOCK: configuration_handlers.get_kept,
    Operation.PUT_PUBLIC_ACCESS_BLOCK: configuration_handlers.put_kept,
    Operation.DELETE_PUBLIC_ACCESS_BLOCK: configuration_handlers.delete_kept,
    Operation.GET_OWNERSHIP_CONTROLS: configuration_handlers.get_kept,
    Operation.PUT_OWNERSHIP_CONTROLS: configuration_handlers.put_kept,
    Operation.DELETE_OWNERSHIP_CONTROLS: configuration_handlers.delete_kept,
    Operation.GET_OBJECT_LOCK_CONFIGURATION: configuration_handlers.tell_unset,
    Operation.PUT_OBJECT_LOCK_CONFIGURATION: configuration_handlers.tell_unset,
    Operation.PUT_OBJECT: object_handlers.put_object,
    Operation.GET_OBJECT: object_handlers.get_object,
    Operation.HEAD_OBJECT: object_handlers.head_object,
    Operation.DELETE_OBJECT: object_handlers.delete_object,
    Operation.DELETE_OBJECTS: delete_handlers.delete_objects,
    Operation.COPY_OBJECT: copy_handlers.copy_object,
    Operation.GET_OBJECT_ATTRIBUTES: tagging_handlers.get_object_attributes,
    Operation.GET_OBJECT_TAGGING: tagging_handlers.get_object_tagging,
    Operation.PUT_OBJECT_TAGGING: tagging_handlers.put_object_tagging,
    Operation.DELETE_OBJECT_TAGGING: tagging_handlers.delete_object_tagging,
    Operation.GET_OBJECT_ACL: configuration_handlers.get_acl,
    Operation.PUT_OBJECT_ACL: configuration_handlers.put_acl,
    Operation.GET_OBJECT_RETENTION: configuration_handlers.refuse_lock,
    Operation.PUT_OBJECT_RETENTION: configuration_handlers.refuse_lock,
    Operation.GET_OBJECT_LEGAL_HOLD: configuration_handlers.refuse_lock,
    Operation.PUT_OBJECT_LEGAL_HOLD: configuration_handlers.refuse_lock,
    Operation.CREATE_MULTIPART_UPLOAD: multipart_handlers.create_multipart_upload,
    Operation.UPLOAD_PART: multipart_handlers.upload_part,
    Operation.UPLOAD_PART_COPY: multipart_handlers.upload_part_copy,
    Operation.COMPLETE_MULTIPART_UPLOAD: multipart_handlers.complete_multipart_upload,
    Operation.ABORT_MULTIPART_UPLOAD: multipart_handlers.abort_multipart_upload,
    Operation.LIST_PARTS: multipart_handlers.list_parts,
    Operation.LIST_MULTIPART_UPLOADS: multipart_handlers.list_multipart_uploads,
}

_HEALTH_PATHS = frozenset(
    {b"/health/live", b"/health/ready", b"/minio/health/live", b"/minio/health/ready"}
)


def health_answer(head: Head) -> Response | None:
    """Return the answer to a health probe, None when `head` is none."""
    if head.target not in _HEALTH_PATHS or head.method not in ("GET", "HEAD"):
        return None
    return Response(200, [("Content-Type", "text/plain")], b"ok\n")


def answer(
    service: Service,
    addressing: Addressing,
    head: Head,
    body: RequestBody,
    access: Access,
    request_id: str,
) -> Awaitable[Response]:
    """Authorize a request and return its handler's answer to wait for. Raises: S3Error."""
    target, route, authentication, limits = service.authorize(head, addressing)
    access.operation = route.operation
    access.requester = authentication.access_key
    access.bucket, access.key = route.bucket, route.key
    call = Call(service, head, target, route, authentication, limits, body, request_id)
    return HANDLERS[route.operation](call)
