"""Settings from outside: the process environment and TOML files.

Owns every read of `os.environ` (I7) and the root credential's file; refuses to know what the
settings mean to the parts that get them. Callers pass the environment on as a mapping, so a test
gives its own. Precedence everywhere: command-line flag, then environment, then file, then default.
Holds: a secret is never readable by group or others, never in a repr, never in a message.
"""

from __future__ import annotations

import base64
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvfs.clock import Randomness
from kvfs.errors import AlreadyExists, Denied, InvalidArgument, NotFound

STORE_VARIABLE = "KVFS_STORE"
"""The store that the command line works on when `--store` is not given."""
ACCESS_KEY_VARIABLE = "KVFS_ACCESS_KEY"
SECRET_KEY_VARIABLE = "KVFS_SECRET_KEY"
ACCESS_KEY_FILE_VARIABLE = "KVFS_ACCESS_KEY_FILE"
SECRET_KEY_FILE_VARIABLE = "KVFS_SECRET_KEY_FILE"
"""The `_FILE` forms name files holding the value alone, as systemd and Kubernetes hand them out."""

CREDENTIALS_NAME = "credentials"
"""File in the store, mode 0600: TOML with `access_key` and `secret_key`."""

MAX_SETTINGS_BYTES = 64 * 1024
"""No settings file is larger; a wrong path must not be read into memory (I8)."""
MIN_SECRET_LENGTH = 8
"""As S3 servers commonly ask; below it a key is guessable."""


@dataclass(frozen=True, slots=True)
class Credential:
    """An S3 key pair. The root credential may do everything to its store."""

    access_key: str
    secret_key: str = field(repr=False)


def process_environment() -> Mapping[str, str]:
    """Return this process's environment; the only place that reads it."""
    return os.environ


def store_from_environment(environment: Mapping[str, str]) -> Path | None:
    """Return the store named by KVFS_STORE, or None when it is unset or empty."""
    value = environment.get(STORE_VARIABLE, "")
    return Path(value) if value else None


def read_toml(path: Path) -> Mapping[str, object]:
    """Return the tables of a settings file.

    Raises: NotFound, Denied, InvalidArgument (not TOML, or over MAX_SETTINGS_BYTES).
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SETTINGS_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}.") from None
    except OSError as error:
        raise Denied(f"Cannot read {path}: {error.strerror}.") from error
    if len(text) > MAX_SETTINGS_BYTES:
        raise InvalidArgument(f"{path} is over {MAX_SETTINGS_BYTES} bytes: no settings file.")
    try:
        return tomllib.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # TOML, UTF-8, endless numbers and brackets
        raise InvalidArgument(f"{path} is not valid TOML: {error}.") from error


def read_private_toml(path: Path) -> Mapping[str, object]:
    """Return the tables of a file with secrets, which must be its owner's alone.

    Raises: as `read_toml`; Denied also for a file that others may open.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}.") from None
    except OSError as error:
        raise Denied(f"Cannot read {path}: {error.strerror}.") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Denied(f"{path} is open to others; run: chmod 600 {path}")
    return read_toml(path)


def read_root_credential(store: Path, environment: Mapping[str, str]) -> Credential:
    """Return the root credential: from the environment, from files it names, or from the store.

    Raises: NotFound (none anywhere), Denied (unreadable, or readable by others), InvalidArgument.
    """
    access_key = _variable_or_file(environment, ACCESS_KEY_VARIABLE, ACCESS_KEY_FILE_VARIABLE)
    secret_key = _variable_or_file(environment, SECRET_KEY_VARIABLE, SECRET_KEY_FILE_VARIABLE)
    if access_key and secret_key:
        return _checked(access_key, secret_key, "the environment")
    if access_key or secret_key:
        raise InvalidArgument(
            f"Set both {ACCESS_KEY_VARIABLE} and {SECRET_KEY_VARIABLE} (or their _FILE forms), "
            "or neither to use the credential in the store."
        )
    return _read_credentials_file(store / CREDENTIALS_NAME)


def make_credential(randomness: Randomness) -> Credential:
    """Return a new key pair: 20 upper-case letters and digits, and 240 random bits."""
    access_key = base64.b32encode(randomness.token(10)).decode("ascii")
    secret_key = base64.b64encode(randomness.token(30), b"-_").decode("ascii")
    return Credential(f"KVFS{access_key}", secret_key)


def write_root_credential(store: Path, credential: Credential) -> Path:
    """Write `credential` into the store, readable by its owner alone; return the file's path.

    Raises: AlreadyExists (it is never replaced silently), Denied.
    """
    path = store / CREDENTIALS_NAME
    text = (
        "# The root credential of this store; kvfs-gateway reads it.\n"
        f'access_key = "{credential.access_key}"\nsecret_key = "{credential.secret_key}"\n'
    )
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise AlreadyExists(f"{path} exists; remove it first to make a new credential.") from None
    except OSError as error:
        raise Denied(f"Cannot write {path}: {error.strerror}.") from error
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return path


def _variable_or_file(environment: Mapping[str, str], variable: str, file_variable: str) -> str:
    value = environment.get(variable, "")
    path = environment.get(file_variable, "")
    if value or not path:
        return value
    try:
        with open(path, "rb") as file:
            return file.read(MAX_SETTINGS_BYTES).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Denied(f"Cannot read {path}, named by {file_variable}: {error}.") from error


def _read_credentials_file(path: Path) -> Credential:
    try:
        table = read_private_toml(path)
    except NotFound:
        raise NotFound(
            f"There is no credential: set {ACCESS_KEY_VARIABLE} and {SECRET_KEY_VARIABLE}, "
            f"or write access_key and secret_key into {path} (mode 0600)."
        ) from None
    access_key, secret_key = table.get("access_key"), table.get("secret_key")
    if not isinstance(access_key, str) or not isinstance(secret_key, str):
        raise InvalidArgument(f"{path} must hold the strings access_key and secret_key.")
    return _checked(access_key, secret_key, str(path))


def _checked(access_key: str, secret_key: str, origin: str) -> Credential:
    if not access_key or "/" in access_key or not access_key.isascii():
        raise InvalidArgument(f"The access key from {origin} must be ASCII without a slash.")
    if len(secret_key) < MIN_SECRET_LENGTH:
        raise InvalidArgument(
            f"The secret key from {origin} is shorter than {MIN_SECRET_LENGTH} characters."
        )
    return Credential(access_key, secret_key)
