"""The daemon's life: coming up, being told to go, dying, and what the next mount finds."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvfs import errors
from kvfs.filesystem import mount_points
from kvfs.filesystem.mount import mount_store, unmount
from kvfs.filesystem.running_mark import served_mounts
from kvfs.open_store import init_store
from kvfs_tools.cli import run
from tests.mount_fixture import (
    CAPACITY,
    Mounted,
    end_mount,
    end_process,
    mounted_store,
    start_python,
    transports,
    wait_until,
)

pytestmark = pytest.mark.fuse


@pytest.fixture(params=transports())
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_it_serves_when_mount_returns_and_is_gone_when_umount_returns(transport: str) -> None:
    with mounted_store(transport) as mounted:
        pid = mounted.daemon_pid()
        (mounted.root / "b").mkdir()
        (mounted.root / "b" / "f").write_bytes(b"kept")
        unmount(mounted.root)
        wait_until(lambda: is_gone(pid))
        assert mount_points.find_mount(str(mounted.root)) is None
        mount_store(mounted.store, mounted.root, transport=transport)
        assert (mounted.root / "b" / "f").read_bytes() == b"kept"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_cleanly(transport: str, number: signal.Signals) -> None:
    with mounted_store(transport) as mounted:
        pid = mounted.daemon_pid()
        os.kill(pid, number)
        wait_until(lambda: is_gone(pid))
        assert mount_points.find_mount(str(mounted.root)) is None
        assert os.listdir(mounted.root) == []
        assert "Traceback" not in mounted.log()


def test_an_open_file_is_published_although_the_daemon_was_told_to_go(transport: str) -> None:
    with mounted_store(transport) as mounted:
        pid = mounted.daemon_pid()
        (mounted.root / "b").mkdir()
        with (mounted.root / "b" / "f").open("wb", buffering=0) as file:
            file.write(b"first ")
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: mount_points.find_mount(str(mounted.root)) is None)
            file.write(b"second")
        wait_until(lambda: is_gone(pid))
        mount_store(mounted.store, mounted.root, transport=transport)
        assert (mounted.root / "b" / "f").read_bytes() == b"first second"


def test_after_kill_9_the_next_mount_recovers_and_nothing_half_written_appears(
    transport: str,
) -> None:
    with mounted_store(transport) as mounted:
        bucket = mounted.root / "b"
        bucket.mkdir()
        (bucket / "whole").write_bytes(b"w" * 100_000)
        unclosed = (bucket / "half").open("wb", buffering=0)
        unclosed.write(b"h" * 100_000)
        pid = mounted.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: is_gone(pid))
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            os.stat(bucket)
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            unclosed.close()
        mount_store(mounted.store, mounted.root, transport=transport)
        assert os.listdir(bucket) == ["whole"]
        assert (bucket / "whole").read_bytes() == b"w" * 100_000


def test_status_and_log_say_which_transport_serves(
    transport: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with mounted_store(transport) as mounted:
        assert served_mounts(mounted.store) == {str(mounted.root): transport}
        assert run(["status", "--store", str(mounted.store)]) == 0
        assert f"mounts   {mounted.root} ({transport})" in capsys.readouterr().out.splitlines()
        assert f"transport={transport}" in mounted.log()
        os.kill(mounted.daemon_pid(), signal.SIGKILL)
        wait_until(lambda: served_mounts(mounted.store) == {str(mounted.root): "dead"})
        unmount(mounted.root)
        assert run(["status", "--store", str(mounted.store), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["mounts"] == {}


def test_auto_takes_the_fastest_transport_that_can_run() -> None:
    with mounted_store("auto") as mounted:
        assert served_mounts(mounted.store) == {str(mounted.root): transports()[-1]}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may set it")
def test_the_kernel_reads_ahead_in_its_largest_requests(transport: str) -> None:
    with mounted_store(transport) as mounted:
        found = mount_points.find_mount(str(mounted.root))
        assert found is not None
        read_ahead = Path(f"/sys/class/bdi/{found.device}/read_ahead_kb")
        wait_until(lambda: int(read_ahead.read_text()) == mount_points.READ_AHEAD_KB)


def test_umount_removes_a_dead_mount(transport: str) -> None:
    with mounted_store(transport) as mounted:
        pid = mounted.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: is_gone(pid))
        unmount(mounted.root)
        assert mount_points.find_mount(str(mounted.root)) is None


def test_umount_of_a_mount_in_use_says_so_and_leaves_it(transport: str) -> None:
    with mounted_store(transport) as mounted:
        (mounted.root / "b").mkdir()
        (mounted.root / "b" / "f").write_bytes(b"x")
        with (mounted.root / "b" / "f").open("rb") as file:
            with pytest.raises(errors.Unavailable, match="in use"):
                unmount(mounted.root)
            assert file.read() == b"x"


def test_two_mounts_of_one_store_show_the_same(transport: str) -> None:
    with mounted_store(transport) as first:
        second = first.root.with_name("second")
        second.mkdir()
        mount_store(first.store, second, transport=transport)
        try:
            (first.root / "b").mkdir()
            (first.root / "b" / "f").write_bytes(b"one")
            assert (second / "b" / "f").read_bytes() == b"one"
            (second / "b" / "f").write_bytes(b"other")
            wait_until(lambda: (first.root / "b" / "f").read_bytes() == b"other", seconds=2)
            (second / "b" / "f").unlink()
            wait_until(lambda: not (first.root / "b" / "f").exists(), seconds=2)
        finally:
            end_mount(second)


def test_a_read_only_mount_reads_and_refuses_every_change(transport: str) -> None:
    with mounted_store(transport) as mounted:
        (mounted.root / "b").mkdir()
        (mounted.root / "b" / "f").write_bytes(b"x")
        unmount(mounted.root)
        mount_store(mounted.store, mounted.root, transport=transport, read_only=True)
        path = mounted.root / "b" / "f"
        assert path.read_bytes() == b"x"
        for change in (
            lambda: path.write_bytes(b"y"),
            path.unlink,
            lambda: path.rename(path.with_name("g")),
            lambda: (mounted.root / "c").mkdir(),
            lambda: os.setxattr(path, "user.a", b""),
            lambda: os.truncate(path, 0),
        ):
            with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
                change()


def test_a_killed_client_leaves_the_daemon_serving(transport: str) -> None:
    with mounted_store(transport) as mounted:
        bucket = mounted.root / "b"
        bucket.mkdir()
        code = """
import sys
value = bytes(4 << 20)
print("go", flush=True)
number = 0
while True:
    open(f"{sys.argv[1]}/{number % 50}", "wb").write(value)
    number += 1
"""
        clients = [start_python(code, bucket) for _ in range(3)]
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()
        wait_until(lambda: len(os.listdir(bucket)) > 3)
        for client in clients:
            end_process(client)
        assert all(path.stat().st_size == 4 << 20 for path in bucket.iterdir())
        (bucket / "after").write_bytes(b"fine")
        assert (bucket / "after").read_bytes() == b"fine"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    init_store(path, capacity_bytes=CAPACITY)
    return path


def test_a_missing_mount_point_is_named_with_the_remedy(tmp_path: Path, store: Path) -> None:
    with pytest.raises(errors.NotFound, match="mkdir -p"):
        mount_store(store, tmp_path / "nowhere")


def test_a_mount_point_that_is_a_file_is_refused(tmp_path: Path, store: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.NotADirectory, match="empty directory"):
        mount_store(store, tmp_path / "file")


def test_a_mount_point_with_something_in_it_is_refused(tmp_path: Path, store: Path) -> None:
    (tmp_path / "full" / "thing").mkdir(parents=True)
    with pytest.raises(errors.AlreadyExists, match="not empty"):
        mount_store(store, tmp_path / "full")


def test_mounting_twice_is_refused_with_the_remedy(transport: str) -> None:
    with (
        mounted_store(transport) as mounted,
        pytest.raises(errors.AlreadyExists, match="kvfs umount"),
    ):
        mount_store(mounted.store, mounted.root)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "plain").mkdir()
    with pytest.raises(errors.NotAStore):
        mount_store(tmp_path / "plain", tmp_path / "mnt")


def test_umount_of_what_is_not_mounted_says_so(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match="not a kvfs mount"):
        unmount(tmp_path)


def test_an_unknown_transport_is_refused(tmp_path: Path, store: Path) -> None:
    with pytest.raises(errors.InvalidArgument, match="auto, kernel, pyfuse3"):
        mount_store(store, tmp_path, transport="pigeon")


def test_in_the_foreground_it_serves_until_it_is_unmounted(tmp_path: Path, store: Path) -> None:
    root = tmp_path / "mnt"
    root.mkdir()
    arguments = [sys.executable, "-m", "kvfs.filesystem.mount", "mount", store, root]
    daemon = subprocess.Popen([*arguments, "--foreground"], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: mount_points.find_mount(str(root)) is not None)
        (root / "b").mkdir()
        unmount(root)
        assert daemon.wait(timeout=30) == 0
    finally:
        end_process(daemon)
        end_mount(root)


def test_mountinfo_with_spaces_and_dead_lines_is_read() -> None:
    text = (
        "36 35 98:0 / /mnt/with\\040space rw,noatime master:1 - fuse.kvfs /the\\040store rw\n"
        "garbage\n"
        "37 35 98:1 / / rw - ext4 /dev/root rw\n"
    )
    first, second = mount_points.read_mounts(text)
    assert first.mountpoint == "/mnt/with space"
    assert (first.filesystem, first.source, first.device) == ("fuse.kvfs", "/the store", "98:0")
    assert second.mountpoint == "/"


def test_a_mounted_file_system_is_known_by_its_store() -> None:
    with mounted_store(transports()[0]) as mounted:
        found = mount_points.find_mount(str(mounted.root))
        assert found is not None
        assert (found.filesystem, found.source) == ("fuse.kvfs", str(mounted.store))
        assert isinstance(mounted, Mounted)
