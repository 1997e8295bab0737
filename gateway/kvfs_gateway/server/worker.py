"""One worker process: opens the store, serves its sockets, drains on SIGTERM.

Owns a worker's life. It is started as a fresh program (never forked with an open index) with its
settings as JSON in its one argument; secrets come from the environment or the store's own file.
Ends with its supervisor, so nothing is left running: it watches that process's pidfd. (The kernel's
PR_SET_PDEATHSIG follows the *thread* that started the child, and trio's threads end when idle.)
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from kvfs.bucket_credentials import BucketCredentials
from kvfs.clock import SystemClock, SystemRandomness
from kvfs.config import process_environment, read_root_credential
from kvfs.errors import KvfsError
from kvfs.open_store import open_store
from kvfs_gateway.s3.routing import Addressing, route_table
from kvfs_gateway.server.access_log import AccessFormat, AccessLog
from kvfs_gateway.server.connection import ConnectionSettings, RequestIds
from kvfs_gateway.server.lifetime_walk import LifetimeWalk
from kvfs_gateway.server.listener import ConnectionSet, accept_forever, reap_forever
from kvfs_gateway.server.metrics import WorkerMetrics
from kvfs_gateway.server.service import Service
from kvfs_gateway.server.tls_transport import TlsTransport, load_certificate, make_context
from kvfs_gateway.server.transport import PlainTransport, Transport
from kvfs_gateway.server.worker_settings import (
    DRAIN_SECONDS,
    ListenerSettings,
    WorkerSettings,
)

log = logging.getLogger(__name__)


class Worker:
    """Serves until it is told to stop."""

    def __init__(
        self, settings: WorkerSettings, service: Service, bucket_credentials: BucketCredentials
    ) -> None:
        self._settings = settings
        self._service = service
        self._bucket_credentials = bucket_credentials
        self._connections = ConnectionSet()
        self._metrics = WorkerMetrics(settings.metrics_fd, settings.worker)
        form = AccessFormat(settings.access_format)
        self._access_log = AccessLog(form, service.clock, _write_stdout)
        self._request_ids = RequestIds(int.from_bytes(service.randomness.token(8), "big"))
        self._is_draining = False
        self._tls: ssl.SSLContext | None = None
        if settings.tls_certificate:
            self._tls = make_context(Path(settings.tls_certificate), Path(settings.tls_key))

    def _wrap(self, sock: socket.socket, peer: str) -> Transport:
        plain = PlainTransport(sock, peer)
        return plain if self._tls is None else TlsTransport(plain, self._tls)

    async def run(self) -> None:
        """Serve until SIGTERM, then answer what was begun and return."""
        listeners = [
            (socket.socket(fileno=item.fd), self._connection_settings(item))
            for item in self._settings.listeners
        ]
        supervisor = os.pidfd_open(os.getppid())
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._connections.idle.serve)
                with trio.CancelScope() as accepting:
                    async with trio.open_nursery() as acceptors:
                        for listener, settings in listeners:
                            acceptors.start_soon(
                                accept_forever,
                                listener,
                                settings,
                                self._connections,
                                nursery,
                                self._wrap,
                            )
                        acceptors.start_soon(
                            reap_forever,
                            self._connections,
                            self._access_log.flush,
                            self._publish_usage,
                            self._follow_bucket_credentials,
                        )
                        acceptors.start_soon(_stop_without_supervisor, supervisor, accepting)
                        if self._settings.worker == 0:
                            acceptors.start_soon(LifetimeWalk(self._service).run_forever)
                        os.write(self._settings.ready_fd, b"1")
                        await self._obey(signals, accepting)
                await self._drain(nursery)
        self._access_log.flush()

    def _connection_settings(self, item: ListenerSettings) -> ConnectionSettings:
        addressing = Addressing(self._settings.virtual_hosts, os.fsencode(item.default_bucket))
        return ConnectionSettings(
            self._service,
            addressing,
            self._metrics,
            self._access_log,
            self._request_ids,
            lambda: self._is_draining,
        )

    async def _obey(self, signals: AsyncIterator[int], stop: trio.CancelScope) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                self._reload()
                self._read_bucket_credentials()
            else:
                stop.cancel()
                return

    def _reload(self) -> None:
        """Read root's credential and certificate again; keep the old ones when that fails."""
        try:
            credential = read_root_credential(self._service.store.path, process_environment())
            if self._tls is not None:
                files = Path(self._settings.tls_certificate), Path(self._settings.tls_key)
                load_certificate(self._tls, *files)
        except KvfsError as error:
            log.error("event=reload_failed error=%s", error)
            return
        self._service.credential = credential
        log.info("event=reloaded")

    def _follow_bucket_credentials(self) -> None:
        """Read the limited credentials again when their file has changed."""
        if self._bucket_credentials.has_changed():
            self._read_bucket_credentials()

    def _read_bucket_credentials(self) -> None:
        """Read the limited credentials again; keep those that held when that fails."""
        try:
            found = self._bucket_credentials.read()
        except KvfsError as error:
            log.error("event=bucket_credentials_refused error=%s", error)
            return
        self._service.bucket_credentials = found
        log.info("event=bucket_credentials_read count=%d", len(found))

    def _publish_usage(self) -> None:
        """Tell the supervisor's metrics the store's space; the first worker does it for all."""
        if self._settings.worker == 0:
            self._metrics.set_usage(self._service.store.usage())

    async def _drain(self, nursery: trio.Nursery) -> None:
        self._is_draining = True
        self._connections.close_idle()
        with trio.move_on_after(DRAIN_SECONDS):
            while self._connections.open:
                await trio.sleep(0.02)
                self._connections.reap(trio.current_time())
        nursery.cancel_scope.cancel()


async def _stop_without_supervisor(supervisor: int, stop: trio.CancelScope) -> None:
    """Begin to drain when the process behind the pidfd has ended."""
    await trio.lowlevel.wait_readable(supervisor)
    log.warning("event=supervisor_gone")
    stop.cancel()


def _write_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main() -> int:
    """Run one worker; return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    settings = WorkerSettings.from_json(sys.argv[1])
    clock, randomness = SystemClock(), SystemRandomness()
    route_table()  # built before the first request needs it
    try:
        credential = read_root_credential(Path(settings.store), process_environment())
        bucket_credentials = BucketCredentials(Path(settings.store))
        limited = bucket_credentials.read()
        store = open_store(
            Path(settings.store), clock=clock, randomness=randomness, background=True
        )
    except KvfsError as error:
        log.error("event=start_failed error=%s", error)
        return 1
    with store:
        service = Service(
            store,
            clock,
            randomness,
            credential,
            settings.region,
            settings.has_md5_etags,
            limited,
        )
        gc.collect()
        gc.freeze()  # what is loaded now stays: a full collection took 30 ms of every connection
        trio.run(Worker(settings, service, bucket_credentials).run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
