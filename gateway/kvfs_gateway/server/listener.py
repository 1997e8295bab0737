"""Accepting connections, and the set of those that are open.

Holds: at most MAX_CONNECTIONS a worker; over that those that are idle longest make room.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from kvfs_gateway.server.connection import Connection, ConnectionSettings
from kvfs_gateway.server.idle_connections import IdleConnections
from kvfs_gateway.server.transport import Transport

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 4096
REAP_SECONDS = 1.0


WrapTransport = Callable[[socket.socket, str], Transport]


@dataclass(slots=True)
class ConnectionSet:
    """The open connections of one worker."""

    open: dict[Connection, tuple[Transport, trio.CancelScope]] = field(default_factory=dict)
    idle: IdleConnections = field(init=False)

    def __post_init__(self) -> None:
        self.idle = IdleConnections(self.open.__len__)

    async def serve(
        self, sock: socket.socket, peer: str, settings: ConnectionSettings, wrap: WrapTransport
    ) -> None:
        """Serve one accepted socket to its end."""
        transport = wrap(sock, peer)
        connection = Connection(transport, settings, self.idle)
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
