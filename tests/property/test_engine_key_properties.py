"""Engine names under arbitrary bytes and arbitrary ranks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvfs.engine_keys import Engine, group_of, parse_key

PIECES = [
    b"/", b"@", b"_", b"-", b".bin", b".data", b"_k", b"_v", b"a" * 64, b"0" * 12, b"_r1", b"_g0",
    b"abc", b"de", b"1", b"0x01000100", b"rank_1", b"tp_2", b"block_size_16", b"half", b"m",
    b".safetensors", b"\x00", b"\xff", b"%",
]  # fmt: skip
names = st.one_of(
    st.binary(max_size=300), st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)
)
models = st.from_regex(rb"[A-Za-z][A-Za-z0-9.\-]{0,20}", fullmatch=True)
hashes = st.binary(min_size=32, max_size=32).map(lambda raw: raw.hex().encode())
ranks = st.integers(0, 255)


@given(names)
def test_any_name_parses_and_both_ways_agree(name: bytes) -> None:
    key = parse_key(name)
    assert group_of(name) == key.group
    assert (key.engine is Engine.UNKNOWN) == (key.group == name)


@given(models, hashes, ranks, ranks)
def test_the_rank_never_reaches_the_group(model: bytes, block: bytes, one: int, two: int) -> None:
    shapes = (
        b"%s@256@%d@%s@half.data",
        b"%s@0xff%02x0000@0@%s.data",
        b"%s_0123456789ab_r%d/abc/de_g0/%s.bin",
        b"%s/block_size_4/tp_8/rank_%d/bf16/abc/de/%s.bin",
    )
    for shape in shapes:
        groups = {group_of(shape % (model, rank, block)) for rank in (one, two)}
        assert len(groups) == 1
        assert parse_key(shape % (model, one, block)).rank == one


@given(models, hashes, hashes)
def test_the_hash_always_reaches_the_group(model: bytes, one: bytes, two: bytes) -> None:
    for shape in (b"%s@2@0@%s@half", b"%s_%s_0_k", b"%s_0123456789ab_r0/abc/de_g0/%s.bin"):
        assert (group_of(shape % (model, one)) == group_of(shape % (model, two))) == (one == two)
