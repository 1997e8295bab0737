"""A wire to the gateway that turns over one bit of a known mark, for who sends a digest.

Everything else passes unchanged, in both directions; a thread a direction, all ended with `close`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.engines.clients.operations import MARKER

PIECE = 1 << 18
FLIPPED = bytes([MARKER[0] ^ 1]) + MARKER[1:]
IDLE_SECONDS = 60


def kept_back(data: bytes) -> int:
    """Return how many bytes at the end may be the beginning of the mark."""
    most = min(len(MARKER) - 1, len(data))
    return next((n for n in range(most, 0, -1) if MARKER.startswith(data[-n:])), 0)


def carry(source: socket.socket, target: socket.socket, *, flips: bool) -> None:
    """Pass on what comes until either side ends."""
    rest = b""
    with contextlib.suppress(OSError):
        while piece := source.recv(PIECE):
            data = rest + piece
            if flips:
                data = data.replace(MARKER, FLIPPED)
            held = kept_back(data) if flips else 0
            rest = data[len(data) - held :]
            target.sendall(data[: len(data) - held])
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def serve(listener: socket.socket, gateway: tuple[str, int]) -> None:
    """Take connections until the listener is closed."""
    with contextlib.ExitStack() as open_sockets:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(gateway, timeout=IDLE_SECONDS)
            client.settimeout(IDLE_SECONDS)
            for end in (client, server):
                open_sockets.enter_context(end)
            for source, target, flips in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=carry, args=(source, target), kwargs={"flips": flips}, daemon=True
                ).start()


@contextlib.contextmanager
def flipping_wire(address: str) -> Iterator[str]:
    """Return the address of a wire that leads to the gateway at `address`."""
    host, _, port = address.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener, (host, int(port))), daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
