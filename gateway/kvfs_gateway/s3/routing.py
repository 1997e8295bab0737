"""From a request to the one operation it names, or to a refusal; nothing falls through.

Owns addressing (which bucket, which key) and the operation table. The table is made from botocore's
service model: an operation is a method, a scope, the sub-resources that must be there and the
parameters that may be. A query parameter that the chosen operation does not list is refused, so an
unknown sub-resource can never delete a bucket or overwrite an object by being ignored.

Holds: total. Every (method, target, headers) gives a Route or an S3Error, never another exception.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import re
from dataclasses import dataclass
from typing import NamedTuple

from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.head import Head
from kvfs_gateway.s3.operations import Operation
from kvfs_gateway.s3.service_model import OperationModel, s3_service
from kvfs_gateway.s3.target import Target

MAX_KEY_LENGTH = 1024

_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
_BAD_BUCKET = re.compile(r"\.\.|\.-|-\.|^xn--|^sthree-|-s3alias$|--ol-s3$")
_IGNORED_PARAMETERS = frozenset({"x-id", "Version"})
"""Newer SDKs name the operation in the query, Apache Libcloud the version of S3's interface; the
rest of the request decides."""
_V2_PARAMETERS = frozenset({"AWSAccessKeyId", "Expires", "Signature"})
_REFUSED_HEADERS = (
    "x-amz-server-side-encryption",
    "x-amz-copy-source-server-side-encryption",
    "x-amz-object-lock-",
    "x-amz-grant-",
    "x-amz-website-redirect-location",
    "x-amz-write-offset-bytes",
    "x-amz-mfa",
    "x-amz-rename-source",
)
"""Headers that change what an operation means: an object kept without the encryption, lock or grant
that was asked for would be a lie."""
_EVERYDAY_HEADERS = frozenset({"x-amz-date", "x-amz-content-sha256", "x-amz-checksum-mode"})
_CANNED_ACLS = frozenset({"private", "bucket-owner-full-control", "bucket-owner-read"})
_UNSERVED_ACLS = frozenset(
    {"public-read", "public-read-write", "authenticated-read", "aws-exec-read",
     "log-delivery-write"}
)  # fmt: skip
OBJECT_OWNERSHIPS = frozenset({"BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter"})


class Scope(enum.Enum):
    """What a request is about."""

    SERVICE = 0
    BUCKET = 1
    OBJECT = 2


_SERVED = {operation.value: operation for operation in Operation}


@dataclass(frozen=True, slots=True)
class Addressing:
    """How this listener finds the bucket."""

    virtual_host_suffixes: tuple[str, ...] = ()
    """`s3.local` makes `Host: b.s3.local:9000` mean bucket `b`."""
    default_bucket: bytes = b""
    """The engine listener's bucket: the key is the whole path (`s3://ip:port` in LMCache)."""


class Route(NamedTuple):
    """What is asked, of what."""

    operation: Operation
    bucket: bytes
    key: bytes
    resource: bytes
    """Percent-encoded `/bucket/key` as sent, which version-2 signatures cover."""


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    needs: tuple[str, ...]
    """Sub-resources and parameters without which the rule does not apply."""
    allows: frozenset[str]


def route(head: Head, target: Target, addressing: Addressing) -> Route:
    """Return the operation that a request names.

    Raises: S3Error NotImplemented for S3 operations not served, InvalidArgument for parameters
    that belong to no operation, MethodNotAllowed, KeyTooLongError, InvalidURI for bad UTF-8.
    """
    bucket, key, resource = _locate(head, target, addressing)
    scope = Scope.OBJECT if key else Scope.BUCKET if bucket else Scope.SERVICE
    operation = _choose(head, target, scope)
    _check_headers(head)
    if key:
        _check_key(key)
    return Route(operation, bucket, key, resource)


def check_new_bucket_name(bucket: bytes) -> None:
    """Raise InvalidBucketName unless S3's rules for general purpose buckets hold."""
    name = bucket.decode("latin-1")
    if _BUCKET_NAME.fullmatch(name) is None or _BAD_BUCKET.search(name):
        raise S3Error("InvalidBucketName", fields=(("BucketName", name),))
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return
    raise S3Error("InvalidBucketName", fields=(("BucketName", name),))


def _locate(head: Head, target: Target, addressing: Addressing) -> tuple[bytes, bytes, bytes]:
    bucket = _bucket_of_host(head, target, addressing)
    if bucket:
        return bucket, target.path[1:], b"/" + bucket + target.raw_path
    bucket, _, key = target.path[1:].partition(b"/")
    return bucket, key, target.raw_path


def _bucket_of_host(head: Head, target: Target, addressing: Addressing) -> bytes:
    host = head.get("host")
    if target.authority and not _same_authority(target.authority, host):
        raise S3Error(
            "BadRequest", "The Host header is not that of the request target.", closes=True
        )
    if "/" in host:
        host, _, bucket = host.partition("/")
        if not bucket or "/" in bucket:
            raise S3Error("BadRequest", "The Host header is malformed.", closes=True)
        return bucket.encode("latin-1")
    if not addressing.virtual_host_suffixes:
        return addressing.default_bucket
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    for suffix in addressing.virtual_host_suffixes:
        if name.lower().endswith("." + suffix):
            return name[: -len(suffix) - 1].encode("latin-1")
    return addressing.default_bucket


def _same_authority(authority: str, host: str) -> bool:
    def bare(text: str) -> str:
        return text.lower().partition("/")[0].removesuffix(":80").removesuffix(":443")

    return bare(authority) == bare(host)


def _check_key(key: bytes) -> None:
    if len(key) > MAX_KEY_LENGTH:
        fields = (("Size", str(len(key))), ("MaxSizeAllowed", str(MAX_KEY_LENGTH)))
        raise S3Error("KeyTooLongError", fields=fields)
    if b"\0" in key:
        raise S3Error("InvalidURI", "A key cannot hold NUL.")
    try:
        key.decode("utf-8")
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", "A key must be UTF-8.") from None


def _check_headers(head: Head) -> None:
    for name in head.amz_names:
        if name in _EVERYDAY_HEADERS:
            continue
        value = head.headers[name]
        if name.startswith(_REFUSED_HEADERS):
            raise S3Error("NotImplemented", f"The header {name} is not served.")
        if name == "x-amz-acl" and value not in _CANNED_ACLS:
            if value not in _UNSERVED_ACLS:
                raise S3Error("InvalidArgument", "There is no such canned access control list.")
            raise S3Error("NotImplemented", "Access control lists other than private.")
        if name == "x-amz-object-ownership" and value not in OBJECT_OWNERSHIPS:
            raise S3Error("InvalidArgument", "Invalid x-amz-object-ownership header.")
        if name == "x-amz-bucket-object-lock-enabled" and value.lower() != "false":
            raise S3Error("NotImplemented", "Object lock is not served.")
        if name == "x-amz-security-token":
            raise S3Error("InvalidToken")


def _choose(head: Head, target: Target, scope: Scope) -> Operation:
    is_copy = "x-amz-copy-source" in head.headers
    if not target.query:
        return _choose_plain(head.method, scope, is_copy)
    return _choose_rule(head.method, scope, is_copy, _parameter_names(target))


@functools.lru_cache(maxsize=64)
def _choose_plain(method: str, scope: Scope, is_copy: bool) -> Operation:
    """A request without a query, as nearly all are; refusals are raised anew each time."""
    return _choose_rule(method, scope, is_copy, {})


def _choose_rule(method: str, scope: Scope, is_copy: bool, names: dict[str, str]) -> Operation:
    rules = route_table().get((method, scope))
    if rules is None:
        raise S3Error("MethodNotAllowed")
    present = {*names, *(f"{n}={v}" for n, v in names.items() if n in _LITERAL)}
    if is_copy:
        present.add("x-amz-copy-source")
    for rule in rules:
        if not all(need in present for need in rule.needs):
            continue
        unknown = [name for name in names if name not in rule.allows]
        if unknown:
            break
        if names.get("versionId", "null") != "null":
            raise S3Error("NoSuchVersion")
        if rule.name not in _SERVED:
            raise S3Error("NotImplemented", f"{rule.name} is not served.")
        return _SERVED[rule.name]
    raise _refusal(names)


_LITERAL = frozenset({"list-type", "select-type"})
"""Parameters whose value takes part in choosing."""


def _parameter_names(target: Target) -> dict[str, str]:
    """The query without what authenticates it."""
    names: dict[str, str] = {}
    is_v2 = target.value(b"AWSAccessKeyId") is not None
    for raw_name, raw_value in target.query:
        name = raw_name.decode("latin-1")
        is_credential = name.startswith("X-Amz-") or (is_v2 and name in _V2_PARAMETERS)
        if not is_credential and name not in _IGNORED_PARAMETERS:
            names[name] = raw_value.decode("latin-1")
    return names


def _refusal(names: dict[str, str]) -> S3Error:
    known = sorted(set(names) & _known_parameters())
    if known:
        return S3Error("NotImplemented", f"Not served here: {', '.join(known)}.")
    return S3Error("InvalidArgument", "The request has a query parameter that S3 does not know.")


@functools.cache
def _known_parameters() -> frozenset[str]:
    return frozenset(
        name for rules in route_table().values() for rule in rules for name in rule.allows
    )


@functools.cache
def route_table() -> dict[tuple[str, Scope], tuple[_Rule, ...]]:
    """Every operation of S3 by method and scope, the most demanding rule first."""
    table: dict[tuple[str, Scope], list[_Rule]] = {}
    for name in s3_service().operation_names:
        model = s3_service().operation_model(name)
        path, _, query = model.request_uri.partition("?")
        if path == "/WriteGetObjectResponse" or name in _SUPERSEDED:
            continue
        scope = Scope.OBJECT if "{Key+}" in path else Scope.BUCKET if "{Bucket}" in path else None
        located = _query_members(model)
        required = model.input_shape.required_members if model.input_shape else ()
        literals = [item for item in query.split("&") if item]
        needs = [located[member] for member in required if member in located]
        needs += _EXTRA_NEEDS.get(name, ())
        allows = {item.partition("=")[0] for item in literals} | set(located.values())
        rule = _Rule(name, tuple(literals + needs), frozenset(allows))
        table.setdefault((model.method, scope or Scope.SERVICE), []).append(rule)
    for key, extra in _BESIDES_THE_MODEL.items():
        table.setdefault(key, []).extend(extra)
    return {
        key: tuple(sorted(rules, key=lambda rule: (-len(rule.needs), rule.name)))
        for key, rules in table.items()
    }


def _query_members(model: OperationModel) -> dict[str, str]:
    members = model.input_shape.members if model.input_shape else {}
    return {
        name: str(member.serialization.get("name", name))
        for name, member in members.items()
        if member.serialization.get("location") == "querystring"
    }


_SUPERSEDED = frozenset(
    {
        "GetBucketLifecycle",
        "PutBucketLifecycle",
        "GetBucketNotification",
        "PutBucketNotification",
        "ListDirectoryBuckets",
    }
)
"""Older names of operations that the model lists twice."""
_EXTRA_NEEDS: dict[str, tuple[str, ...]] = {
    "CopyObject": ("x-amz-copy-source",),
    "UploadPartCopy": ("x-amz-copy-source",),
}
_BESIDES_THE_MODEL: dict[tuple[str, Scope], tuple[_Rule, ...]] = {
    ("POST", Scope.BUCKET): (_Rule("PostObject", (), frozenset()),),
}
