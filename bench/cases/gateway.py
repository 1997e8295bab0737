"""The gateway's CPU a request and a gigabyte, beside nginx's sendfile and the bare work of a PUT.

Server CPU comes from /proc/PID/stat, whose tick is 10 ms, so each sample covers many requests. The
client is a raw socket sending requests signed once; it costs the server nothing that differs. nginx
serves the very block file; without nginx installed that floor is left out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.report import Context, Measurement
from tests.integration.gateway_process import ENGINE_BUCKET, Gateway, running_gateway
from tests.integration.gateway_raw import connect, signed

MIB = 1 << 20
OBJECT = 64 * MIB
RANGE = 8 * MIB
TICKS = os.sysconf("SC_CLK_TCK")
ROUNDS = 5
PUTS_A_SAMPLE = 4

RECEIVER = """
import os, resource, socket, sys
from kvfs.codec.digest import digest_file
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
buffer = memoryview(bytearray(256 * 1024))
path, length = sys.argv[1], int(sys.argv[2])
while True:
    sock, _ = listener.accept()
    before = resource.getrusage(resource.RUSAGE_SELF)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    os.posix_fallocate(fd, 0, length)
    at = 0
    while at < length:
        filled = 0
        while filled < len(buffer) and at + filled < length:
            count = sock.recv_into(buffer[filled:])
            if not count:
                sys.exit()
            filled += count
        os.pwrite(fd, buffer[:filled], at)
        at += filled
    digest_file(bytes(32), fd, length)
    os.close(fd)
    after = resource.getrusage(resource.RUSAGE_SELF)
    os.unlink(path)
    print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, flush=True)
    sock.close()
"""


ECHO = """
import select, socket
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
print(listener.getsockname()[1], flush=True)
epoll, socks = select.epoll(), {}
epoll.register(listener, select.EPOLLIN)
while True:
    for fd, _ in epoll.poll():
        if fd == listener.fileno():
            sock, _ = listener.accept()
            socks[sock.fileno()] = sock
            epoll.register(sock, select.EPOLLIN)
        elif data := socks[fd].recv(65536):
            socks[fd].send(data)
        else:
            epoll.unregister(fd)
            socks.pop(fd).close()
"""


def process_seconds(pid: int) -> float:
    """Return the CPU seconds of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def read_head(sock: socket.socket) -> bytes:
    """Read an answer's head; return what came behind it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        assert piece, "the server closed the connection"
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head[9:10] == b"2", head
    return rest


def ask(sock: socket.socket, request: bytes, length: int, buffer: bytearray) -> None:
    """Send a request and take in an answer with `length` bytes of body."""
    sock.sendall(request)
    left = length - len(read_head(sock))
    while left:
        count = sock.recv_into(buffer, min(left, len(buffer)))
        assert count, "the server closed the connection"
        left -= count


def sample(pid: int, work: Callable[[], object]) -> list[float]:
    """Return the server's CPU seconds for each of ROUNDS runs of `work`, after one to warm up."""
    work()
    return [cpu_of(pid, work) for _ in range(ROUNDS)]


@contextlib.contextmanager
def filled_gateway(context: Context) -> Iterator[Gateway]:
    """Run one worker over a store that holds one object of OBJECT bytes."""
    with running_gateway(context.directory / "store", workers=1) as gateway:
        client = gateway.client()
        client.put_object(Bucket=ENGINE_BUCKET, Key="object", Body=os.urandom(OBJECT))
        yield gateway


@contextlib.contextmanager
def nginx(context: Context, file: Path) -> Iterator[tuple[str, int] | None]:
    """Serve a link to `file` with one nginx worker; yield its address and worker pid."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        yield None
        return
    root = context.directory / "nginx"
    root.mkdir()
    os.link(file, root / "object")
    os.chmod(root / "object", 0o644)
    root.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (root / "nginx.conf").write_text(
        f"""daemon off; master_process off; pid {root}/pid; error_log stderr crit;
        events {{ worker_connections 64; }}
        http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
        client_body_temp_path {root}; proxy_temp_path {root}; fastcgi_temp_path {root};
        uwsgi_temp_path {root}; scgi_temp_path {root};
        server {{ listen 127.0.0.1:{port}; root {root}; }} }}"""
    )
    command = [program, "-e", "stderr", "-p", str(root), "-c", str(root / "nginx.conf")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        address = f"127.0.0.1:{port}"
        for _ in range(1000):
            with contextlib.suppress(OSError):
                connect(address).close()
                break
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(10)


def block_file(gateway: Gateway) -> Path:
    """Return the file of the only block."""
    (path,) = (gateway.store / "blocks").glob("*/*")
    return path


def bench_gateway_head__with_signature(context: Context) -> Iterator[Measurement]:
    """One client that waits for each answer, and 16 at once, as under load.

    The floor is a server that sends back what it receives, by blocking calls: a machine whose
    cores go to sleep between two requests has most of the time in that.
    """
    count = 500 if context.quick else 4000
    with filled_gateway(context) as gateway, echo_server() as echo:
        (pid,) = gateway.worker_pids()
        for key in ("object", "missing"):
            request = signed(gateway.address, "HEAD", f"/{ENGINE_BUCKET}/{key}").raw()
            for clients in (1, 16):
                each = count // clients
                ours, floor = [], []
                with contextlib.ExitStack() as stack:
                    pair = [
                        [stack.enter_context(connect(address)) for _ in range(clients)]
                        for address in (gateway.address, echo[0])
                    ]
                    for _ in range(ROUNDS + 1):
                        ours.append(cpu_of(pid, partial(ask_all, pair[0], request, each)))
                        floor.append(cpu_of(echo[1], partial(ask_all, pair[1], request, each)))
                yield Measurement(
                    "us CPU",
                    [s / (each * clients) * 1e6 for s in ours[1:]],
                    {"key": key, "clients": clients},
                    [s / (each * clients) * 1e6 for s in floor[1:]],
                    "echo by blocking calls",
                )


def ask_all(socks: list[socket.socket], request: bytes, count: int) -> None:
    """Send `request` on every socket, then take every answer, `count` times."""
    for _ in range(count):
        for sock in socks:
            sock.sendall(request)
        for sock in socks:
            assert sock.recv(65536).endswith(b"\r\n\r\n")


def cpu_of(pid: int, work: Callable[[], object]) -> float:
    """Return the CPU seconds that a process uses during `work`."""
    before = process_seconds(pid)
    work()
    return process_seconds(pid) - before


@contextlib.contextmanager
def echo_server() -> Iterator[tuple[str, int]]:
    """Run a server that sends each request back; yield its address and pid."""
    command = [sys.executable, "-c", ECHO]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}", process.pid
        finally:
            process.kill()


def bench_gateway_get__8MiB_ranges(context: Context) -> Iterator[Measurement]:
    count = 20 if context.quick else 100
    buffer = bytearray(MIB)
    last = RANGE + RANGE - 1
    with filled_gateway(context) as gateway:
        (pid,) = gateway.worker_pids()
        headers = {"Range": f"bytes={RANGE}-{last}"}
        request = signed(gateway.address, "GET", f"/{ENGINE_BUCKET}/object", headers).raw()

        def gets(sock: socket.socket, data: bytes) -> None:
            for _ in range(count):
                ask(sock, data, RANGE, buffer)

        gigabytes = count * RANGE / 1e9
        with connect(gateway.address) as sock:
            ours = [s / gigabytes for s in sample(pid, lambda: gets(sock, request))]
        floor: list[float] = []
        with nginx(context, block_file(gateway)) as other:
            if other is not None:
                plain = f"GET /object HTTP/1.1\r\nHost: h\r\nRange: bytes={RANGE}-{last}\r\n\r\n"
                with connect(other[0]) as sock:
                    taken = sample(other[1], lambda: gets(sock, plain.encode()))
                floor = [s / gigabytes for s in taken]
        yield Measurement("s CPU/GB", ours, {}, floor=floor, floor_name="nginx sendfile")


def bench_gateway_put__64MiB(context: Context) -> Iterator[Measurement]:
    """Objects of 64 MiB, in turns with the bare work; each side's files go before the next turn.

    Memory that a virtual machine never used costs its first writer up to 2 s/GB more, so both sides
    must write to pages that were used before.
    """
    rounds = 2 if context.quick else 9
    gigabytes = PUTS_A_SAMPLE * OBJECT / 1e9
    ours, floor = [], []
    body = os.urandom(OBJECT)
    with (
        running_gateway(context.directory / "store", workers=1) as gateway,
        receiver(context) as bare,
    ):
        for _ in range(rounds + 1):
            ours.append(put_objects(gateway, body) / gigabytes)
            floor.append(sum(bare(body) for _ in range(PUTS_A_SAMPLE)) / gigabytes)
    name = "receive + write + blake3"
    yield Measurement("s CPU/GB", ours[1:], {}, floor=floor[1:], floor_name=name)


def put_objects(gateway: Gateway, body: bytes) -> float:
    """Return the worker's CPU seconds for PUTS_A_SAMPLE objects, which are gone afterwards."""
    (pid,) = gateway.worker_pids()
    client = gateway.client()
    taken = 0.0
    for number in range(PUTS_A_SAMPLE):
        content = number.to_bytes(8, "big") + body[8:]  # equal bytes would be stored once
        target = f"/{ENGINE_BUCKET}/k{number}"
        request = signed(gateway.address, "PUT", target, payload="UNSIGNED-PAYLOAD", length=OBJECT)
        before = process_seconds(pid)
        with connect(gateway.address) as sock:
            sock.sendall(request.head())
            sock.sendall(content)
            read_head(sock)
        taken += process_seconds(pid) - before
        client.delete_object(Bucket=ENGINE_BUCKET, Key=f"k{number}")
    return taken


@contextlib.contextmanager
def receiver(context: Context) -> Iterator[Callable[[bytes], float]]:
    """Yield a call that sends a body to a process which receives, writes and hashes it, and nothing
    else, and that returns that process's CPU seconds."""
    command = [sys.executable, "-c", RECEIVER, str(context.directory / "floor"), str(OBJECT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = process.stdout
        address = f"127.0.0.1:{int(lines.readline())}"

        def send(body: bytes) -> float:
            with connect(address) as sock:
                sock.sendall(body)
                return float(lines.readline())

        try:
            yield send
        finally:
            process.kill()
