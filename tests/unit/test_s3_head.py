"""Request heads: what is accepted, and that everything else is refused and closes."""

import pytest

from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.head import MAX_HEAD_LENGTH, Framing, find_head_end, parse_head
from kvfs_gateway.s3.target import parse_target
from kvfs_gateway.s3.transfer_chunked import TransferChunkedDecoder


def head_of(*lines: str) -> bytes:
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def test_a_plain_request_is_taken_apart() -> None:
    head = parse_head(
        head_of(
            "PUT /b/k?partNumber=1 HTTP/1.1", "Host: h:9000", "Content-Length: 12", "X-Y:  a b "
        )
    )
    assert head.method == "PUT"
    assert head.target == b"/b/k?partNumber=1"
    assert head.framing is Framing.LENGTH
    assert head.content_length == 12
    assert head.headers["x-y"] == "a b"
    assert head.keeps_alive
    assert not head.expects_continue


def test_repeated_ordinary_headers_are_joined_and_repeated_framing_headers_are_refused() -> None:
    head = parse_head(head_of("GET / HTTP/1.1", "Host: h", "x-amz-meta-a: 1", "X-Amz-Meta-A: 2"))
    assert head.headers["x-amz-meta-a"] == "1,2"
    with pytest.raises(S3Error):
        parse_head(head_of("GET / HTTP/1.1", "Host: h", "Host: h"))


@pytest.mark.parametrize(
    "lines",
    [
        ("PUT /b/k HTTP/1.1", "Host: h", "Content-Length: 4_0"),
        ("PUT /b/k HTTP/1.1", "Host: h", "Content-Length: +4"),
        ("PUT /b/k HTTP/1.1", "Host: h", "Content-Length: -1"),
        ("PUT /b/k HTTP/1.1", "Host: h", "Content-Length: 4, 4"),
        ("PUT /b/k HTTP/1.1", "Host: h", "Content-Length: 0x4"),
        ("PUT /b/k HTTP/1.1", "Host: h", "Content-Length:"),
        ("PUT /b/k HTTP/1.1", "Host: h", "Content-Length: ٤".encode().decode("latin-1")),
        ("PUT /b/k HTTP/1.1", "Host: h", "Content-Length: 4", "Content-Length: 5"),
        ("PUT /b/k HTTP/1.1", "Host: h", "Content-Length: 4", "Content-Length: 4"),
        ("PUT /b/k HTTP/1.1", "Host: h", "Content-Length: 4", "Transfer-Encoding: chunked"),
        ("PUT /b/k HTTP/1.1", "Host: h", "Transfer-Encoding: gzip, chunked"),
        (
            "PUT /b/k HTTP/1.1",
            "Host: h",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: chunked",
        ),
        ("PUT /b/k HTTP/1.0", "Host: h", "Transfer-Encoding: chunked"),
        ("GET / HTTP/1.1",),
        ("GET / HTTP/1.1", "Host: h", " folded: x"),
        ("GET / HTTP/1.1", "Host: h", "a: b", "\tc"),
        ("GET / HTTP/1.1", "Host : h"),
        ("GET / HTTP/1.1", "Host: h", "nocolon"),
        ("GET / HTTP/1.1", "Host: h", ": empty"),
        ("GET / HTTP/1.1", "Host: h", "a: b\rc"),
        ("GET / HTTP/1.1", "Host: h", "a: b\nc: d"),
        ("GET / HTTP/1.1", "Host: h", "a: b\0"),
        ("GET / HTTP/1.1", "Host: h", "a\0: b"),
        ("GET / HTTP/1.1", "Host: h", "a b: c"),
        ("GET  / HTTP/1.1", "Host: h"),
        ("GET / x HTTP/1.1", "Host: h"),
        ("GET / HTTP/1.2", "Host: h"),
        ("GET / HTTP/2.0", "Host: h"),
        ("GET /", "Host: h"),
        ("get / HTTP/1.1", "Host: h"),
        (" GET / HTTP/1.1", "Host: h"),
        ("", "GET / HTTP/1.1", "Host: h"),
        ("GET /\x7f HTTP/1.1", "Host: h"),
    ],
)
def test_heads_outside_the_grammar_are_refused_and_close(lines: tuple[str, ...]) -> None:
    with pytest.raises(S3Error) as refusal:
        parse_head(head_of(*lines))
    assert refusal.value.closes
    assert refusal.value.status in (400, 501)


def test_the_end_of_a_head_is_found_byte_by_byte() -> None:
    data = head_of("GET / HTTP/1.1", "Host: h") + b"next"
    found = [find_head_end(data[:n], max(0, n - 1)) for n in range(len(data) + 1)]
    assert found.index(len(data) - 4) == len(data) - 4
    assert set(found[: len(data) - 4]) == {-1}


def test_i8_a_head_over_16_kib_is_refused_before_its_end_arrives() -> None:
    with pytest.raises(S3Error) as refusal:
        find_head_end(b"GET / HTTP/1.1\r\nHost: " + b"h" * MAX_HEAD_LENGTH)
    assert refusal.value.code == "RequestHeaderSectionTooLarge"


def test_http_1_0_closes_unless_asked_otherwise() -> None:
    assert not parse_head(head_of("GET / HTTP/1.0")).keeps_alive
    assert parse_head(head_of("GET / HTTP/1.0", "Connection: Keep-Alive")).keeps_alive
    assert not parse_head(head_of("GET / HTTP/1.1", "Host: h", "Connection: close")).keeps_alive


def test_targets_are_decoded_once() -> None:
    target = parse_target(b"/b/a%252F%2f+%20?prefix=a%2Fb+c&delimiter=/&uploads")
    assert target.path == b"/b/a%2F/+ "
    assert target.query == ((b"prefix", b"a/b c"), (b"delimiter", b"/"), (b"uploads", b""))


def test_absolute_targets_tell_their_host() -> None:
    target = parse_target(b"http://127.0.0.1:9000/b/k?x-id=GetObject")
    assert (target.authority, target.path) == ("127.0.0.1:9000", b"/b/k")
    assert parse_target(b"http://h").path == b"/"


@pytest.mark.parametrize(
    "raw", [b"/%zz", b"/%4", b"*", b"ftp://h/", b"b/k", b"/a#b", b"/b?a=1&a=2", b"/b?%=1"]
)
def test_bad_targets_are_refused(raw: bytes) -> None:
    with pytest.raises(S3Error):
        parse_target(raw)


CHUNKED = b"4\r\nWiki\r\n6;ext=1\r\npedia \r\n0\r\nTrailer: x\r\n\r\n"


def decode(pieces: list[bytes]) -> tuple[bytes, int, bool]:
    decoder = TransferChunkedDecoder()
    payload = b""
    taken = 0
    for piece in pieces:
        slices, consumed = decoder.feed(memoryview(piece))
        payload += b"".join(slices)
        taken += consumed
    return payload, taken, decoder.is_done


def test_transfer_chunks_are_decoded_whole_and_byte_by_byte_and_leave_the_rest() -> None:
    expected = (b"Wikipedia ", len(CHUNKED), True)
    assert decode([CHUNKED + b"GET / HTTP/1.1"]) == expected
    assert decode([bytes([byte]) for byte in CHUNKED + b"GET"]) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n",
        b"-4\r\nWiki\r\n",
        b"+4\r\nWiki\r\n",
        b"0x4\r\nWiki\r\n",
        b"4\nWiki\r\n",
        b"4\r\nWikiX\r\n",
        b"4\r\nWiki\n",
        b" 4\r\nWiki\r\n",
        b"1234567890123456\r\n",
        b"4;" + b"x" * 300,
        b"0\r\n bad: x\r\n",
        b"0\r\n" + b"a: " + b"x" * 5000,
        b"\r\n",
    ],
)
def test_bad_transfer_chunks_are_refused_and_close(body: bytes) -> None:
    for pieces in ([body], [bytes([byte]) for byte in body]):
        with pytest.raises(S3Error) as refusal:
            decode(pieces)
        assert refusal.value.closes
