"""Mounting and unmounting a store: checks, the daemon, signals, and `python -m
kvfs.filesystem.mount`.

Owns the life of the mount's process. The daemon is spawned, not forked: LMDB must be opened in the
process that uses it. `mount_store` returns once the mount answers.
Must hold: SIGTERM and SIGINT take the mount from the name tree first, let open files finish for at
most DRAIN_SECONDS, and leave nothing mounted. Only the daemon's own loop runs while it is mounted:
nothing in it resolves a path below the mount point, which would wait for itself.
"""

from __future__ import annotations

import argparse
import json
import logging
import logging.handlers
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import trio

import kvfs
from kvfs import errors
from kvfs.aio import BlockingCalls
from kvfs.clock import SystemClock
from kvfs.config import process_environment
from kvfs.errors import Denied, InvalidArgument, KvfsError, NotFound, Unavailable
from kvfs.filesystem import mount_points, pyfuse3_session
from kvfs.filesystem.kernel.session import KernelSession
from kvfs.filesystem.operations import Operations
from kvfs.filesystem.processes import ProcProcesses
from kvfs.filesystem.running_mark import RunningMark, find_daemon
from kvfs.format import read_format
from kvfs.open_store import open_store
from kvfs.store.store import Store

log = logging.getLogger(__name__)

TRANSPORTS = ("auto", "kernel", "pyfuse3")
START_SECONDS = 120.0
"""Opening a store after an unclean stop checks its index first: seconds a million objects."""
STOP_SECONDS = 30.0
DRAIN_SECONDS = 10.0
WATCH_SECONDS = 0.1
"""What the kernel writes by itself is seen so often: a writer can be ahead of its reservation by
what it writes in that time (I4). A look costs 1 us a file that is open for writing."""
LOG_BYTES = 1024 * 1024
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class Session(Protocol):
    """What a transport is to the mount."""

    @property
    def name(self) -> str: ...
    def mount(self, mountpoint: str) -> None: ...
    async def serve(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What `kvfs mount` was asked for."""

    store: str
    mountpoint: str
    transport: str = "auto"
    is_read_only: bool = False
    allows_others: bool = False


def mount_store(
    store_path: str | os.PathLike[str],
    mountpoint: str | os.PathLike[str],
    *,
    transport: str = "auto",
    foreground: bool = False,
    read_only: bool = False,
    allow_other: bool = False,
) -> None:
    """Mount the store and return once it serves; with `foreground`, serve until unmounted or told.

    transport: `kernel` (needs root; passthrough), `pyfuse3`, or `auto`: the first that can run.
    Raises: KvfsError whose sentence says what to do.
    """
    if transport not in TRANSPORTS:
        raise InvalidArgument(f"no transport {transport!r}: choose among {', '.join(TRANSPORTS)}")
    store = os.path.abspath(store_path)
    path = mount_points.prepare_mountpoint(mountpoint)
    options = MountOptions(store, path, transport, read_only, allow_other)
    if foreground:
        serve_mount(options, announce=_announce_nothing)
    else:
        _start_daemon(options)


def unmount(mountpoint: str | os.PathLike[str]) -> None:
    """Unmount and return once the daemon has let go of the store; works on a dead mount too.

    Raises: NotFound (no kvfs mount there), Unavailable (in use), Denied.
    """
    path = mount_points.resolve_mountpoint(mountpoint)
    mount = mount_points.find_mount(path)
    if mount is None or not mount.filesystem.startswith("fuse"):
        raise NotFound(
            f"{path} is not a kvfs mount: findmnt -t {mount_points.FILESYSTEM} lists them"
        )
    daemon = find_daemon(Path(mount.source), path)
    try:
        if mount_points.is_answering(path):
            mount_points.unmount_now(path)
        else:
            mount_points.detach(path)
        _await_daemon(daemon, path)
    finally:
        if daemon is not None:
            os.close(daemon)


def serve_mount(options: MountOptions, announce: Callable[[str], None]) -> None:
    """Open the store, mount it, and serve until unmounted or signalled.

    announce: called once with the transport's name when the mount answers.
    """
    root = Path(options.store)
    read_format(root)  # before anything is put into what may be no store
    with (
        RunningMark(root, options.mountpoint) as mark,
        open_store(root, read_only=options.is_read_only, background=True) as store,
    ):

        def tell(transport: str) -> None:
            mark.note_transport(transport)
            announce(transport)

        try:
            trio.run(_serve, store, options, tell)
        except BaseExceptionGroup as group:
            # The nursery's wrapping says nothing to a caller who waits for one sentence.
            raise _first_known(group) from group


def _await_daemon(daemon: int | None, mountpoint: str) -> None:
    """Wait until the daemon has closed the store and ended."""
    if daemon is None:
        return
    poll = select.poll()
    poll.register(daemon, select.POLLIN)
    if not poll.poll(STOP_SECONDS * 1000):
        raise Unavailable(
            f"the daemon of {mountpoint} still finishes its open files: it ends by itself"
        )


# -- the daemon's inside


async def _serve(store: Store, options: MountOptions, announce: Callable[[str], None]) -> None:
    operations = Operations(
        store, SystemClock(), ProcProcesses(), BlockingCalls(), is_read_only=options.is_read_only
    )
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        session = _mounted_session(operations, options)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_stop_on_signal, signals, session, options.mountpoint)
                nursery.start_soon(_keep_watch, operations)
                nursery.start_soon(_announce_when_ready, session, options.mountpoint, announce)
                await session.serve()
                nursery.cancel_scope.cancel()
        finally:
            session.close()
            operations.slabs.let_go()
            log.info("mount_ended mountpoint=%s", options.mountpoint)


async def _keep_watch(operations: Operations) -> None:
    """Account for what the kernel writes by itself, and let go of what nobody came back for."""
    while True:
        await trio.sleep(WATCH_SECONDS)
        operations.state.pending.expire()
        await operations.slabs.watch()


def _mounted_session(operations: Operations, options: MountOptions) -> Session:
    """Mount through the transport asked for; `auto` takes the first that can."""
    is_root = os.geteuid() == 0
    if options.transport == "kernel" and not is_root:
        raise Denied("the kernel transport needs root: use --transport pyfuse3")
    if options.transport == "kernel" or (options.transport == "auto" and is_root):
        try:
            return _mount(KernelSession, operations, options)
        except Denied as error:
            # Root of a container without CAP_SYS_ADMIN may still have fusermount3.
            if options.transport == "kernel" or not pyfuse3_session.is_available():
                raise
            log.info("mount_kernel_transport_refused error=%s", error)
    if not pyfuse3_session.is_available():
        raise Denied("pyfuse3 is not installed: pip install 'kvfs[fuse]', or mount as root")
    return _mount(pyfuse3_session.Pyfuse3Session, operations, options)


def _mount(make: Callable[..., Session], operations: Operations, options: MountOptions) -> Session:
    session = make(
        operations,
        source=options.store,
        allow_other=options.allows_others,
        read_only=options.is_read_only,
    )
    session.mount(options.mountpoint)
    return session


async def _announce_when_ready(
    session: Session, mountpoint: str, announce: Callable[[str], None]
) -> None:
    """Wait for the first answer through the mount, from a thread: the loop must go on serving."""
    await trio.to_thread.run_sync(mount_points.is_answering, mountpoint)
    mount_points.set_read_ahead(mountpoint)
    log.info("mount_serving mountpoint=%s transport=%s", mountpoint, session.name)
    announce(session.name)


async def _stop_on_signal(signals: AsyncIterator[int], session: Session, mountpoint: str) -> None:
    """On the first signal leave the name tree; stop when the open files are done or time is up."""
    async for number in signals:
        log.info("mount_stopping signal=%s", signal.Signals(number).name)
        break
    try:
        await trio.to_thread.run_sync(mount_points.detach, mountpoint)
    except KvfsError as error:
        log.error("mount_detach_failed error=%s", error)
    await trio.sleep(DRAIN_SECONDS)  # serve() returns by itself with the last open file
    session.stop()


# -- starting it


def _start_daemon(options: MountOptions) -> None:
    """Spawn the daemon and wait for its first word. Raises: what it failed with."""
    ready, its_end = os.pipe()
    try:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "kvfs.filesystem.mount", "serve", *_arguments(options, its_end)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[its_end],
            cwd="/",
            env=_environment(),
        )
        os.close(its_end)
        daemon.wait()  # it goes on in a child of its own, so that nobody has to reap it
        word = _read_word(ready)
    finally:
        os.close(ready)  # a daemon that comes up too late finds nobody to tell, and ends
    if word is None:
        raise Unavailable(
            f"the mount did not come up within {START_SECONDS:.0f} s; {_see_log(options)}"
        )
    if not word:
        raise Unavailable(f"the mount process ended before it served; {_see_log(options)}")
    _raise_reported(json.loads(word))


def _read_word(descriptor: int) -> bytes | None:
    """Return the daemon's line, b"" if it ended without one, None if it took too long."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(START_SECONDS * 1000):
        return None
    return os.read(descriptor, 65536)


def _raise_reported(report: dict[str, str]) -> None:
    """Raise the daemon's error here, as the same class."""
    if report["status"] == "serving":
        return
    kind = getattr(errors, report["error"], Unavailable)
    raise kind(report["message"])


def _arguments(options: MountOptions, ready: int) -> list[str]:
    arguments = [options.store, options.mountpoint, "--transport", options.transport]
    arguments += ["--ready-fd", str(ready)]
    if options.is_read_only:
        arguments.append("--read-only")
    if options.allows_others:
        arguments.append("--allow-other")
    return arguments


def _environment() -> dict[str, str]:
    """Return an environment in which the daemon imports this very kvfs."""
    root = str(Path(kvfs.__file__).resolve().parent.parent)
    environment = dict(process_environment())
    known = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{root}{os.pathsep}{known}" if known else root
    return environment


def _see_log(options: MountOptions) -> str:
    return f"see {Path(options.store) / 'logs' / 'mount.log'}"


def _announce_nothing(transport: str) -> None:
    """The foreground's caller sees it in the log."""


def _log_to_file(store: str) -> None:
    """Log into the store, at most three files of LOG_BYTES (I8)."""
    folder = Path(store) / "logs"
    try:
        folder.mkdir(exist_ok=True)
        handler: logging.Handler = logging.handlers.RotatingFileHandler(
            folder / "mount.log", maxBytes=LOG_BYTES, backupCount=2
        )
    except OSError:
        handler = logging.NullHandler()
    logging.basicConfig(handlers=[handler], level=logging.INFO, format=LOG_FORMAT)


def _serve_as_daemon(options: MountOptions, ready: int) -> int:
    # The only fork: of a fresh process with one thread, before anything is opened.
    if os.fork():
        os._exit(0)
    _log_to_file(options.store)

    def report(**words: str) -> None:
        os.write(ready, json.dumps(words).encode() + b"\n")

    try:
        serve_mount(options, lambda transport: report(status="serving", transport=transport))
    except KvfsError as error:
        report(status="failed", error=type(error).__name__, message=error.message)
        log.error("mount_failed error=%s", error)
        return 1
    except Exception as error:
        log.exception("mount_failed")
        report(status="failed", error="Unavailable", message=f"{type(error).__name__}: {error}")
        raise
    return 0


def _first_known(group: BaseExceptionGroup) -> BaseException:
    """Return the KvfsError inside a nursery's group, or its first exception."""
    known = group.subgroup(KvfsError) or group
    first = known.exceptions[0]
    return _first_known(first) if isinstance(first, BaseExceptionGroup) else first


def main(arguments: list[str] | None = None) -> int:
    """Run `mount`, `umount` or `serve`; `kvfs mount` calls the same functions."""
    parser = argparse.ArgumentParser(prog="kvfs.filesystem.mount")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("mount", "serve"):
        command = commands.add_parser(name)
        command.add_argument("store")
        command.add_argument("mountpoint")
        command.add_argument("--transport", choices=TRANSPORTS, default="auto")
        command.add_argument("--read-only", action="store_true")
        command.add_argument("--allow-other", action="store_true")
        command.add_argument("--foreground", action="store_true")
        command.add_argument("--ready-fd", type=int, default=-1)
    commands.add_parser("umount").add_argument("mountpoint")
    chosen = parser.parse_args(arguments)
    try:
        return _run(chosen)
    except KvfsError as error:
        print(error.message, file=sys.stderr)
        return 1


def _run(chosen: argparse.Namespace) -> int:
    if chosen.command == "umount":
        unmount(chosen.mountpoint)
        return 0
    if chosen.command == "mount":
        if chosen.foreground:
            logging.basicConfig(level=logging.INFO)
        mount_store(
            chosen.store,
            chosen.mountpoint,
            transport=chosen.transport,
            foreground=chosen.foreground,
            read_only=chosen.read_only,
            allow_other=chosen.allow_other,
        )
        return 0
    options = MountOptions(
        chosen.store, chosen.mountpoint, chosen.transport, chosen.read_only, chosen.allow_other
    )
    return _serve_as_daemon(options, chosen.ready_fd)


def _exit() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    _exit()
