"""From the store's errors to S3's: one total table, walked by a test.

Owns the only place where an HTTP meaning is given to a kvfs error. A subclass without a row of its
own takes its nearest ancestor's; KvfsError itself has one, so nothing is unmapped.
"""

from __future__ import annotations

from kvfs import errors
from kvfs_gateway.s3.errors import S3Error

CODES: dict[type[errors.KvfsError], str] = {
    errors.KvfsError: "InternalError",
    errors.NotFound: "NoSuchKey",
    errors.NamespaceNotFound: "NoSuchBucket",
    errors.UploadNotFound: "NoSuchUpload",
    errors.AlreadyExists: "PreconditionFailed",
    errors.NamespaceNotEmpty: "BucketNotEmpty",
    errors.DirectoryNotEmpty: "InvalidRequest",
    errors.IsADirectory: "NoSuchKey",
    errors.NotADirectory: "InvalidRequest",
    errors.CrossNamespace: "InvalidRequest",
    errors.InvalidName: "InvalidArgument",
    errors.InvalidArgument: "InvalidArgument",
    errors.InvalidPart: "InvalidPart",
    errors.InvalidPartOrder: "InvalidPartOrder",
    errors.PartTooSmall: "EntityTooSmall",
    errors.PreconditionFailed: "PreconditionFailed",
    errors.NoSpace: "QuotaExceeded",
    errors.TooLarge: "EntityTooLarge",
    errors.Leased: "AccessDenied",
    # Bytes that failed their check are a miss: clients then compute the block again (I1), while a
    # 5xx makes LMCache retry for ten seconds.
    errors.Corrupt: "NoSuchKey",
    errors.Denied: "AccessDenied",
    errors.ReadOnly: "AccessDenied",
    errors.Unavailable: "ServiceUnavailable",
    errors.IndexFull: "QuotaExceeded",
    errors.NotAStore: "InternalError",
    errors.UnsupportedFormat: "InternalError",
    errors.StoreExists: "InternalError",
    errors.StoreDamaged: "InternalError",
    errors.Closed: "ServiceUnavailable",
}

_TELLING = frozenset({"InvalidArgument", "InvalidRequest", "QuotaExceeded", "EntityTooLarge"})
"""Codes whose message is the store's own sentence; the others have S3's, which tell less (I6)."""


def to_s3_error(error: errors.KvfsError) -> S3Error:
    """Return what a client is told about a store's error."""
    code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    return S3Error(code, error.message if code in _TELLING else "")
