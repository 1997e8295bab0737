"""Random requests: routed to an operation that knows all of them, signed as botocore signs."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import urllib.parse
from dataclasses import dataclass

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.loaders import Loader
from botocore.model import ServiceModel
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfs_gateway.s3.aws_chunked import AwsChunkedDecoder
from kvfs_gateway.s3.errors import ErrorContext, S3Error, render_error
from kvfs_gateway.s3.head import Head, parse_head
from kvfs_gateway.s3.http_dates import parse_amz_date
from kvfs_gateway.s3.routing import Addressing, Operation, Route, route
from kvfs_gateway.s3.sigv4 import (
    MAX_SKEW_SECONDS,
    Authentication,
    ChunkSeed,
    Payload,
    SignatureVerifier,
)
from kvfs_gateway.s3.target import parse_target

# -- routing: what the service model says of each operation, read here a second time


@dataclass(frozen=True)
class Described:
    """One operation of the model."""

    method: str
    literals: frozenset[str]
    """Names that its URI holds: the sub-resource."""
    parameters: frozenset[str]
    required: frozenset[str]


BOTOCORE = ServiceModel(Loader().load_service_model("s3", "service-2"), "s3")


def describe(name: str) -> Described:
    model = BOTOCORE.operation_model(name)
    _, _, query = model.http["requestUri"].partition("?")
    members = model.input_shape.members if model.input_shape else {}
    located = {
        member: str(shape.serialization["name"])
        for member, shape in members.items()
        if shape.serialization.get("location") == "querystring"
    }
    needed = model.input_shape.required_members if model.input_shape else ()
    return Described(
        model.http["method"],
        frozenset(item.partition("=")[0] for item in query.split("&") if item),
        frozenset(located.values()),
        frozenset(located[member] for member in needed if member in located),
    )


MODEL = {name: describe(name) for name in BOTOCORE.operation_names}
KEYS = sorted({key for each in MODEL.values() for key in each.literals | each.parameters})
STRANGE = ["frobnicate", "ACL", "Delete", "uploadid", "x-id", "versioning2", " acl", "acl;"]
REFUSALS = {"NotImplemented", "InvalidArgument", "MethodNotAllowed", "NoSuchVersion"}


def ask(method: str, target: str, *headers: str) -> Route:
    text = "\r\n".join((f"{method} {target} HTTP/1.1", "Host: h", *headers)) + "\r\n\r\n"
    head = parse_head(text.encode("latin-1"))
    return route(head, parse_target(head.target), Addressing())


@settings(max_examples=600)
@given(
    st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH"]),
    st.sampled_from(["/", "/b", "/b/", "/b/k", "/b//"]),
    st.lists(st.sampled_from(KEYS + STRANGE), unique=True, max_size=4),
    st.sampled_from(["", "=", "=1", "=null", "=2"]),
    st.booleans(),
)
def test_no_query_falls_through_to_an_operation_that_does_not_know_it(
    method: str, path: str, keys: list[str], value: str, is_copy: bool
) -> None:
    query = "&".join(urllib.parse.quote(key) + value for key in keys)
    copies = ["x-amz-copy-source: b/k"] if is_copy else []
    found, refusal = None, None
    try:
        found = ask(method, f"{path}?{query}", *copies).operation
    except S3Error as error:
        refusal = error
    if refusal is not None or found is None:
        assert refusal is not None
        assert refusal.code in REFUSALS
        body = render_error(refusal, ErrorContext(path, "1")).decode()
        assert f"<Code>{refusal.code}</Code>" in body
        return
    described = MODEL[found.value]
    assert described.method == method
    unknown = set(keys) - described.literals - described.parameters - {"x-id"}
    assert not unknown
    assert described.literals | described.required <= set(keys)


UNSERVED = [
    name
    for name, each in sorted(MODEL.items())
    if name not in {served.value for served in Operation}
    and each.literals | each.required  # else told from another operation by its host alone
    and not re.fullmatch("(Get|Put)Bucket(Lifecycle|Notification)", name)  # older names of others
]


@pytest.mark.parametrize("name", UNSERVED)
def test_an_operation_that_is_not_served_never_becomes_another(name: str) -> None:
    described = MODEL[name]
    names = described.literals | described.required
    query = "&".join(f"{key}=2" if key == "select-type" else key for key in sorted(names))
    path = "/b/k" if "{Key+}" in BOTOCORE.operation_model(name).http["requestUri"] else "/b"
    with pytest.raises(S3Error) as refusal:
        ask(described.method, f"{path}?{query}")
    assert refusal.value.code in ("NotImplemented", "InvalidArgument")


# -- signatures

TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]),
    min_size=1,
    max_size=20,
)
HEADER = st.text("abcXYZ 019-_.;=,/+", max_size=20).map(str.strip).filter(bool)
REGIONS = st.sampled_from(["us-east-1", "eu-central-2", "default", "x"])
NOW_S = 1_767_225_600


@dataclass(frozen=True)
class Case:
    """A request before it is signed."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    region: str

    def url(self) -> str:
        pairs = (
            f"{urllib.parse.quote(k, safe='~')}={urllib.parse.quote(v, safe='~')}"
            for k, v in self.query.items()
        )
        query = "&".join(pairs)
        path = "/b/" + urllib.parse.quote(self.path, safe="/~")
        return f"http://h:9000{path}" + (f"?{query}" if query else "")


CASES = st.builds(
    Case,
    st.sampled_from(["GET", "PUT", "HEAD", "DELETE", "POST"]),
    TEXT.filter(lambda key: key.strip("/.") != ""),
    st.dictionaries(TEXT.filter(lambda name: not name.startswith("X-Amz-")), TEXT, max_size=3),
    st.dictionaries(
        st.sampled_from(["x-amz-meta-a", "x-amz-meta-b", "Content-Type", "Content-MD5", "Range"]),
        HEADER,
        max_size=3,
    ),
    st.binary(max_size=40),
    REGIONS,
)


def head_of(request: AWSRequest, method: str) -> Head:
    target = (request.url or "").removeprefix("http://h:9000")
    lines = [f"{method} {target} HTTP/1.1", "Host: h:9000"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    return parse_head("\r\n".join([*lines, "", ""]).encode("latin-1"))


def sign_header(case: Case) -> AWSRequest:
    request = AWSRequest(case.method, case.url(), headers=dict(case.headers), data=case.body)
    request.context["payload_signing_enabled"] = True
    botocore.auth.S3SigV4Auth(Credentials("AK", "SK"), "s3", case.region).add_auth(request)
    return request


def sign_query(case: Case, expires: int) -> AWSRequest:
    request = AWSRequest(case.method, case.url(), headers=dict(case.headers))
    credentials = Credentials("AK", "SK")
    botocore.auth.S3SigV4QueryAuth(credentials, "s3", case.region, expires=expires).add_auth(
        request
    )
    return request


def verify(head: Head, now_s: int) -> Authentication:
    return SignatureVerifier({"AK": "SK"}.get).verify(head, parse_target(head.target), now_s)


def signed_at(head: Head) -> int:
    found = parse_amz_date(head.get("x-amz-date"))
    if found is None:
        value = parse_target(head.target).value(b"X-Amz-Date") or b""
        found = parse_amz_date(value.decode())
    assert found is not None
    return found


@settings(max_examples=150)
@given(CASES, st.integers(-2 * MAX_SKEW_SECONDS, 2 * MAX_SKEW_SECONDS))
def test_what_botocore_signs_in_a_header_holds_for_fifteen_minutes(case: Case, late: int) -> None:
    head = head_of(sign_header(case), case.method)
    if abs(late) <= MAX_SKEW_SECONDS:
        found = verify(head, signed_at(head) + late)
        assert found.content_sha256 == hashlib.sha256(case.body).hexdigest()
        return
    with pytest.raises(S3Error) as refusal:
        verify(head, signed_at(head) + late)
    assert refusal.value.code == "RequestTimeTooSkewed"


@settings(max_examples=150)
@given(CASES, st.integers(1, 604_800), st.integers(-1000, 700_000))
def test_what_botocore_presigns_holds_until_its_end(case: Case, expires: int, late: int) -> None:
    head = head_of(sign_query(case, expires), case.method)
    now_s = signed_at(head) + late
    if -MAX_SKEW_SECONDS <= late < expires:
        assert verify(head, now_s).is_presigned
        return
    with pytest.raises(S3Error) as refusal:
        verify(head, now_s)
    assert refusal.value.code == "AccessDenied"


@settings(max_examples=300)
@given(CASES, st.booleans(), st.data())
def test_one_changed_character_of_a_signed_request_is_refused(
    case: Case, is_presigned: bool, data: st.DataObject
) -> None:
    request = sign_query(case, 60) if is_presigned else sign_header(case)
    good = head_of(request, case.method)
    assert verify(good, signed_at(good)).access_key == "AK"
    target = (request.url or "").removeprefix("http://h:9000")
    lines = [f"{case.method} {target} HTTP/1.1", "Host: h:9000"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    number = data.draw(st.integers(0, len(lines) - 1))
    line = lines[number]
    spot = data.draw(st.integers(0, len(line) - 1))
    new = data.draw(st.sampled_from("abAB019/%&=-. "))
    lines[number] = line[:spot] + new + line[spot + 1 :]
    changed = "\r\n".join([*lines, "", ""]).encode("latin-1")
    try:
        head = parse_head(changed)
        same = (head.method, head.headers, parse_target(head.target)) == (
            good.method,
            good.headers,
            parse_target(good.target),
        )
        found = verify(head, signed_at(good))
    except S3Error:
        return
    if not same and not means_the_same(good, head, is_presigned=is_presigned):
        raise AssertionError(f"{changed!r} passed as {found}")


def means_the_same(good: Head, changed: Head, *, is_presigned: bool) -> bool:
    """Return whether two heads differ only in what a signature does not cover, or in spelling."""

    def meaning(head: Head) -> object:
        target = parse_target(head.target)
        signed = target.value(b"X-Amz-SignedHeaders") if is_presigned else None
        if signed is None:
            match = re.search(r"SignedHeaders=([^,]*)", head.get("authorization"))
            signed = match[1].encode() if match else b""
        covered = {
            name: re.sub(" +", " ", value)
            for name, value in head.headers.items()
            if name in signed.decode().split(";")
        }
        return head.method, target.path, sorted(target.query), covered

    return meaning(good) == meaning(changed)


# -- signed streams

SEED = ChunkSeed(b"k" * 32, "20260101T000000Z", "20260101/r/s3/aws4_request", "5" * 64)
EMPTY = hashlib.sha256(b"").hexdigest()


def signed_chunks(chunks: list[bytes]) -> list[bytes]:
    """Return the wire form of each chunk and of the empty one that ends them."""
    previous, pieces = SEED.signature, []
    for chunk in [*chunks, b""]:
        digest = hashlib.sha256(chunk).hexdigest()
        text = "\n".join(
            ("AWS4-HMAC-SHA256-PAYLOAD", SEED.amz_date, SEED.scope, previous, EMPTY, digest)
        )
        previous = hmac.new(SEED.signing_key, text.encode(), "sha256").hexdigest()
        pieces.append(f"{len(chunk):x};chunk-signature={previous}\r\n".encode() + chunk + b"\r\n")
    return pieces


def decode(body: bytes, length: int, step: int) -> tuple[bytes, int]:
    """Return the payload and how many bytes of the body it took."""
    decoder = AwsChunkedDecoder(Payload.STREAMING_SIGNED, length, SEED, "")
    out, taken = bytearray(), 0
    for start in range(0, len(body), step):
        slices, count = decoder.feed(memoryview(body[start : start + step]))
        out += b"".join(slices)
        taken += count
    decoder.finish()
    return bytes(out), taken


@given(
    st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=6),
    st.integers(1, 64),
    st.sampled_from(["swap", "drop", "repeat", "flip", "join", "cut"]),
    st.data(),
)
def test_a_signed_stream_is_taken_as_it_was_signed_or_not_at_all(
    chunks: list[bytes], step: int, damage: str, data: st.DataObject
) -> None:
    pieces = signed_chunks(chunks)
    whole, payload = b"".join(pieces), b"".join(chunks)
    assert decode(whole, len(payload), step) == (payload, len(whole))
    at = data.draw(st.integers(0, len(pieces) - 1))
    if damage == "swap":
        other = data.draw(st.integers(0, len(pieces) - 1))
        pieces[at], pieces[other] = pieces[other], pieces[at]
    elif damage == "drop":
        del pieces[at]
    elif damage == "repeat":
        pieces.insert(at, pieces[at])
    elif damage == "flip":
        piece = bytearray(pieces[at])
        piece[data.draw(st.integers(0, len(piece) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        pieces[at] = bytes(piece)
    elif damage == "join":
        pieces = [b"%x;chunk-signature=%s\r\n" % (len(payload), b"0" * 64) + payload + b"\r\n"]
        pieces.append(signed_chunks([])[0])
    else:
        pieces[-1] = pieces[-1][: data.draw(st.integers(0, len(pieces[-1]) - 1))]
    changed = b"".join(pieces)
    if changed == whole:
        return
    with contextlib.suppress(S3Error):
        found, taken = decode(changed, len(payload), step)
        # What follows the last chunk is not taken; capital hexadecimal digits mean the same.
        assert found == payload
        assert changed[:taken].lower() == whole.lower()
