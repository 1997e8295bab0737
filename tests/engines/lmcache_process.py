"""Starts the real LMCache in its own environment and process, and reads its one line of result."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.engines.doors import WAIT_SECONDS, Gateway
from tests.engines.engine_process import PYTHON

CLIENT = Path(__file__).with_name("lmcache_client.py")

# Llama-3.1-8B as it is: 32 layers x 2 x 256 tokens x 8 heads x 128 x 2 bytes = 32 MiB a chunk.
LARGE = {"layers": 32, "heads": 8, "head_size": 128}


def s3_settings(gateway: Gateway, address: str) -> dict[str, Any]:
    """Return LMCache's settings for the S3 door at `address`."""
    return {
        "remote_url": f"s3://{address}",
        "extra_config": {
            "s3_region": "us-east-1",
            "disable_tls": True,
            "s3_prefer_http2": False,
            "s3_num_io_threads": 4,
            "aws_access_key_id": gateway.access_key,
            "aws_secret_access_key": gateway.secret_key,
        },
    }


def fs_settings(directory: Path, *, direct_io: bool = False) -> dict[str, Any]:
    """Return LMCache's settings for the mount."""
    return {
        "remote_url": f"fs://localhost:0{directory}",
        "extra_config": {"fs_connector_use_odirect": direct_io},
    }


def start(environment: Mapping[str, str] | None = None, **request: Any) -> subprocess.Popen[str]:
    """Start one LMCache process; see lmcache_client.py for what it can be asked."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("KVFS_", "LMCACHE_"))}
    settings = {
        **inherited,
        "PYTHONHASHSEED": "0",  # LMCache's names are hashes: every process must make the same
        "LMCACHE_TRACK_USAGE": "false",
        "LMCACHE_LOG_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
        **(environment or {}),
    }
    return subprocess.Popen(
        [str(PYTHON), str(CLIENT), json.dumps(request)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=settings,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a process; return its result. Its whole log is the message when it has none."""
    try:
        output, errors = process.communicate(timeout=3 * WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate(timeout=WAIT_SECONDS)
    results = [line for line in output.splitlines() if line.startswith("RESULT ")]
    assert process.returncode == 0, errors[-4000:]
    assert results, errors[-4000:]
    result: dict[str, Any] = json.loads(results[-1].removeprefix("RESULT "))
    return result


def lmcache(**request: Any) -> dict[str, Any]:
    """Run one LMCache process to its end; return its result."""
    return finish(start(**request))


def lmcache_together(requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run several LMCache processes at the same time; return their results in order."""
    processes = [start(**request) for request in requests]
    return [finish(process) for process in processes]
