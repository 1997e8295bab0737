"""What a writer evicts by itself: the coldest names of a window, whole blocks of them.

Owns that choice; touches neither rows nor clocks. A writer that meets a full store cannot wait for
a plan over all names, so it looks at the first few of the index's own order of eviction (soft pins
last, lower priority first, least recently used first) and of these it takes whole blocks: shares
are written together, so they stand together in that order.
Holds: of a block with a promised share none goes (I5); at most `max_names` are named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kvfs.engine_keys import group_of
from kvfs.policy.eviction import Reason, Removal


class ColdName(NamedTuple):
    """One evictable name of the window."""

    inode: int
    namespace_id: int
    key: bytes
    """Path below the namespace."""
    stored_bytes: int
    """What the disk gets back; 0 where the block has other names."""
    is_promised: bool
    """Asked for within the grace period."""


def choose_coldest(window: Sequence[ColdName], wanted_bytes: int, max_names: int) -> list[Removal]:
    """Return what frees `wanted_bytes`, or all that may go. `window`: coldest first.

    A block goes where its warmest share in the window stands, as in a full plan.
    """
    groups: dict[tuple[int, bytes], list[ColdName]] = {}
    for name in window:
        # Moved to the end with each share: a dict keeps the order of insertion.
        identity = name.namespace_id, group_of(name.key)
        groups[identity] = [*groups.pop(identity, ()), name]
    chosen: list[Removal] = []
    freed = 0
    for number, shares in enumerate(groups.values()):
        if freed >= wanted_bytes or (chosen and len(chosen) + len(shares) > max_names):
            break
        if any(share.is_promised for share in shares):
            continue
        for share in shares[:max_names]:
            chosen.append(
                Removal(
                    share.inode, share.namespace_id, Reason.CAPACITY, share.stored_bytes, number
                )
            )
            freed += share.stored_bytes
    return chosen
