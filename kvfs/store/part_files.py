"""The files of multipart uploads: writing one part, and a finished file on its way out.

Owns paths, byte ranges, their locks and the copying between files; which part goes where, and every
row, is uploads.py's. Holds: a writer's bytes are reserved before they are written, and given back
unless the part became a row.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from kvfs.errors import Closed, TooLarge, Unavailable
from kvfs.model import NO_DIGEST, Codec, Digest, NamespaceId, PartInfo
from kvfs.store.block_files import StagingFile, os_error, sectors
from kvfs.store.read_view import ReadView
from kvfs.store.space import Space
from kvfs.store.staging import STEP

MAX_PART_LENGTH = 5 << 30
PREFIX = "upload-"
_COPY_PIECE = 64 << 20
_SHOWN_PIECE = 1 << 20
_FLOCK = struct.Struct("hhqqi4x")


class PartOwner(Protocol):
    """What a writer needs of the uploads it belongs to."""

    space: Space

    def commit_part(
        self, writer: PartWriter, etag: str, attributes: Mapping[str, bytes]
    ) -> PartInfo: ...

    def drop_writer(self, writer: PartWriter) -> None: ...


class PartWriter:
    """One part being written: private until `finish`. Not thread-safe; `close` aborts."""

    def __init__(
        self,
        owner: PartOwner,
        upload_id: bytes,
        part_number: int,
        fd: int,
        offset: int,
        unique: int,
    ) -> None:
        """Use Store.write_part."""
        self._owner = owner
        self.upload_id = upload_id
        self.part_number = part_number
        self._fd = fd
        self._offset = offset
        self.unique = unique
        self._end = 0
        self._reserved = 0

    @property
    def fd(self) -> int:
        """The descriptor; byte i of the part is byte `offset + i` of it. Raises: Closed."""
        if self._fd < 0:
            raise Closed("this part was finished or closed: write it again")
        return self._fd

    @property
    def offset(self) -> int:
        """Where the part begins in its file."""
        return self._offset

    @property
    def is_in_place(self) -> bool:
        """Whether the bytes are written where the finished object will have them."""
        return self.unique == 0

    @property
    def reserved(self) -> int:
        """Bytes reserved for it now."""
        return self._reserved

    @property
    def size(self) -> int:
        """Bytes written so far (the end of the farthest write)."""
        return self._end

    def ensure(self, total_bytes: int) -> None:
        """Reserve space for `total_bytes` in all. Raises: NoSpace, TooLarge."""
        if total_bytes > MAX_PART_LENGTH:
            raise TooLarge(f"{total_bytes} bytes are more than one part may have (5 GiB)")
        wanted = sectors(total_bytes)
        if wanted > self._reserved:
            self._owner.space.reserve(wanted - self._reserved)
            self._reserved = wanted

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        """Write all of `data` at `offset` within the part. Raises: NoSpace, Unavailable."""
        end = offset + len(data)
        if sectors(end) > self._reserved:
            self.ensure(min(max(end, self._reserved + STEP), MAX_PART_LENGTH))
        view, at = memoryview(data), self._offset + offset
        try:
            while view:
                count = os.pwrite(self.fd, view, at)
                view = view[count:]
                at += count
        except OSError as error:
            raise os_error(error, "cannot write a part") from error
        self._end = max(self._end, end)
        return len(data)

    def copy_from(
        self, view: ReadView, offset: int, length: int, see: Callable[[memoryview], None]
    ) -> None:
        """Make the part of a range of an open object, and show its bytes to `see` in order.

        What is stored raw is copied inside the kernel, by reference where the file system can
        (where it cannot, through memory were a third cheaper: bench gateway_copies); what is
        compressed is decoded. Raises: NoSpace, Unavailable (the object changed), Corrupt.
        """
        self.ensure(length)
        is_raw = view.codec is Codec.RAW
        if is_raw:
            copy_range(view.fd, offset, self.fd, self._offset, length)
            self._end = length
        for at in range(0, length, _SHOWN_PIECE):
            wanted = min(_SHOWN_PIECE, length - at)
            piece = view.pread(offset + at, wanted)
            if len(piece) != wanted:
                raise Unavailable("the object became shorter while it was copied: retry")
            see(memoryview(piece))
            if not is_raw:
                self.pwrite(piece, at)
        if not view.is_unchanged():
            raise Unavailable("the object was written to while it was copied: retry")

    def finish(self, etag: str, attributes: Mapping[str, bytes] | None = None) -> PartInfo:
        """Make the part count. The caller has verified its bytes; the writer ends in any case.

        Raises: UploadNotFound (completed or aborted meanwhile).
        """
        return self._owner.commit_part(self, etag, attributes or {})

    def spend(self, charged: int) -> int:
        """End the writer; return `charged` less what it had reserved (for Uploads)."""
        os.close(self._fd)
        self._fd = -1
        reserved, self._reserved = self._reserved, 0
        return charged - reserved

    def close(self) -> None:
        """Drop the part and give its space back. Idempotent."""
        if self._fd >= 0:
            self._owner.drop_writer(self)

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Assembled:
    """A complete file that nobody writes to, on its way through the publisher.

    reserved: bytes reserved for what had to be copied; the parts' own are the upload's until the
    publishing transaction moves them (see Uploads._end).
    """

    def __init__(self, fd: int, size: int, space: Space, reserved: int) -> None:
        self.fd = fd
        self.size = size
        self._space = space
        self._reserved = reserved

    def ensure(self, total_bytes: int, /) -> None:
        """Nothing to do: it does not grow any more."""

    def digest(self, namespace_id: NamespaceId, size: int, /) -> Digest:
        """Parts come in any order: the file is read for it."""
        return NO_DIGEST

    def take(self) -> tuple[StagingFile, int]:
        fd, self.fd = self.fd, -1
        # Without a path the publisher leaves the file's own name alone, so a failure keeps it.
        reserved, self._reserved = self._reserved, 0
        return StagingFile(fd, None), reserved

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._space.release(self._reserved)
        self._reserved = 0


class UploadFiles:
    """The files of uploads: `upload-<id>` the base, `upload-<id>.<part>.<unique>` one apart."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def base(self, raw_id: bytes) -> Path:
        """Return the path of an upload's base file."""
        return self._directory / f"{PREFIX}{raw_id.hex()}"

    def own(self, raw_id: bytes, part_number: int, unique: int) -> Path:
        """Return the path of a part that has a file of its own."""
        return self._directory / f"{PREFIX}{raw_id.hex()}.{part_number}.{unique:016x}"

    def open(self, path: Path) -> int:
        """Open a file for writing, making it when absent. Raises: NoSpace, Unavailable, Denied."""
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise os_error(error, "cannot open an upload's file") from error

    def copy(self, path: Path, offset: int, length: int, fd: int, at: int) -> None:
        """Copy a range of a part's file into an open one. Raises: NoSpace, Unavailable."""
        try:
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, "cannot read a part") from error
        try:
            copy_range(source, offset, fd, at, length)
        finally:
            os.close(source)

    def all(self, raw_id: bytes | None = None) -> list[Path]:
        """Return every file of one upload, or of all."""
        return sorted(self._directory.glob(f"{PREFIX}{raw_id.hex() if raw_id else ''}*"))

    def unlink_all(self, raw_id: bytes) -> None:
        """Remove every file of an upload that is over."""
        for path in self.all(raw_id):
            self.unlink(path)

    def unlink(self, path: Path) -> None:
        """Remove one file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            path.unlink()

    @staticmethod
    def parse(name: str) -> tuple[bytes, int, int] | None:
        """Return (upload id, part number, unique) of a file's name; (id, 0, 0) of a base file."""
        text, _, rest = name.removeprefix(PREFIX).partition(".")
        number, _, unique = rest.partition(".")
        try:
            return bytes.fromhex(text), int(number or "0"), int(unique or "0", 16)
        except ValueError:
            return None


def lock_range(fd: int, offset: int, length: int) -> bool:
    """Take an exclusive OFD lock on a byte range (0, 0 = the whole file); return whether it was
    free. It belongs to the open file description: it ends with the descriptor, whoever dies."""
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, length, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise os_error(error, "cannot lock an upload's file") from error
    return True


def preallocate_range(fd: int, offset: int, length: int) -> None:
    try:
        os.posix_fallocate(fd, offset, length)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise os_error(error, "cannot preallocate a part") from error


def copy_range(source: int, offset: int, target: int, at: int, length: int) -> None:
    """Copy bytes between files inside the kernel. Raises: NoSpace, Unavailable."""
    try:
        while length > 0:
            count = os.copy_file_range(source, target, min(length, _COPY_PIECE), offset, at)
            if count == 0:
                raise Unavailable("the file to copy from is shorter than it should be")
            offset += count
            at += count
            length -= count
    except OSError as error:
        raise os_error(error, "cannot copy a part") from error
