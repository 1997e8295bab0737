"""Ranges, conditions, dates and checksums."""

import hashlib
import zlib

import pytest

from kvfs_gateway.s3.checksums import (
    Algorithm,
    combine_composite,
    combine_full,
    decode_checksum,
    decode_md5,
    encode_base64,
    find_algorithm,
    new_hasher,
)
from kvfs_gateway.s3.conditions import (
    Conditions,
    Outcome,
    decide,
    read_conditions,
    write_if_match,
    write_if_none_match,
)
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.http_dates import (
    parse_amz_date,
    parse_http_date,
    render_amz_date,
    render_http_date,
    render_iso_date,
)
from kvfs_gateway.s3.ranges import ByteRange, parse_copy_range, parse_range


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("bytes=0-0", (0, 1)),
        ("bytes=0-", (0, 10)),
        ("bytes=3-5", (3, 3)),
        ("bytes=0-8388607", (0, 10)),
        ("bytes=-3", (7, 3)),
        ("bytes=-100", (0, 10)),
        ("Bytes=9-9", (9, 1)),
        ("bytes=5-3", None),
        ("bytes=-", None),
        ("bytes=1-2,4-5", None),
        ("bytes=a-b", None),
        ("items=0-1", None),
        ("bytes=+1-2", None),
        ("bytes=1_0-", None),
    ],
)
def test_ranges(text: str, expected: tuple[int, int] | None) -> None:
    found = parse_range(text, 10)
    assert found == (ByteRange(*expected, 10) if expected else None)


@pytest.mark.parametrize(("text", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_ranges_beyond_the_object_are_416_and_tell_its_size(text: str, size: int) -> None:
    with pytest.raises(S3Error) as refusal:
        parse_range(text, size)
    assert refusal.value.status == 416
    assert refusal.value.headers == (("Content-Range", f"bytes */{size}"),)


def test_copy_ranges_name_both_ends_within_the_source() -> None:
    assert parse_copy_range("bytes=2-4", 10) == ByteRange(2, 3, 10)
    for text in ("bytes=2-", "bytes=-2", "2-4", "bytes=4-2", "bytes=0-10"):
        with pytest.raises(S3Error):
            parse_copy_range(text, 10)


OLD, NOW, NEW = (render_http_date(second) for second in (1_000, 2_000, 3_000))


@pytest.mark.parametrize(
    ("headers", "outcome"),
    [
        ({}, Outcome.PROCEED),
        ({"if-match": '"e"'}, Outcome.PROCEED),
        ({"if-match": "e"}, Outcome.PROCEED),
        ({"if-match": "*"}, Outcome.PROCEED),
        ({"if-match": '"a", "e"'}, Outcome.PROCEED),
        ({"if-match": 'W/"e"'}, Outcome.FAILED),
        ({"if-match": '"a"'}, Outcome.FAILED),
        ({"if-none-match": '"e"'}, Outcome.NOT_MODIFIED),
        ({"if-none-match": 'W/"e"'}, Outcome.NOT_MODIFIED),
        ({"if-none-match": "*"}, Outcome.NOT_MODIFIED),
        ({"if-none-match": '"a"'}, Outcome.PROCEED),
        ({"if-modified-since": NOW}, Outcome.NOT_MODIFIED),
        ({"if-modified-since": OLD}, Outcome.PROCEED),
        ({"if-modified-since": "garbage"}, Outcome.PROCEED),
        ({"if-unmodified-since": NOW}, Outcome.PROCEED),
        ({"if-unmodified-since": OLD}, Outcome.FAILED),
        ({"if-match": '"e"', "if-unmodified-since": OLD}, Outcome.PROCEED),
        ({"if-none-match": '"a"', "if-modified-since": NEW}, Outcome.PROCEED),
        ({"if-match": '"e"', "if-none-match": '"e"'}, Outcome.NOT_MODIFIED),
        ({"if-match": '"a"', "if-none-match": '"e"'}, Outcome.FAILED),
    ],
)
def test_conditions_in_order_of_precedence(headers: dict[str, str], outcome: Outcome) -> None:
    assert decide(read_conditions(headers), "e", 2_000) is outcome
    prefixed = {f"x-amz-copy-source-{name}": value for name, value in headers.items()}
    assert decide(read_conditions(prefixed, "x-amz-copy-source-"), "e", 2_000) is outcome


def test_write_conditions() -> None:
    assert write_if_match({}) == ""
    assert write_if_match({"if-match": '"e"'}) == "e"
    assert write_if_match({"if-match": "e"}) == "e"
    assert write_if_match({"if-match": "*"}) == "*"
    assert write_if_none_match({"if-none-match": "*"}) == "*"
    assert write_if_none_match({"if-none-match": '"e"'}) == "e"
    assert write_if_none_match({}) == ""
    for headers in ({"if-none-match": '"a", "b"'}, {"if-match": '"a", "b"'}, {"if-match": 'W/"a"'}):
        with pytest.raises(S3Error):
            _ = write_if_none_match(headers) or write_if_match(headers)


def test_garbage_conditions_never_match() -> None:
    for value in ('"', ",", '"e', "e f", "\t"):
        assert decide(Conditions(if_match=value), "e", 0) is not Outcome.NOT_MODIFIED


def test_dates_round_trip() -> None:
    assert render_http_date(784_111_777) == "Sun, 06 Nov 1994 08:49:37 GMT"
    assert parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT") == 784_111_777
    assert parse_http_date("1994-11-06T08:49:37Z") == 784_111_777
    assert parse_http_date("nonsense") is None
    assert parse_amz_date(render_amz_date(784_111_777)) == 784_111_777
    assert parse_amz_date("20261399T000000Z") is None
    assert render_iso_date(784_111_777_999_999_999) == "1994-11-06T08:49:37.000Z"


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (Algorithm.CRC32, "cbf43926"),
        (Algorithm.CRC32C, "e3069283"),
        (Algorithm.CRC64NVME, "ae8b14860a799888"),
        (Algorithm.SHA1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
        (
            Algorithm.SHA256,
            "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
        ),
    ],
)
def test_checksums_have_their_published_check_values(algorithm: Algorithm, expected: str) -> None:
    whole, pieces = new_hasher(algorithm), new_hasher(algorithm)
    whole.update(memoryview(b"123456789"))
    for piece in (b"1234", b"", b"56789"):
        pieces.update(memoryview(bytearray(piece)))
    assert whole.digest().hex() == expected
    assert whole.digest() == pieces.digest()
    assert decode_checksum(algorithm, encode_base64(whole.digest())) == whole.digest()


@pytest.mark.parametrize("algorithm", [item for item in Algorithm if item.is_crc])
def test_crcs_of_parts_combine_to_that_of_the_whole(algorithm: Algorithm) -> None:
    parts = [b"a" * 1000, b"b", b"c" * 77]
    sums = []
    for part in parts:
        hasher = new_hasher(algorithm)
        hasher.update(memoryview(part))
        sums.append((hasher.digest(), len(part)))
    whole = new_hasher(algorithm)
    whole.update(memoryview(b"".join(parts)))
    assert combine_full(algorithm, sums) == whole.digest()


def test_a_composite_checksum_is_that_of_the_checksums() -> None:
    sums = [zlib.crc32(b"a").to_bytes(4, "big"), zlib.crc32(b"b").to_bytes(4, "big")]
    value, count = combine_composite(Algorithm.CRC32, sums)
    assert (value, count) == (zlib.crc32(b"".join(sums)).to_bytes(4, "big"), 2)


def test_bad_encodings_are_refused() -> None:
    assert decode_md5(encode_base64(hashlib.md5(b"").digest())) == hashlib.md5(b"").digest()
    for text in ("", "AAAA", "!!!!", "AAAAAAAAAAAAAAAAAAAAAA=", "é"):
        with pytest.raises(S3Error):
            decode_md5(text)
        with pytest.raises(S3Error):
            decode_checksum(Algorithm.SHA1, text)
    with pytest.raises(S3Error):
        find_algorithm("MD4")
