"""systemd itself reads the units in systemd/, and their sandboxes stay as tight as they are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.source_tree import ROOT

UNITS = ROOT / "systemd"
EXPOSURE = {"kvfs-gc@.service": 1.0, "kvfs-gateway@.service": 2.0, "kvfs@.service": 4.5}
"""The highest exposure that `systemd-analyze security` may give; the mount must reach the host's
mount namespace and /dev/fuse, so it cannot be as tight as the others."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def test_every_unit_is_in_the_table() -> None:
    assert {path.name for path in UNITS.glob("*.service")} == set(EXPOSURE)


@needs_systemd
@pytest.mark.parametrize("name", EXPOSURE)
def test_the_sandbox_is_as_tight_as_the_service_allows(name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNITS / name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE[name]


@needs_systemd
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    # The commands are not installed where this runs, and `verify` wants them to exist.
    for path in [*UNITS.glob("*.service"), *UNITS.glob("*.timer")]:
        text = re.sub(r"/usr/local/bin/kvfs[a-z-]*", "/usr/bin/true", path.read_text())
        text = re.sub(r"(User|Group)=kvfs", r"\1=root", text)
        (tmp_path / path.name.replace("@", "@main")).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert (done.returncode, complaints) == (0, []), done.stderr


def test_no_secret_stands_on_a_command_line_or_in_a_unit() -> None:
    for path in UNITS.iterdir():
        text = path.read_text()
        assert not re.search(r"^(ExecStart|Environment)=.*SECRET_KEY=", text, re.MULTILINE), path
    assert "LoadCredential=secret_key:" in (UNITS / "kvfs-gateway@.service").read_text()


def test_the_timer_catches_up_and_spreads_its_runs() -> None:
    text = (UNITS / "kvfs-gc@.timer").read_text()
    assert "Persistent=true" in text
    assert "RandomizedDelaySec=" in text
