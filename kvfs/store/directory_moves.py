"""<store>/index/directory-moves: paths that labels may no longer mean.

Owns that journal. A label holds its block's full path; moving a directory is one row, so the labels
below it go stale all at once. The old path is appended here, synced, before the move commits, and a
rebuild trusts no label below it. An index snapshot makes the entries before it obsolete.
No clocks: entries are ordered by their place in the file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvfs.model import NamespaceId
from kvfs.store.block_files import os_error

NAME = "directory-moves"


def append_directory_move(root: Path, namespace_id: NamespaceId, key: bytes) -> None:
    """Record that labels below `key` (ending in "/") are stale. Raises: NoSpace, Unavailable."""
    # The newline before it ends a line that a full disk tore.
    line = "\n" + json.dumps([namespace_id, key.hex()]) + "\n"
    try:
        with _locked(root) as descriptor:
            is_first = not os.fstat(descriptor).st_size
            if os.write(descriptor, line.encode()) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(descriptor)
            if is_first:
                _sync_name(root)
    except OSError as error:
        raise os_error(error, "cannot journal a directory's move") from error


def read_directory_moves(root: Path) -> list[tuple[NamespaceId, bytes]]:
    """Return (namespace, stale path) of every entry; a torn last line is passed over."""
    try:
        lines = (root / "index" / NAME).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    moves = []
    for line in lines:
        try:
            namespace_id, key = json.loads(line)
            moves.append((NamespaceId(int(namespace_id)), bytes.fromhex(key)))
        except (ValueError, TypeError):
            continue
    return moves


def journal_length(root: Path) -> int:
    """Return the journal's length now, before a snapshot is taken."""
    with _locked(root) as descriptor:
        return os.fstat(descriptor).st_size


def forget_before(root: Path, length: int) -> None:
    """Drop the first `length` bytes of entries: a snapshot taken after them is on disk."""
    with _locked(root) as descriptor:
        rest = os.pread(descriptor, os.fstat(descriptor).st_size, length)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, rest)
        os.fdatasync(descriptor)


def _sync_name(root: Path) -> None:
    """Put the new journal's own name on disk."""
    directory = os.open(root / "index", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def _locked(root: Path) -> Iterator[int]:
    path = root / "index" / NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
