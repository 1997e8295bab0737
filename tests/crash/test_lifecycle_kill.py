"""SIGKILL of collector, recoder and scrubber among writers and readers: every promise is kept, no
byte is wrong, and what they left half-done is finished by the next (I1, I2, I4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs.clock import ManualClock
from kvfs.config import process_environment
from kvfs.index.schema import unpack_block
from kvfs.model import Codec, Durability
from kvfs.open_store import open_store
from kvfs_tools.gc import collect
from tests.crash.collectors import note_beside, settings
from tests.crash.crew import FAR, Crew, ForkServer, kill, let_run
from tests.crash.recoding_note import RecodingNote

pytestmark = [pytest.mark.crash, pytest.mark.slow]

BOUNDED_KILLS = 30
SOAK_KILLS = 1_000
ROLES = ("collect", "recode", "scrub")
WORKERS = 2
RECODER = WORKERS + ROLES.index("recode")
KILL_ORDER = ("recode", "collect", "recode", "scrub", "recode", "recode")
WAITS_FOR_RECODING = 200
"""Looks, 5 ms apart, whether a recoder is at work: it may wait for the lock, or for space."""
LEAST_CUT_SHARE = 0.2
"""Of all kills, those that must have cut a recoding short; most other ones are of other roles."""


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
    note = RecodingNote(note_beside(crew.log_of(RECODER)))
    cut: Counter[str] = Counter()
    kills = framed = 0

    def kill_role(role: str, pid: int) -> None:
        kill(pid)
        if role == "recode" and note.cut_short is not None:
            cut[note.cut_short.name] += 1

    def reach_recoding(pids: list[int]) -> None:
        for _ in range(WAITS_FOR_RECODING):
            if note.cut_short is not None:
                break
            let_run(pids, 0.005)
        let_run(pids, crew.chance.uniform(0.0, 0.12))  # somewhere within it, or in the next

    while kills < wanted:
        workers = [crew.start(number) for number in range(WORKERS)]
        others = {role: crew.start(WORKERS + n, role=role) for n, role in enumerate(ROLES)}
        for role in KILL_ORDER:
            pids = [*workers, *others.values()]
            let_run(pids, crew.chance.uniform(0.0, 0.3))
            if role == "recode":
                reach_recoding(pids)
            kill_role(role, others[role])
            kills += 1
            others[role] = crew.start(WORKERS + ROLES.index(role), role=role)
        let_run([*workers, *others.values()], crew.chance.uniform(0.05, 0.25))
        for role, pid in others.items():
            kill_role(role, pid)
        for pid in workers:
            kill(pid)
        kills += len(others)
        crew.verify()
        framed += count_framed(root)
    with open_store(root, clock=ManualClock(FAR)) as store:
        report = collect(store, settings(keeps))
        assert report.bad_blocks == 0
        assert not list((root / "index").glob("dropped-*"))
        assert store.check(is_full=True).is_clean
    print(f"kills={kills} recodings cut short={dict(cut)} framed={framed} {crew.tally}")
    assert cut.total() >= LEAST_CUT_SHARE * kills, "the kills missed the recodings"
