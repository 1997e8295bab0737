"""What a credential limited to buckets may ask for.

Owns one total table, a right for each operation; a test walks all operations. Refuses to know who
asks and which buckets exist: an answer that depended on it would tell.
"""

from __future__ import annotations

import enum
from collections.abc import Set

from kvfs_gateway.s3.operations import Operation as Op


class Right(enum.Enum):
    """What an operation needs."""

    LIST_BUCKETS = 0
    """Nothing: its answer names the asker's own buckets alone."""
    READ = 1
    CHANGE = 2
    ROOT = 3
    """Making and removing buckets: which there are is the operator's decision."""


RIGHTS: dict[Op, Right] = {
    Op.LIST_BUCKETS: Right.LIST_BUCKETS,
    Op.CREATE_BUCKET: Right.ROOT,
    Op.DELETE_BUCKET: Right.ROOT,
    Op.HEAD_BUCKET: Right.READ,
    Op.GET_BUCKET_LOCATION: Right.READ,
    Op.GET_BUCKET_VERSIONING: Right.READ,
    Op.LIST_OBJECTS: Right.READ,
    Op.LIST_OBJECTS_V2: Right.READ,
    Op.LIST_OBJECT_VERSIONS: Right.READ,
    Op.LIST_MULTIPART_UPLOADS: Right.READ,
    Op.DELETE_OBJECTS: Right.CHANGE,
    Op.GET_BUCKET_LIFECYCLE: Right.READ,
    Op.PUT_BUCKET_LIFECYCLE: Right.CHANGE,
    Op.DELETE_BUCKET_LIFECYCLE: Right.CHANGE,
    Op.GET_BUCKET_TAGGING: Right.READ,
    Op.PUT_BUCKET_TAGGING: Right.CHANGE,
    Op.DELETE_BUCKET_TAGGING: Right.CHANGE,
    Op.GET_BUCKET_ACL: Right.READ,
    Op.PUT_BUCKET_ACL: Right.CHANGE,
    Op.GET_BUCKET_POLICY: Right.READ,
    Op.GET_BUCKET_POLICY_STATUS: Right.READ,
    Op.DELETE_BUCKET_POLICY: Right.CHANGE,
    Op.GET_BUCKET_CORS: Right.READ,
    Op.DELETE_BUCKET_CORS: Right.CHANGE,
    Op.GET_BUCKET_ENCRYPTION: Right.READ,
    Op.DELETE_BUCKET_ENCRYPTION: Right.CHANGE,
    Op.GET_BUCKET_WEBSITE: Right.READ,
    Op.DELETE_BUCKET_WEBSITE: Right.CHANGE,
    Op.GET_BUCKET_REPLICATION: Right.READ,
    Op.DELETE_BUCKET_REPLICATION: Right.CHANGE,
    Op.GET_BUCKET_LOGGING: Right.READ,
    Op.GET_BUCKET_NOTIFICATION: Right.READ,
    Op.GET_BUCKET_REQUEST_PAYMENT: Right.READ,
    Op.GET_BUCKET_ACCELERATE: Right.READ,
    Op.GET_PUBLIC_ACCESS_BLOCK: Right.READ,
    Op.PUT_PUBLIC_ACCESS_BLOCK: Right.CHANGE,
    Op.DELETE_PUBLIC_ACCESS_BLOCK: Right.CHANGE,
    Op.GET_OWNERSHIP_CONTROLS: Right.READ,
    Op.PUT_OWNERSHIP_CONTROLS: Right.CHANGE,
    Op.DELETE_OWNERSHIP_CONTROLS: Right.CHANGE,
    Op.GET_OBJECT_LOCK_CONFIGURATION: Right.READ,
    Op.PUT_OBJECT_LOCK_CONFIGURATION: Right.CHANGE,
    Op.PUT_OBJECT: Right.CHANGE,
    Op.GET_OBJECT: Right.READ,
    Op.HEAD_OBJECT: Right.READ,
    Op.DELETE_OBJECT: Right.CHANGE,
    Op.COPY_OBJECT: Right.CHANGE,
    Op.GET_OBJECT_ATTRIBUTES: Right.READ,
    Op.GET_OBJECT_TAGGING: Right.READ,
    Op.PUT_OBJECT_TAGGING: Right.CHANGE,
    Op.DELETE_OBJECT_TAGGING: Right.CHANGE,
    Op.GET_OBJECT_ACL: Right.READ,
    Op.PUT_OBJECT_ACL: Right.CHANGE,
    Op.GET_OBJECT_RETENTION: Right.READ,
    Op.PUT_OBJECT_RETENTION: Right.CHANGE,
    Op.GET_OBJECT_LEGAL_HOLD: Right.READ,
    Op.PUT_OBJECT_LEGAL_HOLD: Right.CHANGE,
    Op.CREATE_MULTIPART_UPLOAD: Right.CHANGE,
    Op.UPLOAD_PART: Right.CHANGE,
    Op.UPLOAD_PART_COPY: Right.CHANGE,
    Op.COMPLETE_MULTIPART_UPLOAD: Right.CHANGE,
    Op.ABORT_MULTIPART_UPLOAD: Right.CHANGE,
    Op.LIST_PARTS: Right.READ,
}


def permits(operation: Op, bucket: bytes, buckets: Set[bytes], *, is_read_only: bool) -> bool:
    """Return whether a credential for `buckets` may ask for an operation on `bucket`."""
    right = RIGHTS[operation]
    if right is Right.LIST_BUCKETS:
        return True
    if bucket not in buckets:
        return False
    return right is Right.READ or (right is Right.CHANGE and not is_read_only)
