"""fio writes through each of its engines and verifies every block by its checksum: at once through
its own descriptor, and once more from the published file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.mount_fixture import missing_program

pytestmark = [pytest.mark.fuse, missing_program("fio")]

MIB = 1 << 20
ENGINES = {
    "sync": ["--ioengine=sync"],
    "three jobs": ["--ioengine=psync", "--numjobs=3"],
    "mmap": ["--ioengine=mmap"],
    "Linux AIO": ["--ioengine=libaio", "--direct=1", "--iodepth=16"],
    "io_uring": ["--ioengine=io_uring", "--iodepth=16"],
    "io_uring direct": ["--ioengine=io_uring", "--direct=1", "--iodepth=16"],
}


def fio(folder: Path, size: str, *options: str) -> None:
    """Run a job of random writes; whatever differs makes fio fail."""
    base = ["--name=job", f"--directory={folder}", f"--size={size}", "--bs=4k", "--end_fsync=1"]
    check = ["--verify=crc32c", "--verify_fatal=1", "--randseed=7", "--fallocate=none"]
    state = ["--verify_state_save=0", "--thread"]
    done = subprocess.run(
        ["fio", *base, *check, *state, *options],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture
def size(is_soak: bool) -> str:
    return "64m" if is_soak else "1m"


@pytest.mark.parametrize("engine", ENGINES)
def test_i1_what_fio_writes_it_reads_back(bucket: Path, size: str, engine: str) -> None:
    fio(bucket, size, "--rw=randwrite", *ENGINES[engine])
    assert sum(path.stat().st_size for path in bucket.iterdir()) >= MIB
    fio(bucket, size, "--rw=randwrite", "--verify_only", *ENGINES[engine])


@pytest.mark.parametrize("engine", ["sync", "mmap", "Linux AIO"])
def test_i1_what_fio_writes_into_a_published_file_it_reads_back(
    bucket: Path, size: str, engine: str
) -> None:
    with (bucket / "job.0.0").open("wb") as file:
        file.write(os.urandom(2 * MIB))
    fio(bucket, size, "--rw=randrw", *ENGINES[engine])
