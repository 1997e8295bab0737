"""LMCache's own file connector on the mount, against the same on a plain directory, in turns.

Needs the engines' environment (`make install-engines`); LMCache runs there, in its own process.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.mounting import mounted
from bench.report import Context, Measurement, throughput_gb_s

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "bench" / "lmcache_turns.py"
PYTHON = Path(os.environ.get("KVFS_TEST_ENGINES_PYTHON") or ROOT / ".venv-engines/bin/python")
LIMIT_SECONDS = 900.0
WARMUP = 4
"""Chunks: LMCache's memory is touched for the first time, its thread pool begins."""


def bench_mount_lmcache__fs_connector_32MiB_chunks(context: Context) -> Iterator[Measurement]:
    """Target: store and retrieve at 0.8 of the same on the disk's own file system."""
    if not PYTHON.exists():
        raise OSError(f"{PYTHON} is missing: run `make install-engines`")
    plain = context.directory / "plain"
    plain.mkdir()
    with mounted(context) as made:
        found = run_client(3 if context.quick else 12, made.folder, plain)
    seconds = found["seconds"]
    for action in ("store", "retrieve"):
        yield Measurement(
            "GB/s",
            throughput_gb_s(found["bytes"], seconds[str(made.folder)][action][WARMUP:]),
            {"action": action},
            floor=throughput_gb_s(found["bytes"], seconds[str(plain)][action][WARMUP:]),
            floor_name="the same connector on a plain directory",
        )


def run_client(rounds: int, *folders: Path) -> dict[str, Any]:
    """Run LMCache over `folders`; return what it printed."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("KVFS_", "LMCACHE_"))}
    keep |= {
        "PYTHONPATH": str(ROOT / "tests" / "engines"),
        "PYTHONHASHSEED": "0",
        "LMCACHE_TRACK_USAGE": "false",
        "LMCACHE_LOG_LEVEL": "ERROR",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [str(PYTHON), str(CLIENT), str(rounds), *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
        env=keep,
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            document: dict[str, Any] = json.loads(line[7:])
            return document
    raise RuntimeError(f"LMCache ended with {done.returncode}: {done.stderr[-2000:]}")
