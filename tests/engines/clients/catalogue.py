"""Which clients are asked, in which environment each runs, and what each has no way to do.

`docs/s3-compat.md` shows the same as a table; a test compares them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Environment(enum.Enum):
    """Where a client is installed: clients pin each other's botocore, and engines bring torch."""

    OURS = ".venv"
    """As `make install` makes it; commands of Debian packages run from here too."""
    CLIENTS = ".venv-clients"
    ENGINES = ".venv-engines"


@dataclass(frozen=True, slots=True)
class Asked:
    """One client as it is asked."""

    release: str
    """Name and version; of the packages that pip installs, the version that is pinned."""
    script: str
    environment: Environment
    option: str = ""
    cannot: Mapping[str, str] = field(default_factory=dict)
    """Operations that the client does not have, and why."""


OURS, CLIENTS, ENGINES = Environment

BY_VIRTUAL_HOST = "virtual host"
BOTO3_WAYS = ("when_supported", "when_required", "CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256")


def without(reason: str, *operations: str) -> dict[str, str]:
    return dict.fromkeys(operations, reason)


NO_CONDITION = without("puts without conditions", "put-once")
ONE_BY_ONE = without("deletes one by one", "delete-all")
NO_BUCKETS = without("makes no buckets", "create")
NO_PRESIGN = without("makes no URLs", "presign")
NO_DIGEST = without("sends no digest", "bad-digest")
NO_LISTING = without("lists nothing", "list", "page", "delete-all")
ONLY_READS = without(
    "only reads",
    "put-5",
    "put-64",
    "multipart",
    "copy",
    "delete",
    "delete-all",
    "put-once",
    "bad-digest",
)
A_TRANSFER = without(
    "puts, gets and asks for one object",
    "create",
    "list",
    "page",
    "copy",
    "delete",
    "delete-all",
    "put-once",
    "presign",
)
IN_ONE_PIECE = without("puts in one piece", "multipart")
A_CACHE = without("stores and loads whole pages", "range", "multipart", "copy", "put-once")

ASKED: dict[str, Asked] = {
    **{f"boto3, {way}": Asked("boto3 1.44", "boto3_client.py", OURS, way) for way in BOTO3_WAYS},
    "boto3, virtual host": Asked("boto3 1.44", "boto3_client.py", OURS, BY_VIRTUAL_HOST),
    "awscrt, no checksum": Asked(
        "awscrt 0.38", "awscrt_client.py", OURS, "none", {**NO_LISTING, **NO_PRESIGN, **NO_DIGEST}
    ),
    "awscrt, header": Asked(
        "awscrt 0.38", "awscrt_client.py", OURS, "header", {**NO_LISTING, **NO_PRESIGN}
    ),
    "awscrt, trailer": Asked(
        "awscrt 0.38", "awscrt_client.py", OURS, "trailer", {**NO_LISTING, **NO_PRESIGN}
    ),
    "awscli": Asked("awscli 1.46.2", "awscli_client.py", CLIENTS),
    "s3cmd": Asked(
        "s3cmd 2.3.0",
        "s3cmd_client.py",
        OURS,
        cannot={**without("gets whole objects", "range"), **NO_CONDITION},
    ),
    "rclone": Asked("rclone 1.60.1", "rclone_client.py", OURS, cannot=NO_CONDITION),
    "s3fs": Asked("s3fs 2026.9.0", "s3fs_client.py", CLIENTS),
    "minio-py": Asked("minio 7.2.20", "minio_client.py", CLIENTS, cannot=NO_CONDITION),
    "obstore": Asked("obstore 0.12.1", "obstore_client.py", CLIENTS, cannot=NO_BUCKETS),
    "opendal": Asked("opendal 0.47.12", "opendal_client.py", CLIENTS, cannot=NO_BUCKETS),
    "pyarrow": Asked(
        "pyarrow 26.0.1", "pyarrow_client.py", CLIENTS, cannot={**NO_PRESIGN, **NO_CONDITION}
    ),
    "pyarrow, virtual host": Asked(
        "pyarrow 26.0.1",
        "pyarrow_client.py",
        CLIENTS,
        BY_VIRTUAL_HOST,
        {**NO_PRESIGN, **NO_CONDITION},
    ),
    "s3torchconnector": Asked(
        "s3torchconnector 1.5.0",
        "s3torchconnector_client.py",
        ENGINES,
        cannot={**NO_BUCKETS, **NO_PRESIGN, **NO_DIGEST, **NO_CONDITION, **ONE_BY_ONE},
    ),
    "runai-model-streamer": Asked(
        "runai-model-streamer 0.17.0",
        "runai_client.py",
        ENGINES,
        cannot={**NO_BUCKETS, **NO_PRESIGN, **ONLY_READS},
    ),
    "NIXL OBJ, default": Asked(
        "nixl 1.5.1", "nixl_client.py", ENGINES, "default", {**A_TRANSFER, **IN_ONE_PIECE}
    ),
    "NIXL OBJ, req_checksum": Asked(
        "nixl 1.5.1", "nixl_client.py", ENGINES, "required", {**A_TRANSFER, **IN_ONE_PIECE}
    ),
    "NIXL OBJ, virtual host": Asked(
        "nixl 1.5.1", "nixl_client.py", ENGINES, BY_VIRTUAL_HOST, {**A_TRANSFER, **IN_ONE_PIECE}
    ),
    "NIXL OBJ, CRT": Asked("nixl 1.5.1", "nixl_client.py", ENGINES, "CRT", A_TRANSFER),
    "SGLang seaweedfs": Asked(
        "sglang 0.5.23",
        "sglang_client.py",
        ENGINES,
        cannot={**A_CACHE, **without("lists nothing", "list", "page"), **NO_PRESIGN},
    ),
}
