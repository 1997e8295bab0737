"""SIGKILL at any moment, of any number of processes: nothing acknowledged is lost, nothing torn is
served, no row dangles, no count is wrong, and after a sweep no file is left over (I1, I2, I4)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs.config import process_environment
from kvfs.model import Durability
from tests.crash.crew import Crew, ForkServer, kill, let_run

pytestmark = [pytest.mark.crash, pytest.mark.slow]

BOUNDED_KILLS = 100
SOAK_KILLS = 2_000


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


def kills_wanted(is_soak: bool) -> int:
    given = process_environment().get("KVFS_CRASH_KILLS", "")
    return int(given) if given else SOAK_KILLS if is_soak else BOUNDED_KILLS


@pytest.mark.parametrize("durability", list(Durability), ids=lambda each: str(each.value))
@pytest.mark.parametrize("keeps", [True, False], ids=["keeping", "evicting"])
def test_killed_processes_leave_a_store_that_keeps_every_promise(
    tmp_path: Path, server: ForkServer, is_soak: bool, keeps: bool, durability: Durability
) -> None:
    crew = Crew(
        tmp_path / "store", server, keeps=keeps, durability=durability, seed=11 if keeps else 17
    )
    wanted = kills_wanted(is_soak) // 4
    while crew.tally.kills < wanted:
        workers = {number: crew.start(number) for number in range(4)}
        # Some die one by one while others go on (and new ones join); in the end all die.
        for _ in range(crew.chance.randrange(8)):
            let_run(list(workers.values()), crew.chance.uniform(0.0, 0.06))
            number = crew.chance.randrange(4)
            kill(workers[number])
            crew.tally.kills += 1
            workers[number] = crew.start(number)
        let_run(list(workers.values()), crew.chance.uniform(0.0, 0.15))
        for pid in workers.values():
            kill(pid)
            crew.tally.kills += 1
        crew.verify()
    print(f"kills={crew.tally.kills} {crew.tally}")
