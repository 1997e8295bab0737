"""Every rule that the rows and files of a store at rest obey, checked without the store's own code.

Reads the index row by row and the block files beside it; a broken rule is a sentence in the list
that `broken_rules` returns. Only for a store that nobody has open.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kvfs.codec.digest import digest_file
from kvfs.index import tree
from kvfs.index.lmdb_index import LmdbIndex, ReadTransaction
from kvfs.index.schema import (
    GRANT_PREFIX,
    InodeRow,
    expiry_key,
    lru_key,
    unpack_block,
    unpack_dirent,
    unpack_inode,
)
from kvfs.model import ROOT_INODE, Digest, Durability, Kind, NamespaceId

Inodes = dict[int, InodeRow]


def broken_rules(root: Path) -> list[str]:
    """Return a sentence for each broken rule of the closed store in `root`."""
    index = LmdbIndex(root / "index", durability=Durability.CACHE, read_only=True)
    try:
        with index.read() as txn:
            inodes = {
                int.from_bytes(key, "big"): unpack_inode(raw) for key, raw in txn.rows("inodes")
            }
            return [
                *_names(txn, inodes),
                *_directories(txn, inodes),
                *_orders(txn, inodes),
                *_namespaces(txn, inodes),
                *_blocks(txn, inodes, root),
                *_counters(txn, inodes),
            ]
    finally:
        index.close()


def children(txn: ReadTransaction, holder: int, path: bytes = b"") -> Iterator[tuple[bytes, int]]:
    """Yield (stored name, inode) under a directory, long names put together again."""
    for piece, inode, kind in txn.children(holder):
        if kind == Kind.CONTINUATION:
            yield from children(txn, inode, path + piece[:-1])
        else:
            yield path + piece, inode


def _names(txn: ReadTransaction, inodes: Inodes) -> Iterator[str]:
    named: Counter[int] = Counter()
    for key, raw in txn.rows("dirents"):
        inode, kind = unpack_dirent(raw)
        holder = int.from_bytes(key[:8], "big")
        row = inodes.get(holder)
        if row is not None and row.kind is not Kind.DIRECTORY:
            yield f"dirent {key!r} lies in inode {holder}, no directory"
        if kind == Kind.CONTINUATION:
            if inode in inodes:
                yield f"continuation {key!r} has an inode row"
            if not tree.has_children(txn, inode):
                yield f"continuation {key!r} leads nowhere"
            continue
        named[inode] += 1
        if inode not in inodes or inodes[inode].kind != kind:
            yield f"dirent {key!r} names inode {inode}, which is missing or of another kind"
    for inode, row in inodes.items():
        if inode == ROOT_INODE:
            continue
        names = [(row.parent, row.name), *txn.links(inode)]
        if not len(set(names)) == len(names) == row.nlink == named[inode]:
            yield f"inode {inode}: nlink {row.nlink}, {names} recorded, {named[inode]} dirents"
        yield from (
            f"inode {inode} is not at its recorded name {name!r}"
            for parent, name in names
            if (tree.lookup(txn, parent, name) or (0,))[0] != inode
        )
    links = {int.from_bytes(key[:8], "big") for key in txn.keys("links")}
    yield from (f"links of inode {inode}, which is gone" for inode in links - inodes.keys())


def _directories(txn: ReadTransaction, inodes: Inodes) -> Iterator[str]:
    for inode, row in inodes.items():
        if row.kind is not Kind.DIRECTORY:
            continue
        below = [inodes[child] for _, child in children(txn, inode) if child in inodes]
        live = sum(
            child.kind is Kind.FILE or (child.kind is Kind.DIRECTORY and child.size > 0)
            for child in below
        )
        if inode != ROOT_INODE and live != row.size:
            yield f"directory {inode} counts {row.size} live children and has {live}"
        if row.is_implied and not below:
            yield f"implied directory {inode} ({row.name!r}) outlived its last child"
        yield from (
            f"{child.name!r} in directory {inode} belongs to another namespace"
            for child in below
            if inode != ROOT_INODE and child.namespace_id != row.namespace_id
        )


def _orders(txn: ReadTransaction, inodes: Inodes) -> Iterator[str]:
    for table, key_of in (("lru", lru_key), ("expiry", expiry_key)):
        wanted = {key for inode, row in inodes.items() if (key := key_of(inode, row))}
        found = set(txn.keys(table))
        if wanted != found:
            yield f"{table}: missing {wanted - found}, too many {found - wanted}"


def _namespaces(txn: ReadTransaction, inodes: Inodes) -> Iterator[str]:
    count: Counter[NamespaceId] = Counter()
    length: Counter[NamespaceId] = Counter()
    for row in inodes.values():
        if row.kind is Kind.FILE:
            count[row.namespace_id] += row.nlink
            length[row.namespace_id] += row.nlink * row.size
    for namespace_id, namespace in txn.namespaces():
        if namespace.object_count != count[namespace_id]:
            yield f"namespace {namespace_id} counts {namespace.object_count} objects wrongly"
        if namespace.logical_bytes != length[namespace_id]:
            yield f"namespace {namespace_id} counts {namespace.logical_bytes} bytes wrongly"
        if namespace.inode not in inodes:
            yield f"namespace {namespace_id} has no directory"


def _blocks(txn: ReadTransaction, inodes: Inodes, root: Path) -> Iterator[str]:
    refs = Counter(row.digest for row in inodes.values() if row.digest)
    salts = {namespace_id: row.salt for namespace_id, row in txn.namespaces()}
    wanted = {f"{key[:32].hex()}.{key[32:].hex()}" for key in txn.keys("trash")}
    blocks = {Digest(key): unpack_block(raw) for key, raw in txn.rows("blocks")}
    yield from (f"no block row for {digest.hex()}" for digest in refs.keys() - blocks.keys())
    for digest, block in blocks.items():
        name = f"{digest.hex()}.{block.generation:016x}"
        if block.refs != refs[digest]:
            yield f"block {name} counts {block.refs} inodes and has {refs[digest]}"
        if block.is_bad:
            continue
        wanted.add(name)
        path = root / "blocks" / name[:2] / name
        if not path.exists():
            yield f"block {name} has no file (I2)"
            continue
        length = path.stat().st_size
        if length != block.size or block.stored != -(-length // 4096) * 4096:
            yield f"block {name} has {length} bytes, its row says {block.size}, {block.stored}"
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if digest_file(salts[block.namespace_id], descriptor, length) != digest:
                yield f"block {name} does not hold the bytes of its digest (I1)"
        finally:
            os.close(descriptor)
    found = {path.name for path in (root / "blocks").glob("??/*")}
    if found != wanted:
        yield f"files: orphans {found - wanted}, missing {wanted - found}"


def _counters(txn: ReadTransaction, inodes: Inodes) -> Iterator[str]:
    counters = txn.counters()
    stored = [block for _, raw in txn.rows("blocks") if not (block := unpack_block(raw)).is_bad]
    trash = sum(int.from_bytes(raw, "little") for _, raw in txn.rows("trash"))
    grants = sum(int.from_bytes(raw, "little") for _, raw in txn.rows("meta", GRANT_PREFIX))
    resident = sum(block.stored for block in stored) + trash
    facts = {
        "resident": (counters.resident, resident),
        "granted": (counters.granted, grants),
        "block_count": (counters.block_count, txn.count("blocks")),
        "trash_count": (counters.trash_count, txn.count("trash")),
    }
    for name, (counted, true) in facts.items():
        if counted != true:
            yield f"the counter {name} says {counted} and should say {true}"
    if counters.next_inode <= max(inodes):
        yield "the next inode number was given out already"
