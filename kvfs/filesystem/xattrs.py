"""Extended attributes of the mount: user.* as stored, user.kvfs.* computed.

Owns the names and texts of the virtual attributes. Refuses to know the kernel, and of the store
all but two names: an Entry goes in, values or an AttributeChange come out.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvfs.errors import InvalidArgument
from kvfs.model import ROOT_INODE, AttributeChange, Entry, Pin
from kvfs.store.reader import VERIFY_ATTRIBUTE
from kvfs.store.recoder import COMPRESS_ATTRIBUTE

PREFIX = "user.kvfs."
ATIME = PREFIX + "atime"
"""Holds an access time that utimensat(2) set, as text in ns; stat(2) shows it, no list does."""
MUTABLE = PREFIX + "mutable"
"""Set to 1 the file stays mutable; it is no field of an entry, so operations.py knows it."""
MAX_VALUE_BYTES = 64 * 1024
"""XATTR_SIZE_MAX."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

READ_ONLY = frozenset({"digest", "etag", "expires_at", "accessed_at", "mutable", "inode"})
WRITABLE = frozenset({"ttl", "ttl_class", "sliding", "priority", "pin"})
BUCKET_SETTINGS = {VERIFY_ATTRIBUTE: ("trust", "always"), COMPRESS_ATTRIBUTE: ("idle", "inline")}
"""What a first directory may be told for all of its objects; without a word the first choice."""


def read_virtual(entry: Entry, name: str) -> bytes | None:
    """Return the value of `user.kvfs.<...>`, None if there is no such attribute on this entry."""
    if name in BUCKET_SETTINGS:
        default = BUCKET_SETTINGS[name][0].encode()
        return entry.attributes.get(name, default) if _is_bucket(entry) else None
    key = name.removeprefix(PREFIX)
    texts = {
        "digest": entry.digest.hex(),
        "etag": entry.etag,
        "expires_at": str(entry.expires_at_s),
        "accessed_at": str(entry.accessed_s),
        "mutable": str(int(entry.is_mutable)),
        "inode": str(entry.inode),
        "ttl": str(entry.ttl_s),
        "ttl_class": str(entry.ttl_class),
        "sliding": str(int(entry.is_sliding)),
        "priority": str(entry.priority),
        "pin": entry.pin.name.lower(),
    }
    text = texts.get(key)
    return None if text is None else text.encode()


def access_time_ns(attributes: Mapping[str, bytes]) -> int | None:
    """Return the access time that was set by hand, None if none was."""
    value = attributes.get(ATIME)
    return None if value is None else int(value)


def list_names(entry: Entry) -> list[str]:
    """Return the names to list: stored ones, and virtual ones that were set to something.

    Read-only ones and a bucket's stay out, so that a copy with all attributes can write what it
    read, wherever that is.
    """
    names = sorted(stored_names(entry.attributes))
    if entry.ttl_s:
        names.append(PREFIX + "ttl")
    if entry.pin is not Pin.NONE:
        names.append(PREFIX + "pin")
    return names


def stored_names(attributes: Mapping[str, bytes]) -> list[str]:
    """Return the names among `attributes` that somebody else than this mount gave."""
    return [name for name in attributes if name != ATIME and name not in BUCKET_SETTINGS]


def change_virtual(name: str, value: bytes, entry: Entry | None = None) -> AttributeChange:
    """Return the change that setting `user.kvfs.<...>` means; entry: whose, None = not published.

    Raises: InvalidArgument with what is allowed; PermissionError for a read-only one.
    """
    key = name.removeprefix(PREFIX)
    if key in READ_ONLY:
        raise PermissionError(1, f"{name} is computed and cannot be set")
    text = value.decode("utf-8", "replace").strip().strip("\0").lower()
    if name in BUCKET_SETTINGS:
        return _choose_for_bucket(name, text, entry)
    if key == "ttl":
        return AttributeChange(ttl_s=parse_duration(text))
    if key == "pin":
        return AttributeChange(pin=_parse_pin(text))
    if key == "ttl_class":
        return AttributeChange(ttl_class=_parse_number(name, text, 65535))
    if key == "priority":
        return AttributeChange(priority=_parse_number(name, text, 255))
    if key == "sliding":
        return AttributeChange(is_sliding=bool(_parse_number(name, text, 1)))
    raise InvalidArgument(f"no attribute {name}: choose among {', '.join(sorted(WRITABLE))}")


def remove_virtual(name: str, entry: Entry | None = None) -> AttributeChange:
    """Return the change that removing `user.kvfs.<...>` means: back to its default."""
    if name in BUCKET_SETTINGS:
        return _choose_for_bucket(name, BUCKET_SETTINGS[name][0], entry)
    key = name.removeprefix(PREFIX)
    defaults = {
        "ttl": AttributeChange(ttl_s=0),
        "pin": AttributeChange(pin=Pin.NONE),
        "ttl_class": AttributeChange(ttl_class=0),
        "priority": AttributeChange(priority=100),
        "sliding": AttributeChange(is_sliding=True),
    }
    if key not in defaults:
        raise PermissionError(1, f"{name} is computed and cannot be removed")
    return defaults[key]


def _is_bucket(entry: Entry | None) -> bool:
    if entry is None or not entry.is_directory:
        return False
    return entry.parent == ROOT_INODE != entry.inode


def _choose_for_bucket(name: str, text: str, entry: Entry | None) -> AttributeChange:
    if not _is_bucket(entry):
        raise InvalidArgument(f"{name} is a bucket's: set it on the first directory")
    if text not in BUCKET_SETTINGS[name]:
        choices = " or ".join(BUCKET_SETTINGS[name])
        raise InvalidArgument(f"{name} is {choices}, not {text[:40]!r}")
    return AttributeChange(set_attributes={name: text.encode()})


def parse_duration(text: str) -> int:
    """Return seconds from `3600`, `90s`, `15m`, `1h`, `7d`; `0`, `never` = no limit."""
    if text == "never":
        return 0
    unit = UNITS.get(text[-1:], 0)
    digits = text[:-1] if unit else text
    if not digits.isascii() or not digits.isdigit() or len(digits) > 10:
        raise InvalidArgument(f"not a duration: {text[:40]!r}; write seconds, or 90s, 15m, 1h, 7d")
    return int(digits) * (unit or 1)


def _parse_number(name: str, text: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 6 or int(text) > most:
        raise InvalidArgument(f"{name} is a whole number from 0 to {most}, not {text[:40]!r}")
    return int(text)


def _parse_pin(text: str) -> Pin:
    names = {"none": Pin.NONE, "0": Pin.NONE, "soft": Pin.SOFT, "1": Pin.SOFT}
    names |= {"hard": Pin.HARD, "2": Pin.HARD}
    if text not in names:
        raise InvalidArgument(f"user.kvfs.pin is none, soft or hard, not {text[:40]!r}")
    return names[text]
