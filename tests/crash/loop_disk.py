"""A file system of its own in a file, whose power can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 384 << 20
"""xfs takes no less than 300 MB."""
_TIMEOUT_S = 60.0


def missing() -> str:
    """Return why loop disks cannot be used here, or "" when they can."""
    if os.geteuid() != 0:
        return "loop mounts need root"
    absent = [name for name in ("mkfs.ext4", "mkfs.xfs", "xfs_io", "mount") if not _found(name)]
    if absent:
        return f"{absent} are not installed"
    return "" if Path("/dev/loop-control").exists() else "there are no loop devices"


def _found(name: str) -> bool:
    return shutil.which(name, path=f"{os.defpath}:/usr/sbin:/sbin") is not None


class LoopDisk:
    """One disk image and its mountpoint."""

    def __init__(self, folder: Path, kind: str, *, size: int = SIZE, options: str = "") -> None:
        self.mountpoint = folder / "mnt"
        self.image = folder / "disk"
        self._is_mounted = False
        self.mountpoint.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size)
        flags = ["-q", "-F"] if kind == "ext4" else ["-q", "-f"]
        _run(f"mkfs.{kind}", *flags, *options.split(), str(self.image))

    def mount(self) -> None:
        """Mount it; a journal left by a cut is replayed."""
        _run("mount", "-o", "loop", str(self.image), str(self.mountpoint))
        self._is_mounted = True

    def unmount(self) -> None:
        """Unmount it, if it is mounted."""
        if self._is_mounted:  # not os.path.ismount: an xfs without power answers it with EIO
            _run("umount", str(self.mountpoint))
            self._is_mounted = False

    def cut_power(self) -> None:
        """Stop every write from now on, as if the machine had lost power."""
        _run("xfs_io", "-x", "-c", "shutdown", str(self.mountpoint))


@contextmanager
def loop_disk(
    folder: Path, kind: str, *, size: int = SIZE, options: str = ""
) -> Iterator[LoopDisk]:
    """Yield a mounted disk; it is unmounted at the end, whatever happens."""
    disk = LoopDisk(folder, kind, size=size, options=options)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()
        disk.image.unlink()


def _run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        env={"PATH": f"{os.defpath}:/usr/sbin:/sbin"},
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stderr}"
