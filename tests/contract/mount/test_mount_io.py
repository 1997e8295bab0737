"""Reading and writing as engines do it: whole, unaligned, direct, mapped, sparse."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

import pytest

from kvfs.filesystem.handles import fallocate
from kvfs.model import Digest
from kvfs.open_store import open_store
from tests.mount_fixture import Mounted

pytestmark = pytest.mark.fuse

MIB = 1 << 20
PAGE = 4096
KEEP_SIZE, PUNCH_HOLE = 1, 2


def aligned(length: int) -> mmap.mmap:
    """A page-aligned buffer, as O_DIRECT wants."""
    return mmap.mmap(-1, length)


def test_one_write_and_one_read_of_32_mib_complete_in_full(bucket: Path) -> None:
    path, value = bucket / "chunk", os.urandom(32 * MIB)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    assert os.write(fd, value) == 32 * MIB
    os.close(fd)
    fd = os.open(path, os.O_RDONLY)
    assert os.read(fd, 32 * MIB) == value
    os.close(fd)


def test_one_direct_write_and_read_of_32_mib_complete_in_full(bucket: Path) -> None:
    path = bucket / "chunk"
    buffer = aligned(32 * MIB)
    buffer.write(os.urandom(32 * MIB))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_DIRECT
    fd = os.open(path, flags)
    assert os.write(fd, buffer) == 32 * MIB
    os.close(fd)
    back = aligned(32 * MIB)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    assert os.readv(fd, [back]) == 32 * MIB
    os.close(fd)
    assert back[:] == buffer[:]


def test_a_direct_read_may_be_longer_than_the_file(bucket: Path) -> None:
    path, value = bucket / "chunk", os.urandom(13 * MIB + 512)
    path.write_bytes(value)
    back = aligned(32 * MIB)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    assert os.readv(fd, [back]) == len(value)
    os.close(fd)
    assert back[: len(value)] == value


def test_direct_io_may_be_switched_on_after_the_open(bucket: Path) -> None:
    path = bucket / "block"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
    buffer = aligned(PAGE)
    buffer.write(b"d" * PAGE)
    assert os.write(fd, buffer) == PAGE
    back = aligned(PAGE)
    assert os.preadv(fd, [back], 0) == PAGE
    os.close(fd)
    assert back[:] == b"d" * PAGE
    assert path.read_bytes() == b"d" * PAGE


def test_in_place_direct_writes_to_a_new_file_are_published_at_close(bucket: Path) -> None:
    """NIXL: O_RDWR|O_CREAT|O_DIRECT, no temporary name, no truncation."""
    path = bucket / "tensor"
    for letter in (b"a", b"b"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
        buffer = aligned(2 * PAGE)
        buffer.write(letter * 2 * PAGE)
        assert os.pwrite(fd, buffer, 0) == 2 * PAGE
        os.close(fd)
        assert path.read_bytes() == letter * 2 * PAGE


def test_a_mapping_shows_the_file(bucket: Path) -> None:
    path, value = bucket / "f", os.urandom(3 * MIB + 5)
    path.write_bytes(value)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        path.unlink()
        assert mapping[:] == value


def test_a_shared_writable_mapping_is_published(bucket: Path) -> None:
    path = bucket / "f"
    with path.open("w+b") as file:
        file.truncate(MIB)
        with mmap.mmap(file.fileno(), MIB) as mapping:
            mapping[:5] = b"first"
            mapping[-4:] = b"last"
            mapping.flush()
    content = path.read_bytes()
    assert content[:5] == b"first"
    assert content[-4:] == b"last"
    assert len(content) == MIB


def test_sparse_writes_leave_zeros_between(bucket: Path) -> None:
    path = bucket / "sparse"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"end", 5 * MIB)
    os.pwrite(fd, b"start", 0)
    assert os.pread(fd, 8, 5 * MIB - 5) == b"\0" * 5 + b"end"
    os.close(fd)
    content = path.read_bytes()
    assert len(content) == 5 * MIB + 3
    assert content[:5] == b"start"
    assert content.count(0) == 5 * MIB - 5


@pytest.mark.parametrize("size", [0, 3, 5000, 2 * MIB])
def test_truncating_by_name_and_by_descriptor_gives_that_length(bucket: Path, size: int) -> None:
    path, value = bucket / "f", os.urandom(MIB)
    expected = value[:size] + bytes(max(0, size - MIB))
    path.write_bytes(value)
    os.truncate(path, size)
    assert path.read_bytes() == expected
    path.write_bytes(value)
    with path.open("r+b") as file:
        file.truncate(size)
        assert os.fstat(file.fileno()).st_size == size
    assert path.read_bytes() == expected


def test_reading_what_one_just_wrote_through_the_same_descriptor(bucket: Path) -> None:
    with (bucket / "f").open("w+b", buffering=0) as file:
        file.write(b"0123456789")
        file.seek(2)
        assert file.read(3) == b"234"
        assert os.fstat(file.fileno()).st_size == 10


def test_many_readers_of_one_file_all_get_its_bytes(bucket: Path) -> None:
    path, value = bucket / "hot", os.urandom(MIB)
    path.write_bytes(value)
    files = [path.open("rb") for _ in range(64)]
    try:
        assert all(file.read() == value for file in files)
    finally:
        for file in files:
            file.close()


def test_fsync_of_an_unclosed_file_succeeds_and_publishes_nothing(bucket: Path) -> None:
    path = bucket / "f"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"x")
    os.fsync(fd)
    assert os.listdir(bucket) == []
    os.close(fd)
    assert os.listdir(bucket) == ["f"]


def test_an_empty_file_reads_as_empty(bucket: Path) -> None:
    path = bucket / "empty"
    path.touch()
    assert path.read_bytes() == b""
    assert path.stat().st_size == 0


def test_copy_file_range_copies_the_bytes(bucket: Path) -> None:
    source, target, value = bucket / "a", bucket / "b", os.urandom(3 * MIB)
    source.write_bytes(value)
    with source.open("rb") as giver, target.open("wb") as taker:
        done = 0
        while done < len(value):
            done += os.copy_file_range(giver.fileno(), taker.fileno(), len(value) - done)
    assert target.read_bytes() == value


def test_preallocation_works_or_says_that_it_does_not(mounted: Mounted, bucket: Path) -> None:
    path = bucket / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, MIB)
    assert os.fstat(fd).st_size == MIB
    os.close(fd)
    assert path.read_bytes() == bytes(MIB)


def test_a_punched_hole_reads_as_zeros_and_gives_its_blocks_back(
    mounted: Mounted, bucket: Path
) -> None:
    path, value = bucket / "f", os.urandom(4 * MIB)
    with path.open("w+b", buffering=0) as file:
        file.write(value)
        if mounted.transport == "pyfuse3":
            with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
                fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, MIB, MIB)
            return
        os.fsync(file.fileno())
        blocks = os.fstat(file.fileno()).st_blocks
        fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, MIB, MIB)
        assert blocks * 512 - os.fstat(file.fileno()).st_blocks * 512 >= MIB
        assert os.fstat(file.fileno()).st_size == 4 * MIB
    assert path.read_bytes() == value[:MIB] + bytes(MIB) + value[2 * MIB :]


def test_an_unnamed_file_appears_whole_when_it_is_linked(mounted: Mounted, bucket: Path) -> None:
    if mounted.transport == "pyfuse3":
        with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
            os.open(bucket, os.O_TMPFILE | os.O_RDWR, 0o644)  # libfuse cannot pass it on
        return
    fd = os.open(bucket, os.O_TMPFILE | os.O_RDWR, 0o644)
    os.write(fd, b"whole")
    assert os.listdir(bucket) == []
    folder = os.open(bucket, os.O_RDONLY)
    os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=folder, follow_symlinks=True)
    os.close(folder)
    assert (bucket / "named").read_bytes() == b"whole"
    os.close(fd)
    assert (bucket / "named").read_bytes() == b"whole"


def test_a_compressed_block_reads_as_what_was_written(mounted: Mounted, bucket: Path) -> None:
    path, value = bucket / "cold", b"".join(bytes([n % 251]) * 997 for n in range(3000))
    path.write_bytes(value)
    with open_store(mounted.store) as store:
        store.compress(Digest(bytes.fromhex(os.getxattr(path, "user.kvfs.digest").decode())))
    assert path.read_bytes() == value
    with path.open("rb") as file:
        assert os.pread(file.fileno(), 5000, 1_000_000) == value[1_000_000:1_005_000]
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            assert mapping[:] == value
    back = aligned(4 * MIB)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    assert os.readv(fd, [back]) == len(value)
    os.close(fd)
    assert back[: len(value)] == value
    with path.open("r+b") as file:
        file.write(b"changed")
    assert path.read_bytes() == b"changed" + value[7:]
