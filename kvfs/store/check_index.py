"""The index against itself: every count, link and order that must agree with the rows.

Owns the rules; reads one transaction, so a store in use is seen as of one moment. Each finding
carries its correction, which runs in the write transaction that scanned. Knows no file.

Holds (what is checked): a name and its inode know each other; nlink counts names; a directory
counts its live children; lru and expiry hold exactly the rows' places; refs = inodes with that
digest; a mutable inode has its file's row; trash and live are disjoint; usage, resident, granted
and the counts are sums of rows; the counts of uses can be read.
Cost: every row once, and one dictionary entry a digest (about 150 bytes).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from kvfs.index import tree
from kvfs.index.lmdb_index import Counters, ReadTransaction, WriteTransaction
from kvfs.index.schema import (
    FILE_PREFIX,
    GRANT_PREFIX,
    NAMESPACE_PREFIX,
    BlockRow,
    FileRow,
    InodeRow,
    expiry_key,
    lru_key,
    pack_u64,
    unpack_block,
    unpack_dirent,
    unpack_file,
    unpack_inode,
    unpack_namespace,
)
from kvfs.index.upload_rows import uploads
from kvfs.model import MAX_KEY_LENGTH, ROOT_INODE, Codec, Digest, Kind, NamespaceId
from kvfs.store.block_files import sectors
from kvfs.store.findings import Finding, Fix, Severity
from kvfs.store.heat import KEY as HEAT_KEY
from kvfs.store.heat import unpack_heat
from kvfs.store.objects import put_trash, release_file
from kvfs.store.use_counts import KEY as USES_KEY
from kvfs.store.use_counts import unpack_uses

MAX_FINDINGS = 10_000
"""Reported at most; a store with more is beyond a list (I8). A repair goes round again."""

_BAD_ROW = (struct.error, ValueError, KeyError, IndexError, TypeError)


@dataclass(slots=True)
class _Sums:
    """What the rows add up to."""

    refs: Counter[Digest]
    objects: Counter[NamespaceId]
    logical: Counter[NamespaceId]
    last_inode: int = 0


def scan_index(txn: ReadTransaction, capacity_bytes: int) -> Iterator[Finding]:
    """Yield what is wrong with the rows, as of one moment."""
    try:
        sums = _Sums(Counter(), Counter(), Counter())
        yield from _names(txn, sums)
        yield from _inodes(txn, sums)
        yield from _orders(txn)
        yield from _links(txn)
        yield from _namespaces(txn, sums)
        yield from _blocks(txn, sums, capacity_bytes)
        _ = [unpack_uses(raw) for _, raw in txn.rows("meta", USES_KEY)]
        _ = [unpack_heat(raw) for _, raw in txn.rows("meta", HEAT_KEY)]
    except _BAD_ROW as error:
        yield from _unreadable_rows(txn, error)


def correct_index(txn: WriteTransaction, capacity_bytes: int, rounds: int = 8) -> list[Finding]:
    """Correct what scan_index finds, in this one transaction; return what was found at first.

    A correction may uncover the next (a removed name changes its directory's count), hence rounds.
    """
    first: list[Finding] = []
    for round_ in range(rounds):
        found = _bounded(scan_index(txn, capacity_bytes))
        if round_ == 0:
            first = found
        fixes = [finding.fix for finding in found if finding.fix is not None]
        if not fixes:
            break
        for fix in fixes:
            fix(txn)
        txn.finish()
    return first


def _bounded(findings: Iterator[Finding]) -> list[Finding]:
    return [finding for finding, _ in zip(findings, range(MAX_FINDINGS), strict=False)]


def _damage(code: str, subject: str, detail: str, fix: Fix | None = None) -> Finding:
    return Finding(code, Severity.DAMAGE, subject, detail, fix)


# -- names ---------------------------------------------------------------------------------------


def _names(txn: ReadTransaction, sums: _Sums) -> Iterator[Finding]:
    """Every dirent: its directory and its inode exist, and the inode knows the name."""
    above = {
        inode: (int.from_bytes(key[:8], "big"), key[8:])
        for key, raw in txn.rows("dirents")
        for inode, kind in (unpack_dirent(raw),)
        if kind == tree.CONTINUATION
    }
    used: set[int] = set()
    for key, raw in txn.rows("dirents"):
        inode, kind = unpack_dirent(raw)
        sums.last_inode = max(sums.last_inode, inode)
        holder, piece = int.from_bytes(key[:8], "big"), key[8:]
        used.add(holder)
        if kind != tree.CONTINUATION:
            yield from _name(txn, key, _whole_name(above, holder, piece), inode, kind)
    for inode, (holder, piece) in above.items():
        if inode not in used:
            fix = partial(_delete_row, table="dirents", key=pack_u64(holder) + piece)
            detail = "a long name's head leads to nothing"
            yield _damage("name-piece-empty", f"inode {inode}", detail, fix)


def _whole_name(
    above: dict[int, tuple[int, bytes]], holder: int, piece: bytes
) -> tuple[int, bytes]:
    """Return (directory, encoded name) of a stored last piece."""
    for _ in range(MAX_KEY_LENGTH):
        if holder not in above:
            break
        holder, head = above[holder]
        piece = head[:-1] + piece
    return holder, piece


def _name(
    txn: ReadTransaction, key: bytes, place: tuple[int, bytes], inode: int, kind: int
) -> Iterator[Finding]:
    subject = f"name {place[1]!r} in directory {place[0]}"
    drop = partial(_delete_row, table="dirents", key=key)
    directory = txn.inode(place[0])
    if directory is None or directory.kind is not Kind.DIRECTORY:
        yield _damage("name-without-directory", subject, "its directory is not there", drop)
        return
    row = txn.inode(inode)
    if row is None:
        yield _damage("name-without-inode", subject, f"inode {inode} is not there", drop)
    elif int(row.kind) != kind:
        fix = partial(_put_row, table="dirents", key=key, value=_dirent(inode, row.kind))
        yield _damage("name-kind", subject, f"says {kind}, inode {inode} says {int(row.kind)}", fix)
    elif (row.parent, row.name) != place and not _has_link(txn, inode, place):
        if row.kind is Kind.DIRECTORY:
            drop = partial(_adopt, inode=inode, place=place)
        yield _damage("name-unknown", subject, f"inode {inode} does not know it", drop)


def _has_link(txn: ReadTransaction, inode: int, place: tuple[int, bytes]) -> bool:
    return txn.get("links", pack_u64(inode) + pack_u64(place[0]) + place[1]) is not None


# -- inodes --------------------------------------------------------------------------------------


def _inodes(txn: ReadTransaction, sums: _Sums) -> Iterator[Finding]:
    if txn.inode(ROOT_INODE) is None:
        yield _damage("root-missing", "inode 1", "the root directory is not there")
    for key, raw in txn.rows("inodes"):
        inode, row = int.from_bytes(key, "big"), unpack_inode(raw)
        sums.last_inode = max(sums.last_inode, inode)
        if row.kind is Kind.FILE:
            sums.objects[row.namespace_id] += row.nlink
            sums.logical[row.namespace_id] += row.nlink * row.size
        if row.digest:
            sums.refs[row.digest] += 1
            yield from _inode_block(txn, inode, row)
        if inode != ROOT_INODE:
            yield from _inode_names(txn, inode, row)
        yield from _inode_orders(txn, inode, row)
        if row.is_mutable and txn.mutable_file(inode) is None:
            fix = partial(_delete_inode, inode=inode)
            yield _damage("mutable-without-file", f"inode {inode}", "has no file's row", fix)
        if row.kind is Kind.DIRECTORY:
            yield from _live_children(txn, inode, row)


def _inode_block(txn: ReadTransaction, inode: int, row: InodeRow) -> Iterator[Finding]:
    block = txn.block(row.digest)
    if block is None:
        fix = partial(_insert_lost_block, inode=inode)
        yield _damage(
            "inode-without-block", f"inode {inode}", f"no row for {row.digest.hex()}", fix
        )
    elif block.size != row.size:
        fix = partial(_set_size, inode=inode, size=block.size)
        yield _damage(
            "inode-size", f"inode {inode}", f"{row.size}, its block has {block.size}", fix
        )


def _inode_names(txn: ReadTransaction, inode: int, row: InodeRow) -> Iterator[Finding]:
    subject = f"inode {inode}"
    if tree.lookup(txn, row.parent, row.name) != (inode, int(row.kind)):
        detail = f"{row.name!r} in directory {row.parent} does not lead to it"
        yield _damage("inode-without-name", subject, detail, partial(_drop_first_name, inode=inode))
    links = 0
    for parent, name in txn.links(inode):
        links += 1
        if tree.lookup(txn, parent, name) != (inode, int(row.kind)):
            key = pack_u64(inode) + pack_u64(parent) + name
            fix = partial(_delete_row, table="links", key=key)
            yield _damage("link-without-name", subject, f"{name!r} does not lead to it", fix)
    if row.nlink != links + 1:
        fix = partial(_set_nlink, inode=inode, nlink=links + 1)
        yield _damage("inode-nlink", subject, f"{row.nlink}, but it has {links + 1} names", fix)


def _inode_orders(txn: ReadTransaction, inode: int, row: InodeRow) -> Iterator[Finding]:
    for table, key in (("lru", lru_key(inode, row)), ("expiry", expiry_key(inode, row))):
        if key is not None and txn.get(table, key) is None:
            fix = partial(_put_row, table=table, key=key, value=b"")
            yield _damage(f"{table}-missing", f"inode {inode}", f"has no place in {table}", fix)


def _live_children(txn: ReadTransaction, inode: int, row: InodeRow) -> Iterator[Finding]:
    live = 0
    has_children = False
    for _, child, kind in _children(txn, inode):
        has_children = True
        if kind == tree.FILE:
            live += 1
        elif kind == tree.DIRECTORY:
            below = txn.inode(child)
            live += below is not None and below.size > 0
    if live != row.size:
        fix = partial(_set_size, inode=inode, size=live)
        yield _damage("directory-count", f"inode {inode}", f"{row.size}, but {live} are live", fix)
    if row.is_implied and not has_children:
        fix = partial(_keep_directory, inode=inode)
        yield _damage("directory-empty", f"inode {inode}", "implied, yet nothing is in it", fix)


def _children(txn: ReadTransaction, holder: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the children of a directory, through the heads of long names."""
    for piece, inode, kind in txn.children(holder):
        if kind == tree.CONTINUATION:
            yield from _children(txn, inode)
        else:
            yield piece, inode, kind


# -- orders, links, namespaces -------------------------------------------------------------------


def _orders(txn: ReadTransaction) -> Iterator[Finding]:
    for table, place in (("lru", lru_key), ("expiry", expiry_key)):
        for key in txn.keys(table):
            inode = int.from_bytes(key[-8:], "big")
            row = txn.inode(inode)
            if row is None or place(inode, row) != key:
                fix = partial(_delete_row, table=table, key=key)
                yield _damage(f"{table}-stale", f"inode {inode}", f"a stale place in {table}", fix)


def _links(txn: ReadTransaction) -> Iterator[Finding]:
    for key in txn.keys("links"):
        inode = int.from_bytes(key[:8], "big")
        if txn.inode(inode) is None:
            fix = partial(_delete_row, table="links", key=key)
            yield _damage("link-without-inode", f"inode {inode}", "a link of no inode", fix)


def _namespaces(txn: ReadTransaction, sums: _Sums) -> Iterator[Finding]:
    known = set()
    for namespace_id, _ in list(txn.namespaces()):
        known.add(namespace_id)
        row = txn.namespace(namespace_id)
        if row is None:
            continue
        subject = f"namespace {namespace_id}"
        directory = txn.inode(row.inode)
        if directory is None or directory.kind is not Kind.DIRECTORY:
            yield _damage(
                "namespace-without-directory", subject, f"inode {row.inode} is no directory"
            )
        expected = (sums.objects[namespace_id], sums.logical[namespace_id])
        if (row.object_count, row.logical_bytes) != expected:
            fix = partial(_set_usage, namespace_id=namespace_id, usage=expected)
            usage = (row.object_count, row.logical_bytes)
            detail = f"(names, bytes) {usage}, but the rows say {expected}"
            yield _damage("namespace-usage", subject, detail, fix)
    for _, inode, kind in _children(txn, ROOT_INODE):
        first = txn.inode(inode)
        if kind == tree.DIRECTORY and first is not None and first.namespace_id not in known:
            detail = f"namespace {first.namespace_id} is not there"
            yield _damage("directory-without-namespace", f"inode {inode}", detail)
    for namespace_id in sums.objects:
        if namespace_id not in known:
            detail = f"{sums.objects[namespace_id]} names belong to no namespace"
            yield _damage("namespace-missing", f"namespace {namespace_id}", detail)


# -- blocks, space -------------------------------------------------------------------------------


def _blocks(txn: ReadTransaction, sums: _Sums, capacity_bytes: int) -> Iterator[Finding]:
    counters = txn.counters()
    resident = blocks = 0
    for key, raw in txn.rows("blocks"):
        digest, block = Digest(key), unpack_block(raw)
        blocks += 1
        resident += 0 if block.is_bad else block.stored
        yield from _block(txn, digest, block, sums.refs[digest], counters)
    for key, raw in txn.rows("meta", FILE_PREFIX):
        resident += unpack_file(raw).stored
        yield from _mutable_file(txn, int.from_bytes(key[1:], "big"), unpack_file(raw))
    trash = [int.from_bytes(raw, "little") for _, raw in txn.rows("trash")]
    granted = sum(int.from_bytes(raw, "little") for _, raw in txn.rows("meta", GRANT_PREFIX))
    yield from _counter(counters, "resident", resident + sum(trash))
    yield from _counter(counters, "block_count", blocks)
    yield from _counter(counters, "trash_count", len(trash))
    yield from _counter(counters, "granted", granted)
    uploading = sum(row.reserved for _, row in uploads(txn))
    yield from _counter(counters, "uploading", uploading)
    if counters.next_inode <= sums.last_inode:
        fix = partial(_set_counter, name="next_inode", value=sums.last_inode + 1)
        detail = f"{counters.next_inode}, but inode {sums.last_inode} exists"
        yield _damage("counter-next_inode", "next_inode", detail, fix)
    used = counters.resident + counters.granted + counters.uploading
    if used > capacity_bytes:
        # Lowering `capacity` in kvfs.toml does this too, so it is no proof of a fault.
        detail = f"resident and reserved are {used} bytes of {capacity_bytes}"
        yield Finding("over-capacity", Severity.WARNING, "capacity", detail)


def _block(
    txn: ReadTransaction, digest: Digest, block: BlockRow, refs: int, counters: Counters
) -> Iterator[Finding]:
    subject = f"block {digest.hex()}"
    if block.refs != refs:
        fix = partial(_set_refs, digest=digest, refs=refs)
        yield _damage("block-refs", subject, f"{block.refs}, but {refs} inodes hold it", fix)
    if block.codec is Codec.RAW and not block.is_bad and block.stored != sectors(block.size):
        fix = partial(_set_stored, digest=digest, stored=sectors(block.size))
        yield _damage("block-charge", subject, f"{block.stored} for {block.size} bytes", fix)
    key = digest + pack_u64(block.generation)
    if not block.is_bad and txn.get("trash", key) is not None:
        fix = partial(_delete_row, table="trash", key=key)
        yield _damage("trash-live", subject, "its file is live and in the trash", fix)
    if block.sequence > counters.sequence:
        fix = partial(_set_counter, name="sequence", value=block.sequence)
        yield _damage("block-sequence", subject, f"{block.sequence} is in the future", fix)
    if txn.namespace(block.namespace_id) is None:
        yield _damage("block-namespace", subject, f"namespace {block.namespace_id} is not there")
    if block.is_bad:
        detail = "its bytes failed their check; its names are misses until it is stored again"
        yield Finding("block-bad", Severity.WARNING, subject, detail)


def _mutable_file(txn: ReadTransaction, inode: int, file: FileRow) -> Iterator[Finding]:
    row, subject = txn.inode(inode), f"inode {inode}"
    if row is None or not row.is_mutable:
        fix = partial(_drop_file, inode=inode)
        yield _damage("file-without-inode", subject, "a mutable file of no inode", fix)
    elif txn.get("trash", pack_u64(inode) + pack_u64(file.generation)) is not None:
        fix = partial(_delete_row, table="trash", key=pack_u64(inode) + pack_u64(file.generation))
        yield _damage("trash-live", subject, "its file is live and in the trash", fix)


def _counter(counters: Counters, name: str, expected: int) -> Iterator[Finding]:
    value = getattr(counters, name)
    if value != expected:
        fix = partial(_set_counter, name=name, value=expected)
        yield _damage(f"counter-{name}", name, f"{value}, but the rows say {expected}", fix)


def _unreadable_rows(txn: ReadTransaction, error: Exception) -> Iterator[Finding]:
    """Yield the rows that cannot be unpacked; everything else waits for the next round."""
    found = False
    unpackers: tuple[tuple[str, bytes, Callable[[bytes], object]], ...] = (
        ("dirents", b"", unpack_dirent), ("inodes", b"", unpack_inode),
        ("blocks", b"", unpack_block), ("meta", NAMESPACE_PREFIX, unpack_namespace),
        ("meta", FILE_PREFIX, unpack_file), ("meta", USES_KEY, unpack_uses),
        ("meta", HEAT_KEY, unpack_heat),
    )  # fmt: skip
    for table, prefix, unpack in unpackers:
        for key, raw in txn.rows(table, prefix):
            try:
                unpack(raw)
            except _BAD_ROW as bad:
                found = True
                fix = partial(_delete_row, table=table, key=key)
                yield _damage("row-unreadable", f"{table} {key.hex()}", str(bad), fix)
    if not found:
        yield _damage("index-unreadable", "index", f"a row cannot be understood: {error}")


# -- corrections ---------------------------------------------------------------------------------


def _delete_row(txn: WriteTransaction, table: str, key: bytes) -> None:
    txn.delete(table, key)


def _put_row(txn: WriteTransaction, table: str, key: bytes, value: bytes) -> None:
    txn.put(table, key, value)


def _delete_inode(txn: WriteTransaction, inode: int) -> None:
    row = txn.inode(inode)
    if row is not None:
        txn.delete_inode(inode, row)


def _drop_file(txn: WriteTransaction, inode: int) -> None:
    release_file(txn, inode)


def _dirent(inode: int, kind: Kind) -> bytes:
    return struct.pack("<QB", inode, kind)


def _adopt(txn: WriteTransaction, inode: int, place: tuple[int, bytes]) -> None:
    row = txn.inode(inode)
    if row is not None:
        row.parent, row.name = place
        txn.update_inode(inode, None, row)


def _drop_first_name(txn: WriteTransaction, inode: int) -> None:
    """Let the first link be one that leads to the inode; without any the inode goes."""
    row = txn.inode(inode)
    if row is None:
        return
    for parent, name in list(txn.links(inode)):
        txn.delete("links", pack_u64(inode) + pack_u64(parent) + name)
        if tree.lookup(txn, parent, name) == (inode, int(row.kind)):
            row.parent, row.name = parent, name
            txn.update_inode(inode, None, row)
            return
    txn.delete_inode(inode, row)


def _set_nlink(txn: WriteTransaction, inode: int, nlink: int) -> None:
    row = txn.inode(inode)
    if row is not None:
        row.nlink = nlink
        txn.update_inode(inode, None, row)


def _set_size(txn: WriteTransaction, inode: int, size: int) -> None:
    row = txn.inode(inode)
    if row is not None:
        row.size = size
        txn.update_inode(inode, None, row)


def _keep_directory(txn: WriteTransaction, inode: int) -> None:
    row = txn.inode(inode)
    if row is not None:
        row.is_implied = False
        txn.update_inode(inode, None, row)


def _insert_lost_block(txn: WriteTransaction, inode: int) -> None:
    """Give an inode without a block a bad one: a miss now, and its names go with the lost ones."""
    row = txn.inode(inode)
    if row is None or txn.block(row.digest) is not None:
        return
    block = BlockRow(0, row.size, 0, 1, 0, row.namespace_id, is_bad=True)
    txn.put_block(row.digest, block)


def _set_refs(txn: WriteTransaction, digest: Digest, refs: int) -> None:
    block = txn.block(digest)
    if block is None:
        return
    if refs:
        block.refs = refs
        txn.put_block(digest, block)
        return
    txn.delete_block(digest)
    if not block.is_bad:
        put_trash(txn, digest, block)


def _set_stored(txn: WriteTransaction, digest: Digest, stored: int) -> None:
    block = txn.block(digest)
    if block is not None:
        block.stored = stored
        txn.put_block(digest, block)


def _set_usage(txn: WriteTransaction, namespace_id: NamespaceId, usage: tuple[int, int]) -> None:
    row = txn.namespace(namespace_id)
    if row is not None:
        row.object_count, row.logical_bytes = usage
        txn.put_namespace(namespace_id, row)


def _set_counter(txn: WriteTransaction, name: str, value: int) -> None:
    setattr(txn.counters(), name, value)
    txn.is_dirty = True
