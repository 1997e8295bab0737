"""copy_file_range: whole files become rows where the transport has the operation, and every other
copy holds the bytes; pyfuse3 has it not, and programs fall back by themselves."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kvfs.model import Digest, ObjectPath
from kvfs.open_store import open_store
from tests.mount_fixture import Mounted, wait_until

pytestmark = pytest.mark.fuse

MIB = 1 << 20
ODD = 3 * MIB + 1234
"""Not a whole number of the disk's blocks."""


def digest_of(path: Path) -> bytes:
    return os.getxattr(path, "user.kvfs.digest")


def copy_all(source: Path, target: int, *, piece: int = 1 << 30) -> None:
    """Copy a whole file to the descriptor `target`, `piece` bytes at most a call."""
    with source.open("rb") as giver:
        while os.copy_file_range(giver.fileno(), target, piece):
            pass


def create(path: Path, flags: int = os.O_WRONLY) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_TRUNC, 0o640)


@pytest.mark.parametrize("size", [1, 4096, 3 * MIB, ODD])
def test_a_whole_copy_moves_no_bytes_and_shares_the_block(
    mounted: Mounted, bucket: Path, size: int
) -> None:
    source, target, value = bucket / "a", bucket / "b", os.urandom(size)
    source.write_bytes(value)
    fd = create(target)
    copy_all(source, fd)
    assert os.fstat(fd).st_size == size
    if mounted.transport == "kernel":
        assert os.fstat(fd).st_blocks * 512 <= 4096  # at most the end of the last sector
    os.close(fd)
    assert target.read_bytes() == value
    assert digest_of(target) == digest_of(source)
    assert target.stat().st_mode & 0o7777 == 0o640
    with open_store(mounted.store, read_only=True) as store, store.context.index.read() as txn:
        block = txn.block(Digest(bytes.fromhex(digest_of(source).decode())))
    assert block is not None
    assert block.refs == 2


def test_a_copy_in_pieces_of_whole_sectors_is_a_whole_copy_too(
    mounted: Mounted, bucket: Path
) -> None:
    source, target, value = bucket / "a", bucket / "b", os.urandom(ODD)
    source.write_bytes(value)
    fd = create(target)
    copy_all(source, fd, piece=MIB)
    if mounted.transport == "kernel":
        assert os.fstat(fd).st_blocks * 512 <= 4096
    os.close(fd)
    assert target.read_bytes() == value


def test_the_cp_command_shares_the_block_and_keeps_mode_and_times(
    mounted: Mounted, bucket: Path
) -> None:
    source, target, value = bucket / "a", bucket / "b", os.urandom(ODD)
    source.write_bytes(value)
    source.chmod(0o604)
    os.utime(source, ns=(10**18, 10**18 + 5))
    subprocess.run(["cp", "-p", source, target], check=True)
    assert target.read_bytes() == value
    assert digest_of(target) == digest_of(source)
    found = target.stat()
    assert (found.st_mode & 0o7777, found.st_mtime_ns) == (0o604, 10**18 + 5)


def test_a_compressed_block_is_shared_as_it_is(mounted: Mounted, bucket: Path) -> None:
    source, target, value = bucket / "a", bucket / "b", b"0123456789abcdef" * 50_000
    source.write_bytes(value)
    with open_store(mounted.store) as store:
        store.compress(Digest(bytes.fromhex(digest_of(source).decode())))
    fd = create(target)
    if mounted.transport == "kernel":
        copy_all(source, fd)
        os.close(fd)
        assert target.stat().st_blocks * 512 < len(value) // 10
    else:
        os.close(fd)
        subprocess.run(["cp", source, target], check=True)
    assert target.read_bytes() == value


@pytest.mark.parametrize("size", [2 * MIB, ODD])
def test_i1_what_is_appended_to_a_whole_copy_follows_it(bucket: Path, size: int) -> None:
    source, target, value = bucket / "a", bucket / "b", os.urandom(size)
    source.write_bytes(value)
    fd = create(target)
    copy_all(source, fd)
    os.write(fd, b"and more")
    copy_all(source, fd)
    os.close(fd)
    assert target.read_bytes() == value + b"and more" + value


def test_i1_bytes_written_inside_a_whole_copy_are_there_or_the_close_says_that_they_are_not(
    mounted: Mounted, bucket: Path
) -> None:
    source, target, value = bucket / "a", bucket / "b", os.urandom(MIB)
    source.write_bytes(value)
    fd = create(target)
    copy_all(source, fd)
    os.pwrite(fd, b"patched", 5000)
    if mounted.transport == "pyfuse3":
        os.close(fd)
        assert target.read_bytes() == value[:5000] + b"patched" + value[5007:]
        return
    with pytest.raises(OSError, match="Input/output error"):
        os.close(fd)
    assert not target.exists()
    fd = create(target, os.O_RDWR)  # whoever may read gets bytes, and may patch them
    copy_all(source, fd)
    os.pwrite(fd, b"patched", 5000)
    assert os.pread(fd, 7, 5000) == b"patched"
    os.close(fd)
    assert target.read_bytes() == value[:5000] + b"patched" + value[5007:]


@pytest.mark.parametrize("step", ["truncate", "grow", "fallocate", "patch by copying", "reopen"])
def test_i1_a_whole_copy_that_is_changed_becomes_bytes_of_its_own(
    mounted: Mounted, bucket: Path, step: str
) -> None:
    source, target, value = bucket / "a", bucket / "b", os.urandom(ODD)
    source.write_bytes(value)
    fd = create(target)
    copy_all(source, fd)
    expected = value
    if step == "truncate":
        os.ftruncate(fd, 5000)
        expected = value[:5000]
    elif step == "grow":
        os.ftruncate(fd, ODD + 5000)
        expected = value + bytes(5000)
    elif step == "fallocate":
        if mounted.transport == "pyfuse3":  # has no fallocate, and glibc's own reads
            os.ftruncate(fd, ODD + 100)
        else:
            os.posix_fallocate(fd, 0, ODD + 100)
        expected = value + bytes(100)
    elif step == "patch by copying":
        with source.open("rb") as giver:
            assert os.copy_file_range(giver.fileno(), fd, 7, 100, 50) == 7
        expected = value[:50] + value[100:107] + value[57:]
    else:
        with target.open("rb") as own:
            assert own.read() == value
        os.pwrite(fd, b"now it may be patched", 10)
        expected = value[:10] + b"now it may be patched" + value[31:]
    os.close(fd)
    wait_until(target.exists)
    assert target.read_bytes() == expected
    assert source.read_bytes() == value


def test_i1_a_reader_before_the_writers_last_descriptor_is_gone_sees_the_bytes(
    bucket: Path,
) -> None:
    source, target, value = bucket / "a", bucket / "b", os.urandom(ODD)
    source.write_bytes(value)
    fd = create(target)
    copy_all(source, fd)
    kept = os.dup(fd)
    os.close(fd)
    wait_until(target.exists)
    assert target.read_bytes() == value
    assert os.fstat(kept).st_size == ODD
    os.pwrite(kept, b"late", ODD)
    os.close(kept)
    wait_until(lambda: target.stat().st_size == ODD + 4)
    assert target.read_bytes() == value + b"late"
    assert source.read_bytes() == value


def test_a_copy_lives_on_when_its_source_goes_before_or_after_the_close(bucket: Path) -> None:
    source, early, late, value = bucket / "a", bucket / "b", bucket / "c", os.urandom(ODD)
    source.write_bytes(value)
    fd = create(early)
    copy_all(source, fd)
    os.close(fd)
    fd = create(late)
    copy_all(source, fd)
    source.unlink()
    early.unlink()
    os.close(fd)
    assert late.read_bytes() == value


def test_a_copy_into_another_first_directory_holds_bytes_of_its_own(
    mounted: Mounted, bucket: Path
) -> None:
    other = mounted.root / f"{bucket.name}-other"
    other.mkdir()
    source, target, value = bucket / "a", other / "b", os.urandom(ODD)
    source.write_bytes(value)
    fd = create(target)
    copy_all(source, fd)
    os.close(fd)
    assert target.read_bytes() == value
    assert digest_of(target) != digest_of(source)  # another salt (I6)


def test_a_copy_replaces_and_is_an_object_of_the_other_door(mounted: Mounted, bucket: Path) -> None:
    source, target, value = bucket / "a", bucket / "b", os.urandom(MIB)
    source.write_bytes(value)
    target.write_bytes(b"old")
    with target.open("rb") as reader:
        fd = create(target)
        copy_all(source, fd)
        assert target.read_bytes() == b"old"
        os.close(fd)
        assert reader.read() == b"old"
    with open_store(mounted.store, read_only=True) as store:
        assert store.get(ObjectPath(os.fsencode(bucket.name), b"b")) == value


def test_ranges_are_copied_between_and_within_files(bucket: Path) -> None:
    source, target, value = bucket / "a", bucket / "b", os.urandom(MIB)
    source.write_bytes(value)
    with source.open("rb") as giver, target.open("w+b", buffering=0) as taker:
        taker.write(bytes(MIB))
        moved = os.copy_file_range(giver.fileno(), taker.fileno(), 9000, 77, 5)
        assert moved == 9000
        assert os.copy_file_range(taker.fileno(), taker.fileno(), 100, 5, 500_000) == 100
        assert os.copy_file_range(giver.fileno(), taker.fileno(), 100, MIB, 0) == 0
    expected = bytearray(MIB)
    expected[5:9005] = value[77:9077]
    expected[500_000:500_100] = value[77:177]
    assert target.read_bytes() == bytes(expected)
