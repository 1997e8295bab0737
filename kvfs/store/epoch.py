"""Who has the store open, and how it was last closed.

Owns <store>/alive, <store>/open.lock and <store>/index/clean. Every process holds a shared flock on
`alive`; whoever opens takes `open.lock`, and if it can have `alive` exclusively it is alone: then
the file `clean` tells whether the last one out closed properly. Boot and mount ids do not serve:
they differ between containers, which would then distrust each other.

Holds: `clean` exists only while nobody has the store open for writing; its removal is on disk
before the first write, so a crash can never find it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvfs.store.namespaces import sync_directory


class Epoch:
    """This process's hold on the store."""

    def __init__(self, root: Path) -> None:
        """Open the lock files. Raises: OSError."""
        self._root = root
        self._alive = _open_lock_file(root / "alive")
        self._clean = root / "index" / "clean"

    @contextmanager
    def opening(self) -> Iterator[bool]:
        """Yield whether nobody else has the store open; on leaving, hold it open ourselves.

        Waits while another process opens or closes (recovery included).
        """
        with self._locked():
            yield self._is_alone()
            fcntl.flock(self._alive, fcntl.LOCK_SH)

    def was_clean(self) -> bool:
        """Return whether the last process out closed the store properly. Only while alone."""
        return self._clean.exists()

    def mark_open(self) -> None:
        """From now on a crash is an unclean stop. Every writer asks for it, alone or not: the one
        that was last may just have closed, and readers leave the file. Raises: OSError."""
        if self._clean.exists():
            self._clean.unlink()
            sync_directory(self._clean.parent)

    def mark_clean(self) -> None:
        """Say that a store just made was left in order, and let go of it. Raises: OSError."""
        self._write_clean()
        self.release()

    @contextmanager
    def closing(self) -> Iterator[bool]:
        """Yield whether we are the last one; on leaving without error the stop was clean."""
        with self._locked():
            is_last = self._is_alone()
            yield is_last
            if is_last:
                with contextlib.suppress(OSError):  # then the next opener checks, that is all
                    self._write_clean()

    def release(self) -> None:
        """Let go of the store without saying that it is clean. Idempotent."""
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1

    def _is_alone(self) -> bool:
        """Take `alive` exclusively; return whether nobody else holds it. Under open.lock only."""
        try:
            fcntl.flock(self._alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _write_clean(self) -> None:
        self._clean.touch(mode=0o600)
        sync_directory(self._clean.parent)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = _open_lock_file(self._root / "open.lock")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _open_lock_file(path: Path) -> int:
    # O_CLOEXEC: a program started by a daemon must not inherit its hold on the store.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
