"""How much memory a worker takes while 64 clients send and fetch 64 MiB each.

One worker, so that it has them all. Peak resident memory is VmHWM, reset before each phase, which
counts every page mapped at that moment (files that are hashed too); RssAnon, what the process holds
itself, is sampled. The clients are threads of another process.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from bench.report import Context, Measurement, resident_bytes
from tests.integration.gateway_process import ENGINE_BUCKET, Gateway, running_gateway
from tests.integration.gateway_raw import signed

MIB = 1 << 20
CLIENT = """
import socket, sys, threading
address, length = sys.argv[1], int(sys.argv[2])
host, _, port = address.rpartition(":")
failed = []
def run(number, head):
    try:
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(head)
            if head.startswith(b"PUT"):
                piece = number.to_bytes(4, "big") * (1 << 18)
                for _ in range(length >> 20):
                    sock.sendall(piece)
            data, buffer = b"", bytearray(1 << 18)
            while b"\\r\\n\\r\\n" not in data:
                data += sock.recv(65536)
            assert data.startswith(b"HTTP/1.1 200"), data[:300]
            if head.startswith(b"GET"):
                left = length - len(data.partition(b"\\r\\n\\r\\n")[2])
                while left:
                    left -= sock.recv_into(buffer, min(left, len(buffer)))
    except BaseException as error:
        failed.append(error)
        raise
heads = sys.stdin.buffer.read().split(b"\\0")
threads = [threading.Thread(target=run, args=item) for item in enumerate(heads)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit(1 if failed else 0)
"""


def bench_gateway_memory__64_clients(context: Context) -> Iterator[Measurement]:
    clients, length = (16, 16 * MIB) if context.quick else (64, 64 * MIB)
    capacity = 4 * clients * length
    store = context.directory / "store"
    with running_gateway(store, workers=1, capacity_bytes=capacity) as gateway:
        (pid,) = gateway.worker_pids()
        params = {"clients": clients, "object_MiB": length // MIB}
        yield Measurement("MiB", [high_water(pid) / MIB], {"phase": "idle", "what": "VmHWM"})
        for method in ("PUT", "GET"):
            peak, anonymous = transfer(gateway, pid, method, clients, length)
            phase = {**params, "phase": method}
            yield Measurement("MiB", [peak / MIB], {**phase, "what": "VmHWM"})
            yield Measurement("MiB", [anonymous / MIB], {**phase, "what": "RssAnon"})


def transfer(gateway: Gateway, pid: int, method: str, clients: int, length: int) -> tuple[int, int]:
    """Run all clients; return the worker's peak of resident and of anonymous bytes."""
    heads = [
        signed(
            gateway.address,
            method,
            f"/{ENGINE_BUCKET}/k{number}",
            payload="UNSIGNED-PAYLOAD" if method == "PUT" else "",
            length=length,
        ).head()
        for number in range(clients)
    ]
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM begins anew
    command = [sys.executable, "-c", CLIENT, gateway.address, str(length)]
    anonymous = 0
    pause = threading.Event()
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"\0".join(heads))
        process.stdin.close()
        while process.poll() is None:
            anonymous = max(anonymous, resident_bytes(pid))
            pause.wait(0.01)
        assert process.returncode == 0, "every client had its answer"
    return high_water(pid), anonymous


def high_water(pid: int) -> int:
    """Return VmHWM: the most bytes that were resident at once."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
