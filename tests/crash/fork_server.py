"""Starts crash workers by fork from a process that has all imported and no store open.

A fresh interpreter takes 0.3 s; a fork 2 ms, so 2,000 kills fit in minutes. Each line on stdin
(JSON) is one worker; its process id is printed. A worker with a `gate` waits until that FIFO is
opened for writing, so a tracer can attach first. Workers are reaped by the kernel.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from tests.crash.collectors import run_collector
from tests.crash.workload import run_among_faults, run_worker


def _work(order: dict[str, object]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the index probe waits for a child
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    if order.get("gate"):
        Path(str(order["gate"])).read_bytes()
    root, log = Path(str(order["root"])), Path(str(order["log"]))
    number, seed, steps = (int(str(order[name])) for name in ("number", "seed", "steps"))
    if order.get("role"):
        run_collector(root, str(order["role"]), seed, log, bool(order["keeps"]))
    elif order.get("has_faults"):
        run_among_faults(root, number, seed, log, steps)
    else:
        run_worker(root, number, seed, log, bool(order["keeps"]), steps)


def main() -> None:
    """Serve until stdin ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                _work(json.loads(line))
            except BaseException:
                os._exit(1)  # what it complained of stands in its log
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
