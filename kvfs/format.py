"""<store>/kvfs.toml: what makes a directory a store.

Owns the format version and the settings fixed at `init`; the only code that reads or writes that
file. A store written by a newer kvfs is refused before anything in it is touched.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from kvfs.errors import Denied, NotAStore, UnsupportedFormat
from kvfs.model import DEFAULT_SEAL_LIMIT, Durability

FORMAT_VERSION = 1
FILE_NAME = "kvfs.toml"
DIGEST = "blake3-256-keyed"


@dataclass(frozen=True, slots=True)
class StoreFormat:
    """The contents of kvfs.toml."""

    store_id: str
    capacity_bytes: int
    durability: Durability
    created_ns: int
    seal_limit_bytes: int = DEFAULT_SEAL_LIMIT

    def render(self) -> str:
        """Return the file's text."""
        return (
            "# kvfs store. `capacity` and `seal_limit` (bytes) may be changed while nothing has\n"
            "# the store open; the rest may not.\n"
            f"format = {FORMAT_VERSION}\n"
            f'store_id = "{self.store_id}"\n'
            f'digest = "{DIGEST}"\n'
            f'durability = "{self.durability.value}"\n'
            f"capacity = {self.capacity_bytes}\n"
            f"seal_limit = {self.seal_limit_bytes}\n"
            f"created_ns = {self.created_ns}\n"
        )


def read_format(root: Path) -> StoreFormat:
    """Read <root>/kvfs.toml. Raises: NotAStore, UnsupportedFormat, Denied."""
    path = root / FILE_NAME
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotAStore(
            f"{root} is not a kvfs store (no {FILE_NAME}): make one with `kvfs init {root}`"
        ) from error
    except PermissionError as error:
        raise Denied(
            f"{path} may not be read by user {os.geteuid()}: run as the store's owner"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise NotAStore(f"{path} cannot be read ({error}): restore it from a backup") from error
    return _parse(path, fields)


def _parse(path: Path, fields: dict[str, object]) -> StoreFormat:
    version = fields.get("format")
    if not isinstance(version, int) or version < 1:
        raise NotAStore(f"{path} names no format version: restore it from a backup")
    if version > FORMAT_VERSION or fields.get("digest", DIGEST) != DIGEST:
        raise UnsupportedFormat(
            f"{path} has format {version}; this kvfs reads up to {FORMAT_VERSION}: upgrade kvfs"
        )
    capacity, created_ns = fields.get("capacity"), fields.get("created_ns", 0)
    if not isinstance(capacity, int) or capacity <= 0 or not isinstance(created_ns, int):
        raise NotAStore(f"{path}: `capacity` must be a positive number of bytes: correct it")
    try:
        durability = Durability(str(fields.get("durability", "cache")))
    except ValueError as error:
        raise NotAStore(f'{path}: `durability` must be "cache" or "durable": correct it') from error
    seal_limit = fields.get("seal_limit", DEFAULT_SEAL_LIMIT)
    if not isinstance(seal_limit, int) or seal_limit <= 0:
        raise NotAStore(f"{path}: `seal_limit` must be a positive number of bytes: correct it")
    store_id = str(fields.get("store_id", ""))
    return StoreFormat(store_id, capacity, durability, created_ns, seal_limit)


def write_format(root: Path, format_: StoreFormat) -> None:
    """Write <root>/kvfs.toml, synced, as the last step of making a store. Raises: OSError."""
    fresh = root / (FILE_NAME + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, format_.render().encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(root / FILE_NAME)
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
