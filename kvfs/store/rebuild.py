"""Index snapshots, and a new index from block files when the old one is lost.

Owns the rule of what may come back: a block file whose label shows a name that is certainly
current. A label's name is cleared before that name is dropped or changed, so a label with a name
was current at the crash, except below a moved directory (directory_moves.py). Attributes come from
the snapshot where it agrees with the label. Everything else is forgotten: a cache may forget, and
guessing gave a wrong name in 8,870 of 20,000 random histories.

Holds: every recovered block is suspect, so its bytes are hashed before they are served (I1).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from kvfs.errors import KvfsError
from kvfs.index import tree
from kvfs.index.lmdb_index import LmdbIndex, ReadTransaction, WriteTransaction
from kvfs.index.probe import is_index_readable
from kvfs.index.schema import BlockRow, InodeRow, NamespaceRow, split_key
from kvfs.model import (
    ROOT_INODE,
    ROOT_NAMESPACE,
    ChildName,
    Digest,
    Durability,
    Kind,
    NamespaceId,
    ObjectPath,
    Pin,
    Place,
)
from kvfs.store.block_files import BlockLabel, os_error, sectors
from kvfs.store.context import StoreContext
from kvfs.store.directory_moves import forget_before, journal_length, read_directory_moves
from kvfs.store.dropped_blocks import read_dropped
from kvfs.store.namespaces import read_saved, sync_directory
from kvfs.store.objects import add_name, resolve_target

log = logging.getLogger(__name__)

BATCH = 200


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What came back."""

    recovered_objects: int
    nameless_blocks: int


@dataclass(frozen=True, slots=True)
class _Found:
    """One block file with a label that names it."""

    digest: Digest
    generation: int
    length: int
    label: BlockLabel


def write_snapshot(context: StoreContext) -> Path:
    """Keep a compacted, synced copy of the index; older ones go. Returns its directory.

    Raises: NoSpace, Unavailable.
    """
    index = context.root / "index"
    moves_length = journal_length(context.root)
    final = index / f"snapshot-{context.clock.now_ns():020d}"
    fresh = index / f"new-{final.name}"
    try:
        fresh.mkdir(mode=0o700)
        descriptor = os.open(fresh / "data.mdb", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            context.index.copy_to(descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fresh.rename(final)
        sync_directory(index)
        forget_before(context.root, moves_length)
    except OSError as error:
        raise os_error(error, "cannot write an index snapshot") from error
    for old in [*index.glob("snapshot-*"), *index.glob("new-snapshot-*")]:
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    return final


def rebuild_index(context: StoreContext) -> RebuildReport:
    """Fill an empty index from the saved namespaces, the newest good snapshot and the labels."""
    moves = read_directory_moves(context.root)
    with _open_snapshot(context.root) as snapshot:
        _restore_namespaces(context, snapshot)
        files = _label_files(context, moves)
        recovered = nameless = 0
        while batch := list(islice(files, BATCH)):
            named = [found for found in batch if found.label.path]
            nameless += len(batch) - len(named)
            insert = partial(_insert, context=context, files=named, snapshot=snapshot)
            done = context.commit(insert)
            recovered += done
            nameless += len(named) - done
    return RebuildReport(recovered, nameless)


@contextmanager
def _open_snapshot(root: Path) -> Iterator[ReadTransaction | None]:
    for directory in sorted((root / "index").glob("snapshot-*"), reverse=True):
        if not is_index_readable(directory):
            continue
        index = LmdbIndex(directory, durability=Durability.CACHE, read_only=True)
        try:
            with index.read() as txn:
                yield txn
        finally:
            index.close()
        return
    yield None


def _restore_namespaces(context: StoreContext, snapshot: ReadTransaction | None) -> None:
    saved = list(read_saved(context.root))
    now_ns = context.clock.now_ns()

    def work(txn: WriteTransaction) -> None:
        root = InodeRow(Kind.DIRECTORY, ROOT_NAMESPACE, mode=0o755, parent=ROOT_INODE)
        root.mtime_ns = root.ctime_ns = now_ns
        txn.create_inode(ROOT_INODE, root)
        counters = txn.counters()
        counters.next_inode = max(counters.next_inode, _next_inode(snapshot))
        for each in saved:
            old = snapshot.namespace(each.namespace_id) if snapshot is not None else None
            row = old or NamespaceRow(ROOT_INODE, each.created_ns)
            row.salt, row.object_count, row.logical_bytes = each.salt, 0, 0
            row.inode = ROOT_INODE
            if each.namespace_id != ROOT_NAMESPACE:
                name = each.name or b"recovered-%d" % each.namespace_id
                directory = InodeRow(Kind.DIRECTORY, each.namespace_id, mode=0o755)
                row.inode = tree.make_directory(txn, ROOT_INODE, name + b"/", directory, now_ns)
            txn.put_namespace(each.namespace_id, row)
            counters.next_namespace = max(counters.next_namespace, each.namespace_id + 1)

    context.commit(work)


def _next_inode(snapshot: ReadTransaction | None) -> int:
    return snapshot.counters().next_inode if snapshot is not None else 2


def _label_files(context: StoreContext, moves: list[tuple[NamespaceId, bytes]]) -> Iterator[_Found]:
    """Yield every block file; one whose name is not certain comes without a name."""
    dropped = read_dropped(context.root)
    for digest, generation in context.files.walk():
        label = context.files.read_label(digest, generation)
        if label is not None and (digest, generation) in dropped:
            label = BlockLabel(label.namespace_id, label.published_ns, label.mtime_ns)
        if label is None or context.files.is_pending(digest, generation):
            label = BlockLabel(ROOT_NAMESPACE, 0, 0)
        length = context.files.length(digest, generation)
        if length is None:
            continue
        if any(
            label.namespace_id == namespace_id and label.path.startswith(path)
            for namespace_id, path in moves
        ):
            label = BlockLabel(label.namespace_id, label.published_ns, label.mtime_ns)
        yield _Found(digest, generation, length, label)


def _insert(
    txn: WriteTransaction,
    context: StoreContext,
    files: list[_Found],
    snapshot: ReadTransaction | None,
) -> int:
    inserted = 0
    for found in files:
        namespace = txn.namespace(found.label.namespace_id)
        if namespace is None or txn.block(found.digest) is not None:
            continue  # a bucket deleted since, or a second file of one digest: an orphan
        if _is_denied(found, snapshot):
            continue
        place = _place_of(txn, found.label)
        if not _is_newest(txn, context, place, found.label):
            continue
        counters = txn.counters()
        counters.sequence += 1
        counters.block_count += 1
        counters.resident += sectors(found.length)
        txn.put_block(
            found.digest,
            BlockRow(
                found.generation, found.label.size, sectors(found.length), 1,
                counters.sequence, found.label.namespace_id, found.label.codec,
            ),
        )  # fmt: skip
        row = _row_of(found, snapshot)
        add_name(txn, resolve_target(txn, place), row, context.files, row.mtime_ns)
        inserted += 1
    return inserted


def _row_of(found: _Found, snapshot: ReadTransaction | None) -> InodeRow:
    """Return the row of the label's name, with the snapshot's attributes if it agrees."""
    label = found.label
    row = InodeRow(
        Kind.FILE, label.namespace_id, label.mode, label.uid, label.gid, label.size,
        label.mtime_ns, label.mtime_ns, label.published_ns // 1_000_000_000, label.expires_at_s,
        label.ttl_s, label.ttl_class, label.priority, Pin(label.pin), digest=found.digest,
        etag=label.etag, is_sliding=label.is_sliding,
    )  # fmt: skip
    old = _snapshot_row(found, snapshot)
    if old is not None:
        row.attributes, row.accessed_s = old.attributes, max(row.accessed_s, old.accessed_s)
        row.expires_at_s = max(row.expires_at_s, old.expires_at_s) if row.expires_at_s else 0
    return row


def _snapshot_row(found: _Found, snapshot: ReadTransaction | None) -> InodeRow | None:
    """Return the snapshot's row of the label's name, if it means the very same file."""
    if snapshot is None:
        return None
    block = snapshot.block(found.digest)
    if block is None or block.generation != found.generation:
        return None
    return _row_of_name(found, snapshot)


def _is_denied(found: _Found, snapshot: ReadTransaction | None) -> bool:
    """Return whether the snapshot knows the block, but not by the label's name.

    Directories moved before the snapshot are in no journal any more; the labels below them still
    show the old path. (A name given after the snapshot is forgotten with them.)
    """
    if snapshot is None or snapshot.block(found.digest) is None:
        return False
    return _row_of_name(found, snapshot) is None


def _row_of_name(found: _Found, snapshot: ReadTransaction) -> InodeRow | None:
    """Return the snapshot's row of the label's name, if it has the block's digest."""
    namespace = snapshot.namespace(found.label.namespace_id)
    if namespace is None:
        return None
    try:
        encoded_names = split_key(found.label.path)
    except KvfsError:
        return None
    parent = tree.lookup_parent(snapshot, namespace.inode, encoded_names)
    entry = None if parent is None else tree.lookup(snapshot, parent, encoded_names[-1])
    row = None if entry is None else snapshot.inode(entry[0])
    return row if row is not None and row.digest == found.digest else None


def _place_of(txn: ReadTransaction, label: BlockLabel) -> Place:
    if label.namespace_id == ROOT_NAMESPACE:
        return ChildName(ROOT_INODE, label.path)
    namespace = txn.namespace(label.namespace_id)
    assert namespace is not None, "checked by the caller in this transaction"
    directory = tree.directory_row(txn, namespace.inode)
    return ObjectPath(directory.name[:-1], label.path)


def _is_newest(
    txn: ReadTransaction, context: StoreContext, place: Place, label: BlockLabel
) -> bool:
    """Return whether no file published later already took the name."""
    try:
        present = resolve_target(txn, place).present
    except KvfsError:
        return False  # a label that names nothing possible
    row = txn.inode(present[0]) if present is not None else None
    block = txn.block(row.digest) if row is not None else None
    if row is None or block is None:
        return True
    other = context.files.read_label(row.digest, block.generation)
    return other is None or other.published_ns < label.published_ns
