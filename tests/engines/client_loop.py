"""What the scripts that run an engine share: requests answered by lines, and packages made hollow.

Runs in the engines' environment; imported before the engine. Standard output is kept for the
answers: what an engine prints itself goes to standard error, the log.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import random
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def serve(actions: dict[str, Callable[..., Any]]) -> None:
    """Answer requests from standard input, one a line, until it ends."""
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": actions[request.pop("action")](**request)}
        except Exception:  # told to the test, which fails with it
            answer = {"error": traceback.format_exc()}
        _answers.write(json.dumps(answer) + "\n")
        _answers.flush()


def hollow(*packages: str) -> None:
    """Let packages be found without running their `__init__`, which asks for CUDA or the network.

    Every module below them is the engine's own file, unchanged.
    """
    top = packages[0].partition(".")[0]
    spec = importlib.util.find_spec(top)
    assert spec is not None, f"{top} is not installed"
    assert spec.submodule_search_locations
    base = Path(spec.submodule_search_locations[0])
    for package in packages:
        module = types.ModuleType(package)
        module.__path__ = [str(base.joinpath(*package.split(".")[1:]))]
        sys.modules[package] = module


def load_no_cuda(*libraries: str) -> None:
    """Load stand-ins for libraries of CUDA (no_cuda.c), before the code that names them."""
    for library in libraries:
        ctypes.CDLL(str(Path(sys.prefix) / "no-cuda" / library), mode=ctypes.RTLD_GLOBAL)


def content(seed: int, length: int) -> bytes:
    """Return the bytes that a seed stands for, in any process."""
    return random.Random(seed).randbytes(length)


def digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()
