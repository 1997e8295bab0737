"""What an engine's name says about a stored value, and which names are one block.

Owns the engines' name grammars (docs/lifecycle.md lists them); knows nothing of stores. A key is
the path below the namespace, as bytes. The hash in a name covers tokens, chain and salt, never
rank, tensor-parallel degree, dtype or layer; so every name with one model and one hash holds a
share of one block, and a share alone is worthless: engines count a block as a hit only when all
ranks have theirs. Such names have one *group*, and leave the store together.
Holds: parsing never raises, takes time linear in the key (patterns without nested repeats over
the same text, tested) and reads at most MAX_PARSED_LENGTH bytes (I8); an unknown name is a group
of its own; two groups of different engines never meet (engines' groups start with NUL, which no
key contains).
"""

from __future__ import annotations

import enum
import functools
import re
from dataclasses import dataclass

MAX_PARSED_LENGTH = 2048


class Engine(enum.StrEnum):
    """Who writes names of this shape. (A StrEnum hashes in C: plans do it a million times.)"""

    LMCACHE = "lmcache"
    LMCACHE_MP = "lmcache-mp"
    VLLM = "vllm"
    VLLM_EXAMPLE = "vllm-example"
    SGLANG = "sglang"
    MOONCAKE = "mooncake"
    LLM_D = "llm-d"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class EngineKey:
    """A parsed name. b"" and -1 stand for what the name does not say."""

    engine: Engine
    group: bytes
    """Equal for all shares (ranks, groups, layers, _k/_v) of one block, and only for those."""
    model: bytes = b""
    block_hash: bytes = b""
    rank: int = -1
    world: int = -1
    dtype: bytes = b""
    part: bytes = b""
    """Layer number, cache group or `k`/`v`, as the name spells it."""


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """What all names of one engine and model in one directory have in common. One object for all of
    them, told apart by identity: what follows from these three is worked out once."""

    engine: Engine
    model: bytes
    """As the name spells it; spell_model has it as people write it."""


@dataclass(frozen=True, slots=True)
class _Grammar:
    engine: Engine
    pattern: re.Pattern[bytes]
    identity: tuple[str, ...]
    """The fields that all shares of one block have in common; each takes part in every match."""
    tag: bytes
    model_index: int
    is_below: bool
    """The pattern is of the name below its last directory; that directory is part of the group."""


def _grammar(engine: Engine, text: bytes, *identity: str, is_below: bool = False) -> _Grammar:
    tag = b"\0" + engine.value.encode() + b"\0"
    pattern = re.compile(text, re.DOTALL)
    return _Grammar(engine, pattern, identity, tag, identity.index("model"), is_below)


# A directory, then up to two levels of hash buckets. Buckets follow the whole name (Mooncake
# hashes the key, rank included), so they must not tell two shares of a block apart.
_FOLDER = re.compile(rb"((?:.*?/)??)(?:[0-9a-f]{1,4}/){0,2}", re.DOTALL)
MAX_FOLDERS = 1 << 16
"""Directories whose answer is kept: names by the million lie in few of them."""


@functools.lru_cache(MAX_FOLDERS)
def _folder(directory: bytes) -> bytes:
    """Return a directory (b"" or ending in "/") without its buckets."""
    match = _FOLDER.fullmatch(directory)
    assert match is not None, "any directory matches"
    return match[1]


MAX_HASH_LENGTH = 128
_HEX_DIGITS = b"0123456789abcdef"
_HEX_AS_ZERO = bytes.maketrans(_HEX_DIGITS, b"0" * 16)
_HASHES_AS_ZERO = frozenset(b"0" * length for length in range(1, MAX_HASH_LENGTH + 1))
"""What a hash of any length is after _HEX_AS_ZERO, and nothing else is: half the cost of strip."""
_shapes: dict[tuple[bytes, Engine, bytes], Shape] = {}
_frames: dict[tuple[bytes, bytes, bytes, bytes], tuple[Shape, bytes, bytes]] = {}
"""What surrounds the hash in names with `@` (three fields, and what follows the hash), and what it
means: the shape, and the group before the hash and after."""
_NUMBERS = rb"(?P<numbers>(?:_[0-9]{1,5}){0,8})"

# model@world@worker@hash@dtype[@layer][@tag%value...][@layer]; the hash may be signed.
_LMCACHE = _grammar(
    Engine.LMCACHE,
    rb"(?P<model>[^@/]+)@(?P<world>[0-9]{1,5})@(?P<rank>[0-9]{1,5})"
    rb"@(?P<hash>-?[0-9a-f]{1,128})@(?P<dtype>[A-Za-z][A-Za-z0-9_]{0,31})"
    rb"(?:@(?P<part>[0-9]{1,5}))?(?:@[^@/%]+%[^@/]*)*(?:@(?P<layer>[0-9]{1,5}))?",
    "model",
    "hash",
    is_below=True,
)
# model@kv_rank@group@hash[@salt], numbers in hex; kv_rank = world<<24 | rank<<16 | local_world<<8 |
# local_rank.
_LMCACHE_MP = _grammar(
    Engine.LMCACHE_MP,
    rb"(?P<model>[^@/]+)@(?:0x)?(?P<kv_rank>[0-9a-f]{8})@(?P<part>(?:0x)?[0-9a-f]{1,8})"
    rb"@(?P<hash>(?:-|0x)?[0-9a-f]{1,128})(?P<salt>(?:@[^@/]*)?)",
    "model",
    "hash",
    "salt",
    is_below=True,
)
# model_<config12>_r<rank>/hhh/hh_g<group>/<hash>.bin
_VLLM = _grammar(
    Engine.VLLM,
    rb"(?P<folder>(?:.*/)?)(?P<model>[^/]+_[0-9a-f]{12})_r(?P<rank>[0-9]{1,5})/[0-9a-f]{3}"
    rb"/[0-9a-f]{2}_g(?P<part>[0-9]{1,5})/(?P<hash>[0-9a-f]{4,128})\.bin",
    "folder",
    "model",
    "hash",
)
# model/block_size_.../tp_.../rank_r/dtype/hhh/hh/<hash>.bin
_LLM_D = _grammar(
    Engine.LLM_D,
    rb"(?P<model>.*?/block_size_[^/]*)/tp_(?P<world>[0-9]{1,5})[^/]*/rank_(?P<rank>[0-9]{1,5})"
    rb"/(?P<dtype>[^/]+)/[0-9a-f]{3}/[0-9a-f]{2}(?:_g(?P<part>[0-9]{1,5}))?"
    rb"/(?P<hash>[0-9a-f]{4,128})\.bin",
    "model",
    "hash",
)
# <sha256>_<model>_<rank>_<size>[_pp][_cp][_k|_v][.bin]; MLA without rank and size.
_SGLANG = _grammar(
    Engine.SGLANG,
    rb"(?P<hash>[0-9a-f]{64})_(?P<model>[^/]*?)" + _NUMBERS + rb"(?:_(?P<part>[kv]))?"
    rb"(?:\.bin)?",
    "model",
    "hash",
    is_below=True,
)
# [<model>_]<sha256>[_<rank>]_k|_v
_MOONCAKE = _grammar(
    Engine.MOONCAKE,
    rb"(?P<model>(?:[^/]*_)?)(?P<hash>[0-9a-f]{64})" + _NUMBERS + rb"_(?P<part>[kv])",
    "model",
    "hash",
    is_below=True,
)
# <hash>/<layer>.safetensors
_VLLM_EXAMPLE = _grammar(
    Engine.VLLM_EXAMPLE,
    rb"(?P<folder>(?:.*/)?)(?P<model>)(?P<hash>[0-9a-f]{32,64})/(?P<part>[^/]+)\.safetensors",
    "folder",
    "model",
    "hash",
)
_WITH_AT = (_LMCACHE, _LMCACHE_MP)
_WITH_FEW_AT = (_LMCACHE_MP,)
_BIN = (_VLLM, _SGLANG)
_BIN_WITH_RANK = (_LLM_D, _VLLM, _SGLANG)
_HALVES = (_MOONCAKE, _SGLANG)  # in this order: SGLang's model could be the `k` of <hash>_k
_TENSORS = (_VLLM_EXAMPLE,)


def parse_key(key: bytes) -> EngineKey:
    """Return what `key` says; Engine.UNKNOWN with the key itself as its group if nothing."""
    found = _match(key)
    if found is None:
        return EngineKey(Engine.UNKNOWN, key)
    grammar, match, folder = found
    fields = match.groupdict(b"")
    rank, world = _rank_and_world(fields)
    return EngineKey(
        engine=grammar.engine,
        group=_group(grammar, match.group(*grammar.identity), folder),
        model=spell_model(fields.get("model", b"")),
        block_hash=match["hash"],
        rank=rank,
        world=world,
        dtype=fields.get("dtype", b""),
        part=fields.get("part") or fields.get("layer") or b"",
    )


def identify(key: bytes) -> tuple[Shape, bytes]:
    """Return (shape, parse_key's group) at a sixth of parse_key's cost: for names by the million.

    LMCache's differ in the hash alone, always the fourth field: what is around it is parsed once,
    and the hash only has to be one.
    """
    fields = key.split(b"@", 3)
    if len(fields) < 4:
        return _identify(key)
    model, world, rank, block_hash = fields
    after = b""
    if block_hash.translate(_HEX_AS_ZERO) not in _HASHES_AS_ZERO:
        after = block_hash.lstrip(_HEX_DIGITS)
        block_hash = block_hash[: len(block_hash) - len(after)]
        if not after or not 0 < len(block_hash) <= MAX_HASH_LENGTH:
            return _identify(key)
    frame = _frames.get((model, world, rank, after))
    if frame is None:
        return _identify(key, (model, world, rank, after))
    shape, group_before, group_after = frame
    return shape, group_before + block_hash + group_after


def _identify(
    key: bytes, frame: tuple[bytes, bytes, bytes, bytes] | None = None
) -> tuple[Shape, bytes]:
    """Parse a whole name; remember what is around its hash if it is where `frame` has left it."""
    found = _match(key)
    if found is None:
        return _shape(key[: key.rfind(b"/") + 1], Engine.UNKNOWN, b""), key
    grammar, match, folder = found
    fields = match.group(*grammar.identity)
    model, group = fields[grammar.model_index], _group(grammar, fields, folder)
    shape = _shape(key[: key.rfind(b"/") + 1], grammar.engine, model)
    if frame is not None and len(_frames) < MAX_FOLDERS:
        start = sum(len(each) for each in frame[:3]) + 3
        end = len(key) - len(frame[3])
        # With the longest hash, too, a name of this frame must be one that is parsed.
        is_short = len(key) - (end - start) + MAX_HASH_LENGTH <= MAX_PARSED_LENGTH
        if is_short and match.span("hash") == (start, end):
            # Both grammars of LMCache: tag, folder, NUL, model, NUL, hash and what follows it.
            start = len(grammar.tag) + len(_folder(folder)) + len(model) + 2
            _frames[frame] = shape, group[:start], group[start + len(match["hash"]) :]
    return shape, group


def _shape(folder: bytes, engine: Engine, model: bytes) -> Shape:
    shape = _shapes.get((folder, engine, model))
    if shape is None:
        shape = Shape(engine, model)
        if len(_shapes) < MAX_FOLDERS:
            _shapes[folder, engine, model] = shape
    return shape


def group_of(key: bytes) -> bytes:
    """Return parse_key(key).group alone."""
    return identify(key)[1]


def spell_model(written: bytes) -> bytes:
    """Return a model's name as people write it, from how `identify` found it in a key."""
    return written.removesuffix(b"_").replace(b"-SEP-", b"/")


def _match(key: bytes) -> tuple[_Grammar, re.Match[bytes], bytes] | None:
    """Try only the grammars that the key's most telling bytes allow; return the directory, too."""
    if len(key) > MAX_PARSED_LENGTH:
        return None
    grammars: tuple[_Grammar, ...] = ()
    if b"@" in key:
        key = key.removesuffix(b".data")
        grammars = _WITH_AT if key.count(b"@") > 3 else _WITH_FEW_AT
    elif key.endswith(b".bin"):
        grammars = _BIN_WITH_RANK if b"/rank_" in key else _BIN
    elif key.endswith((b"_k", b"_v")):
        grammars = _HALVES
    elif key.endswith(b".safetensors"):
        grammars = _TENSORS
    for grammar in grammars:
        below = key.rfind(b"/") + 1 if grammar.is_below else 0
        match = grammar.pattern.fullmatch(key, below)
        if match is not None:
            return grammar, match, key[:below]
    return None


def _group(grammar: _Grammar, fields: tuple[bytes, ...], directory: bytes) -> bytes:
    if grammar.is_below:
        return grammar.tag + _folder(directory) + b"\0" + b"\0".join(fields)
    return grammar.tag + b"\0".join(fields)


def _rank_and_world(fields: dict[str, bytes]) -> tuple[int, int]:
    packed = fields.get("kv_rank")
    if packed:
        value = int(packed, 16)
        return value >> 16 & 0xFF, value >> 24
    numbers = [int(number) for number in fields.get("numbers", b"").split(b"_") if number]
    rank, world = fields.get("rank"), fields.get("world")
    return (
        int(rank) if rank else (numbers[0] if numbers else -1),
        int(world) if world else (numbers[1] if len(numbers) > 1 else -1),
    )
