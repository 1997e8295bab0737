"""SGLang's `seaweedfs` storage of HiCache: boto3 in path style; it makes its bucket.

Only SGLang's storage classes are imported: the package itself wants CUDA.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types

package = importlib.machinery.PathFinder.find_spec("sglang")
assert package is not None
sys.modules["sglang"] = types.ModuleType("sglang")
sys.modules["sglang"].__path__ = package.submodule_search_locations or []

import torch  # noqa: E402
from operations import Client, Door, main  # noqa: E402
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig  # noqa: E402
from sglang.srt.mem_cache.storage.seaweedfs.seaweedfs_store import SeaweedFSStore  # noqa: E402


def open_store(door: Door, prefix: str = "") -> SeaweedFSStore:
    """Return the backend of one rank that shares its keys, so that they are the names given."""
    return SeaweedFSStore(
        HiCacheStorageConfig(
            tp_rank=0,
            tp_size=1,
            pp_rank=0,
            pp_size=1,
            attn_cp_rank=0,
            attn_cp_size=1,
            is_mla_model=True,
            enable_storage_metrics=False,
            is_page_first_layout=True,
            model_name=None,
            extra_config={
                "endpoint": door.url,
                "bucket": door.bucket,
                "access_key": door.access_key,
                "secret_key": door.secret_key,
                "prefix": prefix,
            },
        )
    )


class SGLang(Client):
    def __init__(self, door: Door) -> None:
        super().__init__(door)
        self.store = open_store(door)

    def make_bucket(self) -> None:
        """Nothing more: the backend made it when it was opened."""

    def put(self, key: str, data: bytes) -> None:
        if not self.store.batch_set([key], [torch.frombuffer(bytearray(data), dtype=torch.uint8)]):
            raise OSError(f"{key} was not stored")

    def get(self, key: str) -> bytes:
        page = self.store.batch_get([key])[0]
        if page is None:
            raise FileNotFoundError(f"a miss: 404 {key}")
        return page.numpy().tobytes()

    def size(self, key: str) -> int:
        if self.store.batch_exists([key, key + "-absent"]) != 1:
            raise AssertionError("HEAD says otherwise")
        return len(self.get(key))

    def delete(self, key: str) -> None:
        open_store(self.door, prefix=key.partition("/")[0]).clear()

    def delete_all(self, prefix: str) -> None:
        self.delete(prefix)


if __name__ == "__main__":
    main(SGLang)
