"""Who may mount and who may look: other users, no privileges, no device; refusals are sentences.

Every test runs a process of its own in a mount namespace of its own, so that neither /dev nor the
mounts of this machine change.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs.filesystem.mount import mount_store
from kvfs.open_store import init_store
from tests.mount_fixture import CAPACITY, end_mount, missing_program, transports

pytestmark = [
    pytest.mark.fuse,
    missing_program("setpriv"),
    missing_program("unshare"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
APART = ["unshare", "--mount", "--propagation=private"]
REPOSITORY = Path(__file__).resolve().parents[3]
MOUNT = """
import sys
from kvfs import errors
from kvfs.filesystem.mount import mount_store, unmount
try:
    mount_store(sys.argv[1], sys.argv[2], transport=sys.argv[3])
except errors.KvfsError as error:
    print(f"{type(error).__name__}: {error.message}")
    raise SystemExit
from pathlib import Path
try:
    folder = Path(sys.argv[2]) / "b"
    folder.mkdir()
    (folder / "f").write_bytes(b"by nobody")
    assert list((Path(sys.argv[2]) / ".kvfs").iterdir())
    assert (folder / "f").read_bytes() == b"by nobody"
    print("served", (folder / "f").stat().st_uid)
finally:
    unmount(sys.argv[2])
"""


def python_for_everyone() -> tuple[str, dict[str, str]]:
    """A Python that any user may run, and the environment in which it finds kvfs."""
    own = Path(sys.executable).resolve()
    is_open = all(parent.stat().st_mode & stat.S_IXOTH for parent in [own, *own.parents])
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    chosen = str(own) if is_open else shutil.which(version, path="/usr/bin")
    if chosen is None:
        pytest.skip(f"{own} is closed to other users, and there is no /usr/bin/{version}")
    paths = f"{REPOSITORY}{os.pathsep}{sysconfig.get_path('purelib')}"
    return chosen, {"PYTHONPATH": paths, "PATH": os.environ["PATH"], "HOME": "/"}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A directory that nobody owns and can reach, with a store and a mount point."""
    path = Path("/tmp") / f"kvfs-users-{os.getpid()}"
    path.mkdir(mode=0o755)
    try:
        init_store(path / "store", capacity_bytes=CAPACITY)
        (path / "mnt").mkdir()
        for each in [path, *path.rglob("*")]:
            os.chown(each, NOBODY, NOBODY)
        yield path
    finally:
        shutil.rmtree(path)


def run_apart(folder: Path, before: str, user: list[str], transport: str) -> str:
    """Mount in a namespace of its own after the shell commands `before`; return what was said."""
    python, environment = python_for_everyone()
    command = [*user, python, "-c", MOUNT, str(folder / "store"), str(folder / "mnt"), transport]
    done = subprocess.run(
        [*APART, "sh", "-ec", f'{before}\nexec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def device(mode: str) -> str:
    """Shell commands that put a /dev/fuse of its own with this mode over the machine's."""
    place = "/dev/shm/kvfs-fuse-$$"
    return (
        f"mknod {place} c 10 229; chmod {mode} {place}; mount --bind {place} /dev/fuse; rm {place}"
    )


@missing_program("fusermount3")
@pytest.mark.parametrize("transport", ["auto", "pyfuse3"])
def test_a_user_without_privileges_mounts_through_fusermount3(folder: Path, transport: str) -> None:
    assert run_apart(folder, device("666"), AS_NOBODY, transport) == f"served {NOBODY}"


def test_the_kernel_transport_is_refused_to_a_user_with_the_remedy(folder: Path) -> None:
    said = run_apart(folder, device("666"), AS_NOBODY, "kernel")
    assert said == "Denied: the kernel transport needs root: use --transport pyfuse3"


def test_a_device_closed_to_the_user_is_named_with_the_remedy(folder: Path) -> None:
    said = run_apart(folder, device("600"), AS_NOBODY, "auto")
    assert said == "Denied: /dev/fuse is not accessible for this user: run as root"


def test_a_missing_device_is_named_with_the_remedy(folder: Path) -> None:
    said = run_apart(folder, "mount -t tmpfs none /dev", [], "auto")
    assert said.startswith("Denied: /dev/fuse is missing: load the module with: modprobe fuse")
    assert "--device /dev/fuse" in said


def test_root_without_the_capability_is_told_what_to_do(folder: Path) -> None:
    for each in [folder, *folder.rglob("*")]:
        os.chown(each, 0, 0)
    weak = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    said = run_apart(folder, device("666"), weak, "kernel")
    assert said.startswith("Denied: the kernel refuses to mount on")
    assert "--transport pyfuse3" in said
    assert run_apart(folder, device("666"), weak, "auto").startswith("Denied: libfuse could not")


def test_a_mount_point_of_another_user_is_refused_with_the_remedy(folder: Path) -> None:
    os.chown(folder / "mnt", 0, 0)
    said = run_apart(folder, device("666"), AS_NOBODY, "auto")
    assert said.startswith("Denied: libfuse could not mount")
    os.chmod(folder / "mnt", 0o700)
    said = run_apart(folder, device("666"), AS_NOBODY, "auto")
    assert "is not accessible for this user: choose a directory you own" in said


@pytest.mark.parametrize("transport", transports())
def test_other_users_are_kept_out_unless_allow_other_lets_them_in(
    folder: Path, transport: str
) -> None:
    root = folder / "mnt"

    def as_nobody(script: str) -> str:
        done = subprocess.run(
            [*AS_NOBODY, "sh", "-c", script], capture_output=True, text=True, check=False, cwd=root
        )
        return (done.stdout + done.stderr).strip()

    def mount(*, allow_other: bool) -> None:
        mount_store(folder / "store", root, transport=transport, allow_other=allow_other)

    mount(allow_other=False)
    try:
        (root / "b").mkdir(mode=0o777)
        (root / "b").chmod(0o777)
        (root / "b" / "closed").write_bytes(b"root's own")
        (root / "b" / "closed").chmod(0o600)
        refused = subprocess.run(
            [*AS_NOBODY, "ls", root], capture_output=True, text=True, check=False, cwd="/"
        )
        assert "Permission denied" in refused.stderr
    finally:
        end_mount(root)
    mount(allow_other=True)
    try:
        assert as_nobody("echo mine > b/f && cat b/f") == "mine"
        assert (root / "b" / "f").stat().st_uid == NOBODY
        assert "Permission denied" in as_nobody("cat b/closed")
        assert "Permission denied" in as_nobody("ls .kvfs")
        assert "Operation not permitted" in as_nobody("chown 0 b/f")
        assert as_nobody("cat b/f > b/g; rm b/f; ls b") == "closed\ng"
    finally:
        end_mount(root)
