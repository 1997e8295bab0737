"""Compressed block files: layout, ranges, and what damage does."""

from __future__ import annotations

import inspect
import random
import struct

import pytest

from kvfs.codec import frame, numpy_planes, planes
from kvfs.codec.frame import FrameTable, decode_into, encode_block, parse_table
from kvfs.codec.planes import Method, PlaneCodec, take_sample
from kvfs.errors import Corrupt, InvalidArgument
from kvfs.model import Extent


def bf16_noise(count: int, seed: int = 1) -> bytes:
    """Lanes like KV: normal values, so few exponents and random mantissas."""
    generator = random.Random(seed)
    packed = struct.pack(f"<{count}f", *(generator.gauss(0, 1) for _ in range(count)))
    lanes = bytearray(2 * count)
    lanes[0::2], lanes[1::2] = packed[2::4], packed[3::4]
    return bytes(lanes)


def fp8_noise(count: int, seed: int = 1) -> bytes:
    """E4M3 bytes of normal values: sign, four exponent bits, three mantissa bits."""
    generator = random.Random(seed)
    packed = struct.pack(f"<{count}f", *(generator.gauss(0, 1) for _ in range(count)))
    words = struct.unpack(f"<{count}I", packed)
    return bytes(
        word >> 31 << 7 | max(0, min(15, (word >> 23 & 255) - 120)) << 3 | word >> 20 & 7
        for word in words
    )


def assemble(data: bytes, method: Method, *, frame_size_log: int = 12) -> bytes:
    file = bytearray()
    for piece in encode_block(data, method, frame_size_log=frame_size_log):
        end = piece.offset + len(piece.data)
        file.extend(bytes(max(0, end - len(file))))
        file[piece.offset : end] = piece.data
    return bytes(file)


class CountingFile:
    """A file in memory that remembers which ranges were read."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.reads: list[Extent] = []

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads.append(Extent(offset, length))
        return self.content[offset : offset + length]

    def open(self) -> FrameTable:
        return parse_table(self.read_at, len(self.content))


def decode_all(content: bytes) -> bytes:
    file = CountingFile(content)
    table = file.open()
    out = bytearray(table.logical_size)
    decode_into(table, file.read_at, Extent(0, table.logical_size), memoryview(out))
    return bytes(out)


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("size", [0, 1, 2, 4095, 4096, 4097, 20_001])
def test_a_block_comes_back_as_it_was(method: Method, size: int) -> None:
    data = bf16_noise(size // 2 + 1)[:size]
    assert decode_all(assemble(data, method)) == data


def test_a_range_touches_only_its_own_frames() -> None:
    data = bf16_noise(40_000)
    file = CountingFile(assemble(data, Method.PLANES))
    table = file.open()
    file.reads.clear()
    out = bytearray(5000)
    assert decode_into(table, file.read_at, Extent(10_000, 5000), memoryview(out)) == 5000
    assert out == data[10_000:15_000]
    touched = [table.frames[2], table.frames[3]]
    assert file.reads == [Extent(each.offset, each.stored_length) for each in touched]


def test_a_range_past_the_end_is_cut_there() -> None:
    data = bf16_noise(3000)
    file = CountingFile(assemble(data, Method.PLANES))
    table, out = file.open(), bytearray(10_000)
    assert decode_into(table, file.read_at, Extent(5990, 1000), memoryview(out)) == 10
    assert decode_into(table, file.read_at, Extent(6000, 10), memoryview(out)) == 0
    assert out[:10] == data[5990:]


def test_a_table_longer_than_the_opening_read_is_read_in_two() -> None:
    data = bytes(4096 * 600)
    file = CountingFile(assemble(data, Method.ZSTD))
    assert len(file.open().frames) == 600
    assert len(file.reads) == 2


def test_incompressible_frames_are_stored_raw_and_cost_only_their_rows() -> None:
    data = random.Random(3).randbytes(20_000)
    content = assemble(data, Method.HUFFMAN)
    assert len(content) == frame.body_offset(5) + len(data)
    assert {row.method for row in CountingFile(content).open().frames} == {Method.RAW}


def test_i1_no_single_bit_flip_anywhere_in_a_compressed_block_goes_unnoticed() -> None:
    data = bf16_noise(10_000)
    content = assemble(data, Method.PLANES)
    generator = random.Random(5)
    for bit in generator.sample(range(8 * len(content)), 2000):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            decode_all(bytes(damaged))


def test_i1_a_block_cut_short_or_lengthened_is_corrupt() -> None:
    content = assemble(bf16_noise(6000), Method.PLANES)
    for damaged in (*(content[:length] for length in range(0, len(content), 97)), content + b"x"):
        with pytest.raises(Corrupt):
            decode_all(damaged)


def test_i1_swapped_frames_of_one_block_are_corrupt() -> None:
    data = random.Random(4).randbytes(8192)
    content = bytearray(assemble(data, Method.RAW))
    start = frame.body_offset(2)
    content[start : start + 4096], content[start + 4096 :] = data[4096:], data[:4096]
    with pytest.raises(Corrupt):
        decode_all(bytes(content))


def test_i8_a_frame_that_claims_to_expand_to_a_terabyte_is_refused_before_allocating() -> None:
    # A zstd frame header with an 8-byte content size of 2^40 and no blocks.
    bomb = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + b"\x01\x00\x00"
    with pytest.raises(Corrupt):
        PlaneCodec().decode(bomb, Method.ZSTD, memoryview(bytearray(4096)))


def test_i8_a_frame_size_out_of_range_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        list(encode_block(b"x", Method.RAW, frame_size_log=40))


def test_sixteen_bit_floats_are_chosen_as_planes_and_reach_the_ratio() -> None:
    data = bf16_noise(200_000)
    assert frame.choose_method(data) is Method.PLANES
    assert len(data) / len(assemble(data, Method.PLANES, frame_size_log=20)) > 1.45


def test_eight_bit_floats_text_and_noise_are_told_apart() -> None:
    assert frame.choose_method(fp8_noise(200_000)) is Method.HUFFMAN
    assert frame.choose_method(inspect.getsource(frame).encode()) is Method.ZSTD
    assert frame.choose_method(random.Random(1).randbytes(300_000)) is Method.RAW
    assert frame.choose_method(b"") is Method.RAW


def test_an_even_header_before_the_lanes_does_not_disturb_the_choice() -> None:
    assert frame.choose_method(bytes(range(28)) + bf16_noise(200_000)) is Method.PLANES


def test_a_sample_is_bounded_and_starts_every_piece_at_an_even_offset() -> None:
    data = bytes(range(256)) * 4001 + b"x"
    sample = take_sample(data)
    assert len(sample) == 64 * 1024
    assert all(sample[start] % 2 == 0 for start in range(0, len(sample), 4096))


@pytest.mark.parametrize("count", [0, 1, 31, 4096, (1 << 17) + 5])
def test_both_implementations_of_the_planes_agree(count: int) -> None:
    lanes = random.Random(count).randbytes(2 * count)
    results = []
    for split, join in (
        (planes.split_lanes, planes.join_lanes),
        (numpy_planes.split_lanes, numpy_planes.join_lanes),
    ):
        upper, lower, back = bytearray(count), bytearray(count), bytearray(2 * count)
        split(lanes, upper, lower)
        join(upper, lower, back)
        assert back == lanes
        results.append((bytes(upper), bytes(lower)))
    assert results[0] == results[1]


def test_planes_of_unequal_length_are_refused_rather_than_read_past() -> None:
    for join in (planes.join_lanes, numpy_planes.join_lanes):
        with pytest.raises(ValueError, match="lengths"):
            join(bytes(4), bytes(4), bytearray(6))


def test_a_bf16_value_keeps_all_eight_exponent_bits_in_one_plane() -> None:
    upper, lower = bytearray(1), bytearray(1)
    planes.split_lanes(struct.pack("<H", 0b1_10000001_0000101), upper, lower)
    assert (upper[0], lower[0]) == (0b10000001, 0b1_0000101)
