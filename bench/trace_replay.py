"""Replaying a trace of prefix-cache requests against a policy, in numbers of blocks.

Owns the reading of traces, the rule of what a prefix hit is, and the classic policies to compare
with; the policy under test comes in as a Cache. A request names its blocks front to back; its hit
is the count of leading blocks present, since a prefix is only worth what is whole from the front.
Afterwards all its blocks are there, touched or written.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (ROOT / "bench" / "traces", ROOT.parent / "shared" / "traces")
TRACES = ("conversation", "synthetic")
LOW_RATIO = 0.98
"""A collection starts at the capacity and ends at this share of it: what the collected caches hold
is between the two, while LRU and Belady use all of the capacity at every moment."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when, in ms, and its blocks front to back."""

    at_ms: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order."""

    name: str
    requests: tuple[Request, ...]

    @property
    def unique_blocks(self) -> int:
        return len({block for request in self.requests for block in request.blocks})


def load_trace(name: str) -> Trace:
    """Read `<name>_trace.jsonl` (one request a line: timestamp, hash_ids).

    Raises: FileNotFoundError.
    """
    path = next((folder / f"{name}_trace.jsonl" for folder in FOLDERS if folder.is_dir()), None)
    if path is None:
        raise FileNotFoundError(f"no traces in {FOLDERS[0]}: put {name}_trace.jsonl there")
    with path.open() as lines:
        rows = [json.loads(line) for line in lines]
    return Trace(name, tuple(Request(row["timestamp"], tuple(row["hash_ids"])) for row in rows))


class Cache(Protocol):
    """A policy with its contents."""

    def holds(self, block: int) -> bool:
        """Whether the block is there now."""
        ...

    def touch(self, block: int, at_ms: int) -> None:
        """Count an access to a block that is there."""
        ...

    def write(self, block: int, at_ms: int) -> None:
        """Put a block that is not there, making room first."""
        ...


def replay(trace: Trace, cache: Cache) -> float:
    """Return the prefix-hit ratio: leading blocks found over all blocks asked for."""
    found = asked = 0
    for request in trace.requests:
        asked += len(request.blocks)
        is_whole = True
        for block in request.blocks:
            if cache.holds(block):
                found += is_whole
                cache.touch(block, request.at_ms)
            else:
                is_whole = False
                cache.write(block, request.at_ms)
    return found / asked


class Fifo:
    """First in, first out."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def holds(self, block: int) -> bool:
        return block in self._blocks

    def touch(self, block: int, at_ms: int) -> None:
        pass

    def write(self, block: int, at_ms: int) -> None:
        if len(self._blocks) >= self._capacity:
            self._blocks.popitem(last=False)
        self._blocks[block] = None


class Lru(Fifo):
    """Least recently used."""

    def touch(self, block: int, at_ms: int) -> None:
        self._blocks.move_to_end(block)


class LruInBatches(Lru):
    """Least recently used, emptied like the store: down to LOW_RATIO at once. What it loses against
    LRU is the price of batches; what the store loses against it would be the store's."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._low = min(int(capacity * LOW_RATIO), capacity - 1)

    def write(self, block: int, at_ms: int) -> None:
        if len(self._blocks) >= self._capacity:
            while len(self._blocks) > self._low:
                self._blocks.popitem(last=False)
        self._blocks[block] = None


class Sieve:
    """SIEVE: one queue, one bit, a hand that moves from old to new and starts again at the end."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._visited: dict[int, bool] = {}
        self._newer: dict[int, int] = {}
        self._older: dict[int, int] = {}
        self._newest = self._oldest = self._hand = -1

    def holds(self, block: int) -> bool:
        return block in self._visited

    def touch(self, block: int, at_ms: int) -> None:
        self._visited[block] = True

    def write(self, block: int, at_ms: int) -> None:
        if len(self._visited) >= self._capacity:
            self._evict()
        self._visited[block] = False
        self._newer[block], self._older[block] = -1, self._newest
        if self._newest >= 0:
            self._newer[self._newest] = block
        else:
            self._oldest = block
        self._newest = block

    def _evict(self) -> None:
        hand = self._hand if self._hand >= 0 else self._oldest
        while self._visited[hand]:
            self._visited[hand] = False
            following = self._newer[hand]
            hand = following if following >= 0 else self._oldest
        newer, older = self._newer.pop(hand), self._older.pop(hand)
        if newer >= 0:
            self._older[newer] = older
        else:
            self._newest = older
        if older >= 0:
            self._newer[older] = newer
        else:
            self._oldest = newer
        del self._visited[hand]
        self._hand = newer


class S3Fifo:
    """S3-FIFO: a small queue of newcomers, a main queue, and a memory of who just left."""

    def __init__(self, capacity: int) -> None:
        self._small_size = max(1, capacity // 10)
        self._capacity = capacity
        self._small: OrderedDict[int, int] = OrderedDict()
        self._main: OrderedDict[int, int] = OrderedDict()
        self._ghosts: OrderedDict[int, None] = OrderedDict()

    def holds(self, block: int) -> bool:
        return block in self._small or block in self._main

    def touch(self, block: int, at_ms: int) -> None:
        queue = self._small if block in self._small else self._main
        queue[block] = min(queue[block] + 1, 3)

    def write(self, block: int, at_ms: int) -> None:
        while len(self._small) + len(self._main) >= self._capacity:
            self._evict()
        if block in self._ghosts:
            del self._ghosts[block]
            self._main[block] = 0
        else:
            self._small[block] = 0

    def _evict(self) -> None:
        if self._small and (len(self._small) >= self._small_size or not self._main):
            block, uses = self._small.popitem(last=False)
            if uses > 1:
                self._main[block] = 0
                return
            self._ghosts[block] = None
            if len(self._ghosts) > self._capacity:
                self._ghosts.popitem(last=False)
            return
        block, uses = self._main.popitem(last=False)
        if uses:
            self._main[block] = uses - 1


def belady(trace: Trace, capacity: int) -> float:
    """Return the prefix-hit ratio of a policy that knows the future: the bound.

    Evicts the block whose next use is furthest away, and does not keep a newcomer that would be.
    """
    references = [block for request in trace.requests for block in request.blocks]
    upcoming = _next_uses(references)
    held: dict[int, int] = {}
    furthest: list[tuple[int, int]] = []
    found = position = 0
    for request in trace.requests:
        is_whole = True
        for block in request.blocks:
            is_whole = is_whole and block in held
            found += is_whole
            held[block] = upcoming[position]
            heapq.heappush(furthest, (-upcoming[position], block))
            position += 1
        while len(held) > capacity:
            distance, block = heapq.heappop(furthest)
            if held.get(block) == -distance:
                del held[block]
    return found / len(references)


def _next_uses(references: Sequence[int]) -> list[int]:
    upcoming, later = [0] * len(references), dict[int, int]()
    for position in range(len(references) - 1, -1, -1):
        block = references[position]
        upcoming[position] = later.get(block, len(references) + position)
        later[block] = position
    return upcoming


class Expiring:
    """No limit on space, only on time: a fixed or sliding TTL."""

    def __init__(self, ttl_ms: int, *, is_sliding: bool) -> None:
        self._ttl_ms, self._is_sliding = ttl_ms, is_sliding
        self._deadlines: dict[int, int] = {}
        self._now_ms = 0
        self.peak_blocks = 0

    def holds(self, block: int) -> bool:
        return self._deadlines.get(block, -1) > self._now_ms

    def touch(self, block: int, at_ms: int) -> None:
        if self._is_sliding:
            self._deadlines[block] = at_ms + self._ttl_ms

    def write(self, block: int, at_ms: int) -> None:
        self._deadlines[block] = at_ms + self._ttl_ms

    def advance(self, at_ms: int) -> None:
        """Move to the next request's time."""
        self._now_ms = at_ms


def replay_expiring(trace: Trace, ttl_s: int, *, is_sliding: bool) -> float:
    """Return the prefix-hit ratio under a TTL alone."""
    cache = Expiring(ttl_s * 1000, is_sliding=is_sliding)
    found = asked = 0
    for request in trace.requests:
        cache.advance(request.at_ms)
        ratio = replay(Trace(trace.name, (request,)), cache)
        found += round(ratio * len(request.blocks))
        asked += len(request.blocks)
    return found / asked


CLASSICS: dict[str, Callable[[int], Cache]] = {
    "fifo": Fifo,
    "lru": Lru,
    "sieve": Sieve,
    "s3fifo": S3Fifo,
}


def infinite(trace: Trace) -> float:
    """Return the prefix-hit ratio with room for everything."""
    return replay(trace, Fifo(1 << 60))


def reuse_counts(trace: Trace) -> Counter[int]:
    """Return how often each block is asked for."""
    return Counter(block for request in trace.requests for block in request.blocks)
