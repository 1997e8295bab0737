"""One loop serves all connections of a worker: no client and no disk may keep it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from kvfs.clock import SystemClock, SystemRandomness
from kvfs.config import Credential
from kvfs.model import ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.store.store import Store
from kvfs_gateway.s3.head import Framing, Head
from kvfs_gateway.s3.routing import Addressing
from kvfs_gateway.s3.sigv4 import Authentication, Payload
from kvfs_gateway.server.access_log import AccessFormat, AccessLog
from kvfs_gateway.server.body import CHUNKED_LENGTH, BufferPool, RequestBody
from kvfs_gateway.server.connection import ConnectionSettings, RequestIds
from kvfs_gateway.server.listener import ConnectionSet
from kvfs_gateway.server.metrics import WorkerMetrics, create_shared
from kvfs_gateway.server.page_cache import is_cached
from kvfs_gateway.server.service import LOAD_THREADS, Service
from kvfs_gateway.server.transport import PlainTransport, Transport
from tests.integration.gateway_process import ACCESS_KEY, ENGINE_BUCKET, SECRET_KEY
from tests.integration.gateway_raw import parse_replies, signed

SECONDS = 20
LENGTH = 1 << 20
COLD_READERS = 16
PIPELINED = 200
HOST = "127.0.0.1:9000"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    init_store(tmp_path / "store", capacity_bytes=1 << 30)
    with open_store(tmp_path / "store") as opened:
        opened.create_namespace(ENGINE_BUCKET.encode())
        for name in (b"cold", b"hot"):
            opened.put(ObjectPath(ENGINE_BUCKET.encode(), name), name[:1] * LENGTH)
        yield opened


def make_cold(store: Store, key: bytes) -> None:
    with store.open_read(ObjectPath(ENGINE_BUCKET.encode(), key)) as view:
        os.fsync(view.fd)
        os.posix_fadvise(view.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if is_cached(view.fd, 0, LENGTH):
            pytest.skip("this filesystem keeps its pages in memory whatever one asks")


class Server:
    """Connections of one worker, without its listener."""

    def __init__(self, store: Store, nursery: trio.Nursery) -> None:
        clock = SystemClock()
        credential = Credential(ACCESS_KEY, SECRET_KEY)
        self.service = Service(store, clock, SystemRandomness(), credential)
        self._nursery = nursery
        self._served = ConnectionSet()
        nursery.start_soon(self._served.idle.serve)
        self.let_heads_in = self._served.idle.take_turns
        self._settings = ConnectionSettings(
            self.service,
            Addressing(),
            WorkerMetrics(create_shared(1), 0),
            AccessLog(AccessFormat.NONE, clock, lambda _: None),
            RequestIds(1),
        )

    def connect(self) -> trio.socket.SocketType:
        """Return the client's side of a new connection."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._nursery.start_soon(self._served.serve, theirs, "peer", self._settings, PlainTransport)
        return trio.socket.from_stdlib_socket(ours)

    async def ask(self, method: str, key: str) -> tuple[int, bytes]:
        """Send one request on a connection of its own; return status and body."""
        with self.connect() as sock:
            request = signed(HOST, method, f"/{ENGINE_BUCKET}/{key}", {"Connection": "close"})
            await sock.send(request.raw())
            received = b""
            while data := await sock.recv(1 << 20):
                received += data
        (reply,) = parse_replies(received, is_head=method == "HEAD")
        return reply.status, reply.body


@contextlib.asynccontextmanager
async def serving(store: Store) -> AsyncIterator[Server]:
    """Yield a server; its connections end with it."""
    async with trio.open_nursery() as nursery:
        yield Server(store, nursery)
        nursery.cancel_scope.cancel()


async def test_heads_misses_and_hot_reads_are_answered_while_cold_reads_hang(store: Store) -> None:
    make_cold(store, b"cold")
    disk_answers = threading.Event()
    answers: list[tuple[int, bytes]] = []
    with trio.fail_after(SECONDS):
        async with serving(store) as server, trio.open_nursery() as nursery:

            async def read_cold() -> None:
                answers.append(await server.ask("GET", "cold"))

            for _ in range(LOAD_THREADS):  # a disk that hangs holds every thread that reads from it
                nursery.start_soon(server.service.load, disk_answers.wait, SECONDS)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(COLD_READERS):
                nursery.start_soon(read_cold)
            assert (await server.ask("HEAD", "cold"))[0] == 200
            assert (await server.ask("HEAD", "missing"))[0] == 404
            assert (await server.ask("GET", "missing"))[0] == 404
            assert await server.ask("GET", "hot") == (200, b"h" * LENGTH)
            assert not answers
            disk_answers.set()
    assert answers == [(200, b"c" * LENGTH)] * COLD_READERS


async def test_a_client_that_pipelines_takes_turns_with_the_others(store: Store) -> None:
    head = signed(HOST, "HEAD", f"/{ENGINE_BUCKET}/hot").raw()
    with trio.fail_after(SECONDS):
        async with serving(store) as server:
            with server.connect() as greedy:
                await greedy.send(head * PIPELINED)
                assert (await server.ask("HEAD", "hot"))[0] == 200
                received = await greedy.recv(1 << 20)
                assert received.count(b"HTTP/1.1 200") < PIPELINED // 2
                while received.count(b"HTTP/1.1 200") < PIPELINED:
                    received += await greedy.recv(1 << 20)


async def test_a_task_that_works_for_long_lets_heads_be_answered_meanwhile(store: Store) -> None:
    head = signed(HOST, "HEAD", f"/{ENGINE_BUCKET}/hot").raw()
    with trio.fail_after(SECONDS):
        async with serving(store) as server:
            with server.connect() as client:
                await client.send(head)
                await client.recv(1 << 16)
                await trio.testing.wait_all_tasks_blocked()
                # What follows leaves the loop to nobody: send and receive by the socket itself.
                with socket.fromfd(client.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as direct:
                    direct.send(head)
                    server.let_heads_in()
                    assert direct.recv(1 << 16).startswith(b"HTTP/1.1 200")


class TinyChunks:
    """A peer that has always sent more, in chunks of one byte; counts what was taken."""

    def __init__(self) -> None:
        self.deadline = 0.0
        self.peer = "peer"
        self.direct = None
        self.taken = 0

    async def receive_into(self, buffer: memoryview) -> int:
        unit, length = b"1\r\nx\r\n", len(buffer)
        start = self.taken % len(unit)
        buffer[:] = (unit * (length // len(unit) + 2))[start : start + length]
        self.taken += length
        return length


@pytest.mark.parametrize("is_aws", [False, True])
async def test_a_body_in_tiny_chunks_lets_others_have_a_turn_after_each_piece(is_aws: bool) -> None:
    length = 1 << 30
    framing = Framing.LENGTH if is_aws else Framing.CHUNKED
    headers = {"x-amz-decoded-content-length": str(length)}
    head = Head("PUT", b"/", False, headers, framing, length if is_aws else -1, True, False)
    transport, turns = TinyChunks(), 0
    body = RequestBody(
        cast("Transport", transport), head, bytearray(), BufferPool(), trio.lowlevel.checkpoint
    )
    payload = Payload.STREAMING_UNSIGNED_TRAILER if is_aws else Payload.UNSIGNED
    body.begin(Authentication("key", payload, "", None, False))

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            for number in range(1, 4):
                assert await body.read()
                assert turns >= number - 1  # who goes first among two is chance
                assert transport.taken <= number * CHUNKED_LENGTH
            nursery.cancel_scope.cancel()
    body.close()
