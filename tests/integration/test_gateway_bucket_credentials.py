"""Tenants of one gateway: a limited credential opens its own buckets and tells of no other."""

from __future__ import annotations

import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from kvfs.bucket_credentials import FILE_NAME, BucketCredential, BucketCredentials
from kvfs.clock import SystemRandomness
from kvfs.open_store import init_store, open_store
from kvfs_gateway.main import main
from tests.integration.gateway_process import ENGINE_BUCKET, Gateway, S3Client, running_gateway
from tests.integration.gateway_raw import Reply, chunked_body, one, signed
from tests.integration.test_gateway_boto3 import code_of
from tests.integration.test_gateway_workers import wait_until

pytestmark = pytest.mark.s3

DENIED = ("AccessDenied", 403)
SECRET = b"what only they may know"
OTHERS = ["theirs", "nowhere", "mine2", "Mine", ENGINE_BUCKET]
"""Buckets of others, and buckets that are not there: nothing may tell one from the other."""


@dataclass(frozen=True)
class Tenants:
    gateway: Gateway
    root: S3Client
    mine: BucketCredential
    reader: BucketCredential

    def client(self, credential: BucketCredential, **config: object) -> S3Client:
        return self.gateway.client(credential.access_key, credential.secret_key, **config)

    def ask(
        self,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        *,
        address: str = "",
        credential: BucketCredential | None = None,
        host: str = "",
        body: bytes = b"",
    ) -> Reply:
        """Send one hand-made request; host: what its Host says instead of the address."""
        key = credential or self.mine
        address = address or self.gateway.address
        request = signed(
            host or address,
            method,
            target,
            headers,
            body,
            access_key=key.access_key,
            secret=key.secret_key,
        )
        if "Host" in (headers or {}):
            del request.headers[0]  # botocore signed and kept ours
        return one(address, request.raw(), is_head=method == "HEAD")


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    store = tmp_path_factory.mktemp("tenants") / "store"
    init_store(store, capacity_bytes=4 << 30)
    with open_store(store) as opened:
        for name in (ENGINE_BUCKET, "mine", "theirs", "mine2"):
            opened.create_namespace(name.encode())
    file = BucketCredentials(store)
    mine = file.add(SystemRandomness(), ["mine", "later"], is_read_only=False)
    reader = file.add(SystemRandomness(), ["mine"], is_read_only=True)
    with running_gateway(store, arguments=["--virtual-host", "s3.local"]) as gateway:
        root = gateway.client()
        for bucket in ("mine", "theirs", "mine2", ENGINE_BUCKET):
            root.put_object(Bucket=bucket, Key="key", Body=SECRET)
        yield Tenants(gateway, root, mine, reader)


@pytest.fixture
def client(tenants: Tenants) -> S3Client:
    return tenants.client(tenants.mine)


def test_its_own_bucket_is_served_as_to_root(tenants: Tenants, client: S3Client) -> None:
    client.put_object(Bucket="mine", Key="a", Body=b"x" * 300_000, Tagging="a=b")
    assert client.get_object(Bucket="mine", Key="a")["Body"].read() == b"x" * 300_000
    client.copy_object(Bucket="mine", Key="b", CopySource="mine/a")
    upload = client.create_multipart_upload(Bucket="mine", Key="c")["UploadId"]
    of = {"Bucket": "mine", "Key": "c", "UploadId": upload}
    part = client.upload_part_copy(PartNumber=1, CopySource={"Bucket": "mine", "Key": "a"}, **of)
    parts = [{"PartNumber": 1, "ETag": part["CopyPartResult"]["ETag"]}]
    client.complete_multipart_upload(MultipartUpload={"Parts": parts}, **of)
    assert client.head_object(Bucket="mine", Key="c")["ContentLength"] == 300_000
    rule = {"ID": "a", "Status": "Enabled", "Filter": {"Prefix": "z"}, "Expiration": {"Days": 9}}
    client.put_bucket_lifecycle_configuration(
        Bucket="mine", LifecycleConfiguration={"Rules": [rule]}
    )
    client.delete_bucket_lifecycle(Bucket="mine")
    gone = client.delete_objects(
        Bucket="mine", Delete={"Objects": [{"Key": key} for key in ("a", "b", "c")]}
    )
    assert len(gone["Deleted"]) == 3
    assert [row["Key"] for row in client.list_objects_v2(Bucket="mine")["Contents"]] == ["key"]


def test_chunks_are_signed_with_a_limited_secret_as_with_roots(tenants: Tenants) -> None:
    key = tenants.mine
    request = signed(
        tenants.gateway.address,
        "PUT",
        "/mine/chunked",
        {"x-amz-decoded-content-length": "4", "Transfer-Encoding": "chunked"},
        payload="STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        access_key=key.access_key,
        secret=key.secret_key,
    )
    body = chunked_body(request, [b"data"], secret=key.secret_key)
    framed = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    assert one(tenants.gateway.address, request.head() + framed).status == 200
    assert tenants.root.get_object(Bucket="mine", Key="chunked")["Body"].read() == b"data"
    tenants.root.delete_object(Bucket="mine", Key="chunked")


def test_listing_buckets_shows_its_own_that_exist(tenants: Tenants, client: S3Client) -> None:
    assert [row["Name"] for row in client.list_buckets()["Buckets"]] == ["mine"]
    assert client.list_buckets(Prefix="the")["Buckets"] == []
    page = client.list_buckets(MaxBuckets=1)
    assert "ContinuationToken" not in page, "that others follow would show"
    assert len(tenants.root.list_buckets()["Buckets"]) == 4


@pytest.mark.parametrize("bucket", OTHERS)
@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("GET", ""),
        ("GET", "/"),
        ("HEAD", ""),
        ("PUT", ""),
        ("DELETE", ""),
        ("GET", "?list-type=2"),
        ("GET", "?versions"),
        ("GET", "?uploads"),
        ("GET", "?location"),
        ("GET", "?lifecycle"),
        ("DELETE", "?lifecycle"),
        ("GET", "?tagging"),
        ("GET", "?policy"),
        ("GET", "?acl"),
        ("POST", "?delete"),
        ("GET", "/key"),
        ("GET", "/absent"),
        ("HEAD", "/key"),
        ("HEAD", "/absent"),
        ("PUT", "/new"),
        ("DELETE", "/key"),
        ("GET", "/key?attributes"),
        ("GET", "/key?tagging"),
        ("PUT", "/key?tagging"),
        ("GET", "/key?acl"),
        ("POST", "/key?uploads"),
        ("PUT", "/key?partNumber=1&uploadId=0"),
        ("GET", "/key?uploadId=0"),
        ("POST", "/key?uploadId=0"),
        ("DELETE", "/key?uploadId=0"),
    ],
)
def test_i6_every_request_to_another_bucket_is_denied_alike(
    tenants: Tenants, bucket: str, method: str, rest: str
) -> None:
    headers = {"x-amz-object-attributes": "ETag"} if "attributes" in rest else {}
    reply = tenants.ask(method, f"/{bucket}{rest}", headers)
    assert reply.status == 403
    assert reply.code == ("" if method == "HEAD" else "AccessDenied")
    assert SECRET not in reply.body
    assert "x-amz-bucket-region" not in reply.headers
    assert tenants.root.get_object(Bucket="theirs", Key="key")["Body"].read() == SECRET


def test_i6_the_answers_for_a_bucket_and_for_none_differ_in_its_name_alone(
    tenants: Tenants,
) -> None:
    there, absent = (tenants.ask("GET", f"/{name}/key") for name in ("theirs", "absent"))
    request_ids = [reply.headers.pop("x-amz-request-id") for reply in (there, absent)]
    there.headers.pop("date"), absent.headers.pop("date")
    text = there.body.replace(request_ids[0].encode(), request_ids[1].encode())
    assert text.replace(b"theirs", b"absent") == absent.body
    assert there.headers == absent.headers


@pytest.mark.parametrize(
    "target",
    [
        "/%74heirs/key",
        "//theirs/key",
        "/mine%2F..%2Ftheirs/key",
        "/mine/../theirs/key",
        "/mine/%2e%2e/theirs/key",
        "/mine//../../theirs/key",
        "/mine/..",
        "/./theirs/key",
        "/../theirs/key",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_no_spelling_of_a_path_leads_to_another_bucket(
    tenants: Tenants, method: str, target: str
) -> None:
    reply = tenants.ask(method, target)
    assert SECRET not in reply.body
    # Below its own bucket dots are a key like any other, which may be put and deleted.
    assert reply.status in (400, 403, 404) or target.startswith("/mine")
    for row in tenants.root.list_objects_v2(Bucket="mine")["Contents"]:
        if row["Key"] != "key":
            tenants.root.delete_object(Bucket="mine", Key=row["Key"])
    assert tenants.root.get_object(Bucket="theirs", Key="key")["Body"].read() == SECRET
    assert tenants.root.list_objects_v2(Bucket="theirs")["KeyCount"] == 1


@pytest.mark.parametrize("name", ["theirs", "nowhere", "THEIRS", "theirs.s3.local"])
def test_a_virtual_host_is_checked_as_a_path_is(tenants: Tenants, name: str) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        reply = tenants.ask(method, "/key", host=f"{name}.s3.local")
        assert reply.status == 403
        assert SECRET not in reply.body
    assert tenants.ask("GET", "/key", host="mine.s3.local").body == SECRET
    # The path below a virtual host names a key, not a bucket.
    assert tenants.ask("GET", "/theirs/key", host="mine.s3.local").code == "NoSuchKey"
    assert tenants.ask("GET", "/mine/key", host="theirs.s3.local").code == "AccessDenied"


def test_a_bucket_in_the_host_header_is_checked(tenants: Tenants) -> None:
    address = tenants.gateway.address
    assert tenants.ask("GET", "/key", {"Host": f"{address}/theirs"}).code == "AccessDenied"
    assert tenants.ask("GET", "/key", {"Host": f"{address}/mine"}).body == SECRET


def test_the_engine_listener_is_for_those_whose_bucket_it_is(tenants: Tenants) -> None:
    address = tenants.gateway.engine_address
    for target in ("/key", "/", "/mine/key", "/theirs/key"):
        assert tenants.ask("GET", target, address=address).code == "AccessDenied"
        assert tenants.ask("HEAD", target, address=address).status == 403
    assert tenants.ask("PUT", "/key", address=address, body=b"x").code == "AccessDenied"


@pytest.mark.parametrize(
    "source",
    [
        "theirs/key",
        "/theirs/key",
        "theirs%2Fkey",
        "%2Ftheirs%2Fkey",
        "%74heirs/key",
        "theirs/key?versionId=null",
        "theirs%2Fkey?versionId=null",
        "theirs/absent",
        "nowhere/key",
        "mine2/key",
    ],
)
def test_a_copy_source_in_any_spelling_is_checked(
    tenants: Tenants, client: S3Client, source: str
) -> None:
    headers = {"x-amz-copy-source": source}
    assert tenants.ask("PUT", "/mine/copy", headers).code == "AccessDenied"
    conditions = {**headers, "x-amz-copy-source-if-match": '"guess"'}
    assert tenants.ask("PUT", "/mine/copy", conditions).code == "AccessDenied"
    upload = client.create_multipart_upload(Bucket="mine", Key="copy")["UploadId"]
    target = f"/mine/copy?partNumber=1&uploadId={upload}"
    assert tenants.ask("PUT", target, headers).code == "AccessDenied"
    ranged = {**headers, "x-amz-copy-source-range": "bytes=0-3"}
    assert tenants.ask("PUT", target, ranged).code == "AccessDenied"
    client.abort_multipart_upload(Bucket="mine", Key="copy", UploadId=upload)
    assert code_of(client.head_object, Bucket="mine", Key="copy")[1] == 404


@pytest.mark.parametrize(
    "source",
    ["mine/../theirs/key", "mine%2F..%2Ftheirs%2Fkey", "//theirs/key", "%2F%2Ftheirs/key",
     "theirs%252Fkey", "theirs/key?versionId=7", "theirs", "theirs/"],
)  # fmt: skip
def test_no_odd_copy_source_copies_anything(tenants: Tenants, source: str) -> None:
    reply = tenants.ask("PUT", "/mine/copy", {"x-amz-copy-source": source})
    assert reply.status in (400, 403, 404)
    assert SECRET not in reply.body


def test_an_upload_of_another_bucket_is_out_of_reach(tenants: Tenants, client: S3Client) -> None:
    of = {"Bucket": "theirs", "Key": "begun"}
    upload = tenants.root.create_multipart_upload(**of)["UploadId"]
    part = tenants.root.upload_part(UploadId=upload, PartNumber=1, Body=SECRET, **of)
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    for bucket, expected in (("theirs", DENIED), ("mine", ("NoSuchUpload", 404))):
        there = {"Bucket": bucket, "Key": "begun", "UploadId": upload}
        assert code_of(client.list_parts, **there) == expected
        assert code_of(client.upload_part, PartNumber=1, Body=b"x", **there) == expected
        copy = {"CopySource": "mine/key", "PartNumber": 1, **there}
        assert code_of(client.upload_part_copy, **copy) == expected
        complete = {"MultipartUpload": parts, **there}
        assert code_of(client.complete_multipart_upload, **complete) == expected
        assert code_of(client.abort_multipart_upload, **there) == expected
    assert len(tenants.root.list_parts(UploadId=upload, **of)["Parts"]) == 1
    tenants.root.complete_multipart_upload(UploadId=upload, MultipartUpload=parts, **of)
    again = {"Bucket": "mine", "Key": "begun", "UploadId": upload, "MultipartUpload": parts}
    assert code_of(client.complete_multipart_upload, **again) == ("NoSuchUpload", 404)
    tenants.root.delete_object(**of)


def test_keys_in_a_delete_request_are_keys_of_its_bucket(
    tenants: Tenants, client: S3Client
) -> None:
    keys = ["theirs/key", "/theirs/key", "../theirs/key", "..%2Ftheirs%2Fkey"]
    client.delete_objects(Bucket="mine", Delete={"Objects": [{"Key": key} for key in keys]})
    assert tenants.root.get_object(Bucket="theirs", Key="key")["Body"].read() == SECRET


def fetch(url: str, method: str = "GET", data: bytes | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_a_presigned_url_opens_what_its_signer_may_open(tenants: Tenants, version: str) -> None:
    client = tenants.client(tenants.mine, signature_version=version)

    def url(operation: str, bucket: str) -> str:
        text: str = client.generate_presigned_url(operation, {"Bucket": bucket, "Key": "key"})
        return text

    assert fetch(url("get_object", "mine")) == (200, SECRET)
    for bucket in ("theirs", "nowhere"):
        status, body = fetch(url("get_object", bucket))
        assert status == 403
        assert b"<Code>AccessDenied</Code>" in body
        assert fetch(url("head_object", bucket), "HEAD")[0] == 403
        assert fetch(url("put_object", bucket), "PUT", b"x")[0] == 403
        assert fetch(url("delete_object", bucket), "DELETE")[0] == 403
    assert fetch(url("get_object", "mine").replace("/mine/", "/theirs/"))[0] == 403
    reading = tenants.client(tenants.reader, signature_version=version)
    put = reading.generate_presigned_url("put_object", {"Bucket": "mine", "Key": "key"})
    assert fetch(put, "PUT", b"x")[0] == 403
    get = reading.generate_presigned_url("get_object", {"Bucket": "mine", "Key": "key"})
    assert fetch(get) == (200, SECRET)


def test_making_and_removing_buckets_is_roots(tenants: Tenants, client: S3Client) -> None:
    for bucket in ("mine", "later", "theirs"):
        assert code_of(client.create_bucket, Bucket=bucket) == DENIED
        assert code_of(client.delete_bucket, Bucket=bucket) == DENIED
    assert code_of(client.head_bucket, Bucket="later")[1] == 404, "its own, not yet made"


def test_a_read_only_credential_changes_nothing(tenants: Tenants) -> None:
    client = tenants.client(tenants.reader)
    assert client.get_object(Bucket="mine", Key="key")["Body"].read() == SECRET
    assert client.list_objects_v2(Bucket="mine")["KeyCount"] == 1
    refused: list[tuple[Any, dict[str, Any]]] = [
        (client.put_object, {"Key": "key", "Body": b"x"}),
        (client.delete_object, {"Key": "key"}),
        (client.delete_objects, {"Delete": {"Objects": [{"Key": "key"}]}}),
        (client.copy_object, {"Key": "b", "CopySource": "mine/key"}),
        (client.create_multipart_upload, {"Key": "key"}),
        (client.put_object_tagging, {"Key": "key", "Tagging": {"TagSet": []}}),
        (client.delete_bucket_lifecycle, {}),
        (client.put_bucket_tagging, {"Tagging": {"TagSet": []}}),
    ]
    for call, arguments in refused:
        assert code_of(call, Bucket="mine", **arguments) == DENIED
    assert tenants.ask("PUT", "/mine/key", credential=tenants.reader).code == "AccessDenied"
    assert tenants.root.get_object(Bucket="mine", Key="key")["Body"].read() == SECRET


def test_a_key_with_anothers_secret_is_nobodys(tenants: Tenants) -> None:
    wrong = tenants.gateway.client(tenants.mine.access_key, tenants.reader.secret_key)
    assert code_of(wrong.list_buckets) == ("SignatureDoesNotMatch", 403)
    unknown = tenants.gateway.client("KVFSNOBODY", tenants.mine.secret_key)
    assert code_of(unknown.list_buckets) == ("InvalidAccessKeyId", 403)


def may_list(client: S3Client) -> bool:
    try:
        client.list_buckets()
    except botocore.exceptions.ClientError as error:
        if error.response["Error"]["Code"] != "InvalidAccessKeyId":
            raise
        return False
    return True


@pytest.mark.parametrize("has_signal", [False, True])
def test_credentials_come_and_go_while_a_gateway_runs(tmp_path: Path, has_signal: bool) -> None:
    with running_gateway(tmp_path / "store", workers=1) as gateway:
        file = BucketCredentials(gateway.store)

        def tell() -> None:
            if has_signal:
                gateway.process.send_signal(signal.SIGHUP)

        made = file.add(SystemRandomness(), [ENGINE_BUCKET], is_read_only=False)
        tell()
        client = gateway.client(made.access_key, made.secret_key)
        wait_until(lambda: may_list(client))
        client.put_object(Bucket=ENGINE_BUCKET, Key="k", Body=b"x")
        url = client.generate_presigned_url("get_object", {"Bucket": ENGINE_BUCKET, "Key": "k"})
        assert fetch(url)[0] == 200
        file.remove(made.access_key)
        tell()
        wait_until(lambda: not may_list(client))
        assert code_of(client.head_object, Bucket=ENGINE_BUCKET, Key="k")[1] == 403
        assert fetch(url)[0] == 403, "what it signed ends with it"
        assert may_list(gateway.client())


def test_a_broken_file_keeps_what_held_until_it_is_mended(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running_gateway(tmp_path / "store", workers=1) as gateway:
        file = BucketCredentials(gateway.store)
        path = gateway.store / FILE_NAME
        made = file.add(SystemRandomness(), [ENGINE_BUCKET], is_read_only=False)
        client = gateway.client(made.access_key, made.secret_key)
        wait_until(lambda: may_list(client))
        text, shown = path.read_text(), ""

        def was_refused() -> bool:
            nonlocal shown
            shown += capfd.readouterr().err
            return "event=bucket_credentials_refused" in shown

        path.write_text(text.replace("read_only", "readonly"))
        wait_until(was_refused)
        assert "correct it" in shown
        assert made.secret_key not in shown
        assert may_list(client)
        path.write_text(text)
        path.chmod(0o644)
        shown = ""
        wait_until(was_refused)
        assert "chmod 600" in shown
        path.chmod(0o600)
        file.remove(made.access_key)
        wait_until(lambda: not may_list(client))


@pytest.mark.parametrize(
    ("text", "mode", "status", "remedy"),
    [("[KEY]", 0o600, 2, "correct it by hand"), ("", 0o644, 12, "chmod 600")],
)
def test_a_gateway_does_not_start_with_a_broken_file(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    mode: int,
    status: int,
    remedy: str,
) -> None:
    monkeypatch.setenv("KVFS_ACCESS_KEY", "a")
    monkeypatch.setenv("KVFS_SECRET_KEY", "long-enough")
    init_store(tmp_path / "store", capacity_bytes=1 << 30)
    path = tmp_path / "store" / FILE_NAME
    path.write_text(text)
    path.chmod(mode)
    with socket.create_server(("127.0.0.1", 0)) as busy:  # it must not come to listening
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        store = str(tmp_path / "store")
        monkeypatch.setattr("sys.argv", ["kvfs-gateway", "--store", store, "--listen", address])
        assert main() == status
    assert remedy in capsys.readouterr().err


def test_roots_key_stays_roots_when_the_file_has_it_too(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "store", workers=1) as gateway:
        path = gateway.store / FILE_NAME
        path.touch(0o600)
        marker = "[MARKER]\nsecret_key = 'marker-secret'\nbuckets = ['b']\nread_only = true\n"
        path.write_text(marker.replace("MARKER", "KVFSTESTKEY") + marker)
        wait_until(lambda: may_list(gateway.client("MARKER", "marker-secret")))
        gateway.client().put_object(Bucket=ENGINE_BUCKET, Key="k", Body=b"x")
        false_root = gateway.client("KVFSTESTKEY", "marker-secret")
        assert code_of(false_root.list_buckets) == ("SignatureDoesNotMatch", 403)
