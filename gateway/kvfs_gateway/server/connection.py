"""One client connection: heads in, answers out, in order, until either side ends it.

Owns the cycle of a connection and the edge at which foreign exceptions become a 500. Pipelined
requests are answered one after the other; whatever a request left unread is read away when it is
little, and otherwise the connection is closed after the answer, gently, so that it arrives.

A HEAD needs nothing to wait for, so `_answer_head` is no coroutine: it answers inside the
connection's task, and between two requests from idle_connections.py without waking that task.

Holds: an answer is sent completely or the connection is closed; no byte of one request is ever
taken for the next one's head.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

import trio

from kvfs.errors import KvfsError
from kvfs_gateway.s3.errors import ErrorContext, S3Error, render_error
from kvfs_gateway.s3.head import Framing, Head, find_head_end, parse_head
from kvfs_gateway.s3.http_dates import render_http_date
from kvfs_gateway.s3.routing import Addressing
from kvfs_gateway.server.access_log import Access, AccessLog
from kvfs_gateway.server.body import RequestBody
from kvfs_gateway.server.dispatch import answer, health_answer
from kvfs_gateway.server.error_map import to_s3_error
from kvfs_gateway.server.idle_connections import IdleConnections
from kvfs_gateway.server.metrics import WorkerMetrics
from kvfs_gateway.server.response import CONTINUE, XML, Response, render_head
from kvfs_gateway.server.send_object import send_object
from kvfs_gateway.server.service import Service
from kvfs_gateway.server.transport import Disconnected, Transport

log = logging.getLogger(__name__)

HEAD_SECONDS = 10.0
"""From a head's first byte to its last."""
IDLE_SECONDS = 75.0
"""Between two requests; SDK pools keep connections about 60 s."""
SEND_SECONDS = 60.0
"""An answer, or a window of one, must leave within this."""
LINGER_SECONDS = 2.0
DISCARD_LENGTH = 256 * 1024
"""A refused body up to this length is read away to keep the connection."""
LINGER_LENGTH = 4 * 1024 * 1024
RECEIVE_LENGTH = 16 * 1024


_NO_BODY = Head("HEAD", b"/", False, {}, Framing.NONE, 0, True, False)


@dataclass(slots=True)
class RequestIds:
    """Request ids of one worker: 16 hexadecimal digits, random once, then counting."""

    first: int
    count: int = 0

    def next(self) -> str:
        self.count += 1
        return f"{(self.first + self.count) & 0xFFFFFFFFFFFFFFFF:016X}"


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """What all connections of a listener share."""

    service: Service
    addressing: Addressing
    metrics: WorkerMetrics
    access_log: AccessLog
    request_ids: RequestIds
    is_draining: Callable[[], bool] = field(default=lambda: False)


class Connection:
    """Serves one transport until it ends."""

    def __init__(
        self, transport: Transport, settings: ConnectionSettings, idle: IdleConnections
    ) -> None:
        self._transport = transport
        self._direct = transport.direct
        self._idle = idle
        self._settings = settings
        self._service = settings.service
        self._inbox = bytearray()
        self._now = trio.current_time()
        """When the present request began, and between two when the last answer left."""
        self.is_idle = True
        self._was_head = False
        self._unsent = b""
        """What the kernel did not take of an answer given without the task."""
        self._is_over = False
        """Nothing follows the last answer."""
        self._no_body = self._new_body(_NO_BODY)

    async def serve(self) -> None:
        """Answer requests until the peer leaves, errs, or the worker drains."""
        try:
            while await self._serve_one():
                if self._settings.is_draining():
                    break
        except Disconnected:
            pass
        finally:
            self._transport.close()

    async def _serve_one(self) -> bool:
        """Answer one request; return whether another may follow."""
        try:
            head = await self._read_head()
        except S3Error as error:
            request_id = self._settings.request_ids.next()
            await self._send_error(None, error, request_id, keeps_alive=False)
            await self._linger()
            return False
        if head is None:
            return False
        body = self._new_body(head)
        try:
            return await self._answer(head, body)
        finally:
            body.close()
            self.is_idle = True

    def _new_body(self, head: Head) -> RequestBody:
        return RequestBody(
            self._transport, head, self._inbox, self._service.buffers, self._send_continue
        )

    async def _wait_for_request(self) -> bool:
        """Put the first bytes of a request into the inbox; return False when none comes."""
        transport = self._transport
        transport.deadline = self._now + IDLE_SECONDS
        direct = self._direct
        if direct is None or not self._was_head:
            self._inbox += await transport.receive(RECEIVE_LENGTH)
            return bool(self._inbox)
        await self._idle.wait(direct.fileno(), self._take_turn)
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            transport.deadline = trio.current_time() + SEND_SECONDS
            await transport.send(unsent)
        return bool(self._inbox) and not self._is_over

    def _take_turn(self) -> bool:
        """Answer a whole HEAD at once; return False when there is anything else to do."""
        inbox, direct = self._inbox, self._direct
        assert direct is not None, "only such connections wait here"
        try:
            data = direct.receive_now(RECEIVE_LENGTH)
            if data is None:
                return True
            inbox += data
            if not data.startswith(b"HEAD ") or not data.endswith(b"\r\n\r\n"):
                return False
            self._now = trio.current_time()
            try:
                if find_head_end(inbox) != len(inbox):
                    return False
                head = parse_head(data)
            except S3Error:
                return False  # the task finds and answers it
            if head.framing is not Framing.NONE:
                return False
            inbox.clear()
            answer, keeps_alive = self._answer_head(head)
            self._unsent = answer[direct.send_now(answer) :]
        except Disconnected:
            self._is_over = True
            return False
        self._transport.deadline = self._now + IDLE_SECONDS
        self._is_over = not keeps_alive
        return keeps_alive and not self._unsent

    async def _read_head(self) -> Head | None:
        """Return the next head, None when the peer is done. Raises: S3Error, Disconnected."""
        inbox, transport = self._inbox, self._transport
        if inbox:
            await trio.lowlevel.checkpoint()  # a client that pipelines takes turns with others
        elif not await self._wait_for_request():
            return None
        searched = 0
        self._now = trio.current_time()
        transport.deadline = self._now + HEAD_SECONDS
        while True:
            # One empty line before a request is let pass (RFC 9112, 2.2); some clients send it.
            if searched == 0 and inbox.startswith(b"\r\n"):
                del inbox[:2]
            end = find_head_end(inbox, searched)
            if end >= 0:
                self.is_idle = False
                data = bytes(inbox[:end])
                del inbox[:end]
                transport.deadline = math.inf  # each later wait sets its own
                return parse_head(data)
            searched = len(inbox)
            data = await transport.receive(RECEIVE_LENGTH)
            if not data:
                return None
            inbox += data

    def _answer_head(self, head: Head) -> tuple[bytes, bool]:
        """Return the answer to a HEAD without a body, and whether another request may follow."""
        access = Access(self._transport.peer, self._settings.request_ids.next(), head)
        code, keeps_alive = "", head.keeps_alive and not self._settings.is_draining()
        try:
            response = _run_at_once(self._respond(head, self._no_body, access))
        except S3Error as error:
            response = _without_body(error)
            code, keeps_alive = error.code, keeps_alive and not error.closes
        data = self._render_head(head, response, access.request_id, keeps_alive=keeps_alive)
        self._record(access, self._no_body, response.status, 0, code)
        return data, keeps_alive

    async def _answer(self, head: Head, body: RequestBody) -> bool:
        self._was_head = head.method == "HEAD" and head.framing is Framing.NONE
        if self._was_head:
            data, keeps_alive = self._answer_head(head)
            self._transport.deadline = self._now + SEND_SECONDS
            await self._transport.send(data)
            return keeps_alive
        request_id = self._settings.request_ids.next()
        access = Access(self._transport.peer, request_id, head)
        try:
            response = await self._respond(head, body, access)
        except S3Error as error:
            return await self._refuse(head, body, error, access)
        keeps_alive = await self._keeps_alive(head, body)
        await self._send(head, response, request_id, keeps_alive=keeps_alive)
        sent = 0 if head.method == "HEAD" else response.content_length
        self._record(access, body, response.status, sent)
        return keeps_alive

    async def _keeps_alive(self, head: Head, body: RequestBody) -> bool:
        if not head.keeps_alive or self._settings.is_draining():
            return False
        return body.is_at_end or await body.discard(DISCARD_LENGTH)

    async def _respond(self, head: Head, body: RequestBody, access: Access) -> Response:
        """Return the answer. Raises: S3Error, Disconnected; every other error becomes a 500."""
        settings = self._settings
        try:
            if "authorization" not in head.headers and b"/health" in head.target[:14]:
                found = health_answer(head)
                if found is not None:
                    return found
            return await answer(
                self._service, settings.addressing, head, body, access, access.request_id
            )
        except KvfsError as error:
            raise to_s3_error(error) from error
        except (S3Error, Disconnected):
            raise
        except Exception as error:
            # The connection edge: one broken request must not take the worker down.
            log.exception("event=request_failed request_id=%s", access.request_id)
            settings.metrics.count_failure()
            raise S3Error("InternalError", closes=True) from error

    async def _refuse(self, head: Head, body: RequestBody, error: S3Error, access: Access) -> bool:
        keeps_alive = not error.closes and await self._keeps_alive(head, body)
        length = await self._send_error(head, error, access.request_id, keeps_alive=keeps_alive)
        self._record(access, body, error.status, length, error.code)
        if not keeps_alive and not body.is_at_end:
            await self._linger()
        return keeps_alive

    def _record(
        self, access: Access, body: RequestBody, status: int, sent: int, code: str = ""
    ) -> None:
        now = trio.current_time()
        seconds = now - self._now
        self._now = now
        settings = self._settings
        settings.metrics.count_request(access.operation, status, sent, body.received, seconds)
        settings.access_log.write(access, status, sent, seconds, code)

    async def _send_continue(self) -> None:
        await self._transport.send(CONTINUE)

    async def _send(
        self, head: Head | None, response: Response, request_id: str, *, keeps_alive: bool
    ) -> None:
        is_bodyless = (head is not None and head.method == "HEAD") or not response.has_length
        data = self._render_head(head, response, request_id, keeps_alive=keeps_alive)
        self._transport.deadline = trio.current_time() + SEND_SECONDS
        view = response.view
        try:
            if is_bodyless or view is None:
                await self._transport.send(data if is_bodyless else data + response.body)
                return
            await self._transport.send(data, more=True)
            await send_object(
                self._transport,
                self._service,
                view,
                response.offset,
                response.length,
                SEND_SECONDS,
                self._idle.take_turns,
            )
        finally:
            if view is not None:
                view.close()

    def _render_head(
        self, head: Head | None, response: Response, request_id: str, *, keeps_alive: bool
    ) -> bytes:
        return render_head(
            response,
            date=render_http_date(self._service.now_s()),
            request_id=request_id,
            keeps_alive=keeps_alive,
            is_http_1_0=head is not None and head.is_http_1_0,
        )

    async def _send_error(
        self, head: Head | None, error: S3Error, request_id: str, *, keeps_alive: bool
    ) -> int:
        if error.status == 304 or (head is not None and head.method == "HEAD"):
            response = _without_body(error)
            await self._send(head, response, request_id, keeps_alive=keeps_alive)
            return 0
        resource = head.target.partition(b"?")[0].decode("latin-1") if head is not None else "/"
        body = render_error(error, ErrorContext(resource, request_id))
        response = Response(error.status, [XML, *error.headers], body, has_length=True)
        await self._send(head, response, request_id, keeps_alive=keeps_alive)
        return len(body)

    async def _linger(self) -> None:
        """Take in what the peer still sends for a moment: closing now would reset the connection
        and destroy the answer on its way (RFC 9112, 9.6)."""
        await self._transport.finish_sending()
        self._transport.deadline = trio.current_time() + LINGER_SECONDS
        taken = 0
        while taken < LINGER_LENGTH:
            data = await self._transport.receive(RECEIVE_LENGTH)
            if not data:
                return
            taken += len(data)


def _without_body(error: S3Error) -> Response:
    """Return a refusal for who reads no body."""
    return Response(error.status, list(error.headers), has_length=False)


def _run_at_once(answer: Coroutine[object, None, Response]) -> Response:
    """Return what a coroutine returns that has nothing to wait for. Raises: as it does."""
    try:
        answer.send(None)
    except StopIteration as done:
        response: Response = done.value
        return response
    answer.close()
    raise AssertionError("a HEAD waited: its handlers answer from memory and the index alone")
