"""When a file becomes visible through the mount, to whom, and with which bytes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount_fixture import (
    Mounted,
    end_process,
    run_python,
    start_python,
    wait_until,
)

pytestmark = pytest.mark.fuse

MIB = 1 << 20
HOLD_OPEN = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
os.write(fd, b"x" * 100_000)
print("written", flush=True)
sys.stdin.readline()
"""


def seen_by_another(path: Path) -> str:
    """What a different process sees under `path`: absent, or its size."""
    code = """
import os, sys
path = sys.argv[1]
listed = os.path.basename(path) in os.listdir(os.path.dirname(path))
try:
    size = os.stat(path).st_size
    with open(path, "rb") as file: assert len(file.read()) == size
    print(f"{size} {listed}")
except FileNotFoundError:
    print(f"absent {listed}")
"""
    return run_python(code, path).stdout.strip()


def test_a_file_is_invisible_to_other_processes_until_it_is_closed(bucket: Path) -> None:
    path = bucket / "block"
    with path.open("wb", buffering=0) as file:
        file.write(b"a" * 5000)
        assert seen_by_another(path) == "absent False"
    assert seen_by_another(path) == "5000 True"


def test_a_file_is_invisible_to_other_threads_until_it_is_closed(bucket: Path) -> None:
    path = bucket / "block"
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        file.write(b"a")
        assert pool.submit(path.exists).result() is False
        assert path.exists()  # the writing thread sees its own
    assert path.exists()


def test_what_another_process_closed_is_seen_at_once_by_one_who_missed_it(bucket: Path) -> None:
    path = bucket / "late"
    assert not path.exists()
    run_python("import sys; open(sys.argv[1], 'wb').write(b'there')", path)
    assert path.read_bytes() == b"there"


def test_a_killed_writer_leaves_nothing(bucket: Path) -> None:
    path = bucket / "torn"
    writer = start_python(HOLD_OPEN, path)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "written\n"
    end_process(writer, signal.SIGKILL)
    assert seen_by_another(path) == "absent False"


def test_a_killed_overwriter_leaves_the_old_bytes(bucket: Path) -> None:
    path = bucket / "kept"
    path.write_bytes(b"old")
    writer = start_python(HOLD_OPEN, path)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "written\n"
    end_process(writer, signal.SIGKILL)
    assert path.read_bytes() == b"old"


def test_a_writer_that_exits_without_closing_publishes(bucket: Path) -> None:
    path = bucket / "left"
    run_python(
        "import os, sys; fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT);"
        "os.write(fd, b'whole'); os._exit(0)",
        path,
    )
    wait_until(path.exists)
    assert path.read_bytes() == b"whole"


def test_a_forked_child_closing_its_copy_publishes_nothing(bucket: Path) -> None:
    path = bucket / "parent"
    code = """
import os, sys
path = sys.argv[1]
fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
os.write(fd, b"first ")
child = os.fork()
if child == 0:
    os.close(fd)
    os._exit(0)
os.waitpid(child, 0)
import subprocess
subprocess.run(["true"], pass_fds=[fd])
print(subprocess.run(["test", "-e", path]).returncode)
os.write(fd, b"second")
os.close(fd)
print(subprocess.run(["test", "-e", path]).returncode)
"""
    assert run_python(code, path).stdout.split() == ["1", "0"]
    assert path.read_bytes() == b"first second"


def test_a_child_that_writes_after_its_parent_closed_is_published_whole(bucket: Path) -> None:
    path = bucket / "inherited"
    code = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o644)
os.write(fd, b"parent ")
read_end, write_end = os.pipe()
child = os.fork()
if child == 0:
    os.close(write_end)
    os.read(read_end, 1)
    os.write(fd, b"child")
    os._exit(0)
os.close(fd)
os.close(write_end)
os.waitpid(child, 0)
"""
    run_python(code, path)
    wait_until(lambda: path.exists() and path.stat().st_size == 12)
    assert path.read_bytes() == b"parent child"


@pytest.mark.parametrize(
    ("command", "content"),
    [
        ("echo one > {f}", b"one\n"),
        ("(echo one; echo two) > {f}", b"one\ntwo\n"),
        ("echo one > {f}; echo two >> {f}", b"one\ntwo\n"),
        ("printf abc | dd of={f} bs=1 2>/dev/null", b"abc"),
        ("exec 3> {f}; echo one >&3; cat /dev/null; echo two >&3; exec 3>&-", b"one\ntwo\n"),
        ("touch {f}", b""),
        (": > {f}", b""),
        ("echo one | tee {f} >/dev/null", b"one\n"),
        ("echo one > /dev/null; sh -c 'echo err >&2; echo out' > {f} 2>&1", b"err\nout\n"),
    ],
)
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_shell_redirections_publish_their_whole_output(
    bucket: Path, shell: str, command: str, content: bytes
) -> None:
    path = bucket / "out"
    subprocess.run([shell, "-c", command.format(f=path)], check=True, timeout=30)
    wait_until(path.exists)
    assert path.read_bytes() == content


def test_output_of_a_running_command_is_not_visible_before_it_ends(bucket: Path) -> None:
    path = bucket / "out"
    shell = subprocess.Popen(
        ["sh", "-c", f"(echo one; read line; echo two) > {path}"], stdin=subprocess.PIPE
    )
    assert shell.stdin is not None
    assert seen_by_another(path) == "absent False"
    shell.stdin.write(b"\n")
    shell.stdin.close()
    assert shell.wait(timeout=30) == 0
    wait_until(path.exists)
    assert path.read_bytes() == b"one\ntwo\n"


def test_bytes_written_through_a_duplicate_after_the_first_close_are_there(bucket: Path) -> None:
    path = bucket / "dup"
    first = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(first, b"one")
    second = os.dup(first)
    os.close(first)
    os.write(second, b"two")
    os.close(second)
    wait_until(lambda: path.exists() and path.stat().st_size == 6)
    assert path.read_bytes() == b"onetwo"


def test_i3_writing_after_the_first_close_changes_no_sealed_bytes(bucket: Path) -> None:
    first, twin, value = bucket / "first", bucket / "twin", b"s" * 100_000
    twin.write_bytes(b"other")
    descriptor = os.open(first, os.O_RDWR | os.O_CREAT, 0o644)
    os.write(descriptor, value)
    late = os.dup(descriptor)
    os.close(descriptor)
    wait_until(first.exists)
    twin.write_bytes(value)  # the same block, stored once
    os.pwrite(late, b"LATE", 10)
    os.close(late)
    changed = value[:10] + b"LATE" + value[14:]
    wait_until(lambda: first.exists() and first.read_bytes() == changed)
    # I1: the other name may have lost its bytes, but never shows the changed ones.
    with contextlib.suppress(FileNotFoundError):
        assert twin.read_bytes() == value


def test_a_mapping_that_outlives_its_descriptor_is_published_with_all_it_was_given(
    bucket: Path,
) -> None:
    path = bucket / "mapped"
    file = path.open("w+b")
    file.truncate(MIB)
    mapping = mmap.mmap(file.fileno(), MIB)
    mapping[:5] = b"early"
    file.close()
    wait_until(lambda: seen_by_another(path) != "absent False")
    mapping[100:104] = b"late"
    mapping.close()
    wait_until(lambda: path.read_bytes()[100:104] == b"late")
    assert path.read_bytes()[:5] == b"early"


@pytest.mark.parametrize("step", ["unlink", "rename"])
def test_a_name_that_is_gone_does_not_come_back_by_a_mapping_that_ends(
    mounted: Mounted, bucket: Path, step: str
) -> None:
    """Its end has the file sealed once more, at the very moment when the name is taken away."""
    path, moved = bucket / "mapped", bucket / "moved"
    for number in range(3):
        before = known_inodes(mounted)
        with path.open("w+b") as file:
            file.truncate(64 * MIB)  # which takes its time to hash
            mapping = mmap.mmap(file.fileno(), 64 * MIB)
        mapping[:8] = b"%08d" % number
        mapping.close()
        if step == "unlink":
            path.unlink()
            wait_until(lambda count=before: known_inodes(mounted) <= count)
            assert os.listdir(bucket) == []
        else:
            path.rename(moved)
            wait_until(lambda value=b"%08d" % number: moved.read_bytes()[:8] == value)
            assert os.listdir(bucket) == ["moved"]


def known_inodes(mounted: Mounted) -> int:
    """How many inodes the daemon keeps: one that is open, or being sealed, is among them."""
    status = json.loads((mounted.root / ".kvfs" / "status.json").read_text())
    return int(status["kvfs_mount_inodes"])


def test_overwriting_leaves_readers_their_old_bytes(bucket: Path) -> None:
    path = bucket / "block"
    path.write_bytes(b"old" * 1000)
    with path.open("rb") as reader:
        assert reader.read(3) == b"old"
        with path.open("wb") as writer:
            writer.write(b"new")
            writer.flush()
            assert (
                run_python("import sys; print(open(sys.argv[1]).read(3))", path).stdout == "old\n"
            )
        assert path.read_bytes() == b"new"
        assert reader.read() == b"old" * 999
    assert path.read_bytes() == b"new"


def test_the_writer_sees_its_own_replacement_right_after_close(bucket: Path) -> None:
    path = bucket / "block"
    for size in (10, 20, 5, 0, 7):
        path.write_bytes(b"z" * size)
        assert path.stat().st_size == size
        assert path.read_bytes() == b"z" * size


def test_two_writers_of_one_name_never_mix_their_bytes(bucket: Path) -> None:
    path = bucket / "shared"
    first, second = (os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for _ in range(2))
    os.write(first, b"a" * 1000)
    os.write(second, b"b" * 500)
    os.write(first, b"a" * 1000)
    os.close(first)
    assert path.read_bytes() == b"a" * 2000
    os.close(second)
    assert path.read_bytes() == b"b" * 500


def test_appending_keeps_what_was_there(bucket: Path) -> None:
    path = bucket / "log"
    for word in (b"one ", b"two ", b"three"):
        with path.open("ab") as file:
            file.write(word)
    assert path.read_bytes() == b"one two three"


def test_opening_for_update_without_writing_changes_nothing(bucket: Path) -> None:
    path = bucket / "block"
    path.write_bytes(b"sealed")
    before = os.getxattr(path, "user.kvfs.digest"), path.stat().st_mtime_ns
    with path.open("r+b") as file:
        assert file.read() == b"sealed"
    assert (os.getxattr(path, "user.kvfs.digest"), path.stat().st_mtime_ns) == before


def test_updating_in_place_seals_the_new_bytes_under_a_new_digest(bucket: Path) -> None:
    path = bucket / "block"
    path.write_bytes(b"0123456789")
    before = os.getxattr(path, "user.kvfs.digest")
    with path.open("rb") as reader:
        with path.open("r+b") as file:
            file.seek(3)
            file.write(b"XX")
        assert path.read_bytes() == b"012XX56789"
        assert reader.read() == b"0123456789"
    assert os.getxattr(path, "user.kvfs.digest") != before


def test_a_lock_file_is_visible_at_once_and_excludes(bucket: Path) -> None:
    path = bucket / "model.lock"
    first = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    assert seen_by_another(path) == "0 True"
    fcntl.flock(first, fcntl.LOCK_EX)
    code = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
try:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("locked")
except BlockingIOError:
    print("busy")
"""
    assert run_python(code, path).stdout == "busy\n"
    os.write(first, b"pid")
    os.close(first)
    assert run_python(code, path).stdout == "locked\n"


def test_a_second_exclusive_create_of_an_unclosed_name_fails(bucket: Path) -> None:
    path = bucket / "once"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    first = os.open(path, flags)
    with ThreadPoolExecutor(1) as pool, pytest.raises(FileExistsError):
        pool.submit(os.open, path, flags).result()
    os.close(first)
    with pytest.raises(FileExistsError):
        os.open(path, flags)


def test_renaming_ones_own_unclosed_file_publishes_it_under_the_new_name(bucket: Path) -> None:
    temporary, final = bucket / "f.tmp", bucket / "f"
    with temporary.open("wb") as file:
        file.write(b"bytes")
        temporary.rename(final)
    assert final.read_bytes() == b"bytes"
    assert not temporary.exists()


def test_removing_ones_own_unclosed_file_publishes_nothing(bucket: Path) -> None:
    path = bucket / "gone"
    with path.open("w+b") as file:
        file.write(b"scratch")
        path.unlink()
        file.seek(0)
        assert file.read() == b"scratch"
    assert os.listdir(bucket) == []


def test_a_removed_file_stays_readable_to_those_who_have_it_open(bucket: Path) -> None:
    path = bucket / "block"
    path.write_bytes(b"k" * MIB)
    with path.open("rb") as file:
        path.unlink()
        assert not path.exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == b"k" * MIB


WAYS = {
    "truncating": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "in place": os.O_WRONLY | os.O_CREAT,  # LMCache with O_DIRECT: no truncation
}


def race(bucket: Path, worker: int, rounds: int, way: str, failures: list[str]) -> None:
    """LMCache's way: everyone writes the same temporary name and renames it.

    Every open, write, close and rename succeeds; every value read is whole, one that a worker wrote
    whose rename succeeded (all do), never older than one read before, and of one's own the last.
    """
    temporary, final = bucket / "key.tmp", bucket / "key"
    seen: dict[int, int] = {}
    for turn in range(rounds):
        piece = f"{worker:03}-{turn:06};".encode()
        try:
            fd = os.open(temporary, WAYS[way], 0o644)
            os.write(fd, piece * 4000)
            os.close(fd)
            os.rename(temporary, final)
            value = final.read_bytes()
        except OSError as error:
            failures.append(f"worker {worker} turn {turn}: {error}")
            continue
        if value != value[: len(piece)] * 4000:
            failures.append(f"worker {worker} turn {turn}: a torn value")
            continue
        writer, age = int(value[:3]), int(value[4:10])
        if age < seen.get(writer, 0) or (writer == worker and age != turn):
            failures.append(f"worker {worker} turn {turn}: an old value, {writer}-{age}")
        seen[writer] = age


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_i1_racing_threads_on_one_temporary_name_all_succeed_and_every_value_is_whole(
    bucket: Path, is_soak: bool, way: str
) -> None:
    failures: list[str] = []
    rounds = 500 if is_soak else 40
    threads = [
        threading.Thread(target=race, args=(bucket, worker, rounds, way, failures))
        for worker in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, (len(failures), failures[:5])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_i1_racing_processes_on_one_temporary_name_all_succeed_and_every_value_is_whole(
    bucket: Path, is_soak: bool, way: str
) -> None:
    code = """
import sys
from pathlib import Path
from tests.contract.mount.test_mount_publishing import race
failures = []
race(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], failures)
print((len(failures), failures[:5]) if failures else "whole")
"""
    rounds = 500 if is_soak else 40
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(run_python, code, bucket, str(w), str(rounds), way) for w in range(3)]
        assert [run.result().stdout.strip() for run in runs] == ["whole"] * 3


def test_a_twin_that_opened_the_others_finished_file_in_place_renames_it_too(bucket: Path) -> None:
    """Without O_TRUNC: its bytes go where the other's rename took the file, and its own finds no
    name any more. A plain directory answers ENOENT."""
    temporary, final = bucket / "key.tmp", bucket / "key"
    temporary.write_bytes(b"first")
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(os.open, temporary, os.O_WRONLY | os.O_CREAT, 0o644).result()
        temporary.rename(final)
        assert pool.submit(os.write, late, b"later").result() == 5
        pool.submit(os.close, late).result()
        pool.submit(os.rename, temporary, final).result()
    assert final.read_bytes() == b"later"
    assert os.listdir(bucket) == ["key"]


def test_a_name_that_was_moved_away_under_its_only_writer_is_absent_to_it(bucket: Path) -> None:
    """Rotation: whoever looks whether the name is still there must be told the truth."""
    path = bucket / "log"
    path.write_bytes(b"one ")
    writer = os.open(path, os.O_WRONLY | os.O_APPEND)
    run_python("import os, sys; os.rename(sys.argv[1], sys.argv[1] + '.1')", path)
    assert not path.exists()
    os.write(writer, b"two")
    os.close(writer)
    assert (bucket / "log.1").read_bytes() == b"one two"
    assert os.listdir(bucket) == ["log.1"]
