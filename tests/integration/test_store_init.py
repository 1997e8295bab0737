"""`init` cut off anywhere can be done again, and a put never trusts a buffer that may change."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kvfs.clock import SystemRandomness
from kvfs.errors import StoreExists
from kvfs.model import ObjectPath
from kvfs.open_store import init_store, open_store


class Interrupted(BaseException):
    """Stands for the operator's Ctrl-C."""


class InterruptingRandomness(SystemRandomness):
    """Interrupts the n-th request for random bytes."""

    def __init__(self, count: int) -> None:
        self.count = count

    def token(self, length: int) -> bytes:
        self.count -= 1
        if self.count < 0:
            raise Interrupted
        return super().token(length)


@pytest.mark.parametrize("count", [0, 1])
def test_an_init_that_was_cut_off_can_be_done_again(tmp_path: Path, count: int) -> None:
    root = tmp_path / "store"
    with pytest.raises(Interrupted):
        init_store(root, randomness=InterruptingRandomness(count))
    init_store(root, capacity_bytes=1 << 24)
    with open_store(root) as store:
        store.create_namespace(b"kv")
        store.put(ObjectPath(b"kv", b"a"), b"bytes")
        assert store.get(ObjectPath(b"kv", b"a")) == b"bytes"
    with pytest.raises(StoreExists, match="already"):
        init_store(root)


def test_a_directory_with_other_peoples_files_is_never_taken(tmp_path: Path) -> None:
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "mine").write_text("keep")
    with pytest.raises(StoreExists, match="not empty"):
        init_store(tmp_path)
    assert (tmp_path / "blocks" / "mine").read_text() == "keep"


def test_i1_a_buffer_changed_while_it_is_put_still_has_its_files_digest(tmp_path: Path) -> None:
    init_store(tmp_path / "store", capacity_bytes=1 << 27)
    buffer = bytearray(1 << 20)
    is_done = threading.Event()

    def change() -> None:
        value = 0
        while not is_done.is_set():
            value = (value + 1) % 251
            buffer[:] = bytes([value]) * len(buffer)

    changer = threading.Thread(target=change)
    with open_store(tmp_path / "store") as store:
        store.create_namespace(b"kv")
        changer.start()
        try:
            for number in range(20):
                store.put(ObjectPath(b"kv", b"%d" % number), buffer)
        finally:
            is_done.set()
            changer.join()
        assert store.check(is_full=True).findings == ()
