"""Addresses and the sockets that listen on them.

Owns the socket options. The supervisor makes one socket a worker and address (SO_REUSEPORT) and
keeps them all open: connections that arrive while a worker is being restarted wait in its queue
instead of being refused.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from dataclasses import dataclass

from kvfs.errors import Denied, InvalidArgument, Unavailable

BACKLOG = 1024
CONGESTION_CONTROLS = ("cubic", "reno")
"""Instead of the system's BBR: twice the bytes a CPU second over loopback and short paths (2.7-4.0
against 1.5-2.0 GB/s). The first one that this process may choose is taken."""


@dataclass(frozen=True, slots=True)
class Address:
    """HOST:PORT as given on the command line."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return `HOST:PORT` taken apart. Raises: InvalidArgument."""
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise InvalidArgument(f"{text!r} is no HOST:PORT, such as 127.0.0.1:9000")
    return Address(host.strip("[]") or "0.0.0.0", int(port))


def listen(address: Address, count: int) -> tuple[Address, list[socket.socket]]:
    """Return the address (port 0 becomes the one chosen) and `count` sockets listening on it.

    Raises: Unavailable (in use), Denied (a privileged port), InvalidArgument (no such host).
    """
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sockets.append(_listen_once(address))
            address = Address(address.host, sockets[-1].getsockname()[1])
    except OSError as error:
        for sock in sockets:
            sock.close()
        if isinstance(error, socket.gaierror):
            raise InvalidArgument(f"{address.host!r} is no address of this machine") from error
        if error.errno == errno.EACCES:
            raise Denied(f"{address} may not be listened on: choose a port over 1023") from error
        raise Unavailable(
            f"{address} cannot be listened on ({error.strerror}): choose another port, or stop "
            "what is using it"
        ) from error
    return address, sockets


def _listen_once(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Accepted connections inherit both.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        choose_congestion_control(sock)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def choose_congestion_control(sock: socket.socket) -> None:
    """Set the first permitted of CONGESTION_CONTROLS; keep the system's when none is."""
    for name in CONGESTION_CONTROLS:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
            return
