"""A store, workers on it, and the killing: what the crash tests drive."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from kvfs.clock import ManualClock
from kvfs.config import process_environment
from kvfs.errors import Corrupt, NotFound
from kvfs.model import Durability, ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.store.store import Store
from tests.crash.contents import number_of
from tests.crash.ledger import Promises
from tests.crash.workload import BUCKET

ROOT = Path(__file__).resolve().parents[2]
DEATH_S = 60.0
FAR = 1_700_000_000_000_000_000 + 10_000_000 * 1_000_000_000
"""Later than any worker's clock."""


class ForkServer:
    """The process that forks workers."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.fork_server"],
            cwd=ROOT,
            env={**process_environment(), "PYTHONPATH": f"{ROOT}:{ROOT}/tools:{ROOT}/gateway"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, **order: object) -> int:
        """Start one worker; return its process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the server (its workers are dead by now)."""
        self._process.communicate(timeout=DEATH_S)


def wait_dead(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([descriptor], [], [], DEATH_S)
        assert ready, f"process {pid} did not end"
    finally:
        os.close(descriptor)


def kill(pid: int) -> None:
    """SIGKILL a worker and wait for its end."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    wait_dead(pid)


def let_run(pids: list[int], seconds: float) -> None:
    """Return after `seconds`, or as soon as one of `pids` has ended."""
    descriptors: list[int] = []
    try:
        descriptors.extend(os.pidfd_open(pid) for pid in pids)
        select.select(descriptors, [], [], seconds)
    except ProcessLookupError:
        pass  # it has ended; what it complained of stands in its log
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@dataclass(slots=True)
class Tally:
    """What a run has seen."""

    kills: int = 0
    rounds: int = 0
    acknowledged: int = 0
    names_checked: int = 0
    hashed: int = 0
    forgotten: int = 0
    """Names whose acknowledged content was a miss; only a power cut at `cache` may cause one."""


def _is_fault(complaint: str) -> bool:
    """Return whether a worker may not say so even when the disk is gone."""
    return "torn" in complaint or "I4" in complaint or "Traceback" in complaint


class Crew:
    """One store, its workers, and what they promised."""

    def __init__(
        self,
        root: Path,
        server: ForkServer,
        *,
        keeps: bool,
        durability: Durability,
        seed: int,
        logs: Path | None = None,
        is_power_cut: bool = False,
    ) -> None:
        """logs: where the promises go, when not beside the store. is_power_cut: what was not
        acknowledged as durable may be missing or as it was before."""
        self.root = root
        self.keeps = keeps
        self.tally = Tally()
        self.chance = random.Random(seed)
        self._server = server
        self._promises = Promises()
        self._may_forget = not keeps or (is_power_cut and durability is Durability.CACHE)
        self._is_power_cut = is_power_cut
        self._logs = logs or root.with_name(root.name + "-logs")
        self._logs.mkdir()
        self._seed = seed * 1_000_000
        capacity = (256 << 20) if keeps else (6 << 20)
        init_store(root, capacity_bytes=capacity, durability=durability)
        with open_store(root) as store:
            store.create_namespace(BUCKET)

    def start(
        self,
        number: int,
        *,
        steps: int = 100_000,
        gate: Path | None = None,
        has_faults: bool = False,
        role: str = "",
    ) -> int:
        """Start worker `number`, or what plays `role`; return its process id."""
        self._seed += 1
        return self._server.start(
            root=str(self.root), number=number, seed=self._seed % 1_000_000, steps=steps,
            log=str(self.log_of(number)), keeps=self.keeps,
            gate=str(gate) if gate else "", has_faults=has_faults, role=role,
        )  # fmt: skip

    def log_of(self, number: int) -> Path:
        """Return where worker `number` writes its promises."""
        return self._logs / f"{number}.log"

    def verify(self) -> None:
        """With every worker dead: open, and hold the store against all that was promised."""
        for log in sorted(self._logs.glob("*.log")):
            self._promises.read(log)
        # When the disk is gone a worker may end as it likes, but never have read torn bytes.
        wrong = [text for text in self._promises.wrong if not self._is_power_cut or _is_fault(text)]
        assert not wrong, wrong
        self.tally.acknowledged = self._promises.acknowledged
        with open_store(self.root, clock=ManualClock(FAR)) as store:
            assert not list((self.root / "index").glob("damaged-*")), "the index was damaged"
            self._verify_rows(store)
            self._verify_names(store)
            if self._is_power_cut:
                store.check(repair=True)
            store.empty_trash()
            store.sweep()
            report = store.check(is_full=True)
            self.tally.hashed += report.bytes_hashed
            assert report.is_clean, report.findings
            assert not list((self.root / "staging").iterdir())
        self.tally.rounds += 1

    def _verify_rows(self, store: Store) -> None:
        report = store.check()
        expected = {"orphan-file", "dead-staging", "dead-lease"}
        if self._is_power_cut and self._may_forget:
            expected |= {"block-file-missing", "block-file-length", "mutable-file-missing"}
        strange = [each for each in report.findings if each.code not in expected]
        assert not strange, strange
        usage = store.usage()
        assert usage.resident_bytes + usage.reserved_bytes <= usage.capacity_bytes

    @staticmethod
    def _held(store: Store, path: ObjectPath) -> int | None:
        try:
            return number_of(store.get(path))
        except (NotFound, Corrupt):
            return None

    def _verify_names(self, store: Store) -> None:
        for name, may_hold in self._promises.may_hold.items():
            path = ObjectPath(BUCKET, name.encode())
            held = self._held(store, path)
            allowed = may_hold
            if self._may_forget:
                allowed = allowed | {None} | self._promises.ever_held.get(name, set())
            assert held in allowed, f"{name} holds {held}, not one of {allowed}"
            self.tally.forgotten += held is None and None not in may_hold
            self._promises.settle(name, held)
            self.tally.names_checked += 1
