"""Compressing cold blocks, or all of a bucket, and making hot ones raw, behind the readers' backs.

Owns the swap of one block file for another with the same payload. The new file is written like
any other: space reserved first, linked under a new generation, then one transaction lets the row
name it and puts the old file into the trash; readers that hold the old one keep it (I3). The
encoded file is decoded and hashed before the swap, so an encoder's mistake can cost time, never
bytes (I1). Nothing is mapped: a page that the disk cannot give would be a SIGBUS, not an error.
"""

from __future__ import annotations

import enum
import logging
import os
from dataclasses import dataclass, replace
from functools import partial

from kvfs.codec.frame import choose_method, decode_frames, encode_block, parse_table
from kvfs.codec.planes import Method
from kvfs.errors import Corrupt, KvfsError, NoSpace
from kvfs.index.lmdb_index import WriteTransaction
from kvfs.index.schema import BlockRow
from kvfs.model import Codec, Digest, Durability, Entry, NamespaceId
from kvfs.store.block_files import os_error, read_at, sectors
from kvfs.store.context import StoreContext
from kvfs.store.objects import TrashKey, put_trash
from kvfs.store.space import Space
from kvfs.store.staging import Staging
from kvfs.store.trash import Trash
from kvfs.store.trust import Trust

log = logging.getLogger(__name__)

MIN_SIZE = 64 * 1024
"""Below this a block saves at most a few sectors."""
MAX_SIZE = 256 << 20
"""The payload is held in memory while it is encoded (I8); larger blocks stay raw."""
MIN_SAVING_RATIO = 0.10


COMPRESS_ATTRIBUTE = "user.kvfs.compress"
"""On a namespace: b"inline" compresses what is published there before its writer is answered."""
_COMPRESS_NAME = COMPRESS_ATTRIBUTE.encode()


class Outcome(enum.Enum):
    """What became of one block."""

    RECODED = "recoded"
    KEPT = "kept"
    """It would save too little, is too small, or already is as wanted."""
    GONE = "gone"
    """Deleted, replaced or condemned meanwhile."""


@dataclass(frozen=True, slots=True)
class Recoding:
    """One block's result."""

    outcome: Outcome
    saved_bytes: int = 0


class Recoder:
    """Swaps block files. Thread-safe; safe beside readers, writers and other recoders."""

    def __init__(self, context: StoreContext, space: Space, trash: Trash, trust: Trust) -> None:
        self._context = context
        self._space = space
        self._trash = trash
        self._trust = trust

    def compress(self, digest: Digest) -> Recoding:
        """Compress one raw block if that saves 10 %.

        Raises: NoSpace (the copy does not fit beside the original), Unavailable.
        """
        return self._recode(digest, Codec.FRAMED)

    def promote(self, digest: Digest) -> Recoding:
        """Make one compressed block raw again. Raises: NoSpace, Unavailable."""
        return self._recode(digest, Codec.RAW)

    def compress_published(self, entry: Entry) -> None:
        """Compress what was just published, where its namespace wants that inline.

        It is published already: what goes wrong here leaves it raw, for kvfs-gc to compress.
        """
        if entry.size < MIN_SIZE or not entry.digest:
            return
        with self._context.index.read() as txn:
            if not txn.namespace_mentions(entry.namespace_id, _COMPRESS_NAME):
                return
            namespace = txn.namespace(entry.namespace_id)
        if namespace is None or namespace.attributes.get(COMPRESS_ATTRIBUTE) != b"inline":
            return
        try:
            self.compress(entry.digest)
        except NoSpace:
            return  # no room for the copy beside the original
        except KvfsError as error:
            log.warning("inline compression digest=%s error=%s", entry.digest.hex(), error)

    def _recode(self, digest: Digest, wanted: Codec) -> Recoding:
        with self._context.index.read() as txn:
            block = txn.block(digest)
            namespace = txn.namespace(block.namespace_id) if block is not None else None
        if block is None or namespace is None or block.is_bad:
            return Recoding(Outcome.GONE)
        if block.codec is wanted or block.size < MIN_SIZE:
            return Recoding(Outcome.KEPT)
        if wanted is Codec.FRAMED and (block.is_incompressible or block.size > MAX_SIZE):
            return Recoding(Outcome.KEPT)
        source = self._context.files.open(digest, block.generation)
        if source is None:
            return Recoding(Outcome.GONE)
        try:
            with Staging(
                self._context.files, self._space, NamespaceId(block.namespace_id), None
            ) as staging:
                if not self._fill(staging, source, block, wanted):
                    self._context.commit(partial(_mark_incompressible, digest=digest, old=block))
                    return Recoding(Outcome.KEPT)
                candidate = replace(block, codec=wanted)
                if not self._trust.matches(digest, candidate, namespace.salt, staging.fd):
                    return self._distrust_source(digest, block, namespace.salt, source)
                return self._swap(staging, digest, block, wanted)
        finally:
            os.close(source)

    def _fill(self, staging: Staging, source: int, block: BlockRow, wanted: Codec) -> bool:
        """Write the recoded file; return whether it is worth having."""
        if wanted is Codec.RAW:
            staging.ensure(block.size)
            try:
                table = parse_table(partial(read_at, source), os.fstat(source).st_size)
                for frame in decode_frames(table, partial(read_at, source)):
                    staging.write(frame)
            except Corrupt:
                return True  # what is missing fails the digest, and the source is checked then
            return True
        try:
            payload = read_at(source, 0, block.size)
        except OSError as error:
            raise os_error(error, "cannot read a block file") from error
        method = choose_method(payload)
        if method is Method.RAW:
            return False
        staging.ensure(block.size)
        for piece in encode_block(payload, method):
            staging.pwrite(memoryview(piece.data), piece.offset)
        return sectors(staging.size) <= block.stored * (1 - MIN_SAVING_RATIO)

    def _distrust_source(
        self, digest: Digest, block: BlockRow, salt: bytes, source: int
    ) -> Recoding:
        """The copy is wrong: condemn the original if it is the cause, else leave it alone."""
        if self._trust.matches(digest, block, salt, source):
            raise Corrupt("a block did not survive recoding; it was left as it is", digest)
        self._trust.condemn(digest, block)
        return Recoding(Outcome.GONE)

    def _swap(self, staging: Staging, digest: Digest, old: BlockRow, codec: Codec) -> Recoding:
        files = self._context.files
        generation = self._context.generation()
        charged = sectors(staging.size)
        label = files.read_label(digest, old.generation)
        if label is not None:
            files.set_label(staging.fd, replace(label, codec=codec))
        if self._context.durability is Durability.DURABLE:
            try:
                os.fdatasync(staging.fd)
            except OSError as error:
                raise os_error(error, "cannot sync a block file") from error
        file, reserved = staging.take()
        is_used = False
        linked = False
        try:
            files.mark_pending(file.descriptor)  # killed before the swap: no name for a rebuild
            files.link(file, digest, generation)
            linked = True
            if self._context.durability is Durability.DURABLE:
                files.sync_directory(digest)
            swap = partial(
                self._swap_rows, digest=digest, old=old, generation=generation, codec=codec,
                charged=charged,
            )  # fmt: skip
            trash = self._context.commit(swap)
            is_used = trash is not None
            if is_used:
                files.mark_committed(file.descriptor)
        finally:
            if linked:
                if not is_used and not self._is_current(digest, generation):
                    files.unlink(digest, generation)
                os.close(file.descriptor)
            else:
                files.discard(file)
            self._space.release(reserved - (charged if is_used else 0))
        if trash is None:
            return Recoding(Outcome.GONE)
        self._relabel_if_renamed(digest, old, generation)
        self._trash.add(trash)
        return Recoding(Outcome.RECODED, old.stored - charged)

    def _swap_rows(
        self,
        txn: WriteTransaction,
        digest: Digest,
        old: BlockRow,
        generation: int,
        codec: Codec,
        charged: int,
    ) -> list[TrashKey] | None:
        block = txn.block(digest)
        if block is None or block.is_bad or block.generation != old.generation:
            return None
        # A name dropped or changed since the label was copied must not come back in a rebuild.
        label = self._context.files.read_label(digest, old.generation)
        if label is None or not label.path:
            self._context.files.clear_label(digest, generation)
        counters = txn.counters()
        counters.sequence += 1
        put_trash(txn, digest, block)
        block.generation, block.codec, block.stored = generation, codec, charged
        block.sequence = 0 if self._context.durability is Durability.DURABLE else counters.sequence
        txn.put_block(digest, block)
        self._space.charge(txn, charged)
        return [(digest, old.generation)]

    def _relabel_if_renamed(self, digest: Digest, old: BlockRow, generation: int) -> None:
        """A rename may have rewritten the old file's label between our copy and the swap."""
        before = self._context.files.read_label(digest, old.generation)
        now = self._context.files.read_label(digest, generation)
        if before is not None and now is not None and before.path != now.path:
            self._context.files.clear_label(digest, generation)

    def _is_current(self, digest: Digest, generation: int) -> bool:
        try:
            with self._context.index.read() as txn:
                block = txn.block(digest)
        except KvfsError:
            return True  # cannot tell: an orphan is swept later, a lost file never comes back
        return block is not None and block.generation == generation


def _mark_incompressible(txn: WriteTransaction, digest: Digest, old: BlockRow) -> None:
    block = txn.block(digest)
    if block is not None and block.generation == old.generation:
        block.is_incompressible = True
        txn.put_block(digest, block)
