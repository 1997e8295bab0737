"""vLLM 0.33's file system tier of KV offloading, as its scheduler drives it, without a GPU.

    python vllm_client.py c|python

`c`: its C extension reads and writes; `python`: the Python code that vLLM uses without it. Blocks
come from seeds: block number N holds `content(N)`, its key is the hash that N has.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
import threading
from typing import Any

import numpy as np
import torch  # noqa: F401  # first: the extension needs its libraries, already loaded
from client_loop import content, digest, hollow, load_no_cuda, serve

WAIT_SECONDS = 120.0

load_no_cuda("libtorch_cuda.so", "libc10_cuda.so", "libnvrtc.so.13")
if sys.argv[1] == "python":
    sys.modules["vllm.fs_io_C"] = None  # type: ignore[assignment]  # as if it were not built

import vllm  # noqa: E402, F401  # the package itself; only those below ask for all of vLLM

hollow(
    "vllm.distributed",
    "vllm.distributed.kv_transfer",
    "vllm.distributed.kv_transfer.kv_connector",
    "vllm.distributed.kv_transfer.kv_connector.v1",
    "vllm.distributed.kv_transfer.kv_connector.v1.offloading",
)

from vllm.v1.kv_offload.base import (  # noqa: E402
    LookupResult,
    OffloadingSpec,
    OffloadKey,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)
from vllm.v1.kv_offload.config import (  # noqa: E402
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.base import TransferJob  # noqa: E402
from vllm.v1.kv_offload.tiering.fs import io  # noqa: E402
from vllm.v1.kv_offload.tiering.fs.manager import FileSystemTierManager  # noqa: E402


class Spec(OffloadingSpec):
    """What a tier is told of the engine around it."""

    def get_manager(self) -> Any:
        raise NotImplementedError("the tier runs alone")

    def get_worker(self, kv_caches: Any) -> Any:
        raise NotImplementedError("the tier runs alone")


def spec_of(block_bytes: int) -> Spec:
    parallel = OffloadingParallelConfig(
        rank=0,
        world_size=1,
        tp_size=1,
        pp_size=1,
        pcp_size=1,
        dcp_size=1,
        data_parallel_index=0,
        data_parallel_size=1,
        data_parallel_rank_local=None,
        is_parallelism_agnostic=True,
    )
    config = OffloadingConfig(
        groups=(OffloadingGroupConfig(256, ("model.layers.0.attn",), 0),),
        worker_kv_bytes_per_block=block_bytes,
        enable_kv_cache_events=False,
        extra_config={},
        engine_id="test",
        model=OffloadingModelConfig("meta-llama/Llama-3.1-8B", "bfloat16"),
        cache=OffloadingCacheConfig(tokens_per_hash=256, blocks_per_chunk=1),
        parallel=parallel,
    )
    return Spec(config)


class Tier:
    """One tier over a primary tier of `blocks` blocks in this process's memory."""

    def __init__(self, settings: dict[str, Any], block_bytes: int, blocks: int) -> None:
        self.block_bytes = block_bytes
        # Page-aligned, as vLLM's own region of shared memory is.
        self.memory = np.frombuffer(mmap.mmap(-1, blocks * block_bytes), dtype=np.uint8)
        self.memory = self.memory.reshape(blocks, block_bytes)
        self.manager = FileSystemTierManager(
            spec_of(block_bytes), memoryview(self.memory), "fs", **settings
        )
        self.next_job = 0

    def run(self, seeds: list[int], *, is_load: bool) -> dict[str, Any]:
        """Run one job over the first blocks of the primary tier; return what became of it."""
        self.next_job += 1
        keys = [key_of(seed) for seed in seeds]
        job = TransferJob(
            job_id=self.next_job,
            keys=keys,
            chunk_ids=np.arange(len(seeds)),
            is_promotion=is_load,
            req_context=ReqContext(f"request-{self.next_job}"),
        )
        (self.manager.submit_load if is_load else self.manager.submit_store)(job)
        self.manager.drain_jobs()
        (result,) = self.manager.get_finished_jobs()
        return {
            "success": result.success,
            "kept": [keys.index(key) for key in result.successful_keys or ()],
            "digests": [digest(self.memory[i]) for i in range(len(seeds))],
        }


tier: Tier


def key_of(seed: int) -> OffloadKey:
    return make_offload_key(hashlib.sha256(str(seed).encode()).digest(), 0)


def start(
    root: str, block_bytes: int = 1 << 20, blocks: int = 16, more: dict[str, Any] | None = None
) -> dict[str, Any]:
    global tier
    tier = Tier({"root_dir": root, **(more or {})}, block_bytes, blocks)
    return {
        "use_o_direct": tier.manager._use_o_direct,
        "has_extension": io._HAS_FSIO_C,
        "base": os.path.relpath(tier.manager.file_mapper.base_path, root),
    }


def store(seeds: list[int]) -> dict[str, Any]:
    for index, seed in enumerate(seeds):
        tier.memory[index] = np.frombuffer(content(seed, tier.block_bytes), dtype=np.uint8)
    return tier.run(seeds, is_load=False)


def load(seeds: list[int]) -> dict[str, Any]:
    tier.memory[:] = 0
    return tier.run(seeds, is_load=True)


def lookup(seeds: list[int]) -> list[bool]:
    """Look up as the scheduler does: asked again each step until the tier knows."""
    tier.next_job += 1
    context = ReqContext(f"request-{tier.next_job}")
    found: dict[int, bool] = {}
    turn = threading.Event()
    for _ in range(int(WAIT_SECONDS / 0.005)):
        for seed in seeds:
            result = tier.manager.lookup(key_of(seed), context)
            if result is not LookupResult.RETRY:
                found[seed] = result is LookupResult.HIT
        if len(found) == len(seeds):
            tier.manager.on_request_finished(context)
            return [found[seed] for seed in seeds]
        tier.manager.on_schedule_end(ScheduleEndContext(new_req_ids=[], preempted_req_ids=[]))
        turn.wait(0.005)
    raise TimeoutError("the tier did not answer the lookup")


def names(seeds: list[int]) -> list[str]:
    return [tier.manager.file_mapper.get_file_name(key_of(seed)) for seed in seeds]


serve({"start": start, "store": store, "load": load, "lookup": lookup, "names": names})
