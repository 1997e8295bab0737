"""Rows of multipart uploads: what is known of an upload and of each part.

Owns the bytes of the tables `uploads` (key: upload id, 16 bytes) and `parts` (key: upload id + part
number u16 BE). They live in the index, because the parts of one upload reach different worker
processes; see store/uploads.py for who changes them when.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.index.schema import pack_attributes, unpack_attributes
from kvfs.model import NamespaceId

# state namespace created_ns active_ns part_size reserved, PutOptions: mode uid gid ttl class
# priority pin flags; lengths of key and etag
_UPLOAD = struct.Struct("<BIQQQQHIIIHBBBHB")
# size modified_ns offset unique charged; length of etag
_PART = struct.Struct("<QQQQQB")
_part_number = struct.Struct(">H").pack

_HAS_TTL = 1
_IS_SLIDING = 2


class UploadState(enum.IntEnum):
    """Where an upload stands."""

    OPEN = 0
    COMPLETING = 1
    """Parts are no longer accepted; a Complete that died here may be repeated."""
    DONE = 2
    """The object is published; the row stays a while for a client that repeats its Complete."""


@dataclass(slots=True)
class UploadRow:
    """A working copy of one upload inside one transaction."""

    state: UploadState
    namespace_id: NamespaceId
    key: bytes
    created_ns: int
    active_ns: int
    """Last part that was stored; expiry counts from here."""
    part_size: int = 0
    """Bytes between two parts in the base file; 0 = no part has told yet."""
    reserved: int = 0
    """Bytes counted in Counters.uploading for this upload."""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    ttl_s: int | None = None
    ttl_class: int = 0
    priority: int = 100
    pin: int = 0
    is_sliding: bool = True
    etag: str = ""
    """DONE: the ETag of the object it became."""
    attributes: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class PartRow:
    """One complete, verified part."""

    size: int
    modified_ns: int
    offset: int
    """Where it begins in its file."""
    unique: int
    """0 = in the base file; otherwise it has a file of its own, so named."""
    charged: int
    etag: str
    attributes: Mapping[str, bytes] = field(default_factory=dict)


def pack_upload(row: UploadRow) -> bytes:
    """Return the stored form."""
    flags = (_HAS_TTL if row.ttl_s is not None else 0) | (_IS_SLIDING if row.is_sliding else 0)
    etag = row.etag.encode("ascii")
    head = _UPLOAD.pack(
        row.state, row.namespace_id, row.created_ns, row.active_ns, row.part_size, row.reserved,
        row.mode, row.uid, row.gid, row.ttl_s or 0, row.ttl_class, row.priority, row.pin, flags,
        len(row.key), len(etag),
    )  # fmt: skip
    return head + row.key + etag + pack_attributes(row.attributes)


def unpack_upload(raw: bytes) -> UploadRow:
    """Return the working copy held in `raw`."""
    (
        state, namespace_id, created_ns, active_ns, part_size, reserved, mode, uid, gid, ttl_s,
        ttl_class, priority, pin, flags, key_length, etag_length,
    ) = _UPLOAD.unpack_from(raw)  # fmt: skip
    at = _UPLOAD.size
    key = raw[at : at + key_length]
    at += key_length
    etag = raw[at : at + etag_length].decode("ascii")
    attributes = unpack_attributes(raw, at + etag_length)
    return UploadRow(
        UploadState(state), NamespaceId(namespace_id), key, created_ns, active_ns, part_size,
        reserved, mode, uid, gid, ttl_s if flags & _HAS_TTL else None, ttl_class, priority, pin,
        bool(flags & _IS_SLIDING), etag, attributes,
    )  # fmt: skip


def pack_part(row: PartRow) -> bytes:
    """Return the stored form."""
    etag = row.etag.encode("ascii")
    head = _PART.pack(row.size, row.modified_ns, row.offset, row.unique, row.charged, len(etag))
    return head + etag + pack_attributes(row.attributes)


def unpack_part(raw: bytes) -> PartRow:
    """Return the working copy held in `raw`."""
    size, modified_ns, offset, unique, charged, etag_length = _PART.unpack_from(raw)
    at = _PART.size + etag_length
    etag = raw[_PART.size : at].decode("ascii")
    return PartRow(size, modified_ns, offset, unique, charged, etag, unpack_attributes(raw, at))


def get_upload(txn: ReadTransaction, upload_id: bytes) -> UploadRow | None:
    """Return a working copy of an upload's row."""
    raw = txn.get("uploads", upload_id)
    return None if raw is None else unpack_upload(raw)


def put_upload(txn: WriteTransaction, upload_id: bytes, row: UploadRow) -> None:
    """Store an upload's row."""
    txn.put("uploads", upload_id, pack_upload(row))


def uploads(txn: ReadTransaction, after: bytes = b"") -> Iterator[tuple[bytes, UploadRow]]:
    """Yield (upload id, row) of every upload whose id is greater than `after`."""
    for key, raw in txn.rows("uploads", start=after + b"\0" if after else None):
        yield key, unpack_upload(raw)


def get_part(txn: ReadTransaction, upload_id: bytes, part_number: int) -> PartRow | None:
    """Return a working copy of a part's row."""
    raw = txn.get("parts", upload_id + _part_number(part_number))
    return None if raw is None else unpack_part(raw)


def put_part(txn: WriteTransaction, upload_id: bytes, part_number: int, row: PartRow) -> None:
    """Store a part's row."""
    txn.put("parts", upload_id + _part_number(part_number), pack_part(row))


def parts(txn: ReadTransaction, upload_id: bytes, after: int = 0) -> Iterator[tuple[int, PartRow]]:
    """Yield (part number, row) of the parts behind number `after`, in their order."""
    start = upload_id + _part_number(min(after + 1, 0xFFFF))
    for key, raw in txn.rows("parts", upload_id, start):
        yield int.from_bytes(key[16:], "big"), unpack_part(raw)


def delete_parts(txn: WriteTransaction, upload_id: bytes) -> None:
    """Remove every part's row of an upload."""
    for key in list(txn.keys("parts", upload_id)):
        txn.delete("parts", key)
