"""S3 credentials limited to buckets: the store's file of them.

Owns the file's form and every change of it; refuses to know which operation needs which right.
Holds: the file is its owner's alone and replaced whole; a file that is wrong anywhere gives no
credential at all, since a misspelt `read_only` must not give a right; its length, the credentials
and the buckets of each have a maximum (I8).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvfs.clock import Randomness
from kvfs.config import (
    MAX_SETTINGS_BYTES,
    MIN_SECRET_LENGTH,
    make_credential,
    read_private_toml,
)
from kvfs.errors import Denied, InvalidArgument, NotFound, TooLarge, Unavailable

FILE_NAME = "bucket-credentials"
"""File in the store, mode 0600: TOML with a table for each access key."""
MAX_CREDENTIALS = 256
MAX_BUCKETS = 64
"""Of one credential."""

_FIELDS = {"secret_key", "buckets", "read_only"}
_ACCESS_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What TOML lets a table be called without quotes, and every client can sign with."""
_SECRET_KEY = re.compile(rf"[!-~]{{{MIN_SECRET_LENGTH},128}}")
_MAX_BUCKET_BYTES = 255


@dataclass(frozen=True, slots=True)
class BucketCredential:
    """An S3 key pair that opens its own buckets and no other."""

    access_key: str
    secret_key: str = field(repr=False)
    buckets: frozenset[bytes]
    is_read_only: bool


class BucketCredentials:
    """The limited credentials of one store, as its file has them."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._path = store / FILE_NAME
        self._version: tuple[int, ...] | None = None

    def read(self) -> Mapping[str, BucketCredential]:
        """Return the credentials by access key; none where there is no file.

        Raises: Denied (unreadable, or open to others), InvalidArgument.
        """
        self._version = self._present_version()  # first: what changes after this is seen later
        try:
            tables = read_private_toml(self._path)
        except NotFound:
            return {}
        if len(tables) > MAX_CREDENTIALS:
            raise InvalidArgument(f"{self._path} has over {MAX_CREDENTIALS} credentials.")
        return {name: self._parse(name, table) for name, table in tables.items()}

    def has_changed(self) -> bool:
        """Return whether the file is another than when it was last read, or tried to be."""
        return self._present_version() != self._version

    def add(
        self, randomness: Randomness, buckets: Iterable[str], *, is_read_only: bool
    ) -> BucketCredential:
        """Make a credential for `buckets` and keep it; the buckets need not exist yet.

        Raises: InvalidArgument, TooLarge (as many as there may be), Denied, Unavailable.
        """
        pair = make_credential(randomness)
        names = frozenset(_bucket_name(bucket, "--bucket") for bucket in buckets)
        if not 1 <= len(names) <= MAX_BUCKETS:
            raise InvalidArgument(f"A credential is for 1 to {MAX_BUCKETS} buckets.")
        made = BucketCredential(pair.access_key, pair.secret_key, names, is_read_only)
        with self._changing() as directory:
            kept = dict(self.read())
            if len(kept) >= MAX_CREDENTIALS:
                raise TooLarge(f"There are {MAX_CREDENTIALS} credentials; remove one first.")
            self._replace(directory, {**kept, made.access_key: made})
        return made

    def remove(self, access_key: str) -> None:
        """Forget a credential. Raises: NotFound, Denied, InvalidArgument, Unavailable."""
        with self._changing() as directory:
            kept = dict(self.read())
            if kept.pop(access_key, None) is None:
                raise NotFound(f"There is no credential {access_key} in {self._path}.")
            self._replace(directory, kept)

    def _present_version(self) -> tuple[int, ...] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None  # `read` says what is wrong with it
        return status.st_ino, status.st_ctime_ns, status.st_size

    def _parse(self, access_key: str, table: object) -> BucketCredential:
        def refuse(what: str) -> InvalidArgument:
            return InvalidArgument(f"{self._path}, {access_key!r}: {what}; correct it by hand.")

        if _ACCESS_KEY.fullmatch(access_key) is None:
            raise refuse("an access key is up to 128 letters, digits, - and _")
        if not isinstance(table, dict) or table.keys() != _FIELDS:
            raise refuse("it must hold secret_key, buckets and read_only, and nothing else")
        secret_key, buckets, is_read_only = (
            table[name] for name in ("secret_key", "buckets", "read_only")
        )
        if not isinstance(secret_key, str) or _SECRET_KEY.fullmatch(secret_key) is None:
            raise refuse(f"secret_key is {MIN_SECRET_LENGTH} to 128 characters of printable ASCII")
        if not isinstance(buckets, list) or not 1 <= len(buckets) <= MAX_BUCKETS:
            raise refuse(f"buckets is a list of 1 to {MAX_BUCKETS} names")
        if not isinstance(is_read_only, bool):
            raise refuse("read_only is true or false")
        names = frozenset(_bucket_name(bucket, str(self._path)) for bucket in buckets)
        return BucketCredential(access_key, secret_key, names, is_read_only)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[int]:
        """Keep other commands from changing the file; yield the store's directory."""
        try:
            directory = os.open(self._store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Denied(f"Cannot open {self._store}: {error.strerror}.") from error
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield directory
        except BlockingIOError:
            raise Unavailable(f"Another command is changing {self._path}; try again.") from None
        finally:
            os.close(directory)

    def _replace(self, directory: int, credentials: Mapping[str, BucketCredential]) -> None:
        """Write the file anew beside the old one, and put it in its place when it is synced."""
        text = _render(credentials).encode()
        if len(text) > MAX_SETTINGS_BYTES:
            raise TooLarge(f"{self._path} would have over {MAX_SETTINGS_BYTES} bytes.")
        fresh = FILE_NAME + ".new"
        try:
            with contextlib.suppress(FileNotFoundError):  # left by a command that was killed
                os.unlink(fresh, dir_fd=directory)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(fresh, flags, 0o600, dir_fd=directory), "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, FILE_NAME, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
        except OSError as error:
            raise Denied(f"Cannot write {self._path}: {error.strerror}.") from error


def _render(credentials: Mapping[str, BucketCredential]) -> str:
    """Return the file's text; of printable characters JSON's strings are TOML's, too."""
    text = "# S3 credentials limited to buckets: see `kvfs credential`; kvfs-gateway reads them.\n"
    for item in credentials.values():
        names = sorted(bucket.decode() for bucket in item.buckets)
        text += (
            f"\n[{item.access_key}]\n"
            f"secret_key = {json.dumps(item.secret_key)}\n"
            f"buckets = {json.dumps(names, ensure_ascii=False)}\n"
            f"read_only = {'true' if item.is_read_only else 'false'}\n"
        )
    return text


def _bucket_name(name: object, origin: str) -> bytes:
    if not isinstance(name, str) or not name.isprintable() or "/" in name:
        raise InvalidArgument(f"{name!r} from {origin} is no bucket: printable text without /.")
    encoded = name.encode()
    if not 1 <= len(encoded) <= _MAX_BUCKET_BYTES:
        raise InvalidArgument(f"A bucket from {origin} must have 1 to {_MAX_BUCKET_BYTES} bytes.")
    return encoded
