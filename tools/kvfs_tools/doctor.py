"""`kvfs doctor`: what this machine offers to a store, and what to change.

Owns the list of checks; each is one function from a path to one Finding. Changes nothing: files it
makes to try the disk are gone when it ends.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import mmap
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from kvfs.config import process_environment, store_from_environment
from kvfs.open_store import NETWORK_FILE_SYSTEMS, file_system_kind
from kvfs_tools.command_store import json_option
from kvfs_tools.exit_codes import ExitCode
from kvfs_tools.sizes import render_size

MIN_DESCRIPTORS = 4096
"""Each open block is one descriptor; 64 parallel engine threads and a gateway stay far below."""
PASSTHROUGH_KERNEL = (6, 9)
"""The first kernel where FUSE hands reads of a backing file to the disk filesystem itself."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome. `state` is ok, warning or failure; `code` is stable."""

    code: str
    state: str
    what: str
    action: str = ""


Check = Callable[[Path], Finding]


def check_fuse(path: Path) -> Finding:
    """A mount needs the device and may open it."""
    device = "/dev/fuse"
    if not os.path.exists(device):
        return Finding(
            "FUSE", "warning", f"{device} is missing", "modprobe fuse; without it, S3 only."
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return Finding("FUSE", "warning", f"{device} may not be opened", f"chmod 666 {device}")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return Finding("FUSE", "warning", "fusermount3 is missing", "apt-get install fuse3")
    return Finding("FUSE", "ok", f"{device} can be opened")


def check_kernel(path: Path) -> Finding:
    """Passthrough makes a mounted read as fast as the disk's filesystem."""
    release = os.uname().release
    numbers = release.split("-")[0].split(".")
    version = (int(numbers[0]), int(numbers[1]))
    if version < PASSTHROUGH_KERNEL:
        return Finding(
            "KERNEL", "warning", f"Linux {release} lacks FUSE passthrough", "Linux 6.9 or newer."
        )
    if os.geteuid() != 0:
        return Finding(
            "KERNEL", "warning", "passthrough needs CAP_SYS_ADMIN", "Mount as root for full speed."
        )
    return Finding("KERNEL", "ok", f"Linux {release} has FUSE passthrough")


def check_packages(path: Path) -> Finding:
    """The doors are optional parts of the installation."""
    parts = {"pyfuse3": "fuse", "awscrt": "gateway", "botocore": "gateway"}
    missing = [name for name in parts if importlib.util.find_spec(name) is None]
    if missing:
        extras = ",".join(sorted({parts[name] for name in missing}))
        return Finding(
            "PACKAGES",
            "warning",
            f"not installed: {', '.join(missing)}",
            f"pip install 'kvfs[{extras}]'",
        )
    return Finding("PACKAGES", "ok", "mount and gateway are installed")


def check_descriptors(path: Path) -> Finding:
    """Every open object holds one descriptor in the daemon."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < MIN_DESCRIPTORS:
        return Finding(
            "DESCRIPTORS",
            "warning",
            f"at most {hard} open files",
            f"ulimit -Hn {MIN_DESCRIPTORS}, or LimitNOFILE= in the unit.",
        )
    return Finding("DESCRIPTORS", "ok", f"{soft} open files, at most {hard}")


def check_filesystem(path: Path) -> Finding:
    """The index is a shared memory map: it belongs on a local disk."""
    kind = file_system_kind(path)
    if kind in NETWORK_FILE_SYSTEMS:
        return Finding(
            "FILESYSTEM", "failure", f"{path} lies on {kind}", "Put the store on a local disk."
        )
    if kind in ("tmpfs", "ramfs"):
        return Finding("FILESYSTEM", "warning", f"{path} lies on {kind}", "A reboot empties it.")
    return Finding("FILESYSTEM", "ok", f"{path} lies on {kind}")


def check_xattrs(path: Path) -> Finding:
    """A rebuild of the index reads names and sizes from the block files' attributes."""
    with _probe_file(path) as probe:
        try:
            os.setxattr(probe, "user.kvfs.probe", b"1")
        except OSError as error:
            return Finding(
                "XATTRS", "failure", f"no user.* attributes: {error.strerror}", "Use ext4 or xfs."
            )
    return Finding("XATTRS", "ok", "user.* attributes work")


def check_direct_io(path: Path) -> Finding:
    """Engines open with O_DIRECT; the mount passes that on to this filesystem."""
    with _probe_file(path) as probe:
        try:
            fd = os.open(probe, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return Finding(
                "DIRECT_IO", "warning", "no O_DIRECT here", "Engines will use the page cache."
            )
        try:
            with mmap.mmap(-1, mmap.PAGESIZE) as page:
                os.writev(fd, [page])
        finally:
            os.close(fd)
    return Finding("DIRECT_IO", "ok", "O_DIRECT works")


def check_space(path: Path) -> Finding:
    """A full disk is not a full store: the capacity must fit what is free."""
    free = shutil.disk_usage(path).free
    if free < 2**30:
        return Finding(
            "SPACE", "warning", f"{render_size(free)} free", "Free space, or use another disk."
        )
    return Finding("SPACE", "ok", f"{render_size(free)} free")


CHECKS: tuple[Check, ...] = (
    check_fuse,
    check_kernel,
    check_packages,
    check_descriptors,
    check_filesystem,
    check_xattrs,
    check_direct_io,
    check_space,
)


@click.command()
@click.argument("where", metavar="[STORE]", required=False, type=click.Path(path_type=Path))
@json_option
def doctor(where: Path | None, is_json: bool) -> ExitCode:
    """Check this machine for the store STORE (or the directory it will be made in)."""
    path = where or store_from_environment(process_environment()) or Path(".")
    findings = [check(_existing(path)) for check in CHECKS]
    for finding in findings:
        click.echo(json.dumps(_record(finding)) if is_json else _text(finding))
    states = {finding.state for finding in findings}
    if "failure" in states:
        return ExitCode.ERROR
    return ExitCode.WARNINGS if "warning" in states else ExitCode.OK


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


@contextlib.contextmanager
def _probe_file(path: Path) -> Iterator[str]:
    fd, name = tempfile.mkstemp(prefix=".kvfs-doctor-", dir=path)
    os.close(fd)
    try:
        yield name
    finally:
        os.unlink(name)


def _record(finding: Finding) -> dict[str, str]:
    return {
        "code": finding.code,
        "state": finding.state,
        "what": finding.what,
        "action": finding.action,
    }


def _text(finding: Finding) -> str:
    action = f"  -> {finding.action}" if finding.action else ""
    return f"{finding.state:<8} {finding.code:<12} {finding.what}{action}"
