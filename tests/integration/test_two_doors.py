"""What one door does to an object, the other shows: bytes, sizes, ETags, checksums, absence."""

from __future__ import annotations

import contextlib
import email.utils
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import botocore.exceptions
import pytest

from kvfs.config import read_root_credential
from tests.engines.doors import (
    BUCKET,
    RUN_CLI,
    WAIT_SECONDS,
    Gateway,
    environment,
    free_ports,
    kvfs,
    mounted,
    running_gateway,
)

pytestmark = [pytest.mark.fuse, pytest.mark.s3]
MIB = 2**20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("doors") / "store"
    kvfs("init", str(path), "--capacity", "1G")
    kvfs("mkdir", BUCKET, "--store", str(path))
    return path


@pytest.fixture(scope="module")
def gateway(store: Path) -> Iterator[Gateway]:
    credential = read_root_credential(store, {})
    with running_gateway(store, (credential.access_key, credential.secret_key)) as running:
        yield running


@pytest.fixture(scope="module")
def mount(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not Path("/dev/fuse").exists():
        pytest.skip("this machine has no /dev/fuse")
    with mounted(store, tmp_path_factory.mktemp("doors") / "mount") as path:
        yield path / BUCKET


@pytest.mark.parametrize("length", [0, 1, 4096, MIB + 1, 9 * MIB])
def test_an_object_put_through_s3_is_that_file_in_the_mount(
    gateway: Gateway, mount: Path, length: int
) -> None:
    data = os.urandom(length)
    gateway.client().put_object(Bucket=BUCKET, Key=f"dir/s3-{length}", Body=data)
    assert (mount / f"dir/s3-{length}").read_bytes() == data
    assert f"s3-{length}" in os.listdir(mount / "dir")


@pytest.mark.parametrize("length", [0, 1, 4096, MIB + 1, 9 * MIB])
def test_a_file_written_in_the_mount_is_that_object_in_s3(
    gateway: Gateway, mount: Path, length: int
) -> None:
    data = os.urandom(length)
    (mount / f"file-{length}").write_bytes(data)
    answer = gateway.client().get_object(Bucket=BUCKET, Key=f"file-{length}")
    assert answer["Body"].read() == data
    assert answer["ContentLength"] == length


def test_a_bucket_that_compresses_inline_reads_the_same_at_both_doors(
    gateway: Gateway, mount: Path, store: Path
) -> None:
    data = b"".join(number.to_bytes(4, "little") for number in range(MIB))
    kvfs("compress", BUCKET, "--inline", "--store", str(store))
    try:
        gateway.client().put_object(Bucket=BUCKET, Key="inline-s3", Body=data)
        (mount / "inline-file").write_bytes(data)
    finally:
        kvfs("compress", BUCKET, "--idle", "--store", str(store))
    for name in ("inline-s3", "inline-file"):
        assert (mount / name).stat().st_blocks * 512 < 0.9 * len(data)
        assert (mount / name).read_bytes() == data
        answer = gateway.client().get_object(Bucket=BUCKET, Key=name, Range="bytes=999-2000999")
        assert answer["Body"].read() == data[999:2001000]
        with (mount / name).open("rb") as file:
            file.seek(MIB - 7)
            assert file.read(50) == data[MIB - 7 : MIB + 43]


def test_an_overwrite_through_the_mount_leaves_no_checksum_of_the_old_bytes(
    gateway: Gateway, mount: Path
) -> None:
    client = gateway.client()
    for algorithm in ("CRC32", "SHA256"):
        old, new = os.urandom(MIB), os.urandom(MIB)
        client.put_object(Bucket=BUCKET, Key="again", Body=old, ChecksumAlgorithm=algorithm)
        etag = client.head_object(Bucket=BUCKET, Key="again")["ETag"]
        (mount / "again").write_bytes(new)
        answer = client.get_object(Bucket=BUCKET, Key="again", ChecksumMode="ENABLED")
        assert answer["Body"].read() == new
        assert answer["ETag"] != etag


def _write_whole(path: Path) -> None:
    path.write_bytes(b"new")


def _change_a_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"!")


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"!")


def _shorten(path: Path) -> None:
    os.truncate(path, 5 * MIB)


@pytest.mark.parametrize("change", [_write_whole, _change_a_byte, _append, _shorten])
def test_a_change_through_the_mount_drops_what_vouched_for_the_parts(
    gateway: Gateway, mount: Path, change: Callable[[Path], None]
) -> None:
    client = gateway.client()
    place = {"Bucket": BUCKET, "Key": f"parts{change.__name__}"}
    begun = client.create_multipart_upload(
        **place, ChecksumAlgorithm="CRC32C", ContentType="text/x-kv", Metadata={"kept": "yes"}
    )
    parts = []
    for number, size in ((1, 5 * MIB), (2, MIB)):
        answer = client.upload_part(
            **place,
            UploadId=begun["UploadId"],
            PartNumber=number,
            Body=os.urandom(size),
            ChecksumAlgorithm="CRC32C",
        )
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    client.complete_multipart_upload(
        **place, UploadId=begun["UploadId"], MultipartUpload={"Parts": parts}
    )
    before = client.head_object(**place, PartNumber=2, ChecksumMode="ENABLED")
    assert (before["PartsCount"], before["ContentLength"]) == (2, MIB)

    path = mount / place["Key"]
    assert {"user.s3.parts", "user.s3.checksum-type"} <= set(os.listxattr(path))
    change(path)
    names = set(os.listxattr(path))
    assert not [name for name in names if name.startswith(("user.s3.parts", "user.s3.checksum"))]
    after = client.get_object(**place, ChecksumMode="ENABLED")
    assert after["Body"].read() == path.read_bytes()
    assert not [name for name in after if name.startswith(("Checksum", "PartsCount"))]
    assert (after["ContentType"], after["Metadata"]) == ("text/x-kv", {"kept": "yes"})
    assert after["ETag"] != before["ETag"]
    assert client.head_object(**place, PartNumber=1)["ContentLength"] == path.stat().st_size


def test_lifetimes_and_tags_are_the_same_at_both_doors(gateway: Gateway, mount: Path) -> None:
    client = gateway.client()
    place = {"Bucket": BUCKET, "Key": "lifetimes/k"}
    rule = {
        "ID": "chats",
        "Status": "Enabled",
        "Filter": {"And": {"Prefix": "lifetimes/", "Tags": [{"Key": "class", "Value": "chat"}]}},
        "Expiration": {"Days": 2},
    }
    client.put_bucket_lifecycle_configuration(
        Bucket=BUCKET, LifecycleConfiguration={"Rules": [rule]}
    )
    path = mount / place["Key"]

    def expiration() -> str | None:
        shown = client.head_object(**place).get("Expiration")
        return None if shown is None else str(shown).split('"')[1]

    try:
        client.put_object(**place, Body=b"x", Tagging="class=chat")
        assert os.getxattr(path, "user.s3.tag.class") == b"chat"
        assert os.getxattr(path, "user.kvfs.sliding") == b"0"
        assert 2 <= int(os.getxattr(path, "user.kvfs.ttl")) / 86_400 < 3
        ends_s = int(os.getxattr(path, "user.kvfs.expires_at"))
        assert expiration() == email.utils.formatdate(ends_s, usegmt=True)
    finally:
        client.delete_bucket_lifecycle(Bucket=BUCKET)
    assert expiration() is None, "the end went with its rule"
    os.setxattr(path, "user.kvfs.ttl", b"1h")
    ends_s = int(os.getxattr(path, "user.kvfs.expires_at"))
    assert expiration() == email.utils.formatdate(ends_s, usegmt=True)
    os.removexattr(path, "user.kvfs.ttl")
    assert expiration() is None
    os.setxattr(path, "user.s3.tag.model", b"m-7b")
    os.removexattr(path, "user.s3.tag.class")
    tags = client.get_object_tagging(**place)["TagSet"]
    assert tags == [{"Key": "model", "Value": "m-7b"}]
    client.delete_object_tagging(**place)
    assert not [name for name in os.listxattr(path) if name.startswith("user.s3.tag.")]


def test_a_put_over_a_file_with_such_attributes_drops_them(gateway: Gateway, mount: Path) -> None:
    client = gateway.client()
    path = mount / "claims"
    path.write_bytes(b"12345")
    for name, value in (("parts", b"2,3"), ("checksum.sha256", b"AAAA"), ("meta.a", b"1")):
        os.setxattr(path, f"user.s3.{name}", value)
    assert client.head_object(Bucket=BUCKET, Key="claims", PartNumber=2)["ContentLength"] == 3
    client.put_object(Bucket=BUCKET, Key="claims", Body=b"54321", ChecksumAlgorithm="CRC32")
    after = client.head_object(Bucket=BUCKET, Key="claims", ChecksumMode="ENABLED")
    assert "ChecksumSHA256" not in after
    assert after["Metadata"] == {}
    assert not {"user.s3.parts", "user.s3.meta.a"} & set(os.listxattr(path))


def test_a_mutable_file_is_an_object_whose_etag_changes_with_it(
    gateway: Gateway, mount: Path
) -> None:
    client = gateway.client()
    slab = mount / "slab"
    with slab.open("xb", buffering=0) as file:
        os.ftruncate(file.fileno(), 3 << 30)
        os.pwrite(file.fileno(), b"first", 1 << 30)
        head = client.head_object(Bucket=BUCKET, Key="slab")
        assert head["ContentLength"] == 3 << 30
        extent = {"Bucket": BUCKET, "Key": "slab", "Range": f"bytes={1 << 30}-{(1 << 30) + 4}"}
        answer = client.get_object(**extent, IfMatch=head["ETag"])
        assert answer["Body"].read() == b"first"
        os.pwrite(file.fileno(), b"other", 1 << 30)
        with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
            client.get_object(**extent, IfMatch=head["ETag"])
        answer = client.get_object(**extent)
        assert answer["Body"].read() == b"other"
        assert answer["ETag"] != head["ETag"]
        source = {"Bucket": BUCKET, "Key": "slab"}
        os.ftruncate(file.fileno(), 100)
        client.copy_object(Bucket=BUCKET, Key="sealed copy", CopySource=source)
        client.put_object(Bucket=BUCKET, Key="slab", Body=b"sealed")
        os.pwrite(file.fileno(), b"for its openers alone", 0)
    assert client.get_object(Bucket=BUCKET, Key="slab")["Body"].read() == b"sealed"
    assert client.get_object(Bucket=BUCKET, Key="sealed copy")["Body"].read() == bytes(100)


def test_i1_a_download_of_a_file_that_is_written_meanwhile_breaks_off(
    gateway: Gateway, mount: Path
) -> None:
    slab = mount / "busy"
    with slab.open("xb", buffering=0) as file:
        os.setxattr(file.fileno(), "user.kvfs.mutable", b"1")
        file.write(b"a" * (64 * MIB))
        body = gateway.client().get_object(Bucket=BUCKET, Key="busy")["Body"]
        assert body.read(10) == b"a" * 10
        os.pwrite(file.fileno(), b"b" * (64 * MIB), 0)
        with pytest.raises(Exception, match=r"(?i)incomplete|broken|reset|closed"):
            body.read()


def test_an_overwrite_through_s3_is_seen_by_the_next_open(gateway: Gateway, mount: Path) -> None:
    client = gateway.client()
    first, second = os.urandom(MIB), os.urandom(MIB // 2)
    client.put_object(Bucket=BUCKET, Key="twice", Body=first)
    with (mount / "twice").open("rb") as held:
        client.put_object(Bucket=BUCKET, Key="twice", Body=second)
        assert held.read() == first  # an open file keeps its bytes (I3)
    assert (mount / "twice").read_bytes() == second


def test_a_removal_at_one_door_is_an_absence_at_the_other(gateway: Gateway, mount: Path) -> None:
    client = gateway.client()
    client.put_object(Bucket=BUCKET, Key="gone-by-mount", Body=b"x")
    client.put_object(Bucket=BUCKET, Key="gone-by-s3", Body=b"x")
    (mount / "gone-by-mount").unlink()
    client.delete_object(Bucket=BUCKET, Key="gone-by-s3")
    with pytest.raises(botocore.exceptions.ClientError, match="404"):
        client.head_object(Bucket=BUCKET, Key="gone-by-mount")
    assert not (mount / "gone-by-s3").exists()


def test_a_rename_in_the_mount_is_a_new_key_in_s3(gateway: Gateway, mount: Path) -> None:
    data = os.urandom(MIB)
    (mount / "name.tmp").write_bytes(data)
    (mount / "name.tmp").rename(mount / "name")
    client = gateway.client()
    assert client.get_object(Bucket=BUCKET, Key="name")["Body"].read() == data
    keys = [item["Key"] for item in client.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert "name.tmp" not in keys


def test_i2_a_file_still_being_written_is_at_no_door(gateway: Gateway, mount: Path) -> None:
    client = gateway.client()
    with (mount / "slow").open("wb") as file:
        file.write(os.urandom(MIB))
        file.flush()
        with pytest.raises(botocore.exceptions.ClientError, match="404"):
            client.head_object(Bucket=BUCKET, Key="slow")
    assert client.head_object(Bucket=BUCKET, Key="slow")["ContentLength"] == MIB


def test_the_command_line_sees_what_both_doors_wrote(
    gateway: Gateway, mount: Path, store: Path
) -> None:
    (mount / "cli-mount").write_bytes(b"from the mount")
    gateway.client().put_object(Bucket=BUCKET, Key="cli-s3", Body=b"from s3")
    lines = kvfs("ls", "-r", f"{BUCKET}/cli-", "--store", str(store), "--json").splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["cli-mount", "cli-s3"]
    assert kvfs("get", f"{BUCKET}/cli-s3", "-", "--store", str(store)) == "from s3"


def test_a_store_where_the_index_cannot_work_is_refused_with_a_reason(mount: Path) -> None:
    command = [sys.executable, "-c", RUN_CLI, "init", str(mount / "inner")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 10, done.stderr
    assert "put the store on a local disk" in done.stderr


@dataclass
class Up:
    """A `kvfs up` that serves."""

    process: subprocess.Popen[str]
    mountpoint: Path
    engine_port: int
    shown: str

    def stop(self) -> int:
        """Press Ctrl-C; return the exit code."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.stdout is not None
        self.shown += self.process.stdout.read()
        return self.process.wait(WAIT_SECONDS)


@contextlib.contextmanager
def up(folder: Path) -> Iterator[Up]:
    """Run `kvfs up` until it says that it serves; nothing of it outlives the block."""
    mountpoint, (port, engine_port) = folder / "mnt", free_ports(2)
    command = [sys.executable, "-c", RUN_CLI, "up", str(folder / "store")]
    command += ["--mount", str(mountpoint), "--listen", f"127.0.0.1:{port}"]
    command += ["--engine-listen", f"127.0.0.1:{engine_port}", "--capacity", "1G"]
    process = subprocess.Popen(
        command,
        env={**environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    shown = ""
    try:
        for line in process.stdout:
            shown += line
            if "until Ctrl-C" in line:
                break
        assert "Proof:" in shown, shown
        yield Up(process, mountpoint, engine_port, shown)
    finally:
        process.terminate()
        process.stdout.close()
        try:
            process.wait(WAIT_SECONDS)
        finally:
            kill_parts(folder / "store")


def kill_parts(store: Path) -> None:
    """SIGKILL every process whose command line names the store."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            if os.fsencode(store) in (entry / "cmdline").read_bytes() and pid != os.getpid():
                os.kill(pid, signal.SIGKILL)


def test_up_proves_both_doors_prints_settings_and_ends_clean(tmp_path: Path) -> None:
    with up(tmp_path) as running:
        assert f's3://127.0.0.1:{running.engine_port}"' in running.shown
        credential = read_root_credential(tmp_path / "store", {})
        assert credential.secret_key not in running.shown, "a pipe may be a log"
        if Path("/dev/fuse").exists():
            assert os.path.ismount(running.mountpoint)
            (running.mountpoint / BUCKET / "file").write_bytes(b"served")
        assert running.stop() == 0, running.shown
    assert not os.path.ismount(running.mountpoint)
    assert "Traceback" not in running.shown


def test_up_comes_back_after_everything_was_killed(tmp_path: Path) -> None:
    with up(tmp_path) as first:
        if Path("/dev/fuse").exists():
            (first.mountpoint / BUCKET / "kept").write_bytes(b"kept")
        kill_parts(tmp_path / "store")
        first.process.wait(WAIT_SECONDS)
    with up(tmp_path) as second:
        if Path("/dev/fuse").exists():
            assert (second.mountpoint / BUCKET / "kept").read_bytes() == b"kept"
        assert second.stop() == 0, second.shown
