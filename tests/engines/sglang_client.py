"""SGLang 0.5.23's HiCache storage backends `file` and `nixl`, as its cache controller drives them.

    python sglang_client.py

The backends and all they call are SGLang's own files; only the memory that they move is ours: a
host pool in the layout `page_first`, K and V of a page each in one piece. Pages come from seeds.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch
from client_loop import content, digest, hollow, serve

hollow("sglang", "sglang.srt", "sglang.srt.utils")

PAGE_TOKENS = 64
PAGES = 8


class HostPool:
    """Host memory as SGLang's own pool lays it out (`page_first`), without a GPU to copy from."""

    layout = "page_first"
    page_size = PAGE_TOKENS
    pin_memory = False

    def __init__(self, half_bytes: int) -> None:
        self.half_bytes = half_bytes
        self.kv_buffer = alloc_mmap((2, PAGES, half_bytes), torch.uint8)

    def is_stride_page_aligned(self, alignment: int) -> bool:
        return self.kv_buffer.data_ptr() % alignment == 0 and self.half_bytes % alignment == 0

    def get_page_buffer_meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]:
        """Return addresses and sizes: K and V of each page, in turn."""
        pages = [int(index) // PAGE_TOKENS for index in indices[::PAGE_TOKENS]]
        pointers = [self.kv_buffer[side, page].data_ptr() for page in pages for side in (0, 1)]
        return pointers, [self.half_bytes] * len(pointers)

    def put(self, page: int, data: bytes) -> None:
        halves = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(2, self.half_bytes)
        self.kv_buffer[:, page].copy_(halves)

    def get(self, page: int) -> bytes:
        return bytes(self.kv_buffer[:, page].contiguous().numpy().tobytes())


def stand_in(module: str, **names: Any) -> None:
    """Give the names that the storage code takes from a module which imports all of SGLang."""
    made = types.ModuleType(module)
    made.__dict__.update(names)
    sys.modules[module] = made


stand_in("sglang.srt.mem_cache.pool_host", HostKVCache=HostPool)  # for annotations alone
stand_in("sglang.srt.utils.common", human_readable_int=int)  # parses sizes in settings

from sglang.srt.mem_cache.hicache_storage import HiCacheFile, HiCacheStorageConfig  # noqa: E402
from sglang.srt.mem_cache.storage.mmap import alloc_mmap  # noqa: E402
from sglang.srt.mem_cache.storage.nixl.hicache_nixl import HiCacheNixl  # noqa: E402
from sglang.srt.mem_cache.storage.nixl.nixl_cleaner import HiCacheL3Cleaner  # noqa: E402

backend: Any
pool: HostPool
page_bytes: int


def start(
    kind: str, directory: str, size: int = 1 << 20, extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Make a backend for pages of `size` bytes, as the cache controller of rank 0 does."""
    global backend, pool, page_bytes
    config = HiCacheStorageConfig(
        tp_rank=0,
        tp_size=1,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=False,
        enable_storage_metrics=False,
        is_page_first_layout=True,
        model_name="meta-llama/Llama-3.1-8B",
        extra_config=extra,
    )
    page_bytes = size
    backend = (HiCacheFile if kind == "file" else HiCacheNixl)(config, directory)
    if kind == "file":
        return {}
    pool = HostPool(size // 2)
    backend.register_mem_pool_host(pool)
    selector = backend.backend_selector
    return {
        "backend": selector.backend_name,
        "zero_copy": backend.is_zero_copy,
        "direct": backend.needs_page_alignment,
    }


def key_of(seed: int) -> str:
    return digest(str(seed).encode())


def indices(pages: int) -> torch.Tensor:
    return torch.arange(pages * PAGE_TOKENS)


def store(seeds: list[int]) -> dict[str, Any]:
    pages = [content(seed, page_bytes) for seed in seeds]
    if isinstance(backend, HiCacheFile):
        tensors = [torch.frombuffer(bytearray(page), dtype=torch.uint8) for page in pages]
        stored = backend.batch_set([key_of(seed) for seed in seeds], tensors)
    else:
        for number, page in enumerate(pages):
            pool.put(number, page)
        stored = all(backend.batch_set_v1([key_of(seed) for seed in seeds], indices(len(seeds))))
    return {"success": bool(stored), "digests": [digest(page) for page in pages]}


def load(seeds: list[int]) -> dict[str, Any]:
    """Load pages; a backend that raises has its error told as such, as SGLang's thread logs it."""
    if isinstance(backend, HiCacheFile):
        return load_files(seeds)
    pool.kv_buffer.zero_()
    loaded = backend.batch_get_v1([key_of(seed) for seed in seeds], indices(len(seeds)))
    digests = [digest(pool.get(n)) if is_there else None for n, is_there in enumerate(loaded)]
    return {"success": all(loaded), "digests": digests}


def load_files(seeds: list[int]) -> dict[str, Any]:
    targets = [torch.zeros(page_bytes, dtype=torch.uint8) for _ in seeds]
    try:
        found = backend.batch_get([key_of(seed) for seed in seeds], targets)
    except OSError as error:
        return {"success": False, "raised": str(error)}
    digests = [None if page is None else digest(page.numpy().tobytes()) for page in found]
    return {"success": None not in digests, "digests": digests}


def exists(seeds: list[int]) -> int:
    """Return how many pages from the first on are there."""
    keys = [key_of(seed) for seed in seeds]
    if isinstance(backend, HiCacheFile):
        return int(backend.batch_exists_v2(keys).kv_hit_pages)
    return int(backend.batch_exists(keys))


def names(seeds: list[int]) -> list[list[str]]:
    """Return the paths of the files that each page is."""
    if isinstance(backend, HiCacheFile):
        stems = [backend._get_suffixed_key(key_of(seed)) for seed in seeds]
        return [[f"{backend.file_path}/{stem}.bin"] for stem in stems]
    path_of = backend.file_manager.get_file_path
    return [[path_of(each) for each in backend._get_key_list_from_meta([key_of(s)])] for s in seeds]


def clear() -> None:
    backend.clear()


def clean(directory: str, high: float, low: float) -> bool:
    """Run SGLang's own cleaner of NIXL files once; return whether it found the disk too full."""
    cleaner = HiCacheL3Cleaner(
        directory, 0, high_watermark=high, low_watermark=low, recheck_groups=1
    )
    return bool(cleaner._tick())


actions = (start, store, load, exists, names, clear, clean)
serve({action.__name__: action for action in actions})
