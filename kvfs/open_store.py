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
from kvfs.index.probe import is_index_readable, metas_fit
from kvfs.model import DEFAULT_SEAL_LIMIT, Durability
from kvfs.store.block_files import BlockFiles, os_error
from kvfs.store.context import StoreContext
from kvfs.store.epoch import Epoch
from kvfs.store.namespaces import Namespaces, sync_directory
from kvfs.store.rebuild import rebuild_index
from kvfs.store.store import Store
from kvfs.store.trust import Trust

log = logging.getLogger(__name__)

DEFAULT_CAPACITY_RATIO = 0.8
"""Of the file system's free space at `init`: the rest is for the index, labels and others."""
MIN_CAPACITY = 1 << 20
UNFINISHED = "unfinished-init"
"""There from the first to the last step of `init`, so that one cut off can be done again."""

REBUILDING = "rebuilding"
"""<store>/index/rebuilding: the index beside it is not complete yet."""

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
    seal_limit_bytes: int = DEFAULT_SEAL_LIMIT,
    clock: Clock | None = None,
    randomness: Randomness | None = None,
) -> StoreFormat:
    """Make a new store in an absent or empty directory; return what was written.

    capacity_bytes: None = 80 % of the free space. A crash in the middle leaves no store.
    Raises: StoreExists, UnsupportedFormat (network file system), Denied, Unavailable, NoSpace.
    """
    clock, randomness = clock or SystemClock(), randomness or SystemRandomness()
    root = Path(root)
    try:
        if (root / FILE_NAME).exists():
            raise StoreExists(
                f"{root} is a kvfs store already: use it, or choose another directory"
            )
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_unfinished(root)
        if any(root.iterdir()):
            raise StoreExists(f"{root} is not empty: choose an empty or new directory")
        check_file_system(root)
        free = shutil.disk_usage(root).free
        capacity = capacity_bytes or int(free * DEFAULT_CAPACITY_RATIO)
        capacity = max(capacity, MIN_CAPACITY)
        (root / UNFINISHED).touch(mode=0o600)
        BlockFiles.create_directories(root)
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreExists(f"{root} is a file or below one: choose a directory") from error
    except OSError as error:
        raise os_error(error, f"cannot make a store in {root}") from error
    store_id = randomness.token(16).hex()
    format_ = StoreFormat(store_id, capacity, durability, clock.now_ns(), seal_limit_bytes)
    context = _context(root, format_, clock, randomness, is_read_only=False)
    Namespaces(context).create_root()
    context.index.sync()
    _close(context)
    write_format(root, format_)
    Epoch(root).mark_clean()
    (root / UNFINISHED).unlink()
    return format_


def _remove_unfinished(root: Path) -> None:
    """Remove what an `init` that was cut off left; never anything it did not make."""
    if not (root / UNFINISHED).exists():
        return
    for name in BlockFiles.DIRECTORIES:
        shutil.rmtree(root / name, ignore_errors=True)
    for name in ("alive", "open.lock", FILE_NAME + ".new", UNFINISHED):
        (root / name).unlink(missing_ok=True)


def open_store(
    root: Path | str,
    *,
    clock: Clock | None = None,
    randomness: Randomness | None = None,
    read_only: bool = False,
    background: bool = False,
    distrust_index: bool = False,
) -> Store:
    """Open a store; any number of processes may, each once.

    background: start the maintenance thread (daemons: the mount, the gateway). Short-lived programs
    leave it off; closing does what is needed. distrust_index: treat the last stop as unclean, so a
    damaged index is found and rebuilt (only where nobody else has the store open).
    Raises: NotAStore, UnsupportedFormat, Denied, Unavailable, StoreDamaged.
    """
    root = Path(root)
    format_ = read_format(root)
    clock, randomness = clock or SystemClock(), randomness or SystemRandomness()
    try:
        check_file_system(root)
        epoch = Epoch(root)
    except OSError as error:
        raise _denied(root, error) from error
    try:
        with epoch.opening() as is_alone:
            if is_alone and (distrust_index or not (epoch.was_clean() and _is_whole(root))):
                # A reader recovers too: a writer that joins it later would not be alone, and would
                # take everything that the unclean stop left in doubt for good.
                epoch.mark_open()
                _recover(root, format_, clock, randomness)
            if not read_only:
                epoch.mark_open()
            context = _context(root, format_, clock, randomness, is_read_only=read_only)
            try:
                context.index.free_dead_readers()
                return Store(context, epoch, background=background, is_first=is_alone)
            except BaseException:
                _close(context)
                raise
    except OSError as error:
        epoch.release()
        raise _denied(root, error) from error
    except BaseException:
        epoch.release()
        raise


def is_index_good(root: Path) -> bool:
    """Return whether the index can be read; True unlooked at while anybody has the store open.

    Raises: NotAStore, UnsupportedFormat, Denied, Unavailable.
    """
    read_format(root)
    try:
        epoch = Epoch(root)
    except OSError as error:
        raise _denied(root, error) from error
    try:
        with epoch.opening() as is_alone:
            return not is_alone or (_is_whole(root) and is_index_readable(root / "index"))
    finally:
        epoch.release()


def _is_whole(root: Path) -> bool:
    """Return whether the index is there, full length, and not half rebuilt. Microseconds, so it is
    asked after a clean stop too: a shortened file is a SIGBUS in whoever reads it."""
    index = root / "index"
    data = index / "data.mdb"
    return data.exists() and not (index / REBUILDING).exists() and metas_fit(data)


def _recover(root: Path, format_: StoreFormat, clock: Clock, randomness: Randomness) -> None:
    """After an unclean stop: make the index readable, and doubt every block not known synced."""
    if not (_is_whole(root) and is_index_readable(root / "index")):
        _rebuild(root, format_, clock, randomness)
    context = _context(root, format_, clock, randomness, is_read_only=False)
    try:
        suspects = Trust(context).declare_suspects()
    finally:
        _close(context)
    log.info("unclean stop blocks_to_check=%d", suspects)


def _rebuild(root: Path, format_: StoreFormat, clock: Clock, randomness: Randomness) -> None:
    """Make a new index from snapshot and block files, and keep the bad one aside.

    The file REBUILDING stands meanwhile: half an index is readable, and whatever it does not name
    yet would be swept as orphans.
    """
    log.error("index damaged, rebuilding store=%s", root)
    index = root / "index"
    (index / REBUILDING).touch(mode=0o600)
    sync_directory(index)
    _move_aside(index, clock)
    context = _context(root, format_, clock, randomness, is_read_only=False)
    try:
        report = rebuild_index(context)
        context.index.sync()
    finally:
        _close(context)
    (index / REBUILDING).unlink()
    sync_directory(index)
    log.warning(
        "index rebuilt objects=%d lost=%d", report.recovered_objects, report.nameless_blocks
    )


def _move_aside(index: Path, clock: Clock) -> None:
    """Keep the damaged index for whoever wants to look; one is enough."""
    for old in index.glob("damaged-*"):
        shutil.rmtree(old, ignore_errors=True)
    aside = index / f"damaged-{clock.now_ns()}"
    aside.mkdir(mode=0o700, exist_ok=True)
    for name in ("data.mdb", "lock.mdb"):
        with suppress(FileNotFoundError):
            (index / name).rename(aside / name)


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
    except OSError as error:
        index.close()
        if isinstance(error, FileNotFoundError):
            raise StoreDamaged(f"{root} lacks its blocks directory: restore the store") from error
        raise
    return StoreContext(
        root, index, Committer(index), files, clock, randomness, format_.durability,
        format_.capacity_bytes, is_read_only, format_.seal_limit_bytes,
    )  # fmt: skip


def _close(context: StoreContext) -> None:
    context.index.close()
    context.files.close()


def check_file_system(path: Path) -> None:
    """Refuse a file system on which LMDB cannot work. Raises: UnsupportedFormat."""
    refuse_network_file_system(path, file_system_kind(path))


def file_system_kind(path: Path) -> str:
    """Return the type of the file system that `path` lies on, as in /proc/self/mountinfo."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    return kind_of_device(mounts, os.stat(path).st_dev)


def kind_of_device(mounts: str, device: int) -> str:
    """Return the file system type of `device` in a mountinfo text; "" where it is not listed."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2:3] == [wanted]:
            return rest.split()[0]
    return ""


def refuse_network_file_system(path: Path, kind: str) -> None:
    """Raise UnsupportedFormat if LMDB cannot work on a file system of `kind`."""
    if kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse."):
        raise UnsupportedFormat(
            f"{path} lies on a {kind} file system, where the index's locks and memory map do not "
            "work: put the store on a local disk (ext4, xfs) of each machine"
        )


def _denied(root: Path, error: OSError) -> Denied | Unavailable:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Denied(
            f"{root} may not be written by user {os.geteuid()}: run as the store's owner, "
            "or correct its mode"
        )
    return Unavailable(f"{root} cannot be opened: {error.strerror or error}")
