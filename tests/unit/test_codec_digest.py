"""Digests of files: the same as of their bytes, whatever the length, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs.codec.digest import digest_bytes, digest_file, digest_pieces

MIB = 1 << 20
WINDOW = 16 * MIB
SALT = bytes(range(32))


@contextlib.contextmanager
def file_in_memory(data: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("digest")
    try:
        os.write(descriptor, data)
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("length", [1, 4097, MIB, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 5])
def test_a_file_has_the_digest_of_its_bytes(length: int) -> None:
    data = (os.urandom(MIB) * (length // MIB + 1))[:length]
    with file_in_memory(data) as descriptor:
        expected = digest_bytes(SALT, data)
        assert digest_file(SALT, descriptor, length) == expected
        assert digest_pieces(SALT, [data[:100], data[100:]]) == expected


def resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_i8_hashing_a_long_file_maps_a_window_of_it_at_a_time() -> None:
    with file_in_memory(b"") as descriptor:
        os.ftruncate(descriptor, 5 * WINDOW)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        digest_file(SALT, descriptor, 5 * WINDOW)
        assert resident("VmHWM") - before < 2 * WINDOW
