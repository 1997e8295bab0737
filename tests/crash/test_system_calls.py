"""Every system call may be a process' last, and every one may fail.

Killed at its n-th call, a process leaves a store that keeps every promise. When a call fails, the
operation ends in one of our errors or in a miss, nothing leaks, and the store goes on (I1, I2, I4).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs.model import Durability
from tests.crash.crew import Crew, ForkServer
from tests.crash.injection import Fault, missing, run_with_fault

pytestmark = [
    pytest.mark.crash,
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.expects_warnings,
    pytest.mark.skipif(bool(missing()), reason=missing() or "usable"),
]

KILLS = ["openat", "linkat", "fchmod", "unlinkat", "unlink", "fsetxattr", "setxattr", "getxattr",
         "pwrite64", "write", "fdatasync", "fsync", "ftruncate", "flock", "fallocate", "close",
         "mmap", "getdents64", "newfstatat", "syncfs", "pwritev", "lseek", "rename"]  # fmt: skip

# A call with `retval` is not made at all: LMDB's own writes notice that, and a true short write of
# ours is what a full disk gives (test_full_disk.py). No mmap: it is the allocator that fails there.
FAULTS = {
    "openat": ["error=EMFILE", "error=EIO", "error=EACCES", "error=ENOSPC"],
    "linkat": ["error=ENOSPC", "error=EIO", "error=EACCES", "error=EMLINK"],
    "unlinkat": ["error=EIO", "error=EACCES"],
    "unlink": ["error=EIO", "error=EACCES"],
    "fsetxattr": ["error=ENOSPC", "error=EIO", "error=EACCES"],
    "setxattr": ["error=ENOSPC", "error=EIO"],
    "getxattr": ["error=EIO", "error=EACCES"],
    "write": ["error=ENOSPC", "error=EIO", "retval=0"],
    "pwrite64": ["error=ENOSPC", "error=EIO", "retval=1"],
    "pwritev": ["error=ENOSPC", "error=EIO", "retval=1"],
    "fdatasync": ["error=EIO", "error=ENOSPC"],
    "fsync": ["error=EIO"],
    "syncfs": ["error=EIO"],
    "ftruncate": ["error=ENOSPC", "error=EIO"],
    "fchmod": ["error=EIO", "error=EPERM"],
    "fallocate": ["error=ENOSPC", "error=EIO", "error=EOPNOTSUPP"],
    "flock": ["error=ENOLCK", "error=EINTR"],
    "pread64": ["error=EIO"],
    "newfstatat": ["error=EIO", "error=EACCES"],
    "fstat": ["error=EIO"],
    "getdents64": ["error=EIO"],
    "clone3": ["error=EAGAIN"],
    "lseek": ["error=EIO"],
    "rename": ["error=ENOSPC", "error=EIO"],
}

BOUNDED_KILLS = 20
BOUNDED_FAULTS = 24
MAX_NTH = 400
"""In the long run, calls beyond this are more of the same."""
STEPS = 40


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


def nths(is_soak: bool, chance: random.Random) -> list[int]:
    """Return which calls of one kind to tamper with, in order."""
    if not is_soak:
        return [chance.randrange(1, 12)]
    return [*range(1, 30), *range(30, 100, 7), *range(100, MAX_NTH, 30)]


@pytest.mark.parametrize("durability", list(Durability), ids=lambda each: str(each.value))
def test_a_process_killed_at_any_system_call_leaves_a_store_that_keeps_every_promise(
    tmp_path: Path, server: ForkServer, is_soak: bool, durability: Durability
) -> None:
    crew = Crew(tmp_path / "store", server, keeps=True, durability=durability, seed=23)
    calls = KILLS if is_soak else crew.chance.sample(KILLS, BOUNDED_KILLS // 2)
    for call in calls:
        for nth in nths(is_soak, crew.chance):
            fault = Fault(call, "signal=KILL", nth)
            if not run_with_fault(crew, fault, tmp_path, steps=STEPS, has_faults=False):
                break
            crew.tally.kills += 1
            crew.verify()
    assert crew.tally.kills
    print(f"kills={crew.tally.kills} {crew.tally}")


@pytest.mark.parametrize("durability", list(Durability), ids=lambda each: str(each.value))
def test_a_system_call_that_fails_is_our_error_or_a_miss_and_leaks_nothing(
    tmp_path: Path, server: ForkServer, is_soak: bool, durability: Durability
) -> None:
    crew = Crew(tmp_path / "store", server, keeps=True, durability=durability, seed=29)
    faults = [(call, how) for call, hows in FAULTS.items() for how in hows]
    if not is_soak:
        faults = crew.chance.sample(faults, BOUNDED_FAULTS // 2)
    for call, how in faults:
        for nth in nths(is_soak, crew.chance):
            fault = Fault(call, how, nth)
            if not run_with_fault(crew, fault, tmp_path, steps=STEPS, has_faults=True):
                break
            crew.tally.kills += 1
            try:
                crew.verify()
            except AssertionError as error:
                raise AssertionError(f"after {fault}: {error}") from error
    assert crew.tally.kills
    print(f"faults={crew.tally.kills} {crew.tally}")
