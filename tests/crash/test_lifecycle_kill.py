"""SIGKILL of collector, recoder and scrubber among writers and readers: every promise is kept, no
byte is wrong, and what they left half-done is finished by the next (I1, I2, I4)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs.clock import ManualClock
from kvfs.config import process_environment
from kvfs.index.schema import unpack_block
from kvfs.model import Codec, Durability
from kvfs.open_store import open_store
from kvfs_tools.gc import collect
from tests.crash.collectors import settings
from tests.crash.crew import FAR, Crew, ForkServer, kill, let_run

pytestmark = [pytest.mark.crash, pytest.mark.slow]

BOUNDED_KILLS = 30
SOAK_KILLS = 1_000
ROLES = ("collect", "recode", "scrub")
WORKERS = 2


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


def count_framed(root: Path) -> int:
    with open_store(root, read_only=True) as store, store.context.index.read() as txn:
        return sum(unpack_block(raw).codec is Codec.FRAMED for _, raw in txn.rows("blocks"))


@pytest.mark.parametrize("keeps", [True, False], ids=["keeping", "evicting"])
def test_killed_collectors_recoders_and_scrubbers_leave_a_store_in_order(
    tmp_path: Path, server: ForkServer, is_soak: bool, keeps: bool
) -> None:
    given = process_environment().get("KVFS_CRASH_KILLS", "")
    wanted = (int(given) if given else SOAK_KILLS if is_soak else BOUNDED_KILLS) // 2
    root = tmp_path / "store"
    crew = Crew(root, server, keeps=keeps, durability=Durability.CACHE, seed=23 if keeps else 29)
    kills = framed = 0
    while kills < wanted:
        workers = [crew.start(number) for number in range(WORKERS)]
        others = {role: crew.start(WORKERS + n, role=role) for n, role in enumerate(ROLES)}
        for _ in range(6):
            let_run([*workers, *others.values()], crew.chance.uniform(0.0, 0.3))
            role = crew.chance.choice(ROLES)
            kill(others[role])
            kills += 1
            others[role] = crew.start(WORKERS + ROLES.index(role), role=role)
        let_run([*workers, *others.values()], crew.chance.uniform(0.05, 0.25))
        for pid in (*others.values(), *workers):
            kill(pid)
        kills += len(others)
        crew.verify()
        framed += count_framed(root)
    with open_store(root, clock=ManualClock(FAR)) as store:
        report = collect(store, settings(keeps))
        assert report.bad_blocks == 0
        assert not list((root / "index").glob("dropped-*"))
        assert store.check(is_full=True).is_clean
    print(f"kills={kills} framed={framed} {crew.tally}")
