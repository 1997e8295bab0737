"""Mooncake 0.3.13's store, unmodified, with its files on the real mount.

A value's memory ends with the process that put it: what another process gets came from the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engines.doors import BUCKET, Gateway, free_ports, running, wait_for
from tests.engines.engine_process import ENGINES, EngineProcess, engine_process, require_engines
from tests.mount_fixture import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.fuse]

VALUE = 1 << 20
OFFLOAD = "MOONCAKE_OFFLOAD_"
_serial = itertools.count()


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running master, and how its clients keep values in `directory`."""

    directory: Path
    rpc_port: int
    metadata_port: int
    settings: dict[str, str]

    @contextlib.contextmanager
    def client(self) -> Iterator[EngineProcess]:
        with engine_process("mooncake_client.py") as process:
            process.ask(
                "start",
                port=free_ports(1)[0],
                metadata=f"http://127.0.0.1:{self.metadata_port}/metadata",
                master=f"127.0.0.1:{self.rpc_port}",
                settings=self.settings,
            )
            yield process

    def files(self) -> list[Path]:
        """What is there of the values, whole or not."""
        found = [
            Path(folder, name) for folder, _, names in os.walk(self.directory) for name in names
        ]
        return sorted(path for path in found if path.suffix != ".meta")


def master() -> list[str]:
    (command,) = ENGINES.glob("lib/python3*/site-packages/mooncake/mooncake_master")
    return [str(command)]


@contextlib.contextmanager
def running_cluster(directory: Path, backend: str) -> Iterator[Cluster]:
    """Run a master. `rootfs`: clients write each value also to its file; otherwise the client that
    holds values moves them to `backend`."""
    directory.mkdir()
    ports = free_ports(3)
    flags = [f"--rpc_port={ports[0]}", f"--http_metadata_server_port={ports[1]}"]
    flags += [f"--metrics_port={ports[2]}", "--enable_http_metadata_server=true"]
    flags += ["--http_metadata_server_host=127.0.0.1", "--rpc_address=127.0.0.1", "--client_ttl=2"]
    flags += ["--minloglevel=1"]
    settings: dict[str, str] = {}
    if backend == "rootfs":
        flags += [f"--root_fs_dir={directory}", "--cluster_id=kvfs"]
    else:
        flags += ["--enable_offload=true"]
        settings = {
            f"{OFFLOAD}FILE_STORAGE_PATH": str(directory),
            f"{OFFLOAD}STORAGE_BACKEND_DESCRIPTOR": f"{backend}_storage_backend",
            f"{OFFLOAD}HEARTBEAT_INTERVAL_SECONDS": "1",
            f"{OFFLOAD}LOCAL_BUFFER_SIZE_BYTES": str(128 << 20),
            # A bucket is written when it is full; as many values as the tests put fill one.
            f"{OFFLOAD}BUCKET_KEYS_LIMIT": "4",
        }
    with running([*master(), *flags]) as process:
        wait_for(lambda: is_listening(ports[0]), process, "Mooncake's master")
        wait_for(lambda: is_listening(ports[1]), process, "Mooncake's metadata server")
        yield Cluster(directory, ports[0], ports[1], settings)


def is_listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False


@pytest.fixture(autouse=True)
def _engines_are_installed() -> None:
    require_engines()


@pytest.fixture
def directory(bucket: Path) -> Path:
    return bucket / f"mooncake-{next(_serial)}"


def get_anew(cluster: Cluster, seeds: list[int]) -> list[str | None]:
    """Get values in a new process, which tells the master of the files that it finds."""
    with cluster.client() as reader:
        found: list[str | None] = reader.ask("get", name="kv", seeds=seeds)
        return found


@pytest.mark.parametrize("backend", ["rootfs", "file_per_key", "bucket"])
@pytest.mark.parametrize("length", [VALUE, 32 * VALUE], ids=["1MiB", "32MiB"])
def test_what_one_process_puts_a_later_one_gets_from_the_files(
    directory: Path, backend: str, length: int
) -> None:
    seeds = [1, 2, 3, 4]
    with running_cluster(directory, backend) as cluster:
        with cluster.client() as writer:
            stored = writer.ask("put", name="kv", seeds=seeds, length=length)
            wait_until(lambda: writer.ask("are_on_disk", name="kv", seeds=seeds), seconds=60)
        # Until the master lets the dead writer go, its memory is where the values are sought.
        wait_until(lambda: get_anew(cluster, [*seeds, 9]) == [*stored, None])


@pytest.mark.s3
def test_s3_shows_the_values_under_the_same_names(
    directory: Path, bucket: Path, gateway: Gateway
) -> None:
    client = gateway.client()
    with running_cluster(directory, "rootfs") as cluster, cluster.client() as writer:
        stored = writer.ask("put", name="kv", seeds=[1, 2], length=VALUE)
        wait_until(lambda: len(cluster.files()) == 2)
        for path in cluster.files():
            key = str(path.relative_to(bucket))
            body = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            assert path.name in ("kv-1", "kv-2")
            assert hashlib.sha256(body).hexdigest() == stored[int(path.name[-1]) - 1]


@pytest.mark.parametrize("backend", ["rootfs", "file_per_key"])
def test_i1_a_killed_writer_leaves_whole_values_or_nothing(directory: Path, backend: str) -> None:
    """Both write straight to the final name, with O_TRUNC."""
    seeds = [*range(12)]
    with running_cluster(directory, backend) as cluster:
        with cluster.client() as writer:
            writer.send("put", name="kv", seeds=seeds, length=16 * VALUE)
            wait_until(lambda: len(cluster.files()) >= 2)
        sizes = {path.stat().st_size for path in cluster.files()}
        assert len(sizes) == 1
        assert sizes.pop() >= 16 * VALUE


def test_i1_writers_that_put_the_same_keys_at_once_leave_whole_values(directory: Path) -> None:
    seeds = [*range(8)]
    with running_cluster(directory, "rootfs") as cluster:
        with cluster.client() as first, cluster.client() as second:
            for writer in (first, second):
                writer.send("put", name="kv", seeds=seeds, length=8 * VALUE)
            stored, same = first.receive(), second.receive()
            assert stored == same
            wait_until(lambda: len(cluster.files()) == len(seeds))
        found = [hashlib.sha256(path.read_bytes()).hexdigest() for path in cluster.files()]
        assert sorted(found) == sorted(stored)
