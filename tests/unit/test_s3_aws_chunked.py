"""aws-chunked in its forms: whole, byte by byte, tampered with, and cut off."""

import hashlib
import hmac
from collections.abc import Callable

import pytest

from kvfs_gateway.s3.aws_chunked import AwsChunkedDecoder
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.sigv4 import ChunkSeed, Payload

SEED = ChunkSeed(b"k" * 32, "20260101T000000Z", "20260101/us-east-1/s3/aws4_request", "5" * 64)
EMPTY = hashlib.sha256(b"").hexdigest()
TRAILER = "x-amz-checksum-crc32c"


def sign(kind: str, previous: str, *digests: str) -> str:
    text = "\n".join((kind, SEED.amz_date, SEED.scope, previous, *digests))
    return hmac.new(SEED.signing_key, text.encode(), "sha256").hexdigest()


def signed_body(chunks: list[bytes], trailer: str = "", ending: str = "\r\n") -> bytes:
    """What an SDK sends; the signer here is written from the specification, not from the code."""
    previous, body = SEED.signature, b""
    for chunk in [*chunks, b""]:
        previous = sign(
            "AWS4-HMAC-SHA256-PAYLOAD", previous, EMPTY, hashlib.sha256(chunk).hexdigest()
        )
        body += f"{len(chunk):x};chunk-signature={previous}\r\n".encode()
        body += chunk + (b"\r\n" if chunk else b"")
    if trailer:
        line = f"{TRAILER}:{trailer}"
        digest = hashlib.sha256(f"{line}\n".encode()).hexdigest()
        signature = sign("AWS4-HMAC-SHA256-TRAILER", previous, digest)
        body += f"{line}{ending}x-amz-trailer-signature:{signature}\r\n".encode()
    return body + b"\r\n"


def unsigned_body(chunks: list[bytes], trailer: str) -> bytes:
    body = b"".join(f"{len(chunk):X}\r\n".encode() + chunk + b"\r\n" for chunk in chunks)
    return body + f"0\r\n{TRAILER}:{trailer}\r\n\r\n".encode()


def decode(
    payload: Payload, body: bytes, length: int, step: int = 0
) -> tuple[bytes, dict[str, str], int]:
    names = "" if payload is Payload.STREAMING_SIGNED else TRAILER
    decoder = AwsChunkedDecoder(payload, length, SEED, names)
    out, taken = b"", 0
    step = step or len(body) or 1
    for start in range(0, len(body), step):
        slices, consumed = decoder.feed(memoryview(body[start : start + step]))
        out += b"".join(slices)
        taken += consumed
    return out, dict(decoder.finish()), taken


FORMS: list[tuple[Payload, Callable[[], bytes]]] = [
    (Payload.STREAMING_SIGNED, lambda: signed_body([b"hello ", b"world"])),
    (Payload.STREAMING_SIGNED_TRAILER, lambda: signed_body([b"hello ", b"world"], "AAAAAA==")),
    (
        Payload.STREAMING_SIGNED_TRAILER,
        lambda: signed_body([b"hello ", b"world"], "AAAAAA==", "\n\r\n"),
    ),
    (Payload.STREAMING_UNSIGNED_TRAILER, lambda: unsigned_body([b"hello ", b"world"], "AAAAAA==")),
]


@pytest.mark.parametrize(("payload", "body"), FORMS)
@pytest.mark.parametrize("step", [0, 1, 2, 7])
def test_every_form_is_decoded_at_any_granularity(
    payload: Payload, body: Callable[[], bytes], step: int
) -> None:
    out, trailers, taken = decode(payload, body() + b"GET /", 11, step)
    assert out == b"hello world"
    assert taken == len(body())
    assert trailers == ({} if payload is Payload.STREAMING_SIGNED else {TRAILER: "AAAAAA=="})


@pytest.mark.parametrize(("payload", "body"), FORMS)
def test_every_cut_off_body_is_refused(payload: Payload, body: Callable[[], bytes]) -> None:
    whole = body()
    for length in range(len(whole)):
        with pytest.raises(S3Error):
            decode(payload, whole[:length], 11)


@pytest.mark.parametrize(("payload", "body"), FORMS[:3])
def test_every_changed_byte_of_a_signed_body_is_refused(
    payload: Payload, body: Callable[[], bytes]
) -> None:
    whole = body()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 0x01
        with pytest.raises(S3Error) as refusal:
            decode(payload, bytes(changed), 11)
        assert refusal.value.status in (400, 403)


def test_reordered_chunks_are_refused() -> None:
    first, second = signed_body([b"aaaa", b"bbbb"]), signed_body([b"bbbb", b"aaaa"])
    end = first.index(b"aaaa") + 6
    with pytest.raises(S3Error):
        decode(Payload.STREAMING_SIGNED, first[:end] + second[:end] + first[-90:], 8)


def test_the_decoded_length_must_be_the_declared_one() -> None:
    body = unsigned_body([b"hello"], "AAAAAA==")
    for length in (4, 6):
        with pytest.raises(S3Error):
            decode(Payload.STREAMING_UNSIGNED_TRAILER, body, length)


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n",
        b"5\r\nhelloX\r\n",
        b"-5\r\nhello\r\n",
        b"5;chunk-signature=abc\r\nhello\r\n",
        b"5\nhello\n",
        b"9" * 2000,
        b"5\r\nhello\r\n0\r\nx-amz-other:1\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32c:a\r\nx-amz-checksum-crc32c:b\r\n\r\n",
        b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32c\r\n\r\n",
    ],
)
def test_malformed_chunks_are_a_400_and_close(body: bytes) -> None:
    for step in (0, 1):
        with pytest.raises(S3Error) as refusal:
            decode(Payload.STREAMING_UNSIGNED_TRAILER, body, 5, step)
        assert (refusal.value.status, refusal.value.closes) == (400, True)


def test_a_signed_stream_needs_a_seed() -> None:
    with pytest.raises(S3Error):
        AwsChunkedDecoder(Payload.STREAMING_SIGNED, 5, None, "")
