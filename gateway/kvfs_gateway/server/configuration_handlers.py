"""Settings of buckets and objects that there are in S3, and of which only the default is served.

Owns what is told of them: that nothing was set, in the words S3 has for each, which clients and
tools ask before they go on. Setting them to anything else is refused by routing (501), but for two
that hold whatever they say: nothing here can become public, and all objects have one owner.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvfs.errors import NotFound
from kvfs.model import AttributeChange
from kvfs_gateway.s3 import xml
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.operations import Operation
from kvfs_gateway.s3.routing import OBJECT_OWNERSHIPS
from kvfs_gateway.server.body import MAX_MD5_LENGTH
from kvfs_gateway.server.bucket_handlers import (
    OWNERSHIP,
    owner,
    parse_document,
    render_acl,
    require_bucket,
)
from kvfs_gateway.server.object_handlers import miss
from kvfs_gateway.server.response import Response, empty_response, xml_response
from kvfs_gateway.server.service import Call

PUBLIC_ACCESS = "user.s3.public-access-block"
MAX_STORED_LENGTH = 2048

_NOT_SET = {
    Operation.GET_BUCKET_POLICY: "NoSuchBucketPolicy",
    Operation.GET_BUCKET_CORS: "NoSuchCORSConfiguration",
    Operation.GET_BUCKET_ENCRYPTION: "ServerSideEncryptionConfigurationNotFoundError",
    Operation.GET_BUCKET_WEBSITE: "NoSuchWebsiteConfiguration",
    Operation.GET_BUCKET_REPLICATION: "ReplicationConfigurationNotFoundError",
    Operation.GET_OBJECT_LOCK_CONFIGURATION: "ObjectLockConfigurationNotFoundError",
    Operation.PUT_OBJECT_LOCK_CONFIGURATION: "InvalidBucketState",
}
_DEFAULTS: dict[Operation, Mapping[str, xml.Value]] = {
    Operation.GET_BUCKET_POLICY_STATUS: {"IsPublic": False},
    Operation.GET_BUCKET_REQUEST_PAYMENT: {"Payer": "BucketOwner"},
    Operation.GET_BUCKET_LOGGING: {},
    Operation.GET_BUCKET_NOTIFICATION: {},
    Operation.GET_BUCKET_ACCELERATE: {},
}
_KEPT = {
    Operation.GET_PUBLIC_ACCESS_BLOCK: (PUBLIC_ACCESS, "NoSuchPublicAccessBlockConfiguration"),
    Operation.GET_OWNERSHIP_CONTROLS: (OWNERSHIP, "OwnershipControlsNotFoundError"),
}
_KEPT_BY = {
    Operation.PUT_PUBLIC_ACCESS_BLOCK: PUBLIC_ACCESS,
    Operation.DELETE_PUBLIC_ACCESS_BLOCK: PUBLIC_ACCESS,
    Operation.PUT_OWNERSHIP_CONTROLS: OWNERSHIP,
    Operation.DELETE_OWNERSHIP_CONTROLS: OWNERSHIP,
}


async def tell_unset(call: Call) -> Response:
    """Say, as S3 does, that a setting was never made."""
    require_bucket(call)
    raise S3Error(_NOT_SET[call.route.operation])


async def tell_default(call: Call) -> Response:
    """Tell a setting's default."""
    require_bucket(call)
    operation = call.route.operation
    return xml_response(xml.render(operation.value, _DEFAULTS[operation]))


async def remove_unset(call: Call) -> Response:
    """Remove what is not set, which is no error."""
    require_bucket(call)
    return empty_response(204)


async def refuse_lock(call: Call) -> Response:
    """Say that an object is in a bucket without object lock. Raises: always."""
    if call.service.store.find(call.path) is None:
        raise miss(call)
    raise S3Error("InvalidRequest", "Bucket is missing Object Lock Configuration")


# -- kept, because they hold


async def get_kept(call: Call) -> Response:
    """Return a setting as it was given."""
    entry = call.service.store.stat_inode(require_bucket(call).inode)
    name, absent = _KEPT[call.route.operation]
    text = entry.attributes.get(name) if entry is not None else None
    if text is None:
        raise S3Error(absent)
    operation = call.route.operation.value
    return xml_response(xml.render(operation, xml.parse("Put" + operation[3:], text)))


async def put_kept(call: Call) -> Response:
    """Keep a setting."""
    namespace = require_bucket(call)
    call.body.begin(call.authentication)
    text = await call.body.read_all(MAX_STORED_LENGTH)
    document = xml.parse(call.route.operation.value, text)
    rules = document.get("Rules", [])
    assert isinstance(rules, list), "the model says list"
    if any(rule["ObjectOwnership"] not in OBJECT_OWNERSHIPS for rule in rules):
        raise S3Error("MalformedXML")
    change = AttributeChange(set_attributes={_KEPT_BY[call.route.operation]: text})
    await call.service.write(call.service.store.set_attributes, namespace.inode, change)
    return empty_response(200)


async def delete_kept(call: Call) -> Response:
    """Forget a setting; one that is not there is no error."""
    namespace = require_bucket(call)
    change = AttributeChange(remove_attributes=(_KEPT_BY[call.route.operation],))
    try:
        await call.service.write(call.service.store.set_attributes, namespace.inode, change)
    except NotFound:
        require_bucket(call)
    return empty_response(204)


# -- access control lists: there is one, and it may be put again


async def get_acl(call: Call) -> Response:
    """Tell that the bucket or object is its owner's."""
    _require_subject(call)
    return render_acl(call, call.route.operation.value)


async def put_acl(call: Call) -> Response:
    """Take the list that everything has anyway; routing has refused other canned ones.

    Raises: S3Error NotImplemented for a list that grants anything else.
    """
    _require_subject(call)
    if "x-amz-acl" in call.head.headers:
        await call.body.discard(MAX_MD5_LENGTH)
        return empty_response(200)
    call.body.begin(call.authentication)
    text = await call.body.read_all(xml.MAX_XML_LENGTH)
    if not text:
        raise S3Error("MissingSecurityHeader")
    document = await parse_document(call, call.route.operation.value, text)
    grants = document.get("Grants")
    assert grants is None or isinstance(grants, list), "the model says list"
    if not grants or any(not _is_the_owners(call, grant) for grant in grants):
        raise S3Error("NotImplemented", "Access control lists other than private.")
    return empty_response(200)


def _is_the_owners(call: Call, grant: Mapping[str, xml.Value]) -> bool:
    grantee = grant.get("Grantee")
    assert grantee is None or isinstance(grantee, Mapping), "the model says structure"
    is_owner = grantee is not None and grantee.get("ID") == owner(call)["ID"]
    return is_owner and grant.get("Permission") == "FULL_CONTROL"


def _require_subject(call: Call) -> None:
    if not call.route.key:
        require_bucket(call)
    elif call.service.store.find(call.path) is None:
        raise miss(call)
