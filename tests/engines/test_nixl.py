"""NIXL 1.5.1's POSIX backend, unmodified, on the real mount: Linux AIO, io_uring, POSIX AIO.

What one process writes another one reads, through another queue.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.doors import BUCKET, Gateway
from tests.engines.engine_process import EngineProcess, engine_process, require_engines

pytestmark = [pytest.mark.slow, pytest.mark.fuse]

QUEUES = ["use_aio", "use_uring", "use_posix_aio"]
LENGTH = 1 << 20
LARGE = 32 << 20
_serial = itertools.count()

Agents = dict[str, EngineProcess]


@pytest.fixture(scope="module")
def agents() -> Iterator[Agents]:
    """One process for each queue."""
    require_engines()
    with (
        engine_process("nixl_client.py", "use_aio") as aio,
        engine_process("nixl_client.py", "use_uring") as uring,
        engine_process("nixl_client.py", "use_posix_aio") as posix_aio,
    ):
        yield dict(zip(QUEUES, (aio, uring, posix_aio), strict=True))


@pytest.fixture
def paths(bucket: Path) -> list[str]:
    """Names that no other test uses."""
    folder = bucket / f"nixl-{next(_serial)}"
    folder.mkdir()
    return [str(folder / f"{n}_model_0_1_k") for n in range(6)]


def other(queue: str) -> str:
    return QUEUES[QUEUES.index(queue) - 1]


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("way", ["buffered", "direct", "descriptor"])
def test_what_one_queue_writes_another_process_finds_and_reads(
    agents: Agents, paths: list[str], queue: str, way: str
) -> None:
    reader = agents[other(queue)]
    assert reader.ask("exists", paths=paths) == [False] * 6
    written = agents[queue].ask("write", paths=paths, seeds=[*range(6)], length=LENGTH, way=way)
    assert written["state"] == "DONE"
    assert reader.ask("exists", paths=paths) == [True] * 6
    assert reader.ask("read", paths=paths, length=LENGTH, way=way) == written


@pytest.mark.parametrize("queue", QUEUES)
def test_a_large_block_is_moved_whole(agents: Agents, paths: list[str], queue: str) -> None:
    paths = paths[:2]
    written = agents[queue].ask("write", paths=paths, seeds=[7, 8], length=LARGE, way="direct")
    assert written["state"] == "DONE"
    assert agents[other(queue)].ask("read", paths=paths, length=LARGE, way="direct") == written


@pytest.mark.parametrize("queue", QUEUES)
def test_a_short_or_absent_file_is_an_error(agents: Agents, paths: list[str], queue: str) -> None:
    short, whole, absent = paths[:3]
    Path(short).write_bytes(bytes(LENGTH - 4096))
    Path(whole).write_bytes(bytes(LENGTH))
    for way in ("buffered", "direct"):
        for path in (short, absent):
            answer = agents[queue].ask("read", paths=[whole, path], length=LENGTH, way=way)
            assert answer["state"] != "DONE"
            agents[queue].ask("start")
        assert agents[queue].ask("read", paths=[whole], length=LENGTH, way=way)["state"] == "DONE"


@pytest.mark.s3
@pytest.mark.parametrize("queue", QUEUES)
def test_writing_in_place_replaces_the_block_at_both_doors(
    agents: Agents, paths: list[str], bucket: Path, gateway: Gateway, queue: str
) -> None:
    """NIXL opens the final name without O_TRUNC: nothing but the close says that it is whole."""
    client = gateway.client()
    for seeds in ([1, 2], [3, 4]):
        files = paths[:2]
        written = agents[queue].ask("write", paths=files, seeds=seeds, length=LENGTH, way="direct")
        assert written["state"] == "DONE"
        read = agents[other(queue)].ask("read", paths=files, length=LENGTH, way="direct")
        assert read == written
        for path, digest in zip(files, written["digests"], strict=True):
            key = str(Path(path).relative_to(bucket))
            body = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            assert hashlib.sha256(body).hexdigest() == digest


def test_i1_agents_that_write_one_name_at_once_leave_one_whole_value(
    agents: Agents, paths: list[str]
) -> None:
    for turn in range(6):
        for number, agent in enumerate(agents.values()):
            seeds = [100 * turn + number]
            agent.send("write", paths=paths[:1], seeds=seeds, length=8 << 20, way="direct")
        written = [agent.receive() for agent in agents.values()]
        read = agents["use_aio"].ask("read", paths=paths[:1], length=8 << 20, way="direct")
        assert read["state"] == "DONE"
        assert read["digests"] in [each["digests"] for each in written]


@pytest.mark.parametrize("queue", QUEUES)
def test_a_block_without_room_is_a_miss_afterwards(
    agents: Agents, tiny_bucket: Path, queue: str
) -> None:
    """NIXL looks at each transfer, not at what close says: whatever it makes of the error, the
    name must not be there."""
    path = str(tiny_bucket / f"{queue}_model_0_1_k")
    agents[queue].ask("write", paths=[path], seeds=[1], length=48 << 20, way="direct")
    agents[queue].ask("start")
    assert agents[other(queue)].ask("exists", paths=[path]) == [False]
