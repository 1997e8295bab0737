"""Everyday S3 clients against the gateway; each runs where it is installed.

They are not among the test requirements, because they pin each other's botocore: install what is
wanted (`pip install awscli s3cmd minio s3fs obstore opendal pyarrow`) beside kvfs and run this.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.gateway_process import ACCESS_KEY, SECRET_KEY, Gateway, running_gateway

pytestmark = [
    pytest.mark.s3,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]

DATA = os.urandom(20_000_000)
WHY = "an optional client that is not installed: see this file's header"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway") / "store") as running:
        yield running


def module(name: str) -> Any:  # noqa: ANN401
    """Import an optional client, or skip."""
    return pytest.importorskip(name, reason=WHY)


def program(name: str) -> str:
    """Return the path of an optional command of this environment, or skip."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip(WHY)
    return str(path)


def test_minio_py(gateway: Gateway) -> None:
    minio = module("minio")
    client = minio.Minio(
        gateway.address, access_key=ACCESS_KEY, secret_key=SECRET_KEY, secure=False
    )
    client.make_bucket("minio")
    assert client.bucket_exists("minio")
    client.put_object("minio", "a/b", io.BytesIO(DATA), len(DATA), part_size=5 << 20)
    client.put_object("minio", "small", io.BytesIO(b"hello"), 5, metadata={"x": "y"})
    client.put_object("minio", "unknown", io.BytesIO(DATA), -1, part_size=5 << 20)
    for key in ("a/b", "unknown"):
        answer = client.get_object("minio", key)
        assert answer.read() == DATA
        answer.close()
    assert client.stat_object("minio", "small").metadata["x-amz-meta-x"] == "y"
    names = [item.object_name for item in client.list_objects("minio", recursive=True)]
    assert names == ["a/b", "small", "unknown"]
    source = module("minio.commonconfig").CopySource("minio", "small")
    client.copy_object("minio", "copy", source)
    with urllib.request.urlopen(client.presigned_get_object("minio", "copy"), timeout=10) as got:
        assert got.read() == b"hello"
    victim = module("minio.deleteobjects").DeleteObject
    assert not list(client.remove_objects("minio", [victim(k) for k in [*names, "copy"]]))
    client.remove_bucket("minio")


def test_s3fs(gateway: Gateway) -> None:
    client = module("s3fs").S3FileSystem(
        key=ACCESS_KEY,
        secret=SECRET_KEY,
        endpoint_url=gateway.url,
        client_kwargs={"region_name": "us-east-1"},
        skip_instance_cache=True,
    )
    client.mkdir("s3fs")
    with client.open("s3fs/d/x", "wb") as file:
        file.write(DATA)
    client.pipe("s3fs/d/y", b"abc")
    assert client.cat("s3fs/d/x") == DATA
    assert client.ls("s3fs/d") == ["s3fs/d/x", "s3fs/d/y"]
    assert client.cat_file("s3fs/d/x", start=5, end=15) == DATA[5:15]
    client.cp("s3fs/d/y", "s3fs/e/y")
    client.mv("s3fs/e/y", "s3fs/e/z")
    assert client.exists("s3fs/e/z")
    assert not client.exists("s3fs/e/y")
    client.rm("s3fs", recursive=True)


def test_obstore(gateway: Gateway) -> None:
    obstore = module("obstore")
    gateway.client().create_bucket(Bucket="obstore")
    store = module("obstore.store").S3Store(
        "obstore",
        endpoint=gateway.url,
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        region="us-east-1",
        client_options={"allow_http": True},
    )
    obstore.put(store, "x/y", DATA)
    obstore.put(store, "x/z", b"1")
    assert bytes(obstore.get(store, "x/y").bytes()) == DATA
    assert bytes(obstore.get_range(store, "x/y", start=3, end=10)) == DATA[3:10]
    assert [meta["path"] for meta in obstore.list(store).collect()] == ["x/y", "x/z"]
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(store, "x/z", b"2", mode="create")
    tag = obstore.head(store, "x/z")["e_tag"]
    obstore.put(store, "x/z", b"3", mode={"e_tag": tag})
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.put(store, "x/z", b"4", mode={"e_tag": tag})
    obstore.copy(store, "x/z", "x/w")
    obstore.rename(store, "x/w", "x/v")
    obstore.delete(store, ["x/y", "x/z", "x/v"])


def test_opendal(gateway: Gateway) -> None:
    gateway.client().create_bucket(Bucket="opendal")
    operator = module("opendal").Operator(
        "s3",
        bucket="opendal",
        endpoint=gateway.url,
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        region="us-east-1",
    )
    operator.write("d/a b", DATA)
    assert operator.read("d/a b") == DATA
    assert operator.stat("d/a b").content_length == len(DATA)
    operator.delete("d/a b")
    assert not operator.exists("d/a b")


def test_pyarrow(gateway: Gateway) -> None:
    fs = module("pyarrow.fs")
    client = fs.S3FileSystem(
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        endpoint_override=gateway.address,
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
        allow_bucket_deletion=True,
    )
    client.create_dir("pyarrow/dir")
    with client.open_output_stream("pyarrow/dir/x") as out:
        out.write(DATA)
    with client.open_input_file("pyarrow/dir/x") as file:
        assert file.read() == DATA
    client.copy_file("pyarrow/dir/x", "pyarrow/dir/y")
    found = client.get_file_info(fs.FileSelector("pyarrow", recursive=True))
    assert sorted(info.path for info in found) == ["pyarrow/dir", "pyarrow/dir/x", "pyarrow/dir/y"]
    client.delete_dir("pyarrow")


def run(command: list[str]) -> str:
    """Run one command with the credentials in its environment; return what it printed."""
    environment = os.environ | {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_awscli(gateway: Gateway, tmp_path: Path) -> None:
    aws = [sys.executable, program("aws"), "--endpoint-url", gateway.url, "s3"]
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(DATA)
    run([*aws, "mb", "s3://awscli"])
    run([*aws, "cp", str(source), "s3://awscli/d/big"])
    run([*aws, "cp", "s3://awscli/d/big", "s3://awscli/e/big"])
    run([*aws, "cp", "s3://awscli/e/big", str(target)])
    assert target.read_bytes() == DATA
    assert "PRE d/" in run([*aws, "ls", "s3://awscli"])
    run([*aws, "sync", "s3://awscli", str(tmp_path / "tree")])
    assert (tmp_path / "tree" / "d" / "big").read_bytes() == DATA
    run([*aws, "rm", "--recursive", "s3://awscli"])
    run([*aws, "rb", "s3://awscli"])


def test_s3cmd(gateway: Gateway, tmp_path: Path) -> None:
    s3cmd = [
        *(sys.executable, program("s3cmd"), "--config", "/dev/null", "--no-ssl", "--no-progress"),
        *(f"--access_key={ACCESS_KEY}", f"--secret_key={SECRET_KEY}"),
        *(f"--host={gateway.address}", f"--host-bucket={gateway.address}"),
    ]
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(DATA)
    run([*s3cmd, "mb", "s3://s3cmd"])
    run([*s3cmd, "put", str(source), "s3://s3cmd/big"])
    run([*s3cmd, "get", "s3://s3cmd/big", str(target)])
    assert target.read_bytes() == DATA
    run([*s3cmd, "cp", "s3://s3cmd/big", "s3://s3cmd/copy"])
    assert "s3://s3cmd/copy" in run([*s3cmd, "ls", "s3://s3cmd"])
    run([*s3cmd, "del", "--recursive", "--force", "s3://s3cmd"])
    run([*s3cmd, "rb", "s3://s3cmd"])
