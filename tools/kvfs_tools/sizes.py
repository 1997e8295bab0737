"""Sizes, durations and keys as people type and read them. Pure text; no units are guessed."""

from __future__ import annotations

import re

from kvfs.errors import InvalidArgument, InvalidName
from kvfs.model import ObjectPath

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d{1,12})([smhdw]?)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes of `100G`, `1.5TiB`, `4096`; units are powers of 1024.

    Raises: InvalidArgument.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(f"{text!r} is no size; write for example 500M, 100G or 2T.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def render_size(size_bytes: float) -> str:
    """Return `size_bytes` with a binary unit, one decimal where it says something."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(size_bytes) < 1024:
            break
        size_bytes, unit = size_bytes / 1024, larger
    return (
        f"{size_bytes:.0f} {unit}"
        if unit == "B" or size_bytes >= 100
        else f"{size_bytes:.1f} {unit}"
    )


def render_duration(seconds: float) -> str:
    """Return `seconds` as its two largest units: `3d 4h`, `5m 10s`, `7s`."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def parse_duration(text: str) -> int:
    """Return the whole seconds of `90`, `30m`, `12h`, `7d` or `2w`.

    Raises: InvalidArgument.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(f"{text!r} is no duration; write for example 90, 30m, 12h or 7d.")
    return int(match[1]) * _SECONDS[match[2]]


def parse_object_path(text: bytes) -> ObjectPath:
    """Return the bucket and key of `BUCKET/KEY`; the key is literal, `a//b` included.

    Raises: InvalidName (no key, NUL, or a `.` or `..` component, which nothing here resolves).
    """
    namespace, slash, key = text.partition(b"/")
    shown = text.decode("utf-8", "replace")
    if not namespace or not slash or not key:
        raise InvalidName(f"{shown!r} names no object; write BUCKET/KEY.")
    if b"\0" in text:
        raise InvalidName(f"{shown!r} has a NUL byte; no name can.")
    if any(part in (b".", b"..") for part in text.split(b"/")):
        raise InvalidName(f"{shown!r} has a '.' or '..' component; write the name it stands for.")
    return ObjectPath(namespace, key)


def render_bytes(name: bytes) -> str:
    """Return a name for a terminal: UTF-8 where it is, control and odd bytes as escapes."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def render_json_name(name: bytes) -> str:
    """Return a name for JSON; bytes that are no UTF-8 become lone surrogates."""
    return name.decode("utf-8", "surrogateescape")
