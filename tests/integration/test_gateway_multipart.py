"""Multipart, copies, tags and bulk deletes under boto3; LMCache's transport, the common runtime."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import awscrt.auth  # type: ignore[import-untyped]
import awscrt.http  # type: ignore[import-untyped]
import awscrt.io  # type: ignore[import-untyped]
import awscrt.s3  # type: ignore[import-untyped]
import pytest

from tests.integration.gateway_process import (
    ACCESS_KEY,
    ENGINE_BUCKET,
    SECRET_KEY,
    Gateway,
    S3Client,
)
from tests.integration.gateway_raw import connect, parse_replies, signed
from tests.integration.test_gateway_boto3 import code_of

pytestmark = pytest.mark.s3

MIB = 1 << 20


def upload(client: S3Client, bucket: str, parts: list[bytes], **options: Any) -> Any:  # noqa: ANN401
    begun = client.create_multipart_upload(Bucket=bucket, Key="k", **options)
    named = {"Bucket": bucket, "Key": "k", "UploadId": begun["UploadId"]}
    listed = []
    for number, data in enumerate(parts, start=1):
        part = client.upload_part(**named, PartNumber=number, Body=data)
        listed.append({"PartNumber": number, "ETag": part["ETag"]})
    return client.complete_multipart_upload(**named, MultipartUpload={"Parts": listed})


def test_the_transfer_manager_uploads_and_downloads(
    client: S3Client, bucket: str, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(21 * MIB + 5))
    client.upload_file(str(source), bucket, "big", ExtraArgs={"Metadata": {"a": "b"}})
    head = client.head_object(Bucket=bucket, Key="big")
    assert head["Metadata"] == {"a": "b"}
    assert head["ETag"].endswith('-3"')
    client.download_file(bucket, "big", str(target))
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_checksums_over_parts(client: S3Client, bucket: str, algorithm: str) -> None:
    parts = [os.urandom(5 * MIB), os.urandom(77)]
    begun = client.create_multipart_upload(Bucket=bucket, Key="k", ChecksumAlgorithm=algorithm)
    named = {"Bucket": bucket, "Key": "k", "UploadId": begun["UploadId"]}
    field = f"Checksum{algorithm}"
    listed = []
    for number, data in enumerate(parts, start=1):
        part = client.upload_part(
            **named, PartNumber=number, Body=data, ChecksumAlgorithm=algorithm
        )
        listed.append({"PartNumber": number, "ETag": part["ETag"], field: part[field]})
    done = client.complete_multipart_upload(**named, MultipartUpload={"Parts": listed})
    is_full = algorithm == "CRC64NVME"
    assert done[field].endswith("-2") is not is_full
    assert done["ChecksumType"] == ("FULL_OBJECT" if is_full else "COMPOSITE")
    got = client.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert got["Body"].read() == b"".join(parts)
    assert got[field] == done[field]


def test_parts_may_come_in_any_order_at_once_and_again(client: S3Client, bucket: str) -> None:
    parts = {number: os.urandom(8 * MIB) for number in range(1, 7)}
    begun = client.create_multipart_upload(Bucket=bucket, Key="k")
    named = {"Bucket": bucket, "Key": "k", "UploadId": begun["UploadId"]}

    def put(number: int) -> dict[str, object]:
        part = client.upload_part(**named, PartNumber=number, Body=parts[number])
        return {"PartNumber": number, "ETag": part["ETag"].strip('"')}

    client.upload_part(**named, PartNumber=3, Body=b"first try")
    with ThreadPoolExecutor(4) as pool:
        listed = sorted(pool.map(put, reversed(parts)), key=lambda part: str(part["PartNumber"]))
    found = client.list_parts(**named, MaxParts=4)
    assert [part["PartNumber"] for part in found["Parts"]] == [1, 2, 3, 4]
    assert found["IsTruncated"]
    client.complete_multipart_upload(**named, MultipartUpload={"Parts": listed})
    whole = b"".join(parts[number] for number in sorted(parts))
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == whole
    part = client.get_object(Bucket=bucket, Key="k", PartNumber=2)
    assert part["Body"].read() == parts[2]
    assert part["PartsCount"] == 6
    again = client.complete_multipart_upload(**named, MultipartUpload={"Parts": listed})
    assert again["ETag"] == client.head_object(Bucket=bucket, Key="k")["ETag"]


def test_bad_completes_are_refused(client: S3Client, bucket: str) -> None:
    begun = client.create_multipart_upload(Bucket=bucket, Key="k")
    named = {"Bucket": bucket, "Key": "k", "UploadId": begun["UploadId"]}
    etags = [
        client.upload_part(**named, PartNumber=number, Body=b"small")["ETag"] for number in (1, 2)
    ]
    first, second = ({"PartNumber": n + 1, "ETag": etags[n]} for n in (0, 1))
    cases = [
        ([second, first], "InvalidPartOrder"),
        ([{"PartNumber": 1, "ETag": "nonsense"}], "InvalidPart"),
        ([{"PartNumber": 9, "ETag": etags[0]}], "InvalidPart"),
        ([first, second], "EntityTooSmall"),
        ([], "MalformedXML"),
    ]
    for parts, code in cases:
        found = code_of(client.complete_multipart_upload, **named, MultipartUpload={"Parts": parts})
        assert found == (code, 400)
    size = code_of(
        client.complete_multipart_upload,
        **named,
        MultipartUpload={"Parts": [first]},
        MpuObjectSize=99,
    )
    assert size == ("InvalidRequest", 400)
    other = {**named, "Key": "other"}
    assert code_of(client.upload_part, **other, PartNumber=1, Body=b"x") == ("NoSuchUpload", 404)
    assert code_of(client.upload_part, **named, PartNumber=0, Body=b"x")[1] == 400
    assert code_of(client.get_object, Bucket=bucket, Key="k") == ("NoSuchKey", 404)
    uploads = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [item["UploadId"] for item in uploads] == [named["UploadId"]]
    client.abort_multipart_upload(**named)
    assert code_of(client.list_parts, **named) == ("NoSuchUpload", 404)


def test_a_part_sent_again_while_it_is_being_sent_is_what_ended_last(
    gateway: Gateway, client: S3Client, bucket: str
) -> None:
    begun = client.create_multipart_upload(Bucket=bucket, Key="k")
    named = {"Bucket": bucket, "Key": "k", "UploadId": begun["UploadId"]}
    target = f"/{bucket}/k?partNumber=1&uploadId={begun['UploadId']}"
    request = signed(gateway.address, "PUT", target, body=b"first")
    with connect(gateway.address) as slow:
        slow.sendall(request.head() + b"fir")
        second = client.upload_part(**named, PartNumber=1, Body=b"second")["ETag"]
        slow.sendall(b"st")
        (reply,) = parse_replies(slow.recv(65536))
    assert reply.status == 200
    answers = [second, reply.headers["etag"]]
    listed = [{"PartNumber": 1, "ETag": etag} for etag in answers]
    client.complete_multipart_upload(**named, MultipartUpload={"Parts": listed})
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"first"


def test_complete_honours_if_none_match(client: S3Client, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"old")
    begun = client.create_multipart_upload(Bucket=bucket, Key="k")
    named = {"Bucket": bucket, "Key": "k", "UploadId": begun["UploadId"]}
    part = client.upload_part(**named, PartNumber=1, Body=b"new")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    refused = code_of(
        client.complete_multipart_upload, **named, MultipartUpload=parts, IfNoneMatch="*"
    )
    assert refused == ("PreconditionFailed", 412)
    client.complete_multipart_upload(**named, MultipartUpload=parts)
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"new"


def test_parts_are_copied_from_other_objects(client: S3Client, bucket: str) -> None:
    data = os.urandom(11 * MIB)
    client.put_object(Bucket=bucket, Key="source", Body=data)
    begun = client.create_multipart_upload(Bucket=bucket, Key="k")
    named = {"Bucket": bucket, "Key": "k", "UploadId": begun["UploadId"]}
    source = {"Bucket": bucket, "Key": "source"}
    listed = []
    for number, text in ((1, f"bytes=0-{6 * MIB - 1}"), (2, f"bytes={6 * MIB}-{11 * MIB - 1}")):
        part = client.upload_part_copy(
            **named, PartNumber=number, CopySource=source, CopySourceRange=text
        )["CopyPartResult"]
        listed.append({"PartNumber": number, "ETag": part["ETag"]})
    client.complete_multipart_upload(**named, MultipartUpload={"Parts": listed})
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == data


def test_copies_keep_or_replace_metadata(client: S3Client, bucket: str) -> None:
    data = os.urandom(400_000)
    put = client.put_object(
        Bucket=bucket, Key="a", Body=data, Metadata={"x": "1"}, ContentType="a/b", Tagging="t=1"
    )
    source = {"Bucket": bucket, "Key": "a"}
    copied = client.copy_object(Bucket=bucket, Key="b", CopySource=source)
    assert copied["CopyObjectResult"]["ETag"] == put["ETag"]
    head = client.head_object(Bucket=bucket, Key="b")
    assert (head["Metadata"], head["ContentType"]) == ({"x": "1"}, "a/b")
    client.copy_object(
        Bucket=bucket,
        Key="b",
        CopySource=source,
        Metadata={"y": "2"},
        MetadataDirective="REPLACE",
    )
    assert client.head_object(Bucket=bucket, Key="b")["Metadata"] == {"y": "2"}
    assert code_of(client.copy_object, Bucket=bucket, Key="a", CopySource=source) == (
        "InvalidRequest",
        400,
    )
    client.copy_object(
        Bucket=bucket, Key="a", CopySource=source, Metadata={}, MetadataDirective="REPLACE"
    )
    assert client.head_object(Bucket=bucket, Key="a")["Metadata"] == {}
    other = f"{bucket}-x"
    client.create_bucket(Bucket=other)
    client.copy_object(Bucket=other, Key="far", CopySource=source)
    assert client.get_object(Bucket=other, Key="far")["Body"].read() == data
    stale = code_of(
        client.copy_object, Bucket=bucket, Key="c", CopySource=source, CopySourceIfMatch='"no"'
    )
    assert stale == ("PreconditionFailed", 412)
    missing = {"Bucket": bucket, "Key": "missing"}
    assert code_of(client.copy_object, Bucket=bucket, Key="c", CopySource=missing) == (
        "NoSuchKey",
        404,
    )


def test_a_thousand_keys_go_in_one_request(client: S3Client, bucket: str) -> None:
    for number in range(5):
        client.put_object(Bucket=bucket, Key=f"k{number}", Body=b"")
    keys = [{"Key": f"k{number}"} for number in range(1000)]
    answer = client.delete_objects(Bucket=bucket, Delete={"Objects": keys})
    assert len(answer["Deleted"]) == 1000
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    quiet = client.delete_objects(
        Bucket=bucket, Delete={"Objects": [{"Key": "a"}, {"Key": "x" * 1025}], "Quiet": True}
    )
    assert "Deleted" not in quiet
    assert [error["Code"] for error in quiet["Errors"]] == ["KeyTooLongError"]
    too_many = {"Objects": [{"Key": str(number)} for number in range(1001)]}
    assert code_of(client.delete_objects, Bucket=bucket, Delete=too_many) == ("MalformedXML", 400)


def test_tags_and_attributes(client: S3Client, bucket: str) -> None:
    upload(client, bucket, [os.urandom(5 * MIB), b"tail"])
    tags = [{"Key": "class", "Value": "day & night"}]
    client.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": tags})
    assert client.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == tags
    assert (
        client.head_object(Bucket=bucket, Key="k")["ResponseMetadata"]["HTTPHeaders"][
            "x-amz-tagging-count"
        ]
        == "1"
    )
    client.delete_object_tagging(Bucket=bucket, Key="k")
    assert client.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []
    found = client.get_object_attributes(
        Bucket=bucket, Key="k", ObjectAttributes=["ETag", "ObjectSize", "ObjectParts", "Checksum"]
    )
    assert found["ObjectSize"] == 5 * MIB + 4
    assert found["ObjectParts"]["TotalPartsCount"] == 2
    assert found["Checksum"]["ChecksumType"] == "FULL_OBJECT"


def test_versions_are_listed_as_null(client: S3Client, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"x")
    versions = client.list_object_versions(Bucket=bucket)["Versions"]
    assert [(item["Key"], item["VersionId"]) for item in versions] == [("k", "null")]
    client.delete_object(Bucket=bucket, Key="k", VersionId="null")
    assert "Versions" not in client.list_object_versions(Bucket=bucket)


class CommonRuntime:
    """awscrt's S3 client, set up as LMCache's S3Connector sets it up."""

    def __init__(self, host: str) -> None:
        self._host = host
        group = awscrt.io.EventLoopGroup(1)
        bootstrap = awscrt.io.ClientBootstrap(group, awscrt.io.DefaultHostResolver(group))
        provider = awscrt.auth.AwsCredentialsProvider.new_static(ACCESS_KEY, SECRET_KEY)
        signing = awscrt.s3.create_default_s3_signing_config(
            region="us-east-1", credential_provider=provider
        )
        self._client = awscrt.s3.S3Client(
            bootstrap=bootstrap,
            region="us-east-1",
            signing_config=signing,
            part_size=8 * MIB,
            throughput_target_gbps=10,
            tls_mode=awscrt.s3.S3RequestTlsMode.DISABLED,
        )

    def _request(
        self, kind: awscrt.s3.S3RequestType, method: str, key: str, body: bytes | None = None
    ) -> bytes:
        headers = awscrt.http.HttpHeaders([("host", self._host)])
        stream = None
        if body is not None:
            stream = awscrt.io.InputStream(_Reader(body))
            headers.add("content-length", str(len(body)))
            headers.add("content-type", "application/octet-stream")
        request = awscrt.http.HttpRequest(method, "/" + key, headers, stream)
        received: dict[int, bytes] = {}

        def on_body(chunk: bytes, offset: int, **_: object) -> None:
            received[offset] = bytes(chunk)

        made = self._client.make_request(type=kind, request=request, on_body=on_body)
        made.finished_future.result(30)
        return b"".join(received[offset] for offset in sorted(received))

    def put(self, key: str, body: bytes) -> None:
        self._request(awscrt.s3.S3RequestType.PUT_OBJECT, "PUT", key, body)

    def get(self, key: str) -> bytes:
        return self._request(awscrt.s3.S3RequestType.GET_OBJECT, "GET", key)


class _Reader:
    def __init__(self, body: bytes) -> None:
        self._body = memoryview(body)
        self._position = 0

    def readinto(self, out: memoryview) -> int:
        piece = self._body[self._position : self._position + len(out)]
        out[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def read(self, length: int = -1) -> bytes:
        end = len(self._body) if length < 0 else self._position + length
        piece = bytes(self._body[self._position : end])
        self._position += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self._position, 2: len(self._body)}[whence]
        self._position = base + offset
        return self._position


@pytest.mark.parametrize("size", [500_000, 7 * MIB, 14 * MIB, 32 * MIB])
def test_the_common_runtime_stores_and_retrieves_through_the_engine_listener(
    gateway: Gateway, client: S3Client, size: int
) -> None:
    runtime = CommonRuntime(gateway.engine_address)
    data = os.urandom(size)
    key = f"meta-llama_Llama%401%400%40-{size:x}%40bfloat16"
    runtime.put(key, data)
    assert runtime.get(key) == data
    plain = key.replace("%40", "@")
    assert client.get_object(Bucket=ENGINE_BUCKET, Key=plain)["Body"].read() == data


def test_the_common_runtime_names_the_bucket_behind_the_host(
    gateway: Gateway, client: S3Client, bucket: str
) -> None:
    runtime = CommonRuntime(f"{gateway.address}/{bucket}")
    data = os.urandom(14 * MIB)
    runtime.put("a%40b", data)
    assert client.get_object(Bucket=bucket, Key="a@b")["Body"].read() == data


def test_parts_as_lmcache_sends_them_are_written_once(gateway: Gateway) -> None:
    runtime = CommonRuntime(gateway.engine_address)
    data = os.urandom(64 * MIB)
    before = written_bytes(gateway)
    runtime.put("written%40once", data)
    written = written_bytes(gateway) - before
    assert len(data) <= written < len(data) + MIB, "Complete copied nothing"


def written_bytes(gateway: Gateway) -> int:
    """Return what the workers wrote by any system call, copy_file_range included."""
    texts = [Path(f"/proc/{pid}/io").read_text() for pid in gateway.worker_pids()]
    return sum(int(text.split("wchar:")[1].split()[0]) for text in texts)
