"""Listening sockets, and accepting from them.

Owns the socket options. The supervisor makes one socket a worker and address (SO_REUSEPORT) and
keeps them all open: connections that arrive while a worker is being restarted wait in its queue
instead of being refused. Holds: at most MAX_CONNECTIONS a worker; over that those that are idle
longest make room.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from kvfs.errors import Denied, InvalidArgument, Unavailable
from kvfs_gateway.server.connection import Connection, ConnectionSettings
from kvfs_gateway.server.transport import Transport

log = logging.getLogger(__name__)

BACKLOG = 1024
MAX_CONNECTIONS = 4096
REAP_SECONDS = 1.0
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


WrapTransport = Callable[[socket.socket, str], Transport]


@dataclass(slots=True)
class ConnectionSet:
    """The open connections of one worker."""

    open: dict[Connection, tuple[Transport, trio.CancelScope]] = field(default_factory=dict)

    async def serve(
        self, sock: socket.socket, peer: str, settings: ConnectionSettings, wrap: WrapTransport
    ) -> None:
        """Serve one accepted socket to its end."""
        transport = wrap(sock, peer)
        connection = Connection(transport, settings)
        settings.metrics.count_connection(1)
        try:
            with trio.CancelScope() as scope:
                transport.deadline = trio.current_time() + 10
                self.open[connection] = (transport, scope)
                await connection.serve()
        finally:
            self.open.pop(connection, None)
            transport.close()
            settings.metrics.count_connection(-1)

    def reap(self, now: float) -> None:
        """Cut off what is past its deadline."""
        for transport, scope in list(self.open.values()):
            if transport.deadline < now:
                scope.cancel()

    def close_idle(self, limit: int | None = None) -> None:
        """Close connections between two requests, those first that are idle longest."""
        idle = [
            (transport.deadline, id(connection), scope)
            for connection, (transport, scope) in self.open.items()
            if connection.is_idle
        ]
        for _, _, scope in sorted(idle, key=lambda item: item[:2])[:limit]:
            scope.cancel()


async def accept_forever(
    listener: socket.socket,
    settings: ConnectionSettings,
    connections: ConnectionSet,
    nursery: trio.Nursery,
    wrap: WrapTransport,
) -> None:
    """Accept and serve until cancelled."""
    while True:
        try:
            sock, address = listener.accept()
        except BlockingIOError:
            await trio.lowlevel.wait_readable(listener)
            continue
        except OSError as error:
            # ECONNABORTED: the peer left again. EMFILE and the like: let others finish first.
            if error.errno != errno.ECONNABORTED:
                log.warning("event=accept_failed error=%s", error)
                connections.close_idle(16)
                await trio.sleep(0.05)
            continue
        sock.setblocking(False)
        if len(connections.open) >= MAX_CONNECTIONS:
            connections.close_idle(16)
        if len(connections.open) >= MAX_CONNECTIONS + 64:
            sock.close()
            continue
        nursery.start_soon(connections.serve, sock, str(address[0]), settings, wrap)


async def reap_forever(connections: ConnectionSet, *timers: Callable[[], None]) -> None:
    """Once a second cut off stalled peers, and call `timers`."""
    while True:
        await trio.sleep(REAP_SECONDS)
        connections.reap(trio.current_time())
        for timer in timers:
            timer()
