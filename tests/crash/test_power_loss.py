"""The power goes: no torn byte is served, nothing acknowledged as durable is lost, the index opens.

The disk is a loop-mounted file whose writes are stopped at once (the file system's own shutdown);
what had not reached it by then is gone after the next mount.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs.errors import KvfsError
from kvfs.model import Durability, ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.store.store import Store
from tests.crash.crew import Crew, ForkServer, kill, let_run
from tests.crash.loop_disk import LoopDisk, loop_disk, missing
from tests.crash.processes import abandon

pytestmark = [
    pytest.mark.crash,
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.expects_warnings,
    pytest.mark.skipif(bool(missing()), reason=missing() or "usable"),
]

BOUNDED_CUTS = 2
SOAK_CUTS = 20
KINDS = ["ext4", "xfs"]


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopDisk]:
    with loop_disk(tmp_path, request.param) as disk:
        yield disk


def cut_and_mount(disk: LoopDisk, *pids: int) -> None:
    disk.cut_power()
    for pid in pids:
        kill(pid)
    disk.unmount()
    disk.mount()


@pytest.mark.parametrize("durability", list(Durability), ids=lambda each: str(each.value))
def test_after_a_power_cut_every_byte_served_is_right_and_durable_puts_are_there(
    disk: LoopDisk, server: ForkServer, is_soak: bool, durability: Durability
) -> None:
    crew = Crew(
        disk.mountpoint / "store", server, keeps=True, durability=durability,
        seed=5 if durability is Durability.CACHE else 7, logs=disk.image.with_name("logs"),
        is_power_cut=True,
    )  # fmt: skip
    for _ in range(SOAK_CUTS if is_soak else BOUNDED_CUTS):
        workers = [crew.start(number) for number in range(3)]
        let_run(workers, crew.chance.uniform(0.2, 1.5))
        cut_and_mount(disk, *workers)
        crew.tally.kills += 1
        crew.verify()
    print(f"cuts={crew.tally.kills} {crew.tally}")


@pytest.mark.parametrize("durability", list(Durability), ids=lambda each: str(each.value))
def test_a_bucket_that_was_acknowledged_survives_a_power_cut(
    disk: LoopDisk, durability: Durability
) -> None:
    root = disk.mountpoint / "store"
    init_store(root, durability=durability)
    store = open_store(root)
    store.create_namespace(b"first")
    store.put(ObjectPath(b"first", b"key"), b"bytes")
    store.create_namespace(b"last")
    disk.cut_power()
    abandon(store)
    disk.unmount()
    disk.mount()
    with open_store(root) as store:
        assert [each.name for each in store.list_namespaces()] == [b"first", b"last"]
        assert not list((root / "index").glob("damaged-*"))


def test_right_bytes_seen_after_a_kill_are_not_taken_for_synced(
    disk: LoopDisk, server: ForkServer
) -> None:
    """First a SIGKILL: the page cache has every byte, so the check after it passes. Then the power
    goes before any syncfs: what was checked in memory may be torn on disk."""
    root = disk.mountpoint / "store"
    init_store(root, capacity_bytes=64 << 20)
    keys = [ObjectPath(b"kv", b"%d" % each) for each in range(8)]
    store = open_store(root)
    store.create_namespace(b"kv")
    store.flush()
    for key in keys:
        # Sized first, as a writer that knows its length does: its length says nothing then.
        staging = store.stage(size_bytes=300_000)
        staging.truncate(300_000)
        staging.pwrite(key.key * 300_000, 0)
        store.publish(staging, key)
    abandon(store)  # as SIGKILL leaves it
    store = open_store(root)
    assert [store.get(key)[:1] for key in keys] == [key.key for key in keys]
    store._context.index.sync()
    disk.cut_power()
    abandon(store)
    disk.unmount()
    disk.mount()
    with open_store(root) as store:
        for key in keys:
            entry = store.find(key)
            if entry is not None:
                assert served(store, key) in (None, key.key * 300_000)


def served(store: Store, key: ObjectPath) -> bytes | None:
    try:
        return store.get(key)
    except KvfsError:
        return None
