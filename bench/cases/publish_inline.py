"""Publishing into a bucket that compresses inline, beside one that compresses when idle.

Same store, same bytes (keys and values, see codec.py), in turn; the floor is the second. Inline a
writer waits for the encoding, the check of the encoded file and the swap, so this is what the
saved space costs it. The share of the space that is saved stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.cases.codec import DATA, keys_and_values
from bench.report import NS_PER_S, Context, Measurement, throughput_gb_s
from kvfs.model import AttributeChange, ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.store.recoder import COMPRESS_ATTRIBUTE
from kvfs.store.store import Store

MIB = 1 << 20
BUCKETS = (b"inline", b"idle")


def bench_put__inline_against_idle(context: Context) -> Iterator[Measurement]:
    """One writer; objects of 8 and 32 MiB."""
    init_store(context.directory / "store", capacity_bytes=2 << 30)
    with open_store(context.directory / "store") as store:
        for bucket in BUCKETS:
            namespace = store.create_namespace(bucket)
            change = AttributeChange(set_attributes={COMPRESS_ATTRIBUTE: bucket})
            store.set_attributes(namespace.inode, change)
        for size_mib in (8, 32):
            yield _compare(context, store, size_mib * MIB, 4 if context.quick else 12)


def _compare(context: Context, store: Store, size: int, rounds: int) -> Measurement:
    data = keys_and_values("bf16", size)
    taken: dict[bytes, list[float]] = {bucket: [] for bucket in BUCKETS}
    stored = size
    for number in range(rounds + 1):
        for bucket in BUCKETS:
            path = ObjectPath(bucket, b"object")
            start = context.clock.monotonic_ns()
            entry = store.put(path, number.to_bytes(4, "big") + data[4:])
            if number:  # the first round makes the files' pages
                taken[bucket].append((context.clock.monotonic_ns() - start) / NS_PER_S)
            if bucket == BUCKETS[0]:
                stored = store.stored_bytes(entry.digest)
            store.delete(path)
            store.empty_trash()
    return Measurement(
        "GB/s",
        throughput_gb_s(size, taken[BUCKETS[0]]),
        {"data": DATA, "MiB": size // MIB, "saved_ratio": round(1 - stored / size, 3)},
        floor=throughput_gb_s(size, taken[BUCKETS[1]]),
        floor_name="the same into a bucket that compresses when idle",
    )
