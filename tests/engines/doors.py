"""The real store behind the real commands, for the tests that speak to it as an engine does.

Owns the processes: each is ended, and each mount gone, when its block ends. Loopback and free
ports only; every wait is bounded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore.config

from kvfs_tools.child_processes import RUN_CLI, RUN_GATEWAY

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "kv"
VIRTUAL_HOST = "s3.test"
"""Clients that put the bucket before the host see `kv.s3.test`; see `resolving`."""
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway: the S3 endpoint, and the listener that stands for one bucket."""

    port: int
    engine_port: int
    access_key: str
    secret_key: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def engine_address(self) -> str:
        return f"127.0.0.1:{self.engine_port}"

    @property
    def virtual_address(self) -> str:
        return f"{BUCKET}.{VIRTUAL_HOST}:{self.port}"

    def client(self) -> Any:
        """Return an ordinary S3 client, path style."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=botocore.config.Config(
                s3={"addressing_style": "path"}, retries={"max_attempts": 1}
            ),
        )


def environment() -> dict[str, str]:
    """Return the environment of our commands: our sources, and no store but the named one."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("KVFS_")}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "gateway", "tools")),
    }


def resolving(directory: Path, *buckets: str) -> dict[str, str]:
    """Return the environment in which a process finds the virtual hosts here, by libnss-wrapper."""
    hosts = directory / "hosts"
    names = [f"{bucket}.{VIRTUAL_HOST}" for bucket in buckets]
    hosts.write_text(f"127.0.0.1 localhost {VIRTUAL_HOST} {' '.join(names)}\n")
    return {"LD_PRELOAD": "libnss_wrapper.so", "NSS_WRAPPER_HOSTS": str(hosts)}


def kvfs(*arguments: str) -> str:
    """Run one `kvfs` command to its end; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_CLI, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def free_ports(count: int) -> list[int]:
    """Return `count` ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def running_gateway(store: Path, credential: tuple[str, str]) -> Iterator[Gateway]:
    """Serve `store` with two workers until the block ends."""
    port, engine_port = free_ports(2)
    arguments = ["--store", str(store), "--listen", f"127.0.0.1:{port}"]
    arguments += ["--engine-listen", f"127.0.0.1:{engine_port}={BUCKET}", "--workers", "2"]
    arguments += ["--virtual-host", VIRTUAL_HOST]
    with running([sys.executable, "-c", RUN_GATEWAY, *arguments]) as process:
        wait_for(lambda: is_ready(port), process, "the gateway")
        yield Gateway(port, engine_port, *credential)


@contextlib.contextmanager
def mounted(store: Path, mountpoint: Path, *, transport: str = "auto") -> Iterator[Path]:
    """Mount `store` until the block ends."""
    mountpoint.mkdir(exist_ok=True)
    kvfs("mount", str(store), str(mountpoint), "--transport", transport)
    try:
        yield mountpoint
    finally:
        kvfs("umount", str(mountpoint))


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own; end it, its children too, with the block."""
    process = subprocess.Popen(
        command, env=environment(), stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(WAIT_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def is_ready(port: int) -> bool:
    """Return whether the gateway at `port` says that it serves."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def wait_for(is_true: Any, process: subprocess.Popen[bytes], what: str) -> None:
    """Return when `is_true()`; fail when the process ends or the wait is over."""
    for _ in range(int(WAIT_SECONDS / POLL_SECONDS)):
        if is_true():
            return
        try:
            code = process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"{what} ended with code {code}")
    raise AssertionError(f"{what} did not serve within {WAIT_SECONDS:.0f} s")


def printed_settings(engine: str, store: Path, mount: Path) -> str:
    """Return what `kvfs env` prints for an engine on the mount."""
    return kvfs("env", engine, "--store", str(store), "--mount", str(mount), "--bucket", BUCKET)
