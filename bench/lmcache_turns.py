"""LMCache's own file connector on several directories in turns: runs in the engines' environment.

    PYTHONPATH=tests/engines .venv-engines/bin/python bench/lmcache_turns.py ROUNDS DIRECTORY ...

Puts and gets chunks of Llama-3.1-8B (32 MiB) through the connector that LMCache makes for
`fs://`, each chunk on every directory before the next one; prints seconds of storing and of
retrieving as JSON. Owns no settings of LMCache: those are of tests/engines/lmcache_client.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Coroutine
from typing import Any

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.cache_engine import LMCacheEngineBuilder
from lmcache.v1.storage_backend.connector import CreateConnector
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from lmcache_client import Request, allocate, engine_config, engine_metadata

CHUNKS = 4
WAIT_SECONDS = 120.0


class Client:
    """LMCache's connector for one directory, driven from its own event loop as LMCache does."""

    def __init__(self, loop: asyncio.AbstractEventLoop, directory: str) -> None:
        url = f"fs://localhost:0{directory}"
        self._request = Request("put", url, layers=32, heads=8, head_size=128, chunks=CHUNKS)
        config, self._metadata = engine_config(self._request), engine_metadata(self._request)
        memory = LMCacheEngineBuilder._Create_memory_allocator(config, self._metadata)
        self._local = LocalCPUBackend(config, self._metadata, memory_allocator=memory)
        self._loop = loop
        self._connector = CreateConnector(url, loop, self._local, config, self._metadata)

    def _wait(self, coroutine: Coroutine[Any, Any, object]) -> object:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(WAIT_SECONDS)

    def _key(self, number: int) -> CacheEngineKey:
        return CacheEngineKey(self._request.model, 1, 0, number + 1, torch.bfloat16)

    def store_s(self, number: int) -> float:
        """Put chunk `number`; its bytes are new, too."""
        chunk = allocate(self._local, self._metadata, number)
        start = time.perf_counter()
        self._wait(self._connector.put(self._key(number), chunk))
        return time.perf_counter() - start

    def retrieve_s(self, number: int) -> float:
        start = time.perf_counter()
        found = self._wait(self._connector.get(self._key(number)))
        taken = time.perf_counter() - start
        assert found is not None, "LMCache finds what it stored"
        found.ref_count_down()
        return taken

    @property
    def chunk_bytes(self) -> int:
        return self._request.chunk_bytes


def main(rounds: int, directories: list[str]) -> None:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    clients = {directory: Client(loop, directory) for directory in directories}
    taken: dict[str, dict[str, list[float]]] = {
        directory: {"store": [], "retrieve": []} for directory in directories
    }
    for turn in range(rounds):
        numbers = range(turn * CHUNKS, (turn + 1) * CHUNKS)
        for number in numbers:
            for directory in directories if number % 2 else directories[::-1]:
                taken[directory]["store"].append(clients[directory].store_s(number))
        os.sync()  # what is still written back takes time from whoever reads meanwhile
        for number in numbers:
            for directory in directories if number % 2 else directories[::-1]:
                taken[directory]["retrieve"].append(clients[directory].retrieve_s(number))
    chunk_bytes = clients[directories[0]].chunk_bytes
    print("RESULT " + json.dumps({"bytes": chunk_bytes, "seconds": taken}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
