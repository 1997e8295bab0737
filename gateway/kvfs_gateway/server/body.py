"""Request bodies: received, unwrapped, and held to every promise made about them.

Owns the way from the socket to payload slices: HTTP framing, aws-chunked, digests. A handler reads
until the end and then calls `finish`; only if that returns may the bytes become visible (I2).

Holds: never reads into the next request; never more than the declared length; one buffer of 512 KiB
a request, from a bounded pool. Of 128 KiB to 1 MiB it costs the least CPU a GB (bench gateway_put):
smaller ones pay for more calls, larger ones no longer stay in the processor's cache.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import trio

from kvfs_gateway.s3.aws_chunked import AwsChunkedDecoder
from kvfs_gateway.s3.checksums import (
    HEADER_PREFIX,
    Algorithm,
    Hasher,
    decode_checksum,
    decode_md5,
    encode_base64,
    find_algorithm,
    new_hasher,
)
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.head import MAX_BODY_LENGTH, Framing, Head
from kvfs_gateway.s3.sigv4 import Authentication, Payload
from kvfs_gateway.s3.transfer_chunked import TransferChunkedDecoder
from kvfs_gateway.server.transport import Disconnected, Transport

BUFFER_LENGTH = 512 * 1024
MAX_SPARE_BUFFERS = 64
MAX_MD5_LENGTH = 256 * 1024
"""Up to here the ETag is an MD5 as everywhere; above, MD5's 0.4 GB/s would halve a PUT."""
TURN_LENGTH = 1024 * 1024
"""Taken in, written and hashed before other connections get their turn: 0.5 ms. One for each buffer
cost 8 % of a PUT."""
CHUNKED_LENGTH = 256 * 1024
"""At most so much of a body in chunks is taken in between two turns of others: one of chunks of a
byte costs 0.6 ms a KiB to take apart."""
WINDOW_SECONDS = 30.0
"""Waiting that each BUFFER_LENGTH of a body may take (17 KB/s): a byte now and then would hold the
space reserved for the body, and a connection, as long as the client likes."""

_RESERVED_CHECKSUM_HEADERS = frozenset(
    {f"{HEADER_PREFIX}{word}" for word in ("algorithm", "mode", "type")}
)


class BufferPool:
    """Receive buffers of one worker; as many as there are uploads, of which some are kept."""

    def __init__(self) -> None:
        self._spare: list[bytearray] = []

    def take(self) -> bytearray:
        """Return a buffer of BUFFER_LENGTH."""
        return self._spare.pop() if self._spare else bytearray(BUFFER_LENGTH)

    def give_back(self, buffer: bytearray) -> None:
        """Keep a buffer for the next upload."""
        if len(self._spare) < MAX_SPARE_BUFFERS:
            self._spare.append(buffer)


@dataclass(frozen=True, slots=True)
class Digests:
    """What was computed over a body that kept all its promises."""

    md5_hex: str
    """ "" where no MD5 was computed."""
    checksum: tuple[Algorithm, bytes] | None


class RequestBody:
    """The body of one request; read it to its end, then `finish`."""

    def __init__(
        self,
        transport: Transport,
        head: Head,
        inbox: bytearray,
        pool: BufferPool,
        send_continue: Callable[[], Awaitable[None]],
    ) -> None:
        """inbox: what was received behind the head; what follows the body is left in it."""
        self._transport = transport
        self._head = head
        self._inbox = inbox
        self._pool = pool
        self._send_continue = send_continue
        self._needs_continue = head.expects_continue
        self._buffer: bytearray | None = None
        self._left = head.content_length
        self._framing = head.framing
        self._transfer = TransferChunkedDecoder() if head.framing is Framing.CHUNKED else None
        self._aws: AwsChunkedDecoder | None = None
        self._received = 0
        self._window_length = 0
        self._turn_length = 0
        self._window_seconds = WINDOW_SECONDS
        self._md5: Hasher | None = None
        self._md5_wanted = b""
        self._sha256: Hasher | None = None
        self._sha256_wanted = ""
        self._checksum: Hasher | None = None
        self._algorithm: Algorithm | None = None
        self._checksum_wanted = b""
        self._trailer_name = ""

    @property
    def is_at_end(self) -> bool:
        """Whether the wire has nothing more of this body, so the next request may follow."""
        if self._transfer is not None:
            return self._transfer.is_done
        return self._left == 0

    @property
    def received(self) -> int:
        """Payload bytes handed to the reader so far."""
        return self._received

    @property
    def left_on_wire(self) -> int:
        """Bytes still to come; -1 when that is unknown."""
        return -1 if self._transfer is not None and not self.is_at_end else self._left

    def decoded_length(self, authentication: Authentication) -> int | None:
        """Return the payload's length as declared; None where nothing declares it.

        Raises: S3Error MissingContentLength, InvalidArgument.
        """
        declared = self._head.headers.get("x-amz-decoded-content-length")
        if authentication.payload.is_streaming or declared is not None:
            if declared is None:
                raise S3Error("MissingContentLength")
            if not (declared.isascii() and declared.isdigit() and len(declared) < 20):
                raise S3Error("InvalidArgument", "x-amz-decoded-content-length is no number.")
            if int(declared) > MAX_BODY_LENGTH:
                raise S3Error("EntityTooLarge")
            if not authentication.payload.is_streaming and self._framing is Framing.LENGTH:
                return self._left
            return int(declared)
        return None if self._transfer is not None else self._left

    def begin(self, authentication: Authentication, *, wants_md5: bool = False) -> None:
        """Set up every check the headers ask for. Raises: S3Error for promises it cannot hold."""
        self._begin(authentication, self._head.headers, wants_md5=wants_md5)

    def _begin(
        self, authentication: Authentication, headers: Mapping[str, str], *, wants_md5: bool
    ) -> None:
        if authentication.payload.is_streaming:
            length = self.decoded_length(authentication)
            assert length is not None, "a streaming body declares its length"
            names = headers.get("x-amz-trailer", "")
            self._aws = AwsChunkedDecoder(
                authentication.payload, length, authentication.seed, names
            )
        if authentication.payload is Payload.SIGNED:
            self._sha256_wanted = authentication.content_sha256
            self._sha256 = hashlib.sha256()
        if "content-md5" in headers:
            self._md5_wanted = decode_md5(headers["content-md5"])
        if wants_md5 or self._md5_wanted:
            self._md5 = hashlib.md5(usedforsecurity=False)
        self._begin_checksum(headers)

    def _begin_checksum(self, headers: Mapping[str, str]) -> None:
        given = [
            name
            for name in headers
            if name.startswith(HEADER_PREFIX) and name not in _RESERVED_CHECKSUM_HEADERS
        ]
        trailers = [
            name.strip().lower()
            for name in headers.get("x-amz-trailer", "").split(",")
            if name.strip().lower().startswith(HEADER_PREFIX)
        ]
        if len(given) + len(trailers) > 1:
            raise S3Error("InvalidRequest", "Expecting a single x-amz-checksum- header.")
        if trailers and self._aws is None:
            raise S3Error("InvalidRequest", "x-amz-trailer needs a streaming payload.")
        named = headers.get("x-amz-sdk-checksum-algorithm", "")
        for name in (*given, *trailers):
            self._algorithm = find_algorithm(name.removeprefix(HEADER_PREFIX))
            if named and find_algorithm(named) is not self._algorithm:
                raise S3Error("InvalidRequest", "Value for x-amz-sdk-checksum-algorithm is wrong.")
            self._checksum = new_hasher(self._algorithm)
        if given:
            assert self._algorithm is not None, "a given checksum has an algorithm"
            self._checksum_wanted = decode_checksum(self._algorithm, headers[given[0]])
        self._trailer_name = trailers[0] if trailers else ""

    def begin_document(self, authentication: Authentication) -> None:
        """As `begin`, for a body whose checksum headers may speak of something else.

        The x-amz-checksum- headers of CompleteMultipartUpload are those of the object.
        """
        headers = dict(self._head.headers)
        if "uploadId=" in self._head.target.decode("latin-1"):
            headers = {k: v for k, v in headers.items() if not k.startswith(HEADER_PREFIX)}
        self._begin(authentication, headers, wants_md5=False)

    @property
    def was_algorithm_asked_for(self) -> bool:
        """Whether the client sent a checksum of its own."""
        return bool(self._checksum_wanted or self._trailer_name)

    def add_checksum(self, algorithm: Algorithm) -> None:
        """Compute `algorithm` as well, though the client sent no value to compare with."""
        if self._algorithm is None:
            self._algorithm = algorithm
            self._checksum = new_hasher(algorithm)

    @property
    def algorithm(self) -> Algorithm | None:
        """The checksum algorithm in use."""
        return self._algorithm

    async def read(self) -> list[memoryview]:
        """Return the next payload slices, [] at the end; they are valid until the next call.

        Raises: S3Error (framing, chunk signatures), Disconnected.
        """
        while not self.is_at_end:
            if self._needs_continue:
                self._needs_continue = False
                await self._send_continue()
            slices = self._unwrap(await self._receive())
            if slices:
                for piece in slices:
                    self._digest(piece)
                return slices
        return []

    async def _receive(self) -> memoryview:
        """Fill the buffer once, from what came with the head and then from the socket."""
        if self._buffer is None:
            self._buffer = self._pool.take()
        view = memoryview(self._buffer)
        is_chunked = self._transfer is not None or self._aws is not None
        limit = CHUNKED_LENGTH if is_chunked else len(view)
        limit = limit if self._transfer is not None else min(limit, self._left)
        filled = min(len(self._inbox), limit)
        if filled:
            view[:filled] = self._inbox[:filled]
            del self._inbox[:filled]
        started = trio.current_time()
        self._transport.deadline = started + self._window_seconds
        # The end of a chunked body is not known: take what is there instead of waiting for more.
        while filled < limit and not (filled and self._transfer is not None):
            count = await self._transport.receive_into(view[filled:limit])
            if count == 0:
                raise Disconnected("the body ended early")
            filled += count
        self._transport.deadline = math.inf  # what the handler does now has limits of its own
        self._count_window(filled, trio.current_time() - started)
        self._turn_length += filled
        if is_chunked or self._turn_length >= TURN_LENGTH:
            self._turn_length = 0
            await trio.lowlevel.checkpoint()
        return view[:filled]

    def _count_window(self, length: int, seconds: float) -> None:
        self._window_length += length
        self._window_seconds -= seconds
        if self._window_length >= BUFFER_LENGTH:
            self._window_length, self._window_seconds = 0, WINDOW_SECONDS

    def _unwrap(self, data: memoryview) -> list[memoryview]:
        if self._transfer is None:
            self._left -= len(data)
            pieces = [data]
        else:
            pieces, taken = self._transfer.feed(data)
            self._inbox[:0] = data[taken:]
        if self._aws is None:
            self._received += sum(len(piece) for piece in pieces)
            return pieces
        slices: list[memoryview] = []
        for piece in pieces:
            inner, taken = self._aws.feed(piece)
            if taken != len(piece):
                raise S3Error("InvalidRequest", "Bytes follow the last chunk.", closes=True)
            slices += inner
        self._received += sum(len(piece) for piece in slices)
        return slices

    def _digest(self, piece: memoryview) -> None:
        for hasher in (self._md5, self._sha256, self._checksum):
            if hasher is not None:
                hasher.update(piece)

    def finish(self) -> Digests:
        """Compare everything with what was promised.

        Raises: S3Error IncompleteBody, XAmzContentSHA256Mismatch, BadDigest, SignatureDoesNotMatch.
        """
        if not self.is_at_end:
            raise S3Error("IncompleteBody", closes=True)
        trailers = self._aws.finish() if self._aws is not None else {}
        if self._sha256 is not None:
            computed = self._sha256.digest().hex()
            if not hmac.compare_digest(computed, self._sha256_wanted):
                raise S3Error(
                    "XAmzContentSHA256Mismatch",
                    fields=(
                        ("ClientComputedContentSHA256", self._sha256_wanted),
                        ("S3ComputedContentSHA256", computed),
                    ),
                )
        md5 = self._md5.digest() if self._md5 is not None else b""
        if self._md5_wanted and md5 != self._md5_wanted:
            raise S3Error("BadDigest")
        return Digests(md5.hex(), self._finish_checksum(trailers))

    def _finish_checksum(self, trailers: Mapping[str, str]) -> tuple[Algorithm, bytes] | None:
        if self._checksum is None or self._algorithm is None:
            return None
        wanted = self._checksum_wanted
        if self._trailer_name:
            wanted = decode_checksum(self._algorithm, trailers[self._trailer_name])
        computed = self._checksum.digest()
        if wanted and computed != wanted:
            raise S3Error(
                "BadDigest",
                f"The {self._algorithm.name} you specified did not match what we received: "
                f"{encode_base64(computed)}",
            )
        return self._algorithm, computed

    async def read_all(self, limit: int) -> bytes:
        """Return the whole payload, checked. Raises: S3Error MaxMessageLengthExceeded and as read.

        limit: the most bytes a document of this kind may have (I8).
        """
        collected = bytearray()
        while True:
            slices = await self.read()
            if not slices:
                break
            for piece in slices:
                collected += piece
            if len(collected) > limit:
                raise S3Error("MaxMessageLengthExceeded", closes=True)
        self.finish()
        return bytes(collected)

    async def discard(self, limit: int) -> bool:
        """Read away what is left when it is little; return whether the connection is usable."""
        if self.is_at_end:
            return True
        if self._needs_continue or not 0 <= self.left_on_wire <= limit:
            return False
        self._aws = None
        while not self.is_at_end:
            await self._receive_and_forget()
        return True

    async def _receive_and_forget(self) -> None:
        data = await self._receive()
        self._left -= len(data)

    def close(self) -> None:
        """Give the buffer back."""
        if self._buffer is not None:
            buffer, self._buffer = self._buffer, None
            self._pool.give_back(buffer)
