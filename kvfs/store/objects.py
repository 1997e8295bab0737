"""What adding and dropping a name does to rows: references, blocks, usage, trash.

Owns the refcount arithmetic; every function runs inside one write transaction and touches no file
except the label of a block whose name is about to go.

Holds: a block's `refs` is the number of inodes with its digest; at 0 its row goes and its file is
named in `trash`, to be unlinked after the commit, never inside it (a crash between an unlink and
its commit would roll the row back to life without its file).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from kvfs.errors import (
    AlreadyExists,
    IsADirectory,
    NamespaceNotFound,
    NotFound,
    PreconditionFailed,
)
from kvfs.index import tree
from kvfs.index.lmdb_index import ReadTransaction, WriteTransaction
from kvfs.index.schema import (
    BlockRow,
    InodeRow,
    check_component,
    derived_etag,
    pack_u64,
    split_key,
)
from kvfs.model import (
    NO_CONDITION,
    ROOT_INODE,
    ChildName,
    Digest,
    Kind,
    NamespaceId,
    ObjectPath,
    Pin,
    Place,
    WriteCondition,
)

TrashKey = tuple[Digest, int]
"""(digest, generation) of a block file that no row names any more; of a mutable file the packed
inode stands for the digest, and its 8 bytes tell the two apart."""


class Labels(Protocol):
    """What dropping names needs of block files (block_files.py, dropped_blocks.py)."""

    def clear_label(self, digest: Digest, generation: int) -> None:
        """Forget the name in the label of a block that lives on."""

    def drop_label(self, digest: Digest, generation: int) -> None:
        """Forget the name in the label of a block that goes."""


@dataclass(slots=True)
class Target:
    """A place resolved for writing, before anything is changed."""

    namespace_id: NamespaceId
    start: int
    """The directory to resolve from: the namespace's, or the parent itself."""
    encoded_names: list[bytes]
    parent: int | None
    """None while implied directories are still missing."""
    present: tuple[int, int] | None
    """(inode, kind) of what is there now."""


def find_namespace(txn: ReadTransaction, name: bytes) -> tuple[NamespaceId, int]:
    """Return (namespace id, inode) of a bucket. Raises: NamespaceNotFound."""
    found = tree.lookup(txn, ROOT_INODE, name + b"/")
    namespace_id = txn.namespace_of(found[0]) if found else None
    if found is None or namespace_id is None:
        shown = name.decode("utf-8", "replace")
        raise NamespaceNotFound(f"there is no bucket or first directory {shown!r}: create it first")
    return namespace_id, found[0]


def resolve_target(txn: ReadTransaction, place: Place) -> Target:
    """Resolve `place` for writing. Raises: NamespaceNotFound, NotFound, NotADirectory, InvalidName,
    IsADirectory (only the mount cannot put a file beside a directory of the same name)."""
    if isinstance(place, ObjectPath):
        encoded_names = split_key(place.key)
        namespace_id, start = find_namespace(txn, place.namespace)
        parent = tree.lookup_parent(txn, start, encoded_names)
        present = None if parent is None else tree.lookup(txn, parent, encoded_names[-1])
        return Target(namespace_id, start, encoded_names, parent, present)
    check_component(place.name)
    row = tree.directory_row(txn, place.parent)
    if tree.lookup(txn, place.parent, place.name + b"/") is not None:
        raise IsADirectory(f"{place} is a directory")
    present = tree.lookup(txn, place.parent, place.name)
    return Target(row.namespace_id, place.parent, [place.name], place.parent, present)


def find_inode(txn: ReadTransaction, place: Place) -> int | None:
    """Return the inode at `place`: of the literal key's file, or as the mount sees the name."""
    if isinstance(place, ChildName):
        found = tree.lookup_child(txn, place.parent, place.name)
        return None if found is None else found[0]
    bucket = tree.lookup(txn, ROOT_INODE, place.namespace + b"/")
    if bucket is None:
        return None
    encoded_names = split_key(place.key)
    parent = tree.lookup_parent(txn, bucket[0], encoded_names)
    if parent is None:
        return None
    file = tree.lookup(txn, parent, encoded_names[-1])
    return file[0] if file is not None and file[1] == tree.FILE else None


def check_condition(
    txn: ReadTransaction, target: Target, condition: WriteCondition, now_s: int
) -> None:
    """Raise AlreadyExists, NotFound or PreconditionFailed unless `condition` holds."""
    if condition == NO_CONDITION:
        return
    row = txn.inode(target.present[0]) if target.present else None
    if row is not None and is_expired(row, now_s):
        row = None
    shown = target.encoded_names[-1].decode("utf-8", "replace")
    if condition.must_be_absent and row is not None:
        raise AlreadyExists(f"{shown!r} exists already: choose another name or replace it")
    if row is None:
        facts = (condition.size, condition.mtime_s, condition.inode)
        if condition.etag or facts != (None, None, None):
            raise NotFound(f"{shown!r} does not exist, so it cannot be as demanded")
        return
    if condition.inode is not None and target.present and condition.inode != target.present[0]:
        raise PreconditionFailed(f"{shown!r} means another file by now")
    # A mutable file may be another by the time the row knows: nothing demanded of it is certain.
    etag = None if row.is_mutable else row.etag or derived_etag(row)
    if condition.etag not in ("", "*", etag) or condition.other_etag == etag:
        raise PreconditionFailed(f"the ETag of {shown!r} is not as demanded")
    size, mtime_s = (row.size, row.mtime_ns // 1_000_000_000) if etag else (None, None)
    if condition.size is not None and condition.size != size:
        raise PreconditionFailed(f"the size of {shown!r} is not as demanded")
    if condition.mtime_s is not None and condition.mtime_s != mtime_s:
        raise PreconditionFailed(f"{shown!r} was modified at another time than demanded")


def is_expired(row: InodeRow, now_s: int) -> bool:
    """Return whether the row's lifetime is over (the touch in memory may still save it).

    A hard pin outlasts any lifetime: nothing would ever remove such a row, so it stays served (I5).
    """
    return 0 < row.expires_at_s <= now_s and row.pin is not Pin.HARD


def add_name(
    txn: WriteTransaction,
    target: Target,
    row: InodeRow,
    files: Labels,
    now_ns: int,
    inode: int = 0,
) -> tuple[int, list[TrashKey]]:
    """Create an inode from `row` and let it take `target`'s name; return it and what became trash.

    inode: its number, where it was allocated before. The block's reference is counted by the caller
    (publish inserts the row; copy adds a reference).
    """
    parent = target.parent
    if parent is None:
        parent = tree.make_parents(
            txn, target.start, target.encoded_names, target.namespace_id, now_ns
        )
    encoded = target.encoded_names[-1]
    trash: list[TrashKey] = []
    inode = inode or txn.allocate_inode()
    row.parent, row.name, row.namespace_id = parent, encoded, target.namespace_id
    row.ctime_ns = now_ns
    txn.create_inode(inode, row)
    is_live = row.kind is Kind.FILE
    if target.present is None:
        tree.attach(txn, parent, encoded, inode, row.kind, is_live, now_ns)
    else:
        # The dirent is rewritten, not removed: an implied parent must not vanish in between.
        old_inode, old_kind = target.present
        was_live = old_kind == tree.FILE
        tree.replace(txn, parent, encoded, inode, row.kind, is_live - was_live, now_ns)
        trash = forget_name(txn, parent, encoded, old_inode, files, now_ns)
    count_name(txn, row, 1)
    return inode, trash


def drop_name(
    txn: WriteTransaction, parent: int, encoded: bytes, inode: int, files: Labels, now_ns: int
) -> list[TrashKey]:
    """Remove one name of a file or symlink, and the inode and block with the last one."""
    row = txn.inode(inode)
    assert row is not None, "a dirent names an inode that exists"
    tree.detach(txn, parent, encoded, row.kind is Kind.FILE, now_ns)
    return forget_name(txn, parent, encoded, inode, files, now_ns)


def forget_name(
    txn: WriteTransaction, parent: int, encoded: bytes, inode: int, files: Labels, now_ns: int
) -> list[TrashKey]:
    """Do all that removing a name means, except for the dirent, which the caller has changed."""
    row = txn.inode(inode)
    assert row is not None, "a dirent names an inode that exists"
    count_name(txn, row, -1)
    before = replace(row)
    tree.remove_link(txn, inode, row, parent, encoded)
    if row.nlink:
        row.ctime_ns = now_ns
        txn.update_inode(inode, before, row)
        if row.digest:
            forget_label(txn, row.digest, files)
        return []
    txn.delete_inode(inode, before)
    return _release_bytes(txn, inode, row, files)


def drop_inode(
    txn: WriteTransaction, inode: int, row: InodeRow, files: Labels, now_ns: int
) -> list[TrashKey]:
    """Remove every name of an inode (eviction, expiry, a block that failed its check).

    row: as it stands in this transaction.
    """
    if row.nlink == 1 and row.name:  # nearly every file; saves two look-ups of the row in hand
        tree.detach(txn, row.parent, row.name, row.kind is Kind.FILE, now_ns)
        count_name(txn, row, -1)
        txn.delete_inode(inode, row)
        return _release_bytes(txn, inode, row, files)
    trash: list[TrashKey] = []
    for parent, encoded in list(tree.names_of(txn, inode, row)):
        trash += drop_name(txn, parent, encoded, inode, files, now_ns)
    return trash


def add_reference(txn: WriteTransaction, digest: Digest, block: BlockRow) -> None:
    """Count one more inode for a block that the caller found usable."""
    block.refs += 1
    txn.put_block(digest, block)


def release_block(txn: WriteTransaction, digest: Digest, files: Labels) -> list[TrashKey]:
    """Count one inode less; with the last one the row goes and the file becomes trash."""
    block = txn.block(digest)
    assert block is not None, "an inode's digest has a row"
    block.refs -= 1
    assert block.refs >= 0, "refs counts the inodes of a digest"
    if block.refs:
        files.clear_label(digest, block.generation)
        txn.put_block(digest, block)
        return []
    files.drop_label(digest, block.generation)
    txn.delete_block(digest)
    txn.counters().block_count -= 1
    if block.is_bad:  # its file lies in quarantine and is charged no more
        return []
    put_trash(txn, digest, block)
    return [(digest, block.generation)]


def _release_bytes(
    txn: WriteTransaction, inode: int, row: InodeRow, files: Labels
) -> list[TrashKey]:
    """Give up what a removed inode held: a reference to a block, or a file of its own."""
    if row.digest:
        return release_block(txn, row.digest, files)
    return release_file(txn, inode) if row.is_mutable else []


def release_file(txn: WriteTransaction, inode: int) -> list[TrashKey]:
    """Name a mutable file for unlinking, which waits for the last who has it open."""
    file = txn.mutable_file(inode)
    if file is None:
        return []
    txn.delete_mutable_file(inode)
    key = Digest(pack_u64(inode))
    txn.put_count("trash", key + pack_u64(file.generation), file.stored)
    txn.counters().trash_count += 1
    return [(key, file.generation)]


def put_trash(txn: WriteTransaction, digest: Digest, block: BlockRow) -> None:
    """Name a file for unlinking; its bytes stay charged until it is gone (I4)."""
    txn.put_count("trash", digest + pack_u64(block.generation), block.stored)
    txn.counters().trash_count += 1


def forget_label(txn: WriteTransaction, digest: Digest, files: Labels) -> None:
    """Clear the label of a block one of whose names changes: a rebuild must not guess."""
    block = txn.block(digest)
    if block is not None:
        files.clear_label(digest, block.generation)


def count_name(txn: WriteTransaction, row: InodeRow, sign: int) -> None:
    """Add one file name to (or take it from) its namespace's usage."""
    if row.kind is not Kind.FILE:
        return
    namespace = txn.namespace(row.namespace_id)
    assert namespace is not None, "a file's namespace exists as long as the file"
    namespace.object_count += sign
    namespace.logical_bytes += sign * row.size
    txn.put_namespace(row.namespace_id, namespace)


def file_row(txn: ReadTransaction, inode: int) -> InodeRow:
    """Return a file's or symlink's row. Raises: NotFound, IsADirectory."""
    row = txn.inode(inode)
    if row is None:
        raise NotFound("the file is gone: look its name up again")
    if row.kind is Kind.DIRECTORY:
        raise IsADirectory("this is a directory")
    return row
