"""A hostile client over raw sockets: each attempt is refused with the right code.

Nothing is stored, and the server answers the next honest request.
"""

from __future__ import annotations

import base64
import socket
import zlib
from collections.abc import Iterator

import pytest

from tests.integration.gateway_process import Gateway, S3Client, running_gateway
from tests.integration.gateway_raw import Signed, chunked_body, connect, exchange, one, signed

pytestmark = pytest.mark.s3

BUCKET = "bucket"
KEY = "/bucket/key"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway") / "store", workers=1) as running:
        running.client().create_bucket(Bucket=BUCKET)
        yield running


@pytest.fixture(autouse=True)
def client(gateway: Gateway) -> Iterator[S3Client]:
    """Put an object before, and see after the test that it is as it was and the server is well."""
    client = gateway.client()
    client.put_object(Bucket=BUCKET, Key="key", Body=b"old")
    yield client
    assert client.get_object(Bucket=BUCKET, Key="key")["Body"].read() == b"old"
    assert gateway.process.poll() is None
    assert len(gateway.worker_pids()) == 1


def put(gateway: Gateway, body: bytes = b"new", **options: object) -> Signed:
    return signed(gateway.address, "PUT", KEY, body=body, **options)  # type: ignore[arg-type]


# -- framing


@pytest.mark.parametrize(
    "length", ["4_0", "+3", "-1", "3, 3", "0x3", "", " ", "3 3", "99999999999999999999"]
)
def test_content_length_is_a_number_once(gateway: Gateway, length: str) -> None:
    request = put(gateway)
    request.headers = [
        (name, length if name == "Content-Length" else value) for name, value in request.headers
    ]
    reply = one(gateway.address, request.raw())
    assert reply.status == 400
    assert reply.headers["connection"] == "close"


@pytest.mark.parametrize(
    "extra",
    [
        ("Content-Length", "3"),
        ("Content-Length", "30"),
        ("Transfer-Encoding", "chunked"),
        ("Host", "other"),
        ("Authorization", "AWS4-HMAC-SHA256 x"),
        ("x-amz-date", "20260101T000000Z"),
        (" folded", "x"),
        ("space ", "x"),
        ("a", "b\rc: d"),
        ("a", "b\nc: d"),
        ("a", "\0"),
    ],
)
def test_ambiguous_heads_are_refused_and_close(gateway: Gateway, extra: tuple[str, str]) -> None:
    request = put(gateway)
    request.extra = [extra]
    smuggled = signed(gateway.address, "DELETE", KEY).raw()
    replies = exchange(gateway.address, request.raw() + smuggled)
    assert [reply.status for reply in replies] == [400]
    assert replies[0].headers["connection"] == "close"


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"G\0T / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
    ],
)
def test_what_is_no_request_is_a_400_or_silence(gateway: Gateway, data: bytes) -> None:
    assert [reply.status for reply in exchange(gateway.address, data)] in ([400], [])


def test_a_body_cut_short_leaves_the_old_object(gateway: Gateway) -> None:
    request = put(gateway, b"new", length=10)
    assert exchange(gateway.address, request.raw()) == []


def test_bytes_behind_a_body_are_the_next_request(gateway: Gateway) -> None:
    first = signed(gateway.address, "PUT", "/bucket/other", body=b"abc")
    second = signed(gateway.address, "GET", "/bucket/other")
    third = signed(gateway.address, "DELETE", "/bucket/other")
    data = first.raw() + second.raw() + third.raw()
    replies = exchange(gateway.address, data)
    assert [reply.status for reply in replies] == [200, 200, 204]
    assert replies[1].body == b"abc"


@pytest.mark.parametrize(
    "chunks", [b"zz\r\n", b"-3\r\nnew\r\n0\r\n\r\n", b"3\r\nnewX\r\n0\r\n\r\n", b"3;" + b"x" * 1000]
)
def test_bad_transfer_chunks_are_a_400(gateway: Gateway, chunks: bytes) -> None:
    request = put(gateway, b"", payload="UNSIGNED-PAYLOAD")
    request.headers = [item for item in request.headers if item[0] != "Content-Length"]
    request.extra = [("Transfer-Encoding", "chunked")]
    request.body = chunks
    assert one(gateway.address, request.raw()).status == 400


def test_an_absolute_target_is_the_same_request(gateway: Gateway) -> None:
    for authority, status in ((gateway.address, 200), ("other:80", 400), ("", 400)):
        request = signed(gateway.address, "GET", KEY)
        request.target = f"http://{authority}{KEY}"
        reply = one(gateway.address, request.raw())
        assert reply.status == status, (authority, reply.body)
    request = signed(gateway.address, "GET", KEY)
    request.target = f"http://{gateway.address}{KEY}?acl"  # the query was not signed
    assert one(gateway.address, request.raw()).status == 403


def test_pipelined_requests_are_answered_in_their_order(gateway: Gateway) -> None:
    requests = [
        signed(gateway.address, "PUT", "/bucket/p", body=b"first"),
        signed(gateway.address, "GET", "/bucket/p"),
        signed(gateway.address, "PUT", "/bucket/p?torrent", body=b"<nothing/>"),
        signed(gateway.address, "GET", "/bucket/missing"),
        signed(gateway.address, "DELETE", "/bucket/p"),
        signed(gateway.address, "GET", "/bucket/p"),
    ]
    replies = exchange(gateway.address, b"".join(request.raw() for request in requests))
    assert [reply.status for reply in replies] == [200, 200, 501, 404, 204, 404]
    assert replies[1].body == b"first"


def test_many_headers_and_long_ones_are_refused_beyond_16_kib(gateway: Gateway) -> None:
    good = signed(gateway.address, "GET", KEY)
    for extra, status in (
        ([(f"h{number}", "") for number in range(1000)], 200),
        ([(f"h{number}", "") for number in range(4000)], 400),
        ([("h", "x" * 10_000)], 200),
        ([("h", "x" * 20_000)], 400),
    ):
        good.extra = extra
        assert one(gateway.address, good.raw()).status == status


def test_head_answers_never_have_a_body(gateway: Gateway) -> None:
    for target in (KEY, "/bucket/missing", "/missing/key", "/bucket?acl"):
        data = signed(gateway.address, "HEAD", target).raw()
        after = signed(gateway.address, "GET", KEY).raw()
        with connect(gateway.address) as sock:
            sock.sendall(data + after)
            sock.shutdown(socket.SHUT_WR)
            received = b""
            while piece := sock.recv(65536):
                received += piece
        head, _, rest = received.partition(b"\r\n\r\n")
        assert rest.startswith(b"HTTP/1.1 200"), (target, head, rest[:40])


# -- signatures


def test_the_body_must_have_the_signed_hash(gateway: Gateway) -> None:
    request = put(gateway, b"new")
    request.body = b"bad"
    reply = one(gateway.address, request.raw())
    assert (reply.status, reply.code) == (400, "XAmzContentSHA256Mismatch")


def test_a_signature_is_for_one_method_path_and_query(gateway: Gateway) -> None:
    for method, target in (
        ("DELETE", KEY),
        ("GET", "/bucket/secret"),
        ("GET", KEY + "?partNumber=1"),
        ("GET", "/bucket//key"),
        ("GET", "/bucket/./key"),
    ):
        request = signed(gateway.address, "GET", KEY)
        request.method, request.target = method, target
        assert one(gateway.address, request.raw()).code == "SignatureDoesNotMatch"


def test_wrong_secrets_and_nobody_are_403(gateway: Gateway) -> None:
    wrong = signed(gateway.address, "GET", KEY, secret="guess")
    assert one(gateway.address, wrong.raw()).code == "SignatureDoesNotMatch"
    anonymous = f"GET {KEY} HTTP/1.1\r\nHost: {gateway.address}\r\n\r\n".encode()
    assert one(gateway.address, anonymous).code == "AccessDenied"
    late = signed(gateway.address, "GET", KEY)
    late.headers = [
        (name, "20200101T000000Z" if name.lower() == "x-amz-date" else value)
        for name, value in late.headers
    ]
    assert one(gateway.address, late.raw()).status in (400, 403)


def test_added_amz_headers_are_refused(gateway: Gateway) -> None:
    request = put(gateway)
    request.extra = [("x-amz-meta-injected", "1")]
    assert one(gateway.address, request.raw()).status == 403


def streaming(gateway: Gateway, payload: str, length: int, trailer: str = "") -> Signed:
    headers = {"x-amz-decoded-content-length": str(length), "Content-Encoding": "aws-chunked"}
    if trailer:
        headers["x-amz-trailer"] = trailer
    return signed(gateway.address, "PUT", "/bucket/chunked", headers, payload=payload)


def send_stream(gateway: Gateway, request: Signed, body: bytes) -> tuple[int, str]:
    request.body = body
    request.headers = [item for item in request.headers if item[0] != "Content-Length"]
    request.extra = [("Content-Length", str(len(body)))]
    reply = one(gateway.address, request.raw())
    return reply.status, reply.code


SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
CRC32 = "x-amz-checksum-crc32"


def crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def test_signed_chunks_are_accepted_and_tampered_ones_are_not(
    gateway: Gateway, client: S3Client
) -> None:
    request = streaming(gateway, SIGNED, 11)
    good = chunked_body(request, [b"hello ", b"world"])
    assert send_stream(gateway, request, good) == (200, "")
    got = client.get_object(Bucket=BUCKET, Key="chunked")
    assert got["Body"].read() == b"hello world"
    assert "ContentEncoding" not in got
    for old, new in (
        (b"hello", b"jello"),
        (
            b"=",
            b"=f",
        ),
        (b"6;", b"5;"),
        (b"0;", b"1;"),
    ):
        request = streaming(gateway, SIGNED, 11)
        body = chunked_body(request, [b"hello ", b"world"]).replace(old, new, 1)
        assert send_stream(gateway, request, body)[0] in (400, 403)
    request = streaming(gateway, SIGNED, 12)
    body = chunked_body(request, [b"hello ", b"world"])
    assert send_stream(gateway, request, body)[0] == 400
    client.delete_object(Bucket=BUCKET, Key="chunked")


def test_trailers_are_verified(gateway: Gateway, client: S3Client) -> None:
    kind = f"{SIGNED}-TRAILER"
    for value, status in ((crc32(b"hello"), 200), (crc32(b"jello"), 400), ("nonsense", 400)):
        request = streaming(gateway, kind, 5, CRC32)
        body = chunked_body(request, [b"hello"], (CRC32, value))
        assert send_stream(gateway, request, body)[0] == status
    request = streaming(gateway, kind, 5, CRC32)
    body = chunked_body(request, [b"hello"], (CRC32, crc32(b"hello")))
    assert send_stream(
        gateway, request, body.replace(b"trailer-signature:", b"trailer-signature:0")
    )[0] in (400, 403)
    for text, status in (
        (f"5\r\nhello\r\n0\r\n{CRC32}:{crc32(b'hello')}\r\n\r\n", 200),
        (f"5\r\nhello\r\n0\r\n{CRC32}:{crc32(b'jello')}\r\n\r\n", 400),
        ("5\r\nhello\r\n0\r\n\r\n", 400),
        (f"5\r\nhello\r\n0\r\nx-amz-checksum-crc32c:{crc32(b'hello')}\r\n\r\n", 400),
        ("zz\r\nhello\r\n0\r\n\r\n", 400),
    ):
        request = streaming(gateway, "STREAMING-UNSIGNED-PAYLOAD-TRAILER", 5, CRC32)
        assert send_stream(gateway, request, text.encode())[0] == status
    client.delete_object(Bucket=BUCKET, Key="chunked")


def test_a_stream_must_say_its_decoded_length(gateway: Gateway) -> None:
    request = signed(gateway.address, "PUT", KEY, payload=SIGNED)
    assert send_stream(gateway, request, chunked_body(request, [b"new"]))[0] == 411


def test_unsigned_transfer_chunks_with_a_trailer_as_nixl_sends_them(
    gateway: Gateway, client: S3Client
) -> None:
    headers = {
        "x-amz-decoded-content-length": "5",
        "Content-Encoding": "aws-chunked",
        "x-amz-trailer": CRC32,
        "Transfer-Encoding": "chunked",
        "Expect": "100-continue",
    }
    payload = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    request = signed(gateway.address, "PUT", "/bucket/nixl", headers, payload=payload)
    request.target = f"http://{gateway.address}/bucket/nixl"
    inner = f"5\r\nhello\r\n0\r\n{CRC32}:{crc32(b'hello')}\r\n\r\n".encode()
    request.body = f"{len(inner):x}\r\n".encode() + inner + b"\r\n0\r\n\r\n"
    assert one(gateway.address, request.raw()).status == 200
    assert client.get_object(Bucket=BUCKET, Key="nixl")["Body"].read() == b"hello"


# -- what is asked for


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("DELETE", "/bucket?analytics&id=1"),
        ("DELETE", "/bucket?metrics"),
        ("DELETE", "/bucket?inventory&id=1"),
        ("DELETE", "/bucket?logging"),
        ("DELETE", "/bucket?nonsense"),
        ("PUT", "/bucket/key?acl"),
        ("PUT", "/bucket/key?restore"),
        ("PUT", "/bucket/key?retention"),
        ("PUT", "/bucket/key?legal-hold"),
        ("PUT", "/bucket/key?nonsense"),
        ("PUT", "/bucket/key?uploadId=x"),
        ("PUT", "/bucket/key?partNumber=1"),
        ("DELETE", "/bucket/key?acl"),
        ("DELETE", "/bucket/key?versionId=abc"),
        ("POST", "/bucket/key"),
        ("POST", "/bucket"),
        ("PATCH", "/bucket/key"),
        ("OPTIONS", "/bucket/key"),
        ("TRACE", "/bucket/key"),
    ],
)
def test_unknown_sub_resources_never_fall_through(
    gateway: Gateway, method: str, target: str
) -> None:
    reply = one(gateway.address, signed(gateway.address, method, target).raw())
    assert reply.status in (400, 404, 405, 501), reply
    assert reply.code


@pytest.mark.parametrize(
    "target", ["/bucket/%00", "/bucket/%ff", "/bucket/%zz", "/bucket/" + "x" * 1025, "/%2e%2e/key"]
)
def test_impossible_names_are_400_or_404(gateway: Gateway, target: str) -> None:
    reply = one(gateway.address, signed(gateway.address, "GET", target).raw())
    assert reply.status in (400, 403, 404)


def test_traversal_stays_within_the_bucket(gateway: Gateway, client: S3Client) -> None:
    for target in ("/bucket/../../etc/passwd", "/bucket/..%2f..%2fetc%2fpasswd", "/../etc/passwd"):
        reply = one(gateway.address, signed(gateway.address, "GET", target).raw())
        assert reply.status in (403, 404)
    client.put_object(Bucket=BUCKET, Key="../../escape", Body=b"x")
    assert client.list_objects_v2(Bucket=BUCKET, Prefix="../")["KeyCount"] == 1
    client.delete_object(Bucket=BUCKET, Key="../../escape")


def test_response_overrides_cannot_inject_headers(gateway: Gateway) -> None:
    target = KEY + "?response-content-type=a%0D%0ASet-Cookie%3A%20x"
    reply = one(gateway.address, signed(gateway.address, "GET", target).raw())
    assert (reply.status, reply.code) == (400, "InvalidArgument")
    assert "set-cookie" not in reply.headers


@pytest.mark.parametrize(
    "body",
    [
        b"<!DOCTYPE x [<!ENTITY a 'b'>]><Delete><Object><Key>&a;</Key></Object></Delete>",
        b"<Delete>" * 100000,
        b"\x00\x01",
        b"<Delete><Object><Key>key</Key></Object>",
    ],
)
def test_hostile_xml_is_malformed(gateway: Gateway, body: bytes) -> None:
    request = signed(gateway.address, "POST", "/bucket?delete", body=body)
    reply = one(gateway.address, request.raw())
    assert (reply.status, reply.code) == (400, "MalformedXML")


def test_i8_an_endless_document_is_cut_off(gateway: Gateway) -> None:
    request = signed(gateway.address, "POST", "/bucket?delete", body=b" " * (2 << 20))
    replies = exchange(gateway.address, request.raw())
    assert [reply.code for reply in replies] == ["MaxMessageLengthExceeded"]


def test_impossible_sizes_are_refused_before_the_body(gateway: Gateway) -> None:
    for length in (5 * 2**30 + 1, 6 * 2**40):
        request = put(gateway, b"", payload="UNSIGNED-PAYLOAD", length=length)
        request.extra = [("Expect", "100-continue")]
        reply = one(gateway.address, request.raw())
        assert (reply.status, reply.code) == (400, "EntityTooLarge")
    full = put(gateway, b"", payload="UNSIGNED-PAYLOAD", length=5 * 2**30)
    reply = one(gateway.address, full.raw())
    assert (reply.status, reply.code) == (507, "QuotaExceeded")


def test_too_much_metadata_is_refused(gateway: Gateway) -> None:
    request = signed(gateway.address, "PUT", KEY, {"x-amz-meta-a": "x" * 2048}, body=b"new")
    assert one(gateway.address, request.raw()).code == "MetadataTooLarge"


# -- behaviour of connections


def test_expect_continue_is_answered_before_the_body_and_only_if_it_is_wanted(
    gateway: Gateway,
) -> None:
    good = signed(gateway.address, "PUT", "/bucket/other", body=b"abc")
    good.extra = [("Expect", "100-continue")]
    with connect(gateway.address) as sock:
        sock.sendall(good.head())
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"abc")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    bad = signed(gateway.address, "PUT", "/missing/other", body=b"abc")
    bad.extra = [("Expect", "100-continue")]
    with connect(gateway.address) as sock:
        sock.sendall(bad.head())
        answer = sock.recv(4000)
        assert answer.startswith(b"HTTP/1.1 404")
        assert b"Connection: close" in answer


def test_http_1_0_is_answered_and_closed(gateway: Gateway) -> None:
    request = signed(gateway.address, "GET", KEY)
    data = request.raw().replace(b"HTTP/1.1", b"HTTP/1.0")
    with connect(gateway.address) as sock:
        sock.sendall(data)
        received = b""
        while piece := sock.recv(65536):
            received += piece
    assert received.endswith(b"\r\n\r\nold")
    assert b"Connection: close" in received


def test_half_open_and_vanishing_clients_do_no_harm(gateway: Gateway) -> None:
    sockets = []
    for _ in range(50):
        sock = connect(gateway.address)
        sock.sendall(put(gateway, b"new", length=100_000).head()[:-2])
        sockets.append(sock)
    for _ in range(50):
        sock = connect(gateway.address)
        sock.sendall(put(gateway, b"half", length=100_000).raw())
        sockets.append(sock)
    reply = one(gateway.address, signed(gateway.address, "GET", KEY).raw())
    assert reply.body == b"old"
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()


def test_byte_by_byte_requests_are_served(gateway: Gateway) -> None:
    data = signed(gateway.address, "GET", KEY).raw()
    with connect(gateway.address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in data:
            sock.sendall(bytes([byte]))
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_refused_upload_still_gets_its_answer(gateway: Gateway) -> None:
    request = signed(
        gateway.address, "PUT", "/missing/k", body=bytes(3 << 20), payload="UNSIGNED-PAYLOAD"
    )
    replies = exchange(gateway.address, request.raw())
    assert [reply.code for reply in replies] == ["NoSuchBucket"]
