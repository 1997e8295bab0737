"""What passes between the operations and a transport: plain frozen records.

Owns their shapes and the mount's few constants. Knows neither pyfuse3, nor the kernel's messages,
nor the store. A `nodeid` is the kernel's name for an inode of this mount; an `inode` is the
store's.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

from kvfs.model import Kind

ROOT_NODEID = 1
SECTOR_BYTES = 4096
"""statvfs f_bsize: LMCache uses O_DIRECT only if an object's size is a multiple of it."""
TIMEOUT_S = 1.0
"""How long the kernel may believe a positive name or attributes: another process's change is seen
within a second. A negative answer is never cached."""

FILE_TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `thread` is the thread id in the daemon's pid namespace; 0 = not known."""

    thread: int = 0
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Attributes:
    """A stat(2) answer."""

    ino: int
    mode: int
    """File type and permission bits."""
    nlink: int
    uid: int
    gid: int
    size: int
    blocks: int
    """In units of 512 bytes, as stat(2) counts."""
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class EntryReply:
    """A name resolved: the kernel's inode, its attributes, and how long to believe both."""

    nodeid: int
    attributes: Attributes
    entry_timeout_s: float = TIMEOUT_S
    attribute_timeout_s: float = TIMEOUT_S


@dataclass(frozen=True, slots=True)
class OpenReply:
    """A file opened."""

    handle: int
    keep_cache: bool
    """The bytes behind this nodeid have not changed since pages of it were cached."""
    is_flushed: bool
    """close() must be told to us: something may be published by it."""
    is_stream: bool = False
    """Its length is not known before it is read: no page cache, read until the end."""
    descriptor: int | None = None
    """Byte i of this descriptor is byte i of the file, for as long as the handle is open: a
    transport that can may let the kernel read and write it directly. None: only through `read` and
    `write`."""
    is_mutable: bool = False
    """Writers may share that descriptor with readers."""


@dataclass(frozen=True, slots=True)
class AttributeRequest:
    """A setattr as the kernel asks for it: None leaves a field alone."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    handle: int | None = None


@dataclass(frozen=True, slots=True)
class DirectoryRow:
    """One line of a listing. `next_offset` continues behind it."""

    name: bytes
    inode: int
    kind: Kind
    next_offset: int


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """A statvfs answer, in sectors of SECTOR_BYTES."""

    blocks: int
    blocks_free: int
    files: int
    files_free: int
