"""Bits flip on the disk, in raw files and in frames: each is caught, none is served (I1).

Caught by whoever comes first: the scrub, or a read in a namespace that is always verified.
"""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest

from kvfs.errors import Corrupt, NotFound
from kvfs.model import AttributeChange, Codec, ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.store.reader import VERIFY_ATTRIBUTE
from kvfs.store.recoder import Outcome
from kvfs.store.store import Store
from kvfs_tools.cli import run
from kvfs_tools.exit_codes import ExitCode

pytestmark = [pytest.mark.crash, pytest.mark.expects_warnings]

BOUNDED_FLIPS = 160
SOAK_FLIPS = 10_000
RAW, FRAMED, LONG = 8, 7, 1
LENGTH, LONG_LENGTH = 70_000, 1_500_000
"""More than the least that is compressed; and more than one frame."""


def compressible(chance: random.Random, length: int) -> bytes:
    """16-bit floats as a cache holds them: noise in the mantissas, few exponents."""
    noise = chance.randbytes(length // 2)
    lanes = bytearray(length)
    lanes[0::2], lanes[1::2] = noise, bytes(0x3C + byte % 4 for byte in noise)
    return bytes(lanes)


def fill(store: Store, bucket: bytes, chance: random.Random) -> dict[ObjectPath, bytes]:
    """Store new blocks of every form; return what they hold."""
    held: dict[ObjectPath, bytes] = {}
    for number in range(RAW + FRAMED + LONG):
        path = ObjectPath(bucket, b"block-%d" % number)
        if number < RAW:
            data = chance.randbytes(chance.choice((1, 4096, LENGTH)))
        else:
            data = compressible(chance, LENGTH if number < RAW + FRAMED else LONG_LENGTH)
        held[path] = struct.pack("<Q", chance.getrandbits(63)) + data
        entry = store.put(path, held[path])
        if number >= RAW:
            assert store.compress(entry.digest).outcome is Outcome.RECODED
            with store.open_read(path) as view:
                assert view.codec is Codec.FRAMED
    return held


def flip(store: Store, path: ObjectPath, chance: random.Random) -> None:
    """Change one bit of the block file at `path`."""
    digest = store.stat(path).digest
    with store.context.index.read() as txn:
        block = txn.block(digest)
    assert block is not None
    file = store.path / "blocks" / store.context.files.name(digest, block.generation)
    descriptor = os.open(file, os.O_RDWR)
    try:
        bit = chance.randrange(8 * os.fstat(descriptor).st_size)
        byte = os.pread(descriptor, 1, bit // 8)[0]
        os.pwrite(descriptor, bytes([byte ^ (1 << bit % 8)]), bit // 8)
    finally:
        os.close(descriptor)


def is_miss(store: Store, path: ObjectPath) -> bool:
    try:
        store.get(path)
    except (NotFound, Corrupt):
        return True
    return False


@pytest.mark.parametrize("catcher", ["scrub", "verified read"])
def test_i1_every_flipped_bit_is_caught_and_none_is_served(
    tmp_path: Path, is_soak: bool, catcher: str
) -> None:
    init_store(tmp_path / "s", capacity_bytes=256 << 20)
    chance, flips = random.Random(catcher), 0
    wanted = (SOAK_FLIPS if is_soak else BOUNDED_FLIPS) // 2
    with open_store(tmp_path / "s") as store:
        bucket = store.create_namespace(b"kv")
        if catcher == "verified read":
            always = AttributeChange(set_attributes={VERIFY_ATTRIBUTE: b"always"})
            store.set_attributes(bucket.inode, always)
        while flips < wanted:
            held = fill(store, b"kv", chance)
            hurt = [path for path in held if chance.random() < 0.9]
            for path in hurt:
                flip(store, path, chance)
            flips += len(hurt)
            if catcher == "scrub":
                assert len(store.scrub(1 << 40).bad_digests) == len(hurt)
            for path, data in held.items():
                assert is_miss(store, path) if path in hurt else store.get(path) == data
            for caught in (tmp_path / "s" / "quarantine").iterdir():
                caught.unlink()
        assert store.check(is_full=True).is_clean
    print(f"flips={flips}")


def test_a_frame_that_changed_is_a_miss_without_any_verification(tmp_path: Path) -> None:
    chance = random.Random(5)
    init_store(tmp_path / "s", capacity_bytes=256 << 20)
    with open_store(tmp_path / "s") as store:
        store.create_namespace(b"kv")
        held = fill(store, b"kv", chance)
        framed = list(held)[RAW:]
        for path in framed:
            flip(store, path, chance)
        assert all(is_miss(store, path) for path in framed)


def test_a_bucket_is_verified_always_or_trusted_as_the_command_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, path = tmp_path / "s", ObjectPath(b"kv", b"raw")
    init_store(root, capacity_bytes=256 << 20)
    with open_store(root) as store:
        store.create_namespace(b"kv")
    for option, is_caught in (("--always", True), ("--trust", False)):
        assert run(["verify", "kv", option, "--store", str(root)]) is ExitCode.OK
        capsys.readouterr()
        assert run(["verify", "kv", "--json", "--store", str(root)]) is ExitCode.OK
        assert ('"always"' in capsys.readouterr().out) is is_caught
        with open_store(root) as store:
            store.put(path, os.urandom(5000))
            flip(store, path, random.Random(1))
            assert is_miss(store, path) is is_caught
    assert run(["verify", "absent", "--always", "--store", str(root)]) is ExitCode.ERROR
    assert run(["verify", "kv", "--always", "--trust", "--store", str(root)]) is ExitCode.USAGE
