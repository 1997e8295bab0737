"""A real gateway on free loopback ports over a private store, for tests to talk to."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import boto3
import botocore.config

from kvfs.open_store import init_store, open_store

S3Client = Any
"""boto3 makes its client classes at run time."""

ACCESS_KEY, SECRET_KEY = "KVFSTESTKEY", "not-a-secret-of-anybody"
ENGINE_BUCKET = "engine"
START_SECONDS = 30


@dataclass(frozen=True)
class Gateway:
    """The running process and its addresses."""

    process: subprocess.Popen[str]
    store: Path
    address: str
    engine_address: str
    admin_address: str

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def client(
        self, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY, **config: object
    ) -> S3Client:
        """Return a boto3 client in path style, without retries."""
        settings: dict[str, object] = {
            "retries": {"max_attempts": 1},
            "s3": {"addressing_style": "path"},
            "read_timeout": 30,
            "connect_timeout": 5,
        }
        settings.update(config)
        make = cast("Any", boto3.session.Session()).client
        return make(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=botocore.config.Config(**cast("Any", settings)),
        )

    def worker_pids(self) -> list[int]:
        """Return the processes that serve."""
        return child_pids(self.process.pid)


def child_pids(pid: int) -> list[int]:
    """Return the children of a process, whichever of its threads started them."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(child) for path in tasks for child in path.read_text().split())


@contextlib.contextmanager
def running_gateway(
    store: Path,
    *,
    workers: int = 2,
    capacity_bytes: int = 4 << 30,
    arguments: Sequence[str] = (),
) -> Iterator[Gateway]:
    """Start a gateway over `store` (made when absent) and stop it at the end."""
    if not store.exists():
        init_store(store, capacity_bytes=capacity_bytes)
        with open_store(store) as opened:
            opened.create_namespace(ENGINE_BUCKET.encode())
    command = [
        *(sys.executable, "-m", "kvfs_gateway.main", "--store", str(store)),
        *("--listen", "127.0.0.1:0", "--engine-listen", f"127.0.0.1:0={ENGINE_BUCKET}"),
        *("--admin-listen", "127.0.0.1:0", "--workers", str(workers), *arguments),
    ]
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "KVFS_ACCESS_KEY": ACCESS_KEY,
        "KVFS_SECRET_KEY": SECRET_KEY,
        "PYTHONPATH": os.pathsep.join(str(root / name) for name in ("", "gateway", "tools")),
    }
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    watchdog = threading.Timer(START_SECONDS, process.kill)
    watchdog.start()
    drain = threading.Thread(target=_drain, args=(process,), daemon=True)
    try:
        lines = _read_until_ready(process)
        watchdog.cancel()
        addresses = re.findall(r"https?://(\S+)", "".join(lines))
        drain.start()
        yield Gateway(process, store, *addresses)
    finally:
        watchdog.cancel()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if drain.ident is not None:
            drain.join(5)
        assert process.stderr is not None
        process.stderr.close()


def _read_until_ready(process: subprocess.Popen[str]) -> list[str]:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line == "kvfs-gateway: ready\n":
            return lines
    raise AssertionError(f"the gateway did not start: {''.join(lines)}")


def _drain(process: subprocess.Popen[str]) -> None:
    """Keep the pipe from filling up; what the gateway logs shows when a test fails."""
    assert process.stderr is not None
    for line in process.stderr:
        sys.stderr.write(line)
