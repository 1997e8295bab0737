"""Files that stay mutable: slabs that engines size once, open many times and write in place."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount_fixture import Mounted, mounted_store, run_python, wait_until

pytestmark = pytest.mark.fuse

MIB = 1 << 20
GIB = 1 << 30
SLAB = 4 * GIB
PUNCH, KEEP_SIZE = 2, 1


def is_mutable(path: Path) -> bool:
    return os.getxattr(path, "user.kvfs.mutable") == b"1"


def was_marked(path: Path) -> bool:
    """Mark the file unless somebody still has it open."""
    with contextlib.suppress(OSError):
        os.setxattr(path, "user.kvfs.mutable", b"1")
        return True
    return False


def used_bytes(path: Path) -> int:
    space = os.statvfs(path)
    return (space.f_blocks - space.f_bfree) * space.f_frsize


def make_slab(path: Path, size: int = SLAB) -> int:
    """Return a descriptor on a new sparse file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    os.ftruncate(descriptor, size)
    return descriptor


@pytest.fixture
def slab(bucket: Path) -> Iterator[Path]:
    """A closed sparse slab."""
    path = bucket / "slab"
    os.close(make_slab(path))
    yield path
    path.unlink(missing_ok=True)


def test_a_slab_is_visible_to_others_from_the_moment_it_is_sized(bucket: Path) -> None:
    path = bucket / "slab"
    descriptor = make_slab(path)
    try:
        seen = run_python("import os, sys; print(os.stat(sys.argv[1]).st_size)", path).stdout
        assert int(seen) == SLAB
        assert is_mutable(path)
        os.pwrite(descriptor, b"through the first", GIB)
        code = """
import os, sys
with open(sys.argv[1], "r+b", buffering=0) as file:
    print(os.pread(file.fileno(), 17, 1 << 30).decode())
    os.pwrite(file.fileno(), b"through another", 2 << 30)
"""
        assert run_python(code, path).stdout.strip() == "through the first"
        assert os.pread(descriptor, 15, 2 * GIB) == b"through another"
    finally:
        os.close(descriptor)


def test_i4_slabs_cost_what_is_written_to_them(mounted: Mounted) -> None:
    with mounted_store(mounted.transport) as own:
        bucket = own.root / "kv"
        bucket.mkdir()
        slabs = [make_slab(bucket / f"slab-{number}") for number in range(8)]  # 32 GiB in 2
        try:
            for descriptor in slabs:
                os.pwrite(descriptor, b"x" * MIB, 3 * GIB)
                os.fsync(descriptor)
            # What the daemon holds ahead for its writers is told, too.
            assert 8 * MIB <= used_bytes(own.root) < 8 * MIB + 64 * MIB
            found = os.stat(bucket / "slab-0")
            assert (found.st_size, found.st_blocks * 512 // MIB) == (SLAB, 1)
        finally:
            for descriptor in slabs:
                os.close(descriptor)
        shown = subprocess.run(["du", "-sm", bucket], capture_output=True, text=True, check=True)
        assert 8 <= int(shown.stdout.split()[0]) <= 9


def test_random_writes_of_several_opens_are_what_is_read(slab: Path) -> None:
    chance = random.Random(5)
    pages = [(chance.randrange(SLAB // 4096) * 4096, os.urandom(4096)) for _ in range(200)]
    expected = dict(pages)
    pages = list(expected.items())

    def write(part: list[tuple[int, bytes]]) -> None:
        descriptor = os.open(slab, os.O_RDWR)
        try:
            for offset, page in part:
                assert os.pwritev(descriptor, [page[:1000], page[1000:]], offset) == 4096
        finally:
            os.close(descriptor)

    threads = [threading.Thread(target=write, args=(pages[k::4],)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with slab.open("rb", buffering=0) as file:
        for offset, page in pages:
            assert os.pread(file.fileno(), 4096, offset) == page
        assert os.pread(file.fileno(), 10, SLAB - 5) == bytes(5)


def test_it_is_the_same_inode_however_often_it_is_opened(slab: Path) -> None:
    before = os.stat(slab).st_ino
    for number in range(3):
        with slab.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"%d" % number, number)
    assert os.stat(slab).st_ino == before
    with slab.open("rb") as file:
        assert file.read(3) == b"012"


def test_readers_and_writers_share_it_in_any_order(slab: Path) -> None:
    with slab.open("rb", buffering=0) as reader:
        assert os.pread(reader.fileno(), 4, 0) == bytes(4)
        with slab.open("r+b", buffering=0) as writer:
            os.pwrite(writer.fileno(), b"seen", 0)
            assert os.pread(reader.fileno(), 4, 0) == b"seen"
        assert os.pread(reader.fileno(), 4, 0) == b"seen"


def test_direct_io_at_random_offsets(slab: Path) -> None:
    descriptor = os.open(slab, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 64 * 1024) as page:
            page.write(b"d" * (64 * 1024))
            for offset in (0, GIB, 3 * GIB + 8192):
                assert os.pwritev(descriptor, [page], offset) == 64 * 1024
            page.seek(0)
            page.write(bytes(64 * 1024))
            assert os.preadv(descriptor, [page], GIB) == 64 * 1024
            assert page[:] == b"d" * (64 * 1024)
    finally:
        os.close(descriptor)
    with slab.open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 4096, 3 * GIB + 8192) == b"d" * 4096


def test_a_shared_mapping_writes_it(slab: Path) -> None:
    with slab.open("r+b") as file, mmap.mmap(file.fileno(), MIB, offset=GIB) as mapping:
        mapping[10:14] = b"mmap"
        mapping.flush()
    with slab.open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 4, GIB + 10) == b"mmap"


def test_a_punched_hole_gives_back(slab: Path, mounted: Mounted) -> None:
    if mounted.transport != "kernel":
        pytest.skip("pyfuse3 has no fallocate")
    with slab.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"x" * (16 * MIB), GIB)
        os.fsync(file.fileno())
        arguments = ["fallocate", "--punch-hole", "--offset", str(GIB), "--length", str(15 * MIB)]
        subprocess.run([*arguments, slab], check=True)
        assert os.pread(file.fileno(), 4, GIB) == bytes(4)
        assert os.pread(file.fileno(), 4, GIB + 15 * MIB) == b"xxxx"
    assert os.stat(slab).st_blocks * 512 <= 2 * MIB


def test_a_sparse_file_below_the_limit_is_kept_by_its_close_and_a_full_one_is_sealed(
    bucket: Path,
) -> None:
    sparse, sized, written = (bucket / name for name in ("sparse", "sized", "written"))
    for path, length in ((sparse, MIB), (sized, 32 * MIB)):
        with path.open("xb", buffering=0) as file:
            os.ftruncate(file.fileno(), 32 * MIB)
            os.pwrite(file.fileno(), b"x" * length, 0)
    with written.open("xb", buffering=0) as file:
        os.pwrite(file.fileno(), b"end", MIB)  # a hole in a block is no slab
    assert [is_mutable(path) for path in (sparse, sized, written)] == [True, False, False]
    assert os.stat(sparse).st_size == 32 * MIB
    assert os.getxattr(sized, "user.kvfs.digest")


def test_preallocated_blocks_are_sealed(bucket: Path) -> None:
    path = bucket / "preallocated"
    with path.open("xb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, 8 * MIB)
    assert not is_mutable(path)


def test_a_marked_file_is_visible_while_it_is_written(bucket: Path) -> None:
    path = bucket / "marked"
    with path.open("xb", buffering=0) as file:
        file.write(b"before")
        os.setxattr(file.fileno(), "user.kvfs.mutable", b"1")
        assert run_python("import sys; print(open(sys.argv[1]).read())", path).stdout == "before\n"
        file.write(b" and after")
    assert is_mutable(path)
    assert path.read_bytes() == b"before and after"
    assert os.getxattr(path, "user.kvfs.digest") == b""


def test_a_sealed_file_that_is_marked_goes_on_as_a_mutable_copy(bucket: Path) -> None:
    path = bucket / "block"
    path.write_bytes(b"sealed" * 1000)
    os.chmod(path, 0o640)
    with path.open("rb") as reader:
        assert reader.read(6) == b"sealed"
        with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
            os.setxattr(path, "user.kvfs.mutable", b"1")
    wait_until(lambda: was_marked(path))  # RELEASE comes just behind the close
    assert is_mutable(path)
    with path.open("r+b", buffering=0) as writer:
        writer.write(b"SEALED")
    assert path.read_bytes() == b"SEALED" + b"sealed" * 999
    assert os.stat(path).st_mode & 0o777 == 0o640


def test_only_one_can_be_set_and_a_copy_is_sealed(slab: Path, bucket: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        os.setxattr(slab, "user.kvfs.mutable", b"0")
    os.truncate(slab, 10)
    copied = bucket / "copy"
    copied.write_bytes(slab.read_bytes())
    assert not is_mutable(copied)


def test_length_is_set_in_place_by_name_and_by_o_trunc(slab: Path) -> None:
    inode = os.stat(slab).st_ino
    with slab.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"0123456789", 0)
        os.truncate(slab, 4)
        assert os.fstat(file.fileno()).st_size == 4
    os.truncate(slab, 2 * GIB)
    with slab.open("rb") as file:
        assert file.read(10) == b"0123" + bytes(6)
    with slab.open("wb", buffering=0) as file:
        assert os.stat(slab).st_size == 0
        file.write(b"anew")
    assert (slab.read_bytes(), os.stat(slab).st_ino, is_mutable(slab)) == (b"anew", inode, True)


def test_an_unlinked_slab_lives_until_its_last_close(
    slab: Path, bucket: Path, mounted: Mounted
) -> None:
    files = mounted.store / "files"
    mine = set(os.listdir(files))
    with slab.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"still here", GIB)
        slab.unlink()
        assert os.listdir(bucket) == []
        assert os.pread(file.fileno(), 10, GIB) == b"still here"
        os.pwrite(file.fileno(), b"and there!", GIB)
        assert os.fstat(file.fileno()).st_nlink == 0
        assert mine <= set(os.listdir(files))
    wait_until(lambda: len(set(os.listdir(files)) & mine) < len(mine))


def test_rename_and_links_lead_to_the_one_file(slab: Path, bucket: Path) -> None:
    second, third = bucket / "second", bucket / "third"
    with slab.open("r+b", buffering=0) as file:
        os.link(slab, second)
        slab.rename(third)
        os.pwrite(file.fileno(), b"one", 0)
        assert os.fstat(file.fileno()).st_nlink == 2
        for path in (second, third):
            with path.open("rb", buffering=0) as reader:
                assert os.pread(reader.fileno(), 3, 0) == b"one"
    second.unlink()
    third.unlink()


def test_a_rename_over_a_slab_replaces_it(slab: Path, bucket: Path) -> None:
    (bucket / "other").write_bytes(b"sealed")
    with slab.open("rb", buffering=0) as reader:
        (bucket / "other").rename(slab)
        assert os.fstat(reader.fileno()).st_size == SLAB
    assert slab.read_bytes() == b"sealed"


def test_times_are_true_and_can_be_set(slab: Path) -> None:
    first = os.stat(slab).st_mtime_ns
    with slab.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"x", 0)
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_mtime_ns > first
        os.utime(file.fileno(), ns=(5_000_000_000, 6_000_000_000))
        assert os.fstat(file.fileno()).st_mtime_ns == 6_000_000_000
    os.utime(slab, ns=(5_000_000_000, 7_000_000_000))
    assert os.stat(slab).st_mtime_ns == 7_000_000_000


def test_attributes_stay_with_it(slab: Path) -> None:
    os.setxattr(slab, "user.engine", b"mooncake")
    os.setxattr(slab, "user.kvfs.ttl", b"7d")
    with slab.open("r+b", buffering=0) as file:
        file.write(b"x")
    assert os.getxattr(slab, "user.engine") == b"mooncake"
    assert os.getxattr(slab, "user.kvfs.ttl") == b"604800"


def test_i4_a_writer_that_outgrows_the_store_is_stopped_and_publishes_nothing(
    mounted: Mounted,
) -> None:
    capacity = 64 * MIB
    with mounted_store(mounted.transport, capacity_bytes=capacity) as small:
        (small.root / "kv").mkdir()
        path = small.root / "kv" / "large"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        failed = 0
        written = 0
        while not failed and written < 4 * GIB:
            try:
                written += os.pwrite(descriptor, b"x" * MIB, written)
            except OSError as error:
                failed = error.errno or 0
        assert failed in (errno.ENOSPC, errno.EPERM)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            os.close(descriptor)
        assert not path.exists()
        assert used_bytes(small.root) <= capacity
        again = small.root / "kv" / "small"
        again.write_bytes(b"room again" * 1000)
        assert again.read_bytes() == b"room again" * 1000


def test_i4_a_slab_that_outgrows_the_store_is_stopped_and_goes_on_when_there_is_room(
    mounted: Mounted,
) -> None:
    capacity = 64 * MIB
    with mounted_store(mounted.transport, capacity_bytes=capacity) as small:
        (small.root / "kv").mkdir()
        path = small.root / "kv" / "slab"
        descriptor = make_slab(path, 64 * GIB)
        failed = 0
        written = 0
        while not failed and written < 4 * GIB:
            try:
                written += os.pwrite(descriptor, b"x" * MIB, written)
            except OSError as error:
                failed = error.errno or 0
        assert failed in (errno.ENOSPC, errno.EPERM)
        assert used_bytes(small.root) <= capacity
        os.ftruncate(descriptor, MIB)

        def writes_again() -> bool:
            try:
                return os.pwrite(descriptor, b"again", 0) == 5
            except OSError:
                return False

        wait_until(writes_again)
        os.close(descriptor)
        assert path.read_bytes()[:6] == b"againx"
