"""`.kvfs` in the mount's root: blocks by digest, status, metrics. Read-only, for the owner alone.

Owns that tree: its nodeids (bit 62 set), names and generated texts. Refuses to know the rest of the
mount. The tree is not listed in the root, so that no program walks into it by chance.
    .kvfs/blocks/<first 2 hex digits>/<digest>     the bytes, passed through as any sealed file's
    .kvfs/status.json                              the store's usage
    .kvfs/metrics                                  the same and the mount's tables, for Prometheus
Must hold: nothing here can be changed (EROFS); a digest that the kernel forgot leaves the table.
"""

from __future__ import annotations

import errno
import itertools
import json
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from kvfs.filesystem.mount_state import OWNER, OWNER_GROUP, blocks_of, os_error
from kvfs.filesystem.records import Attributes, DirectoryRow, EntryReply
from kvfs.model import Digest, Kind
from kvfs.store.store import Store

NAME = b".kvfs"
VIEW = 1 << 62
TOP, BLOCKS, STATUS, METRICS = (VIEW | number for number in (1, 2, 3, 4))
SHELF = VIEW | 1 << 16
"""SHELF | ab is the directory of the digests that begin with byte ab."""
BLOCK = VIEW | 1 << 40
TEXTS = {b"status.json": STATUS, b"metrics": METRICS}
DIGEST_BYTES = 32
LISTING_PAGE = 1000
DOTS = 2


def is_view(nodeid: int) -> bool:
    """Whether `nodeid` is one of this tree (bit 63 would make it a private one of the mount)."""
    return nodeid >> 62 == 1


@dataclass(slots=True)
class KnownBlock:
    """A block that the kernel knows by a nodeid."""

    digest: Digest
    size: int
    lookups: int = 0


class ContentView:
    """The tree of one mount."""

    def __init__(self, store: Store, gauges: Callable[[], dict[str, int]]) -> None:
        """gauges: the mount's own numbers, by metric name."""
        self._store = store
        self._gauges = gauges
        self._blocks: dict[int, KnownBlock] = {}
        self._by_digest: dict[Digest, int] = {}
        self._serial = itertools.count(1)

    def lookup(self, parent: int, name: bytes) -> EntryReply:
        """Resolve one component; the root asks for NAME. Raises: OSError ENOENT."""
        if name == NAME and not is_view(parent):
            return self._reply(TOP)
        if parent == TOP and name == b"blocks":
            return self._reply(BLOCKS)
        if parent == TOP and name in TEXTS:
            return self._reply(TEXTS[name])
        try:
            raw = bytes.fromhex(name.decode("ascii"))
        except (UnicodeDecodeError, ValueError):
            raise os_error(errno.ENOENT) from None
        if parent == BLOCKS and len(raw) == 1:
            return self._reply(SHELF | raw[0])
        if is_shelf(parent) and len(raw) == DIGEST_BYTES and raw[0] == parent & 0xFF:
            nodeid = self._block_node(Digest(raw))
            self.remember(nodeid)
            return self._reply(nodeid)
        raise os_error(errno.ENOENT)

    def listed(self, row: DirectoryRow) -> EntryReply | None:
        """Return a row of a listing with attributes; `remember` counts it once it is given."""
        if row.inode != BLOCK:
            return self._reply(row.inode)
        try:
            return self._reply(self._block_node(Digest(bytes.fromhex(row.name.decode()))))
        except OSError:
            return None  # evicted since it was listed

    def remember(self, nodeid: int) -> None:
        """The kernel was told of `nodeid`; only blocks are counted, the rest is always there."""
        known = self._blocks.get(nodeid)
        if known is not None:
            known.lookups += 1

    def forget(self, nodeid: int, count: int) -> None:
        """The kernel drops `count` references to a block's nodeid."""
        known = self._blocks.get(nodeid)
        if known is not None:
            known.lookups -= count
            if known.lookups <= 0:
                del self._blocks[nodeid]
                del self._by_digest[known.digest]

    def attributes(self, nodeid: int) -> Attributes:
        """Return the stat(2) answer. Raises: OSError ESTALE."""
        if nodeid in (TOP, BLOCKS) or is_shelf(nodeid):
            return _looks(nodeid, stat.S_IFDIR | 0o500, 4096)
        if nodeid in (STATUS, METRICS):
            return _looks(nodeid, stat.S_IFREG | 0o400, 0)  # as in /proc: made when it is opened
        known = self._known(nodeid)
        looks = _looks(nodeid, stat.S_IFREG | 0o400, known.size)
        return replace(looks, blocks=blocks_of(self._store.stored_bytes(known.digest)))

    def digest(self, nodeid: int) -> Digest | None:
        """Return the digest of a block's nodeid, None for anything else."""
        known = self._blocks.get(nodeid)
        return None if known is None else known.digest

    def text(self, nodeid: int) -> bytes:
        """Return the generated text behind `nodeid`. Raises: OSError EISDIR."""
        usage = asdict(self._store.usage())
        if nodeid == STATUS:
            return json.dumps({**usage, **self._gauges()}, indent=1).encode() + b"\n"
        if nodeid == METRICS:
            numbers = {f"kvfs_store_{name}": value for name, value in usage.items()}
            lines = [f"{name} {value}\n" for name, value in {**numbers, **self._gauges()}.items()]
            return "".join(lines).encode()
        raise os_error(errno.EISDIR)

    def rows(self, nodeid: int, offset: int) -> Iterator[DirectoryRow]:
        """Yield a directory's rows from `offset` on. Raises: OSError ENOTDIR."""
        dots = [(b".", nodeid, Kind.DIRECTORY), (b"..", TOP, Kind.DIRECTORY)]
        numbered = enumerate(itertools.chain(dots, self._names(nodeid)), start=1)
        for number, (name, child, kind) in numbered:
            if number > offset:
                yield DirectoryRow(name, child, kind, number)

    def _names(self, nodeid: int) -> Iterator[tuple[bytes, int, Kind]]:
        if nodeid == TOP:
            yield b"blocks", BLOCKS, Kind.DIRECTORY
            for name, child in TEXTS.items():
                yield name, child, Kind.FILE
        elif nodeid == BLOCKS:
            for first in range(256):
                yield b"%02x" % first, SHELF | first, Kind.DIRECTORY
        elif is_shelf(nodeid):
            yield from self._digests(bytes([nodeid & 0xFF]))
        else:
            raise os_error(errno.ENOTDIR)

    def _digests(self, first: bytes) -> Iterator[tuple[bytes, int, Kind]]:
        after = b""
        while True:
            page = self._store.list_blocks(first, after=after, limit=LISTING_PAGE)
            for digest, _ in page:
                yield digest.hex().encode(), BLOCK, Kind.FILE
            if len(page) < LISTING_PAGE:
                return
            after = page[-1][0]

    def _block_node(self, digest: Digest) -> int:
        nodeid = self._by_digest.get(digest)
        if nodeid is None:
            found = self._store.list_blocks(digest, limit=1)
            if not found:
                raise os_error(errno.ENOENT)
            nodeid = BLOCK | next(self._serial)
            self._blocks[nodeid] = KnownBlock(digest, found[0][1])
            self._by_digest[digest] = nodeid
        return nodeid

    def _known(self, nodeid: int) -> KnownBlock:
        known = self._blocks.get(nodeid)
        if known is None:
            raise os_error(errno.ESTALE)
        return known

    def _reply(self, nodeid: int) -> EntryReply:
        return EntryReply(nodeid, self.attributes(nodeid))


def is_shelf(nodeid: int) -> bool:
    return nodeid & ~0xFF == SHELF


def _looks(nodeid: int, mode: int, size: int) -> Attributes:
    return Attributes(nodeid, mode, 1, OWNER, OWNER_GROUP, size, blocks_of(size), 0, 0, 0)
