"""Files under <store>/blocks: staging, linking, opening, unlinking. Never the index.

Owns every path below the store's root. A block file is payload only, from offset 0, so passthrough,
sendfile, mmap and O_DIRECT map it one to one; what a rebuild needs is in one extended attribute,
`user.kvfs.block` (see BlockLabel).

Holds: a file gets its name only when it is complete, and is never written afterwards (I3); names
carry a random generation, so a name is never used twice and unlinking can never hit a newer file.
Descriptors of staging files hold an exclusive flock until the commit: the orphan sweep leaves
locked files alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kvfs.clock import Randomness
from kvfs.errors import Closed, Denied, KvfsError, NoSpace, Unavailable
from kvfs.model import Codec, Digest, NamespaceId

SECTOR = 4096
_LIBC = ctypes.CDLL(None, use_errno=True)
LABEL_NAME = "user.kvfs.block"
_LABEL = struct.Struct("<BIQQQIIIBBIIHBBB")
_LABEL_VERSION = 1


_COMMITTED = 0o600
_PENDING = _COMMITTED | stat.S_ISVTX


def sectors(length: int) -> int:
    """Return `length` in whole sectors: what a file of it is charged against capacity."""
    return -(-length // SECTOR) * SECTOR


@dataclass(frozen=True, slots=True)
class BlockLabel:
    """What one name of a block needs to come back after the index is lost.

    `path` is the key below its namespace; b"" = no name can be shown current (renamed or dropped
    since), so a rebuild forgets the block instead of guessing.
    """

    namespace_id: NamespaceId
    published_ns: int
    mtime_ns: int
    size: int = 0
    """Logical bytes."""
    codec: Codec = Codec.RAW
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    priority: int = 100
    pin: int = 0
    expires_at_s: int = 0
    ttl_s: int = 0
    ttl_class: int = 0
    is_sliding: bool = False
    etag: str = ""
    path: bytes = b""

    def pack(self) -> bytes:
        """Return the stored form."""
        etag = self.etag.encode("ascii")
        return (
            _LABEL.pack(
                _LABEL_VERSION, self.namespace_id, self.published_ns, self.mtime_ns, self.size,
                self.mode, self.uid, self.gid, self.priority, self.pin, self.expires_at_s,
                self.ttl_s, self.ttl_class, self.is_sliding, self.codec, len(etag),
            )
            + etag
            + self.path
        )  # fmt: skip

    @classmethod
    def unpack(cls, raw: bytes) -> BlockLabel | None:
        """Return the label in `raw`, or None where it is none of ours."""
        if len(raw) < _LABEL.size or raw[0] != _LABEL_VERSION:
            return None
        (
            _, namespace_id, published_ns, mtime_ns, size, mode, uid, gid, priority, pin,
            expires_at_s, ttl_s, ttl_class, is_sliding, codec, etag_length,
        ) = _LABEL.unpack_from(raw)  # fmt: skip
        etag = raw[_LABEL.size : _LABEL.size + etag_length].decode("ascii", "replace")
        return cls(
            namespace_id, published_ns, mtime_ns, size, Codec(codec), mode, uid, gid, priority,
            pin, expires_at_s, ttl_s, ttl_class, bool(is_sliding), etag,
            raw[_LABEL.size + etag_length :],
        )  # fmt: skip


def read_at(descriptor: int, offset: int, length: int) -> bytes:
    """Return `length` bytes at `offset`, fewer only at the end. Raises: OSError."""
    pieces = []
    while length > 0:
        piece = os.pread(descriptor, length, offset)
        if not piece:
            break
        pieces.append(piece)
        offset, length = offset + len(piece), length - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def os_error(error: OSError, doing: str) -> KvfsError:
    """Return the kvfs error for a failed system call, as a sentence."""
    text = f"{doing}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{text}: free space on the disk under the store")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return Unavailable(f"{text}: raise the limit on open files (ulimit -n), or retry")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Denied(f"{text}: check the store's owner, mode and mount options")
    if error.errno == errno.EBADF:
        return Closed(f"{doing}: the store was closed: open it again")
    return Unavailable(f"{text}: check the disk, then retry")


@dataclass(frozen=True, slots=True)
class StagingFile:
    """An open file that nobody can find yet."""

    descriptor: int
    path: Path | None
    """Its temporary name, only where O_TMPFILE is missing."""


class BlockFiles:
    """The files of one store. Thread-safe; every path is relative to a directory descriptor."""

    DIRECTORIES = (
        "blocks", "files", "staging", "quarantine", "leases", "namespaces", "index",
    )  # fmt: skip

    def __init__(self, root: Path, randomness: Randomness) -> None:
        """Open the store's directories. Raises: OSError."""
        self.root = root
        self._randomness = randomness
        self._directory = os.open(root / "blocks", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._quarantine = root / "quarantine"
        self._staging = root / "staging"
        self._has_tmpfile = True

    def close(self) -> None:
        """Close the directory; later calls raise Closed (and never meet a descriptor reused)."""
        descriptor, self._directory = self._directory, -1
        if descriptor >= 0:
            os.close(descriptor)

    @staticmethod
    def create_directories(root: Path) -> None:
        """Make the empty directories of a new store (0700: payloads are nobody else's business)."""
        for name in BlockFiles.DIRECTORIES:
            (root / name).mkdir(mode=0o700)
        for prefix in range(256):
            (root / "blocks" / f"{prefix:02x}").mkdir(mode=0o700)

    @staticmethod
    def name(digest: Digest, generation: int) -> str:
        """Return the file's path under blocks/."""
        text = digest.hex()
        return f"{text[:2]}/{text}.{generation:016x}"

    @staticmethod
    def parse_name(name: str) -> tuple[Digest, int] | None:
        """Return (digest, generation) of a file name in blocks/xx/, or None if it is not ours."""
        text, dot, generation = name.partition(".")
        if not dot or len(text) != 64 or len(generation) != 16:
            return None
        try:
            return Digest(bytes.fromhex(text)), int(generation, 16)
        except ValueError:
            return None

    def open_staging(self) -> StagingFile:
        """Return a new locked, read-write file on the blocks' file system, in no directory.

        Where O_TMPFILE is missing it has a name under staging/ until it is linked; a crash leaves
        that for the sweep. Raises: NoSpace, Unavailable, Denied.
        """
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            if self._has_tmpfile:
                try:
                    descriptor = os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=self._directory)
                    return StagingFile(_locked(descriptor), None)
                except OSError as error:
                    if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                        raise
                    self._has_tmpfile = False
            path = self._staging / f"stage-{self._randomness.token(12).hex()}"
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            return StagingFile(_locked(descriptor), path)
        except OSError as error:
            raise os_error(error, "cannot create a staging file") from error

    @staticmethod
    def preallocate(descriptor: int, length: int) -> None:
        """Allocate `length` bytes without changing the file's size. Raises: OSError."""
        keep_size = 1
        if _LIBC.fallocate(descriptor, keep_size, ctypes.c_int64(0), ctypes.c_int64(length)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def link(self, staging: StagingFile, digest: Digest, generation: int) -> None:
        """Give a complete staging file its name. Raises: NoSpace, Unavailable, Denied."""
        name = self.name(digest, generation)
        try:
            if staging.path is not None:
                os.rename(staging.path, name, dst_dir_fd=self._directory)
                return
            # Python passes AT_SYMLINK_FOLLOW only together with a dir_fd; without: EXDEV.
            os.link(
                f"/proc/self/fd/{staging.descriptor}",
                name,
                dst_dir_fd=self._directory,
                follow_symlinks=True,
            )
        except OSError as error:
            raise os_error(error, "cannot name a block file") from error

    def discard(self, staging: StagingFile) -> None:
        """Drop a staging file that was not linked."""
        if staging.path is not None:
            with contextlib.suppress(FileNotFoundError):
                staging.path.unlink()
        os.close(staging.descriptor)

    def open(self, digest: Digest, generation: int) -> int | None:
        """Return a read-only descriptor, or None when the file is not there (any more).

        Raises: Unavailable (descriptors, I/O), Denied.
        """
        try:
            return os.open(
                self.name(digest, generation), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise os_error(error, "cannot open a block file") from error

    def unlink(self, digest: Digest, generation: int) -> bool:
        """Remove a block file; return whether it was there. Never called under the write lock: a
        file of 4 MB takes 1 ms, one of 100 MB 28 ms. Raises: Unavailable, Denied."""
        try:
            os.unlink(self.name(digest, generation), dir_fd=self._directory)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise os_error(error, "cannot remove a block file") from error
        return True

    def quarantine(self, digest: Digest, generation: int) -> None:
        """Move a file that failed its check out of every reader's way (kept for forensics)."""
        name = self.name(digest, generation)
        with contextlib.suppress(FileNotFoundError):
            os.rename(name, self._quarantine / Path(name).name, src_dir_fd=self._directory)

    def trim_quarantine(self, max_bytes: int, until_s: int) -> int:
        """Remove what was quarantined before `until_s`, then the oldest above `max_bytes`.

        Return how many files went.
        """
        kept = removed = 0
        found = [(path.stat(), path) for path in self._quarantine.iterdir()]
        # The rename into quarantine set the change time.
        for status, path in sorted(found, key=lambda each: each[0].st_ctime_ns, reverse=True):
            kept += status.st_blocks * 512
            if kept > max_bytes or status.st_ctime < until_s:
                kept -= status.st_blocks * 512
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def set_label(self, descriptor: int, label: BlockLabel) -> None:
        """Write the rebuild label of a staging file (before it is linked)."""
        try:
            os.setxattr(descriptor, LABEL_NAME, label.pack())
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise os_error(error, "cannot label a block file") from error

    @staticmethod
    def mark_pending(descriptor: int) -> None:
        """Say that no row names the file yet: its label is a wish that a rebuild must not grant.

        The sticky bit, which means nothing on a file: 2 us, and clearing it cannot race with
        whoever clears the label. Raises: Unavailable, Denied.
        """
        try:
            os.fchmod(descriptor, _PENDING)
        except OSError as error:
            raise os_error(error, "cannot mark a block file") from error

    @staticmethod
    def mark_committed(descriptor: int) -> None:
        """Take the mark away, after the commit; where that fails, a rebuild forgets the name."""
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, _COMMITTED)

    def is_pending(self, digest: Digest, generation: int) -> bool:
        """Return whether the file's writer died before its commit, or is just about to."""
        try:
            name = self.name(digest, generation)
            return bool(os.stat(name, dir_fd=self._directory).st_mode & stat.S_ISVTX)
        except OSError:
            return True

    def read_label(self, digest: Digest, generation: int) -> BlockLabel | None:
        """Return the label of a linked block file, if it has one."""
        try:
            return BlockLabel.unpack(os.getxattr(self._path(digest, generation), LABEL_NAME))
        except OSError:
            return None

    def clear_label(self, digest: Digest, generation: int) -> None:
        """Forget the name in a label, because it is about to be dropped or changed."""
        label = self.read_label(digest, generation)
        if label is not None and label.path:
            self.rewrite_label(digest, generation, _nameless(label))

    def drop_label(self, digest: Digest, generation: int) -> None:
        """Forget the name in the label of a file that goes: its unlinking may come much later."""
        self.clear_label(digest, generation)

    def rewrite_label(self, digest: Digest, generation: int, label: BlockLabel) -> None:
        """Replace the label of a linked file; a file that is gone needs none."""
        with contextlib.suppress(OSError):
            os.setxattr(self._path(digest, generation), LABEL_NAME, label.pack())

    def _path(self, digest: Digest, generation: int) -> str:
        # xattr calls take no dir_fd; /proc/self/fd keeps them on the opened store directory.
        return f"/proc/self/fd/{self._directory}/{self.name(digest, generation)}"

    def sync_directory(self, digest: Digest) -> None:
        """fsync the directory that holds a block's name (0.2 ms). Raises: Unavailable."""
        try:
            descriptor = os.open(
                f"{digest[0]:02x}", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._directory
            )
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise os_error(error, "cannot sync a block directory") from error

    def sync_file_system(self) -> None:
        """Write everything of the store's file system to disk (8 ms for 16 x 1 MB).

        Raises: Unavailable (a write-back failed since the last call: syncfs reports it once).
        """
        if _LIBC.syncfs(self._directory) != 0:
            number = ctypes.get_errno()
            raise os_error(OSError(number, os.strerror(number)), "cannot sync the file system")

    def walk(self) -> Iterator[tuple[Digest, int]]:
        """Yield (digest, generation) of every block file, in no useful order.

        Raises: Unavailable, Denied.
        """
        for prefix in range(256):
            try:
                names = os.listdir(f"/proc/self/fd/{self._directory}/{prefix:02x}")
            except OSError as error:
                raise os_error(error, "cannot list block files") from error
            for name in names:
                parsed = self.parse_name(name)
                if parsed is not None:
                    yield parsed

    def length(self, digest: Digest, generation: int) -> int | None:
        """Return a block file's length, or None when it is not there."""
        try:
            return os.stat(self.name(digest, generation), dir_fd=self._directory).st_size
        except OSError:
            return None

    def sweep_staging(self) -> Iterator[bool]:
        """Remove dead writers' named staging files; yield True for each that went."""
        for path in sorted(self._staging.glob("stage-*")):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                yield True
            except OSError:
                yield False
            finally:
                os.close(descriptor)

    def try_lock(self, digest: Digest, generation: int) -> int | None:
        """Return a descriptor holding the file's flock, or None if its writer still has it."""
        descriptor = self.open(digest, generation)
        if descriptor is None:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor


def _locked(descriptor: int) -> int:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _nameless(label: BlockLabel) -> BlockLabel:
    return replace(label, path=b"")
