"""Parts of `kvfs up`: watched while they start, ended for certain."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kvfs.errors import Unavailable
from kvfs_tools.child_processes import Child, start_child, stop_child, wait_until_ready

DEAF = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('deaf', flush=True); sys.stdin.read()"
)


def test_a_part_that_ends_before_it_serves_is_named_with_its_code() -> None:
    child = start_child("gateway", "raise SystemExit(7)", [])
    with pytest.raises(Unavailable, match="gateway ended with code 7"):
        wait_until_ready(child, lambda: False)


def test_a_part_that_never_serves_is_given_up_after_a_while() -> None:
    child = start_child("mount", "import threading; threading.Event().wait(60)", [])
    try:
        with pytest.raises(Unavailable, match="did not serve within"):
            wait_until_ready(child, lambda: False, seconds=0.2)
    finally:
        assert stop_child(child)
    assert not child.is_running


def test_a_part_that_ignores_sigterm_is_killed() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    child = Child("gateway", process)
    assert process.stdout is not None
    assert process.stdin is not None
    with process.stdout, process.stdin:
        process.stdout.readline()
        assert not stop_child(child, seconds=0.5)
        assert not child.is_running


def test_a_part_that_has_ended_needs_no_stopping() -> None:
    child = start_child("gateway", "pass", [])
    child.process.wait(60)
    assert stop_child(child)
