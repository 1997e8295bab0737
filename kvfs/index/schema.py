"""Every row of the index: sub-databases, keys, values, and who sets each field.

Owns the bytes; knows no transaction. Integers in keys are big-endian, so LMDB's byte order is their
order; integers in values are little-endian. A row is at most a few hundred bytes: one million
objects with names as long as LMCache's must stay under 600 bytes of live pages each.

    table       key                                      value
    dirents     parent inode u64, name piece             inode u64, kind u8
    inodes      inode u64                                InodeRow
    links       inode u64, parent u64, name              -           names beyond the first
    blocks      digest 32                                BlockRow
    lru         priority u8, accessed_s u32, inode u64   -           no row: hard-pinned
    expiry      expires_at_s u32, inode u64              -           no row: never expires
    trash       digest 32 or inode u64, generation u64   stored u64  unlink is due (see store/trash)
    uploads     upload id                                owned by store/uploads.py
    parts       upload id, part number u16               owned by store/uploads.py
    meta        "counters"                               Counters    written by every publish
                "suspect ranges"                         see store/trust.py
                "uses"                                   see store/use_counts.py
                "heat"                                   see store/heat.py
                "n", namespace id u32                    NamespaceRow
                "g", lease id 8                          bytes u64   space a process may still fill
                "f", inode u64                           FileRow     a mutable file's file

What every publish changes lies in `meta` together: one page to write instead of three (10 us each).

Names. A directory's name carries a trailing "/", so a directory `a/` and a file `a` can both exist,
and walking the children in LMDB's order is exactly S3's order of keys. LMDB's keys end at 511
bytes: a longer name is a path of pieces, each but the last its next 440 bytes + NUL (NUL is in no
name), of kind CONTINUATION, pointing at an inode number under which the rest is stored likewise.
A continuation has no row in `inodes`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvfs.errors import InvalidName
from kvfs.model import (
    MAX_DEPTH,
    MAX_KEY_LENGTH,
    MAX_MOUNT_NAME_LENGTH,
    NO_DIGEST,
    ROOT_NAMESPACE,
    Codec,
    Digest,
    Entry,
    Kind,
    NamespaceId,
    Pin,
)

TABLES = (
    "dirents", "inodes", "links", "blocks", "lru", "expiry", "trash", "uploads", "parts", "meta",
)  # fmt: skip

PIECE_LENGTH = 440
SOFT_PIN_PRIORITY = 255
"""A soft pin leaves last: it is ordered behind every priority an object can ask for (0-254)."""
MAX_TIME_S = (1 << 32) - 1
"""Times in rows and in the keys of `lru` and `expiry` are 32 bits: until 2106."""
MAX_ATTRIBUTES_LENGTH = 64 * 1024
"""All extended attributes of one inode; XATTR_SIZE_MAX of one in the kernel is the same 64 KiB."""

pack_u64 = struct.Struct(">Q").pack
pack_dirent = struct.Struct("<QB").pack
unpack_dirent = struct.Struct("<QB").unpack
pack_lru_key = struct.Struct(">BIQ").pack
unpack_lru_key = struct.Struct(">BIQ").unpack
pack_expiry_key = struct.Struct(">IQ").pack
unpack_expiry_key = struct.Struct(">IQ").unpack
pack_count = struct.Struct("<Q").pack
NAMESPACE_PREFIX = b"n"
GRANT_PREFIX = b"g"
FILE_PREFIX = b"f"
"""In `meta`, not in a table of its own: a store made before there were any opens as it is, also for
reading only, and there are a few hundred of them, not millions."""

# kind flags mode uid gid namespace size mtime_ns ctime_ns accessed expires ttl class priority pin
# nlink parent name_length etag_length
_INODE = struct.Struct("<BBHIIIQQQIIIHBBIQHB")
_BLOCK = struct.Struct("<QQQIQIBB")
_ONE_REF, _RAW_UNMARKED = (1).to_bytes(4, "little"), bytes((int(Codec.RAW), 0))
# Where refs, codec and flags lie in a block row, and what stands there in nearly all of them.
_TELLING = (24, 25, 26, 27, 40, 41)
_MOST = b"".join((bytes(24), _ONE_REF, bytes(12), _RAW_UNMARKED))
_NAMESPACE = struct.Struct("<QQQQQQIB")
_ATTRIBUTE = struct.Struct("<HI")
_FILE = struct.Struct("<QQ")

_IS_IMPLIED = 1
_IS_SLIDING = 2
_IS_MUTABLE = 4
_HAS_DIGEST = 8
_ETAG_IS_MD5 = 16
_HAS_TARGET = 32
_UNLIKE_MOST = _HAS_DIGEST | _HAS_TARGET | _IS_MUTABLE
_FILE_KIND = int(Kind.FILE)


@dataclass(slots=True)
class InodeRow:
    """A working copy of one inode inside one transaction; `Entry` is what leaves the index."""

    kind: Kind
    namespace_id: NamespaceId
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    """File: logical bytes. Directory: the number of children that are live (files, and directories
    with a live child); it is what makes a directory a CommonPrefix. Symlink: target length."""
    mtime_ns: int = 0
    ctime_ns: int = 0
    accessed_s: int = 0
    expires_at_s: int = 0
    ttl_s: int = 0
    ttl_class: int = 0
    priority: int = 100
    pin: Pin = Pin.NONE
    nlink: int = 1
    parent: int = 0
    name: bytes = b""
    """The stored (encoded) name of the first link: a directory's ends in "/"."""
    digest: Digest = NO_DIGEST
    etag: str = ""
    """ "" = derived from the digest."""
    is_implied: bool = False
    """A directory that a PUT implied: it goes with its last child."""
    is_sliding: bool = False
    is_mutable: bool = False
    target: bytes = b""
    attributes: Mapping[str, bytes] = field(default_factory=dict)


# _INODE without what no plan asks for; expires and ttl, side by side, as one number.
unpack_plan_fields = struct.Struct("<BB10xIQ8xQIQ2xBB4xQHB").unpack_from
"""What a plan needs of a million inode rows: kind, flags, namespace, size, written ns, accessed s,
lifetime of its own, priority, pin, parent, lengths of name and ETag. Where the kind is FILE, the
flags agree with PLAIN_FILE and nothing follows the ETag, digest and name lie at DIGEST_AT and
NAME_AT; unpack_inode understands the rest."""
PLAIN_FLAGS, PLAIN_FILE = _UNLIKE_MOST, _HAS_DIGEST
DIGEST_AT, NAME_AT = _INODE.size, _INODE.size + 32


def pack_inode(row: InodeRow) -> bytes:
    """Return the stored form of `row`."""
    flags = (
        (_IS_IMPLIED if row.is_implied else 0)
        | (_IS_SLIDING if row.is_sliding else 0)
        | (_IS_MUTABLE if row.is_mutable else 0)
        | (_HAS_DIGEST if row.digest else 0)
        | (_HAS_TARGET if row.target else 0)
    )
    etag = b""
    if row.etag:
        if _is_md5(row.etag):
            etag = bytes.fromhex(row.etag)
            flags |= _ETAG_IS_MD5
        else:
            etag = row.etag.encode("ascii")
    head = _INODE.pack(
        row.kind, flags, row.mode, row.uid, row.gid, row.namespace_id, row.size, row.mtime_ns,
        row.ctime_ns, row.accessed_s, row.expires_at_s, row.ttl_s, row.ttl_class, row.priority,
        row.pin, row.nlink, row.parent, len(row.name), len(etag),
    )  # fmt: skip
    body = head + row.digest + row.name + etag
    if row.target:
        body += struct.pack("<H", len(row.target)) + row.target
    if row.attributes:
        body += pack_attributes(row.attributes)
    return body


def unpack_inode(raw: bytes) -> InodeRow:
    """Return the working copy held in `raw`."""
    (
        kind, flags, mode, uid, gid, namespace_id, size, mtime_ns, ctime_ns, accessed_s,
        expires_at_s, ttl_s, ttl_class, priority, pin, nlink, parent, name_length, etag_length,
    ) = _INODE.unpack_from(raw)  # fmt: skip
    at = _INODE.size
    digest = b""
    if flags & _HAS_DIGEST:
        digest = raw[at : at + 32]
        at += 32
    name = raw[at : at + name_length]
    at += name_length
    etag = ""
    if etag_length:
        stored = raw[at : at + etag_length]
        etag = stored.hex() if flags & _ETAG_IS_MD5 else stored.decode("ascii")
        at += etag_length
    target = b""
    if flags & _HAS_TARGET:
        length = int.from_bytes(raw[at : at + 2], "little")
        target = raw[at + 2 : at + 2 + length]
        at += 2 + length
    attributes = unpack_attributes(raw, at) if at < len(raw) else _NO_ATTRIBUTES
    return InodeRow(
        _KINDS[kind], namespace_id, mode, uid, gid, size, mtime_ns, ctime_ns, accessed_s,
        expires_at_s, ttl_s, ttl_class, priority, _PINS[pin], nlink, parent, name, Digest(digest),
        etag, bool(flags & _IS_IMPLIED), bool(flags & _IS_SLIDING), bool(flags & _IS_MUTABLE),
        target, attributes,
    )  # fmt: skip


def entry_of(inode: int, row: InodeRow) -> Entry:
    """Return what `row` looks like from outside."""
    is_directory = row.kind is Kind.DIRECTORY
    return Entry(
        inode, row.kind, row.namespace_id, row.mode, row.uid, row.gid,
        0 if is_directory else row.size, row.mtime_ns, row.ctime_ns, row.accessed_s,
        row.expires_at_s, row.ttl_s, row.ttl_class, row.is_sliding, row.priority, row.pin,
        row.nlink, row.digest, _etag_of(inode, row), row.attributes, row.parent,
        row.name[:-1] if is_directory else row.name, row.target, row.is_mutable,
    )  # fmt: skip


def unpack_namespace_id(raw: bytes) -> NamespaceId:
    """Return an inode row's namespace."""
    return NamespaceId(int.from_bytes(raw[12:16], "little"))


def unpack_entry(inode: int, raw: bytes) -> Entry:
    """Return `entry_of(inode, unpack_inode(raw))` in one step: half the time of a lookup was spent
    on the working copy in between."""
    (
        kind, flags, mode, uid, gid, namespace_id, size, mtime_ns, ctime_ns, accessed_s,
        expires_at_s, ttl_s, ttl_class, priority, pin, nlink, parent, name_length, etag_length,
    ) = _INODE.unpack_from(raw)  # fmt: skip
    if kind != _FILE_KIND or flags & _UNLIKE_MOST != _HAS_DIGEST:
        return entry_of(inode, unpack_inode(raw))
    name_at = _INODE.size + 32
    digest = raw[_INODE.size : name_at]
    end = name_at + name_length
    name = raw[name_at:end]
    if etag_length:
        stored = raw[end : end + etag_length]
        etag = stored.hex() if flags & _ETAG_IS_MD5 else stored.decode("ascii")
        end += etag_length
    else:
        etag = digest[:16].hex() + "-1"
    attributes = unpack_attributes(raw, end) if end < len(raw) else _NO_ATTRIBUTES
    return Entry(
        inode, Kind.FILE, namespace_id, mode, uid, gid, size, mtime_ns, ctime_ns, accessed_s,
        expires_at_s, ttl_s, ttl_class, flags & _IS_SLIDING != 0, priority, _PINS[pin], nlink,
        Digest(digest), etag, attributes, parent, name,
    )  # fmt: skip


def _etag_of(inode: int, row: InodeRow) -> str:
    if row.is_mutable:
        return mutable_etag(inode, row.size, row.mtime_ns)
    return row.etag or derived_etag(row)


def mutable_etag(inode: int, size: int, mtime_ns: int) -> str:
    """Return the opaque ETag of a mutable file: another one after every write(2)."""
    return f"{inode:x}-{size:x}-{mtime_ns:x}-m"


def derived_etag(row: InodeRow) -> str:
    """Return the opaque ETag of a row that stores none: it changes whenever the bytes do."""
    if row.digest:
        return row.digest[:16].hex() + "-1"
    if row.kind is Kind.FILE:
        return "d41d8cd98f00b204e9800998ecf8427e"  # MD5 of nothing
    return ""


@dataclass(slots=True)
class BlockRow:
    """One block file. `refs` counts the inodes that hold its digest."""

    generation: int
    """The file is blocks/<first 2 hex>/<digest hex>.<generation, 16 hex>."""
    size: int
    """Logical bytes."""
    stored: int
    """Bytes charged against capacity: the file's length in whole 4 KiB sectors."""
    refs: int
    sequence: int
    """Publish counter at the commit that wrote the row; 0 = known to be on disk (synced or hashed).
    Inside one of meta's suspect ranges: hash the file once before trusting it."""
    namespace_id: NamespaceId = ROOT_NAMESPACE
    """Whose salt the digest is keyed with."""
    codec: Codec = Codec.RAW
    is_incompressible: bool = False
    """Compressing it would save less than 10 %: not tried again."""
    is_bad: bool = False
    """Its check failed and the file is in quarantine: every name of it is a miss until the same
    bytes are published again."""


def pack_block(row: BlockRow) -> bytes:
    """Return the stored form of `row`."""
    return _BLOCK.pack(
        row.generation, row.size, row.stored, row.refs, row.sequence, row.namespace_id,
        row.codec, row.is_bad | row.is_incompressible << 1,
    )  # fmt: skip


def unpack_stored(raw: bytes) -> int:
    """Return what a block row says it takes on the disk: nothing where it is bad."""
    return 0 if raw[-1] & 1 else int.from_bytes(raw[16:24], "little")


def unusual_blocks(rows: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the (digest, row) of blocks that have several names or none, are not raw, or have
    something known against them: nearly all others are alike, and a survey passes a million."""
    # Column by column: a fifth of what asking row by row costs.
    table, step, count = b"".join([raw for _, raw in rows]), _BLOCK.size, len(rows)
    columns = [table[offset::step] for offset in _TELLING]
    if columns == [_MOST[offset : offset + 1] * count for offset in _TELLING]:
        return []
    return [
        (digest, raw)
        for digest, raw in rows
        if raw[24:28] != _ONE_REF or not raw.endswith(_RAW_UNMARKED)
    ]


def unpack_block(raw: bytes) -> BlockRow:
    """Return the working copy held in `raw`."""
    generation, size, stored, refs, sequence, namespace_id, codec, flags = _BLOCK.unpack(raw)
    return BlockRow(
        generation, size, stored, refs, sequence, namespace_id, _CODECS[codec],
        bool(flags & 2), bool(flags & 1),
    )  # fmt: skip


@dataclass(slots=True)
class FileRow:
    """Where a mutable file's bytes are: files/<inode, 16 hex>.<generation, 16 hex>."""

    generation: int
    stored: int
    """Bytes charged against capacity: what the file had allocated when it was last looked at."""


def pack_file_key(inode: int) -> bytes:
    """Return the key in `meta` of a mutable file's row."""
    return FILE_PREFIX + pack_u64(inode)


def pack_file(row: FileRow) -> bytes:
    """Return the stored form of `row`."""
    return _FILE.pack(row.generation, row.stored)


def unpack_file(raw: bytes) -> FileRow:
    """Return the working copy held in `raw`."""
    return FileRow(*_FILE.unpack(raw))


@dataclass(slots=True)
class NamespaceRow:
    """A bucket's settings and usage. The name is its directory's; the salt is also kept in
    <store>/namespaces/, because without it no digest can be checked after the index is lost."""

    inode: int
    created_ns: int
    object_count: int = 0
    logical_bytes: int = 0
    quota_bytes: int = 0
    quota_objects: int = 0
    default_ttl_s: int = 0
    salt: bytes = b""
    attributes: Mapping[str, bytes] = field(default_factory=dict)


def pack_namespace_key(namespace_id: NamespaceId) -> bytes:
    """Return a namespace's key in `meta`."""
    return NAMESPACE_PREFIX + namespace_id.to_bytes(4, "big")


def pack_namespace(row: NamespaceRow) -> bytes:
    """Return the stored form of `row`."""
    head = _NAMESPACE.pack(
        row.inode, row.created_ns, row.object_count, row.logical_bytes, row.quota_bytes,
        row.quota_objects, row.default_ttl_s, len(row.salt),
    )  # fmt: skip
    return head + row.salt + pack_attributes(row.attributes)


def unpack_namespace(raw: bytes) -> NamespaceRow:
    """Return the working copy held in `raw`."""
    (inode, created_ns, objects, logical, quota_bytes, quota_objects, ttl_s, salt_length) = (
        _NAMESPACE.unpack_from(raw)
    )
    at = _NAMESPACE.size + salt_length
    return NamespaceRow(
        inode, created_ns, objects, logical, quota_bytes, quota_objects, ttl_s,
        raw[_NAMESPACE.size : at], unpack_attributes(raw, at),
    )  # fmt: skip


def attributes_length(attributes: Mapping[str, bytes]) -> int:
    """Return the stored length of `attributes`."""
    return sum(6 + len(_encode(name)) + len(value) for name, value in attributes.items())


def _encode(attribute_name: str) -> bytes:
    # A name that is no UTF-8 comes from the mount as os.fsdecode gives it.
    return attribute_name.encode("utf-8", "surrogateescape")


def pack_attributes(attributes: Mapping[str, bytes]) -> bytes:
    """Return the stored form of extended attributes; it ends with the row."""
    pieces = []
    for name, value in attributes.items():
        encoded = _encode(name)
        pieces.append(_ATTRIBUTE.pack(len(encoded), len(value)) + encoded + value)
    return b"".join(pieces)


def unpack_attributes(raw: bytes, at: int) -> Mapping[str, bytes]:
    """Return the attributes stored from `at` to the end of `raw`."""
    attributes = {}
    while at < len(raw):
        name_length, value_length = _ATTRIBUTE.unpack_from(raw, at)
        at += _ATTRIBUTE.size
        name = raw[at : at + name_length].decode("utf-8", "surrogateescape")
        at += name_length
        attributes[name] = raw[at : at + value_length]
        at += value_length
    return attributes


def _is_md5(etag: str) -> bool:
    return len(etag) == 32 and not set(etag) - set("0123456789abcdef")


def end_of_life(now_s: int, ttl_s: int) -> int:
    """Return `expires_at_s` of a lifetime that starts now; 0 = never."""
    return min(now_s + ttl_s, MAX_TIME_S) if ttl_s else 0


def lru_key(inode: int, row: InodeRow) -> bytes | None:
    """Return the row's place in the order of eviction; None = eviction may not take it (I5)."""
    if row.pin is Pin.HARD or row.kind is not Kind.FILE:
        return None
    priority = SOFT_PIN_PRIORITY if row.pin is Pin.SOFT else min(row.priority, 254)
    return pack_lru_key(priority, row.accessed_s, inode)


def expiry_key(inode: int, row: InodeRow) -> bytes | None:
    """Return the row's place in the order of expiry, or None if it never expires."""
    if not row.expires_at_s or row.pin is Pin.HARD or row.kind is not Kind.FILE:
        return None
    return pack_expiry_key(row.expires_at_s, inode)


def split_pieces(encoded_name: bytes) -> list[bytes]:
    """Return the stored pieces of one name ("/" included for a directory)."""
    pieces = []
    while len(encoded_name) > PIECE_LENGTH:
        pieces.append(encoded_name[:PIECE_LENGTH] + b"\0")
        encoded_name = encoded_name[PIECE_LENGTH:]
    pieces.append(encoded_name)
    return pieces


def split_key(key: bytes) -> list[bytes]:
    """Return the encoded names along `key`: directories with their "/", then the file's (maybe "").

    Raises: InvalidName (empty, NUL, over 1024 bytes, too deep).
    """
    if not key:
        raise InvalidName("the key is empty: give a name after the bucket")
    if len(key) > MAX_KEY_LENGTH:
        raise InvalidName(
            f"the key has {len(key)} bytes; at most {MAX_KEY_LENGTH} are allowed: shorten it"
        )
    if b"\0" in key:
        raise InvalidName("the key contains a NUL byte: remove it")
    parts = key.split(b"/")
    if len(parts) > MAX_DEPTH:
        raise InvalidName(
            f"the key has {len(parts)} components; at most {MAX_DEPTH} are allowed: flatten it"
        )
    return [part + b"/" for part in parts[:-1]] + [parts[-1]]


def check_component(name: bytes) -> None:
    """Raise InvalidName unless `name` can be one component in the mount."""
    if not name or name in (b".", b".."):
        raise InvalidName(
            f"{name.decode('utf-8', 'replace')!r} is no name for a file: choose another"
        )
    if b"/" in name or b"\0" in name:
        raise InvalidName("a file name cannot contain '/' or NUL: remove it")
    if len(name) > MAX_MOUNT_NAME_LENGTH:
        raise InvalidName(
            f"the name has {len(name)} bytes; at most {MAX_MOUNT_NAME_LENGTH} may be: shorten it"
        )


_KINDS = {int(kind): kind for kind in Kind}
_PINS = {int(pin): pin for pin in Pin}
_CODECS = {int(codec): codec for codec in Codec}
_NO_ATTRIBUTES: Mapping[str, bytes] = {}
