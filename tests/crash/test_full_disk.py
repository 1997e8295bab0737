"""The disk under the store is full, of bytes or of inodes, though the store's capacity is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvfs.clock import ManualClock
from kvfs.errors import NoSpace, Unavailable
from kvfs.model import ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.store.store import Store
from tests.crash.loop_disk import loop_disk, missing
from tests.crash.processes import descriptors

pytestmark = [
    pytest.mark.crash,
    pytest.mark.root,
    pytest.mark.expects_warnings,
    pytest.mark.skipif(bool(missing()), reason=missing() or "usable"),
]

MAX_PUTS = 3_000


def fill(store: Store, length: int) -> list[ObjectPath]:
    """Put distinct objects until the disk refuses; return those acknowledged."""
    stored = []
    for each in range(MAX_PUTS):
        path = ObjectPath(b"kv", b"%d" % each)
        try:
            store.put(path, body(path, length))
        except (NoSpace, Unavailable):
            return stored
        stored.append(path)
    raise AssertionError("the disk never became full")


def body(path: ObjectPath, length: int) -> bytes:
    return (path.key + b".") * (length // (len(path.key) + 1))


@pytest.mark.parametrize(
    ("size", "options", "length"),
    [(24 << 20, "-m 0", 300_000), (9 << 20, "-m 0", 3_000), (24 << 20, "-m 0 -N 416", 3_000)],
    ids=["bytes", "bytes in small files", "inodes"],
)
def test_a_full_disk_is_said_so_and_deleting_makes_room(
    tmp_path: Path, size: int, options: str, length: int
) -> None:
    with loop_disk(tmp_path, "ext4", size=size, options=options) as disk:
        root = disk.mountpoint / "store"
        clock = ManualClock()
        init_store(root, capacity_bytes=1 << 30, clock=clock)
        with open_store(root, clock=clock) as store:
            store.create_namespace(b"kv")
            before = descriptors()
            stored = fill(store, length)
            assert len(stored) > 20
            with pytest.raises((NoSpace, Unavailable)):
                store.put(ObjectPath(b"kv", b"one more"), bytes(2_000_000))
            assert descriptors() == before
            clock.advance(3600)  # each of these accesses is worth a row, for which there is no room
            for path in stored:
                assert store.get(path) == body(path, length)
            for path in stored[:15]:
                store.delete(path)
            store.empty_trash()
            store.put(ObjectPath(b"kv", b"again"), body(stored[0], length))
            assert store.get(ObjectPath(b"kv", b"again")) == body(stored[0], length)
            store.sweep()
            report = store.check(is_full=True)
            assert report.is_clean, report.findings
        with open_store(root, clock=clock) as store:
            for path in stored[15:]:
                assert store.get(path) == body(path, length)
