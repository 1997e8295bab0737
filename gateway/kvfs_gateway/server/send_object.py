"""Sending an object's bytes: sendfile for what is in memory, threads for what is not.

Owns the choice. A window of at most 8 MiB is looked up in the page cache; what is missing is loaded
by a bounded pool of threads first, so a cold disk delays this connection and no other. Objects that
are not stored raw are decoded in the same pool, a window at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from kvfs.errors import Unavailable
from kvfs.model import Codec
from kvfs.store.read_view import ReadView
from kvfs_gateway.server.page_cache import is_cached, load
from kvfs_gateway.server.service import Service
from kvfs_gateway.server.transport import SEND_WINDOW, Transport

FEW_SENDERS = 2
SHARED_STEP = 512 * 1024
"""With many senders each turn is short (0.13 ms), so that 16 of them delay a HEAD by 2 ms, not 30;
with few a turn takes what the socket holds, which saves a sixth of the CPU."""
COPY_WINDOW = 1024 * 1024
"""Bytes in memory at once of an object that sendfile cannot send: mutable, or not stored raw."""


async def send_object(
    transport: Transport,
    service: Service,
    view: ReadView,
    offset: int,
    length: int,
    seconds: float,
    let_others: Callable[[], None],
) -> None:
    """Send `[offset, offset + length)` of `view`; each window has `seconds` to leave.

    let_others: see Transport.send_file.

    Raises: Disconnected, KvfsError (the head is out by then: the caller closes).
    """
    service.senders += 1
    try:
        await _send(transport, service, view, offset, offset + length, seconds, let_others)
    finally:
        service.senders -= 1


async def _send(
    transport: Transport,
    service: Service,
    view: ReadView,
    offset: int,
    end: int,
    seconds: float,
    let_others: Callable[[], None],
) -> None:
    is_raw = view.codec is Codec.RAW
    while offset < end:
        transport.deadline = trio.current_time() + seconds
        if view.entry.is_mutable:
            window = min(end - offset, COPY_WINDOW)
            await transport.send(await service.load(_read_unchanged, view, offset, window))
        elif is_raw:
            window = min(end - offset, SEND_WINDOW)
            if not is_cached(view.fd, offset, window):
                await service.load(load, view.fd, offset, window)
            step = SEND_WINDOW if service.senders <= FEW_SENDERS else SHARED_STEP
            await transport.send_file(view.fd, offset, window, step, let_others)
        else:
            window = min(end - offset, COPY_WINDOW)
            await transport.send(await service.load(view.pread, offset, window))
        offset += window


def _read_unchanged(view: ReadView, offset: int, length: int) -> bytes:
    """Return bytes of a mutable file as its ETag promised them. Raises: Unavailable.

    Copied, because sendfile would send what is written to it in the meantime.
    """
    data = view.pread(offset, length)
    if len(data) < length or not view.is_unchanged():
        raise Unavailable("the file is being written to: ask again")
    return data
