"""Names, directories, attributes: what POSIX programs and engines' cleaners rely on."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from kvfs.model import ObjectPath
from kvfs.open_store import open_store
from tests.mount_fixture import Mounted, rename_with_flags, run_python, wait_until

pytestmark = pytest.mark.fuse

NOREPLACE, EXCHANGE = 1, 2


def test_a_directory_lists_each_name_once_and_both_dots(bucket: Path) -> None:
    names = [f"block-{number:05d}" for number in range(2500)]
    for name in names:
        (bucket / name).touch()
    assert sorted(os.listdir(bucket)) == names
    listing = run_python("import os, sys; print(len(os.listdir(sys.argv[1])))", bucket)
    assert listing.stdout.strip() == "2500"


def test_listing_while_removing_visits_everything(bucket: Path) -> None:
    for number in range(1500):
        (bucket / f"{number:04d}").touch()
    with os.scandir(bucket) as rows:
        for row in rows:
            os.unlink(row.path)
    assert os.listdir(bucket) == []


def test_directories_are_made_removed_and_refused_when_not_empty(bucket: Path) -> None:
    inner = bucket / "a" / "b"
    inner.mkdir(parents=True, mode=0o750)
    assert stat.S_IMODE(inner.stat().st_mode) == 0o750
    with pytest.raises(FileExistsError):
        inner.mkdir()
    with pytest.raises(OSError, match=r"Errno") as caught:
        (bucket / "a").rmdir()
    assert caught.value.errno == errno.ENOTEMPTY
    inner.rmdir()
    (bucket / "a").rmdir()
    assert os.listdir(bucket) == []


def test_a_full_directory_is_renamed_with_all_it_holds(bucket: Path) -> None:
    (bucket / "old" / "deep").mkdir(parents=True)
    (bucket / "old" / "deep" / "f").write_bytes(b"moved")
    with (bucket / "old" / "deep" / "g").open("wb") as unclosed:
        unclosed.write(b"late")
        (bucket / "old").rename(bucket / "new")
    assert (bucket / "new" / "deep" / "f").read_bytes() == b"moved"
    assert (bucket / "new" / "deep" / "g").read_bytes() == b"late"
    assert not (bucket / "old").exists()


def test_rename_replaces_unless_told_not_to(bucket: Path) -> None:
    (bucket / "a").write_bytes(b"a")
    (bucket / "b").write_bytes(b"b")
    with pytest.raises(FileExistsError):
        rename_with_flags(bucket / "a", bucket / "b", NOREPLACE)
    rename_with_flags(bucket / "a", bucket / "b", EXCHANGE)
    assert (bucket / "a").read_bytes() == b"b"
    assert (bucket / "b").read_bytes() == b"a"
    (bucket / "a").replace(bucket / "b")
    assert (bucket / "b").read_bytes() == b"b"
    assert os.listdir(bucket) == ["b"]


def test_renaming_over_an_open_file_leaves_its_reader_the_old_bytes(bucket: Path) -> None:
    (bucket / "f").write_bytes(b"old")
    (bucket / "f.tmp").write_bytes(b"new")
    with (bucket / "f").open("rb") as reader:
        (bucket / "f.tmp").rename(bucket / "f")
        assert reader.read() == b"old"
    assert (bucket / "f").read_bytes() == b"new"


def test_hard_links_share_an_inode_and_count_it(bucket: Path) -> None:
    first, second = bucket / "first", bucket / "second"
    first.write_bytes(b"shared")
    os.link(first, second)
    wait_until(lambda: first.stat().st_nlink == 2)
    assert first.stat().st_ino == second.stat().st_ino
    first.unlink()
    assert second.read_bytes() == b"shared"
    wait_until(lambda: second.stat().st_nlink == 1)


def test_symlinks_point_where_they_were_told(bucket: Path) -> None:
    (bucket / "target").write_bytes(b"t")
    (bucket / "link").symlink_to("target")
    assert os.readlink(bucket / "link") == "target"
    assert (bucket / "link").read_bytes() == b"t"
    assert (bucket / "link").is_symlink()
    (bucket / "link").unlink()
    assert (bucket / "target").exists()


def test_names_up_to_255_bytes_work_and_longer_ones_are_refused(bucket: Path) -> None:
    longest = bucket / ("n" * 255)
    longest.write_bytes(b"x")
    assert os.listdir(bucket) == ["n" * 255]
    with pytest.raises(OSError, match=r"Errno") as caught:
        (bucket / ("n" * 256)).write_bytes(b"x")
    assert caught.value.errno == errno.ENAMETOOLONG


def test_any_byte_but_slash_and_nul_may_be_in_a_name(bucket: Path) -> None:
    name = bytes(set(range(1, 256)) - {ord("/")})
    path = os.path.join(os.fsencode(bucket), name)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    assert os.listdir(os.fsencode(bucket)) == [name]
    os.unlink(path)


def test_files_directly_in_the_root_are_files_too(mounted: Mounted) -> None:
    path = mounted.root / "config.json"
    path.write_bytes(b"{}")
    assert path.read_bytes() == b"{}"
    path.unlink()
    assert not path.exists()


def test_renaming_into_another_first_directory_is_a_copy_for_mv(
    mounted: Mounted, bucket: Path
) -> None:
    other = mounted.root / f"{bucket.name}-other"
    other.mkdir()
    (bucket / "f").write_bytes(b"f")
    with pytest.raises(OSError, match=r"Errno") as caught:
        (bucket / "f").rename(other / "f")
    assert caught.value.errno == errno.EXDEV


def test_mode_owner_and_times_are_kept(bucket: Path) -> None:
    path = bucket / "f"
    path.write_bytes(b"x")
    path.chmod(0o640)
    os.chown(path, 1234, 2345)
    os.utime(path, ns=(10**18, 1_500_000_000_123_456_789))
    found = path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert (found.st_uid, found.st_gid) == (1234, 2345)
    assert found.st_mtime_ns == 1_500_000_000_123_456_789


def test_attributes_set_before_the_first_close_are_published_with_the_file(bucket: Path) -> None:
    path = bucket / "f"
    with path.open("wb") as file:
        file.write(b"x")
        file.flush()
        os.fchmod(file.fileno(), 0o600)
        os.setxattr(file.fileno(), "user.model", b"llama")
        os.utime(file.fileno(), ns=(10**18, 10**18))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.getxattr(path, "user.model") == b"llama"
    assert path.stat().st_mtime_ns == 10**18


def test_extended_attributes_are_set_listed_replaced_and_removed(bucket: Path) -> None:
    path = bucket / "f"
    path.write_bytes(b"x")
    os.setxattr(path, "user.a", b"\0binary\xff")
    os.setxattr(path, "user.b", b"", os.XATTR_CREATE)
    assert os.listxattr(path) == ["user.a", "user.b"]
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.a", b"again", os.XATTR_CREATE)
    with pytest.raises(OSError, match=r"Errno") as caught:
        os.setxattr(path, "user.c", b"none", os.XATTR_REPLACE)
    assert caught.value.errno == errno.ENODATA
    os.removexattr(path, "user.a")
    assert os.listxattr(path) == ["user.b"]
    with pytest.raises(OSError, match=r"Errno") as caught:
        os.getxattr(path, "user.a")
    assert caught.value.errno == errno.ENODATA


def test_lifetime_and_pin_are_set_through_attributes(bucket: Path) -> None:
    path = bucket / "f"
    path.write_bytes(b"x")
    os.setxattr(path, "user.kvfs.ttl", b"15m")
    os.setxattr(path, "user.kvfs.pin", b"hard")
    os.setxattr(path, "user.kvfs.ttl_class", b"7")
    assert os.getxattr(path, "user.kvfs.ttl_class") == b"7"
    assert os.getxattr(path, "user.kvfs.ttl") == b"900"
    assert os.getxattr(path, "user.kvfs.pin") == b"hard"
    assert int(os.getxattr(path, "user.kvfs.expires_at")) > 900
    assert len(os.getxattr(path, "user.kvfs.digest")) == 64
    with pytest.raises(PermissionError):
        os.setxattr(path, "user.kvfs.digest", b"00")
    with pytest.raises(OSError, match=r"Errno") as caught:
        os.setxattr(path, "user.kvfs.ttl", b"soon")
    assert caught.value.errno == errno.EINVAL


def test_statvfs_tells_true_space_in_sectors_of_4096_bytes(mounted: Mounted, bucket: Path) -> None:
    before = os.statvfs(mounted.root)
    assert before.f_bsize == before.f_frsize == 4096
    assert before.f_namemax == 255
    (bucket / "f").write_bytes(os.urandom(96 << 20))
    after = os.statvfs(mounted.root)
    assert before.f_blocks == after.f_blocks
    # What this process holds reserved in advance (1 % of 2 GiB) was not free before either.
    assert before.f_bfree - after.f_bfree >= (64 << 20) // 4096


def test_a_name_that_another_door_makes_and_removes_is_seen(mounted: Mounted, bucket: Path) -> None:
    path = bucket / "from" / "elsewhere"
    assert not path.exists()
    with open_store(mounted.store) as store:
        place = ObjectPath(os.fsencode(bucket.name), b"from/elsewhere")
        store.put(place, b"bytes")
        assert path.read_bytes() == b"bytes"
        store.put(place, b"other bytes")
        wait_until(lambda: path.read_bytes() == b"other bytes", seconds=2)
        store.delete(place)
        wait_until(lambda: not path.exists(), seconds=2)


def test_absence_is_never_believed_for_longer_than_it_lasts(mounted: Mounted, bucket: Path) -> None:
    with open_store(mounted.store) as store:
        for number in range(20):
            path = bucket / f"block-{number}"
            for _ in range(3):
                assert not path.exists()
                with pytest.raises(FileNotFoundError):
                    os.close(os.open(path, os.O_RDONLY))
            store.put(ObjectPath(os.fsencode(bucket.name), os.fsencode(path.name)), b"there")
            assert path.read_bytes() == b"there"  # at once, not within a second


def test_what_the_mount_writes_is_the_object_of_that_key(mounted: Mounted, bucket: Path) -> None:
    (bucket / "dir").mkdir()
    (bucket / "dir" / "f").write_bytes(b"both doors")
    with open_store(mounted.store, read_only=True) as store:
        assert store.get(ObjectPath(os.fsencode(bucket.name), b"dir/f")) == b"both doors"


def test_devices_and_pipes_are_refused(bucket: Path) -> None:
    with pytest.raises(PermissionError):
        os.mkfifo(bucket / "pipe")
    os.mknod(bucket / "plain")
    assert (bucket / "plain").stat().st_size == 0


def test_a_bucket_is_told_by_attributes_to_compress_and_to_verify(
    mounted: Mounted, bucket: Path
) -> None:
    compress, verify = "user.kvfs.compress", "user.kvfs.verify"
    assert (os.getxattr(bucket, compress), os.getxattr(bucket, verify)) == (b"idle", b"trust")
    os.setxattr(bucket, compress, b"inline")
    os.setxattr(bucket, verify, b"always")
    (bucket / "small").write_bytes(bytes(1 << 20))
    assert (bucket / "small").stat().st_blocks * 512 < 1 << 19
    with open_store(mounted.store, read_only=True) as store:
        namespace = store.find_namespace(os.fsencode(bucket.name))
    assert namespace is not None
    assert namespace.attributes == {compress: b"inline", verify: b"always"}
    assert os.getxattr(bucket, verify) == b"always"
    assert os.listxattr(bucket) == [], "a copy with all attributes goes anywhere"
    os.removexattr(bucket, compress)
    assert os.getxattr(bucket, compress) == b"idle"
    (bucket / "large").write_bytes(bytes(1 << 20) + b"other")
    assert (bucket / "large").stat().st_blocks * 512 >= 1 << 20


def test_what_is_told_to_a_bucket_is_refused_anywhere_else(mounted: Mounted, bucket: Path) -> None:
    (bucket / "sub").mkdir()
    (bucket / "f").write_bytes(b"x")
    for name, value in (("user.kvfs.compress", b"inline"), ("user.kvfs.verify", b"always")):
        with pytest.raises(OSError, match="Invalid argument"):
            os.setxattr(bucket, name, b"perhaps")
        for path in (bucket / "sub", bucket / "f", mounted.root):
            with pytest.raises(OSError, match="Invalid argument"):
                os.setxattr(path, name, value)
            with pytest.raises(OSError, match="Invalid argument"):
                os.removexattr(path, name)
            with pytest.raises(OSError, match="No data"):
                os.getxattr(path, name)
        with (bucket / "new").open("wb") as file, pytest.raises(OSError, match="Invalid argument"):
            os.setxattr(file.fileno(), name, value)
