"""A client of Mooncake 0.3.13's store, its own C++ unmodified, without RDMA and without a GPU.

    python mooncake_client.py

Values come from seeds: the value of key `<name>-N` is `content(N)`.
"""

from __future__ import annotations

import os

from client_loop import content, digest, load_no_cuda, serve

load_no_cuda("libcudart.so.12")

from mooncake.store import MooncakeDistributedStore, ReplicaStatus  # noqa: E402

SEGMENT_BYTES = 512 << 20
BUFFER_BYTES = 128 << 20

store = MooncakeDistributedStore()


def start(port: int, metadata: str, master: str, settings: dict[str, str]) -> None:
    """Join the master. With `settings`, Mooncake's own variables, values go to disk from here."""
    os.environ.update(settings)
    os.environ["MC_TCP_BIND_ADDRESS"] = "127.0.0.1"
    code = store.setup(
        f"127.0.0.1:{port}",
        metadata,
        SEGMENT_BYTES,
        BUFFER_BYTES,
        "tcp",
        "",
        master,
        enable_ssd_offload=bool(settings),
    )
    assert code == 0, f"setup answered {code}"


def put(name: str, seeds: list[int], length: int) -> list[str]:
    values = [content(seed, length) for seed in seeds]
    for seed, value in zip(seeds, values, strict=True):
        code = store.put(f"{name}-{seed}", value)
        assert code == 0, f"put answered {code}"
    return [digest(value) for value in values]


def get(name: str, seeds: list[int]) -> list[str | None]:
    """Return the digests of the values; None where Mooncake has none."""
    values = [store.get(f"{name}-{seed}") for seed in seeds]
    return [digest(value) if value else None for value in values]


def exists(name: str, seeds: list[int]) -> list[bool]:
    return [store.is_exist(f"{name}-{seed}") == 1 for seed in seeds]


def are_on_disk(name: str, seeds: list[int]) -> bool:
    """Return whether the master has been told that the file of each value is complete."""
    return all(is_on_disk(f"{name}-{seed}") for seed in seeds)


def is_on_disk(key: str) -> bool:
    return any(
        (replica.is_disk_replica() or replica.is_local_disk_replica())
        and replica.status == ReplicaStatus.COMPLETE
        for replica in store.get_replica_desc(key)
    )


actions = (start, put, get, exists, are_on_disk)
serve({action.__name__: action for action in actions})
