"""A plan over a store of a million names: `kvfs-gc --dry-run`, rules and name parsing included.

The index is real, its block files are left out: a plan reads none. The process that plans is the
real command, and its CPU seconds and private memory are its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.cases.store_index import fill
from bench.report import Context, Measurement
from kvfs.open_store import init_store, open_store
from kvfs.policy.settings import FILE_NAME

ROOT = Path(__file__).resolve().parents[2]
RULES = """
[[rule]]
class = "session"
path = "chat/*"

[[rule]]
class = "system"
namespace = "prod*"
path = "*/prompts/*"

[[rule]]
class = "month"
engine = "lmcache"
model = "*llama*"

[[rule]]
class = "keep"
engine = "lmcache-mp"
model = "Qwen*"
"""
PLAN = """
import sys, threading, time
from kvfs_tools.gc import run
peak, over = 0, threading.Event()
def watch():
    global peak
    while not over.wait(0.1):
        with open("/proc/self/status") as status:
            used = [line for line in status if line.startswith("RssAnon")][0].split()[1]
        peak = max(peak, int(used) * 1024)
watcher = threading.Thread(target=watch)
watcher.start()
start, cpu = time.monotonic(), time.process_time()
code = run(sys.argv[1:])
taken, cpu = time.monotonic() - start, time.process_time() - cpu
over.set()
watcher.join()
print(taken, cpu, peak)
sys.exit(code)
"""


def bench_plan__million_names_in_a_store(context: Context) -> Iterator[Measurement]:
    """Seconds, CPU seconds and the most RssAnon of `kvfs-gc --dry-run --json`."""
    count = 20_000 if context.quick else 1_000_000
    root = context.directory / "store"
    init_store(root, capacity_bytes=1 << 50)
    with open_store(root) as store:
        fill(store, count)
    (root / FILE_NAME).write_text(RULES)
    for _ in range(1 if context.quick else 3):
        yield from _plan(root)


def _plan(root: Path) -> Iterator[Measurement]:
    done = subprocess.run(
        [sys.executable, "-c", PLAN, "--store", str(root), "--dry-run", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tools:{ROOT}/gateway"},
    )
    document, numbers = done.stdout.splitlines()
    taken_s, cpu_s, resident = (float(each) for each in numbers.split())
    plan = json.loads(document)
    params = {"names": plan["examined"], "blocks": plan["blocks"]}
    yield Measurement("s", [taken_s], params | {"what": "wall"})
    yield Measurement("s", [cpu_s], params | {"what": "cpu"})
    yield Measurement("bytes", [resident], params | {"what": "RssAnon"})
