"""What TLS costs: GET and PUT over it beside the same over plain HTTP, in turn, on one store.

Both gateways have one worker. CPU is the worker's from /proc, GB/s is what one connection of this
process gets, which decrypts or encrypts the same bytes on its side. TLS is in user space here (see
server/tls_transport.py), so this is the price of that choice.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator

from bench.cases.gateway import MIB, OBJECT, RANGE, ROUNDS, ask, process_seconds, read_head
from bench.report import NS_PER_S, Context, Measurement
from tests.integration.gateway_process import ENGINE_BUCKET, Gateway, running_gateway
from tests.integration.gateway_raw import connect, signed
from tests.integration.test_gateway_tls import make_certificate

Open = Callable[[], socket.socket]


def bench_gateway_tls__beside_plain(context: Context) -> Iterator[Measurement]:
    folder = context.directory
    make_certificate(folder, "bench")
    arguments = ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")]
    with (
        running_gateway(folder / "store", workers=1) as plain,
        running_gateway(folder / "store", workers=1, arguments=arguments) as tls,
    ):
        plain.client().put_object(Bucket=ENGINE_BUCKET, Key="object", Body=os.urandom(OBJECT))
        trusting = ssl.create_default_context(cafile=folder / "cert.pem")

        def open_tls() -> socket.socket:
            return trusting.wrap_socket(connect(tls.address), server_hostname="127.0.0.1")

        doors: tuple[tuple[Gateway, Open], ...] = (
            (tls, open_tls),
            (plain, lambda: connect(plain.address)),
        )
        rounds = 2 if context.quick else ROUNDS
        for name, work in (("GET", get_ranges), ("PUT", put_object)):
            taken: list[list[tuple[float, float]]] = [[], []]
            for _ in range(rounds + 1):
                for (gateway, open_socket), into in zip(doors, taken, strict=True):
                    into.append(measure(context, gateway, open_socket, work))
            ours, floor = taken[0][1:], taken[1][1:]
            params = {"method": name}
            for unit, which in (("s CPU/GB", 0), ("GB/s", 1)):
                yield Measurement(
                    unit,
                    [each[which] for each in ours],
                    params,
                    floor=[each[which] for each in floor],
                    floor_name="plain HTTP",
                )


Work = Callable[[socket.socket, str, int], float]


def measure(
    context: Context, gateway: Gateway, open_socket: Open, work: Work
) -> tuple[float, float]:
    """Return (CPU seconds a gigabyte, gigabytes a second) of one turn."""
    (pid,) = gateway.worker_pids()
    with open_socket() as sock:
        number = context.clock.monotonic_ns()
        before = process_seconds(pid)
        gigabytes = work(sock, gateway.address, number)
        seconds = (context.clock.monotonic_ns() - number) / NS_PER_S
        return (process_seconds(pid) - before) / gigabytes, gigabytes / seconds


def get_ranges(sock: socket.socket, address: str, _number: int) -> float:
    """Read 64 ranges of 8 MiB; return the gigabytes."""
    buffer = bytearray(MIB)
    headers = {"Range": f"bytes={RANGE}-{2 * RANGE - 1}"}
    request = signed(address, "GET", f"/{ENGINE_BUCKET}/object", headers).raw()
    for _ in range(64):
        ask(sock, request, RANGE, buffer)
    return 64 * RANGE / 1e9


def put_object(sock: socket.socket, address: str, number: int) -> float:
    """Send four objects nobody has seen; return the gigabytes."""
    for index in range(4):
        target = f"/{ENGINE_BUCKET}/k{number}-{index}"
        request = signed(address, "PUT", target, payload="UNSIGNED-PAYLOAD", length=OBJECT)
        sock.sendall(request.head())
        sock.sendall(os.urandom(OBJECT))
        read_head(sock)
    return 4 * OBJECT / 1e9
