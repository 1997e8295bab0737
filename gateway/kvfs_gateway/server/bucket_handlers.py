"""Buckets: create, head, list, delete, location, versioning state.

Owns nothing but the translation: a bucket is a namespace is a first directory, whoever made it, so
names that S3 would not let anybody create (the mount does) are still served.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from kvfs.errors import AlreadyExists
from kvfs.model import AttributeChange, Namespace
from kvfs_gateway.s3 import xml
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.http_dates import render_iso_date
from kvfs_gateway.s3.routing import check_new_bucket_name
from kvfs_gateway.server.response import Response, empty_response, xml_response
from kvfs_gateway.server.service import Call

DEFAULT_REGION = "us-east-1"
"""S3 shows this one as an empty LocationConstraint."""
MAX_BUCKETS = 10_000
OWNERSHIP = "user.s3.ownership-controls"
"""An extended attribute of a bucket's directory."""
LONG_DOCUMENT = 32 * 1024
"""Parsing takes 0.1 ms a KiB of small elements; a Complete of 10,000 parts has 900 KiB."""


def require_bucket(call: Call) -> Namespace:
    """Return the request's bucket. Raises: S3Error NoSuchBucket."""
    namespace = call.service.store.find_namespace(call.route.bucket)
    if namespace is None:
        name = call.route.bucket.decode("utf-8", "replace")
        raise S3Error("NoSuchBucket", fields=(("BucketName", name),))
    return namespace


async def read_document(call: Call, operation: str) -> dict[str, xml.Value]:
    """Return the request's XML body, checked and parsed; {} when there is none."""
    call.body.begin(call.authentication)
    text = await call.body.read_all(xml.MAX_XML_LENGTH)
    return dict(await parse_document(call, operation, text)) if text else {}


async def parse_document(call: Call, operation: str, text: bytes) -> Mapping[str, xml.Value]:
    """Return a request's document; a long one is parsed in a thread, to let others have turns."""
    if len(text) < LONG_DOCUMENT:
        return xml.parse(operation, text)
    return await call.service.read(xml.parse, operation, text)


async def create_bucket(call: Call) -> Response:
    """Make an empty bucket."""
    name = call.route.bucket
    check_new_bucket_name(name)
    wanted = (await read_document(call, "CreateBucket")).get("LocationConstraint")
    if wanted not in (None, "", DEFAULT_REGION, call.service.region):
        raise S3Error("InvalidArgument", "The specified location-constraint is not valid")
    try:
        namespace = await call.service.write(call.service.store.create_namespace, name)
    except AlreadyExists:
        # S3 makes it again without complaint in its first region, and there only.
        if call.service.region != DEFAULT_REGION:
            raise S3Error("BucketAlreadyOwnedByYou") from None
    else:
        await _keep_ownership(call, namespace)
    return empty_response(200, [("Location", f"/{name.decode('ascii')}")])


async def _keep_ownership(call: Call, namespace: Namespace) -> None:
    """Keep what the client says of objects' owners, as PutBucketOwnershipControls would."""
    ownership = call.head.headers.get("x-amz-object-ownership")
    if ownership:
        rules: list[xml.Value] = [{"ObjectOwnership": ownership}]
        text = xml.render("GetBucketOwnershipControls", {"Rules": rules})
        change = AttributeChange(set_attributes={OWNERSHIP: text})
        await call.service.write(call.service.store.set_attributes, namespace.inode, change)


async def head_bucket(call: Call) -> Response:
    """Say whether the bucket is there."""
    require_bucket(call)
    return empty_response(200, [("x-amz-bucket-region", call.service.region)])


async def delete_bucket(call: Call) -> Response:
    """Remove an empty bucket."""
    require_bucket(call)
    await call.service.write(call.service.store.delete_namespace, call.route.bucket)
    return empty_response(204)


async def get_bucket_location(call: Call) -> Response:
    """Tell the region."""
    require_bucket(call)
    region = call.service.region
    return xml_response(xml.render_location("" if region == DEFAULT_REGION else region))


async def get_bucket_versioning(call: Call) -> Response:
    """Tell that versioning was never switched on: the document is empty then."""
    require_bucket(call)
    return xml_response(xml.render("GetBucketVersioning", {}))


async def list_buckets(call: Call) -> Response:
    """List all buckets that the asker may see in byte order, a page at a time if asked."""
    prefix = call.parameter("prefix")
    limit = call.count("max-buckets", MAX_BUCKETS, MAX_BUCKETS)
    after = decode_token(call.parameter("continuation-token"))
    namespaces = await call.service.read(call.service.store.list_namespaces)
    wanted = prefix.encode()
    rows = [
        row
        for row in namespaces
        if row.name.startswith(wanted) and row.name > after and call.may_see(row.name)
    ]
    page = rows[:limit]
    result: dict[str, xml.Value] = {
        "Owner": owner(call),
        "Buckets": [_bucket(call, row) for row in page],
    }
    if prefix:
        result["Prefix"] = prefix
    if len(rows) > len(page) and page:
        result["ContinuationToken"] = encode_token(page[-1].name)
    return xml_response(xml.render("ListBuckets", result))


def _bucket(call: Call, row: Namespace) -> dict[str, xml.Value]:
    return {
        "Name": row.name.decode("utf-8", "replace"),
        "CreationDate": render_iso_date(row.created_ns),
        "BucketRegion": call.service.region,
    }


def render_acl(call: Call, operation: str) -> Response:
    """Return the access control list that everything has: its owner may do all, nobody else."""
    grant: dict[str, xml.Value] = {
        "Grantee": {**owner(call), "Type": "CanonicalUser"},
        "Permission": "FULL_CONTROL",
    }
    return xml_response(xml.render(operation, {"Owner": owner(call), "Grants": [grant]}))


def owner(call: Call) -> dict[str, xml.Value]:
    """Return the one owner there is."""
    return {"ID": call.service.owner_id, "DisplayName": call.service.owner_id}


def encode_token(position: bytes) -> str:
    """Return an opaque continuation token that resumes behind `position`."""
    return base64.urlsafe_b64encode(b"1" + position).decode("ascii")


def decode_token(token: str) -> bytes:
    """Return the position in a token, b"" for none. Raises: S3Error InvalidArgument."""
    if not token:
        return b""
    try:
        position = base64.b64decode(token.encode("ascii"), b"-_", validate=True)
    except (binascii.Error, ValueError):
        position = b""
    if position[:1] != b"1":
        raise S3Error("InvalidArgument", "The continuation token provided is incorrect")
    return position[1:]
