"""The kernel's FUSE messages: bytes in, records out, and back. Sans-IO.

Owns the layouts of linux/fuse.h (protocol 7.31 to 7.45), as one table of requests and a few
renderers of replies. Refuses to know descriptors, operations and errno meanings. A request is
`fuse_in_header`, a fixed struct by opcode, then names or data:
- *names* end in NUL and fill the rest of the message;
- *data* is what a size field in the struct says.
Must hold: whatever bytes come in, `decode_request` returns a Request or raises ProtocolError, and
reads nothing past them. Little-endian only, as every machine that runs it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from kvfs.filesystem.records import Attributes

MAJOR = 7
OUR_MINOR = 45
OLDEST_MINOR = 31
"""Linux 5.4: what Debian 10 had; older kernels lay some structs out differently."""

IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
NODE_OUT = struct.Struct("<QQ")
TIMEOUTS_OUT = struct.Struct("<QQII")
KNOWN_ENTRY = struct.Struct("<IiQQQ")
ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
ATTRIBUTES_OUT = struct.Struct("<QII")
OPEN_OUT = struct.Struct("<QIi")
INIT_OUT = struct.Struct("<IIIIHHIIHHIIH22x")
WRITE_OUT = struct.Struct("<II")
STATFS_OUT = struct.Struct("<QQQQQIIII24x")
XATTR_OUT = struct.Struct("<II")
LSEEK_OUT = struct.Struct("<Q")
IOCTL_OUT = struct.Struct("<iIII")
DIRENT = struct.Struct("<QQII")
FORGET_ONE = struct.Struct("<QQ")
SIZES = struct.Struct("<II")
ENTRY_BYTES = NODE_OUT.size + TIMEOUTS_OUT.size + ATTRIBUTES.size
KNOWN_ENTRY_BYTES = OUT_HEADER.size + ENTRY_BYTES
MAX_FORGETS = 65536
"""One BATCH_FORGET fits a read buffer; more than this cannot come (I8)."""

NO_DATA = memoryview(b"")


class ProtocolError(Exception):
    """Bytes that are no message of the kernel."""


class Opcode(enum.IntEnum):
    """enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


class InitFlag(enum.IntFlag):
    """Capabilities in FUSE_INIT: bits 32 and up travel in flags2."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37


class OpenFlag(enum.IntFlag):
    """FOPEN_*: how the kernel treats an open file."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7


class SetattrValid(enum.IntFlag):
    """FATTR_*: which fields of a SETATTR count."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


@dataclass(frozen=True, slots=True)
class Layout:
    """What follows the header of one opcode."""

    fields: struct.Struct
    names: int = 0
    """NUL-ended strings behind the struct."""
    data_field: int = -1
    """Index of the struct's field that is the length of the data at the end; -1 = no data."""


def _layout(fields: str, *, names: int = 0, data_field: int = -1) -> Layout:
    return Layout(struct.Struct("<" + fields), names, data_field)


LAYOUTS: dict[Opcode, Layout] = {
    Opcode.LOOKUP: _layout("", names=1),
    Opcode.FORGET: _layout("Q"),  # nlookup
    Opcode.GETATTR: _layout("IIQ"),  # flags, -, fh
    # valid, -, fh, size, lock_owner, atime, mtime, ctime, 3 x nsec, mode, -, uid, gid, -
    Opcode.SETATTR: _layout("IIQQQQQQIIIIIIII"),
    Opcode.READLINK: _layout(""),
    Opcode.SYMLINK: _layout("", names=2),  # name, target
    Opcode.MKNOD: _layout("IIII", names=1),  # mode, rdev, umask, -
    Opcode.MKDIR: _layout("II", names=1),  # mode, umask
    Opcode.UNLINK: _layout("", names=1),
    Opcode.RMDIR: _layout("", names=1),
    Opcode.RENAME: _layout("Q", names=2),  # newdir
    Opcode.LINK: _layout("Q", names=1),  # oldnodeid
    Opcode.OPEN: _layout("II"),  # flags, open_flags
    Opcode.READ: _layout("QQIIQII"),  # fh, offset, size, read_flags, lock_owner, flags, -
    Opcode.WRITE: _layout("QQIIQII", data_field=2),
    Opcode.STATFS: _layout(""),
    Opcode.RELEASE: _layout("QIIQ"),  # fh, flags, release_flags, lock_owner
    Opcode.FSYNC: _layout("QII"),  # fh, flags, -
    Opcode.SETXATTR: _layout("II", names=1, data_field=0),  # size, flags
    Opcode.GETXATTR: _layout("II", names=1),  # size, -
    Opcode.LISTXATTR: _layout("II"),
    Opcode.REMOVEXATTR: _layout("", names=1),
    Opcode.FLUSH: _layout("QIIQ"),  # fh, -, -, lock_owner
    Opcode.INIT: _layout("IIII"),  # major, minor, max_readahead, flags (flags2 may follow)
    Opcode.OPENDIR: _layout("II"),
    Opcode.READDIR: _layout("QQIIQII"),
    Opcode.RELEASEDIR: _layout("QIIQ"),
    Opcode.FSYNCDIR: _layout("QII"),
    Opcode.ACCESS: _layout("II"),  # mask, -
    Opcode.CREATE: _layout("IIII", names=1),  # flags, mode, umask, open_flags
    Opcode.INTERRUPT: _layout("Q"),  # unique
    Opcode.DESTROY: _layout(""),
    Opcode.IOCTL: _layout("QIIQII"),  # fh, flags, cmd, arg, in_size, out_size
    Opcode.BATCH_FORGET: _layout("II"),  # count, -
    Opcode.FALLOCATE: _layout("QQQII"),  # fh, offset, length, mode, -
    Opcode.READDIRPLUS: _layout("QQIIQII"),
    Opcode.RENAME2: _layout("QII", names=2),  # newdir, flags, -
    Opcode.LSEEK: _layout("QQII"),  # fh, offset, whence, -
    Opcode.COPY_FILE_RANGE: _layout("QQQQQQQ"),  # fh, off, nodeid, fh, off, len, flags
    Opcode.SYNCFS: _layout("Q"),
    Opcode.TMPFILE: _layout("IIII", names=1),  # as CREATE; the name is `/`
}


@dataclass(frozen=True, slots=True)
class Request:
    """One decoded request."""

    opcode: Opcode | int
    """An int when the kernel is newer than this table: answer ENOSYS."""
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    fields: tuple[int, ...] = ()
    names: tuple[bytes, ...] = ()
    data: memoryview = NO_DATA
    """Into the buffer the message came in: valid until that buffer is reused."""


def decode_request(message: memoryview) -> Request:
    """Return the request in `message`, one whole read of /dev/fuse.

    Raises: ProtocolError. Copies: names; the data of a WRITE stays where it is.
    """
    if len(message) < IN_HEADER.size:
        raise ProtocolError(f"{len(message)} bytes are shorter than a header")
    length, number, unique, nodeid, uid, gid, pid, extensions, _ = IN_HEADER.unpack_from(message)
    if length != len(message):
        raise ProtocolError(f"the header says {length} bytes, {len(message)} came")
    if 8 * extensions > length - IN_HEADER.size:
        raise ProtocolError(f"{extensions} words of extensions do not fit in {length} bytes")
    body = message[IN_HEADER.size : length - 8 * extensions]
    try:
        opcode = Opcode(number)
        layout = LAYOUTS[opcode]
    except (ValueError, KeyError):
        return Request(number, unique, nodeid, uid, gid, pid, data=body)
    if len(body) < layout.fields.size:
        raise ProtocolError(f"{opcode.name} has {len(body)} bytes, needs {layout.fields.size}")
    fields = layout.fields.unpack_from(body)
    rest = body[layout.fields.size :]
    if layout.data_field < 0 and not layout.names:
        return Request(opcode, unique, nodeid, uid, gid, pid, fields, (), rest)
    names, data = _split(opcode, layout, fields, rest)
    return Request(opcode, unique, nodeid, uid, gid, pid, fields, names, data)


def _split(
    opcode: Opcode, layout: Layout, fields: tuple[int, ...], rest: memoryview
) -> tuple[tuple[bytes, ...], memoryview]:
    """Cut names and data from behind the struct."""
    data_length = fields[layout.data_field] if layout.data_field >= 0 else 0
    if data_length > len(rest):
        raise ProtocolError(
            f"{opcode.name} announces {data_length} bytes of data, {len(rest)} came"
        )
    end = len(rest) - data_length
    if not layout.names:
        if end:
            raise ProtocolError(f"{opcode.name} has {end} bytes too many")
        return (), rest
    text = bytes(rest[:end])
    names = text.split(b"\0", layout.names)
    if len(names) != layout.names + 1 or (opcode is Opcode.SETXATTR and names[-1]):
        raise ProtocolError(f"{opcode.name} lacks its {layout.names} NUL-ended names")
    if not all(names[:-1]):
        raise ProtocolError(f"{opcode.name} has an empty name")
    return tuple(names[:-1]), rest[end:]


def decode_forgets(request: Request) -> list[tuple[int, int]]:
    """Return (nodeid, count) of a FORGET or BATCH_FORGET. Raises: ProtocolError."""
    if request.opcode is Opcode.FORGET:
        return [(request.nodeid, request.fields[0])]
    count = request.fields[0]
    if count > MAX_FORGETS or count * FORGET_ONE.size > len(request.data):
        raise ProtocolError(f"BATCH_FORGET announces {count} entries in {len(request.data)} bytes")
    return list(FORGET_ONE.iter_unpack(request.data[: count * FORGET_ONE.size]))


def decode_name(body: memoryview) -> bytes | None:
    """Return the one name that `body` holds with its NUL, None if it holds anything else."""
    name = bytes(body[:-1])
    return name if name and not body[-1] and b"\0" not in name else None


@dataclass(frozen=True, slots=True)
class KernelInit:
    """What the kernel offers in FUSE_INIT."""

    major: int
    minor: int
    max_readahead: int
    flags: InitFlag


def decode_init(request: Request) -> KernelInit:
    """Return the kernel's offer. Raises: ProtocolError if it is too old to talk to."""
    major, minor, max_readahead, low = request.fields
    if (major, minor) < (MAJOR, OLDEST_MINOR):
        raise ProtocolError(f"the kernel speaks {major}.{minor}, older than 7.{OLDEST_MINOR}")
    high = 0
    if low & InitFlag.INIT_EXT and len(request.data) >= 4:
        high = int.from_bytes(request.data[:4], "little")
    return KernelInit(major, minor, max_readahead, InitFlag(low | high << 32))


@dataclass(frozen=True, slots=True)
class InitReply:
    """What we choose of it."""

    minor: int
    max_readahead: int
    flags: InitFlag
    max_write: int
    max_pages: int
    max_background: int = 64
    max_stack_depth: int = 0
    """With passthrough 1: the backing files may not lie on a stacked file system themselves."""


def encode_init(reply: InitReply) -> bytes:
    flags = int(reply.flags)
    return INIT_OUT.pack(
        MAJOR,
        reply.minor,
        reply.max_readahead,
        flags & 0xFFFFFFFF,
        reply.max_background,
        reply.max_background * 3 // 4,
        reply.max_write,
        1,  # time_gran: nanoseconds
        reply.max_pages,
        0,
        flags >> 32,
        reply.max_stack_depth,
        0,
    )


def encode_reply(unique: int, body: bytes = b"") -> bytes:
    """Return a successful answer with a body made by one of the functions below."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def encode_header(unique: int, body_length: int) -> bytes:
    """Return the header alone, for a body that is written behind it without a copy."""
    return OUT_HEADER.pack(OUT_HEADER.size + body_length, 0, unique)


def encode_error(unique: int, number: int) -> bytes:
    """Return the answer that makes the system call fail with errno `number`."""
    return OUT_HEADER.pack(OUT_HEADER.size, -number, unique)


def encode_attributes(attributes: Attributes) -> bytes:
    """Return struct fuse_attr."""
    atime_s, atime_ns = divmod(attributes.atime_ns, 1_000_000_000)
    mtime_s, mtime_ns = divmod(attributes.mtime_ns, 1_000_000_000)
    ctime_s, ctime_ns = divmod(attributes.ctime_ns, 1_000_000_000)
    return ATTRIBUTES.pack(
        attributes.ino,
        attributes.size,
        attributes.blocks,
        atime_s & 0xFFFFFFFFFFFFFFFF,
        mtime_s & 0xFFFFFFFFFFFFFFFF,
        ctime_s & 0xFFFFFFFFFFFFFFFF,
        atime_ns,
        mtime_ns,
        ctime_ns,
        attributes.mode,
        attributes.nlink,
        attributes.uid,
        attributes.gid,
        0,  # rdev
        4096,  # blksize
        0,
    )


def encode_entry(
    nodeid: int, attributes: Attributes, entry_timeout_s: float, attribute_timeout_s: float
) -> bytes:
    """Return struct fuse_entry_out."""
    timeouts = encode_entry_timeouts(entry_timeout_s, attribute_timeout_s)
    return NODE_OUT.pack(nodeid, 0) + timeouts + encode_attributes(attributes)


def encode_entry_timeouts(entry_timeout_s: float, attribute_timeout_s: float) -> bytes:
    """Return the part of struct fuse_entry_out between the node and its attributes."""
    entry_s, entry_ns = _timeout(entry_timeout_s)
    attribute_s, attribute_ns = _timeout(attribute_timeout_s)
    return TIMEOUTS_OUT.pack(entry_s, attribute_s, entry_ns, attribute_ns)


def encode_known_entry(unique: int, nodeid: int, timeouts: bytes, attributes: bytes) -> bytes:
    """Return a whole LOOKUP reply of parts that were packed before."""
    return KNOWN_ENTRY.pack(KNOWN_ENTRY_BYTES, 0, unique, nodeid, 0) + timeouts + attributes


def encode_attributes_out(attributes: Attributes, timeout_s: float) -> bytes:
    """Return struct fuse_attr_out."""
    return encode_attributes_timeout(timeout_s) + encode_attributes(attributes)


def encode_attributes_timeout(timeout_s: float) -> bytes:
    """Return struct fuse_attr_out without its attributes."""
    seconds, nanoseconds = _timeout(timeout_s)
    return ATTRIBUTES_OUT.pack(seconds, nanoseconds, 0)


def encode_open(handle: int, flags: int, backing_id: int = 0) -> bytes:
    """Return struct fuse_open_out. flags: OpenFlag."""
    return OPEN_OUT.pack(handle, flags, backing_id)


def encode_statfs(
    blocks: int, blocks_free: int, files: int, files_free: int, sector: int, name_length: int
) -> bytes:
    """Return struct fuse_statfs_out."""
    return STATFS_OUT.pack(
        blocks, blocks_free, blocks_free, files, files_free, sector, name_length, sector, 0
    )


def encode_dirent(ino: int, next_offset: int, file_type: int, name: bytes) -> bytes:
    """Return struct fuse_dirent with its name, padded.

    file_type: DT_*, the mode's top four bits.
    """
    padding = -(DIRENT.size + len(name)) % 8
    return DIRENT.pack(ino, next_offset, len(name), file_type) + name + bytes(padding)


def encode_listing(pieces: Sequence[bytes], room: int) -> bytes:
    """Join as many whole dirents as fit in `room`."""
    total = 0
    kept = []
    for piece in pieces:
        if total + len(piece) > room:
            break
        kept.append(piece)
        total += len(piece)
    return b"".join(kept)


def _timeout(seconds: float) -> tuple[int, int]:
    whole = int(seconds)
    return whole, int((seconds - whole) * 1_000_000_000)
