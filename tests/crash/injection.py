"""One system call of a worker fails, or is its last: strace does it, at the n-th call."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.crash.crew import DEATH_S, Crew, wait_dead


def missing() -> str:
    """Return why system calls cannot be tampered with here, or ""."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    return "" if os.geteuid() == 0 else "attaching to a process needs root"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the `nth` call of `call`: `how` in strace's words."""

    call: str
    how: str
    nth: int

    def __str__(self) -> str:
        return f"{self.call}:{self.how}:when={self.nth}"


def run_with_fault(crew: Crew, fault: Fault, folder: Path, *, steps: int, has_faults: bool) -> bool:
    """Let one worker do `steps` operations under `fault`; return whether the call came to it."""
    gate, trace = folder / "gate", folder / "trace"
    gate.unlink(missing_ok=True)
    os.mkfifo(gate)
    pid = crew.start(0, steps=steps, gate=gate, has_faults=has_faults)
    held = gate.open("wb")  # returns once the worker waits there: no call before that counts
    command = ["strace", "-f", "-o", str(trace), "-p", str(pid), "-e", f"trace={fault.call}",
               "-e", f"inject={fault}"]  # fmt: skip
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    assert "attached" in line, line
    held.close()
    wait_dead(pid)
    tracer.communicate(timeout=DEATH_S)
    text = trace.read_text(errors="replace")
    return "(INJECTED)" in text or "killed by SIGKILL" in text
