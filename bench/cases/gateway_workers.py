"""What a second and a third worker bring: HEADs and GETs a second, all cores asked for.

The clients are processes that share nothing with the server, eight connections each; the kernel
spreads connections over the workers (SO_REUSEPORT). On a machine whose cores are all taken by one
worker and its clients more workers bring little: the cores are in the line's `machine`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

from bench.report import NS_PER_S, Context, Measurement
from tests.integration.gateway_process import ENGINE_BUCKET, Gateway, running_gateway
from tests.integration.gateway_raw import signed

MIB = 1 << 20
OBJECT = 8 * MIB
PROCESSES = 2
CONNECTIONS = 8
ROUNDS = 5
CLIENT = """
import select, socket, sys
address, connections, count, length = sys.argv[1], *map(int, sys.argv[2:5])
host, _, port = address.rpartition(":")
buffer = bytearray(1 << 20)
socks = {}
poll = select.epoll()
for _ in range(connections):
    sock = socket.create_connection((host, int(port)))
    socks[sock.fileno()] = [sock, b"", -1, 0]
    poll.register(sock, select.EPOLLIN)
print("ready", flush=True)
request = sys.stdin.buffer.read()
for sock, *_ in socks.values():
    sock.sendall(request)
while socks:
    for fd, _ in poll.poll():
        state = socks[fd]
        sock, head, left, done = state
        if left < 0:
            head += sock.recv(65536)
            start, end, rest = head.partition(b"\\r\\n\\r\\n")
            if not end:
                state[1] = head
                continue
            assert start.startswith(b"HTTP/1.1 200"), start
            left = length - len(rest)
        else:
            left -= sock.recv_into(buffer, min(left, len(buffer)))
        if left:
            state[1], state[2] = b"", left
            continue
        state[1:] = b"", -1, done + 1
        if done + 1 == count:
            poll.unregister(fd)
            socks.pop(fd)[0].close()
        else:
            sock.sendall(request)
"""


def bench_gateway_workers__scaling(context: Context) -> Iterator[Measurement]:
    heads, gets = (100, 10) if context.quick else (1500, 40)
    counts = sorted({1, 2, min(4, os.cpu_count() or 1)})
    for workers in counts:
        with running_gateway(context.directory / f"store{workers}", workers=workers) as gateway:
            client = gateway.client()
            client.put_object(Bucket=ENGINE_BUCKET, Key="object", Body=os.urandom(OBJECT))
            params = {"workers": workers, "connections": PROCESSES * CONNECTIONS}
            rates = [rate(context, gateway, "HEAD", heads, 0) for _ in range(ROUNDS + 1)][1:]
            yield Measurement("1/s", rates, {**params, "request": "HEAD"})
            rates = [rate(context, gateway, "GET", gets, OBJECT) for _ in range(ROUNDS + 1)][1:]
            taken = [each * OBJECT / 1e9 for each in rates]
            yield Measurement("GB/s", taken, {**params, "request": "GET 8 MiB"})


def rate(context: Context, gateway: Gateway, method: str, count: int, length: int) -> float:
    """Return the answers a second that all clients together get."""
    request = signed(gateway.address, method, f"/{ENGINE_BUCKET}/object").raw()
    numbers = [str(number) for number in (CONNECTIONS, count, length)]
    command = [sys.executable, "-c", CLIENT, gateway.address, *numbers]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(PROCESSES)]
    for process in processes:  # connected, and waiting for what to ask
        assert process.stdout is not None
        process.stdout.readline()
    begin = context.clock.monotonic_ns()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(request)
        process.stdin.close()
    for process in processes:
        assert process.wait(120) == 0, "every request was answered"
    seconds = (context.clock.monotonic_ns() - begin) / NS_PER_S
    for process in processes:
        assert process.stdout is not None
        process.stdout.close()
    return PROCESSES * CONNECTIONS * count / seconds
