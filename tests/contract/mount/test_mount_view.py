"""`.kvfs`: blocks by their digest, status and metrics; read-only, and in nobody's way."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from tests.mount_fixture import Mounted

pytestmark = pytest.mark.fuse


def test_a_block_is_read_by_its_digest(mounted: Mounted, bucket: Path) -> None:
    (bucket / "f").write_bytes(b"by content" * 1000)
    digest = os.getxattr(bucket / "f", "user.kvfs.digest").decode()
    shelf = mounted.root / ".kvfs" / "blocks" / digest[:2]
    assert digest in os.listdir(shelf)
    assert (shelf / digest).stat().st_size == 10_000
    assert (shelf / digest).read_bytes() == b"by content" * 1000


def test_what_is_no_digest_of_a_block_is_absent(mounted: Mounted) -> None:
    blocks = mounted.root / ".kvfs" / "blocks"
    assert not (blocks / "00" / ("00" * 32)).exists()
    assert not (blocks / "zz").exists()
    assert not (blocks / "00" / "short").exists()
    assert len(os.listdir(blocks)) == 256


def test_status_and_metrics_tell_the_same_usage(mounted: Mounted, bucket: Path) -> None:
    (bucket / "f").write_bytes(b"x")
    status = json.loads((mounted.root / ".kvfs" / "status.json").read_text())
    lines = (mounted.root / ".kvfs" / "metrics").read_text().splitlines()
    metrics = dict(line.split(" ") for line in lines)
    assert int(metrics["kvfs_store_capacity_bytes"]) == status["capacity_bytes"] > 0
    assert status["object_count"] >= 1
    assert int(metrics["kvfs_mount_inodes"]) >= 1


def test_lookups_of_names_count_and_those_on_the_way_to_a_new_name_do_not(
    mounted: Mounted, bucket: Path
) -> None:
    def counts() -> tuple[int, int, int]:
        status = json.loads((mounted.root / ".kvfs" / "status.json").read_text())
        return status["hits_total"], status["misses_total"], status["opens_total"]

    hits, misses, opens = counts()
    (bucket / "made.tmp").write_bytes(b"x" * 100)
    (bucket / "made.tmp").rename(bucket / "made")
    (bucket / "folder").mkdir()
    (bucket / "to").symlink_to("made")
    assert counts()[1] == misses
    for _ in range(3):
        assert not (bucket / "absent").exists()
    assert counts()[1] == misses + 3
    assert (bucket / "made").read_bytes() == b"x" * 100
    assert counts()[0] >= hits
    assert counts()[2] == opens + 1


def test_the_view_is_not_listed_in_the_root(mounted: Mounted) -> None:
    assert ".kvfs" not in os.listdir(mounted.root)
    assert sorted(os.listdir(mounted.root / ".kvfs")) == ["blocks", "metrics", "status.json"]


def test_nothing_in_the_view_can_be_changed(mounted: Mounted, bucket: Path) -> None:
    (bucket / "f").write_bytes(b"sealed")
    digest = os.getxattr(bucket / "f", "user.kvfs.digest").decode()
    block = mounted.root / ".kvfs" / "blocks" / digest[:2] / digest
    for change in (
        lambda: block.write_bytes(b"forged"),
        lambda: block.open("r+b").close(),
        lambda: block.with_name("new").write_bytes(b""),
        lambda: block.chmod(0o666),
        block.unlink,
        lambda: (mounted.root / ".kvfs" / "dir").mkdir(),
        lambda: (mounted.root / ".kvfs").rmdir(),
        lambda: (mounted.root / ".kvfs").rename(mounted.root / "elsewhere"),
    ):
        with pytest.raises(OSError, match=r"Errno") as caught:
            change()
        assert caught.value.errno in (errno.EROFS, errno.ENOENT, errno.EXDEV)
    assert block.read_bytes() == b"sealed"
