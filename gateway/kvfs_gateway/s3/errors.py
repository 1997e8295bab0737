"""S3's error codes, their statuses, and how one is written on the wire.

Owns the one table code -> (status, default message); knows nothing of the store's errors (that is
server/error_map.py). Holds: a code that is not in the table cannot be raised, so every answer has a
status, and the body is always well-formed XML whatever bytes the client put in its key.
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

XML_DECLARATION = b'<?xml version="1.0" encoding="UTF-8"?>\n'

_CODES: dict[str, tuple[int, str]] = {
    "AccessDenied": (403, "Access Denied"),
    "AuthorizationHeaderMalformed": (400, "The authorization header is malformed."),
    "AuthorizationQueryParametersError": (400, "The presigned query parameters are malformed."),
    "BadDigest": (400, "The Content-MD5 or checksum you specified did not match what we received."),
    "BadRequest": (400, "The request could not be understood."),
    "BucketAlreadyExists": (409, "The requested bucket name is not available."),
    "BucketAlreadyOwnedByYou": (
        409,
        "Your previous request to create the named bucket succeeded and you already own it.",
    ),
    "BucketNotEmpty": (409, "The bucket you tried to delete is not empty."),
    "ConditionalRequestConflict": (409, "A conflicting operation happened during this request."),
    "EntityTooLarge": (400, "Your proposed upload exceeds the maximum allowed object size."),
    "EntityTooSmall": (
        400,
        "Your proposed upload is smaller than the minimum allowed object size.",
    ),
    "ExpectedBucketOwnerMismatch": (403, "Access Denied"),
    "IncompleteBody": (
        400,
        "You did not provide the number of bytes specified by the Content-Length HTTP header.",
    ),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "InvalidAccessKeyId": (
        403,
        "The AWS access key ID that you provided does not exist in our records.",
    ),
    "InvalidArgument": (400, "Invalid Argument"),
    "InvalidBucketName": (400, "The specified bucket is not valid."),
    "InvalidDigest": (400, "The Content-MD5 or checksum value that you specified is not valid."),
    "InvalidPart": (
        400,
        "One or more of the specified parts could not be found. The part may not have been "
        "uploaded, or the specified entity tag may not match the part's entity tag.",
    ),
    "InvalidPartNumber": (416, "The requested partnumber is not satisfiable"),
    "InvalidPartOrder": (400, "The list of parts was not in ascending order."),
    "InvalidRange": (416, "The requested range is not satisfiable"),
    "InvalidRequest": (400, "Invalid Request"),
    "InvalidStorageClass": (400, "The storage class you specified is not valid"),
    "InvalidTag": (400, "The tag provided was not a valid tag."),
    "InvalidToken": (400, "The provided token is malformed or otherwise not valid."),
    "InvalidURI": (400, "Couldn't parse the specified URI."),
    "KeyTooLongError": (400, "Your key is too long"),
    "MalformedXML": (
        400,
        "The XML you provided was not well-formed or did not validate against our published schema",
    ),
    "MaxMessageLengthExceeded": (400, "Your request was too big."),
    "MetadataTooLarge": (
        400,
        "Your metadata headers exceed the maximum allowed metadata size",
    ),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource."),
    "MissingContentLength": (411, "You must provide the Content-Length HTTP header."),
    "MissingRequestBodyError": (400, "Request body is empty"),
    "MissingSecurityHeader": (400, "Your request was missing a required header."),
    "InvalidBucketState": (409, "Object Lock configuration cannot be enabled on existing buckets"),
    "NoSuchBucketPolicy": (404, "The bucket policy does not exist"),
    "NoSuchCORSConfiguration": (404, "The CORS configuration does not exist"),
    "NoSuchPublicAccessBlockConfiguration": (
        404,
        "The public access block configuration was not found",
    ),
    "NoSuchWebsiteConfiguration": (
        404,
        "The specified bucket does not have a website configuration",
    ),
    "ObjectLockConfigurationNotFoundError": (
        404,
        "Object Lock configuration does not exist for this bucket",
    ),
    "OwnershipControlsNotFoundError": (404, "The bucket ownership controls were not found"),
    "ReplicationConfigurationNotFoundError": (404, "The replication configuration was not found"),
    "ServerSideEncryptionConfigurationNotFoundError": (
        404,
        "The server side encryption configuration was not found",
    ),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NoSuchLifecycleConfiguration": (404, "The lifecycle configuration does not exist"),
    "NoSuchTagSet": (404, "The TagSet does not exist"),
    "NoSuchVersion": (404, "The specified version does not exist."),
    "NoSuchUpload": (
        404,
        "The specified multipart upload does not exist. The upload ID may be invalid, or the "
        "upload may have been aborted or completed.",
    ),
    "NotImplemented": (501, "A header or query you provided implies functionality not served."),
    "NotModified": (304, "Not Modified"),
    "PreconditionFailed": (
        412,
        "At least one of the pre-conditions you specified did not hold",
    ),
    "QuotaExceeded": (507, "The store or the bucket is full."),
    "RequestHeaderSectionTooLarge": (400, "Your request header section exceeds 16 KiB."),
    "RequestTimeTooSkewed": (
        403,
        "The difference between the request time and the server's time is too large.",
    ),
    "RequestTimeout": (
        400,
        "Your socket connection to the server was not read from or written to within the "
        "timeout period.",
    ),
    "ServerBusy": (503, "Reduce your request rate."),
    "ServiceUnavailable": (503, "The service cannot answer now. Please try again."),
    "SignatureDoesNotMatch": (
        403,
        "The request signature we calculated does not match the signature you provided. "
        "Check your key and signing method.",
    ),
    "SlowDown": (503, "Please reduce your request rate."),
    "XAmzContentSHA256Mismatch": (
        400,
        "The provided 'x-amz-content-sha256' header does not match what was computed.",
    ),
}


@dataclass(frozen=True, slots=True)
class ErrorContext:
    """What an error body says about the request besides the error."""

    resource: str
    request_id: str


class S3Error(Exception):
    """A refusal with S3's code; `status` and the default message come from the table.

    `closes` says that the connection cannot be used any further, because where the next request
    begins is unknown (a framing error) or not to be trusted.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        closes: bool = False,
        fields: tuple[tuple[str, str], ...] = (),
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.status, default = _CODES[code]
        self.code = code
        self.message = message or default
        self.closes = closes
        self.fields = fields
        self.headers = headers
        super().__init__(f"{code}: {self.message}")


def xml_text(text: str) -> str:
    """Escape `text` for element content; what XML 1.0 cannot hold becomes U+FFFD."""
    if not text.isprintable():
        text = "".join(c if _is_xml_character(c) else "�" for c in text)
    return escape(text, {"\r": "&#13;"})


def _is_xml_character(character: str) -> bool:
    point = ord(character)
    return (
        character in "\t\n\r" or 0x20 <= point <= 0xD7FF or 0xE000 <= point <= 0xFFFD
    ) or point >= 0x10000


def render_error(error: S3Error, context: ErrorContext) -> bytes:
    """Return the body of an error answer (the caller sends none to HEAD, nor with 304)."""
    fields = [("Code", error.code), ("Message", error.message), *error.fields]
    fields += [("Resource", context.resource), ("RequestId", context.request_id)]
    inner = "".join(f"<{name}>{xml_text(value)}</{name}>" for name, value in fields)
    return XML_DECLARATION + f"<Error>{inner}</Error>".encode()
