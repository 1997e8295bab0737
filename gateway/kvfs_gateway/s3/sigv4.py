"""AWS Signature Version 4: who sent this request, and how is its body vouched for.

Owns the canonical request and the comparison; takes the time and the secrets as parameters, so it
knows neither clock nor key store. The body is not looked at: the outcome says which promise about
it (hash, chunk signatures, none) the reader of the body has to enforce.

Holds: comparison in constant time; `host` and every `x-amz-*` header sent are among the signed
ones; a signing key is cached only after a signature made with it was right, so guesses cannot fill
the cache.
Cost: 5 us with a cached key, 12 us more to derive one.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.head import Head
from kvfs_gateway.s3.http_dates import parse_amz_date, parse_http_date, render_amz_date
from kvfs_gateway.s3.target import Target, percent_encode

ALGORITHM = "AWS4-HMAC-SHA256"
MAX_SKEW_SECONDS = 15 * 60
MAX_EXPIRES_SECONDS = 7 * 24 * 3600
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"

_MAX_CACHED_KEYS = 256
_HEX_64 = re.compile(r"[0-9a-f]{64}")
_SPACES = re.compile(r" {2,}")
_UNSIGNED_ALLOWED = frozenset({"x-amz-user-agent"})
"""Browser SDKs add it after signing; nothing here reads it."""

SecretOf = Callable[[str], str | None]


class Payload(enum.Enum):
    """What x-amz-content-sha256 promises about the body."""

    SIGNED = "signed"
    UNSIGNED = UNSIGNED_PAYLOAD
    STREAMING_SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
    STREAMING_SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
    STREAMING_UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"

    @property
    def is_streaming(self) -> bool:
        """Whether the body is aws-chunked."""
        return self.value.startswith("STREAMING-")


_STREAMING = {mode.value: mode for mode in Payload if mode.is_streaming}


@dataclass(frozen=True, slots=True)
class ChunkSeed:
    """What the first chunk signature is chained to."""

    signing_key: bytes
    amz_date: str
    scope: str
    signature: str


class Authentication(NamedTuple):
    """A request whose signature was right."""

    access_key: str
    payload: Payload
    content_sha256: str
    """Lower-case hex the body must have; "" unless payload is SIGNED."""
    seed: ChunkSeed | None
    """None where the body is not aws-chunked."""
    is_presigned: bool


class _Signer(NamedTuple):
    """The part of a claim that a client repeats with every request of a day."""

    access_key: str
    date: str
    region: str
    scope: str
    signed_headers: tuple[str, ...]
    signed_text: str
    """`signed_headers` as sent."""


class _Claim(NamedTuple):
    """What the client says: parsed, nothing checked against a secret yet."""

    signer: _Signer
    signature: str
    amz_date: str
    timestamp: int


def derive_signing_key(secret: str, date: str, region: str) -> bytes:
    """Return the key of one day and region."""
    key = hmac.digest(f"AWS4{secret}".encode(), date.encode(), "sha256")
    for part in (region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


class SigningKey:
    """HMAC-SHA256 under one key, with the key's two blocks hashed once.

    0.7 us a signature, where hmac.digest sets OpenSSL up anew for 1.6 us.
    """

    __slots__ = ("_inner", "_outer", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        block = raw.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def sign(self, text: bytes) -> str:
        """Return the HMAC of `text` in hexadecimal."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text)
        outer.update(inner.digest())
        return outer.hexdigest()


class SignatureVerifier:
    """Verifies requests against the secrets it is given; one per worker, not shared by threads."""

    def __init__(self, secret_of: SecretOf) -> None:
        self._secret_of = secret_of
        self._keys: dict[tuple[str, str, str], SigningKey] = {}

    def verify(self, head: Head, target: Target, now_s: int) -> Authentication:
        """Return who signed the request. Raises: S3Error, 403 or 400 as S3 has it."""
        presigned = target.value(b"X-Amz-Algorithm") if target.query else None
        authorization = head.headers.get("authorization")
        if authorization is not None:
            if presigned is not None:
                raise S3Error("InvalidArgument", "Only one auth mechanism allowed.")
            return self._verify_header(head, target, authorization, now_s)
        if presigned is not None:
            return self._verify_presigned(head, target, presigned, now_s)
        raise S3Error("AccessDenied")

    def _verify_header(
        self, head: Head, target: Target, authorization: str, now_s: int
    ) -> Authentication:
        claim = _parse_authorization(head, authorization)
        content = head.headers.get("x-amz-content-sha256")
        if content is None:
            raise S3Error(
                "InvalidRequest", "Missing required header for this request: x-amz-content-sha256"
            )
        payload = _payload_mode(content)
        secret = self._secret(claim)
        if abs(now_s - claim.timestamp) > MAX_SKEW_SECONDS:
            raise S3Error("RequestTimeTooSkewed")
        key = self._check(head, target, claim, content, secret)
        return _authentication(claim, payload, content, key, is_presigned=False)

    def _verify_presigned(
        self, head: Head, target: Target, algorithm: bytes, now_s: int
    ) -> Authentication:
        claim, expires_s = _parse_presigned(target, algorithm)
        content = _text(target.value(b"X-Amz-Content-Sha256")) or head.get("x-amz-content-sha256")
        content = content or UNSIGNED_PAYLOAD
        payload = _payload_mode(content)
        secret = self._secret(claim)
        if claim.timestamp > now_s + MAX_SKEW_SECONDS:
            raise S3Error("AccessDenied", "Request is not valid yet")
        if now_s >= claim.timestamp + expires_s:
            raise S3Error("AccessDenied", "Request has expired")
        key = self._check(head, target, claim, content, secret)
        return _authentication(claim, payload, content, key, is_presigned=True)

    def _secret(self, claim: _Claim) -> str:
        secret = self._secret_of(claim.signer.access_key)
        if secret is None:
            raise S3Error("InvalidAccessKeyId")
        return secret

    def _check(
        self, head: Head, target: Target, claim: _Claim, content: str, secret: str
    ) -> SigningKey:
        signer = claim.signer
        headers = _canonical_headers(head, signer)
        slot = (secret, signer.date, signer.region)
        key = self._keys.get(slot) or SigningKey(derive_signing_key(*slot))
        query = _canonical_query(target) if target.query else ""
        for path in _canonical_paths(target):
            request = f"{head.method}\n{path}\n{query}\n{headers}\n{content}"
            if hmac.compare_digest(_sign(key, claim, request), claim.signature):
                if slot not in self._keys:
                    self._remember(slot, key)
                return key
        raise S3Error("SignatureDoesNotMatch")

    def _remember(self, slot: tuple[str, str, str], key: SigningKey) -> None:
        if len(self._keys) >= _MAX_CACHED_KEYS:
            self._keys.clear()
        self._keys[slot] = key


def _authentication(
    claim: _Claim, payload: Payload, content: str, key: SigningKey, *, is_presigned: bool
) -> Authentication:
    access_key = claim.signer.access_key
    if payload is Payload.UNSIGNED:
        return Authentication(access_key, payload, "", None, is_presigned)
    if payload is Payload.SIGNED:
        return Authentication(access_key, payload, content, None, is_presigned)
    seed = ChunkSeed(key.raw, claim.amz_date, claim.signer.scope, claim.signature)
    return Authentication(access_key, payload, "", seed, is_presigned)


def _sign(key: SigningKey, claim: _Claim, request: str) -> str:
    digest = hashlib.sha256(request.encode("latin-1")).hexdigest()
    text = f"{ALGORITHM}\n{claim.amz_date}\n{claim.signer.scope}\n{digest}"
    return key.sign(text.encode("latin-1"))


def _canonical_paths(target: Target) -> tuple[str, ...]:
    """The path encoded as the specification says, then as sent: awscrt signs what it sends."""
    canonical = percent_encode(target.path, keeps_slash=True)
    raw = target.raw_path.decode("latin-1")
    return (canonical,) if raw == canonical else (canonical, raw)


def _canonical_query(target: Target) -> str:
    pairs = [
        (percent_encode(name), percent_encode(value))
        for name, value in target.query
        if name != b"X-Amz-Signature"
    ]
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def _canonical_headers(head: Head, signer: _Signer) -> str:
    """Return the header block, an empty line and the list of names, ready to be joined."""
    headers, signed = head.headers, signer.signed_headers
    if "host" not in signed:
        raise S3Error("AccessDenied", "The host header must be signed.")
    for name in head.amz_names:
        if name not in signed and name not in _UNSIGNED_ALLOWED:
            raise S3Error(
                "AccessDenied",
                "There were headers present in the request which were not signed",
                fields=(("HeadersNotSigned", name),),
            )
    try:
        block = "".join([f"{name}:{headers[name]}\n" for name in signed])
    except KeyError as error:
        message = f"The signed header {error.args[0]} was not sent."
        raise S3Error("SignatureDoesNotMatch", message) from None
    if "  " in block:  # no name holds a space, so these are all in values
        block = _SPACES.sub(" ", block)
    return f"{block}\n{signer.signed_text}"


def _payload_mode(content: str) -> Payload:
    if content == UNSIGNED_PAYLOAD:
        return Payload.UNSIGNED
    if _HEX_64.fullmatch(content):
        return Payload.SIGNED
    if content in _STREAMING:
        return _STREAMING[content]
    if content.startswith("STREAMING-"):
        raise S3Error("NotImplemented", f"The payload form {content} is not served.")
    raise S3Error(
        "InvalidArgument",
        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, a STREAMING form or a lower-case SHA-256.",
    )


def _parse_authorization(head: Head, authorization: str) -> _Claim:
    before, mark, rest = authorization.partition("Signature=")
    signature, comma, after = rest.partition(",")
    signer = _parse_signer(f"{before}{mark}{comma}{after}")
    amz_date = head.headers.get("x-amz-date")
    if amz_date is None:
        seconds = parse_http_date(head.get("date"))
        if seconds is None:
            raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date")
        amz_date = render_amz_date(seconds)
    return _claim(signer, signature, amz_date, "AuthorizationHeaderMalformed")


def _parse_presigned(target: Target, algorithm: bytes) -> tuple[_Claim, int]:
    code = "AuthorizationQueryParametersError"
    if algorithm != ALGORITHM.encode():
        raise S3Error(code, 'X-Amz-Algorithm only supports "AWS4-HMAC-SHA256"')
    if target.value(b"X-Amz-Security-Token") is not None:
        raise S3Error("InvalidToken")
    fields = {
        name: _text(target.value(b"X-Amz-" + name.encode()))
        for name in ("Credential", "SignedHeaders", "Signature", "Expires", "Date")
    }
    if not all(fields.values()):
        raise S3Error(code, "A query parameter of the presigned request is missing.")
    expires = fields["Expires"]
    if not (expires.isascii() and expires.removeprefix("-").isdigit() and len(expires) < 10):
        raise S3Error(code, "X-Amz-Expires should be a number")
    if not 1 <= int(expires) <= MAX_EXPIRES_SECONDS:
        raise S3Error("AccessDenied", "X-Amz-Expires must be between 1 and 604800 seconds")
    signer = _signer(fields["Credential"], fields["SignedHeaders"], code)
    return _claim(signer, fields["Signature"], fields["Date"], code), int(expires)


def _claim(signer: _Signer, signature: str, amz_date: str, code: str) -> _Claim:
    timestamp = parse_amz_date(amz_date)
    if timestamp is None:
        raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date")
    if amz_date[:8] != signer.date:
        raise S3Error(code, "The credential's date is not that of the request.")
    if not _HEX_64.fullmatch(signature):
        raise S3Error("SignatureDoesNotMatch")
    return _Claim(signer, signature, amz_date, timestamp)


@functools.lru_cache(maxsize=256)
def _parse_signer(text: str) -> _Signer:
    """Return what an Authorization without the signature's value says.

    Cached (bounded, I8): it is the same for every request of a day. Refusals are not cached.
    """
    scheme, _, rest = text.partition(" ")
    if scheme != ALGORITHM:
        raise S3Error(
            "InvalidRequest" if scheme in ("AWS", "AWS4-ECDSA-P256-SHA256") else "InvalidArgument",
            "The authorization mechanism you have provided is not supported. "
            "Please use AWS4-HMAC-SHA256.",
        )
    code = "AuthorizationHeaderMalformed"
    items = sorted(item.strip().partition("=") for item in rest.split(","))
    if [name for name, _, _ in items] != ["Credential", "Signature", "SignedHeaders"]:
        raise S3Error(code)
    return _signer(items[0][2], items[2][2], code)


def _signer(credential: str, signed_text: str, code: str) -> _Signer:
    parts = credential.rsplit("/", 4)
    if len(parts) != 5 or parts[3:] != ["s3", "aws4_request"]:
        raise S3Error(code, "The credential is not <key>/<date>/<region>/s3/aws4_request.")
    access_key, date, region = parts[:3]
    names = tuple(signed_text.split(";"))
    if list(names) != sorted(set(names)) or signed_text != signed_text.lower():
        raise S3Error(code, "SignedHeaders must be lower case, sorted and without repetition.")
    scope = f"{date}/{region}/s3/aws4_request"
    return _Signer(access_key, date, region, scope, names, signed_text)


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("latin-1")
