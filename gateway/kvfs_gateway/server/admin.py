"""The admin listener: liveness, readiness, metrics. No S3, no store, no authentication.

Owns three kinds of GET. It is meant for loopback or a cluster's inside; nothing here names a bucket
or a key.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio

from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.head import MAX_HEAD_LENGTH, find_head_end, parse_head
from kvfs_gateway.server.metrics import SharedMetrics
from kvfs_gateway.server.transport import Disconnected, PlainTransport

REQUEST_SECONDS = 5.0
MAX_CONNECTIONS = 64
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


async def serve_admin(
    listener: socket.socket, metrics: SharedMetrics, is_ready: Callable[[], bool]
) -> None:
    """Answer probes and scrapes until cancelled."""
    limiter = trio.CapacityLimiter(MAX_CONNECTIONS)
    async with trio.open_nursery() as nursery:
        while True:
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(listener)
                continue
            except OSError:
                await trio.sleep(0.1)
                continue
            sock.setblocking(False)
            transport = PlainTransport(sock, str(address[0]))
            nursery.start_soon(_serve_one, transport, metrics, is_ready, limiter)


async def _serve_one(
    transport: PlainTransport,
    metrics: SharedMetrics,
    is_ready: Callable[[], bool],
    limiter: trio.CapacityLimiter,
) -> None:
    try:
        async with limiter:
            with trio.move_on_after(REQUEST_SECONDS):
                status, text = await _answer(transport, metrics, is_ready)
                body = text.encode()
                head = (
                    f"HTTP/1.1 {status}\r\nContent-Type: {_TEXT}\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                await transport.send(head.encode("ascii") + body)
                await transport.finish_sending()
    except Disconnected:
        pass
    finally:
        transport.close()


async def _answer(
    transport: PlainTransport, metrics: SharedMetrics, is_ready: Callable[[], bool]
) -> tuple[str, str]:
    inbox = bytearray()
    try:
        while find_head_end(inbox) < 0:
            data = await transport.receive(MAX_HEAD_LENGTH)
            if not data:
                raise Disconnected("no request")
            inbox += data
        head = parse_head(bytes(inbox[: find_head_end(inbox)]))
    except S3Error:
        return "400 Bad Request", "bad request\n"
    path = head.target.partition(b"?")[0]
    if head.method != "GET":
        return "405 Method Not Allowed", "only GET\n"
    if path in (b"/health/live", b"/minio/health/live"):
        return "200 OK", "live\n"
    if path in (b"/health/ready", b"/minio/health/ready"):
        return ("200 OK", "ready\n") if is_ready() else ("503 Service Unavailable", "starting\n")
    if path == b"/metrics":
        return "200 OK", metrics.render()
    return "404 Not Found", "here are /health/live, /health/ready and /metrics\n"
