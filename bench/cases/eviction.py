"""Eviction: how many prefix hits the policy keeps, and what a plan over a million names costs.

The policy runs as in production: in batches between watermarks, access times in whole seconds, the
grace period on. The cache's size is its high watermark and a batch 2 % of it, so on average 1 % of
the capacity is given away to LRU, the `floor`, which evicts one block at a time by exact times; LRU
in the same batches and Belady, who knows the future, stand in the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.report import Context, Measurement, cpu_seconds, resident_bytes
from bench.trace_replay import (
    CLASSICS,
    LOW_RATIO,
    TRACES,
    Lru,
    LruInBatches,
    Request,
    Trace,
    belady,
    infinite,
    load_trace,
    replay,
    replay_expiring,
)
from kvfs.engine_keys import Engine
from kvfs.policy.eviction import Budget, Planner, plan_removals
from kvfs.policy.expiry import Rule, RuleSet
from kvfs.policy.survey import Candidate

SHARES = (1, 5, 10, 20, 40)
EPOCH_S = 1_700_000_000
KEEP = RuleSet([Rule("keep")])


class PolicyCache:
    """The eviction policy as it is run: watermarks, batches, whole seconds."""

    def __init__(self, capacity: int, budget: Budget | None = None) -> None:
        self._budget = budget or Budget(capacity, 0, high_ratio=1.0, low_ratio=LOW_RATIO)
        self._capacity = capacity
        self._inodes: dict[int, int] = {}
        self._accessed: dict[int, int] = {}
        self._written: dict[int, int] = {}
        self._blocks: dict[int, int] = {}
        self._next_inode = 1
        self.plans = 0

    def holds(self, block: int) -> bool:
        return block in self._inodes

    def touch(self, block: int, at_ms: int) -> None:
        self._accessed[block] = EPOCH_S + at_ms // 1000

    def write(self, block: int, at_ms: int) -> None:
        if len(self._inodes) + 1 > self._budget.high_ratio * self._capacity:
            self._make_room(EPOCH_S + at_ms // 1000)
        if len(self._inodes) >= self._capacity:
            return  # no space, and nothing may go: the engine computes it again next time
        self._inodes[block] = self._next_inode
        self._blocks[self._next_inode] = block
        self._accessed[block] = self._written[block] = EPOCH_S + at_ms // 1000
        self._next_inode += 1

    def _make_room(self, now_s: int) -> None:
        self.plans += 1
        budget = Budget(
            self._capacity,
            len(self._inodes) + 1,
            self._budget.high_ratio,
            self._budget.low_ratio,
            grace_s=self._budget.grace_s,
        )
        candidates = (
            Candidate(inode, 1, b"%d" % block, 1, self._accessed[block], self._written[block])
            for block, inode in self._inodes.items()
        )
        for removal in plan_removals(candidates, budget, now_s, KEEP).removals:
            block = self._blocks.pop(removal.inode)
            del self._inodes[block], self._accessed[block], self._written[block]


def bench_replay__prefix_hits(context: Context) -> Iterator[Measurement]:
    """Both traces at 1 to 40 % of their unique blocks, beside the classics and the bound."""
    for name in TRACES[1:] if context.quick else TRACES:
        trace = load_trace(name)
        everything = infinite(trace)
        for share in SHARES[:3] if context.quick else SHARES:
            yield _replayed(trace, share, everything)


def bench_replay__whole_blocks_only(context: Context) -> Iterator[Measurement]:
    """The traces without each request's last block, which is filled in part: some engines store
    whole blocks only, and what the policy does with tails must not cost them."""
    for name in TRACES[1:] if context.quick else TRACES:
        whole = load_trace(name)
        requests = (Request(each.at_ms, each.blocks[:-1]) for each in whole.requests)
        trace = Trace(name, tuple(each for each in requests if each.blocks))
        everything = infinite(trace)
        for share in SHARES[:3] if context.quick else SHARES:
            yield _replayed(trace, share, everything)


def _replayed(trace: Trace, share: int, everything: float) -> Measurement:
    capacity = trace.unique_blocks * share // 100
    cache = PolicyCache(capacity)
    ours = replay(trace, cache)
    others = {name: round(replay(trace, make(capacity)), 3) for name, make in CLASSICS.items()}
    return Measurement(
        unit="ratio",
        samples=[ours],
        params={
            "trace": trace.name,
            "capacity_percent": share,
            "blocks": capacity,
            "plans": cache.plans,
            **others,
            "lru_in_batches": round(replay(trace, LruInBatches(capacity)), 4),
            "belady": round(belady(trace, capacity), 3),
            "infinite": round(everything, 3),
        },
        floor=[replay(trace, Lru(capacity))],
        floor_name="lru",
    )


def bench_replay__sliding_against_fixed_ttl(context: Context) -> Iterator[Measurement]:
    """A TTL alone, sliding; the floor is the same TTL, fixed."""
    for name in TRACES[1:] if context.quick else TRACES:
        trace = load_trace(name)
        for ttl_s in (60, 300, 600):
            yield Measurement(
                unit="ratio",
                samples=[replay_expiring(trace, ttl_s, is_sliding=True)],
                params={"trace": name, "ttl_s": ttl_s},
                floor=[replay_expiring(trace, ttl_s, is_sliding=False)],
                floor_name="fixed",
            )


def bench_plan__million_names(context: Context) -> Iterator[Measurement]:
    """CPU seconds and memory of a plan over 1,000,000 names of four engines, with rules by name."""
    count = 50_000 if context.quick else 1_000_000
    rules = RuleSet(
        [
            Rule("session", path=b"chat/*"),
            Rule("system", namespace=b"prod*", path=b"*/prompts/*"),
            Rule("month", engine=Engine.LMCACHE, model=b"*llama*"),
        ]
    )
    before, start = resident_bytes(), cpu_seconds()
    for _ in _names(count):
        pass
    floor = cpu_seconds() - start
    start = cpu_seconds()
    planner = Planner(Budget(count << 20, count << 20), EPOCH_S + 200_000, rules, {1: b"kv"})
    planner.survey(_names(count))
    plan = planner.plan()
    taken = cpu_seconds() - start
    params = {"names": count, "groups": plan.groups, "removals": len(plan.removals)}
    yield Measurement("s", [taken], params, [floor], "making the names alone")
    yield Measurement("bytes", [float(resident_bytes() - before)], params)


def _names(count: int) -> Iterator[Candidate]:
    shapes = (
        b"lm/meta-SEP-llama@8@%d@%032x@bfloat16.data",
        b"vllm/m_0123456789ab_r%d/abc/de_g0/%064x.bin",
        b"sg/meta-llama_%d_%064x",
        b"chat/%d/%064x",
    )
    for inode in range(count):
        block = inode // 2
        key = shapes[block & 3] % (inode & 1, block * 2_654_435_761)
        accessed_s = EPOCH_S + block * 31 % 190_000
        yield Candidate(inode, 1, key, 1 << 20, accessed_s, EPOCH_S)
