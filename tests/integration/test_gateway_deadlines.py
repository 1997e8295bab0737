"""Slow, idle and half-open clients, and signatures that grew old, on a clock that tests move.

The connections of a worker run here on socket pairs under trio's mock clock: when everybody waits,
time jumps to the next deadline, so a minute takes no time. Threads are no tasks: while one works,
virtual time flies, so what is measured here has no thread in it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import botocore.auth
import pytest
import trio
import trio.testing
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from kvfs.clock import ManualClock, SystemClock, SystemRandomness
from kvfs.config import Credential
from kvfs.model import ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.store.store import Store
from kvfs_gateway.s3.routing import Addressing
from kvfs_gateway.server import body as bodies
from kvfs_gateway.server import connection as connections
from kvfs_gateway.server.access_log import AccessFormat, AccessLog
from kvfs_gateway.server.connection import ConnectionSettings, RequestIds
from kvfs_gateway.server.listener import ConnectionSet, reap_forever
from kvfs_gateway.server.metrics import WorkerMetrics, create_shared
from kvfs_gateway.server.service import Service
from kvfs_gateway.server.transport import PlainTransport
from tests.integration.gateway_process import ACCESS_KEY, SECRET_KEY
from tests.integration.gateway_raw import Reply, parse_replies, signed

HOST = "127.0.0.1:9000"
KEY = ObjectPath(b"bucket", b"key")
NEVER = 1e9
"""More than any limit, and than what passes while a thread works."""
MIB = 1 << 20


@pytest.fixture(scope="module")
def clock() -> ManualClock:
    return ManualClock(SystemClock().now_ns())  # botocore signs with the real time


@pytest.fixture(scope="module")
def store(clock: ManualClock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    path = tmp_path_factory.mktemp("deadlines") / "store"
    init_store(path, capacity_bytes=1 << 30, clock=clock)
    with open_store(path, clock=clock) as opened:
        opened.create_namespace(b"bucket")
        opened.put(KEY, b"old")
        yield opened


@dataclass
class Client:
    """The far end of one served connection."""

    stream: trio.SocketStream

    async def until_cut_off(self, received: bytes = b"") -> tuple[float, list[Reply]]:
        """Return after how many seconds the server ended the connection, and its answers."""
        started = trio.current_time()
        with trio.fail_after(NEVER):
            while True:
                try:
                    piece = await self.stream.receive_some()
                except trio.BrokenResourceError:
                    break
                if not piece:
                    break
                received += piece
        return trio.current_time() - started, list(parse_replies(received))

    async def answer(self) -> Reply:
        """Return the next answer, whole."""
        received = b""
        with trio.fail_after(NEVER):
            while True:
                received += await self.stream.receive_some()
                head, end, body = received.partition(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                if end and len(body) >= (int(length[1]) if length else 0):
                    (reply,) = parse_replies(received)
                    return reply

    async def heads(self, count: int) -> bytes:
        """Return what came when `count` answers' heads are there."""
        received = b""
        with trio.fail_after(NEVER):
            while received.count(b"\r\n\r\n") < count:
                piece = await self.stream.receive_some()
                assert piece, "the server ended the connection"
                received += piece
        return received

    async def is_awaited(self) -> None:
        """Wait until the server asks for the body."""
        with trio.fail_after(NEVER):
            assert (await self.stream.receive_some()).startswith(b"HTTP/1.1 100 ")

    async def trickle(self, data: bytes, every: float) -> float:
        """Send one byte at a time until the server has enough; return how long it took."""
        started = trio.current_time()
        try:
            for byte in data:
                await self.stream.send_all(bytes([byte]))
                await trio.sleep(every)
        except trio.BrokenResourceError:
            pass
        return trio.current_time() - started


@pytest.fixture
async def client(
    store: Store, clock: ManualClock, autojump_clock: trio.testing.MockClock
) -> AsyncIterator[Client]:
    service = Service(store, clock, SystemRandomness(), Credential(ACCESS_KEY, SECRET_KEY))
    shared = create_shared(1)
    settings = ConnectionSettings(
        service,
        Addressing(),
        WorkerMetrics(shared, 0),
        AccessLog(AccessFormat.NONE, clock, lambda _: None),
        RequestIds(0),
    )
    near, far = socket.socketpair()
    near.setblocking(False)
    served = ConnectionSet()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.idle.serve)
        nursery.start_soon(served.serve, near, "test", settings, PlainTransport)
        nursery.start_soon(reap_forever, served)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(far)) as stream:
            yield Client(stream)
        nursery.cancel_scope.cancel()
    os.close(shared)


async def test_a_head_is_complete_ten_seconds_after_its_first_byte(
    client: Client, autojump_clock: trio.testing.MockClock
) -> None:
    head = signed(HOST, "GET", "/bucket/key").raw()
    taken = await client.trickle(head[:-1], every=1)
    assert connections.HEAD_SECONDS <= taken <= connections.HEAD_SECONDS + 3


async def test_a_head_in_time_is_answered_however_it_arrives(
    client: Client, autojump_clock: trio.testing.MockClock
) -> None:
    head = signed(HOST, "GET", "/bucket/key").raw()
    await client.trickle(head, every=connections.HEAD_SECONDS / len(head) / 2)
    assert (await client.answer()).body == b"old"


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_an_idle_connection_is_kept_for_a_while(
    client: Client, count: int, autojump_clock: trio.testing.MockClock
) -> None:
    await client.stream.send_all(count * signed(HOST, "GET", "/bucket/missing").raw())
    seconds, replies = await client.until_cut_off()
    assert connections.IDLE_SECONDS <= seconds <= connections.IDLE_SECONDS + 2
    assert [reply.status for reply in replies] == count * [404]


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_i8_a_body_that_trickles_is_cut_off_and_leaves_nothing(
    client: Client, store: Store, is_chunked: bool, autojump_clock: trio.testing.MockClock
) -> None:
    reserved = store.usage().reserved_bytes
    whole = signed(HOST, "PUT", "/bucket/key", payload="UNSIGNED-PAYLOAD", length=8 * MIB)
    if is_chunked:
        whole.headers = [item for item in whole.headers if item[0] != "Content-Length"]
        whole.extra = [("Transfer-Encoding", "chunked")]
    whole.extra.append(("Expect", "100-continue"))
    await client.stream.send_all(whole.head())
    await client.is_awaited()
    pieces = b"1\r\nx\r\n" * 100 if is_chunked else b"x" * 100
    taken = await client.trickle(pieces, every=5)
    # A chunk is written by a thread, during which virtual time flies uncounted: so no closer bound.
    assert bodies.WINDOW_SECONDS <= taken < 5 * len(pieces), "it was cut off before all was sent"
    assert store.get(KEY) == b"old"
    assert store.usage().reserved_bytes == reserved


async def test_a_body_may_be_slow_as_long_as_it_comes(
    client: Client, store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    place, data = ObjectPath(b"bucket", b"slow"), os.urandom(bodies.BUFFER_LENGTH)
    whole = signed(HOST, "PUT", "/bucket/slow", payload="UNSIGNED-PAYLOAD", length=4 * len(data))
    await client.stream.send_all(whole.head())
    for _ in range(4):
        await trio.sleep(bodies.WINDOW_SECONDS - 5)
        await client.stream.send_all(data)
    assert (await client.answer()).status == 200
    assert store.stat(place).size == 4 * len(data)


async def test_a_client_that_does_not_read_is_cut_off(
    client: Client, store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    store.put(ObjectPath(b"bucket", b"large"), bytes(8 * MIB))
    await client.stream.send_all(signed(HOST, "GET", "/bucket/large").raw())
    first = bytes(await client.stream.receive_some(1))
    await trio.sleep(connections.SEND_SECONDS + 2)
    _, replies = await client.until_cut_off(first)
    assert len(replies[0].body) < 8 * MIB


async def test_a_half_open_client_gets_its_answers_and_is_let_go(
    client: Client, autojump_clock: trio.testing.MockClock
) -> None:
    await client.stream.send_all(2 * signed(HOST, "GET", "/bucket/key").raw())
    await client.stream.send_eof()
    _, replies = await client.until_cut_off()
    assert [reply.body for reply in replies] == [b"old", b"old"]


async def test_a_half_open_client_with_half_a_request_is_let_go(
    client: Client, store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    whole = signed(HOST, "PUT", "/bucket/key", body=b"new value")
    await client.stream.send_all(whole.raw()[:-1])
    await client.stream.send_eof()
    _, replies = await client.until_cut_off()
    assert replies == []
    assert store.get(KEY) == b"old"


async def test_a_refused_client_that_keeps_sending_is_not_listened_to_for_long(
    client: Client, autojump_clock: trio.testing.MockClock
) -> None:
    await client.stream.send_all(b"NONSENSE\r\n\r\n")
    assert (await client.answer()).status == 400
    taken = await client.trickle(b"x" * 100, every=0.5)
    assert taken <= connections.LINGER_SECONDS + 3


async def test_a_request_cannot_be_replayed_after_fifteen_minutes(
    client: Client, clock: ManualClock, autojump_clock: trio.testing.MockClock
) -> None:
    whole = signed(HOST, "GET", "/bucket/key").raw()
    statuses = []
    for minutes in (0, 14, 2, -32, 16):
        clock.advance(60 * minutes)
        await client.stream.send_all(whole)
        statuses.append((await client.answer()).status)
    assert statuses == [200, 200, 403, 403, 200]


async def test_a_presigned_url_ends_with_its_last_second(
    client: Client, clock: ManualClock, autojump_clock: trio.testing.MockClock
) -> None:
    unsigned = AWSRequest("GET", f"http://{HOST}/bucket/key")
    credentials = Credentials(ACCESS_KEY, SECRET_KEY)
    botocore.auth.S3SigV4QueryAuth(credentials, "s3", "us-east-1", expires=3600).add_auth(unsigned)
    target = str(unsigned.url).partition(HOST)[2]
    replies = []
    for seconds in (0, 3540, 120, -3660):
        clock.advance(seconds)
        await client.stream.send_all(f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        replies.append(await client.answer())
    assert [reply.status for reply in replies] == [200, 200, 403, 200]
    assert replies[2].code == "AccessDenied"


# -- a connection whose last request was a HEAD waits beside the others, without its task

HEAD = signed(HOST, "HEAD", "/bucket/key").raw()


@pytest.fixture
async def asked(client: Client) -> Client:
    """A client that has had an answer to a HEAD."""
    await client.stream.send_all(HEAD)
    await client.heads(1)
    return client


async def test_a_connection_that_asks_heads_is_kept_for_a_while(
    asked: Client, autojump_clock: trio.testing.MockClock
) -> None:
    for _ in range(3):
        await trio.sleep(connections.IDLE_SECONDS - 5)
        await asked.stream.send_all(HEAD)
        await asked.heads(1)
    seconds, replies = await asked.until_cut_off()
    assert connections.IDLE_SECONDS <= seconds <= connections.IDLE_SECONDS + 2
    assert not replies


async def test_a_head_that_trickles_after_a_head_is_cut_off_in_time(
    asked: Client, autojump_clock: trio.testing.MockClock
) -> None:
    taken = await asked.trickle(HEAD[:-1], every=1)
    assert connections.HEAD_SECONDS <= taken <= connections.HEAD_SECONDS + 3


async def test_any_request_may_follow_a_head(
    asked: Client, store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    put = signed(HOST, "PUT", "/bucket/key", body=b"new").raw()
    get = signed(HOST, "GET", "/bucket/key").raw()
    for request, body in ((get, b"old"), (put, b""), (get, b"new")):
        await asked.stream.send_all(request)
        answer = await asked.answer()
        assert (answer.status, answer.body) == (200, body)
        await asked.stream.send_all(HEAD)
        await asked.heads(1)
    await asked.stream.send_all(HEAD * 3 + get)
    received = await asked.heads(4)
    assert received.endswith(b"new")
    await asked.stream.send_all(b"HEAD nonsense\r\n\r\n")
    assert (await asked.answer()).status == 400


async def test_a_head_may_be_the_last_request(
    asked: Client, autojump_clock: trio.testing.MockClock
) -> None:
    last = signed(HOST, "HEAD", "/bucket/missing", {"Connection": "close"}).raw()
    await asked.stream.send_all(last)
    assert b"404" in await asked.heads(1)
    seconds, replies = await asked.until_cut_off()
    assert seconds < 1
    assert not replies


async def test_a_half_open_client_gets_the_answer_to_its_head(
    asked: Client, autojump_clock: trio.testing.MockClock
) -> None:
    await asked.stream.send_all(HEAD)
    await asked.stream.send_eof()
    await asked.heads(1)
    assert (await asked.until_cut_off())[0] < 1


async def test_a_client_that_asks_heads_and_reads_none_is_cut_off(
    asked: Client, autojump_clock: trio.testing.MockClock
) -> None:
    started = trio.current_time()
    with pytest.raises(trio.BrokenResourceError):
        await asked.stream.send_all(HEAD * 20_000)
    assert trio.current_time() - started <= connections.SEND_SECONDS + 3
