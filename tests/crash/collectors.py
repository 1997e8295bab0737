"""What a crash process does that is no engine: collect, recode and scrub until it is killed."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from kvfs.clock import ManualClock
from kvfs.errors import KvfsError, NoSpace, Unavailable
from kvfs.model import Digest
from kvfs.open_store import open_store
from kvfs.policy.expiry import Rule, RuleSet
from kvfs.policy.settings import LifecycleSettings
from kvfs.store.lifecycle import only_one
from kvfs.store.store import Store
from kvfs_tools.gc import collect
from tests.crash.ledger import Ledger

MAX_BLOCKS = 200


def settings(keeps: bool) -> LifecycleSettings:
    """Return settings that keep a store small, or that remove nothing."""
    ratios = (1.0, 1.0) if keeps else (0.5, 0.3)
    return LifecycleSettings(
        rules=RuleSet([Rule("keep")]), high_ratio=ratios[0], low_ratio=ratios[1], grace_s=0,
        snapshot_every_s=1, recode_s=1, scrub_pass_s=1,
    )  # fmt: skip


def run_collector(root: Path, role: str, seed: int, log: Path, keeps: bool) -> None:
    """Open the store and do one thing to it, again and again."""
    ledger, chance = Ledger(log), random.Random(seed)
    clock = ManualClock(1_700_000_000_000_000_000 + seed * 1_000_000_000)

    def collecting(store: Store) -> None:
        with only_one(root) as is_first:
            if is_first and collect(store, settings(keeps)).bad_blocks:
                ledger.complain("I1: a collection found a bad block")
        clock.advance(2)

    def recoding(store: Store) -> None:
        for digest in _digests(store):
            with suppress(NoSpace):
                store.compress(digest) if chance.random() < 0.6 else store.promote(digest)

    def scrubbing(store: Store) -> None:
        if store.scrub(2 << 20).bad_digests:
            ledger.complain("I1: the scrub found a bad block")

    roles: dict[str, Callable[[Store], None]] = {
        "collect": collecting, "recode": recoding, "scrub": scrubbing,
    }  # fmt: skip
    try:
        with open_store(root, clock=clock) as store:
            while True:
                with suppress(Unavailable):
                    roles[role](store)
    except BaseException as error:
        where = "" if isinstance(error, KvfsError) else traceback.format_exc()
        ledger.complain(f"{role} seed {seed}: {type(error).__name__}: {error} {where}")
        raise


def _digests(store: Store) -> list[Digest]:
    with store.context.index.read() as txn:
        return [Digest(key) for key in islice(txn.keys("blocks"), MAX_BLOCKS)]
