"""A file being written: private, reserved, and nothing at all until it is published.

Owns the bytes between `stage` and `publish`. Space is reserved before the first byte: all of it
when the size is known (and preallocated, so a full disk shows at once), in steps otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import os

from kvfs.codec.digest import RunningDigest
from kvfs.errors import Closed, NoSpace, TooLarge
from kvfs.model import NO_DIGEST, Digest, NamespaceId
from kvfs.store import mutable_paths
from kvfs.store.block_files import SECTOR, BlockFiles, StagingFile, os_error, sectors
from kvfs.store.space import Space

STEP = 8 << 20
"""Reserved at a time for a writer that does not say how much is coming."""
PREALLOCATE_FROM = 4 << 20
"""fallocate saves 0.06 CPU s/GB on large files and only costs (20 us) on small ones."""
MAX_OBJECT_LENGTH = 5 << 40
"""S3's limit on one object: 5 TiB."""


class Staging:
    """One writer's private file. Not thread-safe; `publish` and `close` end it."""

    def __init__(
        self,
        files: BlockFiles,
        space: Space,
        namespace_id: NamespaceId,
        size_bytes: int | None,
        salt: bytes = b"",
    ) -> None:
        """Reserve and open. Raises: NoSpace, TooLarge, Unavailable, Denied.

        salt: the namespace's; then what `write` and `pwrite` are given is hashed on its way, and
        nobody may write in another manner.
        """
        self.namespace_id = namespace_id
        self._running = RunningDigest(salt) if salt else None
        self._files = files
        self._space = space
        self._reserved = 0
        self._is_held = False
        self._file: StagingFile | None = None
        self.ensure(size_bytes or 0)
        try:
            self._file = files.open_staging()
            if size_bytes is not None and size_bytes >= PREALLOCATE_FROM:
                self._preallocate(size_bytes)
        except BaseException:
            self.close()
            raise

    @property
    def fd(self) -> int:
        """The open descriptor, O_RDWR; valid until publish or close."""
        return self.file.descriptor

    @property
    def file(self) -> StagingFile:
        """The file itself. Raises: Closed."""
        if self._file is None:
            raise Closed("this staging file was published or closed: stage a new one")
        return self._file

    @property
    def size(self) -> int:
        """Bytes in the file now. Raises: Unavailable, Closed."""
        try:
            return os.fstat(self.fd).st_size
        except OSError as error:
            raise os_error(error, "cannot look at a staging file") from error

    @property
    def reserved(self) -> int:
        """Bytes reserved for it now."""
        return self._reserved

    def ensure(self, total_bytes: int) -> None:
        """Reserve space for `total_bytes` in all before the file grows to it.

        Raises: NoSpace, TooLarge.
        """
        wanted = sectors(total_bytes)
        if wanted <= self._reserved:
            return
        if total_bytes > MAX_OBJECT_LENGTH:
            raise TooLarge(f"{total_bytes} bytes are more than one object may have (5 TiB)")
        grow = wanted - self._reserved
        self._space.reserve(grow)
        self._reserved += grow

    def make_room(self, offset: int, length: int) -> None:
        """Reserve what writing `length` bytes at `offset` can take. Raises: NoSpace, TooLarge."""
        self.ensure(offset + length)

    def watch(self, ahead: int) -> None:
        """Account for what somebody writes through another descriptor: reserve what is allocated,
        and `ahead` more if that is to be had.

        At a full store the file is emptied, and the kernel takes no more for it where it can be
        told so. Raises: NoSpace, Unavailable.
        """
        allocated = self._allocated()
        try:
            self.ensure(allocated)
            if sectors(allocated + ahead) > self._reserved and self._space.could_grant(
                sectors(allocated + ahead) - self._reserved
            ):
                self.ensure(allocated + ahead)
        except NoSpace:
            self._empty()
            raise

    def _allocated(self) -> int:
        try:
            return os.fstat(self.fd).st_blocks * 512
        except OSError as error:
            raise os_error(error, "cannot look at a staging file") from error

    def _empty(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)
        self._is_held = mutable_paths.hold(self.fd, is_held=True)

    def write(self, data: bytes | memoryview) -> int:
        """Append at the descriptor's position; return len(data). Raises: NoSpace, Unavailable."""
        try:
            position = os.lseek(self.fd, 0, os.SEEK_CUR)
        except OSError as error:
            raise os_error(error, "cannot write a staging file") from error
        return self.pwrite(data, position, moves=True)

    def pwrite(self, data: bytes | memoryview, offset: int, *, moves: bool = False) -> int:
        """Write all of `data` at `offset`; return its length. Raises: NoSpace, Unavailable."""
        whole = view = memoryview(data).cast("B")  # short writes are counted in bytes, not items
        start, length = offset, len(view)
        end = offset + length
        if sectors(end) > self._reserved:
            self._ensure_step(end, length)
        try:
            while view:
                count = os.write(self.fd, view) if moves else os.pwrite(self.fd, view, offset)
                if not count:  # POSIX allows it; going on would never end
                    raise OSError(errno.EIO, "nothing more could be written")
                view = view[count:]
                offset += count
        except OSError as error:
            raise os_error(error, "cannot write a staging file") from error
        if self._running is not None:
            self._hash(whole, start)
        return length

    def _hash(self, data: memoryview, offset: int) -> None:
        """Add what was just written; a writer that goes back or leaves a gap is not followed."""
        if self._running is not None and offset == self._running.length:
            self._running.update(data)
        else:
            self._running = None

    def digest(self, namespace_id: NamespaceId, size: int) -> Digest:
        """Return the digest under a namespace's salt if all `size` bytes were hashed on their way;
        NO_DIGEST where the file must be read for it."""
        running = self._running
        if running is None or running.length != size or namespace_id != self.namespace_id:
            return NO_DIGEST
        return running.digest() if size else NO_DIGEST

    def _ensure_step(self, end: int, length: int) -> None:
        """Reserve a step ahead; when the store is too full for that, exactly what is needed.

        A file with holes needs no more than it has and what comes.
        """
        end = min(end, self._allocated() + sectors(length) + SECTOR)
        if sectors(end) <= self._reserved:
            return
        ahead = min(max(end, self._reserved + STEP), MAX_OBJECT_LENGTH)
        if self._space.could_grant(sectors(ahead) - self._reserved):
            self.ensure(ahead)
        else:
            self.ensure(end)

    def truncate(self, length: int) -> None:
        """Set the file's length; what is added is a hole and costs nothing. Raises: Unavailable."""
        if length > MAX_OBJECT_LENGTH:
            raise TooLarge(f"{length} bytes are more than one object may have (5 TiB)")
        self._running = None
        try:
            os.ftruncate(self.fd, length)
        except OSError as error:
            raise os_error(error, "cannot size a staging file") from error

    def take(self) -> tuple[StagingFile, int]:
        """Hand file and reservation to publish; this object is closed afterwards."""
        file, reserved = self.file, self._reserved
        self._file, self._reserved = None, 0
        return file, reserved

    def close(self) -> None:
        """Drop the file and give its space back; nothing was ever visible. Idempotent."""
        if self._file is not None:
            file, self._file = self._file, None
            if self._is_held:  # else a file with a name could not be removed
                mutable_paths.hold(file.descriptor, is_held=False)
            self._files.discard(file)
        self._space.release(self._reserved)
        self._reserved = 0

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._file is not None:  # dropped without publish or close: nothing may leak
            with contextlib.suppress(OSError):
                self.close()

    def _preallocate(self, length: int) -> None:
        try:
            self._files.preallocate(self.fd, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise os_error(error, "cannot preallocate a staging file") from error
