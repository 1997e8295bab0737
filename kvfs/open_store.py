"""Making and opening a store: the one place where its parts are wired together.

Owns the order of opening: is it a store of our format, can LMDB work where it lies, is anybody else
in it, was it closed properly; and only then the index. After an unclean stop the index is probed in
a child process (a bad one is a SIGBUS in whoever opens it) and rebuilt when it is bad.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

from kvfs.clock import Clock, Randomness, SystemClock, SystemRandomness
from kvfs.errors import Denied, StoreDamaged, StoreExists, Unavailable, UnsupportedFormat
from kvfs.format import FILE_NAME, StoreFormat, read_format, write_format
from kvfs.index.committer import Committer
from kvfs.index.lmdb_index import LmdbIndex
from kvfs.index.probe import is_index_readable
from kvfs.model import Durability
from kvfs.store.block_files import BlockFiles, os_error
from kvfs.store.context import StoreContext
from kvfs.store.epoch import Epoch
from kvfs.store.namespaces import Namespaces
from kvfs.store.rebuild import rebuild_index
from kvfs.store.store import Store
from kvfs.store.trust import Trust

log = logging.getLogger(__name__)

DEFAULT_CAPACITY_RATIO = 0.8
"""Of the file system's free space at `init`: the rest is for the index, labels and others."""
MIN_CAPACITY = 1 << 20

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "gpfs", "afs",
     "ocfs2", "gfs2", "beegfs", "virtiofs"}
)  # fmt: skip
"""LMDB's locks and memory map need one kernel to see every change."""


def init_store(
    root: Path | str,
    *,
    capacity_bytes: int | None = None,
    durability: Durability = Durability.CACHE,
    clock: Clock | None = None,
    randomness: Randomness | None = None,
) -> StoreFormat:
    """Make a new store in an absent or empty directory; return what was written.

    capacity_bytes: None = 80 % of the free space. A crash in the middle leaves no store.
    Raises: StoreExists, UnsupportedFormat (network file system), Denied, Unavailable, NoSpace.
    """
    clock, randomness = clock or SystemClock(), randomness or SystemRandomness()
    root = Path(root)
    if (root / FILE_NAME).exists():
        raise StoreExists(f"{root} is a kvfs store already: use it, or choose another directory")
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(root.iterdir()):
            raise StoreExists(f"{root} is not empty: choose an empty or new directory")
        check_file_system(root)
        free = shutil.disk_usage(root).free
        capacity = capacity_bytes or int(free * DEFAULT_CAPACITY_RATIO)
        capacity = max(capacity, MIN_CAPACITY)
        BlockFiles.create_directories(root)
    except FileExistsError as error:
        raise StoreExists(f"{root} is a file: choose a directory") from error
    except OSError as error:
        raise os_error(error, f"cannot make a store in {root}") from error
    format_ = StoreFormat(randomness.token(16).hex(), capacity, durability, clock.now_ns())
    context = _context(root, format_, clock, randomness, is_read_only=False)
    Namespaces(context).create_root()
    context.index.sync()
    context.index.close()
    context.files.close()
    write_format(root, format_)
    Epoch(root).mark_clean()
    return format_


def open_store(
    root: Path | str,
    *,
    clock: Clock | None = None,
    randomness: Randomness | None = None,
    read_only: bool = False,
    background: bool = False,
) -> Store:
    """Open a store; any number of processes may, each once.

    background: start the maintenance thread (daemons: the mount, the gateway). Short-lived programs
    leave it off; closing does what is needed.
    Raises: NotAStore, UnsupportedFormat, Denied, Unavailable, StoreDamaged.
    """
    root = Path(root)
    format_ = read_format(root)
    check_file_system(root)
    clock, randomness = clock or SystemClock(), randomness or SystemRandomness()
    try:
        epoch = Epoch(root)
    except OSError as error:
        raise _denied(root, error) from error
    try:
        with epoch.opening() as is_alone:
            is_unclean = is_alone and not epoch.was_clean()
            if is_unclean and not read_only:
                _make_index_readable(root, format_, clock, randomness)
            if is_alone and not read_only:
                epoch.mark_open()
            context = _context(root, format_, clock, randomness, is_read_only=read_only)
            context.index.free_dead_readers()
            if is_unclean and not read_only:
                suspects = Trust(context).declare_suspects()
                log.info("unclean stop blocks_to_check=%d", suspects)
            return Store(context, epoch, background=background, is_first=is_alone)
    except OSError as error:
        epoch.release()
        raise _denied(root, error) from error
    except BaseException:
        epoch.release()
        raise


def _make_index_readable(
    root: Path, format_: StoreFormat, clock: Clock, randomness: Randomness
) -> None:
    """Probe the index; rebuild it from snapshot and block files when it is bad."""
    if is_index_readable(root / "index"):
        return
    log.error("index damaged, rebuilding store=%s", root)
    aside = root / "index" / f"damaged-{clock.now_ns()}"
    aside.mkdir(mode=0o700)
    for name in ("data.mdb", "lock.mdb"):
        with suppress(FileNotFoundError):
            (root / "index" / name).rename(aside / name)
    context = _context(root, format_, clock, randomness, is_read_only=False)
    try:
        report = rebuild_index(context)
    finally:
        context.index.close()
        context.files.close()
    log.warning(
        "index rebuilt objects=%d lost=%d", report.recovered_objects, report.nameless_blocks
    )


def _context(
    root: Path,
    format_: StoreFormat,
    clock: Clock,
    randomness: Randomness,
    *,
    is_read_only: bool,
) -> StoreContext:
    index = LmdbIndex(root / "index", durability=format_.durability, read_only=is_read_only)
    try:
        files = BlockFiles(root, randomness)
    except FileNotFoundError as error:
        index.close()
        raise StoreDamaged(f"{root} lacks its blocks directory: restore the store") from error
    return StoreContext(
        root, index, Committer(index), files, clock, randomness, format_.durability,
        format_.capacity_bytes, is_read_only,
    )  # fmt: skip


def check_file_system(path: Path) -> None:
    """Refuse a file system on which LMDB cannot work. Raises: UnsupportedFormat."""
    kind = file_system_kind(path)
    if kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse."):
        raise UnsupportedFormat(
            f"{path} lies on a {kind} file system, where the index's locks and memory map do not "
            "work: put the store on a local disk (ext4, xfs) of each machine"
        )


def file_system_kind(path: Path) -> str:
    """Return the type of the file system that `path` lies on, as in /proc/self/mountinfo."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    kind = ""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == wanted:
            kind = rest.split()[0]
    return kind


def _denied(root: Path, error: OSError) -> Denied | Unavailable:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Denied(
            f"{root} may not be written by user {os.geteuid()}: run as the store's owner, "
            "or correct its mode"
        )
    return Unavailable(f"{root} cannot be opened: {error.strerror or error}")
