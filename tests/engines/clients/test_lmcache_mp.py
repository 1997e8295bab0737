"""LMCache's multi-process mode over S3: the real adapter, by each address that it can be given."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.engines.clients.test_clients import Environment, python_of
from tests.engines.doors import BUCKET, Gateway, resolving

pytestmark = [pytest.mark.slow, pytest.mark.s3]

CLIENT = Path(__file__).with_name("lmcache_mp_client.py")
LENGTHS = [1 << 20, 33 << 20, 7, 5 << 20, 64 << 20]
"""Some in one piece and some by parts of 8 MiB, the last of them whole or short."""
WAIT_SECONDS = 200


def run(request: dict[str, Any], settings: dict[str, str]) -> dict[str, Any]:
    foreign = ("KVFS_", "AWS_", "LMCACHE_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    done = subprocess.run(
        [str(python_of(Environment.ENGINES)), str(CLIENT), json.dumps(request)],
        env={**kept, **settings, "LMCACHE_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return result


@pytest.mark.parametrize("way", ["bare", "bucket-in-host", "virtual-host"])
def test_the_adapter_stores_finds_loads_lists_and_deletes(
    gateway: Gateway, tmp_path: Path, way: str
) -> None:
    address = {
        "bare": gateway.engine_address,
        "bucket-in-host": f"127.0.0.1:{gateway.port}/{BUCKET}",
        "virtual-host": gateway.virtual_address,
    }[way]
    result = run(
        {
            "s3_endpoint": address,
            "model": f"org/{way}",
            "lengths": LENGTHS,
            "access_key": gateway.access_key,
            "secret_key": gateway.secret_key,
        },
        resolving(tmp_path, BUCKET),
    )
    everything = [True] * len(LENGTHS)
    assert result["stored"] == sum(LENGTHS)
    assert result["found"] == [*everything, False]
    assert result["loaded"] == everything
    assert sorted(result["listed"]) == sorted(LENGTHS)
    assert result["after_delete"] == [False, *everything[1:]]
    assert result["wrong_key"] == [-1, [False] * len(LENGTHS)]
    names = gateway.client().list_objects_v2(Bucket=BUCKET, Prefix=f"org/{way}@")["Contents"]
    assert sorted(item["Size"] for item in names) == sorted(LENGTHS[1:])
