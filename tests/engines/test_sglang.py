"""SGLang 0.5.23's HiCache backends `file` and `nixl`, unmodified, on the real mount.

What one process stores another one finds and loads, as two servers with one cache do.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.doors import BUCKET, Gateway, printed_settings
from tests.engines.engine_process import EngineProcess, engine_process, require_engines

pytestmark = [pytest.mark.slow, pytest.mark.fuse]

PAGE = 1 << 20
LARGE = 32 << 20
QUEUES = ["use_aio", "use_uring", "use_posix_aio"]
_serial = itertools.count()


def nixl(queue: str = "use_uring", **settings: Any) -> dict[str, Any]:
    """SGLang's settings of its nixl backend, as its configuration file gives them."""
    posix = {"active": True, queue: "true"}
    return {"l3_cleaner_enabled": False, "plugin": {"posix": posix}, **settings}


SETTINGS: dict[str, dict[str, Any]] = {
    "file": {"kind": "file"},
    **{f"nixl-{queue}": {"kind": "nixl", "extra": nixl(queue)} for queue in QUEUES},
    "nixl-buffered": {"kind": "nixl", "extra": nixl(use_direct_io=False)},
}
PAIR = ["file", "nixl-use_uring"]


@pytest.fixture(scope="module")
def processes() -> Iterator[list[EngineProcess]]:
    require_engines()
    with (
        engine_process("sglang_client.py") as writer,
        engine_process("sglang_client.py") as reader,
        engine_process("sglang_client.py") as third,
    ):
        yield [writer, reader, third]


@pytest.fixture
def directory(bucket: Path) -> Path:
    """A directory that no other test uses; SGLang makes it."""
    return bucket / f"sglang-{next(_serial)}"


def start(
    processes: list[EngineProcess], settings: str, directory: Path, **more: Any
) -> list[dict[str, Any]]:
    request = {**SETTINGS[settings], "directory": str(directory), **more}
    return [process.ask("start", **request) for process in processes]


def files_below(root: Path) -> list[str]:
    return [str(Path(folder, name)) for folder, _, names in os.walk(root) for name in names]


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_one_server_stores_another_finds_and_loads(
    processes: list[EngineProcess], directory: Path, settings: str
) -> None:
    writer, reader, third = processes
    started = start(processes, settings, directory)
    if settings != "file":
        expected = {"backend": "POSIX", "zero_copy": True, "direct": settings != "nixl-buffered"}
        assert started == [expected] * 3
    assert reader.ask("exists", seeds=[*range(8)]) == 0
    stored = writer.ask("store", seeds=[*range(6)])
    assert stored["success"]
    assert reader.ask("exists", seeds=[*range(8)]) == 6
    assert reader.ask("load", seeds=[*range(6)]) == stored
    assert third.ask("load", seeds=[0, 6])["success"] is False


@pytest.mark.parametrize("settings", PAIR)
def test_a_large_page_is_stored_and_loaded_whole(
    processes: list[EngineProcess], directory: Path, settings: str
) -> None:
    writer, reader, _ = processes
    start(processes, settings, directory, size=LARGE)
    stored = writer.ask("store", seeds=[21])
    assert stored["success"]
    assert reader.ask("load", seeds=[21]) == stored


@pytest.mark.s3
@pytest.mark.parametrize("settings", PAIR)
def test_s3_shows_the_pages_under_the_same_names(
    processes: list[EngineProcess],
    directory: Path,
    bucket: Path,
    gateway: Gateway,
    settings: str,
) -> None:
    writer = processes[0]
    start([writer], settings, directory)
    stored = writer.ask("store", seeds=[31, 32])
    client = gateway.client()
    for files, digest in zip(writer.ask("names", seeds=[31, 32]), stored["digests"], strict=True):
        keys = [str(Path(path).relative_to(bucket)) for path in files]
        bodies = [client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys]
        assert hashlib.sha256(b"".join(bodies)).hexdigest() == digest


@pytest.mark.parametrize("settings", PAIR)
def test_a_short_file_is_an_error_and_never_data(
    processes: list[EngineProcess], directory: Path, settings: str
) -> None:
    writer, reader, third = processes
    start(processes, settings, directory)
    stored = writer.ask("store", seeds=[41, 42])
    path = Path(writer.ask("names", seeds=[42])[0][-1])
    path.write_bytes(path.read_bytes()[:-4096])
    assert reader.ask("exists", seeds=[41, 42]) == 2  # both backends look at the name alone
    assert not reader.ask("load", seeds=[41, 42])["success"]
    path.unlink()
    assert third.ask("exists", seeds=[41, 42]) == 1
    assert writer.ask("store", seeds=[41, 42])["success"]
    assert third.ask("load", seeds=[41, 42]) == stored


@pytest.mark.parametrize("settings", PAIR)
def test_i1_servers_that_store_the_same_pages_at_once_all_succeed(
    processes: list[EngineProcess], directory: Path, settings: str
) -> None:
    start(processes, settings, directory)
    for turn in range(5):
        seeds = [*range(50 + 4 * turn, 54 + 4 * turn)]
        for process in processes:
            process.send("store", seeds=seeds)
        stored = [process.receive() for process in processes]
        assert [each["success"] for each in stored] == [True] * 3
        assert processes[1].ask("load", seeds=seeds) == stored[0]
    assert not [path for path in files_below(directory) if path.endswith(".tmp")]


@pytest.mark.parametrize("settings", PAIR)
def test_clear_leaves_no_page_for_anyone(
    processes: list[EngineProcess], directory: Path, settings: str
) -> None:
    writer, reader, _ = processes
    start(processes, settings, directory)
    writer.ask("store", seeds=[*range(8)])
    assert reader.ask("exists", seeds=[*range(8)]) == 8
    writer.ask("clear")
    assert reader.ask("exists", seeds=[*range(8)]) == 0
    assert files_below(directory) == []


@pytest.mark.parametrize("settings", PAIR)
def test_a_page_without_room_is_a_miss_afterwards(
    processes: list[EngineProcess], tiny_bucket: Path, settings: str
) -> None:
    writer, reader, _ = processes
    start(processes, settings, tiny_bucket / settings, size=80 << 20)
    stored = writer.ask("store", seeds=[61])
    if settings == "file":
        assert not stored["success"]
    assert reader.ask("exists", seeds=[61]) == 0
    assert not [path for path in files_below(tiny_bucket) if path.endswith(".tmp")]


def test_its_cleaner_of_nixl_files_sees_true_space_and_takes_the_oldest(
    processes: list[EngineProcess], directory: Path
) -> None:
    """It trusts statvfs for how full the disk is, and mtime for what is old."""
    writer, reader, _ = processes
    start(processes, "nixl-use_uring", directory)
    first = 1000 + 8 * next(_serial)  # pages that the store has not: equal ones take no space
    seeds = [*range(first, first + 8)]
    for seed in seeds:
        assert writer.ask("store", seeds=[seed])["success"]
    for path in writer.ask("names", seeds=seeds[:1])[0]:
        os.utime(path)  # touched: the youngest now
    space = os.statvfs(directory)
    used = 100 * (1 - space.f_bavail / space.f_blocks)
    assert not writer.ask("clean", directory=str(directory), high=used + 1, low=used)
    one_page = 100 * PAGE / (space.f_blocks * space.f_frsize)
    low = used - 2.5 * one_page
    assert writer.ask("clean", directory=str(directory), high=used - one_page / 2, low=low)
    found = [bool(reader.ask("exists", seeds=[seed])) for seed in seeds]
    assert found == [True, False, False, False, True, True, True, True]


def test_the_settings_that_env_prints_are_taken(
    processes: list[EngineProcess], bucket: Path, store: Path
) -> None:
    lines = printed_settings("sglang-nixl", store, bucket.parent).splitlines()
    file = "\n".join(line.removeprefix("#   ") for line in lines if line.startswith("#   "))
    (variable,) = (line.split()[0] for line in lines if line.startswith("SGLANG_"))
    name, _, directory = variable.partition("=")
    assert name == "SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR"
    request = {"kind": "nixl", "directory": directory, "extra": tomllib.loads(file)}
    started = [process.ask("start", **request) for process in processes]
    assert [each["direct"] for each in started] == [True] * 3
    stored = processes[0].ask("store", seeds=[91])
    assert processes[1].ask("load", seeds=[91]) == stored
