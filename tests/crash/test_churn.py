"""Processes write ten times what the store may hold: capacity is never exceeded, and files, memory
and index stay bounded (I4, I8)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvfs.config import process_environment
from kvfs.open_store import init_store, open_store
from tests.crash.crew import ROOT

pytestmark = [pytest.mark.crash, pytest.mark.slow]

PROCESSES = 8
OBJECT = 64 * 1024
BOUNDED_OBJECTS, SOAK_OBJECTS = 60, 3_000
"""Written by each process."""
WORKER = """
import json, os, sys
from pathlib import Path
from kvfs.errors import NoSpace, NotFound
from kvfs.model import ObjectPath
from kvfs.open_store import open_store

root, number, count, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
anon = lambda: next(int(line.split()[1]) for line in open("/proc/self/status") if "RssAnon" in line)
over = refused = wrong = early = 0
with open_store(root, background=number % 2 == 0) as store:
    for each in range(count):
        path = ObjectPath(b"kv", b"m@2@%d@%032x@half" % (number % 2, each * 8 + number // 2))
        data = path.key.ljust(40) + os.urandom(length - 40)
        try:
            store.put(path, data)
        except NoSpace:
            refused += 1
        try:
            other = ObjectPath(b"kv", b"m@2@%d@%032x@half" % (number % 2, each * 4 + number // 2))
            wrong += not store.get(other).startswith(other.key)
        except NotFound:
            pass
        usage = store.usage()
        over += usage.resident_bytes + usage.reserved_bytes > usage.capacity_bytes
        early = anon() if each == count // 3 else early
    late = anon()
    files = len(os.listdir("/proc/self/fd"))
print(json.dumps([over, refused, wrong, early, late, files]))
"""


def test_i4_eight_processes_write_ten_times_the_capacity(tmp_path: Path, is_soak: bool) -> None:
    count = SOAK_OBJECTS if is_soak else BOUNDED_OBJECTS
    root, capacity = tmp_path / "s", PROCESSES * count * OBJECT // 10
    init_store(root, capacity_bytes=capacity)
    (root / "lifecycle.toml").write_text("grace_seconds = 0\ndaemon_check_seconds = 1\n")
    with open_store(root) as store:
        store.create_namespace(b"kv")
    environment = {**process_environment(), "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(root), str(number), str(count), str(OBJECT)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(PROCESSES)
    ]
    try:
        outcomes = [json.loads(each.communicate(timeout=1800)[0]) for each in workers]
    finally:
        for each in workers:
            each.kill()
            each.wait()
    for over, refused, wrong, early_kib, late_kib, descriptors in outcomes:
        assert (over, refused, wrong) == (0, 0, 0)
        assert late_kib < early_kib + 32 * 1024
        assert descriptors < 64
    with open_store(root) as store:
        usage = store.usage()
        assert usage.resident_bytes <= capacity
        assert sum(1 for _ in store.context.files.walk()) == usage.block_count
        assert store.check().is_clean
        assert not list((root / "index").glob("dropped-*"))
    index = (root / "index" / "data.mdb").stat().st_size
    # Rows take 0.6 KB an object; freed pages are used again, and a copy-on-write index needs room.
    assert index < (8 << 20) + 4 * 1024 * capacity // OBJECT
    print(f"written={PROCESSES * count * OBJECT} capacity={capacity} index={index} {outcomes}")
