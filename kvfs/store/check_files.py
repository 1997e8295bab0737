"""The index against the files, both ways, on a store that may be in use.

Owns the comparison; changes nothing. A read transaction lasts one batch of rows, and whatever looks
wrong is looked at again before it is reported: between reading a row and looking at its file the
block may have been deleted, which is nobody's fault.

Holds: a file is an orphan only if its flock is free and then no row names it (a writer holds the
lock until its commit); the same for staging files and leases.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from kvfs.index.lmdb_index import WriteTransaction
from kvfs.index.schema import (
    FILE_PREFIX,
    BlockRow,
    FileRow,
    pack_u64,
    unpack_block,
    unpack_file,
)
from kvfs.model import Codec, Digest
from kvfs.store import mutable_paths
from kvfs.store.context import StoreContext
from kvfs.store.findings import Finding, LostBlock, Severity
from kvfs.store.namespaces import read_saved
from kvfs.store.trust import Trust

BATCH = 1000
"""Rows a read transaction, so that a long check pins no old pages of the index."""

CHARGE_SLACK = 64 * 1024
"""The file system allocates blocks for its own tree when it writes a file's pages to disk."""
MISSING_FILE = "mutable-file-missing"

Progress = Callable[[str, int], None]
"""Called with ("blocks" | "bytes", how many more)."""


@dataclass(slots=True)
class FileCounts:
    """What was looked at."""

    blocks: int = 0
    files: int = 0
    bytes_hashed: int = 0


def check_blocks(
    context: StoreContext, counts: FileCounts, progress: Progress, *, is_full: bool
) -> Iterator[tuple[Finding, LostBlock | None]]:
    """Yield every row whose file is gone, has another length, or (is_full) other bytes."""
    for batch in _row_batches(context):
        for digest, block in batch:
            counts.blocks += 1
            progress("blocks", 1)
            if block.is_bad:
                continue
            problem = _problem(context, digest, block, counts, progress, is_full=is_full)
            if problem is not None and _is_current(context, digest, block):
                code, detail = problem
                finding = Finding(code, Severity.DAMAGE, f"block {digest.hex()}", detail)
                yield finding, LostBlock(digest, block.generation)


def _row_batches(context: StoreContext) -> Iterator[list[tuple[Digest, BlockRow]]]:
    start = b""
    while True:
        with context.index.read() as txn:
            rows = list(islice(txn.rows("blocks", start=start), BATCH))
        if not rows:
            return
        yield [(Digest(key), unpack_block(raw)) for key, raw in rows]
        start = rows[-1][0] + b"\0"


def _problem(
    context: StoreContext,
    digest: Digest,
    block: BlockRow,
    counts: FileCounts,
    progress: Progress,
    *,
    is_full: bool,
) -> tuple[str, str] | None:
    length = context.files.length(digest, block.generation)
    if length is None:
        return "block-file-missing", "its file is not there"
    if block.codec is Codec.RAW and length != block.size:
        return "block-file-length", f"its file has {length} bytes, not {block.size}"
    if not is_full or block.codec is not Codec.RAW:
        return None
    with context.index.read() as txn:
        namespace = txn.namespace(block.namespace_id)
    descriptor = context.files.open(digest, block.generation)
    if namespace is None or descriptor is None:
        return None  # reported by the index's own check, or deleted meanwhile
    try:
        is_good = Trust.matches(digest, block, namespace.salt, descriptor)
    finally:
        os.close(descriptor)
    counts.bytes_hashed += length
    progress("bytes", length)
    return None if is_good else ("block-bytes", "its file holds other bytes, or cannot be read")


def _is_current(context: StoreContext, digest: Digest, block: BlockRow) -> bool:
    """Return whether the row still names the file that looked wrong."""
    with context.index.read() as txn:
        now = txn.block(digest)
    return now is not None and now.generation == block.generation and not now.is_bad


def check_orphans(
    context: StoreContext, counts: FileCounts, progress: Progress
) -> Iterator[Finding]:
    """Yield block files that no row names and whose writer is gone, and files that are not ours."""
    blocks = context.root / "blocks"
    for directory in sorted(blocks.iterdir()):
        with os.scandir(directory) as entries:
            for entry in entries:
                counts.files += 1
                progress("files", 1)
                parsed = context.files.parse_name(entry.name)
                shown = f"{directory.name}/{entry.name}"
                if parsed is None or f"{parsed[0][0]:02x}" != directory.name:
                    detail = "not a block file's name: remove it by hand if it is not yours"
                    yield Finding("foreign-file", Severity.WARNING, shown, detail)
                elif _is_orphan(context, *parsed):
                    detail = "no row names it: the sweep removes it"
                    yield Finding("orphan-file", Severity.WARNING, shown, detail)


def _is_orphan(context: StoreContext, digest: Digest, generation: int) -> bool:
    if _is_named(context, digest, generation):
        return False
    descriptor = context.files.try_lock(digest, generation)
    if descriptor is None:
        return False
    try:
        return not _is_named(context, digest, generation)
    finally:
        os.close(descriptor)


def _is_named(context: StoreContext, digest: Digest, generation: int) -> bool:
    with context.index.read() as txn:
        block = txn.block(digest)
        if block is not None and block.generation == generation and not block.is_bad:
            return True
        return txn.get("trash", digest + pack_u64(generation)) is not None


def check_mutable_files(
    context: StoreContext, is_orphan: Callable[[int, int], bool]
) -> Iterator[Finding]:
    """Yield mutable files that are gone or charged wrongly, and files that no row names."""
    with context.index.read() as txn:
        rows = [(int.from_bytes(key[1:], "big"), raw) for key, raw in txn.rows("meta", FILE_PREFIX)]
    for inode, raw in rows:
        yield from _mutable_file(context, inode, unpack_file(raw))
    for name in mutable_paths.walk(context.root):
        parsed = mutable_paths.parse_name(name)
        shown = f"files/{name}"
        if parsed is None:
            detail = "not a mutable file's name: remove it by hand if it is not yours"
            yield Finding("foreign-file", Severity.WARNING, shown, detail)
        elif is_orphan(*parsed):
            detail = "no row names it: the sweep removes it"
            yield Finding("orphan-file", Severity.WARNING, shown, detail)


def _mutable_file(context: StoreContext, inode: int, file: FileRow) -> Iterator[Finding]:
    found = mutable_paths.find(context.root, inode, file.generation)
    subject = f"inode {inode}"
    if found is None:
        with context.index.read() as txn:
            now = txn.mutable_file(inode)
        if now is not None and now.generation == file.generation:
            fix = partial(_forget_file, inode=inode, generation=file.generation)
            yield Finding(MISSING_FILE, Severity.DAMAGE, subject, "its file is not there", fix)
        return
    allocated = mutable_paths.allocated_bytes(found)
    if abs(allocated - file.stored) > CHARGE_SLACK:
        # Also of a file that somebody is writing: it is charged when it is next looked at.
        detail = f"charged {file.stored}, but {allocated} bytes are allocated"
        yield Finding("mutable-file-charge", Severity.WARNING, subject, detail)


def _forget_file(txn: WriteTransaction, inode: int, generation: int) -> None:
    file, row = txn.mutable_file(inode), txn.inode(inode)
    if file is None or file.generation != generation:
        return
    txn.delete_mutable_file(inode)
    txn.counters().resident -= file.stored
    if row is not None:
        txn.delete_inode(inode, row)


def check_leftovers(context: StoreContext) -> Iterator[Finding]:
    """Yield dead writers' staging files and leases, and buckets whose salt is not saved."""
    for path in sorted((context.root / "staging").glob("stage-*")):
        if _is_unlocked(path):
            yield Finding("dead-staging", Severity.WARNING, path.name, "its writer is gone")
    for path in sorted((context.root / "leases").iterdir()):
        if _is_unlocked(path):
            detail = "its process is gone; whoever is short of space takes its grant back"
            yield Finding("dead-lease", Severity.WARNING, path.name, detail)
    saved = {each.namespace_id: each for each in read_saved(context.root)}
    with context.index.read() as txn:
        for namespace_id, row in txn.namespaces():
            each = saved.get(namespace_id)
            if each is None or each.salt != row.salt:
                detail = "its salt is not saved beside the index: its blocks would not come back"
                subject = f"namespace {namespace_id}"
                yield Finding("salt-unsaved", Severity.DAMAGE, subject, detail)


def _is_unlocked(path: Path) -> bool:
    """Return whether nobody holds the file's flock; asked twice, because one is taken only just
    after its file is made."""
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(descriptor)
    return True
