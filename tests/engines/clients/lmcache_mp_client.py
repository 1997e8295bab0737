"""The S3 adapter of LMCache's multi-process (MP) mode, driven as its storage manager drives it.

    python lmcache_mp_client.py '{"s3_endpoint": "kv.host:9000", "model": "org/name", ...}'

Stores chunks of a model, looks for them and for what is not there, loads them into fresh memory,
lists them by pages, and deletes one; prints one line: `RESULT {...}`. Chunk n is `chunk_of(n)`.
"""

from __future__ import annotations

import json
import selectors
import sys
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import torch
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.s3_l2_adapter import S3L2Adapter, S3L2AdapterConfig
from lmcache.v1.memory_allocators.ad_hoc_memory_allocator import AdHocMemoryAllocator
from lmcache.v1.memory_management import MemoryObj

WAIT_SECONDS = 60.0
PAGE = 3


def chunk_of(number: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (length,), generator=generator, dtype=torch.uint8)


def key_of(model: str, number: int) -> ObjectKey:
    return ObjectKey(sha256(str(number).encode()).digest(), model, 0x01000100)


def memory(length: int) -> MemoryObj:
    found = AdHocMemoryAllocator("cpu").allocate(torch.Size([length]), torch.uint8)
    assert found is not None
    return found


def await_result(notifier: int, result: Callable[[], Any]) -> Any:
    """Wait on the adapter's file descriptor until the result is there."""
    with selectors.DefaultSelector() as selector:
        selector.register(notifier, selectors.EVENT_READ)
        while not (found := result()):
            assert selector.select(WAIT_SECONDS), "the adapter never said that it is done"
    return found


def store(adapter: S3L2Adapter, chunks: dict[ObjectKey, torch.Tensor]) -> int:
    """Return the bytes stored; -1 when it failed."""
    objects = []
    for chunk in chunks.values():
        objects.append(memory(chunk.numel()))
        objects[-1].tensor.copy_(chunk)
    adapter.submit_store_task(list(chunks), objects)
    done = await_result(adapter.get_store_event_fd(), adapter.pop_completed_store_tasks)
    return int(next(iter(done.values())))


def look_up(adapter: S3L2Adapter, keys: list[ObjectKey]) -> list[bool]:
    task = adapter.submit_lookup_and_lock_task(keys, {})
    notifier = adapter.get_lookup_and_lock_event_fd()
    bits = await_result(notifier, lambda: adapter.query_lookup_and_lock_result(task))
    adapter.submit_unlock(keys)
    return [bits.test(number) for number in range(len(keys))]


def load(adapter: S3L2Adapter, chunks: dict[ObjectKey, torch.Tensor]) -> list[bool]:
    """Return which chunks came back as they were."""
    objects = [memory(chunk.numel()) for chunk in chunks.values()]
    task = adapter.submit_load_task(list(chunks), objects)
    bits = await_result(adapter.get_load_event_fd(), lambda: adapter.query_load_result(task))
    return [
        bits.test(number) and bool(torch.equal(objects[number].tensor, chunk))
        for number, chunk in enumerate(chunks.values())
    ]


def listed(adapter: S3L2Adapter, model: str) -> list[int]:
    """Return the sizes of all chunks of a model, page after page."""
    sizes: list[int] = []
    cursor = None
    while True:
        page = adapter.list_l2_keys(model, PAGE, cursor)
        assert len(page.entries) <= PAGE
        sizes += [entry.size_bytes for entry in page.entries]
        cursor = page.next_page_token
        if cursor is None:
            return sizes


def open_adapter(request: dict[str, Any], secret: str) -> S3L2Adapter:
    settings = {
        "s3_endpoint": request["s3_endpoint"],
        "s3_region": "us-east-1",
        "s3_num_io_threads": 4,
        "disable_tls": True,
        "aws_access_key_id": request["access_key"],
        "aws_secret_access_key": secret,
    }
    adapter = create_l2_adapter(S3L2AdapterConfig.from_dict(settings))
    assert isinstance(adapter, S3L2Adapter)
    return adapter


def main() -> None:
    request = json.loads(sys.argv[1])
    model, lengths = request["model"], request["lengths"]
    chunks = {key_of(model, n): chunk_of(n, length) for n, length in enumerate(lengths)}
    keys, absent = list(chunks), key_of(model, 999)
    adapter = open_adapter(request, request["secret_key"])
    result = {
        "stored": store(adapter, chunks),
        "found": look_up(adapter, [*keys, absent]),
        "loaded": load(adapter, chunks),
        "listed": listed(adapter, model),
    }
    adapter.delete(keys[:1])
    result["after_delete"] = look_up(adapter, keys)
    adapter.close()
    wrong = open_adapter(request, "another")
    result["wrong_key"] = [store(wrong, {absent: chunk_of(1, 10)}), look_up(wrong, keys)]
    wrong.close()
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
