"""Answers: a status, headers, and bytes or a part of an open object.

Owns how an answer's head is written. Holds: no header value can carry a line break, whatever an
extended attribute or a query parameter held (values with control characters are refused or cleaned
before); a HEAD, 204 or 304 has no body ever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from kvfs.store.read_view import ReadView

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_STATUS_LINES: Mapping[int, str] = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus
}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
XML = ("Content-Type", "application/xml")

Header = tuple[str, str]


@dataclass(slots=True)
class Response:
    """What a handler answers. The connection closes `view` after sending."""

    status: int = 200
    headers: list[Header] = field(default_factory=list)
    body: bytes = b""
    view: ReadView | None = None
    """An object of which `[offset, offset + length)` follows the head."""
    offset: int = 0
    length: int = 0
    has_length: bool = True
    """False where no Content-Length may stand (204, 304)."""

    @property
    def content_length(self) -> int:
        """Bytes that follow the head of an answer to anything but HEAD."""
        return self.length if self.view is not None else len(self.body) or self.length


def xml_response(body: bytes, status: int = 200, headers: Sequence[Header] = ()) -> Response:
    """Return an answer with an XML body."""
    return Response(status, [XML, *headers], body)


def empty_response(status: int = 200, headers: Sequence[Header] = ()) -> Response:
    """Return an answer without a body."""
    return Response(status, list(headers), has_length=status not in (204, 304))


def clean(value: str) -> str:
    """Return `value` fit for a header: control characters become spaces, the rest is latin-1."""
    if value.isascii() and value.isprintable():
        return value
    value = _CONTROL.sub(" ", value)
    return value.encode("utf-8", "replace").decode("latin-1") if not _is_latin(value) else value


def _is_latin(value: str) -> bool:
    return all(ord(character) < 256 for character in value)


def render_head(
    response: Response, *, date: str, request_id: str, keeps_alive: bool, is_http_1_0: bool
) -> bytes:
    """Return the head of `response`, up to and with the empty line."""
    lines = [_STATUS_LINES[response.status]]
    lines += [f"{name}: {value}\r\n" for name, value in response.headers]
    if response.has_length:
        lines.append(f"Content-Length: {response.content_length}\r\n")
    lines.append(f"Date: {date}\r\nx-amz-request-id: {request_id}\r\nServer: kvfs\r\n")
    if not keeps_alive:
        lines.append("Connection: close\r\n")
    elif is_http_1_0:
        lines.append("Connection: keep-alive\r\n")
    lines.append("\r\n")
    return "".join(lines).encode("latin-1")
