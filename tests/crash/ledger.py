"""What a killed worker had promised: a log of begun and acknowledged changes, and how to read it.

A line is one write to a file opened with O_APPEND, so a SIGKILL loses none that was begun. A
change that began and was not acknowledged may have happened or not; one acknowledged has happened.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

Effect = dict[str, int | None]
"""Name -> number of the content it has afterwards; None = absent."""


class Ledger:
    """The writing end, in a worker."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def begin(self, effect: Effect) -> None:
        self._line({"begin": effect})

    def acknowledge(self, effect: Effect) -> None:
        self._line({"done": effect})

    def complain(self, text: str) -> None:
        """Something that must never happen."""
        self._line({"wrong": text})

    def _line(self, record: dict[str, object]) -> None:
        # writev, which nothing in the store calls: a fault injected into write(2) is not for us.
        os.writev(self._descriptor, [json.dumps(record).encode() + b"\n"])


class Promises:
    """The reading end: what each name may hold."""

    def __init__(self) -> None:
        self.may_hold: dict[str, set[int | None]] = {}
        self.ever_held: dict[str, set[int | None]] = {}
        """What a name may have held at any time since it was last looked at."""
        self.wrong: list[str] = []
        self.acknowledged = 0
        self._offsets: dict[Path, int] = {}

    def read(self, path: Path) -> None:
        """Take in what `path` gained since the last call."""
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._offsets.get(path, 0))
            data = file.read()
        self._offsets[path] = self._offsets.get(path, 0) + len(data)
        for line in data.splitlines():
            self._take(json.loads(line))

    def settle(self, name: str, held: int | None) -> None:
        """The name was looked at, and this is what it holds."""
        self.may_hold[name] = {held}
        self.ever_held[name] = {held}

    def _take(self, record: dict[str, object]) -> None:
        if "wrong" in record:
            self.wrong.append(str(record["wrong"]))
        begun, done = record.get("begin"), record.get("done")
        if isinstance(begun, dict):
            for name, number in begun.items():
                self.may_hold.setdefault(name, {None}).add(number)
                self.ever_held.setdefault(name, {None}).add(number)
        if isinstance(done, dict):
            self.acknowledged += 1
            for name, number in done.items():
                self.may_hold[name] = {number}
