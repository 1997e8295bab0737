"""HTTP's own chunked transfer coding (RFC 9112, 7.1), decoded as bytes arrive.

Owns the coding that `Transfer-Encoding: chunked` names; it is another thing than aws-chunked, which
aws-sdk-cpp puts inside it. Holds: sizes are 1-15 hexadecimal digits, a line is at most 256 bytes,
the trailer section at most 4 KiB (I8); trailers are dropped, S3's own travel in aws-chunked.
"""

from __future__ import annotations

import enum
import re

from kvfs_gateway.s3.head import refuse

_MAX_LINE = 256
_MAX_TRAILER = 4096
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e]*)?\r\n")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n")


class _State(enum.Enum):
    SIZE = 0
    DATA = 1
    DATA_END = 2
    TRAILER = 3
    DONE = 4


class TransferChunkedDecoder:
    """Feed it what the socket gave; it returns payload slices and tells how much it consumed."""

    def __init__(self) -> None:
        self._state = _State.SIZE
        self._line = bytearray()
        self._left = 0
        self._trailer_length = 0

    @property
    def is_done(self) -> bool:
        """True once the last chunk and the trailer section were read; later bytes are not ours."""
        return self._state is _State.DONE

    def feed(self, data: memoryview) -> tuple[list[memoryview], int]:
        """Return the payload slices of `data` and how many of its bytes belong to this body.

        Copies: none; the slices alias `data`. Raises: S3Error (closes) outside the grammar.
        """
        slices: list[memoryview] = []
        position = 0
        while position < len(data) and self._state is not _State.DONE:
            if self._state is _State.DATA:
                piece = data[position : position + self._left]
                slices.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if self._left == 0:
                    self._state = _State.DATA_END
                continue
            position = self._take_line(data, position)
        return slices, position

    def _take_line(self, data: memoryview, position: int) -> int:
        window = bytes(data[position : position + _MAX_LINE])
        end = window.find(b"\n")
        taken = window if end < 0 else window[: end + 1]
        self._line += taken
        if len(self._line) > (_MAX_TRAILER if self._state is _State.TRAILER else _MAX_LINE):
            raise refuse("A chunk header is too long.")
        if end >= 0:
            line = bytes(self._line)
            self._line.clear()
            self._end_of_line(line)
        return position + len(taken)

    def _end_of_line(self, line: bytes) -> None:
        if self._state is _State.DATA_END:
            if line != b"\r\n":
                raise refuse("A chunk is longer than its size says.")
            self._state = _State.SIZE
        elif self._state is _State.SIZE:
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise refuse("A chunk size is malformed.")
            self._left = int(match[1], 16)
            self._state = _State.DATA if self._left else _State.TRAILER
        elif line == b"\r\n":
            self._state = _State.DONE
        else:
            self._trailer_length += len(line)
            if _TRAILER_LINE.fullmatch(line) is None or self._trailer_length > _MAX_TRAILER:
                raise refuse("The trailer section is malformed.")
