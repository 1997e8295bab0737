"""The records that pass between layers; frozen, slotted, standard library only.

Times are integers with their unit in the name. `*_s` are whole seconds since the epoch and 0 means
"never"; `*_ns` are nanoseconds. Names and keys are bytes exactly as the client sent them: the store
compares bytes and never decodes text.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NewType

NamespaceId = NewType("NamespaceId", int)
Digest = NewType("Digest", bytes)
"""BLAKE3-256 keyed with the namespace's salt, 32 bytes; b"" where there is no block (size 0)."""

NO_DIGEST = Digest(b"")
ROOT_INODE = 1
ROOT_NAMESPACE = NamespaceId(0)
"""Files directly in the root belong here; only the mount shows them."""

MAX_KEY_LENGTH = 1024
"""S3's limit on an object key, in bytes."""
MAX_DEPTH = 256
"""Path components at most, so that no walk over outside input is unbounded (I8)."""
DEFAULT_SEAL_LIMIT = 1 << 30
"""Hashing more at close would hold a writer for most of a second, and what is larger is an engine's
slab that it goes on writing to, not a block."""
MAX_MOUNT_NAME_LENGTH = 255
"""NAME_MAX: longer segments exist in S3 only; the mount does not show them."""


CONTENT_ATTRIBUTES = ("user.s3.checksum", "user.s3.parts")
"""Prefixes of attributes that vouch for the bytes: whoever writes new bytes drops them."""


class Kind(enum.IntEnum):
    """What an inode is."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    CONTINUATION = 4
    """The first 440 bytes of a longer name (see index/schema.py); never leaves the index."""


class Pin(enum.IntEnum):
    """Whether eviction may take an object: freely, last, or never."""

    NONE = 0
    SOFT = 1
    HARD = 2


class Durability(enum.Enum):
    """What an acknowledged write survives; see docs/format.md."""

    CACHE = "cache"
    """Process death. After power loss the last seconds may be misses, never wrong bytes."""
    DURABLE = "durable"
    """Power loss."""


class Codec(enum.IntEnum):
    """How a block file holds its payload."""

    RAW = 0
    FRAMED = 1


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """A name as S3 and the command line give it: bucket, then the literal key (`a//b`, `d/`)."""

    namespace: bytes
    key: bytes

    def __str__(self) -> str:
        return f"{self.namespace.decode('utf-8', 'replace')}/{self.key.decode('utf-8', 'replace')}"


@dataclass(frozen=True, slots=True)
class ChildName:
    """A name as the mount gives it: the directory's inode and one component."""

    parent: int
    name: bytes

    def __str__(self) -> str:
        return self.name.decode("utf-8", "replace")


Place = ObjectPath | ChildName


@dataclass(frozen=True, slots=True)
class Extent:
    """A half-open byte range `[offset, offset + length)`."""

    offset: int
    length: int


class Entry(NamedTuple):
    """One live name and everything a stat needs. A snapshot: it does not follow later changes.

    A named tuple: to set 24 fields of a frozen dataclass takes 2.4 us, a quarter of a lookup.
    """

    inode: int
    kind: Kind
    namespace_id: NamespaceId
    mode: int
    """Permission bits only (0o7777); the file type is `kind`."""
    uid: int
    gid: int
    size: int
    """Logical bytes; for a directory 0, for a symlink the target's length."""
    mtime_ns: int
    ctime_ns: int
    accessed_s: int
    """Last access as the index knows it: up to 30 s behind (see store/access_times.py)."""
    expires_at_s: int
    """0 = never."""
    ttl_s: int
    """Seconds that one access is worth when sliding; 0 = no TTL."""
    ttl_class: int
    is_sliding: bool
    priority: int
    """0-255, higher leaves later; 100 is the default."""
    pin: Pin
    nlink: int
    digest: Digest
    etag: str
    """Without quotes. 32 hex digits = an MD5; anything else is opaque."""
    attributes: Mapping[str, bytes]
    """`user.*` extended attributes. S3 keeps its headers here too: `user.s3.content-type`,
    `user.s3.meta.<name>`; so both doors show one truth."""
    parent: int
    """Inode of the directory holding the inode's first link."""
    name: bytes
    """The inode's first link there."""
    target: bytes = b""
    """A symlink's target."""
    is_mutable: bool = False
    """Kept in files/, never content-addressed."""
    allocated_bytes: int = 0
    """Of a mutable file: what it takes on disk, which is less than its size where it has holes."""

    @property
    def is_directory(self) -> bool:
        return self.kind is Kind.DIRECTORY

    @property
    def is_file(self) -> bool:
        return self.kind is Kind.FILE


RULED_TTL_CLASS = 65_535
"""The class of a lifetime that a bucket's own rules gave: they may change it, and take it away.
Whoever sets a TTL ends that."""


@dataclass(frozen=True, slots=True)
class WriteCondition:
    """What must hold of the present name, checked in the transaction that publishes or deletes.

    Violated: PreconditionFailed; no object there: NotFound, but for the two that allow it.
    """

    must_be_absent: bool = False
    """S3 `If-None-Match: *`, open(2) O_EXCL. Violated: AlreadyExists."""
    other_etag: str = ""
    """S3 `If-None-Match: <etag>`: absent, or of another ETag than this one."""
    etag: str = ""
    """S3 `If-Match`; `*` = any present object."""
    size: int | None = None
    """S3 `x-amz-if-match-size`, on deletes."""
    mtime_s: int | None = None
    """S3 `x-amz-if-match-last-modified-time`, on deletes; in whole seconds, as clients see it."""
    inode: int | None = None
    """The mount: the name still means this file."""


NO_CONDITION = WriteCondition()


@dataclass(frozen=True, slots=True)
class PutOptions:
    """What a writer may say about an object besides its bytes."""

    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    attributes: Mapping[str, bytes] = field(default_factory=dict)
    etag: str = ""
    """"" lets the store derive one: `<first 32 hex digits of the digest>-1`."""
    mtime_ns: int = 0
    """0 = the moment of publishing."""
    ttl_s: int | None = None
    """None = the namespace's default; 0 = never expires."""
    expires_at_s: int = 0
    """When a `ttl_s` given with it is over; 0 = counted from the moment of publishing."""
    is_sliding: bool = True
    ttl_class: int = 0
    priority: int = 100
    pin: Pin = Pin.NONE
    condition: WriteCondition = NO_CONDITION


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """A setattr: None leaves a field as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    accessed_s: int | None = None
    """Setting it is a touch: a sliding TTL starts anew."""
    ttl_s: int | None = None
    expires_at_s: int = 0
    """When a `ttl_s` given with it is over; 0 = counted from now."""
    is_sliding: bool | None = None
    ttl_class: int | None = None
    priority: int | None = None
    pin: Pin | None = None
    set_attributes: Mapping[str, bytes] = field(default_factory=dict)
    remove_attributes: tuple[str, ...] = ()
    attribute_must_exist: bool = False
    """XATTR_REPLACE, and removal of an absent one: NotFound."""
    attribute_must_be_absent: bool = False
    """XATTR_CREATE: AlreadyExists."""


@dataclass(frozen=True, slots=True)
class DirectoryChild:
    """One row of a directory listing for the mount."""

    name: bytes
    inode: int
    kind: Kind
    cursor: bytes
    """Pass as `after` to go on behind this row."""


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One key of an S3 listing."""

    key: bytes
    entry: Entry


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page, in byte order of the keys; objects and common prefixes share that order."""

    objects: tuple[ListedObject, ...]
    common_prefixes: tuple[bytes, ...]
    is_truncated: bool
    next_after: bytes
    """Pass as `after` for the next page; b"" when complete."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A bucket: the first directory, the unit of isolation and quota."""

    namespace_id: NamespaceId
    name: bytes
    inode: int
    created_ns: int
    object_count: int
    logical_bytes: int
    quota_bytes: int
    """0 = none beyond the store's capacity."""
    quota_objects: int
    default_ttl_s: int
    attributes: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """Space, as the index accounts for it. resident + reserved <= capacity, always (I4)."""

    capacity_bytes: int
    resident_bytes: int
    """Block files, mutable files and trash not yet unlinked, in whole 4 KiB sectors."""
    reserved_bytes: int
    """Granted to writers or held by multipart uploads."""
    logical_bytes: int
    """Sum of the sizes of all names (before deduplication and compression)."""
    object_count: int
    block_count: int
    hits_total: int = 0
    """Lookups that found an object, by all processes since the store was made."""
    misses_total: int = 0
    opens_total: int = 0
    opened_bytes_total: int = 0
    """Sum of the sizes of what was opened."""


@dataclass(frozen=True, slots=True)
class PartInfo:
    """One stored part of a multipart upload."""

    part_number: int
    size: int
    etag: str
    modified_ns: int
    attributes: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """One multipart upload in progress."""

    upload_id: str
    path: ObjectPath
    created_ns: int
    options: PutOptions
