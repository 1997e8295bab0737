"""How long a HEAD takes while the same worker reads cold objects from the disk.

One worker; sixteen connections of another process read objects of 64 MiB that were dropped from the
page cache, each of them once; meanwhile this process asks HEADs one after the other and times each.
Beside it the same HEADs against an idle worker, and while the same objects are read hot.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.report import Context, Measurement
from tests.integration.gateway_process import ENGINE_BUCKET, Gateway, running_gateway
from tests.integration.gateway_raw import connect, signed

MIB = 1 << 20
OBJECT = 64 * MIB
READERS = 16
READING = """
import socket, sys, threading
address, requests = sys.argv[1], sys.stdin.buffer.read().split(b"\\0")
host, _, port = address.rpartition(":")
def read(request):
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(request)
        left, buffer = None, bytearray(1 << 20)
        head = b""
        while b"\\r\\n\\r\\n" not in head:
            head += sock.recv(65536)
        assert head.startswith(b"HTTP/1.1 200"), head
        head, _, rest = head.partition(b"\\r\\n\\r\\n")
        left = int(head.lower().partition(b"content-length: ")[2].split()[0]) - len(rest)
        while left:
            left -= sock.recv_into(buffer, min(left, len(buffer)))
threads = [threading.Thread(target=read, args=(request,)) for request in requests]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
"""The sixteen readers: a process of their own, so that they share no lock with who takes times."""


def bench_gateway_head__beside_cold_gets(context: Context) -> Iterator[Measurement]:
    rounds = 1 if context.quick else 5
    with running_gateway(context.directory / "store", workers=1) as gateway:
        client = gateway.client()
        for number in range(READERS):
            client.put_object(Bucket=ENGINE_BUCKET, Key=f"k{number}", Body=os.urandom(OBJECT))
        request = signed(gateway.address, "HEAD", f"/{ENGINE_BUCKET}/k0").raw()
        with connect(gateway.address) as sock:
            idle = [head_ms(context, sock, request) for _ in range(2000)]
            yield Measurement("ms", idle, {"beside": "nothing"})
            for name in ("cold", "hot"):
                taken: list[float] = []
                for _ in range(rounds):
                    if name == "cold":
                        drop_from_memory(gateway.store / "blocks")
                    taken += heads_beside_gets(context, gateway, sock, request)
                params = {"beside": f"{READERS} {name} GETs of 64 MiB"}
                yield Measurement("ms", taken, params)


def heads_beside_gets(
    context: Context, gateway: Gateway, sock: socket.socket, request: bytes
) -> list[float]:
    """Return the milliseconds of every HEAD asked while all the objects are read once."""
    targets = [f"/{ENGINE_BUCKET}/k{number}" for number in range(READERS)]
    gets = b"\0".join(signed(gateway.address, "GET", target).raw() for target in targets)
    command = [sys.executable, "-c", READING, gateway.address]
    taken = []
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(gets)
        process.stdin.close()
        while process.poll() is None:
            taken.append(head_ms(context, sock, request))
        assert process.returncode == 0, "every object was read"
    return taken


def head_ms(context: Context, sock: socket.socket, request: bytes) -> float:
    """Return the milliseconds from asking to the answer."""
    begin = context.clock.monotonic_ns()
    sock.sendall(request)
    answer = sock.recv(65536)
    taken = (context.clock.monotonic_ns() - begin) / 1e6
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return taken


def drop_from_memory(folder: Path) -> None:
    """Make every file below `folder` cold."""
    os.sync()  # dirty pages stay whatever one asks
    for path in folder.glob("*/*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
