"""Presigned URLs of signature version 2, which boto3 still makes unless told otherwise.

Owns `?AWSAccessKeyId&Expires&Signature` only; version 2 in an Authorization header is refused (S3
refuses it for new buckets too). Version 2 does not cover every query parameter: one it leaves out
would let the bearer of a URL turn it into another operation, so such a URL is refused here.
"""

from __future__ import annotations

import base64
import hmac

from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.head import Head
from kvfs_gateway.s3.sigv4 import Authentication, Payload, SecretOf
from kvfs_gateway.s3.target import Target

_OWN = frozenset({b"AWSAccessKeyId", b"Expires", b"Signature"})
_SIGNED = frozenset(
    b"""accelerate acl cors defaultObjectAcl location logging partNumber policy requestPayment
    torrent versioning versionId versions website uploads uploadId response-content-type
    response-content-language response-expires response-cache-control response-content-disposition
    response-content-encoding delete lifecycle tagging restore storageClass notification replication
    analytics metrics inventory select select-type object-lock""".split()
)
"""The parameters that version 2 signs, as botocore's HmacV1Auth.QSAOfInterest lists them."""


def is_presigned_v2(target: Target) -> bool:
    """Return whether the URL carries a version-2 signature."""
    return target.value(b"Signature") is not None and target.value(b"AWSAccessKeyId") is not None


def verify_presigned_v2(
    head: Head, target: Target, resource: bytes, secret_of: SecretOf, now_s: int
) -> Authentication:
    """Return who signed the URL.

    resource: percent-encoded `/bucket/key` whatever way the bucket was addressed, without query.
    Raises: S3Error AccessDenied (expired, or a parameter not covered), InvalidAccessKeyId,
    SignatureDoesNotMatch.
    """
    if "authorization" in head.headers:
        raise S3Error("InvalidArgument", "Only one auth mechanism allowed.")
    access_key = (target.value(b"AWSAccessKeyId") or b"").decode("latin-1")
    expires = target.value(b"Expires") or b""
    if not (expires.isdigit() and len(expires) < 16):
        raise S3Error("AccessDenied", "Query-string authentication requires a valid Expires")
    for name, _ in target.query:
        if name not in _SIGNED and name not in _OWN:
            raise S3Error("AccessDenied", "A query parameter is not covered by the signature.")
    secret = secret_of(access_key)
    if secret is None:
        raise S3Error("InvalidAccessKeyId")
    if now_s >= int(expires):
        raise S3Error("AccessDenied", "Request has expired")
    text = _string_to_sign(head, target, resource, expires)
    wanted = base64.b64encode(hmac.digest(secret.encode(), text, "sha1"))
    if not hmac.compare_digest(wanted, target.value(b"Signature") or b""):
        raise S3Error("SignatureDoesNotMatch")
    return Authentication(access_key, Payload.UNSIGNED, "", None, is_presigned=True)


def _string_to_sign(head: Head, target: Target, resource: bytes, expires: bytes) -> bytes:
    lines = [head.method, head.get("content-md5"), head.get("content-type")]
    text = "\n".join(lines).encode("latin-1") + b"\n" + expires + b"\n"
    for name in sorted(head.headers):
        if name.startswith("x-amz-"):
            text += f"{name}:{head.headers[name]}\n".encode("latin-1")
    signed = sorted(pair for pair in target.query if pair[0] in _SIGNED)
    query = b"&".join(name + (b"=" + value if value else b"") for name, value in signed)
    return text + resource + (b"?" + query if query else b"")
