"""What tests of operations without a mount share: an open store, and a clock that they move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs.clock import ManualClock
from kvfs.open_store import init_store, open_store
from kvfs.store.store import Store
from tests.mount_fixture import CAPACITY


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    init_store(tmp_path / "store", capacity_bytes=CAPACITY)
    with open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
