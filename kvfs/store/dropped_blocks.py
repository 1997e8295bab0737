"""<store>/index/dropped-*: block files whose labels no longer count.

Owns these journals. A collection drops thousands of blocks; clearing the label of each before it
goes was three quarters of its time, for files that are unlinked a moment later. Instead a batch of
them is written to a journal, synced, before the transactions that drop them; a rebuild trusts the
label of none (docs/adr/0011). Names carry random generations that are never used again, so an entry
can be one too many, never wrong: a block that stays after all merely has no name in a rebuild.

Holds: one journal a process, flocked while it may still drop what it noted; an entry leaves it
only once its file is gone or its label is cleared, by its owner, or by anybody when that one died.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from kvfs.clock import Randomness
from kvfs.model import Digest
from kvfs.store.block_files import BlockFiles, os_error
from kvfs.store.namespaces import sync_directory
from kvfs.store.objects import TrashKey

PREFIX = "dropped-"
MAX_LENGTH = 64 << 20
"""1.6 million entries (I8); then labels are cleared one by one."""
MAX_OPEN_ATTEMPTS = 16
_ENTRY = struct.Struct(">32sQ")


class DroppedLabels:
    """Labels as a transaction sees them that drops journalled blocks."""

    def __init__(self, files: BlockFiles, journalled: set[TrashKey]) -> None:
        self._files = files
        self._journalled = journalled

    def clear_label(self, digest: Digest, generation: int) -> None:
        """Clear the label of a block that lives on: a copy of it must not carry the old name."""
        self._files.clear_label(digest, generation)

    def drop_label(self, digest: Digest, generation: int) -> None:
        """Nothing, for a journalled block: its file goes as soon as this is committed."""
        if (digest, generation) not in self._journalled:
            self._files.clear_label(digest, generation)


class DroppedBlocks:
    """This process's journal. Not thread-safe: one thread drops at a time."""

    def __init__(self, root: Path, files: BlockFiles, randomness: Randomness) -> None:
        self._root = root
        self._files = files
        self._randomness = randomness
        self._descriptor = -1
        self._path = root
        self._length = 0

    def note(self, blocks: Sequence[TrashKey]) -> DroppedLabels:
        """Record blocks before a transaction drops them; return the labels for it.

        Where there is no room for a record, the labels are cleared one by one.
        """
        journalled: set[TrashKey] = set()
        data = b"".join(_ENTRY.pack(*block) for block in blocks)
        if data and self._length + len(data) <= MAX_LENGTH and self._write(data):
            journalled.update(blocks)
        return DroppedLabels(self._files, journalled)

    def settle(self) -> None:
        """Empty the journal once its files are unlinked; those still there lose their labels.

        Only while no transaction that was given labels is under way. Raises: Unavailable, Denied.
        """
        if self._length:
            _settle(self._descriptor, self._files)
            self._length = 0

    def adopt_dead(self) -> None:
        """Settle and remove the journals of processes that died. Raises: Unavailable, Denied."""
        for path in _journals(self._root):
            if path == self._path:
                continue
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue  # its owner has just removed it, or we are out of descriptors
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                pass
            else:
                _settle(descriptor, self._files)
                path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Settle, and remove the journal."""
        if self._descriptor < 0:
            return
        try:
            self.settle()
            self._path.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)
            self._descriptor, self._path = -1, self._root

    def _write(self, data: bytes) -> bool:
        try:
            if self._descriptor < 0:
                self._open()
            # At a whole entry: what a full disk tore is written over.
            if os.pwrite(self._descriptor, data, self._length) != len(data):
                return False
            os.fdatasync(self._descriptor)
        except OSError:
            return False
        self._length += len(data)
        return True

    def _open(self) -> None:
        for _ in range(MAX_OPEN_ATTEMPTS):
            path = self._root / "index" / f"{PREFIX}{self._randomness.token(8).hex()}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Another process may have taken it for a dead one's before it was locked.
            if os.fstat(descriptor).st_nlink:
                self._descriptor, self._path, self._length = descriptor, path, 0
                sync_directory(self._root / "index")
                return
            os.close(descriptor)
        raise OSError("the journal was taken away again and again")


def read_dropped(root: Path) -> set[TrashKey]:
    """Return every entry of every journal, dead processes' included. Raises: Unavailable."""
    found: set[TrashKey] = set()
    for path in _journals(root):
        try:
            found.update(_parse(path.read_bytes()))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise os_error(error, f"cannot read {path.name}") from error
    return found


def _settle(descriptor: int, files: BlockFiles) -> None:
    try:
        for digest, generation in _parse(os.pread(descriptor, MAX_LENGTH, 0)):
            if files.length(digest, generation) is not None:
                files.clear_label(digest, generation)
        # Behind the unlinks and cleared labels in the file system's own journal: no power loss
        # undoes those and keeps this.
        os.ftruncate(descriptor, 0)
    except OSError as error:
        raise os_error(error, "cannot settle a journal of dropped blocks") from error


def _parse(raw: bytes) -> Iterator[TrashKey]:
    """Yield the entries; a torn last one belongs to a transaction that never began."""
    whole = len(raw) - len(raw) % _ENTRY.size
    for digest, generation in _ENTRY.iter_unpack(memoryview(raw)[:whole]):
        yield Digest(digest), generation


def _journals(root: Path) -> list[Path]:
    return sorted((root / "index").glob(f"{PREFIX}*"))
