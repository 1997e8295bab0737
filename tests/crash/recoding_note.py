"""Whether a process is inside a recoding, in memory that outlives its SIGKILL.

A file of three numbers, mapped by the recoder (which counts up) and read by the killer: recodings
begun, recodings ended, and whether the last one compresses or promotes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvfs.model import Codec

_BEGUN, _ENDED, _WANTED = range(3)


class RecodingNote:
    """One recoder's numbers. A dead recoder's successor goes on in the same file."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(3 * 8)
            self._numbers = memoryview(mmap.mmap(file.fileno(), 3 * 8)).cast("Q")

    def start(self) -> None:
        """Be outside: what a killed predecessor left is over."""
        self._numbers[_ENDED] = self._numbers[_BEGUN]

    @contextmanager
    def inside(self, wanted: Codec) -> Iterator[None]:
        """Be inside a recoding to `wanted` for as long as the context lasts."""
        self._numbers[_WANTED] = int(wanted)
        self._numbers[_BEGUN] += 1
        yield
        self._numbers[_ENDED] = self._numbers[_BEGUN]

    @property
    def cut_short(self) -> Codec | None:
        """What the recoding under way (or cut short by a kill) was to make; None without one."""
        numbers = self._numbers
        return None if numbers[_BEGUN] == numbers[_ENDED] else Codec(numbers[_WANTED])
