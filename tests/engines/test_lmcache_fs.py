"""LMCache 0.5.6's multi-process adapters `fs` and `fs_native` on the real mount, unmodified, and
LMCache's own tests of its connectors, run in a directory of the mount.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.doors import BUCKET, Gateway, printed_settings
from tests.engines.engine_process import (
    ENGINES,
    PYTHON,
    EngineProcess,
    engine_environment,
    engine_process,
    require_engines,
)

pytestmark = [pytest.mark.slow, pytest.mark.fuse]

CHUNK = 1 << 20
LARGE = 32 << 20
_serial = itertools.count()

WAYS: dict[str, dict[str, Any]] = {
    "fs": {"type": "fs"},
    "fs-direct": {"type": "fs", "use_odirect": True},
    "fs_native": {"type": "fs_native"},
    "fs_native-direct": {"type": "fs_native", "use_odirect": True},
}
OWN_TESTS = [
    "tests/v1/storage_backend/test_fs_connector.py",
    "tests/v1/storage_backend/test_fs_native_connector.py",
    "tests/v1/distributed/test_fs_l2_adapter_delete.py",
    "tests/v1/distributed/test_fs_l2_adapter_keys.py",
]

OWN_SETTINGS = ["-c", "pyproject.toml", "-q", "-p", "no:cacheprovider"]
"""Named, for pytest would otherwise find this project's own settings above the environment."""


@pytest.fixture(scope="module")
def processes() -> Iterator[list[EngineProcess]]:
    require_engines()
    with (
        engine_process("lmcache_fs_client.py") as writer,
        engine_process("lmcache_fs_client.py") as reader,
    ):
        yield [writer, reader]


@pytest.fixture
def directory(bucket: Path) -> Path:
    path = bucket / f"lmcache-{next(_serial)}"
    path.mkdir()
    return path


def start(processes: list[EngineProcess], way: str, directory: Path) -> None:
    for process in processes:
        process.ask("start", settings={**WAYS[way], "base_path": str(directory)})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [CHUNK, LARGE], ids=["1MiB", "32MiB"])
def test_what_one_server_stores_another_finds_and_loads(
    processes: list[EngineProcess], directory: Path, way: str, length: int
) -> None:
    writer, reader = processes
    start(processes, way, directory)
    seeds = [1, 2, 3]
    assert reader.ask("lookup", seeds=seeds) == [False] * 3
    stored = writer.ask("store", seeds=seeds, length=length)
    assert stored["stored"] >= 0
    assert reader.ask("lookup", seeds=[*seeds, 9]) == [True] * 3 + [False]
    assert reader.ask("load", seeds=seeds, length=length) == stored["digests"]
    writer.ask("delete", seeds=[2])
    assert reader.ask("lookup", seeds=seeds) == [True, False, True]


@pytest.mark.s3
@pytest.mark.parametrize("way", ["fs", "fs_native"])
def test_s3_shows_the_chunks_under_the_same_names(
    processes: list[EngineProcess], directory: Path, gateway: Gateway, way: str
) -> None:
    start(processes, way, directory)
    stored = processes[0].ask("store", seeds=[11, 12], length=CHUNK)
    client = gateway.client()
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{directory.name}/")["Contents"]
    assert sorted(Path(item["Key"]).name for item in listed) == sorted(
        path.name for path in directory.iterdir()
    )
    bodies = [client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read() for item in listed]
    found = [hashlib.sha256(body).hexdigest() for body in bodies]
    assert sorted(found) == sorted(stored["digests"])


@pytest.mark.parametrize("way", WAYS)
def test_a_chunk_without_room_is_a_miss_afterwards(
    processes: list[EngineProcess], tiny_bucket: Path, way: str
) -> None:
    """A name that stays would block every later store: LMCache skips what it finds there."""
    directory = tiny_bucket / way
    directory.mkdir()
    start(processes, way, directory)
    assert processes[0].ask("store", seeds=[21], length=48 << 20)["stored"] < 0
    assert processes[1].ask("lookup", seeds=[21]) == [False]
    small = processes[0].ask("store", seeds=[21], length=CHUNK)
    assert processes[1].ask("load", seeds=[21], length=CHUNK) == small["digests"]


@pytest.mark.parametrize("way", WAYS)
def test_i1_servers_that_store_the_same_chunks_at_once_leave_whole_ones(
    processes: list[EngineProcess], directory: Path, way: str
) -> None:
    """They share one temporary name a chunk; on a plain directory one of them often fails."""
    start(processes, way, directory)
    for turn in range(4):
        seeds = [*range(100 + 8 * turn, 108 + 8 * turn)]
        for process in processes:
            process.send("store", seeds=seeds, length=CHUNK)
        stored = [process.receive() for process in processes]
        assert processes[1].ask("load", seeds=seeds, length=CHUNK) == stored[0]["digests"]


def test_the_settings_that_env_prints_are_taken(
    processes: list[EngineProcess], bucket: Path, store: Path
) -> None:
    through_mount = printed_settings("lmcache-server", store, bucket.parent).splitlines()[1]
    settings = json.loads(shlex.split(through_mount)[-1])
    for process in processes:
        process.ask("start", settings=settings)
    stored = processes[0].ask("store", seeds=[31], length=CHUNK)
    assert processes[1].ask("load", seeds=[31], length=CHUNK) == stored["digests"]


@pytest.mark.parametrize("way", ["fs", "fs_native"])
def test_a_batch_of_300_chunks_is_stored_and_deleted(
    processes: list[EngineProcess], directory: Path, way: str
) -> None:
    start(processes, way, directory)
    seeds = [*range(1000, 1300)]
    assert processes[0].ask("store", seeds=seeds, length=4096)["stored"] >= 0
    assert all(processes[1].ask("lookup", seeds=seeds))
    processes[1].ask("delete", seeds=seeds)
    assert not any(processes[0].ask("lookup", seeds=seeds))
    assert list(directory.iterdir()) == []


def test_lmcaches_own_tests_of_its_connectors_pass_on_the_mount(directory: Path) -> None:
    """From its source distribution, as they are; TMPDIR is where they put their files."""
    require_engines()
    done = subprocess.run(
        [str(PYTHON), "-m", "pytest", *OWN_SETTINGS, *OWN_TESTS],
        cwd=ENGINES / "lmcache-source",
        env=engine_environment(TMPDIR=str(directory), PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(r"^58 passed", done.stdout, re.MULTILINE), done.stdout[-2000:]
