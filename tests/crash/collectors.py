"""What a crash process does that is no engine: collect, recode and scrub until it is killed."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from kvfs.clock import ManualClock
from kvfs.errors import AlreadyExists, KvfsError, NoSpace, Unavailable
from kvfs.index.schema import unpack_block
from kvfs.model import Codec, Digest, ObjectPath
from kvfs.open_store import open_store
from kvfs.policy.expiry import Rule, RuleSet
from kvfs.policy.settings import LifecycleSettings
from kvfs.store.lifecycle import only_one
from kvfs.store.recoder import MIN_SIZE
from kvfs.store.store import Store
from kvfs_tools.gc import collect
from tests.crash.ledger import Ledger
from tests.crash.recoding_note import RecodingNote

MAX_BLOCKS = 200
LARGE_BUCKET = b"large"
LARGE_COUNT, LARGE_SIZE, SMALL_SIZE = 3, 4 << 20, 1 << 20
_LOW_BITS = bytes(byte & 7 for byte in range(256))


def settings(keeps: bool) -> LifecycleSettings:
    """Return settings that keep a store small, or that remove nothing."""
    ratios = (1.0, 1.0) if keeps else (0.5, 0.3)
    return LifecycleSettings(
        rules=RuleSet([Rule("keep")]), high_ratio=ratios[0], low_ratio=ratios[1], grace_s=0,
        snapshot_every_s=1, sweep_every_s=1, recode_s=1, scrub_pass_s=1,
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

    note = RecodingNote(note_beside(log))
    note.start()

    def recoding(store: Store) -> None:
        _put_large(store, chance, keeps)
        for digest, codec in _recodable(store):
            wanted = Codec.FRAMED if codec is Codec.RAW else Codec.RAW
            with suppress(NoSpace), note.inside(wanted):
                store.compress(digest) if wanted is Codec.FRAMED else store.promote(digest)
        note.start()  # one that was refused is over, too

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


def note_beside(log: Path) -> Path:
    """Return where the recoder that writes `log` notes whether it is inside a recoding."""
    return log.with_suffix(".recoding")


def _put_large(store: Store, chance: random.Random, keeps: bool) -> None:
    """See to blocks whose recoding takes a while, so that kills fall into it."""
    for number in range(LARGE_COUNT if keeps else 1):
        path = ObjectPath(LARGE_BUCKET, b"large-%d" % number)
        if store.find(path) is None:
            size = LARGE_SIZE if keeps else SMALL_SIZE
            with suppress(NoSpace, AlreadyExists):
                if store.find_namespace(LARGE_BUCKET) is None:
                    store.create_namespace(LARGE_BUCKET)
                store.put(path, chance.randbytes(size).translate(_LOW_BITS))


def _recodable(store: Store) -> list[tuple[Digest, Codec]]:
    found = []
    with store.context.index.read() as txn:
        for key, raw in islice(txn.rows("blocks"), MAX_BLOCKS):
            block = unpack_block(raw)
            if block.size >= MIN_SIZE and not block.is_incompressible:
                found.append((Digest(key), block.codec))
    return found
