"""Publishing against its floor: writing the same bytes to a file and hashing them.

The floor is what no store with a digest can go below: create, write, BLAKE3 over the page-cache
warm file, close; by as many threads. Both sides see every payload once (fresh bytes, no
deduplication), alternate round by round, and throw their files away between rounds, so that both
write into page-cache memory the machine has already given us.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.report import NS_PER_S, Context, Measurement, throughput_gb_s
from kvfs.codec.digest import digest_file
from kvfs.model import ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.store.store import Store

MIB = 1 << 20
SHAPES = ((1, 48), (8, 12), (32, 4))
"""(MiB, objects a thread and round): about 50 MB a round, whatever the size."""

Write = Callable[[str, bytes], None]


def bench_publish__1_8_32MiB_by_1_and_4_threads(context: Context) -> Iterator[Measurement]:
    for threads in (1, 4):
        for size_mib, count in SHAPES:
            per_thread = max(1, count // threads)
            rounds = 5 if context.quick else 15
            yield _compare(context, size_mib * MIB, threads, per_thread, rounds)


def _compare(context: Context, size: int, threads: int, count: int, rounds: int) -> Measurement:
    root = context.directory / f"store-{size}-{threads}"
    init_store(root, capacity_bytes=4 << 30)
    store = open_store(root)
    store.create_namespace(b"kv")
    plain = context.directory / "plain"
    put_s, floor_s = [], []
    payloads = [os.urandom(size) for _ in range(threads)]
    try:
        for number in range(rounds + 2):
            plain.mkdir()
            floor = _time(context, _writer(plain), payloads, count, f"f{number}")
            shutil.rmtree(plain)
            put = _time(context, _putter(store), payloads, count, f"p{number}")
            _clear(store)
            if number >= 2:
                floor_s.append(floor / (count * threads))
                put_s.append(put / (count * threads))
    finally:
        store.close()
        shutil.rmtree(root)
    return Measurement(
        "GB/s",
        throughput_gb_s(size, put_s),
        {"MiB": size // MIB, "threads": threads},
        floor=throughput_gb_s(size, floor_s),
        floor_name="create + write + blake3 + close of the same bytes",
    )


def _writer(directory: Path) -> Write:
    def write(name: str, data: bytes) -> None:
        descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, data)
        digest_file(b"s" * 32, descriptor, len(data))
        os.close(descriptor)

    return write


def _putter(store: Store) -> Write:
    def put(name: str, data: bytes) -> None:
        store.put(ObjectPath(b"kv", b"bench/" + name.encode()), data)

    return put


def _time(context: Context, write: Write, payloads: list[bytes], count: int, tag: str) -> float:
    """Return the seconds that one thread for each payload takes to write it `count` times."""

    def work(thread: int) -> None:
        payload = payloads[thread]
        for number in range(count):
            name = f"{tag}-{thread}-{number}"
            write(name, name.encode().ljust(32) + payload[32:])

    workers = [threading.Thread(target=work, args=(n,)) for n in range(len(payloads))]
    start = context.clock.monotonic_ns()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (context.clock.monotonic_ns() - start) / NS_PER_S


def _clear(store: Store) -> None:
    for listed in store.list_objects(b"kv").objects:
        store.delete(ObjectPath(b"kv", listed.key))
    store.empty_trash()
