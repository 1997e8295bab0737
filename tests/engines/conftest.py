"""One store, one gateway and one mount for all tests of a module of engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs.config import read_root_credential
from tests.engines.doors import BUCKET, Gateway, kvfs, mounted, running_gateway
from tests.mount_fixture import transports


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engines") / "store"
    kvfs("init", str(path), "--capacity", "4G")
    kvfs("mkdir", BUCKET, "--store", str(path))
    return path


@pytest.fixture(scope="module")
def gateway(store: Path) -> Iterator[Gateway]:
    credential = read_root_credential(store, {})
    with running_gateway(store, (credential.access_key, credential.secret_key)) as running:
        yield running


@pytest.fixture(scope="module")
def mount(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bucket as the mount shows it."""
    if not Path("/dev/fuse").exists():
        pytest.skip("this machine has no /dev/fuse")
    with mounted(store, tmp_path_factory.mktemp("engines") / "mount") as path:
        yield path / BUCKET


@pytest.fixture(scope="module", params=transports())
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bucket(store: Path, transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bucket as a mount through each transport shows it, one after the other."""
    with mounted(store, tmp_path_factory.mktemp("engines") / "mount", transport=transport) as path:
        yield path / BUCKET


@pytest.fixture(scope="module")
def tiny_bucket(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bucket of a store that is too small for one large block."""
    folder = tmp_path_factory.mktemp("engines")
    kvfs("init", str(folder / "store"), "--capacity", "32M")
    kvfs("mkdir", BUCKET, "--store", str(folder / "store"))
    with mounted(folder / "store", folder / "mount", transport=transport) as path:
        yield path / BUCKET
