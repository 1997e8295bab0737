"""The parent process: owns the listening sockets, starts the workers, and starts them again.

Owns supervision and the admin listener. It never opens the store, so nothing that the store or a
request does can take it down. A worker that dies is replaced at once; one that keeps dying, after a
growing pause. Holds: when `run` returns, no worker is left.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import trio

from kvfs_gateway.server.admin import serve_admin
from kvfs_gateway.server.metrics import SharedMetrics, create_shared
from kvfs_gateway.server.worker_settings import DRAIN_SECONDS, ListenerSettings, WorkerSettings

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
STEADY_SECONDS = 10.0
"""A worker that lived this long is replaced without a pause."""


@dataclass(slots=True)
class Listening:
    """One address with a socket for every worker."""

    sockets: list[socket.socket]
    default_bucket: str = ""


@dataclass(slots=True)
class _Slot:
    """One worker's place."""

    worker: int
    process: trio.Process | None = None
    is_ready: bool = False


@dataclass(slots=True)
class Supervisor:
    """Runs `workers` workers until SIGTERM or SIGINT."""

    template: WorkerSettings
    listening: list[Listening]
    workers: int
    admin_sockets: list[socket.socket]
    on_ready: Callable[[], None]
    _slots: list[_Slot] = field(default_factory=list)
    _is_stopping: bool = False
    _was_ready: bool = False
    _failures_before_ready: int = 0

    async def run(self) -> int:
        """Supervise; return the exit status: 0 after a stop by signal, 1 if no worker can start."""
        metrics_fd = create_shared(self.workers)
        metrics = SharedMetrics(metrics_fd)
        template = replace(self.template, metrics_fd=metrics_fd)
        self._slots = [_Slot(index) for index in range(self.workers)]
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                for sock in self.admin_sockets:
                    nursery.start_soon(serve_admin, sock, metrics, self.is_ready)
                for slot in self._slots:
                    nursery.start_soon(self._keep_running, slot, template, nursery.cancel_scope)
                nursery.start_soon(self._obey, signals, nursery.cancel_scope)
        return 0 if self._was_ready else 1

    def is_ready(self) -> bool:
        """Return whether a worker serves."""
        return any(slot.is_ready for slot in self._slots)

    async def _obey(self, signals: AsyncIterator[int], everything: trio.CancelScope) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                self._send_all(signal.SIGHUP)
                continue
            self._is_stopping = True
            self._send_all(signal.SIGTERM)
            await self._wait_for_all()
            everything.cancel()
            return

    def _send_all(self, number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.process is not None and slot.process.returncode is None:
                slot.process.send_signal(number)

    async def _wait_for_all(self) -> None:
        with trio.move_on_after(DRAIN_SECONDS + 3):
            for slot in self._slots:
                if slot.process is not None:
                    await slot.process.wait()

    async def _keep_running(
        self, slot: _Slot, template: WorkerSettings, everything: trio.CancelScope
    ) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._is_stopping:
            started = trio.current_time()
            status = await self._run_once(slot, template)
            if self._is_stopping:
                return
            log.warning("event=worker_ended worker=%d status=%s", slot.worker, status)
            if not self._was_ready:
                self._failures_before_ready += 1
                if self._failures_before_ready >= self.workers:
                    everything.cancel()
                    return
            if trio.current_time() - started > STEADY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
                continue
            await trio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def _run_once(self, slot: _Slot, template: WorkerSettings) -> int:
        listeners = tuple(
            ListenerSettings(item.sockets[slot.worker].fileno(), item.default_bucket)
            for item in self.listening
        )
        ready_read, ready_write = os.pipe()
        settings = replace(template, worker=slot.worker, listeners=listeners, ready_fd=ready_write)
        try:
            slot.process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "kvfs_gateway.server.worker", settings.to_json()],
                stdin=subprocess.DEVNULL,
                pass_fds=[*(item.fd for item in listeners), settings.metrics_fd, ready_write],
            )
        finally:
            os.close(ready_write)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_ready, slot, ready_read)
                status = await slot.process.wait()
                nursery.cancel_scope.cancel()
            return status
        finally:
            slot.is_ready = False
            os.close(ready_read)
            if slot.process.returncode is None:
                slot.process.kill()

    async def _watch_ready(self, slot: _Slot, fd: int) -> None:
        os.set_blocking(fd, False)
        await trio.lowlevel.wait_readable(fd)
        if os.read(fd, 1):
            slot.is_ready = True
            if not self._was_ready and all(item.is_ready for item in self._slots):
                self._was_ready = True
                self.on_ready()
