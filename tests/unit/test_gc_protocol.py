"""Every interleaving of put, delete, evict, collect, sweep and get, with kills at every step."""

from __future__ import annotations

import pytest

from tests.unit.gc_protocol_model import Violation, World, search

EMPTY = World()
LIVE = World(names=frozenset({0}), row=(1, 1), files=frozenset({1}), next_generation=2)
LEFT_BEHIND = LIVE._replace(files=frozenset({1, 2, 3}), trash=frozenset({2}), next_generation=4)
"""A live block, one file in the trash of a dead process, one orphan."""


@pytest.mark.parametrize(
    ("world", "kinds", "kills"),
    [
        (EMPTY, [("put", 1), ("put", 2), ("sweep", 0)], 2),
        (EMPTY, [("put", 1), ("delete", 1), ("put", 2), ("sweep", 0)], 1),
        (LIVE, [("put", 1), ("delete", 0), ("get", 0), ("sweep", 0)], 1),
        (LIVE, [("put", 1), ("evict", 0), ("get", 0), ("collect", 0)], 2),
        (LIVE, [("put", 1), ("put", 2), ("evict", 0), ("delete", 1)], 1),
        (LEFT_BEHIND, [("put", 1), ("evict", 0), ("collect", 0), ("sweep", 0)], 1),
        (LIVE, [("put", 1), ("put", 2), ("delete", 0), ("evict", 0), ("sweep", 0)], 1),
        (LIVE, [("put", 1), ("delete", 1), ("evict", 0), ("collect", 0), ("sweep", 0)], 2),
        (LEFT_BEHIND, [("sweep", 0), ("sweep", 0), ("collect", 0), ("delete", 0)], 1),
    ],
    ids=lambda value: "+".join(kind for kind, _ in value) if isinstance(value, list) else None,
)
def test_i2_no_interleaving_and_no_kill_leaves_a_row_without_its_file_or_a_leak(
    world: World, kinds: list[tuple[str, int]], kills: int
) -> None:
    report = search(world, kinds, kills)
    assert report.states > 100
    assert report.ends > 0


@pytest.mark.parametrize(
    ("world", "kinds", "kills", "what"),
    [
        (LIVE, [("delete_unlinking_inside", 0)], 1, "file that is gone"),
        (LIVE, [("put_by_plain_name", 1), ("delete", 0)], 0, "live file is trash"),
        (EMPTY, [("put", 1), ("sweep_asking_first", 0)], 0, "file that is gone"),
    ],
    ids=["unlink inside the transaction", "names without generations", "index before lock"],
)
def test_the_search_finds_what_is_wrong_with_simpler_protocols(
    world: World, kinds: list[tuple[str, int]], kills: int, what: str
) -> None:
    with pytest.raises(Violation, match=what):
        search(world, kinds, kills)


def test_the_search_tells_a_leak() -> None:
    stuck = EMPTY._replace(files=frozenset({7}), locks=frozenset({7}))
    with pytest.raises(Violation, match="left over"):
        search(stuck, [("collect", 0)], 0)
