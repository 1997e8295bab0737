"""One mount a transport for the whole suite; every test works in a first directory of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount_fixture import Mounted, mounted_store, transports

_serial = itertools.count(1)


@pytest.fixture(scope="session", params=transports())
def mounted(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    with mounted_store(request.param) as made:
        yield made


@pytest.fixture
def bucket(mounted: Mounted) -> Path:
    """An empty first directory of the mount."""
    path = mounted.root / f"bucket-{next(_serial)}"
    path.mkdir()
    return path
