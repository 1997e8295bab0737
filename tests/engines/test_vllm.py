"""vLLM 0.33's file system tier, its own Python and C code unmodified, on the real mount.

What one process stores another one loads: nothing comes back out of the writer's memory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engines.doors import BUCKET, Gateway, printed_settings
from tests.engines.engine_process import EngineProcess, engine_process, require_engines
from tests.mount_fixture import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.fuse]

BLOCK = 1 << 20
_seeds = itertools.count(1000, 100)


@dataclass(frozen=True, slots=True)
class Engines:
    """Two vLLMs on one directory, and one whose C extension is missing."""

    writer: EngineProcess
    reader: EngineProcess
    plain: EngineProcess

    def start(self, root: Path, **size: int) -> list[dict[str, Any]]:
        return [each.ask("start", root=str(root), **size) for each in self.all]

    @property
    def all(self) -> list[EngineProcess]:
        return [self.writer, self.reader, self.plain]


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    require_engines()
    with (
        engine_process("vllm_client.py", "c") as writer,
        engine_process("vllm_client.py", "c") as reader,
        engine_process("vllm_client.py", "python") as plain,
    ):
        yield Engines(writer, reader, plain)


@pytest.fixture
def seeds() -> list[int]:
    """Blocks that no other test stores."""
    first = next(_seeds)
    return list(range(first, first + 8))


@pytest.fixture
def root(engines: Engines, bucket: Path) -> Path:
    path = bucket / "vllm"
    engines.start(path)
    return path


def below_bucket(path: str, bucket: Path) -> str:
    return str(Path(path).relative_to(bucket))


def files_below(root: Path) -> list[str]:
    return [str(Path(folder, name)) for folder, _, names in os.walk(root) for name in names]


def test_it_writes_with_o_direct_and_with_its_extension(engines: Engines, bucket: Path) -> None:
    started = engines.start(bucket / "vllm")
    assert [each["use_o_direct"] for each in started] == [True] * 3
    assert [each["has_extension"] for each in started] == [True, True, False]


@pytest.mark.parametrize("code", ["c", "python"])
def test_what_one_process_stores_another_finds_and_loads(
    engines: Engines, root: Path, seeds: list[int], code: str
) -> None:
    writer = engines.writer if code == "c" else engines.plain
    reader = engines.reader if code == "c" else engines.plain
    absent = [seed + 50 for seed in seeds[:2]]
    assert engines.reader.ask("lookup", seeds=seeds + absent) == [False] * 10
    stored = writer.ask("store", seeds=seeds)
    assert stored["success"]
    assert engines.reader.ask("lookup", seeds=seeds + absent) == [True] * 8 + [False] * 2
    loaded = reader.ask("load", seeds=seeds)
    assert loaded == stored


@pytest.mark.s3
def test_s3_shows_the_blocks_and_the_settings_under_the_same_names(
    engines: Engines, root: Path, bucket: Path, gateway: Gateway, seeds: list[int]
) -> None:
    stored = engines.writer.ask("store", seeds=seeds)
    client = gateway.client()
    for name, digest in zip(
        engines.writer.ask("names", seeds=seeds), stored["digests"], strict=True
    ):
        answer = client.get_object(Bucket=BUCKET, Key=below_bucket(name, bucket))
        assert hashlib.sha256(answer["Body"].read()).hexdigest() == digest
    base = engines.start(root)[0]["base"]
    settings = client.get_object(Bucket=BUCKET, Key=f"vllm/{base}/config.json")["Body"].read()
    assert json.loads(settings)["model_name"] == "meta-llama/Llama-3.1-8B"


@pytest.mark.parametrize("code", ["c", "python"])
def test_a_short_file_is_an_error_unlinked_and_a_miss_from_then_on(
    engines: Engines, root: Path, seeds: list[int], code: str
) -> None:
    engine = engines.reader if code == "c" else engines.plain
    stored = engines.writer.ask("store", seeds=seeds)
    short = Path(engines.writer.ask("names", seeds=seeds)[5])
    short.write_bytes(short.read_bytes()[: BLOCK - 4096])
    assert engines.reader.ask("lookup", seeds=seeds) == [True] * 8
    loaded = engine.ask("load", seeds=seeds)
    assert not loaded["success"]
    assert loaded["kept"] == [0, 1, 2, 3, 4]
    assert loaded["digests"][:5] == stored["digests"][:5]
    assert not short.exists()
    assert engines.writer.ask("lookup", seeds=seeds) == [True] * 5 + [False] + [True] * 2
    assert engines.writer.ask("store", seeds=seeds)["success"]
    assert engine.ask("load", seeds=seeds) == stored


@pytest.mark.parametrize("code", ["c", "python"])
def test_a_store_without_room_fails_and_leaves_nothing(
    engines: Engines, tiny_bucket: Path, seeds: list[int], code: str
) -> None:
    engine = engines.writer if code == "c" else engines.plain
    root = tiny_bucket / "vllm"
    engine.ask("start", root=str(root), block_bytes=48 << 20, blocks=1)
    assert not engine.ask("store", seeds=seeds[:1])["success"]
    assert engine.ask("lookup", seeds=seeds[:1]) == [False]
    assert not [name for name in files_below(root) if ".bin" in name]


def test_i1_engines_that_store_the_same_blocks_at_once_all_succeed(
    engines: Engines, root: Path, seeds: list[int]
) -> None:
    for _ in range(5):
        for engine in engines.all:
            engine.send("store", seeds=seeds)
        stored = [engine.receive() for engine in engines.all]
        assert [each["success"] for each in stored] == [True] * 3
        assert engines.reader.ask("load", seeds=seeds) == stored[0]
        for name in engines.writer.ask("names", seeds=seeds):
            Path(name).unlink()
    assert not [name for name in files_below(root) if name.endswith(".tmp")]


def test_i1_a_killed_engine_leaves_whole_blocks_or_nothing(
    engines: Engines, root: Path, seeds: list[int]
) -> None:
    large = {"block_bytes": 8 << 20, "blocks": 8}
    with engine_process("vllm_client.py", "c") as victim:
        victim.ask("start", root=str(root), **large)
        names = [Path(name) for name in victim.ask("names", seeds=seeds)]
        victim.send("store", seeds=seeds)
        wait_until(lambda: names[0].exists())
        victim.process.kill()
        victim.process.wait()
    engines.reader.ask("start", root=str(root), **large)
    found = engines.reader.ask("lookup", seeds=seeds)
    whole = [seed for seed, is_found in zip(seeds, found, strict=True) if is_found]
    loaded = engines.reader.ask("load", seeds=whole)
    assert loaded["success"]
    assert loaded["digests"] == engines.reader.ask("store", seeds=whole)["digests"]
    assert not [name for name in files_below(root) if name.endswith(".tmp")]


def test_the_settings_that_env_prints_are_those_of_the_tier(
    engines: Engines, bucket: Path, store: Path, seeds: list[int]
) -> None:
    command = shlex.split(printed_settings("vllm", store, bucket.parent).splitlines()[-1])
    config = json.loads(command[-1])["kv_connector_extra_config"]
    (tier,) = config["secondary_tiers"]
    assert tier.pop("type") == "fs"
    root = tier.pop("root_dir")
    assert Path(root) == bucket / "vllm"
    assert engines.plain.ask("start", root=root, more=tier)["use_o_direct"]
    assert engines.plain.ask("store", seeds=seeds)["success"]
