"""What stat, df and du say: times as they were set, space as it is taken."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kvfs.model import Digest
from kvfs.open_store import open_store
from tests.mount_fixture import Mounted, run_python, wait_until

pytestmark = pytest.mark.fuse

MIB = 1 << 20
THE_PAST_NS = 1_500_000_000_123_456_789
"""2017, to the nanosecond."""


def digest_of(path: Path) -> Digest:
    return Digest(bytes.fromhex(os.getxattr(path, "user.kvfs.digest").decode()))


def compress(mounted: Mounted, path: Path) -> None:
    """Compress the block behind `path`; wait until stat is asked anew (it is believed 1 s)."""
    with open_store(mounted.store) as store:
        store.compress(digest_of(path))
    size = path.stat().st_size
    wait_until(lambda: path.stat().st_blocks * 512 < size)


def disk_usage(path: Path, *options: str) -> int:
    """What `du` says, in bytes."""
    done = subprocess.run(
        ["du", "--block-size=1", "-s", *options, path], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[0])


def test_times_that_were_set_are_shown_as_set_also_after_look_ups_and_reads(bucket: Path) -> None:
    path = bucket / "f"
    path.write_bytes(b"x")
    os.utime(path, ns=(THE_PAST_NS + 7, THE_PAST_NS))
    for _ in range(3):
        assert path.read_bytes() == b"x"
        found = path.stat()
        assert (found.st_atime_ns, found.st_mtime_ns) == (THE_PAST_NS + 7, THE_PAST_NS)
    assert os.listxattr(path) == []


def test_an_access_time_that_was_set_outlives_the_flush_of_noted_accesses(
    mounted: Mounted, bucket: Path
) -> None:
    path = bucket / "f"
    path.write_bytes(b"x")
    os.utime(path, ns=(THE_PAST_NS, THE_PAST_NS))
    with open_store(mounted.store) as store:
        inode = int(os.getxattr(path, "user.kvfs.inode"))
        store.touch(inode)
        store.flush()
    seen = run_python("import os, sys; print(os.stat(sys.argv[1]).st_atime_ns)", path)
    assert int(seen.stdout) == THE_PAST_NS


def test_touching_with_the_present_or_an_old_time_makes_a_file_recently_used(bucket: Path) -> None:
    path = bucket / "f"
    path.write_bytes(b"x")
    os.setxattr(path, "user.kvfs.ttl", b"1h")
    expires = int(os.getxattr(path, "user.kvfs.expires_at"))
    os.utime(path, ns=(THE_PAST_NS, THE_PAST_NS))  # as cp -p does: it must not expire at once
    assert int(os.getxattr(path, "user.kvfs.expires_at")) >= expires
    before = path.stat().st_mtime_ns
    os.utime(path)
    assert path.stat().st_mtime_ns > before
    assert path.stat().st_atime_ns > THE_PAST_NS


def test_one_time_can_be_set_and_the_other_left(bucket: Path) -> None:
    path = bucket / "f"
    path.write_bytes(b"x")
    os.utime(path, ns=(THE_PAST_NS, THE_PAST_NS))
    subprocess.run(["touch", "-a", "-d", "@1600000000", path], check=True)
    assert path.stat().st_atime_ns == 1_600_000_000 * 10**9
    assert path.stat().st_mtime_ns == THE_PAST_NS
    subprocess.run(["touch", "-m", "-d", "@1600000001", path], check=True)
    assert path.stat().st_atime_ns == 1_600_000_000 * 10**9
    assert path.stat().st_mtime_ns == 1_600_000_001 * 10**9


def test_times_set_on_an_unclosed_file_are_there_once_it_is_closed(bucket: Path) -> None:
    path = bucket / "f"
    with path.open("wb") as file:
        file.write(b"x")
        file.flush()
        os.utime(file.fileno(), ns=(THE_PAST_NS, 0))
        assert os.fstat(file.fileno()).st_atime_ns == THE_PAST_NS
    assert path.stat().st_atime_ns == THE_PAST_NS
    assert path.stat().st_mtime_ns <= 1


def test_the_modification_time_is_that_of_the_last_write_not_of_the_close(bucket: Path) -> None:
    path = bucket / "f"
    with path.open("wb", buffering=0) as file:
        file.write(b"x")
        written = os.fstat(file.fileno()).st_mtime_ns
        (bucket / "later").write_bytes(b"")
    assert path.stat().st_mtime_ns == written
    assert (bucket / "later").stat().st_mtime_ns >= written


def test_directories_keep_times_that_were_set(bucket: Path) -> None:
    (bucket / "d").mkdir()
    os.utime(bucket / "d", ns=(THE_PAST_NS, THE_PAST_NS))
    found = (bucket / "d").stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (THE_PAST_NS, THE_PAST_NS)


def test_a_compressed_file_shows_its_length_and_the_blocks_that_it_takes(
    mounted: Mounted, bucket: Path
) -> None:
    path, value = bucket / "cold", b"0123456789abcdef" * (MIB // 4)
    path.write_bytes(value)
    assert path.stat().st_blocks * 512 == len(value)
    compress(mounted, path)
    found = path.stat()
    assert found.st_size == len(value)
    assert 0 < found.st_blocks * 512 < len(value) // 10
    digest = digest_of(path).hex()
    block = (mounted.root / ".kvfs" / "blocks" / digest[:2] / digest).stat()
    assert (block.st_size, block.st_blocks) == (found.st_size, found.st_blocks)


def test_du_tells_stored_bytes_and_with_apparent_size_logical_ones(
    mounted: Mounted, bucket: Path
) -> None:
    folder = bucket / "d"
    folder.mkdir()
    (folder / "hot").write_bytes(os.urandom(MIB))
    cold = folder / "cold"
    cold.write_bytes(bytes(4 * MIB))
    os.link(folder / "hot", folder / "hot-too")  # one inode: counted once
    assert disk_usage(folder) == 5 * MIB + 4096
    assert disk_usage(folder, "--apparent-size") == 5 * MIB + 4096
    compress(mounted, cold)
    assert disk_usage(folder, "--apparent-size") == 5 * MIB + 4096
    assert MIB <= disk_usage(folder) - 4096 < MIB + MIB // 2


def test_df_loses_what_is_stored_once_and_gets_it_back(mounted: Mounted, bucket: Path) -> None:
    def used() -> int:
        with open_store(mounted.store, read_only=True) as store:
            resident = store.usage().resident_bytes
        found = os.statvfs(mounted.root)
        # What is granted to writers in advance is not free either.
        assert (found.f_blocks - found.f_bfree) * 4096 >= resident
        return resident

    before, value = used(), os.urandom(8 * MIB)
    for name in ("a", "b", "c"):
        (bucket / name).write_bytes(value)
    assert used() - before == 8 * MIB  # equal bytes are stored once
    for name in ("a", "b", "c"):
        (bucket / name).unlink()
    wait_until(lambda: used() == before)


def test_a_file_being_written_shows_the_blocks_it_has(bucket: Path) -> None:
    with (bucket / "sparse").open("w+b", buffering=0) as file:
        file.truncate(64 * MIB)
        assert os.fstat(file.fileno()).st_size == 64 * MIB
        assert os.fstat(file.fileno()).st_blocks == 0
        os.pwrite(file.fileno(), os.urandom(MIB), 32 * MIB)
        os.fsync(file.fileno())
        wait_until(lambda: MIB <= os.fstat(file.fileno()).st_blocks * 512 <= MIB + 65536)


def test_what_was_unlinked_is_free_at_the_next_statvfs(mounted: Mounted, bucket: Path) -> None:
    """SGLang's cleaner looks after each batch of files whether to stop: told late, it goes on."""
    path = bucket / "old"
    for _ in range(5):
        path.write_bytes(os.urandom(8 * MIB))
        before = os.statvfs(mounted.root)
        path.unlink()
        after = os.statvfs(mounted.root)
        assert (after.f_bavail - before.f_bavail) * 4096 >= 8 * MIB
