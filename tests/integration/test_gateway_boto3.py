"""What the gateway answers, asked through boto3; other clients stand in tests/engines/clients."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from kvfs.model import ObjectPath
from kvfs.open_store import open_store
from tests.integration.gateway_process import Gateway, S3Client

pytestmark = pytest.mark.s3

MIB = 1 << 20


def code_of(call: Callable[..., object], **arguments: object) -> tuple[str, int]:
    with pytest.raises(botocore.exceptions.ClientError) as raised:
        call(**arguments)
    response: Any = raised.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def test_an_object_comes_back_as_it_was_put(client: S3Client, bucket: str) -> None:
    data = os.urandom(5 * MIB)
    put = client.put_object(
        Bucket=bucket,
        Key="a/b c+d%2F",
        Body=data,
        ContentType="text/x",
        CacheControl="no-cache",
        ContentEncoding="gzip",
        Metadata={"Colour": "blue"},
    )
    got = client.get_object(Bucket=bucket, Key="a/b c+d%2F")
    assert got["Body"].read() == data
    assert got["ETag"] == put["ETag"]
    assert got["ContentType"] == "text/x"
    assert got["CacheControl"] == "no-cache"
    assert got["ContentEncoding"] == "gzip"
    assert got["Metadata"] == {"colour": "blue"}
    assert put["ChecksumCRC32"]
    head = client.head_object(Bucket=bucket, Key="a/b c+d%2F", ChecksumMode="ENABLED")
    assert head["ContentLength"] == len(data)
    assert head["ChecksumCRC32"] == put["ChecksumCRC32"]


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_every_checksum_is_verified_kept_and_returned(
    client: S3Client, bucket: str, algorithm: str, size: int
) -> None:
    data = os.urandom(size)
    put: Any = client.put_object(Bucket=bucket, Key="k", Body=data, ChecksumAlgorithm=algorithm)
    got: Any = client.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert got["Body"].read() == data
    assert got[f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"]


def test_an_open_file_is_put_as_its_bytes_are(
    client: S3Client, bucket: str, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    path.write_bytes(os.urandom(3 * MIB + 7))
    with path.open("rb") as file:
        client.put_object(Bucket=bucket, Key="k", Body=file, ChecksumAlgorithm="CRC32C")
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == path.read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=5-", slice(5, None)),
        ("bytes=-5", slice(95, None)),
        ("bytes=90-1000", slice(90, None)),
    ],
)
def test_ranges_are_206(client: S3Client, bucket: str, text: str, expected: slice) -> None:
    data = bytes(range(100))
    client.put_object(Bucket=bucket, Key="k", Body=data)
    got = client.get_object(Bucket=bucket, Key="k", Range=text)
    assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert got["Body"].read() == data[expected]
    assert got["ContentRange"].endswith("/100")


def test_a_range_beyond_the_end_is_416(client: S3Client, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"abc")
    assert code_of(client.get_object, Bucket=bucket, Key="k", Range="bytes=3-") == (
        "InvalidRange",
        416,
    )


def test_missing_keys_and_buckets_are_404(client: S3Client, bucket: str) -> None:
    assert code_of(client.get_object, Bucket=bucket, Key="no") == ("NoSuchKey", 404)
    assert code_of(client.head_object, Bucket=bucket, Key="no") == ("404", 404)
    assert code_of(client.get_object, Bucket="no-such", Key="k") == ("NoSuchBucket", 404)
    assert code_of(client.put_object, Bucket="no-such", Key="k", Body=b"x") == ("NoSuchBucket", 404)
    assert code_of(client.list_objects_v2, Bucket="no-such") == ("NoSuchBucket", 404)
    assert code_of(client.head_bucket, Bucket="no-such") == ("404", 404)


def test_wrong_keys_are_403(gateway: Gateway, bucket: str) -> None:
    wrong = gateway.client(secret_key="wrong-secret")
    assert code_of(wrong.list_buckets) == ("SignatureDoesNotMatch", 403)
    nobody = gateway.client(access_key="NOBODY")
    assert code_of(nobody.list_buckets) == ("InvalidAccessKeyId", 403)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{gateway.url}/{bucket}", timeout=10)
    assert refused.value.code == 403
    refused.value.close()


def test_a_bad_digest_is_refused_and_the_old_object_stays(client: S3Client, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"old")
    code = code_of(
        client.put_object,
        Bucket=bucket,
        Key="k",
        Body=b"new",
        ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg==",
    )
    assert code == ("BadDigest", 400)
    code = code_of(client.put_object, Bucket=bucket, Key="k", Body=b"new", ChecksumCRC32="AAAAAA==")
    assert code == ("BadDigest", 400)
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"old"


def test_deleting_is_success_twice(client: S3Client, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"x")
    for _ in range(2):
        answer = client.delete_object(Bucket=bucket, Key="k")
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert code_of(client.get_object, Bucket=bucket, Key="k") == ("NoSuchKey", 404)


def test_buckets_are_made_listed_and_deleted_only_when_empty(client: S3Client, bucket: str) -> None:
    client.create_bucket(Bucket=bucket)  # again: harmless in S3's first region
    assert bucket in [item["Name"] for item in client.list_buckets()["Buckets"]]
    assert not client.get_bucket_location(Bucket=bucket)["LocationConstraint"]
    client.put_object(Bucket=bucket, Key="d/k", Body=b"x")
    assert code_of(client.delete_bucket, Bucket=bucket) == ("BucketNotEmpty", 409)
    client.delete_object(Bucket=bucket, Key="d/k")
    client.delete_bucket(Bucket=bucket)
    assert code_of(client.head_bucket, Bucket=bucket) == ("404", 404)
    assert code_of(client.create_bucket, Bucket="Bad_Name") == ("InvalidBucketName", 400)


KEYS = ["a", "a/b", "a//b", "d/", "d/e/f", "é", "z z", "..", "../x", "x" * 1024, "f%2Fg+h"]


def test_keys_are_literal_and_listed_in_byte_order(client: S3Client, bucket: str) -> None:
    for key in KEYS:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    for key in KEYS:
        assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode()
    ordered = sorted(KEYS, key=str.encode)
    listed = client.list_objects_v2(Bucket=bucket)
    assert [item["Key"] for item in listed["Contents"]] == ordered
    paged: list[str] = []
    for page in client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, PaginationConfig={"PageSize": 3}
    ):
        paged += [item["Key"] for item in page.get("Contents", [])]
    assert paged == ordered
    paged = []
    for old_page in client.get_paginator("list_objects").paginate(
        Bucket=bucket, PaginationConfig={"PageSize": 2}
    ):
        paged += [item["Key"] for item in old_page.get("Contents", [])]
    assert paged == ordered
    assert code_of(client.put_object, Bucket=bucket, Key="x" * 1025, Body=b"") == (
        "KeyTooLongError",
        400,
    )


def test_common_prefixes_page_without_repetition(client: S3Client, bucket: str) -> None:
    for key in ("a", "b/1", "b/2", "c/1", "d"):
        client.put_object(Bucket=bucket, Key=key, Body=b"")
    seen: list[str] = []
    for page in client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 1}
    ):
        seen += [item["Key"] for item in page.get("Contents", [])]
        seen += [item["Prefix"] for item in page.get("CommonPrefixes", [])]
    assert seen == ["a", "b/", "c/", "d"]
    found = client.list_objects(Bucket=bucket, Prefix="b/", Delimiter="/")
    assert [item["Key"] for item in found["Contents"]] == ["b/1", "b/2"]
    after = client.list_objects_v2(Bucket=bucket, StartAfter="b/1")
    assert [item["Key"] for item in after["Contents"]] == ["b/2", "c/1", "d"]
    none = client.list_objects_v2(Bucket=bucket, MaxKeys=0)
    assert (none["KeyCount"], none["IsTruncated"]) == (0, False)


def test_conditional_writes(client: S3Client, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")
    assert code_of(client.put_object, Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*") == (
        "PreconditionFailed",
        412,
    )
    etag = client.head_object(Bucket=bucket, Key="k")["ETag"]
    client.put_object(Bucket=bucket, Key="k", Body=b"3", IfMatch=etag)
    assert code_of(client.put_object, Bucket=bucket, Key="k", Body=b"4", IfMatch=etag) == (
        "PreconditionFailed",
        412,
    )
    assert code_of(client.put_object, Bucket=bucket, Key="no", Body=b"4", IfMatch=etag) == (
        "NoSuchKey",
        404,
    )
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"3"


def test_conditional_reads(client: S3Client, bucket: str) -> None:
    etag = client.put_object(Bucket=bucket, Key="k", Body=b"1")["ETag"]
    assert client.get_object(Bucket=bucket, Key="k", IfMatch=etag)["Body"].read() == b"1"
    assert code_of(client.get_object, Bucket=bucket, Key="k", IfNoneMatch=etag) == ("304", 304)
    assert code_of(client.get_object, Bucket=bucket, Key="k", IfMatch='"x"') == (
        "PreconditionFailed",
        412,
    )


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_presigned_urls_get_and_put(gateway: Gateway, bucket: str, version: str) -> None:
    client = gateway.client(signature_version=version)
    put = client.generate_presigned_url("put_object", {"Bucket": bucket, "Key": "a b"})
    request = urllib.request.Request(put, data=b"hello", method="PUT")
    request.add_header("Content-Type", "")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
    parameters = {"Bucket": bucket, "Key": "a b", "ResponseContentType": "x/y"}
    get = client.generate_presigned_url("get_object", parameters)
    with urllib.request.urlopen(get, timeout=10) as answer:
        assert answer.read() == b"hello"
        assert answer.headers["Content-Type"] == "x/y"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(get.replace("a%20b", "other"), timeout=10)
    assert refused.value.code == 403
    refused.value.close()


def test_an_object_is_a_file_of_the_store(gateway: Gateway, client: S3Client, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="dir/k", Body=b"bytes", Metadata={"a": "b"})
    with open_store(gateway.store) as store:
        path = ObjectPath(bucket.encode(), b"dir/k")
        assert store.get(path) == b"bytes"
        assert store.stat(path).attributes["user.s3.meta.a"] == b"b"
        store.put(ObjectPath(bucket.encode(), b"other"), b"from the library")
    assert client.get_object(Bucket=bucket, Key="other")["Body"].read() == b"from the library"


def test_unserved_operations_are_501(client: S3Client, bucket: str) -> None:
    policy = code_of(client.put_bucket_policy, Bucket=bucket, Policy="{}")
    assert policy == ("NotImplemented", 501)
    code = code_of(client.delete_bucket_analytics_configuration, Bucket=bucket, Id="x")
    assert code == ("NotImplemented", 501)
    client.head_bucket(Bucket=bucket)
