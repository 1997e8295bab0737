"""DeleteObjects of a thousand keys: the store's part, and the whole request by boto3.

The floor is a transaction a key, which is what `Store.delete` in a loop takes; both delete objects
that were just put, from one thread.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.report import Context, Measurement
from kvfs.model import ObjectPath, WriteCondition
from kvfs.open_store import init_store, open_store
from kvfs.store.store import Store
from tests.integration.gateway_process import running_gateway

KEYS = 1000
ROUNDS = 7
BUCKET = "bench"


def bench_gateway_deletes__thousand_keys(context: Context) -> Iterator[Measurement]:
    """Milliseconds for a thousand objects of 4 KiB."""
    rounds = 2 if context.quick else ROUNDS
    root = context.directory / "store"
    init_store(root, capacity_bytes=1 << 30)
    with open_store(root, background=True) as store:
        store.create_namespace(BUCKET.encode())
        alone, together = [], []
        for _ in range(rounds):
            alone.append(_taken_ms(context, store, is_one_by_one=True))
            together.append(_taken_ms(context, store, is_one_by_one=False))
    params: dict[str, str | int] = {"keys": KEYS}
    yield Measurement("ms", together, params | {"what": "store"}, alone, "a transaction a key")
    with running_gateway(root, workers=1) as gateway:
        yield Measurement(
            "ms", [_request_ms(context, gateway.client()) for _ in range(rounds)],
            params | {"what": "boto3 delete_objects"}, alone, "the store, a transaction a key",
        )  # fmt: skip


def _paths() -> list[ObjectPath]:
    return [ObjectPath(BUCKET.encode(), b"folder/%04d" % number) for number in range(KEYS)]


def _taken_ms(context: Context, store: Store, *, is_one_by_one: bool) -> float:
    for path in _paths():
        store.put(path, path.key * 372)
    start_ns = context.clock.monotonic_ns()
    if is_one_by_one:
        for path in _paths():
            store.delete(path)
    else:
        store.delete_many([(path, WriteCondition()) for path in _paths()])
    return (context.clock.monotonic_ns() - start_ns) / 1e6


def _request_ms(context: Context, client: object) -> float:
    keys = [path.key.decode() for path in _paths()]
    for key in keys:
        client.put_object(Bucket=BUCKET, Key=key, Body=key.encode() * 372)  # type: ignore[attr-defined]
    listed = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
    start_ns = context.clock.monotonic_ns()
    client.delete_objects(Bucket=BUCKET, Delete=listed)  # type: ignore[attr-defined]
    return (context.clock.monotonic_ns() - start_ns) / 1e6
