"""Routing is total: every request names one served operation or is refused."""

import pytest
from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel

from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.head import parse_head
from kvfs_gateway.s3.operations import Operation
from kvfs_gateway.s3.routing import Addressing, Route, check_new_bucket_name, route
from kvfs_gateway.s3.target import parse_target

ENGINE = Addressing(default_bucket=b"cache")
HOSTS = Addressing(virtual_host_suffixes=("s3.local", "127.0.0.1.nip.io"))


def ask(
    line: str, *headers: str, host: str = "127.0.0.1:9000", addressing: Addressing | None = None
) -> Route:
    text = "\r\n".join((f"{line} HTTP/1.1", f"Host: {host}", *headers)) + "\r\n\r\n"
    head = parse_head(text.encode("latin-1"))
    return route(head, parse_target(head.target), addressing or Addressing())


@pytest.mark.parametrize(
    ("line", "operation"),
    [
        ("GET /", Operation.LIST_BUCKETS),
        ("PUT /b", Operation.CREATE_BUCKET),
        ("PUT /b/", Operation.CREATE_BUCKET),
        ("HEAD /b", Operation.HEAD_BUCKET),
        ("DELETE /b", Operation.DELETE_BUCKET),
        ("GET /b?location", Operation.GET_BUCKET_LOCATION),
        ("GET /b?location=", Operation.GET_BUCKET_LOCATION),
        ("GET /b", Operation.LIST_OBJECTS),
        ("GET /b?prefix=a&max-keys=3", Operation.LIST_OBJECTS),
        ("GET /b?Version=2006-03-01", Operation.LIST_OBJECTS),  # Apache Libcloud
        ("GET /b?list-type=2&prefix=a&x-id=ListObjectsV2", Operation.LIST_OBJECTS_V2),
        ("GET /b?uploads", Operation.LIST_MULTIPART_UPLOADS),
        ("POST /b?delete", Operation.DELETE_OBJECTS),
        ("PUT /b/k", Operation.PUT_OBJECT),
        ("GET /b/k?partNumber=2", Operation.GET_OBJECT),
        ("GET /b/k?response-content-type=a", Operation.GET_OBJECT),
        ("HEAD /b/k", Operation.HEAD_OBJECT),
        ("DELETE /b/k?versionId=null", Operation.DELETE_OBJECT),
        ("POST /b/k?uploads", Operation.CREATE_MULTIPART_UPLOAD),
        ("PUT /b/k?partNumber=1&uploadId=x", Operation.UPLOAD_PART),
        ("POST /b/k?uploadId=x", Operation.COMPLETE_MULTIPART_UPLOAD),
        ("DELETE /b/k?uploadId=x", Operation.ABORT_MULTIPART_UPLOAD),
        ("GET /b/k?uploadId=x&max-parts=3", Operation.LIST_PARTS),
        ("GET /b/k?attributes", Operation.GET_OBJECT_ATTRIBUTES),
        ("PUT /b/k?tagging", Operation.PUT_OBJECT_TAGGING),
    ],
)
def test_served_operations_are_found(line: str, operation: Operation) -> None:
    assert ask(line).operation is operation


def test_a_copy_source_turns_a_put_into_a_copy() -> None:
    source = "x-amz-copy-source: /b/k"
    assert ask("PUT /b/k2", source).operation is Operation.COPY_OBJECT
    upload = ask("PUT /b/k2?partNumber=1&uploadId=x", source)
    assert upload.operation is Operation.UPLOAD_PART_COPY


BOTOCORE = ServiceModel(Loader().load_service_model("s3", "service-2"), "s3")


@pytest.mark.parametrize("name", BOTOCORE.operation_names)
def test_every_operation_of_s3_is_served_or_answered_not_implemented(name: str) -> None:
    model: OperationModel = BOTOCORE.operation_model(name)
    path, _, query = model.http["requestUri"].partition("?")
    members = model.input_shape.members if model.input_shape else {}
    required = model.input_shape.required_members if model.input_shape else []
    items = [item for item in query.split("&") if item]
    items += [
        f"{members[member].serialization['name']}=1"
        for member in required
        if members[member].serialization.get("location") == "querystring"
    ]
    copies = ["x-amz-copy-source: /b/k"] if "CopySource" in required else []
    line = path.replace("{Bucket}", "b").replace("{Key+}", "k") + "?" + "&".join(items)
    superseded = {
        "GetBucketLifecycle",
        "PutBucketLifecycle",
        "GetBucketNotification",
        "ListDirectoryBuckets",
    }
    if name in superseded | {operation.value for operation in Operation}:
        found = ask(f"{model.http['method']} {line}", *copies).operation.value
        assert found == name or name in superseded
        return
    with pytest.raises(S3Error) as refusal:
        ask(f"{model.http['method']} {line}", *copies)
    assert refusal.value.code in ("NotImplemented", "MethodNotAllowed")


@pytest.mark.parametrize("subresource", ["analytics", "metrics", "inventory", "logging", "acl"])
def test_an_unserved_sub_resource_never_deletes_the_bucket(subresource: str) -> None:
    for query in (subresource, f"{subresource}&id=1", f"id=1&{subresource}="):
        with pytest.raises(S3Error) as refusal:
            ask(f"DELETE /b?{query}")
        assert refusal.value.status in (400, 501)


@pytest.mark.parametrize(
    ("line", "operation"),
    [("GET /b?acl", Operation.GET_BUCKET_ACL), ("GET /b/k?acl", Operation.GET_OBJECT_ACL)],
)
def test_an_access_control_list_is_told_and_is_nothing_else(
    line: str, operation: Operation
) -> None:
    assert ask(line).operation is operation
    for method in ("POST", "DELETE", "HEAD"):
        with pytest.raises(S3Error) as refusal:
            ask(line.replace("GET", method))
        assert refusal.value.code in ("NotImplemented", "MethodNotAllowed", "InvalidArgument")


@pytest.mark.parametrize("subresource", ["restore", "torrent"])
@pytest.mark.parametrize("method", ["PUT", "POST", "GET", "DELETE", "HEAD"])
def test_an_unserved_sub_resource_never_touches_the_object(method: str, subresource: str) -> None:
    with pytest.raises(S3Error) as refusal:
        ask(f"{method} /b/k?{subresource}")
    assert refusal.value.status in (400, 501)


@pytest.mark.parametrize("subresource", ["acl", "retention", "legal-hold"])
@pytest.mark.parametrize("method", ["PUT", "POST", "GET", "DELETE", "HEAD"])
def test_a_sub_resource_is_never_the_object(method: str, subresource: str) -> None:
    own = {"acl": "Acl", "retention": "Retention", "legal-hold": "LegalHold"}[subresource]
    if method in ("GET", "PUT"):
        found = ask(f"{method} /b/k?{subresource}").operation.value
        assert found == f"{method.title()}Object{own}"
        return
    with pytest.raises(S3Error) as refusal:
        ask(f"{method} /b/k?{subresource}")
    assert refusal.value.status in (400, 501)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("x-amz-acl: public-raed", "InvalidArgument"),
        ("x-amz-object-ownership: me", "InvalidArgument"),
    ],
)
def test_a_header_without_a_meaning_is_refused(header: str, code: str) -> None:
    with pytest.raises(S3Error) as refusal:
        ask("PUT /b", header)
    assert refusal.value.code == code


def test_unknown_parameters_are_refused() -> None:
    for line in ("PUT /b/k?frobnicate", "DELETE /b?x=1", "GET /?y", "PUT /b/k?uploadId=x"):
        with pytest.raises(S3Error) as refusal:
            ask(line)
        assert refusal.value.status in (400, 501)


@pytest.mark.parametrize(
    "header",
    [
        "x-amz-server-side-encryption: AES256",
        "x-amz-server-side-encryption-customer-algorithm: AES256",
        "x-amz-object-lock-mode: GOVERNANCE",
        "x-amz-grant-read: id=1",
        "x-amz-acl: public-read",
        "x-amz-website-redirect-location: /",
    ],
)
def test_headers_that_promise_what_is_not_kept_are_refused(header: str) -> None:
    with pytest.raises(S3Error) as refusal:
        ask("PUT /b/k", header)
    assert refusal.value.code == "NotImplemented"


def test_the_engine_listener_takes_the_whole_path_as_the_key() -> None:
    found = ask("PUT //meta-llama/Llama%401", addressing=ENGINE)
    assert (found.bucket, found.key) == (b"cache", b"/meta-llama/Llama@1")
    assert ask("GET /?list-type=2", addressing=ENGINE).operation is Operation.LIST_OBJECTS_V2


def test_a_bucket_behind_the_host_is_understood() -> None:
    found = ask("GET /m@1@0", host="127.0.0.1:9001/kv")
    assert (found.bucket, found.key) == (b"kv", b"m@1@0")
    found = ask("GET /m@1@0", host="127.0.0.1:9001/kv", addressing=ENGINE)
    assert found.bucket == b"kv"


def test_virtual_hosts_are_told_from_path_style() -> None:
    assert ask("GET /k", host="b.s3.local:9000", addressing=HOSTS).bucket == b"b"
    assert ask("GET /k", host="a.b.S3.local", addressing=HOSTS).bucket == b"a.b"
    assert ask("GET /b/k", host="s3.local:9000", addressing=HOSTS).bucket == b"b"
    assert ask("GET /b/k", host="evil-s3.local", addressing=HOSTS).bucket == b"b"


def test_an_absolute_target_must_name_the_host_it_was_sent_to() -> None:
    assert ask("GET http://127.0.0.1:9000/b/k").bucket == b"b"
    with pytest.raises(S3Error):
        ask("GET http://other:9000/b/k")


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/b/a//b", b"a//b"),
        ("/b/d/", b"d/"),
        ("/b//", b"/"),
        ("/b/../x", b"../x"),
        ("/b/%2e%2e", b".."),
        ("/b/a%2Fb", b"a/b"),
        ("/b/a+b%20c", b"a+b c"),
        ("/b/%C3%A9", "é".encode()),
        ("/b/" + "x" * 1024, b"x" * 1024),
    ],
)
def test_keys_are_literal(path: str, key: bytes) -> None:
    assert ask(f"GET {path}").key == key


@pytest.mark.parametrize(
    ("path", "code"),
    [("/b/" + "x" * 1025, "KeyTooLongError"), ("/b/%00", "InvalidURI"), ("/b/%ff", "InvalidURI")],
)
def test_keys_that_cannot_be_are_refused(path: str, code: str) -> None:
    with pytest.raises(S3Error) as refusal:
        ask(f"PUT {path}")
    assert refusal.value.code == code
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    "name", ["ab", "A-b-c", "a_b", "-abc", "abc-", "a..b", "192.168.0.1", "x" * 64, "a b"]
)
def test_bad_bucket_names_are_refused(name: str) -> None:
    with pytest.raises(S3Error):
        check_new_bucket_name(name.encode())


def test_good_bucket_names_are_accepted() -> None:
    for name in ("abc", "a.b-c", "x" * 63, "192.168.0.1x", "1bc"):
        check_new_bucket_name(name.encode())
