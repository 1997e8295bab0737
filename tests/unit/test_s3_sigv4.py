"""Signatures against botocore's own signer, and everything that must not pass."""

import hashlib
import urllib.parse

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.head import Head, parse_head
from kvfs_gateway.s3.http_dates import parse_amz_date
from kvfs_gateway.s3.sigv2 import verify_presigned_v2
from kvfs_gateway.s3.sigv4 import Authentication, Payload, SignatureVerifier
from kvfs_gateway.s3.target import Target, parse_target

ACCESS, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
BASE = "http://127.0.0.1:9000"


def secret_of(access_key: str) -> str | None:
    return SECRET if access_key == ACCESS else None


def signed(
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    *,
    body: bytes = b"",
    secret: str = SECRET,
    access: str = ACCESS,
) -> AWSRequest:
    request = AWSRequest(method, BASE + path, headers=headers or {}, data=body)
    request.context["payload_signing_enabled"] = True
    botocore.auth.S3SigV4Auth(Credentials(access, secret), "s3", "us-east-1").add_auth(request)
    return request


def presigned(method: str, path: str, expires: int = 60) -> AWSRequest:
    request = AWSRequest(method, BASE + path)
    auth = botocore.auth.S3SigV4QueryAuth(
        Credentials(ACCESS, SECRET), "s3", "us-east-1", expires=expires
    )
    auth.add_auth(request)
    return request


def received(request: AWSRequest, **changes: str) -> tuple[Head, Target]:
    url = request.url or ""
    split = urllib.parse.urlsplit(url)
    target = url[len(BASE) :]
    lines = [f"{request.method} {target} HTTP/1.1"]
    sent = (
        {"Host": split.netloc}
        | {name: str(value) for name, value in request.headers.items()}
        | changes
    )
    lines += [name + ": " + value for name, value in sent.items() if value]
    head = parse_head("\r\n".join([*lines, "", ""]).encode("latin-1"))
    return head, parse_target(head.target)


def time_of(head: Head, target: Target) -> int:
    text = head.get("x-amz-date") or (target.value(b"X-Amz-Date") or b"").decode()
    seconds = parse_amz_date(text)
    assert seconds is not None
    return seconds


def verify(request: AWSRequest, late: int = 0, /, **changes: str) -> Authentication:
    head, target = received(request, **changes)
    return SignatureVerifier(secret_of).verify(head, target, time_of(head, target) + late)


@pytest.mark.parametrize(
    "path",
    [
        "/b/k",
        "/b/a%20b%2Bc?partNumber=1&uploadId=a%2Fb",
        "/b/%40model%401%40-3f",
        "/b//a//b/",
        "/b/%C3%A9?x-id=PutObject",
        "/b?list-type=2&prefix=a%2Fb&delimiter=%2F&start-after=%20",
        "/b?uploads",
        "/b?z=1&a=2&B=3&a-b=4",
    ],
)
def test_what_botocore_signs_is_accepted(path: str) -> None:
    authentication = verify(signed("PUT", path, {"Content-Type": "a/b"}, body=b"hello"))
    assert authentication.access_key == ACCESS
    assert authentication.payload is Payload.SIGNED
    assert authentication.content_sha256 == hashlib.sha256(b"hello").hexdigest()


def test_a_second_request_with_the_cached_key_is_accepted_and_a_wrong_one_still_refused() -> None:
    verifier = SignatureVerifier(secret_of)
    head, target = received(signed("GET", "/b/k"))
    for _ in range(2):
        assert verifier.verify(head, target, time_of(head, target)).access_key == ACCESS
    bad, target = received(signed("GET", "/b/k", secret="wrong"))
    with pytest.raises(S3Error) as refusal:
        verifier.verify(bad, target, time_of(bad, target))
    assert refusal.value.code == "SignatureDoesNotMatch"


def test_spaces_within_a_signed_header_are_collapsed() -> None:
    verify(signed("GET", "/b/k", {"x-amz-meta-a": "one   two"}))


def test_the_host_with_a_bucket_behind_it_is_signed_as_sent() -> None:
    head, target = received(signed("GET", "/k", {"Host": "127.0.0.1:9001/kv"}))
    assert head.headers["host"] == "127.0.0.1:9001/kv"
    assert SignatureVerifier(secret_of).verify(head, target, time_of(head, target))


def test_a_raw_slash_in_the_query_is_signed_encoded() -> None:
    head, target = received(signed("GET", "/b?list-type=2&prefix=a%2Fb"))
    raw = parse_target(b"/b?list-type=2&prefix=a/b")
    assert SignatureVerifier(secret_of).verify(head, raw, time_of(head, target))


@pytest.mark.parametrize(
    ("late", "code"), [(901, "RequestTimeTooSkewed"), (-901, "RequestTimeTooSkewed")]
)
def test_fifteen_minutes_of_skew_and_no_more(late: int, code: str) -> None:
    verify(signed("GET", "/b/k"), 900)
    verify(signed("GET", "/b/k"), -900)
    with pytest.raises(S3Error) as refusal:
        verify(signed("GET", "/b/k"), late)
    assert refusal.value.code == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"Authorization": ""}, "AccessDenied"),
        ({"Authorization": "AWS a:b"}, "InvalidRequest"),
        ({"Authorization": "Basic abc"}, "InvalidArgument"),
        ({"Authorization": "AWS4-HMAC-SHA256 nonsense"}, "AuthorizationHeaderMalformed"),
        ({"X-Amz-Date": "20260101"}, "AccessDenied"),
        ({"x-amz-meta-added": "1"}, "AccessDenied"),
        ({"X-Amz-Content-SHA256": "0" * 64}, "SignatureDoesNotMatch"),
        ({"X-Amz-Content-SHA256": "nonsense"}, "InvalidArgument"),
        ({"X-Amz-Content-SHA256": "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"}, "NotImplemented"),
    ],
)
def test_a_changed_request_is_refused(change: dict[str, str], code: str) -> None:
    request = signed("GET", "/b/k")
    head, target = received(request)
    now = time_of(head, target)
    head, target = received(request, **change)
    with pytest.raises(S3Error) as refusal:
        SignatureVerifier(secret_of).verify(head, target, now)
    assert refusal.value.code == code


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0), (2, 1, 0), (0, 2, 1)])
def test_the_parts_of_an_authorization_may_come_in_any_order(order: tuple[int, ...]) -> None:
    request = signed("GET", "/b/k")
    scheme, _, rest = request.headers["Authorization"].partition(" ")
    parts = rest.split(", ")
    request.headers.replace_header(
        "Authorization", f"{scheme} {','.join(parts[place] for place in order)}"
    )
    verify(request)


@pytest.mark.parametrize("part", ["Credential", "SignedHeaders", "Signature"])
@pytest.mark.parametrize("is_twice", [False, True])
def test_an_authorization_has_each_part_once(part: str, is_twice: bool) -> None:
    request = signed("GET", "/b/k")
    scheme, _, rest = request.headers["Authorization"].partition(" ")
    parts = rest.split(", ")
    found = next(each for each in parts if each.startswith(part))
    parts = [*parts, found] if is_twice else [each for each in parts if each != found]
    request.headers.replace_header("Authorization", f"{scheme} {', '.join(parts)}")
    with pytest.raises(S3Error) as refusal:
        verify(request)
    assert refusal.value.code == "AuthorizationHeaderMalformed"


def test_a_signature_that_leaves_out_the_host_is_refused() -> None:
    request = signed("GET", "/b/k")
    request.headers.replace_header(
        "Authorization", request.headers["Authorization"].replace("host;", "")
    )
    with pytest.raises(S3Error) as refusal:
        verify(request)
    assert refusal.value.code == "AccessDenied"


def test_an_unknown_access_key_is_told_as_such() -> None:
    with pytest.raises(S3Error) as refusal:
        verify(signed("GET", "/b/k", access="NOBODY"))
    assert refusal.value.code == "InvalidAccessKeyId"


def test_a_signature_for_another_day_service_or_method_is_refused() -> None:
    for old, new in (("/s3/", "/ec2/"), ("us-east-1", "us-west-1")):
        request = signed("GET", "/b/k")
        value = request.headers["Authorization"].replace(old, new)
        request.headers.replace_header("Authorization", value)
        with pytest.raises(S3Error):
            verify(request)
    request = signed("GET", "/b/k")
    request.method = "DELETE"
    with pytest.raises(S3Error):
        verify(request)


def test_presigned_urls_hold_until_their_second() -> None:
    for path in ("/b/k", "/b/a%20b?response-content-type=a%2Fb", "/b?list-type=2&prefix=x%2F"):
        request = presigned("GET", path)
        assert verify(request, 59).is_presigned
        assert verify(request).payload is Payload.UNSIGNED
        with pytest.raises(S3Error) as refusal:
            verify(request, 60)
        assert (refusal.value.code, refusal.value.status) == ("AccessDenied", 403)


@pytest.mark.parametrize("expires", [0, -1, 604801])
def test_presigned_urls_last_from_a_second_to_a_week(expires: int) -> None:
    with pytest.raises(S3Error) as refusal:
        verify(presigned("GET", "/b/k", expires))
    assert (refusal.value.code, refusal.value.status) == ("AccessDenied", 403)


def test_a_presigned_url_takes_no_additions() -> None:
    request = presigned("GET", "/b/k")
    request.url = f"{request.url}&versionId=null"
    with pytest.raises(S3Error) as refusal:
        verify(request)
    assert refusal.value.code == "SignatureDoesNotMatch"
    with pytest.raises(S3Error):
        verify(presigned("PUT", "/b/k"), 0, **{"x-amz-meta-a": "1"})


def presigned_v2(path: str, expires: int = 60) -> tuple[Head, Target, int]:
    request = AWSRequest("GET", BASE + path)
    request.auth_path = path.partition("?")[0]
    botocore.auth.HmacV1QueryAuth(Credentials(ACCESS, SECRET), expires=expires).add_auth(request)
    head, target = received(request)
    return head, target, int(target.value(b"Expires") or 0)


def test_version_2_urls_as_boto3_makes_them_are_accepted_until_they_expire() -> None:
    head, target, end = presigned_v2("/b/a%20b?response-content-type=a%2Fb")
    assert verify_presigned_v2(head, target, target.raw_path, secret_of, end - 1).is_presigned
    with pytest.raises(S3Error):
        verify_presigned_v2(head, target, target.raw_path, secret_of, end)


def test_a_version_2_url_cannot_be_turned_into_something_else() -> None:
    head, target, end = presigned_v2("/b/k")
    for extra in ((b"attributes", b""), (b"tagging", b""), (b"uploads", b"")):
        changed = Target(target.raw_path, target.path, (*target.query, extra), "")
        with pytest.raises(S3Error):
            verify_presigned_v2(head, changed, target.raw_path, secret_of, end - 1)
    with pytest.raises(S3Error):
        verify_presigned_v2(head, target, b"/b/other", secret_of, end - 1)
