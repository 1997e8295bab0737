"""Starting the gateway over a full index: from exec to the first answer, and a worker's return.

The real command with its supervisor and two workers, over an index of a million objects (see
store_index.py: real rows, no block files). The answer is a 200 to a HEAD with a signature, asked by
a client in this process that knows nothing of readiness: it connects until somebody listens.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.cases.store_index import fill, key_of
from bench.report import NS_PER_S, Context, Measurement
from kvfs.clock import Clock
from kvfs.open_store import init_store, open_store
from kvfs_gateway.server.supervisor import STEADY_SECONDS
from tests.integration.gateway_process import ACCESS_KEY, SECRET_KEY, child_pids
from tests.integration.gateway_raw import connect, signed

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 5
WAIT_SECONDS = 60
PAUSE = threading.Event()
"""Never set."""


def bench_gateway_start__first_answer(context: Context) -> Iterator[Measurement]:
    count = 100_000 if context.quick else 1_000_000
    root = context.directory / "store"
    init_store(root, capacity_bytes=1 << 50)
    with open_store(root) as store:
        fill(store, count)
    params = {"objects": count, "workers": 2}
    for how, number in (("clean stop", signal.SIGTERM), ("SIGKILL", signal.SIGKILL)):
        with started(root, free_address(), context.clock) as (process, _):
            stop(process, number)
        samples = []
        for _ in range(ROUNDS):
            with started(root, free_address(), context.clock) as (process, seconds):
                samples.append(seconds)
                stop(process, number)
        yield Measurement("s", samples, {**params, "after": how})


def bench_gateway_start__killed_worker(context: Context) -> Measurement:
    root = context.directory / "store"
    init_store(root, capacity_bytes=1 << 40)
    with open_store(root) as store:
        fill(store, 1000)
    samples = []
    address = free_address()
    with started(root, address, context.clock, workers=1) as (process, _):
        for _ in range(1 if context.quick else 3):
            PAUSE.wait(STEADY_SECONDS + 1)  # one that dies young is replaced after a pause
            (pid,) = child_pids(process.pid)
            os.kill(pid, signal.SIGKILL)
            begin = context.clock.monotonic_ns()
            wait_for_answer(address, context.clock, process.poll)
            samples.append((context.clock.monotonic_ns() - begin) / NS_PER_S)
    return Measurement("s", samples, {"until": "the only worker's first answer"})


@contextlib.contextmanager
def started(
    root: Path, address: str, clock: Clock, workers: int = 2
) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """Start the command; yield it and the seconds from exec to the first answer."""
    environment = os.environ | {
        "KVFS_ACCESS_KEY": ACCESS_KEY,
        "KVFS_SECRET_KEY": SECRET_KEY,
        "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("", "gateway", "tools")),
    }
    command = [sys.executable, "-m", "kvfs_gateway.main", "--store", str(root)]
    command += ["--listen", address, "--workers", str(workers)]
    begin = clock.monotonic_ns()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for_answer(address, clock, process.poll)
        yield process, (clock.monotonic_ns() - begin) / NS_PER_S
    finally:
        if process.poll() is None:
            stop(process, signal.SIGTERM)


def stop(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the supervisor (SIGKILL: to its workers as well) and wait for all."""
    pids = child_pids(process.pid)
    for pid in (process.pid, *(pids if number == signal.SIGKILL else ())):
        os.kill(pid, number)
    process.wait(WAIT_SECONDS)
    for pid in pids:  # they are nobody's children now: their directory in /proc says when they end
        while Path(f"/proc/{pid}/exe").exists():
            PAUSE.wait(0.002)


def wait_for_answer(address: str, clock: Clock, has_ended: Callable[[], object]) -> None:
    """Ask for an object until somebody answers 200."""
    end = clock.monotonic_ns() + WAIT_SECONDS * NS_PER_S
    target = "/kv/" + key_of(7).decode().replace("@", "%40")
    while clock.monotonic_ns() < end and has_ended() is None:
        PAUSE.wait(0.002)  # this process takes no core from the one that is starting
        request = signed(address, "HEAD", target).raw()
        with contextlib.suppress(OSError), connect(address) as sock:
            sock.sendall(request)
            answer = sock.recv(65536)
            if answer:
                assert answer.startswith(b"HTTP/1.1 200"), answer
                return
    raise AssertionError("the gateway did not answer")


def free_address() -> str:
    """Return an address nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"
