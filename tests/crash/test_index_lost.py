"""The index is lost: it is rebuilt, and a name that comes back is the current one, with its bytes.

What cannot be shown current is forgotten (I1); but what was simply put must come back.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvfs.errors import KvfsError
from kvfs.model import ROOT_INODE, ChildName, ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.store.rebuild import write_snapshot
from kvfs.store.renames import RenameMode
from kvfs.store.store import Store
from tests.crash.processes import abandon

pytestmark = [pytest.mark.crash, pytest.mark.expects_warnings]

BOUNDED_HISTORIES = 40
SOAK_HISTORIES = 1_500
BUCKET = b"kv"
DIRECTORIES = [b"", b"a/", b"b/", b"a/c/", b"long" * 120 + b"/"]
Model = dict[bytes, bytes]


def delete(data: Path) -> None:
    data.unlink()


def cut_short(data: Path) -> None:
    os.truncate(data, data.stat().st_size // 2)


def cut_to_nothing(data: Path) -> None:
    os.truncate(data, 0)


def fill_with_garbage(data: Path) -> None:
    data.write_bytes(random.Random(1).randbytes(data.stat().st_size))


def zero_the_middle(data: Path) -> None:
    length = data.stat().st_size
    with data.open("r+b") as file:
        file.seek(8192)
        file.write(bytes(length - 8192))


def scramble_pages(data: Path) -> None:
    chance = random.Random(2)
    with data.open("r+b") as file:
        for page in range(2, data.stat().st_size // 4096):
            if chance.random() < 0.5:
                file.seek(page * 4096)
                file.write(chance.randbytes(64))


LOSSES: list[Callable[[Path], None]] = [
    delete, cut_short, cut_to_nothing, fill_with_garbage, zero_the_middle, scramble_pages,
]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    init_store(root, capacity_bytes=64 << 20)
    with open_store(root) as store:
        store.create_namespace(BUCKET)
    return root


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "closed"])
@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: str(lose.__name__))
def test_a_destroyed_index_is_rebuilt_by_whoever_opens_the_store(
    root: Path, lose: Callable[[Path], None], is_killed: bool
) -> None:
    store = open_store(root)
    for each in range(40):
        store.put(ObjectPath(BUCKET, b"d%d/%d" % (each % 3, each)), b"%d" % each * 500)
    if is_killed:
        abandon(store)
    else:
        store.close()
    lose(root / "index" / "data.mdb")
    # After a clean stop the pages are not read: only what the length shows is noticed.
    is_noticed = is_killed or lose in (delete, cut_short, cut_to_nothing, fill_with_garbage)
    with open_store(root, distrust_index=not is_noticed) as store:
        for each in range(40):
            key = ObjectPath(BUCKET, b"d%d/%d" % (each % 3, each))
            assert store.get(key) == b"%d" % each * 500
        assert store.check(is_full=True).is_clean
        store.put(ObjectPath(BUCKET, b"new"), b"new")
    assert list((root / "index").glob("damaged-*"))


def test_a_rebuild_that_is_cut_off_is_begun_again(root: Path) -> None:
    with open_store(root) as store:
        for each in range(10):
            store.put(ObjectPath(BUCKET, b"%d" % each), b"%d" % each * 500)
    # As if the power had gone half way: an index that can be read and knows nothing yet.
    init_store(root.with_name("other"))
    shutil.copy(root.with_name("other") / "index" / "data.mdb", root / "index" / "data.mdb")
    (root / "index" / "rebuilding").touch()
    with open_store(root) as store:
        assert store.usage().object_count == 10
        assert store.sweep().orphan_files == 0
    assert not (root / "index" / "rebuilding").exists()


class History:
    """Random changes to a store, and a dict that says what it must hold."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.chance = random.Random(seed)
        self.holds: Model = {}
        self.plain: set[bytes] = set()
        """Names that were put once, with bytes of their own, and never touched since."""
        self.moved: set[bytes] = set()
        """Directories that were moved away: labels below those paths are not trusted."""
        self._serial = 0
        namespace = store.find_namespace(BUCKET)
        assert namespace is not None
        self.top = namespace.inode

    def run(self, steps: int) -> None:
        operations = [
            self.put, self.put, self.put, self.put_child, self.put_same, self.delete, self.rename,
            self.exchange, self.copy, self.link, self.move_directory, self.exchange_directories,
            self.snapshot, self.touch, self.rename_bucket,
        ]  # fmt: skip
        for _ in range(steps):
            self.chance.choice(operations)()

    def certain(self) -> set[bytes]:
        """Return the names that must come back."""
        return {key for key in self.plain if not key.startswith(tuple(self.moved))}

    def key(self) -> bytes:
        return self.chance.choice(DIRECTORIES) + b"f%d" % self.chance.randrange(4)

    def some(self) -> bytes | None:
        return self.chance.choice(sorted(self.holds)) if self.holds else None

    def put(self) -> None:
        key = self.key()
        self._serial += 1
        data = b"%d:" % self._serial * self.chance.choice((1, 100, 2000))
        self.store.put(ObjectPath(BUCKET, key), data)
        self.holds[key] = data
        self.plain.add(key)

    def put_child(self) -> None:
        """As the mount does: by directory and name."""
        key = self.key()
        place = self.place(key)
        if place is None or self.store.find_child(place.parent, place.name + b"/") is not None:
            return
        self._serial += 1
        data = b"child %d" % self._serial
        try:
            self.store.put(place, data)
        except KvfsError:
            return
        self.holds[key] = data
        self.plain.add(key)

    def put_same(self) -> None:
        other, key = self.some(), self.key()
        if other is not None:
            self.store.put(ObjectPath(BUCKET, key), self.holds[other])
            self.plain -= {key, other}
            self.plain -= {name for name in self.holds if self.holds[name] == self.holds[other]}
            self.holds[key] = self.holds[other]

    def delete(self) -> None:
        key = self.some()
        if key is not None:
            self.store.delete(ObjectPath(BUCKET, key))
            del self.holds[key]
            self.plain.discard(key)

    def copy(self) -> None:
        source, target = self.some(), self.key()
        if source is not None and source != target:
            self.store.copy(ObjectPath(BUCKET, source), ObjectPath(BUCKET, target))
            self.holds[target] = self.holds[source]
            self.plain -= {source, target}

    def rename(self) -> None:
        source, target = self.some(), self.key()
        self._rename(source, target, RenameMode.REPLACE)

    def exchange(self) -> None:
        source, target = self.some(), self.some()
        self._rename(source, target, RenameMode.EXCHANGE)

    def _rename(self, source: bytes | None, target: bytes | None, mode: RenameMode) -> None:
        if source is None or target is None or source == target:
            return
        old, new = self.place(source), self.place(target)
        if old is None or new is None or self._is_same_file(source, target):
            return
        try:
            self.store.rename(old, new, mode=mode)
        except KvfsError:
            return
        self.plain -= {source, target}
        if mode is RenameMode.EXCHANGE:
            self.holds[source], self.holds[target] = self.holds[target], self.holds[source]
        else:
            self.holds[target] = self.holds.pop(source)

    def _is_same_file(self, source: bytes, target: bytes) -> bool:
        first = self.store.find(ObjectPath(BUCKET, source))
        second = self.store.find(ObjectPath(BUCKET, target))
        return first is not None and second is not None and first.inode == second.inode

    def link(self) -> None:
        source, target = self.some(), self.key()
        place = self.place(target)
        if source is None or place is None or target in self.holds:
            return
        inode = self.store.stat(ObjectPath(BUCKET, source)).inode
        try:
            self.store.link(inode, place)
        except KvfsError:
            return
        self.holds[target] = self.holds[source]
        self.plain -= {source, target}

    def move_directory(self) -> None:
        self._move_directory(RenameMode.REPLACE)

    def exchange_directories(self) -> None:
        self._move_directory(RenameMode.EXCHANGE)

    def _move_directory(self, mode: RenameMode) -> None:
        source, target = self.chance.sample([each for each in DIRECTORIES if each], 2)
        old, new = self.place(source[:-1]), self.place(target[:-1])
        if old is None or new is None or self.store.find_child(old.parent, old.name) is None:
            return
        try:
            self.store.rename(old, new, mode=mode)
        except KvfsError:
            return
        moved = {source: target} | ({target: source} if mode is RenameMode.EXCHANGE else {})
        self.moved |= set(moved)
        self.plain -= {key for key in self.plain if key.startswith((source, target))}
        self.holds = {self._moved(key, moved): data for key, data in self.holds.items()}

    @staticmethod
    def _moved(key: bytes, moved: dict[bytes, bytes]) -> bytes:
        for source, target in moved.items():
            if key.startswith(source):
                return target + key[len(source) :]
        return key

    def snapshot(self) -> None:
        if self.chance.random() < 0.5:
            write_snapshot(self.store._context)

    def touch(self) -> None:
        self.store.flush()

    def rename_bucket(self) -> None:
        if self.chance.random() < 0.2:
            self.store.rename(ChildName(ROOT_INODE, BUCKET), ChildName(ROOT_INODE, b"other"))
            self.store.rename(ChildName(ROOT_INODE, b"other"), ChildName(ROOT_INODE, BUCKET))

    def place(self, key: bytes) -> ChildName | None:
        parent, parts = self.top, key.split(b"/")
        for part in parts[:-1]:
            entry = self.store.find_child(parent, part)
            if entry is None or not entry.is_directory:
                return None
            parent = entry.inode
        return ChildName(parent, parts[-1])


def contents(store: Store) -> Iterator[tuple[bytes, bytes]]:
    page = store.list_objects(BUCKET)
    assert not page.is_truncated
    for each in page.objects:
        yield each.key, store.get(ObjectPath(BUCKET, each.key))


def test_i1_names_that_come_back_after_any_history_are_current(
    tmp_path: Path, is_soak: bool
) -> None:
    recovered = total = 0
    for seed in range(SOAK_HISTORIES if is_soak else BOUNDED_HISTORIES):
        root = tmp_path / f"store-{seed}"
        init_store(root, capacity_bytes=64 << 20)
        store = open_store(root)
        store.create_namespace(BUCKET)
        history = History(store, seed)
        history.run(history.chance.randrange(5, 60))
        assert dict(contents(store)) == history.holds, f"the test's own model, seed {seed}"
        abandon(store)
        (root / "index" / "data.mdb").unlink()
        with open_store(root) as store:
            found = dict(contents(store))
            wrong = {key for key in found if history.holds.get(key) != found[key]}
            assert not wrong, f"seed {seed}: {wrong}"
            lost = history.certain() - set(found)
            assert not lost, f"seed {seed}: {lost} were simply put"
            report = store.check(is_full=True)
            assert {each.code for each in report.findings} <= {"orphan-file"}, report.findings
        recovered, total = recovered + len(found), total + len(history.holds)
    assert recovered > total // 4
    print(f"histories recovered {recovered} of {total} names")


_DIE_BEFORE_THE_COMMIT = """
import os, signal, sys
from pathlib import Path
from kvfs.model import ObjectPath, PutOptions
from kvfs.open_store import open_store
store = open_store(Path(sys.argv[1]))
staging = store.stage(size_bytes=5)
staging.write(b"never")
die = lambda txn: os.kill(os.getpid(), signal.SIGKILL)
store._publisher.publish(staging, ObjectPath(b"kv", b"key"), PutOptions(), also=die)
"""


def test_i2_a_put_that_was_killed_before_its_commit_never_comes_back(root: Path) -> None:
    """Its file is linked and labelled, and nobody has swept it yet."""
    command = [sys.executable, "-c", _DIE_BEFORE_THE_COMMIT, str(root)]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    with open_store(root) as store:
        store.put(ObjectPath(BUCKET, b"key"), b"then this")
        store.delete(ObjectPath(BUCKET, b"key"))
        store.put(ObjectPath(BUCKET, b"other"), b"and this")
    (root / "index" / "data.mdb").unlink()
    with open_store(root) as store:
        assert dict(contents(store)) == {b"other": b"and this"}
