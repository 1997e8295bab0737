"""Multipart uploads: parts from any process, published as one object.

Owns the tables `uploads` and `parts` and the files `staging/upload-<id>[.<part>.<unique>]`.

Parts of equal size are written where they will end up: part n of size P into one base file at
(n-1)*P. P is told by part 1, or guessed from the first part that arrives (the next power of two
from 8 MiB on, which is what SDKs use). A part goes into the base file only if it fits there, has no
row yet, and nobody is writing it (an OFD lock on its byte range); every other (sent again, of
another size) gets a file of its own. So Complete of equal parts copies nothing; else
copy_file_range does.

Holds:
- A part becomes a row only when its bytes are complete and verified by the caller.
- Nobody writes to a published file (I3): Complete first commits the state COMPLETING, then takes
  the base file's whole lock; a part writer takes its lock first and then looks at the state. If the
  lock is not free, or the layout does not fit, the parts are copied into a fresh file instead.
- Publishing and the end of the upload are one transaction (I2). A file is assembled in place only
  if all stored parts take part, so a Complete that died half way can be repeated with another list.
- Space (I4): a writer's bytes move from this process's grant to the upload in the transaction that
  makes the part a row, and back in the one that ends the upload.

Lock order: OFD lock before any index transaction; no lock is waited for.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kvfs.errors import (
    InvalidArgument,
    InvalidPart,
    InvalidPartOrder,
    KvfsError,
    NamespaceNotFound,
    PartTooSmall,
    TooLarge,
    UploadNotFound,
)
from kvfs.index import upload_rows as rows
from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.index.schema import split_key
from kvfs.index.upload_rows import PartRow, UploadRow, UploadState
from kvfs.model import Entry, NamespaceId, ObjectPath, PartInfo, Pin, PutOptions, UploadInfo
from kvfs.store.block_files import os_error, sectors
from kvfs.store.context import StoreContext
from kvfs.store.objects import find_namespace
from kvfs.store.part_files import (
    Assembled,
    PartWriter,
    UploadFiles,
    lock_range,
    preallocate_range,
)
from kvfs.store.publisher import Publisher
from kvfs.store.reader import Reader
from kvfs.store.space import Space
from kvfs.store.staging import MAX_OBJECT_LENGTH, PREALLOCATE_FROM

MAX_PARTS = 10_000
MIN_PART_LENGTH = 5 << 20
"""S3's least size of a part that is not the last."""
LIKELY_PART_LENGTH = 8 << 20
"""What boto3, awscli and the common runtime use until told otherwise."""
EXPIRE_AFTER_S = 24 * 3600
"""An upload without a new part for this long is abandoned: KV blocks are written in seconds."""
REMEMBER_DONE_S = 3600
MAX_LISTED = 1000


@dataclass(frozen=True, slots=True)
class CompletePart:
    """One line of a Complete: a part, and the ETag that the client got for it."""

    part_number: int
    etag: str


_Chosen = tuple[int, PartRow]
"""A part that a Complete names: its number and its row."""


class Uploads:
    """The multipart uploads of one open store. Thread-safe."""

    def __init__(
        self, context: StoreContext, space: Space, publisher: Publisher, reader: Reader
    ) -> None:
        self._context = context
        self.space = space
        self._publisher = publisher
        self._reader = reader
        self._files = UploadFiles(context.root / "staging")

    # -- begin, look, end -----------------------------------------------------------------------

    def create(self, path: ObjectPath, options: PutOptions) -> UploadInfo:
        """Begin an upload. Raises: NamespaceNotFound, InvalidName."""
        split_key(path.key)  # refuses what cannot be a name, before any part is sent
        upload_id = self._context.randomness.token(16)
        now_ns = self._context.clock.now_ns()

        def insert(txn: WriteTransaction) -> None:
            namespace_id, _ = find_namespace(txn, path.namespace)
            row = UploadRow(
                UploadState.OPEN, namespace_id, path.key, now_ns, now_ns, mode=options.mode,
                uid=options.uid, gid=options.gid, ttl_s=options.ttl_s,
                ttl_class=options.ttl_class, priority=options.priority, pin=options.pin,
                is_sliding=options.is_sliding, attributes=options.attributes,
            )  # fmt: skip
            rows.put_upload(txn, upload_id, row)

        self._context.commit(insert)
        return UploadInfo(upload_id.hex(), path, now_ns, options)

    def find(self, upload_id: str, path: ObjectPath) -> UploadInfo:
        """Return an open upload. Raises: UploadNotFound (also when it is another key's)."""
        with self._context.index.read() as txn:
            row = self._row(txn, _parse_id(upload_id), path)
        return UploadInfo(upload_id, path, row.created_ns, _options_of(row))

    def in_progress(
        self, namespace: bytes, *, prefix: bytes = b"", after: tuple[bytes, str] = (b"", "")
    ) -> list[UploadInfo]:
        """Return the open uploads of a namespace by key and id, those behind `after`, all of them.

        Uploads in progress are few (expiry sees to it), so they are sorted here, not in the index.
        Raises: NamespaceNotFound.
        """
        with self._context.index.read() as txn:
            namespace_id, _ = find_namespace(txn, namespace)
            found = [
                UploadInfo(
                    upload_id.hex(), ObjectPath(namespace, row.key), row.created_ns,
                    _options_of(row),
                )
                for upload_id, row in rows.uploads(txn)
                if row.namespace_id == namespace_id
                and row.state is not UploadState.DONE
                and row.key.startswith(prefix)
            ]  # fmt: skip
        found.sort(key=_listing_order)
        return [info for info in found if _listing_order(info) > after]

    def list_parts(
        self, upload_id: str, path: ObjectPath, *, after: int = 0, limit: int = MAX_LISTED
    ) -> list[PartInfo]:
        """Return up to `limit` parts behind number `after`. Raises: UploadNotFound."""
        found: list[PartInfo] = []
        with self._context.index.read() as txn:
            self._row(txn, _parse_id(upload_id), path)
            for part_number, row in rows.parts(txn, _parse_id(upload_id), after):
                if len(found) >= limit:
                    break
                found.append(_part_info(part_number, row))
        return found

    def abort(self, upload_id: str, path: ObjectPath) -> None:
        """Drop an upload and its parts. Raises: UploadNotFound."""
        raw_id = _parse_id(upload_id)

        def remove(txn: WriteTransaction) -> int:
            row = self._row(txn, raw_id, path)
            return self._remove(txn, raw_id, row)

        self.space.release(self._context.commit(remove))
        self._files.unlink_all(raw_id)

    # -- parts ----------------------------------------------------------------------------------

    def write_part(
        self, upload_id: str, path: ObjectPath, part_number: int, size_bytes: int | None
    ) -> PartWriter:
        """Return a writer for one part, its space reserved when the size is known.

        Raises: UploadNotFound, InvalidArgument, NoSpace, TooLarge, Unavailable.
        """
        if not 1 <= part_number <= MAX_PARTS:
            raise InvalidArgument(f"part numbers are 1 to {MAX_PARTS}, not {part_number}")
        raw_id = _parse_id(upload_id)
        part_size = self._part_size(raw_id, path, part_number, size_bytes)
        writer = None
        if size_bytes is not None and 0 < size_bytes <= part_size:
            writer = self._write_in_place(raw_id, path, part_number, part_size)
        writer = writer or self._write_apart(raw_id, part_number)
        try:
            writer.ensure(size_bytes or 0)
            if size_bytes is not None and size_bytes >= PREALLOCATE_FROM:
                preallocate_range(writer.fd, writer.offset, size_bytes)
        except BaseException:
            writer.close()
            raise
        return writer

    def _part_size(
        self, raw_id: bytes, path: ObjectPath, part_number: int, size_bytes: int | None
    ) -> int:
        """Return the distance of parts in the base file, settling it with the first part."""
        with self._context.index.read() as txn:
            row = self._row(txn, raw_id, path, accepts_parts=True)
        if row.part_size or not size_bytes:
            return row.part_size
        guess = size_bytes
        if part_number > 1:
            guess = max(LIKELY_PART_LENGTH, 1 << (size_bytes - 1).bit_length())

        def settle(txn: WriteTransaction) -> int:
            now = self._row(txn, raw_id, path, accepts_parts=True)
            if not now.part_size:
                now.part_size = guess
                rows.put_upload(txn, raw_id, now)
            return now.part_size

        return self._context.commit(settle)

    def _write_in_place(
        self, raw_id: bytes, path: ObjectPath, part_number: int, part_size: int
    ) -> PartWriter | None:
        """Return a writer into the base file, None where the part needs its own."""
        offset = (part_number - 1) * part_size
        if offset + part_size > MAX_OBJECT_LENGTH:
            return None
        fd = self._files.open(self._files.base(raw_id))
        try:
            if not lock_range(fd, offset, part_size):
                os.close(fd)
                return None
            # Only now: from here on a Complete either sees our lock or has been seen by us.
            with self._context.index.read() as txn:
                self._row(txn, raw_id, path, accepts_parts=True)
                is_taken = rows.get_part(txn, raw_id, part_number) is not None
        except BaseException:
            os.close(fd)
            raise
        if is_taken:
            os.close(fd)
            return None
        return PartWriter(self, raw_id, part_number, fd, offset, 0)

    def _write_apart(self, raw_id: bytes, part_number: int) -> PartWriter:
        unique = self._context.generation() or 1
        fd = self._files.open(self._files.own(raw_id, part_number, unique))
        fcntl.flock(fd, fcntl.LOCK_EX)
        return PartWriter(self, raw_id, part_number, fd, 0, unique)

    def commit_part(
        self, writer: PartWriter, etag: str, attributes: Mapping[str, bytes]
    ) -> PartInfo:
        """PartWriter.finish."""
        raw_id, number = writer.upload_id, writer.part_number
        charged = sectors(writer.size)
        row = PartRow(
            writer.size, self._context.clock.now_ns(), writer.offset, writer.unique, charged,
            etag, attributes,
        )  # fmt: skip
        try:
            if not writer.size and not writer.is_in_place:
                os.ftruncate(writer.fd, 0)
            old = self._context.commit(partial(self._insert_part, raw_id, number, row))
        except BaseException:
            writer.close()
            raise
        replaced = old.charged if old is not None and old.unique else 0
        self.space.release(replaced - writer.spend(charged))
        if old is not None and old.unique:
            self._files.unlink(self._files.own(raw_id, number, old.unique))
        return _part_info(number, row)

    def _insert_part(
        self, raw_id: bytes, number: int, row: PartRow, txn: WriteTransaction
    ) -> PartRow | None:
        """Store the row; return the one it replaces. The bytes become the upload's."""
        upload = self._row(txn, raw_id, None, accepts_parts=True)
        old = rows.get_part(txn, raw_id, number)
        # An old part in the base file keeps its bytes there, so they stay charged.
        change = row.charged - (old.charged if old is not None and old.unique else 0)
        self.space.discharge_to_upload(txn, change)
        upload.reserved += change
        upload.active_ns = row.modified_ns
        rows.put_upload(txn, raw_id, upload)
        rows.put_part(txn, raw_id, number, row)
        return old

    def drop_writer(self, writer: PartWriter) -> None:
        """PartWriter.close."""
        if writer.unique:
            self._files.unlink(self._files.own(writer.upload_id, writer.part_number, writer.unique))
        self.space.release(-writer.spend(0))

    # -- complete -------------------------------------------------------------------------------

    def complete(
        self,
        upload_id: str,
        path: ObjectPath,
        chosen: Sequence[CompletePart],
        options: PutOptions | None = None,
    ) -> Entry:
        """Publish the chosen parts, in their order, as the object; the upload is over then.

        options: attributes, ETag and condition of the object; None = those of the upload. Repeated
        after it succeeded it returns what it made, as long as that is still there.
        Raises: UploadNotFound, InvalidPart, InvalidPartOrder, PartTooSmall, NamespaceNotFound, and
        as Store.publish; the upload then stays as it was.
        """
        raw_id = _parse_id(upload_id)
        done = self._find_done(raw_id, path)
        if done is not None:
            return done
        row, found = self._context.commit(partial(self._begin_complete, raw_id, path, chosen))
        options = options or _options_of(row)
        try:
            entry = self._publish(raw_id, path, found, options)
        except UploadNotFound:
            # Somebody repeated this Complete at the same time and was first.
            done = self._find_done(raw_id, path)
            if done is None:
                raise
            return done
        except KvfsError:
            with contextlib.suppress(KvfsError):
                self._context.commit(partial(self._reopen, raw_id))
            raise
        self._files.unlink_all(raw_id)
        return entry

    def _find_done(self, raw_id: bytes, path: ObjectPath) -> Entry | None:
        with self._context.index.read() as txn:
            row = rows.get_upload(txn, raw_id)
        if row is None or row.state is not UploadState.DONE or row.key != path.key:
            return None
        entry = self._reader.find(path)
        return entry if entry is not None and row.etag in ("", entry.etag) else None

    def _begin_complete(
        self, raw_id: bytes, path: ObjectPath, chosen: Sequence[CompletePart], txn: WriteTransaction
    ) -> tuple[UploadRow, list[_Chosen]]:
        """Check the list; from this commit on no part is accepted any more."""
        row = self._row(txn, raw_id, path)
        found = [self._choose(txn, raw_id, part) for part in chosen]
        numbers = [part.part_number for part in chosen]
        if not numbers:
            raise InvalidPart("a Complete names at least one part")
        if any(a >= b for a, b in itertools.pairwise(numbers)):
            raise InvalidPartOrder("parts must be named in ascending order, each once")
        for _, part in found[:-1]:
            if part.size < MIN_PART_LENGTH:
                raise PartTooSmall("a part other than the last is under 5 MiB")
        if _size_of(found) > MAX_OBJECT_LENGTH:
            raise TooLarge("the parts are more than one object may have (5 TiB)")
        row.state = UploadState.COMPLETING
        rows.put_upload(txn, raw_id, row)
        return row, found

    def _choose(self, txn: ReadTransaction, raw_id: bytes, part: CompletePart) -> _Chosen:
        number = part.part_number
        found = rows.get_part(txn, raw_id, number) if 1 <= number <= MAX_PARTS else None
        if found is None or found.etag != part.etag:
            raise InvalidPart(f"part {number} was not uploaded, or has another ETag", number)
        return number, found

    def _publish(
        self, raw_id: bytes, path: ObjectPath, found: list[_Chosen], options: PutOptions
    ) -> Entry:
        with self._context.index.read() as txn:
            part_count = sum(1 for _ in rows.parts(txn, raw_id))
        staging = None
        if part_count == len(found):
            staging = self._assemble_in_place(raw_id, found)
        staging = staging or self._assemble_copy(raw_id, found)
        return self._publisher.publish(
            staging, path, options, also=partial(self._end, raw_id, path, options.etag)
        )

    def _assemble_in_place(self, raw_id: bytes, found: list[_Chosen]) -> Assembled | None:
        """Return the base file, whole; None where the parts have to be copied elsewhere."""
        placed = _placed(found)
        in_base = [row.offset == at for _, row, at in placed if not row.unique]
        if not in_base or not all(in_base):
            return None
        apart = [(number, row, at) for number, row, at in placed if row.unique]
        reserved = sum(sectors(row.size) for _, row, _ in apart)
        self.space.reserve(reserved)
        fd = self._files.open(self._files.base(raw_id))
        assembled = Assembled(fd, _size_of(found), self.space, reserved)
        try:
            if not lock_range(fd, 0, 0):
                assembled.close()
                return None
            fcntl.flock(fd, fcntl.LOCK_EX)  # the sweep leaves it alone once it is linked
            for number, row, at in apart:
                self._files.copy(self._path(raw_id, number, row), row.offset, row.size, fd, at)
            os.ftruncate(fd, assembled.size)
        except OSError as error:
            assembled.close()
            raise os_error(error, "cannot assemble an upload") from error
        except BaseException:
            assembled.close()
            raise
        return assembled

    def _assemble_copy(self, raw_id: bytes, found: list[_Chosen]) -> Assembled:
        """Copy every part into a fresh file (a reflink where the file system can)."""
        size = _size_of(found)
        self.space.reserve(sectors(size))
        try:
            file = self._context.files.open_staging()
        except BaseException:
            self.space.release(sectors(size))
            raise
        if file.path is not None:  # without O_TMPFILE it has a name that nobody needs
            self._files.unlink(file.path)
        assembled = Assembled(file.descriptor, size, self.space, sectors(size))
        try:
            for number, row, at in _placed(found):
                source = self._path(raw_id, number, row)
                self._files.copy(source, row.offset, row.size, file.descriptor, at)
        except BaseException:
            assembled.close()
            raise
        return assembled

    def _path(self, raw_id: bytes, number: int, row: PartRow) -> Path:
        if row.unique:
            return self._files.own(raw_id, number, row.unique)
        return self._files.base(raw_id)

    def _end(self, raw_id: bytes, path: ObjectPath, etag: str, txn: WriteTransaction) -> int:
        """In the publishing transaction: the upload is done, its bytes are this process's."""
        row = self._row(txn, raw_id, path)
        if row.state is not UploadState.COMPLETING:
            raise UploadNotFound("the upload was reopened while it was completed: retry")
        row.etag = etag
        return self._remove(txn, raw_id, row, is_done=True)

    def _remove(
        self, txn: WriteTransaction, raw_id: bytes, row: UploadRow, *, is_done: bool = False
    ) -> int:
        """Drop the rows; return the bytes moved into this process's grant."""
        moved = row.reserved
        self.space.discharge_to_upload(txn, -moved)
        rows.delete_parts(txn, raw_id)
        if is_done:
            row.state, row.reserved = UploadState.DONE, 0
            row.active_ns = self._context.clock.now_ns()
            rows.put_upload(txn, raw_id, row)
        else:
            txn.delete("uploads", raw_id)
        return moved

    def _reopen(self, raw_id: bytes, txn: WriteTransaction) -> None:
        row = rows.get_upload(txn, raw_id)
        if row is not None and row.state is UploadState.COMPLETING:
            row.state = UploadState.OPEN
            rows.put_upload(txn, raw_id, row)

    # -- housekeeping ---------------------------------------------------------------------------

    def expire(self, limit: int = 50) -> int:
        """Drop up to `limit` abandoned uploads and forgotten results; return how many."""
        now_s = self._context.now_s()
        with self._context.index.read() as txn:
            due = [raw_id for raw_id, row in rows.uploads(txn) if _is_due(row, now_s)][:limit]
        for raw_id in due:
            self.space.release(self._context.commit(partial(self._expire_one, raw_id, now_s)))
            self._files.unlink_all(raw_id)
        return len(due)

    def _expire_one(self, raw_id: bytes, now_s: int, txn: WriteTransaction) -> int:
        row = rows.get_upload(txn, raw_id)
        if row is None or not _is_due(row, now_s):
            return 0
        return self._remove(txn, raw_id, row)

    def sweep(self) -> int:
        """Remove files that no upload names and no writer holds; return how many."""
        return sum(
            self._unlink_unlocked(path)
            for path in self._files.all()
            if not self._is_named(path.name)
        )

    def _is_named(self, name: str) -> bool:
        parsed = self._files.parse(name)
        if parsed is None:
            return True  # none of ours
        raw_id, number, unique = parsed
        with self._context.index.read() as txn:
            row = rows.get_upload(txn, raw_id)
            part = rows.get_part(txn, raw_id, number) if number else None
        if row is None or row.state is UploadState.DONE:
            return False
        return not number or (part is not None and part.unique == unique)

    def _unlink_unlocked(self, path: Path) -> bool:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_named(path.name):  # it became a row while we took the lock
                return False
            path.unlink()
        except OSError:
            return False
        else:
            return True
        finally:
            os.close(fd)

    # -- files and rows -------------------------------------------------------------------------

    def _row(
        self,
        txn: ReadTransaction,
        raw_id: bytes,
        path: ObjectPath | None,
        *,
        accepts_parts: bool = False,
    ) -> UploadRow:
        """Return the live upload. Raises: UploadNotFound."""
        row = rows.get_upload(txn, raw_id)
        if row is None or row.state is UploadState.DONE:
            raise UploadNotFound("there is no such upload, or it has ended: begin a new one")
        if path is not None and (row.key != path.key or row.namespace_id != _id_of(txn, path)):
            raise UploadNotFound("this upload belongs to another key")
        if accepts_parts and row.state is not UploadState.OPEN:
            raise UploadNotFound("this upload is being completed: it takes no more parts")
        return row


def _parse_id(upload_id: str) -> bytes:
    try:
        raw_id = bytes.fromhex(upload_id)
    except ValueError:
        raw_id = b""
    if len(raw_id) != 16:
        raise UploadNotFound("this is no upload id of ours")
    return raw_id


def _id_of(txn: ReadTransaction, path: ObjectPath) -> NamespaceId:
    try:
        return find_namespace(txn, path.namespace)[0]
    except NamespaceNotFound as error:
        raise UploadNotFound("the upload's bucket is gone") from error


def _listing_order(info: UploadInfo) -> tuple[bytes, str]:
    return info.path.key, info.upload_id


def _options_of(row: UploadRow) -> PutOptions:
    return PutOptions(
        mode=row.mode, uid=row.uid, gid=row.gid, attributes=row.attributes, ttl_s=row.ttl_s,
        is_sliding=row.is_sliding, ttl_class=row.ttl_class, priority=row.priority,
        pin=Pin(row.pin),
    )  # fmt: skip


def _part_info(part_number: int, row: PartRow) -> PartInfo:
    return PartInfo(part_number, row.size, row.etag, row.modified_ns, row.attributes)


def _is_due(row: UploadRow, now_s: int) -> bool:
    limit_s = REMEMBER_DONE_S if row.state is UploadState.DONE else EXPIRE_AFTER_S
    return row.active_ns // 1_000_000_000 + limit_s < now_s


def _placed(found: Sequence[_Chosen]) -> list[tuple[int, PartRow, int]]:
    """Return (number, row, where the part begins in the object)."""
    placed, at = [], 0
    for number, row in found:
        placed.append((number, row, at))
        at += row.size
    return placed


def _size_of(found: Sequence[_Chosen]) -> int:
    return sum(row.size for _, row in found)
