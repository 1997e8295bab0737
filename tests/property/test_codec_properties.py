"""Frames under arbitrary content, extents and damage."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from kvfs.codec.frame import decode_frames, decode_into, encode_block, parse_table
from kvfs.codec.planes import Method, PlaneCodec
from kvfs.errors import Corrupt
from kvfs.model import Extent


def assemble(data: bytes, method: Method) -> bytes:
    pieces = [(p.offset, bytes(p.data)) for p in encode_block(data, method, frame_size_log=12)]
    return b"".join(content for _, content in sorted(pieces))


contents = st.builds(
    lambda seed, size, alphabet: bytes(random.Random(seed).choices(range(alphabet), k=size)),
    st.integers(0, 999),
    st.integers(0, 20_000),
    st.sampled_from([1, 4, 60, 256]),
)


@settings(deadline=None, max_examples=60)
@given(contents, st.sampled_from(Method), st.integers(0, 21_000), st.integers(0, 21_000))
def test_any_extent_of_any_block_reads_like_the_plain_bytes(
    data: bytes, method: Method, offset: int, length: int
) -> None:
    content = assemble(data, method)

    def read_at(at: int, size: int) -> bytes:
        return content[at : at + size]

    table = parse_table(read_at, len(content))
    out = bytearray(length)
    count = decode_into(table, read_at, Extent(offset, length), memoryview(out))
    assert out[:count] == data[offset : offset + length]
    assert b"".join(bytes(each) for each in decode_frames(table, read_at)) == data


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=3000), st.sampled_from(Method), st.integers(0, 5000))
def test_garbage_yields_only_corrupt(garbage: bytes, method: Method, length: int) -> None:
    out = memoryview(bytearray(length))
    try:
        PlaneCodec().decode(garbage, method, out)
    except Corrupt:
        pass
    else:
        assert len(garbage) == length or method is not Method.RAW


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400), st.booleans())
def test_a_garbage_file_yields_only_corrupt(garbage: bytes, with_magic: bool) -> None:
    content = b"KVFSFRM1" + garbage if with_magic else garbage

    def read_at(at: int, size: int) -> bytes:
        return content[at : at + size]

    try:
        parse_table(read_at, len(content))
    except Corrupt:
        return
    raise AssertionError("garbage was taken for a table")
