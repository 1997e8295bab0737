"""The engines' names: what they say, and which of them are one block."""

from __future__ import annotations

import pytest

from kvfs.engine_keys import MAX_PARSED_LENGTH, Engine, group_of, identify, parse_key, spell_model

SHA = b"5c7b" * 16
OTHER = b"0d1e" * 16

# (shares of one block, the engine). Within a row all names have one group.
BLOCKS = [
    (
        Engine.LMCACHE,
        b"lm/meta-SEP-llama@2@0@-5c7b19@bfloat16.data",
        b"lm/meta-SEP-llama@2@1@-5c7b19@bfloat16.data",
        b"lm/meta-SEP-llama@4@3@-5c7b19@bfloat16.data",
        b"lm/meta-SEP-llama@2@1@-5c7b19@fp8_e4m3@tenant%a.data",
    ),
    (Engine.LMCACHE, b"meta_llama@2@0@5c7b@half", b"meta_llama@2@1@5c7b@half"),
    (Engine.LMCACHE, b"m@1@0@5c7b@half@0.data", b"m@1@0@5c7b@half@31.data"),
    (
        Engine.LMCACHE_MP,
        b"m@0x02000200@0@" + SHA + b".data",
        b"m@0x02010201@0@" + SHA + b".data",
        b"m@0x02010201@3@" + SHA + b".data",
        b"m@02010201@0000000a@" + SHA,
    ),
    (Engine.LMCACHE_MP, b"m@02000200@0@" + SHA + b"@salt", b"m@02010201@1@" + SHA + b"@salt"),
    (
        Engine.VLLM,
        b"v/m_0123456789ab_r0/abc/de_g0/" + SHA + b".bin",
        b"v/m_0123456789ab_r7/abc/de_g0/" + SHA + b".bin",
        b"v/m_0123456789ab_r7/abc/de_g2/" + SHA + b".bin",
    ),
    (Engine.VLLM_EXAMPLE, SHA[:32] + b"/l0.safetensors", SHA[:32] + b"/l1.safetensors"),
    (Engine.SGLANG, SHA + b"_org-m_0_8.bin", SHA + b"_org-m_7_8.bin", SHA + b"_org-m_7_8_1_0.bin"),
    (Engine.SGLANG, b"a0/" + SHA + b"_org-m_0_2_k", b"3f/" + SHA + b"_org-m_1_2_v"),
    (Engine.MOONCAKE, b"c/1a/2b/org-m_" + SHA + b"_0_k", b"c/07/ff/org-m_" + SHA + b"_3_v"),
    (Engine.MOONCAKE, SHA + b"_k", SHA + b"_v"),
    (
        Engine.LLM_D,
        b"o/m/block_size_16_blocks_per_file_4/tp_2_pp_size_1/rank_0/bf16/abc/de/" + SHA + b".bin",
        b"o/m/block_size_16_blocks_per_file_4/tp_2_pp_size_1/rank_1/bf16/abc/de/" + SHA + b".bin",
    ),
]  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block[0].value}-{block[1][:12]!r}")
def test_all_shares_of_one_block_have_one_group(block: tuple[Engine, bytes]) -> None:
    engine, *names = block
    assert {parse_key(name).engine for name in names} == {engine}
    assert len({parse_key(name).group for name in names}) == 1


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block[0].value}-{block[1][:12]!r}")
def test_the_short_way_to_the_group_agrees_with_the_long_one(block: tuple[Engine, bytes]) -> None:
    for name in block[1:]:
        assert group_of(name) == parse_key(name).group


def test_a_name_is_understood_alike_whatever_was_asked_before() -> None:
    around = [
        b"lm/m@2@0@%s@bfloat16.data", b"m@2@0@%s@half@31.data", b"m@02000200@0@%s",
        b"d/m@02000200@b@%s@salt", b"m@2@0@%s@fp8@t%%a", b"m@2@0@%s@a/b", b"m@2/x@0@%s@half",
        b"m@2@0@5c@%s", b"m@2@0@%s@0a@half", b"m@x@0@%s", b"@2@0@%s@half", b"m@2@0@%s@",
        b"m@02000200@0@%s.data", b"m@02000200@0@%s.bin",
        b"d" * (MAX_PARSED_LENGTH - 100) + b"/m@2@0@%s@half",
    ]  # fmt: skip
    hashes = [
        SHA,
        OTHER,
        b"0",
        b"5c" * 64,
        b"5c" * 65,
        b"-5c",
        b"0x5c",
        b"5C",
        b"\0",
        b"",
        b"5c@5c",
    ]
    for frame in around:
        for block_hash in hashes * 2:
            key = frame % block_hash
            parsed = parse_key(key)
            shape, group = identify(key)
            assert (shape.engine, spell_model(shape.model), group) == (
                parsed.engine, parsed.model, parsed.group,
            ), key  # fmt: skip


def test_different_blocks_models_and_folders_are_different_groups() -> None:
    names = [
        SHA + b"_org-m_0_8.bin",
        OTHER + b"_org-m_0_8.bin",
        SHA + b"_org-x_0_8.bin",
        b"root/" + SHA + b"_org-m_0_8.bin",
        b"m@2@0@5c7b@half",
        b"m@2@0@-5c7b@half",
        b"m@02000200@0@" + SHA + b"@one",
        b"m@02000200@0@" + SHA + b"@two",
        b"org-m_" + SHA + b"_0_k",
        b"v/m_0123456789ab_r0/abc/de_g0/" + SHA + b".bin",
        b"v/m_ba9876543210_r0/abc/de_g0/" + SHA + b".bin",
    ]
    assert len({group_of(name) for name in names}) == len(names)


def test_the_fields_are_what_the_engine_wrote() -> None:
    key = parse_key(b"lm/meta-SEP-llama@8@3@-5c7b@bfloat16.data")
    assert (key.model, key.rank, key.world, key.dtype) == (b"meta/llama", 3, 8, b"bfloat16")
    assert key.block_hash == b"-5c7b"
    packed = parse_key(b"m@0x08030201@4@" + SHA + b".data")
    assert (packed.rank, packed.world, packed.part) == (3, 8, b"4")
    sglang = parse_key(SHA + b"_Qwen2.5-7B_3_8.bin")
    assert (sglang.model, sglang.rank, sglang.world) == (b"Qwen2.5-7B", 3, 8)
    assert parse_key(SHA + b"_deepseek-v3.bin").rank == -1
    half = parse_key(b"x_y_" + SHA + b"_3_v")
    assert (half.model, half.rank, half.part) == (b"x_y", 3, b"v")


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"config.json",
        b"v/m_0123456789ab/config.json",
        b"m@2@0@nothex@half",
        b"m@2@0",
        b"a/../b",
        b"\xff\xfe\x00@",
        SHA[:40] + b"_m_0_8.bin",
        b"tail_k",
        b"x" * (MAX_PARSED_LENGTH + 1) + b"_" + SHA + b"_k",
    ],
)
def test_an_unknown_name_is_a_group_of_its_own(name: bytes) -> None:
    key = parse_key(name)
    assert (key.engine, key.group) == (Engine.UNKNOWN, name)
    assert group_of(name) == name


# Each made a naive pattern retry at every byte; together they must be done before the suite's
# timeout, and are done in 2 ms.
HOSTILE = [
    b"a/" * 1000,
    b"f/" * 1000 + b"_k",
    b"@" * 2000,
    b"a@1@1@ab@b" + b"@x%" * 600 + b"@!",
    b"m" + b"_1" * 1000 + b".bin",
    (b"a" * 64 + b"_") * 31 + b"m/_k",
    (b"a_000000000000_r1/abc/de_g1/") * 70 + b".bin",
    b"x/block_size_1/tp_1" * 100 + b"/rank_1.bin",
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_i8_hostile_names_cost_no_more_than_their_length(name: bytes) -> None:
    for _ in range(50):
        assert parse_key(name).engine is Engine.UNKNOWN
