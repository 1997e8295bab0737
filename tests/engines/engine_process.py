"""A process that runs one engine's real storage code, in the engines' environment, not in ours.

Owns the process and the lines to and from it: a request is one JSON line, its answer another (the
other end is client_loop.py). Its log is the message when it fails. Every wait is bounded.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pytest

from tests.engines.doors import ROOT

PYTHON = Path(os.environ.get("KVFS_TEST_ENGINES_PYTHON") or ROOT / ".venv-engines/bin/python")
ENGINES = PYTHON.parent.parent
FOLDER = Path(__file__).parent
ANSWER_SECONDS = 180.0
LOG_BYTES = 6000


def require_engines() -> None:
    """Skip, saying what to run, where the engines' environment is not installed."""
    if not PYTHON.exists():
        pytest.skip("the engines' environment is missing: run `make install-engines`")


def engine_environment(**more: str) -> dict[str, str]:
    """Return the environment of an engine: no settings of ours."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KVFS_", "LMCACHE_"))}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


class EngineProcess:
    """One running engine: `ask` sends it a request and returns its answer."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self.process = process
        self._log = log

    def ask(self, action: str, **request: Any) -> Any:
        """Run one action over there. Fails the test when it raises there."""
        self.send(action, **request)
        return self.receive()

    def send(self, action: str, **request: Any) -> None:
        assert self.process.stdin is not None
        assert self.process.poll() is None, f"the engine has ended; its log:\n{self.log()}"
        self.process.stdin.write(json.dumps({"action": action, **request}) + "\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        """Return the answer to the request sent last."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            ready = selector.select(ANSWER_SECONDS)
        assert ready, f"no answer within {ANSWER_SECONDS:.0f} s; its log:\n{self.log()}"
        line = self.process.stdout.readline()
        assert line, f"the engine ended; its log:\n{self.log()}"
        answer = json.loads(line)
        assert "error" not in answer, f"{answer['error']}\n{self.log()}"
        return answer["result"]

    def log(self) -> str:
        """Return the end of what the engine logged."""
        self._log.flush()
        return Path(self._log.name).read_text(errors="replace")[-LOG_BYTES:]


@contextlib.contextmanager
def engine_process(
    script: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[EngineProcess]:
    """Run `script`, a file of this folder, until the block ends."""
    with tempfile.NamedTemporaryFile("w+", prefix="kvfs-engine-", suffix=".log") as log:
        process = subprocess.Popen(
            [str(PYTHON), str(FOLDER / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=engine_environment(**(environment or {})),
        )
        try:
            yield EngineProcess(process, log)
        finally:
            process.kill()
            process.communicate()
