"""Every parser of the protocol core under arbitrary bytes: the declared error, or an answer."""

import contextlib
import itertools
import urllib.parse

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfs_gateway.s3 import xml
from kvfs_gateway.s3.aws_chunked import AwsChunkedDecoder
from kvfs_gateway.s3.conditions import read_conditions, write_if_match
from kvfs_gateway.s3.errors import ErrorContext, S3Error, render_error
from kvfs_gateway.s3.head import find_head_end, parse_head
from kvfs_gateway.s3.http_dates import parse_amz_date, parse_http_date
from kvfs_gateway.s3.ranges import parse_range
from kvfs_gateway.s3.routing import Addressing, route
from kvfs_gateway.s3.sigv4 import ChunkSeed, Payload, SignatureVerifier
from kvfs_gateway.s3.target import parse_target, percent_decode, percent_encode
from kvfs_gateway.s3.transfer_chunked import TransferChunkedDecoder

SEED = ChunkSeed(b"k", "20260101T000000Z", "s", "5" * 64)
WORDS = (
    r"GET,PUT, ,/,b,?,uploads,=,&,%2F,%,HTTP/1.1,Host: h,:,Content-Length: 4,<Delete>,<!,"
    r"x-amz-date: 20260101T000000Z,Authorization: AWS4-HMAC-SHA256 ,;chunk-signature=,"
    r"Credential=a/20260101/r/s3/aws4_request,SignedHeaders=host,Signature=,"
    r"X-Amz-Algorithm=AWS4-HMAC-SHA256"
)
TOKENS = st.sampled_from(
    [word.encode() for word in WORDS.split(",")]
    + [b"\r\n", b"\n", b"\r", b", ", b"\0", b"\xff", b"5\r\n", b"0\r\n", b"\r\n\r\n", b"a" * 64]
)
SOUP = st.lists(TOKENS | st.binary(max_size=8), max_size=24).map(b"".join)


@given(SOUP)
def test_a_request_of_garbage_is_refused_or_routed(data: bytes) -> None:
    with contextlib.suppress(S3Error):
        find_head_end(data)
        head = parse_head(data)
        target = parse_target(head.target)
        with contextlib.suppress(S3Error):
            SignatureVerifier(lambda _: "secret").verify(head, target, 1_767_225_600)
        found = route(head, target, Addressing(("s3.local",)))
        assert len(found.key) <= 1024


@given(SOUP)
def test_a_target_of_garbage_is_refused_or_routed(data: bytes) -> None:
    request = b"PUT /" + data.replace(b" ", b"") + b" HTTP/1.1\r\nHost: h\r\n\r\n"
    with contextlib.suppress(S3Error):
        head = parse_head(request)
        route(head, parse_target(head.target), Addressing())


def outcome_of_chunks(data: bytes, cuts: list[int], payload: Payload | None) -> tuple[bytes, str]:
    decoder = (
        TransferChunkedDecoder()
        if payload is None
        else AwsChunkedDecoder(payload, 64, SEED, "x-amz-checksum-crc32")
    )
    out = b""
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    try:
        for start, end in itertools.pairwise(edges):
            slices, _ = decoder.feed(memoryview(data[start:end]))
            out += b"".join(slices)
    except S3Error as error:
        return b"", error.code
    return out, "done" if decoder.is_done else "more"


CHUNKS = st.lists(
    st.sampled_from([b"5\r\n", b"0\r\n", b"\r\n", b"hello", b"x-amz-checksum-crc32:", b"a", b"\n"])
    | st.binary(max_size=4),
    max_size=16,
).map(b"".join)


@given(CHUNKS, st.lists(st.integers(0, 200), max_size=8), st.sampled_from([None, *Payload]))
def test_chunk_decoders_do_not_depend_on_how_the_bytes_arrive(
    data: bytes, cuts: list[int], payload: Payload | None
) -> None:
    if payload is not None and not payload.is_streaming:
        return
    assert outcome_of_chunks(data, cuts, payload) == outcome_of_chunks(data, [], payload)


@given(st.binary(max_size=200) | SOUP)
def test_xml_of_garbage_is_malformed_or_read(data: bytes) -> None:
    for operation in (
        "DeleteObjects",
        "CompleteMultipartUpload",
        "PutBucketLifecycleConfiguration",
    ):
        with contextlib.suppress(S3Error):
            xml.parse(operation, data)


@given(st.text(max_size=60))
def test_small_parsers_survive_any_text(text: str) -> None:
    parse_http_date(text)
    parse_amz_date(text)
    with contextlib.suppress(S3Error):
        parse_range(text, 100)
    with contextlib.suppress(S3Error):
        write_if_match({"if-match": text})
    read_conditions({"if-match": text})
    body = render_error(S3Error("NoSuchKey"), ErrorContext(text, "1"))
    assert xml._parse_tree(body).name == "Error"


@given(st.binary(max_size=60))
def test_percent_encoding_round_trips(data: bytes) -> None:
    assert percent_decode(percent_encode(data).encode()) == data
    assert percent_decode(percent_encode(data, keeps_slash=True).encode()) == data


KEYS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40
).filter(lambda key: key.strip("/.") != "")


@settings(max_examples=200)
@given(KEYS, st.dictionaries(st.sampled_from(["prefix", "marker", "delimiter"]), KEYS))
def test_whatever_botocore_signs_is_accepted(key: str, query: dict[str, str]) -> None:
    path = "/b/" + urllib.parse.quote(key, safe="/~")
    encoded = "&".join(f"{k}={urllib.parse.quote(v, safe='~')}" for k, v in query.items())
    request = AWSRequest("GET", f"http://h:9000{path}" + (f"?{encoded}" if encoded else ""))
    signer = botocore.auth.S3SigV4Auth(Credentials("AK", "SK"), "s3", "eu-west-3")
    signer.add_auth(request)
    target = (request.url or "").removeprefix("http://h:9000")
    lines = [f"GET {target} HTTP/1.1", "Host: h:9000"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    head = parse_head("\r\n".join([*lines, "", ""]).encode("latin-1"))
    now = parse_amz_date(head.get("x-amz-date"))
    assert now is not None
    verifier = SignatureVerifier({"AK": "SK"}.get)
    assert verifier.verify(head, parse_target(head.target), now).access_key == "AK"
