"""stress-ng's file system stressors, all at once on one mount, each verifying what it does.

Out, and why: `fiemap` and `verity` ask for what FUSE has not; `io-uring` stats the file that it
writes, by another thread, before it is closed: there is none yet; `copy-file` needs files of 128
MiB; `file-ioctl` takes the blocks a file has (FIOQSIZE) for its length, and a disk allocates late;
`fsize` asks for one as long as the store, for which everything else is evicted, the files of
the other stressors too; `mmapfork` measures the machine's memory, not its files; `binderfs`,
`procfs`, `eventfd` and `ioprio` are no file systems' business.
"""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.mount_fixture import missing_program, mounted_store, transports, wait_until

pytestmark = [pytest.mark.fuse, missing_program("stress-ng")]

BOUNDED = [
    "access", "chattr", "chdir", "chmod", "chown", "dentry", "dir", "dirdeep", "dirmany",
    "dnotify", "dup", "fallocate", "fanotify", "fcntl", "flock", "fpunch",
    "fstat", "getdent", "handle", "hdd", "inode-flags", "inotify", "io", "iomix", "lease",
    "locka", "lockf", "lockofd", "mknod", "open", "rename", "sync-file", "touch", "utime",
    "xattr", "aio", "aiol", "readahead", "seek", "sendfile", "splice", "fault",
]  # fmt: skip
LONG = [*BOUNDED, "filename", "link", "symlink", "mmap", "mmapaddr"]
"""These go on for many seconds after their time is up."""
LONG.remove("inotify")  # beside all the others it waits in vain on the disk's own file system, too
SMALL = ["fallocate", "hdd", "iomix", "readahead", "seek", "sync-file"]
"""Those that would write gigabytes."""


CAPACITY = 1 << 40
"""Space is reserved for the length of sparse files: what is tested must not be evicted for it."""


@pytest.mark.slow
@pytest.mark.parametrize("transport", transports())
def test_stressed_by_all_file_operations_at_once_nothing_fails_and_nothing_stays_behind(
    transport: str, is_soak: bool
) -> None:
    seconds, stressors = (120, LONG) if is_soak else (4, BOUNDED)
    with mounted_store(transport, capacity_bytes=CAPACITY) as mounted:
        folder = mounted.root / "stress"
        folder.mkdir()
        options = [word for name in stressors for word in (f"--{name}", "1")]
        options += [word for name in SMALL for word in (f"--{name}-bytes", "8m")]
        options = [word.replace("--seek-bytes", "--seek-size") for word in options]
        done = subprocess.run(
            ["stress-ng", *options, "--timeout", str(seconds), "--verify", "--temp-path", folder],
            capture_output=True,
            text=True,
            timeout=seconds * 5 + 120,
            check=False,
        )
        said = (done.stdout + done.stderr).splitlines()
        assert done.returncode == 0, "\n".join(line for line in said if "info:" not in line)[-3000:]
        assert list(folder.rglob("*")) == []
        log = mounted.log()
        assert "Traceback" not in log, log[-3000:]
        # A few processes end late.
        wait_until(lambda: mounted.gauge("kvfs_mount_open_files") == 0)
        folder.rmdir()
        if os.geteuid() == 0:
            # The root alone. An open that was given up half-way is waited for, for ten seconds.
            wait_until(lambda: mounted.inodes_in_use() == 1)
