"""LMCache 0.5.6's multi-process (MP) adapters `fs` and `fs_native`, as its storage manager drives
them. Chunks come from seeds: chunk N holds `content(N)` and its key is the hash that N has."""

from __future__ import annotations

import hashlib
import mmap
import selectors
from collections.abc import Callable
from typing import Any

import torch
from client_loop import content, digest, serve
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.fs_l2_adapter import FSL2AdapterConfig
from lmcache.v1.distributed.l2_adapters.fs_native_l2_adapter import FSNativeL2AdapterConfig
from lmcache.v1.memory_allocators.ad_hoc_memory_allocator import AdHocMemoryAllocator

WAIT_SECONDS = 120.0
CONFIGS = {"fs": FSL2AdapterConfig, "fs_native": FSNativeL2AdapterConfig}

adapter: Any
allocator = AdHocMemoryAllocator("cpu")


def start(settings: dict[str, Any]) -> None:
    """Make the adapter from its settings on the server's command line."""
    global adapter
    adapter = create_l2_adapter(CONFIGS[settings["type"]].from_dict(settings))


def key_of(seed: int) -> ObjectKey:
    chunk_hash = hashlib.sha256(str(seed).encode()).digest()
    return ObjectKey(chunk_hash, "meta-llama/Llama-3.1-8B", 0x01000100)


def memory(length: int) -> Any:
    """Return a chunk's memory, page-aligned as LMCache's own is: O_DIRECT asks for it."""
    found = allocator.allocate(torch.Size([length]), torch.uint8)
    assert found is not None
    found.raw_data = torch.frombuffer(mmap.mmap(-1, length), dtype=torch.uint8)
    return found


def await_result(notifier: int, result: Callable[[], Any]) -> Any:
    """Wait on the adapter's file descriptor until the result is there."""
    with selectors.DefaultSelector() as selector:
        selector.register(notifier, selectors.EVENT_READ)
        while (found := result()) is None or found == {}:
            assert selector.select(WAIT_SECONDS), "the adapter never said that it is done"
    return found


def store(seeds: list[int], length: int) -> dict[str, Any]:
    """Return the bytes that LMCache says it stored (-1: failed), and what they are."""
    objects = [memory(length) for _ in seeds]
    chunks = [content(seed, length) for seed in seeds]
    for target, chunk in zip(objects, chunks, strict=True):
        target.tensor.copy_(torch.frombuffer(bytearray(chunk), dtype=torch.uint8))
    adapter.submit_store_task([key_of(seed) for seed in seeds], objects)
    done = await_result(adapter.get_store_event_fd(), adapter.pop_completed_store_tasks)
    (result,) = done.values()
    return {"stored": int(result), "digests": [digest(chunk) for chunk in chunks]}


def lookup(seeds: list[int]) -> list[bool]:
    keys = [key_of(seed) for seed in seeds]
    task = adapter.submit_lookup_and_lock_task(keys, {})
    notifier = adapter.get_lookup_and_lock_event_fd()
    bits = await_result(notifier, lambda: adapter.query_lookup_and_lock_result(task))
    adapter.submit_unlock(keys)
    return [bits.test(number) for number in range(len(keys))]


def load(seeds: list[int], length: int) -> list[str | None]:
    """Return the digests of the chunks that LMCache loaded into fresh memory."""
    objects = [memory(length) for _ in seeds]
    task = adapter.submit_load_task([key_of(seed) for seed in seeds], objects)
    bits = await_result(adapter.get_load_event_fd(), lambda: adapter.query_load_result(task))
    return [
        digest(found.tensor.numpy().tobytes()) if bits.test(number) else None
        for number, found in enumerate(objects)
    ]


def delete(seeds: list[int]) -> None:
    adapter.delete([key_of(seed) for seed in seeds])


actions = (start, store, lookup, load, delete)
serve({action.__name__: action for action in actions})
