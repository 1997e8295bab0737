"""What is in the page cache: the newest call, the oldest, and a sandbox that refuses the newest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvfs_gateway.server import page_cache
from kvfs_gateway.server.page_cache import PAGE, is_cached, load

LENGTH = 64 * PAGE


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[int]:
    """A file on a disk, of which nothing is in memory."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(LENGTH))
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    if page_cache._is_cached_by_mincore(descriptor, 0, LENGTH):
        pytest.skip("this file system keeps every page in memory (tmpfs)")
    yield descriptor
    os.close(descriptor)


WAYS = [is_cached, page_cache._is_cached_by_mincore]


@pytest.mark.parametrize("way", WAYS)
def test_a_range_counts_as_cached_once_all_of_it_was_loaded(
    way: Callable[[int, int, int], bool], cold: int
) -> None:
    os.posix_fadvise(cold, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead beyond what is asked for
    assert not way(cold, 0, LENGTH)
    os.pread(cold, 1, 3 * PAGE)
    assert way(cold, 3 * PAGE + 5, 10)
    assert not way(cold, 3 * PAGE + 5, 10 * PAGE)
    load(cold, 0, LENGTH)
    assert way(cold, 0, LENGTH)
    assert way(cold, PAGE - 1, 2)
    assert not way(cold, 0, 2 * LENGTH)  # beyond the end there is nothing


SANDBOXED = """
import ctypes, os, struct, sys
from kvfs_gateway.server import page_cache

def refuse(number):
    # load the call's number; is it this one? then EPERM; else allow
    code = b"".join(struct.pack("HBBI", *item) for item in (
        (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)))
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    assert libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero) == 0
    assert libc.prctl(22, ctypes.c_ulong(2), program, zero, zero) == 0

for number in map(int, sys.argv[2:]):
    refuse(number)
fd = os.open(sys.argv[1], os.O_RDONLY)
os.fsync(fd)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
cold = page_cache.is_cached(fd, 0, 4096)
page_cache.load(fd, 0, 4096)
print(page_cache._chosen_way().__name__, cold, page_cache.is_cached(fd, 0, 4096))
"""
MINCORE = 27


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filter names x86-64's calls")
@pytest.mark.parametrize(
    ("refused", "answer"),
    [
        ([page_cache.CACHESTAT], "_is_cached_by_mincore False True"),
        ([page_cache.CACHESTAT, MINCORE], "_is_cached_by_mincore False False"),
    ],
)
def test_a_sandbox_that_refuses_the_call_is_no_lie_and_no_error(
    cold: int, tmp_path: Path, refused: list[int], answer: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SANDBOXED, str(tmp_path / "file"), *map(str, refused)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == answer, done.stderr
