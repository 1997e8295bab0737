"""aws-chunked bodies: payload, chunk signatures and trailers, decoded as bytes arrive.

Owns the inner framing of the four streaming forms: signed, signed with trailer, unsigned with
trailer, and any of them inside HTTP's own chunked coding (that is transfer_chunked.py). Knows no
socket. The payload is handed out before its chunk's signature is known, so the receiver must not
publish before `finish()` returned.

Holds: the sum of the chunks is exactly the declared length; signatures chain from the request's
seed; a chunk header is at most 1 KiB, the trailer at most 4 KiB with at most 16 lines (I8).
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
from collections.abc import Mapping

from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.sigv4 import ChunkSeed, Payload

_MAX_LINE = 1024
_MAX_TRAILER = 4096
_MAX_TRAILER_LINES = 16
_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_SIGNED_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15});chunk-signature=([0-9a-f]{64})\r\n")
_UNSIGNED_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_TRAILER_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x20-\x7e]*?)[ \t]*\n?\r\n")
"""The optional LF before CRLF: minio-go ends its trailer line that way."""
_TRAILER_SIGNATURE = "x-amz-trailer-signature"


class _State(enum.Enum):
    SIZE = 0
    DATA = 1
    DATA_END = 2
    TRAILER = 3
    DONE = 4


def _malformed(message: str) -> S3Error:
    return S3Error("InvalidRequest", message, closes=True)


class AwsChunkedDecoder:
    """Feed it the body; it returns payload slices and, at the end, the trailers."""

    def __init__(
        self, payload: Payload, decoded_length: int, seed: ChunkSeed | None, trailer_names: str
    ) -> None:
        """trailer_names: the x-amz-trailer header; only these names may follow the last chunk."""
        self._is_signed = payload is not Payload.STREAMING_UNSIGNED_TRAILER
        self._has_trailer = payload is not Payload.STREAMING_SIGNED
        names = (name.strip().lower() for name in trailer_names.split(","))
        self._expected = frozenset(name for name in names if name)
        if self._is_signed and seed is None:
            raise S3Error("AccessDenied", "A signed streaming body needs a version-4 signature.")
        self._seed = seed
        self._previous = seed.signature if seed else ""
        self._claimed = ""
        self._hash = hashlib.sha256()
        self._state = _State.SIZE
        self._line = bytearray()
        self._left = 0
        self._undecoded = decoded_length
        self._trailer_length = 0
        self._trailers: dict[str, str] = {}
        self._trailer_signature = ""

    @property
    def is_done(self) -> bool:
        """True once the body ended; bytes after that are not part of it."""
        return self._state is _State.DONE

    def feed(self, data: memoryview) -> tuple[list[memoryview], int]:
        """Return the payload slices of `data`, and how many of its bytes belong to this body.

        Copies: none; the slices alias `data`. Raises: S3Error.
        """
        slices: list[memoryview] = []
        position = 0
        while position < len(data) and self._state is not _State.DONE:
            if self._state is _State.DATA:
                piece = data[position : position + self._left]
                self._take_payload(piece)
                slices.append(piece)
                position += len(piece)
            else:
                position = self._take_line(data, position)
        return slices, position

    def finish(self) -> Mapping[str, str]:
        """Return the trailers by lower-case name. Raises: S3Error IncompleteBody."""
        if self._state is not _State.DONE:
            raise S3Error("IncompleteBody", closes=True)
        if self._undecoded:
            raise S3Error(
                "IncompleteBody", "The body is shorter than x-amz-decoded-content-length."
            )
        return self._trailers

    def _take_payload(self, piece: memoryview) -> None:
        if self._is_signed:
            self._hash.update(piece)
        self._left -= len(piece)
        if self._left == 0:
            self._state = _State.DATA_END

    def _take_line(self, data: memoryview, position: int) -> int:
        window = bytes(data[position : position + _MAX_LINE])
        end = window.find(b"\n")
        # A trailer line may hold an LF of its own before its CRLF (see _TRAILER_LINE).
        while end >= 0 and not (bytes(self._line[-1:]) + window[: end + 1]).endswith(b"\r\n"):
            end = window.find(b"\n", end + 1)
        taken = window if end < 0 else window[: end + 1]
        self._line += taken
        if len(self._line) > _MAX_LINE:
            raise _malformed("A chunk header is too long.")
        if end >= 0:
            line = bytes(self._line)
            self._line.clear()
            self._end_of_line(line)
        return position + len(taken)

    def _end_of_line(self, line: bytes) -> None:
        if self._state is _State.SIZE:
            self._begin_chunk(line)
        elif self._state is _State.DATA_END:
            self._end_chunk(line)
        elif line == b"\r\n":
            self._end_trailer()
        else:
            self._take_trailer(line)

    def _begin_chunk(self, line: bytes) -> None:
        match = (_SIGNED_SIZE if self._is_signed else _UNSIGNED_SIZE).fullmatch(line)
        if match is None:
            raise _malformed("A chunk header is malformed.")
        self._claimed = match[2].decode("ascii") if self._is_signed else ""
        self._left = int(match[1], 16)
        if self._left > self._undecoded:
            raise _malformed("The body is longer than x-amz-decoded-content-length.")
        self._undecoded -= self._left
        if self._left:
            self._state = _State.DATA
            return
        self._check_chunk()
        self._state = _State.TRAILER

    def _end_chunk(self, line: bytes) -> None:
        if line != b"\r\n":
            raise _malformed("A chunk is longer than its size says.")
        self._check_chunk()
        self._state = _State.SIZE

    def _check_chunk(self) -> None:
        if self._seed is None or not self._is_signed:
            return
        digest = self._hash.hexdigest()
        self._hash = hashlib.sha256()
        lines = ("AWS4-HMAC-SHA256-PAYLOAD", self._previous, _EMPTY_SHA256, digest)
        self._check(lines, self._claimed)

    def _check(self, lines: tuple[str, ...], claimed: str) -> None:
        assert self._seed is not None, "only signed bodies are checked"
        kind, *rest = lines
        text = "\n".join((kind, self._seed.amz_date, self._seed.scope, *rest)).encode("ascii")
        wanted = hmac.digest(self._seed.signing_key, text, "sha256").hex()
        if not hmac.compare_digest(wanted, claimed):
            raise S3Error("SignatureDoesNotMatch", closes=True)
        self._previous = wanted

    def _take_trailer(self, line: bytes) -> None:
        self._trailer_length += len(line)
        match = _TRAILER_LINE.fullmatch(line)
        if match is None or self._trailer_length > _MAX_TRAILER or not self._has_trailer:
            raise _malformed("The trailer is malformed.")
        name, value = match[1].decode("ascii").lower(), match[2].decode("ascii")
        if self._trailer_signature:
            raise _malformed("A trailer follows the trailer's signature.")
        if name == _TRAILER_SIGNATURE and self._is_signed:
            self._trailer_signature = value
        elif name not in self._expected or name in self._trailers:
            raise _malformed("A trailer was not announced by x-amz-trailer, or occurs twice.")
        elif len(self._trailers) >= _MAX_TRAILER_LINES:
            raise _malformed("Too many trailers.")
        else:
            self._trailers[name] = value

    def _end_trailer(self) -> None:
        if self._has_trailer and set(self._trailers) != self._expected:
            raise _malformed("A trailer announced by x-amz-trailer is missing.")
        if self._has_trailer and self._is_signed and self._expected:
            canonical = "".join(f"{name}:{value}\n" for name, value in self._trailers.items())
            digest = hashlib.sha256(canonical.encode("ascii")).hexdigest()
            lines = ("AWS4-HMAC-SHA256-TRAILER", self._previous, digest)
            self._check(lines, self._trailer_signature)
        self._state = _State.DONE
