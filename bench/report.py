"""What a benchmark measures and how its one JSON line looks.

Owns the record of a measurement, the timing loop, and the rendering; knows no subject. A number
from one machine means little on another, so a line carries its commit, its machine, and wherever
it can the ratio to a floor (memcpy, bare pread, a loopback socket) measured in the same run.
Holds: time comes from the Context's clock; CPU time from getrusage; each loop has a count.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvfs.clock import Clock, SystemClock

Value = str | int | float | bool
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Measurement:
    """Samples of one quantity under one set of parameters."""

    unit: str
    """`s`, `us`, `GB/s`, `1/s`, `ratio`, `bytes`, ...; `higher_is_better` follows from it."""
    samples: Sequence[float]
    params: Mapping[str, Value] = field(default_factory=dict)
    floor: Sequence[float] = ()
    """Samples of the floor in the same unit, taken in the same run; empty = none."""
    floor_name: str = ""

    @property
    def higher_is_better(self) -> bool:
        return self.unit.endswith("/s") or self.unit == "ratio"


Case = Callable[["Context"], "Measurement | Iterable[Measurement]"]


@dataclass(frozen=True, slots=True)
class Context:
    """What a case is given: a private directory, a clock, and how much effort to spend."""

    directory: Path
    """Empty, removed after the case."""
    quick: bool = False
    """A case halves its sizes or counts until it takes about a second."""
    clock: Clock = field(default_factory=SystemClock)

    def times_s(self, action: Callable[[], object], count: int, *, warmup: int = 1) -> list[float]:
        """Run `action` `warmup + count` times; return the wall seconds of the last `count`."""
        for _ in range(warmup):
            action()
        taken: list[float] = []
        for _ in range(count):
            start = self.clock.monotonic_ns()
            action()
            taken.append((self.clock.monotonic_ns() - start) / NS_PER_S)
        return taken

    def cpu_times_s(
        self, action: Callable[[], object], count: int, *, warmup: int = 1
    ) -> list[float]:
        """Like `times_s`, in CPU seconds of this process: what a busy neighbour does not change."""
        for _ in range(warmup):
            action()
        taken: list[float] = []
        for _ in range(count):
            start = cpu_seconds()
            action()
            taken.append(cpu_seconds() - start)
        return taken


def cpu_seconds() -> float:
    """Return the user and system seconds that this process, all threads, has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident_bytes(pid: int | str = "self") -> int:
    """Return RssAnon of a process: what it holds itself, without mapped files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def throughput_gb_s(length: int, seconds: Iterable[float]) -> list[float]:
    """Turn durations of handling `length` bytes into GB/s (1e9 bytes)."""
    return [length / max(taken, 1e-9) / 1e9 for taken in seconds]


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile; `share` in (0, 1]."""
    ordered = sorted(samples)
    rank = max(1, -(-len(ordered) * int(share * 1000) // 1000))
    return ordered[min(rank, len(ordered)) - 1]


def worst_1_percent(measurement: Measurement) -> float:
    """Return the value that 99 % of the samples are at least as good as."""
    if measurement.higher_is_better:
        return -percentile([-sample for sample in measurement.samples], 0.99)
    return percentile(measurement.samples, 0.99)


def render_line(name: str, measurement: Measurement, commit: str, machine: str) -> str:
    """Return the JSON line of one measurement."""
    median = statistics.median(measurement.samples)
    line: dict[str, object] = {
        "case": name,
        "params": dict(measurement.params),
        "n": len(measurement.samples),
        "median": _rounded(median),
        "p99": _rounded(worst_1_percent(measurement)),
        "unit": measurement.unit,
    }
    if measurement.floor:
        floor = statistics.median(measurement.floor)
        line["floor"] = {"name": measurement.floor_name, "median": _rounded(floor)}
        line["ratio_to_floor"] = _rounded(median / floor) if floor else None
    line["commit"] = commit
    line["machine"] = machine
    return json.dumps(line)


def run_case(name: str, case: Case, context: Context, commit: str, machine: str) -> Iterator[str]:
    """Run one case; yield a line for each measurement as soon as it is there."""
    outcome = case(context)
    measurements = (outcome,) if isinstance(outcome, Measurement) else outcome
    for measurement in measurements:
        yield render_line(name, measurement, commit, machine)


def describe_commit(root: Path) -> str:
    """Return the short commit of the tree at `root`, with `+` if changed; `unknown` without git."""
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=10"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"


def describe_machine() -> str:
    """Return processor, cores this process may use, kernel and Python."""
    cores = len(os.sched_getaffinity(0))
    return (
        f"{_processor()}; {cores} cores; Linux {platform.release()}; "
        f"Python {platform.python_version()}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
