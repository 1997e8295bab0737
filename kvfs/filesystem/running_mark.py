"""Marks of running mounts: a file in the store for each mount point, locked by who serves it.

Owns `run/mount-*` below a store: the daemon's process id, and in the second line the transport that
it took. Refuses to know what a daemon does. A mark without a lock is one of a daemon that died.
"""

from __future__ import annotations

import fcntl
import logging
import os
from hashlib import sha256
from pathlib import Path

from kvfs.errors import AlreadyExists
from kvfs.filesystem import mount_points

log = logging.getLogger(__name__)


class RunningMark:
    """A locked file in the store: a daemon serves this mount point. Unlocked = it is gone."""

    def __init__(self, store: Path, mountpoint: str) -> None:
        self._path = _mark_path(store, mountpoint)
        self._descriptor = -1

    def __enter__(self) -> RunningMark:
        try:
            self._path.parent.mkdir(exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())
        except BlockingIOError:
            raise AlreadyExists(
                "another kvfs mount process still serves this mount point: wait for it to end"
            ) from None
        except OSError as error:
            log.info("mount_mark_absent error=%s", error.strerror)  # a store on read-only media
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)

    def note_transport(self, name: str) -> None:
        """Write down by which transport the mount answers."""
        if self._descriptor >= 0:
            os.write(self._descriptor, f"{name}\n".encode())


def find_daemon(store: Path, mountpoint: str) -> int | None:
    """Return a pidfd of the daemon that serves `mountpoint`, None if it has ended."""
    try:
        return os.pidfd_open(int(_mark_path(store, mountpoint).read_text().split()[0]))
    except (OSError, ValueError, IndexError):
        return None  # or the store is not this user's


def served_mounts(store: Path) -> dict[str, str]:
    """Return where `store` is mounted, as this process sees it: mount point -> transport.

    `dead` for a mount whose daemon ended without unmounting, "" where its mark cannot be read.
    """
    found = {}
    for mount in mount_points.read_mounts():
        if mount.filesystem == mount_points.FILESYSTEM and mount.source == os.path.abspath(store):
            found[mount.mountpoint] = _transport_of(store, mount.mountpoint)
    return found


def _transport_of(store: Path, mountpoint: str) -> str:
    daemon = find_daemon(store, mountpoint)
    if daemon is None:
        return "dead"
    os.close(daemon)
    try:
        words = _mark_path(store, mountpoint).read_text().split()
    except OSError:  # it ends this moment
        return "dead"
    return words[1] if len(words) > 1 else ""


def _mark_path(store: Path, mountpoint: str) -> Path:
    return store / "run" / f"mount-{sha256(os.fsencode(mountpoint)).hexdigest()[:16]}"
