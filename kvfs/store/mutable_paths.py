"""Files under <store>/files: names, opening, unlinking, and stopping one that outgrows the store.

Owns the paths of mutable files; never the index. Unlike a block file one of these changes while it
is open, by any number of openers, in any process, and the kernel may write to it by itself.

Holds: whoever has one open holds a shared flock on it, so a file that can be locked exclusively is
nobody's and may be unlinked; names carry a random generation and are never used twice.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from kvfs.store.block_files import StagingFile, os_error

_GET_FLAGS = 0x80086601
_SET_FLAGS = 0x40086602
_IMMUTABLE = 0x10
"""FS_IOC_GETFLAGS, FS_IOC_SETFLAGS and FS_IMMUTABLE_FL of linux/fs.h."""


def path_of(root: Path, inode: int, generation: int) -> Path:
    """Return where the file is."""
    return root / "files" / f"{inode:016x}.{generation:016x}"


def parse_name(name: str) -> tuple[int, int] | None:
    """Return (inode, generation) of a name in files/, or None if it is not ours."""
    inode, dot, generation = name.partition(".")
    if not dot or len(inode) != 16 or len(generation) != 16:
        return None
    try:
        return int(inode, 16), int(generation, 16)
    except ValueError:
        return None


def walk(root: Path) -> Iterator[str]:
    """Yield every name in files/. Raises: Unavailable, Denied."""
    try:
        yield from sorted(os.listdir(root / "files"))
    except OSError as error:
        raise os_error(error, "cannot list mutable files") from error


def allocated_bytes(found: os.stat_result) -> int:
    """Return what a file takes on disk: its holes cost nothing."""
    return found.st_blocks * 512


def link(root: Path, staging: StagingFile, inode: int, generation: int) -> None:
    """Give a staging file its name. Raises: NoSpace, Unavailable, Denied."""
    path = path_of(root, inode, generation)
    try:
        if staging.path is not None:
            staging.path.rename(path)
            return
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Python passes AT_SYMLINK_FOLLOW only together with a dir_fd; without: EXDEV.
            source = f"/proc/self/fd/{staging.descriptor}"
            os.link(source, path.name, dst_dir_fd=directory, follow_symlinks=True)
        finally:
            os.close(directory)
    except OSError as error:
        raise os_error(error, "cannot name a mutable file") from error


def open_shared(root: Path, inode: int, generation: int, *, is_writer: bool) -> int | None:
    """Return a descriptor that keeps the file from being unlinked, or None if it is gone.

    Raises: Unavailable, Denied.
    """
    flags = os.O_CLOEXEC | (os.O_RDWR if is_writer else os.O_RDONLY)
    path = path_of(root, inode, generation)
    try:
        try:
            descriptor = os.open(path, flags)
        except PermissionError:  # a full store stopped its writers; who opens it tries anew
            if not (is_writer and let_go(path)):
                raise
            descriptor = os.open(path, flags)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # an exclusive one is held for microseconds
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise os_error(error, "cannot open a mutable file") from error


def look(descriptor: int) -> os.stat_result:
    """Return an open file's stat. Raises: Unavailable."""
    try:
        return os.fstat(descriptor)
    except OSError as error:
        raise os_error(error, "cannot look at a mutable file") from error


def share(descriptor: int) -> None:
    """Turn the maker's exclusive flock into an opener's. Raises: Unavailable."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        raise os_error(error, "cannot lock a mutable file") from error


def find(root: Path, inode: int, generation: int) -> os.stat_result | None:
    """Return the file's stat, None if it is not there. Raises: Unavailable, Denied."""
    try:
        return os.stat(path_of(root, inode, generation))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise os_error(error, "cannot look at a mutable file") from error


def set_mtime(root: Path, inode: int, generation: int, mtime_ns: int) -> None:
    """Set when the file was last written. Raises: Unavailable, Denied."""
    try:
        os.utime(path_of(root, inode, generation), ns=(mtime_ns, mtime_ns))
    except FileNotFoundError:
        return
    except OSError as error:
        raise os_error(error, "cannot set a mutable file's time") from error


def is_in_use(root: Path, inode: int, generation: int) -> bool:
    """Return whether somebody has the file open. Raises: Unavailable, Denied."""
    try:
        descriptor = _lock(path_of(root, inode, generation))
    except FileNotFoundError:
        return False
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def unlink_unused(root: Path, inode: int, generation: int) -> bool:
    """Unlink the file; return False if somebody has it open. Raises: Unavailable, Denied."""
    path = path_of(root, inode, generation)
    try:
        descriptor = _lock(path)
    except FileNotFoundError:
        return True
    if descriptor is None:
        return False
    try:
        hold(descriptor, is_held=False)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise os_error(error, "cannot remove a mutable file") from error
    finally:
        os.close(descriptor)
    return True


def hold(descriptor: int, *, is_held: bool) -> bool:
    """Let the kernel refuse every further write to the file (EPERM), or allow them again.

    It refuses also what goes through descriptors that are open already, and what the kernel writes
    for a passthrough file without asking us. Needs CAP_LINUX_IMMUTABLE and a file system with file
    attributes (ext4, xfs, btrfs); returns False where that is missing.
    """
    flags = array.array("i", [0])
    try:
        fcntl.ioctl(descriptor, _GET_FLAGS, flags, True)
        wanted = flags[0] | _IMMUTABLE if is_held else flags[0] & ~_IMMUTABLE
        if wanted != flags[0]:
            fcntl.ioctl(descriptor, _SET_FLAGS, array.array("i", [wanted]))
    except OSError:
        return False
    return True


def let_go(path: Path) -> bool:
    """Let the file be written again; return whether that could be said. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return hold(descriptor, is_held=False)
    finally:
        os.close(descriptor)


def sync_directory(root: Path) -> None:
    """fsync files/, so that a new name survives power loss. Raises: Unavailable, Denied."""
    try:
        descriptor = os.open(root / "files", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise os_error(error, "cannot sync the directory of mutable files") from error


def _lock(path: Path) -> int | None:
    """Return a descriptor with the file's exclusive flock; None while somebody has it open.

    Raises: FileNotFoundError, Unavailable, Denied.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise os_error(error, "cannot open a mutable file") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise os_error(error, "cannot lock a mutable file") from error
    return descriptor
