"""The index at a million objects: lookups, bytes a row, opening after a clean stop and a kill.

The rows are real; their block files are left out, because the index alone is what is measured here
(a lookup touches no file, and opening must not either). Keys have LMCache's shape, as its
multi-process mode writes them: model@kv_rank@group@hash, 100 bytes.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.report import NS_PER_S, Context, Measurement
from kvfs.index.lmdb_index import WriteTransaction
from kvfs.index.schema import BlockRow, InodeRow
from kvfs.model import Digest, Kind, NamespaceId, ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.store.objects import add_name, resolve_target
from kvfs.store.store import Store

BATCH = 2000
SHARDS = 256
OPEN_AND_DIE = """
import os, signal, sys
from pathlib import Path
from kvfs.open_store import open_store
from kvfs.model import ObjectPath
store = open_store(Path(sys.argv[1]), background=True)
store.put(ObjectPath(b"kv", b"last/words"), b"x" * 100)
os.kill(os.getpid(), signal.SIGKILL)
"""


def key_of(number: int) -> bytes:
    """Return the key of object `number`: two components, LMCache's multi-process grammar."""
    text = hashlib.sha256(b"%d" % number).hexdigest()
    return f"{number % SHARDS:02x}/Qwen2.5-7B-Instruct@01000100@00000000@{text}".encode()


def bench_index__million_objects(context: Context) -> Iterator[Measurement]:
    count = 100_000 if context.quick else 1_000_000
    root = context.directory / "store"
    init_store(root, capacity_bytes=1 << 50)
    with open_store(root) as store:
        fill(store, count)
        yield Measurement("bytes", [store.context.index.live_bytes() / count], {"objects": count})
        yield from _lookups(context, store, count)
    yield Measurement("s", _openings(context, root), {"objects": count, "after": "clean stop"})
    yield Measurement("s", _after_kill(context, root), {"objects": count, "after": "SIGKILL"})


def fill(store: Store, count: int) -> None:
    """Add `count` objects of 8 MiB without their files."""
    namespace = store.create_namespace(b"kv")
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        store.context.commit(partial(_insert, store=store, namespace=namespace.namespace_id,
                                   numbers=numbers))  # fmt: skip


def _insert(txn: WriteTransaction, store: Store, namespace: NamespaceId, numbers: range) -> None:
    for number in numbers:
        digest = Digest(hashlib.blake2b(b"%d" % number, digest_size=32).digest())
        counters = txn.counters()
        counters.sequence += 1
        counters.block_count += 1
        txn.put_block(digest, BlockRow(number, 8 << 20, 8 << 20, 1, counters.sequence, namespace))
        now_s = 1_800_000_000 + number // 100
        row = InodeRow(
            Kind.FILE, namespace, size=8 << 20, mtime_ns=now_s * NS_PER_S, accessed_s=now_s,
            digest=digest,
        )  # fmt: skip
        target = resolve_target(txn, ObjectPath(b"kv", key_of(number)))
        add_name(txn, target, row, store.context.files, now_s * NS_PER_S)


def _lookups(context: Context, store: Store, count: int) -> Iterator[Measurement]:
    paths = [ObjectPath(b"kv", key_of(number * 7919 % count)) for number in range(20_000)]
    absent = [ObjectPath(b"kv", path.key + b"!") for path in paths]
    for name, chosen in (("hit", paths), ("miss", absent)):
        for path in chosen:
            store.find(path)
        samples = []
        for path in chosen:
            start = context.clock.monotonic_ns()
            store.find(path)
            samples.append((context.clock.monotonic_ns() - start) / 1000)
        yield Measurement("us", samples, {"objects": count, "components": 3, "outcome": name})
    yield Measurement("us", [t * 1e6 for t in _bare_gets(context, store)], {"what": "bare get"})


def _bare_gets(context: Context, store: Store) -> list[float]:
    def get() -> None:
        with store.context.index.read() as txn:
            txn.dirent(1, b"kv/")

    return context.times_s(get, 20_000)


def _openings(context: Context, root: Path) -> list[float]:
    return context.times_s(lambda: open_store(root).close(), 5)


def _after_kill(context: Context, root: Path) -> list[float]:
    samples = []
    for _ in range(3):
        died = subprocess.run(
            [sys.executable, "-c", OPEN_AND_DIE, str(root)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=False,
            timeout=120,
        )
        assert died.returncode == -signal.SIGKILL, "the child died as it should"
        start = context.clock.monotonic_ns()
        store = open_store(root)
        assert store.get(ObjectPath(b"kv", b"last/words")) == b"x" * 100
        samples.append((context.clock.monotonic_ns() - start) / NS_PER_S)
        store.close()
    return samples
