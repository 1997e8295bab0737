"""One client's socket: non-blocking calls first, the event loop only when the kernel has nothing.

Owns the system calls on a connection and its deadline. The deadline is a plain number that the
worker's reaper looks at once a second: a cancel scope per wait costs 4 us, a tenth of a whole HEAD.
Holds: nothing here blocks; a peer that stalls is cut off by its deadline.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Protocol

import trio

SEND_WINDOW = 8 * 1024 * 1024
"""Most bytes one sendfile call is asked for, so that no connection keeps the loop for long."""


MAX_TURNS = 16
"""Requests that one connection may have answered before the others get their turn (1 ms). Trying
recv before asking the loop saves 15 us of a HEAD where the next request is already there, as it is
under load, and costs 2 us where it is not."""


class Disconnected(Exception):
    """The peer closed or reset the connection, or never finished what it began."""


class DirectSocket(Protocol):
    """A socket that carries requests as they are: what can be done with it without waiting."""

    def fileno(self) -> int:
        """Return the descriptor, to wait for several at once."""
        ...

    def receive_now(self, limit: int) -> bytes | None:
        """Return what is there, b"" at the end, None when nothing is. Raises: Disconnected."""
        ...

    def send_now(self, data: bytes) -> int:
        """Send what the kernel takes at once; return its length. Raises: Disconnected."""
        ...


class Transport(Protocol):
    """What a connection needs of its peer, with or without TLS."""

    deadline: float
    """trio's time at which the reaper cuts the connection off."""
    peer: str

    @property
    def direct(self) -> DirectSocket | None:
        """The socket itself; None where what comes are not yet the requests' bytes (TLS)."""
        ...

    async def receive(self, limit: int) -> bytes:
        """Return 1 to `limit` bytes, b"" at the end of the stream. Raises: Disconnected."""
        ...

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill the front of `buffer`; return the count, 0 at the end. Raises: Disconnected."""
        ...

    async def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """Send all of `data`; `more` says that bytes follow at once. Raises: Disconnected."""
        ...

    async def send_file(
        self, fd: int, offset: int, length: int, step: int, let_others: Callable[[], None]
    ) -> None:
        """Send a window of a file whose pages are in memory, letting others in every `step` bytes.

        let_others: called there, before the loop's other tasks have their turns.
        Raises: Disconnected.
        """
        ...

    async def finish_sending(self) -> None:
        """Tell the peer that nothing more comes."""
        ...

    def close(self) -> None:
        """Close the socket. Idempotent."""
        ...


class PlainTransport:
    """A TCP connection without TLS."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        """Take over a connected, non-blocking socket."""
        self._socket = sock
        self.peer = peer
        self.deadline = 0.0
        self._turns = 0
        """Receptions in a row for which the loop was not left."""

    @property
    def direct(self) -> PlainTransport:
        return self

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive_now(self, limit: int) -> bytes | None:
        try:
            return self._socket.recv(limit)
        except BlockingIOError:
            return None
        except OSError as error:
            raise Disconnected(str(error)) from None

    def send_now(self, data: bytes) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise Disconnected(str(error)) from None

    async def receive(self, limit: int) -> bytes:
        while True:
            try:
                data = self._socket.recv(limit)
            except BlockingIOError:
                self._turns = 0
                await trio.lowlevel.wait_readable(self._socket)
            except OSError as error:
                raise Disconnected(str(error)) from None
            else:
                self._turns += 1
                if self._turns > MAX_TURNS:
                    self._turns = 0
                    await trio.lowlevel.checkpoint()
                return data

    async def receive_into(self, buffer: memoryview) -> int:
        while True:
            try:
                return self._socket.recv_into(buffer)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            except OSError as error:
                raise Disconnected(str(error)) from None

    async def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        flags = socket.MSG_MORE if more else 0
        left = data
        while True:
            try:
                sent = self._socket.send(left, flags)
                if sent == len(left):
                    return
                left = memoryview(left)[sent:]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
            except OSError as error:
                raise Disconnected(str(error)) from None

    async def send_file(
        self, fd: int, offset: int, length: int, step: int, let_others: Callable[[], None]
    ) -> None:
        out = self._socket.fileno()
        end = offset + length
        while offset < end:
            try:
                sent = os.sendfile(out, fd, offset, min(step, end - offset))
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
                continue
            except OSError as error:
                raise Disconnected(str(error)) from None
            if sent == 0:
                raise Disconnected("the file is shorter than its entry says")
            offset += sent
            let_others()
            if sent == step and offset < end:
                await trio.lowlevel.checkpoint()

    async def finish_sending(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise Disconnected(str(error)) from None

    def close(self) -> None:
        self._socket.close()
