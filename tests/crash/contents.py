"""The bytes that crash workers store: numbered, so any reader can tell them from others."""

from __future__ import annotations

import random
import struct
from functools import cache

HEADER = struct.Struct("<8sI")
MAGIC = b"kvfs-ct1"
SIZES = (0, 12, 700, 5_000, 70_000, 300_000, 1_200_000)
"""Nothing, a few bytes, under and over a sector, hashed by threads, preallocated."""
COUNT = 28


@cache
def content(number: int) -> bytes:
    """Return the bytes of content `number`; those of size 0 are one content: number 0."""
    size = SIZES[number % len(SIZES)]
    if not size:
        return b""
    body = random.Random(number).randbytes(size - HEADER.size)
    if number // len(SIZES) % 2:  # every second one of a size can be compressed
        body = bytes(byte & 7 for byte in body)
    return HEADER.pack(MAGIC, number) + body


def number_of(data: bytes) -> int:
    """Return which content `data` is; -1 when it is none (torn, mixed, or another's bytes)."""
    if not data:
        return 0
    if len(data) < HEADER.size:
        return -1
    magic, number = HEADER.unpack_from(data)
    return number if magic == MAGIC and number < COUNT and content(number) == data else -1


def draw(chance: random.Random) -> int:
    """Return a content's number; large ones less often, and one name for the empty one."""
    number = chance.randrange(COUNT)
    if SIZES[number % len(SIZES)] > 100_000 and chance.random() < 0.6:
        number = chance.randrange(COUNT)
    return number if SIZES[number % len(SIZES)] else 0
