"""Running one command of a client that is a program, with its files in a directory of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

WAIT_SECONDS = 100


class CommandFailed(Exception):
    """The command's exit code was not 0; the message is what it printed."""


def run(command: list[str], settings: Mapping[str, str]) -> bytes:
    """Run `command` with `settings` in its environment; return what it printed."""
    done = subprocess.run(
        command,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=WAIT_SECONDS,
    )
    if done.returncode != 0:
        raise CommandFailed((done.stdout[-1000:] + done.stderr[-2000:]).decode(errors="replace"))
    return done.stdout


def file_of(scratch: str, data: bytes) -> str:
    """Return the name of a file with these bytes."""
    path = Path(scratch) / "to-put"
    path.write_bytes(data)
    return str(path)


def new_file(scratch: str) -> Path:
    """Return a name for what a command gets; nothing is there."""
    path = Path(scratch) / "got"
    path.unlink(missing_ok=True)
    return path
