"""Raw sockets and hand-made requests, for what no honest client would send."""

from __future__ import annotations

import hashlib
import hmac
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from kvfs_gateway.s3.sigv4 import derive_signing_key
from tests.integration.gateway_process import ACCESS_KEY, SECRET_KEY

SECONDS = 20.0
EMPTY = hashlib.sha256(b"").hexdigest()


@dataclass
class Reply:
    """One parsed answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        text = self.body.decode("utf-8", "replace")
        return text.partition("<Code>")[2].partition("</Code>")[0]


@dataclass
class Signed:
    """A signed request that can be bent before it is sent."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    signature: str = ""
    amz_date: str = ""
    extra: list[tuple[str, str]] = field(default_factory=list)

    def head(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in [*self.headers, *self.extra]]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def raw(self) -> bytes:
        return self.head() + self.body


def signed(
    address: str,
    method: str,
    target: str,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    *,
    payload: str = "",
    length: int | None = None,
    secret: str = SECRET_KEY,
    access_key: str = ACCESS_KEY,
) -> Signed:
    """Sign as botocore does; payload: what x-amz-content-sha256 says instead of a hash."""
    request = AWSRequest(method, f"http://{address}{target}", headers=headers or {}, data=body)
    signer = botocore.auth.S3SigV4Auth(Credentials(access_key, secret), "s3", "us-east-1")
    if payload:
        signer.payload = lambda _: payload  # type: ignore[method-assign]
    else:
        request.context["payload_signing_enabled"] = True
    signer.add_auth(request)
    sent = [("Host", address)]
    sent += [(name, str(value)) for name, value in request.headers.items()]
    names = {name.lower() for name, _ in sent}
    if method in ("PUT", "POST") and not names & {"content-length", "transfer-encoding"}:
        sent.append(("Content-Length", str(len(body) if length is None else length)))
    signature = str(request.headers["Authorization"]).rpartition("=")[2]
    return Signed(method, target, sent, body, signature, str(request.headers["X-Amz-Date"]))


def chunked_body(
    request: Signed,
    chunks: Iterable[bytes],
    trailer: tuple[str, str] | None = None,
    *,
    secret: str = SECRET_KEY,
) -> bytes:
    """Return the aws-chunked, signed body that belongs to a signed head."""
    date = request.amz_date[:8]
    key = derive_signing_key(secret, date, "us-east-1")
    scope = f"{date}/us-east-1/s3/aws4_request"
    previous, body = request.signature, b""

    def sign(kind: str, *digests: str) -> str:
        text = "\n".join((kind, request.amz_date, scope, previous, *digests))
        return hmac.new(key, text.encode(), "sha256").hexdigest()

    for chunk in [*chunks, b""]:
        digest = hashlib.sha256(chunk).hexdigest()
        previous = sign("AWS4-HMAC-SHA256-PAYLOAD", EMPTY, digest)
        body += f"{len(chunk):x};chunk-signature={previous}\r\n".encode()
        body += chunk + (b"\r\n" if chunk else b"")
    if trailer is not None:
        line = f"{trailer[0]}:{trailer[1]}"
        digest = hashlib.sha256(f"{line}\n".encode()).hexdigest()
        signature = sign("AWS4-HMAC-SHA256-TRAILER", digest)
        body += f"{line}\r\nx-amz-trailer-signature:{signature}\r\n".encode()
    return body + b"\r\n"


def connect(address: str) -> socket.socket:
    """Return a connected socket with a bounded wait."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=SECONDS)


def exchange(address: str, data: bytes, *, is_head: bool = False) -> list[Reply]:
    """Send `data`, say that no more comes, and return every answer until the server closes."""
    with connect(address) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused in the middle: the answer is what counts
        received = b""
        while True:
            try:
                piece = sock.recv(65536)
            except ConnectionResetError:
                break
            if not piece:
                break
            received += piece
    return list(parse_replies(received, is_head=is_head))


def parse_replies(data: bytes, *, is_head: bool = False) -> Iterable[Reply]:
    """Yield the answers in `data`, interim ones left out."""
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        pairs = (line.partition(":") for line in lines[1:])
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        if status == 100:
            continue
        length = 0 if is_head or status == 304 else int(headers.get("content-length", "0"))
        yield Reply(status, headers, data[:length])
        data = data[length:]


def one(address: str, data: bytes, *, is_head: bool = False) -> Reply:
    """Send `data` and return the only answer."""
    replies = exchange(address, data, is_head=is_head)
    assert len(replies) == 1, replies
    return replies[0]
