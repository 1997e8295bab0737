"""Paste-ready settings for each engine: pure text from a handful of addresses.

Owns the option names, which were checked against the engines' own sources (LMCache 0.5.6, vLLM
0.33, SGLang 0.5.23, NIXL 1.5.1, Mooncake 0.3.13); refuses to know whether anything runs there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvfs.config import Credential
from kvfs.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Doors:
    """Where the store is reached. An empty `mount` means that it is not mounted."""

    mount: str
    listen: str
    engine_listen: str
    bucket: str
    credential: Credential

    @property
    def directory(self) -> str:
        """The bucket as the mount shows it."""
        return f"{self.mount.rstrip('/')}/{self.bucket}"

    @property
    def url(self) -> str:
        return f"http://{self.listen}"


def settings_of(engine: str, doors: Doors) -> str:
    """Return the settings for `engine`, one of ENGINES.

    Raises: InvalidArgument.
    """
    render = ENGINES.get(engine)
    if render is None:
        raise InvalidArgument(f"{engine!r} is none of the engines: {', '.join(ENGINES)}.")
    return render(doors)


def _lmcache(doors: Doors) -> str:
    return f"""\
# LMCache in the engine's process, through the S3 door: save as lmcache.yaml, start the engine with
#   LMCACHE_CONFIG_FILE=lmcache.yaml PYTHONHASHSEED=0
chunk_size: 256
save_unfull_chunk: false
remote_url: "s3://{doors.engine_listen}"
remote_serde: naive
extra_config:
  s3_region: us-east-1
  s3_prefer_http2: false
  disable_tls: true
  save_chunk_meta: false
  aws_access_key_id: {doors.credential.access_key}
  aws_secret_access_key: {doors.credential.secret_key}"""


def _lmcache_fs(doors: Doors) -> str:
    return f"""\
# LMCache in the engine's process, through the mount: save as lmcache.yaml, start the engine with
#   LMCACHE_CONFIG_FILE=lmcache.yaml PYTHONHASHSEED=0
chunk_size: 256
save_unfull_chunk: false
remote_serde: naive
remote_storage_plugins: ["fs"]
extra_config:
  remote_storage_plugin.fs.base_path: {doors.directory}/lmcache
  save_chunk_meta: false"""


def _lmcache_server(doors: Doors) -> str:
    through_mount = {
        "type": "fs_native",
        "base_path": f"{doors.directory}/lmcache-mp",
        "num_workers": 32,
    }
    through_s3 = {
        "type": "s3",
        "s3_endpoint": doors.engine_listen,
        "s3_region": "us-east-1",
        "s3_prefer_http2": False,
        "disable_tls": True,
        "aws_access_key_id": doors.credential.access_key,
        "aws_secret_access_key": doors.credential.secret_key,
        "max_capacity_gb": 0,
    }
    start = "lmcache server --l1-size-gb 100 --eviction-policy LRU --l2-adapter"
    return f"""\
# LMCache's own server, through the mount:
{start} '{json.dumps(through_mount)}'
# ... or through the S3 door:
{start} '{json.dumps(through_s3)}'"""


def _vllm(doors: Doors) -> str:
    tier = {
        "type": "fs",
        "root_dir": f"{doors.directory}/vllm",
        "n_read_threads": 32,
        "n_write_threads": 16,
    }
    return f"# vLLM's own offloading, through the mount:\n{_vllm_command(tier)}"


def _vllm_obj(doors: Doors) -> str:
    tier = {
        "type": "obj",
        "store_config": {
            "bucket": doors.bucket,
            "endpoint_override": doors.url,
            "scheme": "http",
            "access_key": doors.credential.access_key,
            "secret_key": doors.credential.secret_key,
            "region": "us-east-1",
        },
        "prefix": "vllm",
    }
    return f"# vLLM's own offloading, through the S3 door:\n{_vllm_command(tier)}"


def _vllm_command(tier: Mapping[str, object]) -> str:
    config = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "TieringOffloadingSpec",
            "cpu_bytes_to_use": 68_719_476_736,
            "block_size": 256,
            "secondary_tiers": [tier],
        },
    }
    return f"PYTHONHASHSEED=0 vllm serve MODEL --kv-transfer-config '{json.dumps(config)}'"


def _sglang(doors: Doors) -> str:
    return f"""\
# SGLang HiCache, through the mount:
SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR={doors.directory}/sglang \\
  sglang serve --model-path MODEL --page-size 64 --enable-hierarchical-cache --hicache-ratio 2 \\
  --hicache-storage-backend file --hicache-storage-prefetch-policy timeout"""


def _sglang_nixl(doors: Doors) -> str:
    return f"""\
# SGLang HiCache over NIXL, through the mount; kvfs owns deletion, so its cleaner stays off.
# hicache.toml:
#   l3_cleaner_enabled = false
#   [plugin.posix]
#   active = true
#   use_uring = "true"
SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR={doors.directory}/sglang-nixl \\
  sglang serve --model-path MODEL --page-size 64 --enable-hierarchical-cache --hicache-ratio 2 \\
  --hicache-storage-backend nixl --hicache-storage-backend-extra-config @hicache.toml"""


def _nixl(doors: Doors) -> str:
    parameters = {
        "bucket": doors.bucket,
        "endpoint_override": doors.url,
        "scheme": "http",
        "access_key": doors.credential.access_key,
        "secret_key": doors.credential.secret_key,
        "region": "us-east-1",
        "use_virtual_addressing": "false",
    }
    return f"""\
# NIXL POSIX: paths under {doors.directory}, parameters:
{json.dumps({"use_uring": "true"})}
# NIXL OBJ, parameters:
{json.dumps(parameters)}"""


def _mooncake(doors: Doors) -> str:
    return f"""\
# Mooncake store, through the mount; its clients refuse to start where the directory is missing.
mkdir -p {doors.directory}/mooncake
mooncake_master --root_fs_dir={doors.directory}/mooncake --cluster_id=kvfs"""


def _dynamo(doors: Doors) -> str:
    return f"""\
# Dynamo KVBM: G3 is the mount, G4 the S3 door.
export DYN_KVBM_CPU_CACHE_GB=64 DYN_KVBM_DISK_CACHE_GB=512
export DYN_KVBM_DISK_CACHE_DIR={doors.directory}/kvbm
export DYN_KVBM_OBJECT_ENABLED=1 DYN_KVBM_OBJECT_BUCKET={doors.bucket}
export DYN_KVBM_OBJECT_ENDPOINT={doors.url} DYN_KVBM_OBJECT_REGION=us-east-1
export DYN_KVBM_OBJECT_ACCESS_KEY={doors.credential.access_key}
export DYN_KVBM_OBJECT_SECRET_KEY={doors.credential.secret_key}"""


def _llm_d(doors: Doors) -> str:
    config = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "SharedStorageOffloadingSpec",
            "spec_module_path": "llmd_fs_backend.spec",
            "shared_storage_path": f"{doors.directory}/llm-d/",
            "block_size": 256,
            "threads_per_gpu": "64",
        },
    }
    return f"""\
# llm-d's fs backend, through the mount (newer releases: see `kvfs env vllm`):
--kv-transfer-config '{json.dumps(config)}'"""


ENGINES: dict[str, Callable[[Doors], str]] = {
    "lmcache": _lmcache,
    "lmcache-fs": _lmcache_fs,
    "lmcache-server": _lmcache_server,
    "vllm": _vllm,
    "vllm-obj": _vllm_obj,
    "sglang": _sglang,
    "sglang-nixl": _sglang_nixl,
    "nixl": _nixl,
    "mooncake": _mooncake,
    "dynamo": _dynamo,
    "llm-d": _llm_d,
}
