"""The access log: one line a request, in the order AWS writes its own, or as JSON.

Owns the formats. Off by default: at 40,000 HEADs a second a line each would be the work. Lines are
collected and written in one call per turn of the worker's timer. Holds: never a secret, a signature
or a query string; a key cannot break out of its line.
"""

from __future__ import annotations

import datetime
import enum
import json
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

from kvfs.clock import Clock
from kvfs_gateway.s3.head import Head
from kvfs_gateway.s3.operations import Operation

MAX_WAITING_LINES = 10_000


class AccessFormat(enum.Enum):
    """How a line is written."""

    NONE = "none"
    AWS = "aws"
    JSON = "json"


@dataclass(slots=True)
class Access:
    """What is known of a request so far."""

    peer: str
    request_id: str
    head: Head
    operation: Operation | None = None
    requester: str = "-"
    bucket: bytes = b""
    key: bytes = b""


class AccessLog:
    """Collects lines; `flush` writes them."""

    def __init__(
        self, form: AccessFormat, clock: Clock, write_lines: Callable[[str], None]
    ) -> None:
        self._form = form
        self._clock = clock
        self._write_lines = write_lines
        self._lines: list[str] = []

    def write(self, access: Access, status: int, length: int, seconds: float, code: str) -> None:
        """Note one answered request."""
        if self._form is AccessFormat.NONE:
            return
        if len(self._lines) >= MAX_WAITING_LINES:
            self.flush()
        render = _render_json if self._form is AccessFormat.JSON else _render_aws
        now_ns = self._clock.now_ns()
        self._lines.append(render(access, status, length, seconds, code, now_ns))

    def flush(self) -> None:
        """Write what was collected."""
        if self._lines:
            lines, self._lines = self._lines, []
            self._write_lines("".join(lines))


def _render_aws(
    access: Access, status: int, length: int, seconds: float, code: str, now_ns: int
) -> str:
    when = datetime.datetime.fromtimestamp(now_ns // 1_000_000_000, datetime.UTC)
    operation = access.operation.value if access.operation else "-"
    key = urllib.parse.quote_from_bytes(access.key, safe="/@") or "-"
    path = access.head.target.partition(b"?")[0].decode("latin-1")
    agent = access.head.get("user-agent", "-").replace('"', "'")
    fields = (
        "kvfs",
        access.bucket.decode("utf-8", "replace").replace(" ", "%20") or "-",
        when.strftime("[%d/%b/%Y:%H:%M:%S +0000]"),
        access.peer,
        access.requester,
        access.request_id,
        f"REST.{access.head.method}.{operation}",
        key,
        f'"{access.head.method} {path} HTTP/1.{0 if access.head.is_http_1_0 else 1}"',
        str(status),
        code or "-",
        str(length),
        "-",
        str(int(seconds * 1000)),
        "-",
        '"-"',
        f'"{agent}"',
        "-",
    )
    return " ".join(fields) + "\n"


def _render_json(
    access: Access, status: int, length: int, seconds: float, code: str, now_ns: int
) -> str:
    return (
        json.dumps(
            {
                "time_ns": now_ns,
                "request_id": access.request_id,
                "peer": access.peer,
                "requester": access.requester,
                "operation": access.operation.value if access.operation else None,
                "method": access.head.method,
                "bucket": access.bucket.decode("utf-8", "replace"),
                "key": access.key.decode("utf-8", "replace"),
                "status": status,
                "code": code or None,
                "sent_bytes": length,
                "seconds": round(seconds, 6),
            }
        )
        + "\n"
    )
