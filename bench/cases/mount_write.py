"""Writing through the mount: create, write, close, against writing and hashing the same bytes.

The floor is what any content-addressed store must do, with the same promise as durability `cache`
(process death): a native create, write and BLAKE3 of the file. The mount also commits: once for
the close, once more for a rename.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.mounting import MIB, TRANSPORTS, in_turns, mounted
from bench.report import Context, Measurement, throughput_gb_s
from kvfs.codec.digest import digest_file

SALT = b"s" * 32


def bench_mount_write__close(context: Context) -> Iterator[Measurement]:
    """Target of the kernel transport: 0.8 of the floor at 32 MiB."""
    count = 5 if context.quick else 25
    for transport in TRANSPORTS:
        with mounted(context, transport) as made:
            plain = context.directory / f"plain-{transport}"
            plain.mkdir()
            for size_mib in (1, 4, 32):
                for renames in (False, True):
                    mine = Writer(made.folder, size_mib * MIB, hashes=False, renames=renames)
                    floor = Writer(plain, size_mib * MIB, hashes=True, renames=renames)
                    ours, native = in_turns(context, [mine.write, floor.write], count)
                    yield Measurement(
                        "GB/s",
                        throughput_gb_s(size_mib * MIB, ours),
                        {"transport": transport, "MiB": size_mib, "then_renamed": renames},
                        floor=throughput_gb_s(size_mib * MIB, native),
                        floor_name="native create + write + blake3 + close"
                        + (" + rename" if renames else ""),
                    )


class Writer:
    """Writes one new file after another, the last three kept; no two hold the same bytes."""

    def __init__(self, folder: Path, size: int, *, hashes: bool, renames: bool) -> None:
        self._folder, self._hashes, self._renames = folder, hashes, renames
        self._value = bytearray(os.urandom(size))
        self._count = 0

    def write(self) -> None:
        """Create, write in one call, close; with `renames` as LMCache does it."""
        self._count += 1
        self._value[:8] = self._count.to_bytes(8, "little")
        final = self._folder / f"f{self._count % 3}"
        path = self._folder / "f.tmp" if self._renames else final
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        assert os.write(descriptor, self._value) == len(self._value), "one write is done in full"
        if self._hashes:
            digest_file(SALT, descriptor, len(self._value))
        os.close(descriptor)
        if self._renames:
            os.rename(path, final)


def bench_mount_write__new_names_1MiB(context: Context) -> Iterator[Measurement]:
    """A name never used before, nothing replaced: what an engine that offloads blocks does."""
    count = 10 if context.quick else 100
    with mounted(context) as made:
        plain = context.directory / "plain"
        plain.mkdir()
        value = bytearray(os.urandom(MIB))
        numbers = iter(range(10 * count))
        ours, native = in_turns(
            context,
            [
                partial(write_new, made.folder, value, numbers, False),
                partial(write_new, plain, value, numbers, True),
            ],
            count,
        )
        yield Measurement(
            "us",
            [taken * 1e6 for taken in ours],
            {"MiB": 1},
            floor=[taken * 1e6 for taken in native],
            floor_name="native create + write + blake3 + close",
        )


def write_new(folder: Path, value: bytearray, numbers: Iterator[int], hashes: bool) -> None:
    number = next(numbers)
    value[:8] = number.to_bytes(8, "little")
    descriptor = os.open(folder / f"{number:08}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(descriptor, value)
    if hashes:
        digest_file(SALT, descriptor, len(value))
    os.close(descriptor)
