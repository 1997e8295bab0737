"""Lifecycle rules and tags: lifetimes that both doors show; tags and owners of buckets."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable

import botocore.exceptions
import pytest

from kvfs.model import Entry, ObjectPath
from kvfs.open_store import open_store
from tests.integration.gateway_process import Gateway, S3Client

DAY_S = 86_400


def code_of(call: Callable[..., object], **arguments: object) -> tuple[str, int] | None:
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        return str(error.response["Error"]["Code"]), int(status)
    return None


def put_rules(client: S3Client, bucket: str, *rules: dict[str, object]) -> None:
    enabled = [{"Status": "Enabled", "Filter": {"Prefix": ""}, **rule} for rule in rules]
    client.put_bucket_lifecycle_configuration(
        Bucket=bucket, LifecycleConfiguration={"Rules": enabled}
    )


def stat(gateway: Gateway, bucket: str, key: str) -> Entry:
    with open_store(gateway.store) as store:
        return store.stat(ObjectPath(bucket.encode(), key.encode()))


def whole_days(entry: Entry) -> int:
    """Return the days of life, which end at a midnight."""
    assert entry.expires_at_s % DAY_S == 0
    assert not entry.is_sliding
    return (entry.expires_at_s - entry.mtime_ns // 1_000_000_000) // DAY_S


def test_rules_become_lifetimes(gateway: Gateway, client: S3Client, bucket: str) -> None:
    missing = code_of(client.get_bucket_lifecycle_configuration, Bucket=bucket)
    assert missing == ("NoSuchLifecycleConfiguration", 404)
    tagged = {"And": {"Prefix": "t/", "Tags": [{"Key": "class", "Value": "chat"}]}}
    put_rules(
        client,
        bucket,
        {"ID": "a", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 1}},
        {"ID": "b", "Filter": tagged, "Expiration": {"Days": 3}},
        {"ID": "c", "Status": "Disabled", "Expiration": {"Days": 1}},
    )
    got = client.get_bucket_lifecycle_configuration(Bucket=bucket)
    assert [rule["ID"] for rule in got["Rules"]] == ["a", "b", "c"]
    client.put_object(Bucket=bucket, Key="tmp/k", Body=b"x")
    put = client.put_object(Bucket=bucket, Key="t/k", Body=b"x", Tagging="class=chat")
    client.put_object(Bucket=bucket, Key="t/other", Body=b"x")
    assert whole_days(stat(gateway, bucket, "tmp/k")) == 1
    assert whole_days(stat(gateway, bucket, "t/k")) == 3
    assert stat(gateway, bucket, "t/other").expires_at_s == 0
    shown = client.head_object(Bucket=bucket, Key="t/k")["Expiration"]
    assert shown == put["Expiration"]
    assert re.fullmatch(r'expiry-date="\w{3}, .* 00:00:00 GMT", rule-id="b"', shown)
    client.delete_bucket_lifecycle(Bucket=bucket)
    client.put_object(Bucket=bucket, Key="tmp/k", Body=b"y")
    assert "Expiration" not in client.head_object(Bucket=bucket, Key="tmp/k")
    assert "Expiration" not in client.head_object(Bucket=bucket, Key="t/k")


def test_rules_hold_for_what_was_there_before_them(
    gateway: Gateway, client: S3Client, bucket: str
) -> None:
    for key in ("tmp/k", "k"):
        client.put_object(Bucket=bucket, Key=key, Body=b"x")
    put_rules(client, bucket, {"ID": "a", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 1}})
    assert whole_days(stat(gateway, bucket, "tmp/k")) == 1
    assert 'rule-id="a"' in client.head_object(Bucket=bucket, Key="tmp/k")["Expiration"]
    assert "Expiration" not in client.head_object(Bucket=bucket, Key="k")
    put_rules(client, bucket, {"ID": "b", "Expiration": {"Days": 9}})
    for key in ("tmp/k", "k"):
        assert whole_days(stat(gateway, bucket, key)) == 9
    client.delete_bucket_lifecycle(Bucket=bucket)
    for key in ("tmp/k", "k"):
        assert stat(gateway, bucket, key).expires_at_s == 0


def test_an_object_in_parts_ends_by_the_rules_of_its_completion(
    gateway: Gateway, client: S3Client, bucket: str
) -> None:
    upload = client.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    named = {"Bucket": bucket, "Key": "k", "UploadId": upload}
    part = client.upload_part(**named, PartNumber=1, Body=b"x" * 10)
    put_rules(
        client,
        bucket,
        {"ID": "large", "Filter": {"ObjectSizeGreaterThan": 9}, "Expiration": {"Days": 2}},
        {"ID": "small", "Filter": {"ObjectSizeLessThan": 10}, "Expiration": {"Days": 1}},
    )
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    done = client.complete_multipart_upload(**named, MultipartUpload=parts)
    assert 'rule-id="large"' in done["Expiration"]
    assert whole_days(stat(gateway, bucket, "k")) == 2
    client.put_object(Bucket=bucket, Key="s", Body=b"x")
    assert whole_days(stat(gateway, bucket, "s")) == 1


def test_other_tags_bring_another_lifetime(gateway: Gateway, client: S3Client, bucket: str) -> None:
    chat = [{"Key": "class", "Value": "chat"}]
    put_rules(client, bucket, {"Filter": {"Tag": chat[0]}, "Expiration": {"Days": 2}})
    client.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert stat(gateway, bucket, "k").expires_at_s == 0
    client.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": chat})
    ends_s = stat(gateway, bucket, "k").expires_at_s
    assert whole_days(stat(gateway, bucket, "k")) == 2
    more = [*chat, {"Key": "more", "Value": "1"}]
    client.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": more})
    assert stat(gateway, bucket, "k").expires_at_s == ends_s
    client.delete_object_tagging(Bucket=bucket, Key="k")
    assert stat(gateway, bucket, "k").expires_at_s == 0


def test_a_rule_may_name_a_date(gateway: Gateway, client: S3Client, bucket: str) -> None:
    past = datetime.datetime(2015, 6, 1, tzinfo=datetime.UTC)
    future = datetime.datetime(2100, 6, 1, tzinfo=datetime.UTC)
    put_rules(
        client,
        bucket,
        {"ID": "p", "Filter": {"Prefix": "past/"}, "Expiration": {"Date": past}},
        {"ID": "f", "Filter": {"Prefix": "future/"}, "Expiration": {"Date": future}},
    )
    client.put_object(Bucket=bucket, Key="past/k", Body=b"x")
    client.put_object(Bucket=bucket, Key="future/k", Body=b"x")
    assert abs(stat(gateway, bucket, "future/k").expires_at_s - future.timestamp()) <= 1
    with open_store(gateway.store) as store:
        entry = store.find(ObjectPath(bucket.encode(), b"past/k"))
    assert entry is None or entry.ttl_s == 1


def test_a_rule_without_an_id_gets_one(client: S3Client, bucket: str) -> None:
    put_rules(
        client,
        bucket,
        {"Filter": {"Prefix": "a"}, "Expiration": {"Days": 1}},
        {"Filter": {"Prefix": "b"}, "Expiration": {"Days": 1}},
    )
    ids = [
        [rule["ID"] for rule in client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]]
        for _ in range(2)
    ]
    assert ids[0] == ids[1]
    assert len({*ids[0], ""}) == 3


MIDDAY = datetime.datetime(2100, 6, 1, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ([{"ID": "x" * 256, "Expiration": {"Days": 1}}], "InvalidArgument"),
        ([{"ID": "x", "Expiration": {"Days": n}} for n in (1, 2)], "InvalidArgument"),
        ([{"Expiration": {"Days": 0}}], "InvalidArgument"),
        ([{"Expiration": {"Date": MIDDAY}}], "InvalidArgument"),
        ([{"Expiration": {"Days": 1}, "Status": "enabled"}], "MalformedXML"),
        ([{"Transitions": [{"Days": 1, "StorageClass": "GLACIER"}]}], "NotImplemented"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(
    client: S3Client, bucket: str, rules: list[dict[str, object]], code: str
) -> None:
    with pytest.raises(botocore.exceptions.ClientError) as raised:
        put_rules(client, bucket, *rules)
    assert raised.value.response["Error"]["Code"] == code
    missing = code_of(client.get_bucket_lifecycle_configuration, Bucket=bucket)
    assert missing == ("NoSuchLifecycleConfiguration", 404)


def test_buckets_have_tags(client: S3Client, bucket: str) -> None:
    assert code_of(client.get_bucket_tagging, Bucket=bucket) == ("NoSuchTagSet", 404)
    first = [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": ""}]
    client.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": first})
    assert client.get_bucket_tagging(Bucket=bucket)["TagSet"] == first
    second = [{"Key": f"k{number:02}", "Value": "x"} for number in range(50)]
    client.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": second})
    assert client.get_bucket_tagging(Bucket=bucket)["TagSet"] == second
    over = {"TagSet": [*second, {"Key": "over", "Value": "x"}]}
    assert code_of(client.put_bucket_tagging, Bucket=bucket, Tagging=over) == ("InvalidTag", 400)
    client.delete_bucket_tagging(Bucket=bucket)
    assert code_of(client.get_bucket_tagging, Bucket=bucket) == ("NoSuchTagSet", 404)
    assert code_of(client.get_bucket_tagging, Bucket="no-such") == ("NoSuchBucket", 404)


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ("bucket_policy", "NoSuchBucketPolicy"),
        ("bucket_cors", "NoSuchCORSConfiguration"),
        ("bucket_encryption", "ServerSideEncryptionConfigurationNotFoundError"),
        ("bucket_website", "NoSuchWebsiteConfiguration"),
        ("bucket_replication", "ReplicationConfigurationNotFoundError"),
        ("object_lock_configuration", "ObjectLockConfigurationNotFoundError"),
        ("public_access_block", "NoSuchPublicAccessBlockConfiguration"),
        ("bucket_ownership_controls", "OwnershipControlsNotFoundError"),
    ],
)
def test_what_was_never_set_is_told_in_s3s_words(
    client: S3Client, bucket: str, setting: str, code: str
) -> None:
    get = getattr(client, f"get_{setting}")
    assert code_of(get, Bucket=bucket) == (code, 404)
    assert code_of(get, Bucket="no-such-bucket") == ("NoSuchBucket", 404)
    if setting != "object_lock_configuration":
        delete = getattr(client, f"delete_{setting}")
        assert delete(Bucket=bucket)["ResponseMetadata"]["HTTPStatusCode"] == 204
        assert code_of(delete, Bucket="no-such-bucket") == ("NoSuchBucket", 404)
    client.head_bucket(Bucket=bucket)


def test_defaults_are_told(client: S3Client, bucket: str) -> None:
    assert client.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"] == {"IsPublic": False}
    assert client.get_bucket_request_payment(Bucket=bucket)["Payer"] == "BucketOwner"
    assert "LoggingEnabled" not in client.get_bucket_logging(Bucket=bucket)
    assert "Status" not in client.get_bucket_accelerate_configuration(Bucket=bucket)
    notifications = client.get_bucket_notification_configuration(Bucket=bucket)
    assert set(notifications) == {"ResponseMetadata"}


def test_what_holds_whatever_it_says_is_kept(client: S3Client, bucket: str) -> None:
    block = {
        "BlockPublicAcls": True,
        "IgnorePublicAcls": True,
        "BlockPublicPolicy": True,
        "RestrictPublicBuckets": False,
    }
    client.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=block)
    got = client.get_public_access_block(Bucket=bucket)
    assert got["PublicAccessBlockConfiguration"] == block
    client.delete_public_access_block(Bucket=bucket)
    missing = code_of(client.get_public_access_block, Bucket=bucket)
    assert missing == ("NoSuchPublicAccessBlockConfiguration", 404)
    controls = {"Rules": [{"ObjectOwnership": "ObjectWriter"}]}
    client.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=controls)
    got = client.get_bucket_ownership_controls(Bucket=bucket)
    assert got["OwnershipControls"] == controls
    client.create_bucket(Bucket=f"{bucket}-2", ObjectOwnership="BucketOwnerEnforced")
    got = client.get_bucket_ownership_controls(Bucket=f"{bucket}-2")
    assert got["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    wrong = {"Rules": [{"ObjectOwnership": "Everybody"}]}
    refused = code_of(client.put_bucket_ownership_controls, Bucket=bucket, OwnershipControls=wrong)
    assert refused == ("MalformedXML", 400)


def test_no_bucket_has_object_lock(client: S3Client, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"x")
    named = {"Bucket": bucket, "Key": "k"}
    held = {"LegalHold": {"Status": "ON"}}
    assert code_of(client.put_object_legal_hold, **named, **held) == ("InvalidRequest", 400)
    assert code_of(client.get_object_retention, **named) == ("InvalidRequest", 400)
    missing = code_of(client.get_object_legal_hold, Bucket=bucket, Key="no")
    assert missing == ("NoSuchKey", 404)
    enabled = {"ObjectLockConfiguration": {"ObjectLockEnabled": "Enabled"}}
    refused = code_of(client.put_object_lock_configuration, Bucket=bucket, **enabled)
    assert refused == ("InvalidBucketState", 409)
    assert client.get_object(**named)["Body"].read() == b"x"


def test_the_list_that_everything_has_may_be_put_again(client: S3Client, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"x")
    client.put_bucket_acl(Bucket=bucket, ACL="private")
    client.put_object_acl(Bucket=bucket, Key="k", ACL="private")
    acl = client.get_object_acl(Bucket=bucket, Key="k")
    policy = {"Owner": acl["Owner"], "Grants": acl["Grants"]}
    client.put_object_acl(Bucket=bucket, Key="k", AccessControlPolicy=policy)
    anybody = {"Type": "Group", "URI": "http://acs.amazonaws.com/groups/global/AllUsers"}
    wider = {**policy, "Grants": [*acl["Grants"], {"Grantee": anybody, "Permission": "READ"}]}
    refused = code_of(client.put_object_acl, Bucket=bucket, Key="k", AccessControlPolicy=wider)
    assert refused == ("NotImplemented", 501)
    unknown = code_of(client.put_bucket_acl, Bucket=bucket, ACL="public-raed")
    assert unknown == ("InvalidArgument", 400)
    missing = code_of(client.put_object_acl, Bucket=bucket, Key="no", ACL="private")
    assert missing == ("NoSuchKey", 404)
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"


def test_everything_is_its_owners_alone(client: S3Client, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"x")
    for acl in (
        client.get_bucket_acl(Bucket=bucket),
        client.get_object_acl(Bucket=bucket, Key="k"),
    ):
        (grant,) = acl["Grants"]
        assert grant["Permission"] == "FULL_CONTROL"
        assert grant["Grantee"] == {**acl["Owner"], "Type": "CanonicalUser"}
    assert code_of(client.get_object_acl, Bucket=bucket, Key="no") == ("NoSuchKey", 404)
    wider = {"Bucket": bucket, "Key": "k", "ACL": "public-read"}
    assert code_of(client.put_object_acl, **wider) == ("NotImplemented", 501)
