"""kvfs ttl, pin, unpin, touch and du against a real store."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from kvfs.clock import ManualClock, SystemClock
from kvfs.config import process_environment
from kvfs.model import ObjectPath, Pin, PutOptions
from kvfs.open_store import init_store, open_store
from kvfs_tools.cli import run
from kvfs_tools.exit_codes import ExitCode

NAME = "m@2@1@5c7b@half"
PATH = ObjectPath(b"kv", NAME.encode())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    init_store(tmp_path / "s", capacity_bytes=1 << 24)
    with open_store(tmp_path / "s") as opened:
        opened.create_namespace(b"kv")
        opened.put(PATH, b"x" * 5000)
        opened.put(ObjectPath(b"kv", b"plain"), b"y" * 100)
    return tmp_path / "s"


def kvfs(store: Path, *arguments: str) -> ExitCode:
    return run([*arguments, "--store", str(store)])


def test_ttl_is_set_and_shown(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kvfs(store, "ttl", f"kv/{NAME}", "12h", "--fixed") is ExitCode.OK
    assert "12h" in capsys.readouterr().out
    assert kvfs(store, "ttl", f"kv/{NAME}", "--json") is ExitCode.OK
    shown = json.loads(capsys.readouterr().out)
    assert (shown["ttl_seconds"], shown["sliding"]) == (43_200, False)
    assert kvfs(store, "ttl", f"kv/{NAME}", "0") is ExitCode.OK
    assert "lifecycle.toml" in capsys.readouterr().out


def test_a_pin_holds_until_it_is_taken_off(store: Path) -> None:
    for arguments, expected in (
        (("pin", f"kv/{NAME}"), Pin.HARD),
        (("pin", "--soft", f"kv/{NAME}"), Pin.SOFT),
        (("unpin", f"kv/{NAME}"), Pin.NONE),
    ):
        assert kvfs(store, *arguments) is ExitCode.OK
        with open_store(store, read_only=True) as opened:
            assert opened.stat(PATH).pin is expected


def test_nothing_is_changed_when_one_of_the_names_is_absent(store: Path) -> None:
    assert kvfs(store, "pin", f"kv/{NAME}", "kv/absent") is ExitCode.ERROR
    with open_store(store, read_only=True) as opened:
        assert opened.stat(PATH).pin is Pin.NONE


def test_a_touch_starts_a_sliding_lifetime_anew(store: Path) -> None:
    ten_years = 10 * 365 * 86_400
    with open_store(store, clock=ManualClock()) as opened:
        before = opened.put(PATH, b"z", PutOptions(ttl_s=ten_years)).expires_at_s
    assert kvfs(store, "touch", f"kv/{NAME}") is ExitCode.OK
    with open_store(store, read_only=True) as opened:
        assert opened.stat(PATH).expires_at_s > before


@pytest.mark.parametrize(
    ("by", "values"),
    [
        ("bucket", {"kv"}),
        ("engine", {"lmcache", "unknown"}),
        ("model", {"m", "(unknown)"}),
        ("rank", {"1", "(unknown)"}),
        ("lifetime", {"by rule"}),
        ("age", {"unused for under 1m"}),
    ],
)
def test_du_answers_by(
    store: Path, capsys: pytest.CaptureFixture[str], by: str, values: set[str]
) -> None:
    assert kvfs(store, "du", "--by", by, "--json") is ExitCode.OK
    rows = json.loads(capsys.readouterr().out)
    assert {row[by] for row in rows} == values
    assert sum(row["objects"] for row in rows) == 2
    assert sum(row["bytes"] for row in rows) == 8192 + 4096
    assert kvfs(store, "du", "--by", by) is ExitCode.OK


def test_top_shows_hits_prefixes_and_what_goes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = ManualClock(SystemClock().now_ns() - 100 * 10**9)
    init_store(tmp_path / "t", capacity_bytes=1 << 24, clock=clock)
    with open_store(tmp_path / "t", clock=clock) as opened:
        opened.create_namespace(b"kv")
        for number in range(4):
            opened.put(ObjectPath(b"kv", b"chat/%d" % number), b"x" * 5000)
            clock.advance(1)
        clock.advance(80)
        for key in (b"chat/0", b"chat/0", b"chat/0", b"absent"):
            opened.find(ObjectPath(b"kv", key), touch=True)
        opened.put(ObjectPath(b"kv", b"new"), b"z")
    assert kvfs(tmp_path / "t", "top", "--once", "--json") is ExitCode.OK
    shown = json.loads(capsys.readouterr().out)
    assert (shown["used_objects"], shown["written_objects"]) == (1, 1)
    assert (shown["hits"], shown["misses"], shown["hit_ratio"]) == (3, 1, 0.75)
    assert shown["hottest_prefixes"] == [{"prefix": "kv/chat/", "used_objects": 1}]
    going = [each["path"] for each in shown["next_evictions"]]
    assert going[:3] == ["kv/chat/1", "kv/chat/2", "kv/chat/3"]
    assert kvfs(tmp_path / "t", "top", "--once") is ExitCode.OK
    assert "hottest prefixes" in capsys.readouterr().out
    assert kvfs(tmp_path / "t", "top", "--json") is ExitCode.USAGE


def test_top_shows_picture_after_picture_until_it_is_interrupted(store: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    terminal, shown_on = pty.openpty()
    command = [sys.executable, "-m", "kvfs_tools.cli", "top", "--interval", "0.05"]
    running = subprocess.Popen(
        [*command, "--store", str(store)],
        stdout=shown_on,
        env={**process_environment(), "PYTHONPATH": f"{root}:{root}/tools:{root}/gateway"},
    )
    os.close(shown_on)
    printed = b""
    try:
        while printed.count(b"hottest prefixes") < 2:
            ready, _, _ = select.select([terminal], [], [], 30)
            assert ready, printed
            printed += os.read(terminal, 65_536)
        running.send_signal(signal.SIGINT)
        with suppress(OSError):  # the terminal's other end is closed
            while select.select([terminal], [], [], 30)[0] and os.read(terminal, 65_536):
                pass
        assert running.wait(timeout=30) == 0
    finally:
        running.kill()
        running.wait()
        os.close(terminal)
