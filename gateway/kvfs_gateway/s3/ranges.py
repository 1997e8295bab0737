"""Byte ranges: the Range header of a read and x-amz-copy-source-range of a copy.

Owns RFC 9110 section 14 as S3 serves it: one range, and anything that is not well formed or names
several is ignored (the whole object follows), while one that cannot be satisfied is 416.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from kvfs_gateway.s3.errors import S3Error

_RANGE = re.compile(r"[bB][yY][tT][eE][sS]=[ \t]*([0-9]{0,19})-([0-9]{0,19})[ \t]*")
_COPY_RANGE = re.compile(r"bytes=([0-9]{1,19})-([0-9]{1,19})")


class ByteRange(NamedTuple):
    """A half-open range `[offset, offset + length)` of an object of `size` bytes."""

    offset: int
    length: int
    size: int

    @property
    def content_range(self) -> str:
        """Value of the Content-Range header."""
        return f"bytes {self.offset}-{self.offset + self.length - 1}/{self.size}"


def parse_range(text: str, size: int) -> ByteRange | None:
    """Return the range asked for, or None when the whole object is to be sent.

    Raises: S3Error InvalidRange (416) when no byte of the object is in it.
    """
    match = _RANGE.fullmatch(text) if text else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = min(int(match[2]), size)
        first = size - length
    else:
        first = int(match[1])
        last = int(match[2]) if match[2] else size - 1
        if match[2] and last < first:
            return None
        length = min(last, size - 1) - first + 1
    if length <= 0:
        raise unsatisfiable(size)
    return ByteRange(first, length, size)


def parse_copy_range(text: str, size: int) -> ByteRange:
    """Return the range of UploadPartCopy. Raises: S3Error InvalidArgument, InvalidRange."""
    match = _COPY_RANGE.fullmatch(text)
    if match is None or int(match[1]) > int(match[2]):
        raise S3Error(
            "InvalidArgument",
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first "
            "and last are the zero-based offsets of the first and last bytes to copy",
        )
    if int(match[2]) >= size:
        raise S3Error(
            "InvalidRange", f"Range specified is not valid for source object of size: {size}"
        )
    return ByteRange(int(match[1]), int(match[2]) - int(match[1]) + 1, size)


def unsatisfiable(size: int) -> S3Error:
    """Return the 416 that tells the object's true size."""
    return S3Error("InvalidRange", headers=(("Content-Range", f"bytes */{size}"),))
