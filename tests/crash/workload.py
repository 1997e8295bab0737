"""What a crash worker does to a store until it is killed: every operation, on names of its own.

Contents and directories are shared between workers (so blocks gain and lose references, and implied
directories come and go under each other's feet); a name belongs to one worker, so that what it
promised about the name can be held against the store afterwards.
"""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kvfs.clock import ManualClock
from kvfs.errors import AlreadyExists, KvfsError, NoSpace, NotFound, Unavailable
from kvfs.model import ChildName, ObjectPath, PutOptions
from kvfs.open_store import open_store
from kvfs.store.store import Store
from tests.crash.contents import content, draw, number_of
from tests.crash.ledger import Effect, Ledger
from tests.crash.processes import descriptors

BUCKET = b"kv"
NAMES = 8
DEEP = "a/" * 6 + "d" * 460 + "/"
"""Deep, and with a component that is stored in two pieces."""


def names_of(worker: int) -> list[str]:
    """Return the keys of one worker, in directories that all share."""
    places = ("", "shared/", "implied/x/", DEEP)
    return [f"{places[each % 4]}w{worker}-{each}" for each in range(NAMES)]


def links_of(worker: int) -> list[str]:
    """Return the names that a worker makes hard links under (rename onto one does nothing)."""
    return [f"l{worker}-{each}" for each in range(2)]


class Worker:
    """One process' operations. `is_keeping`: nothing is evicted and nothing expires."""

    def __init__(self, store: Store, number: int, seed: int, ledger: Ledger, keeps: bool) -> None:
        self._store = store
        self._chance = random.Random(seed)
        self._ledger = ledger
        self._keeps = keeps
        self._refusals: tuple[type[KvfsError], ...] = (
            NoSpace, NotFound, AlreadyExists, Unavailable,
        )  # fmt: skip
        self._names = names_of(number)
        self._links = links_of(number)
        namespace = store.find_namespace(BUCKET)
        assert namespace is not None
        self._root = namespace.inode
        self._holds: Effect = {name: self._look(name) for name in (*self._names, *self._links)}

    def expect_any_refusal(self) -> None:
        """System calls fail from now on: every error of ours is an answer, no other is."""
        self._refusals = (KvfsError,)

    def run(self, steps: int) -> None:
        """Do `steps` operations."""
        weighted: list[tuple[Callable[[], None], int]] = [
            (self.put, 10), (self.keep, 2), (self.delete, 4), (self.copy, 3), (self.rename, 4),
            (self.link, 2), (self.unlink, 2), (self.get, 8), (self.abandon, 1), (self.sweep, 1),
            (self.trash, 2), (self.flush, 1), (self.evict, 1), (self.expire, 1),
            (self.directories, 1),
        ]  # fmt: skip
        operations = [operation for operation, weight in weighted for _ in range(weight)]
        for _ in range(steps):
            # Full, or a name evicted or expired meanwhile: an answer. Anything else is a fault.
            with suppress(*self._refusals):
                self._chance.choice(operations)()
                self._check_space()

    def put(self) -> None:
        name, number = self._name(), draw(self._chance)
        options = PutOptions() if self._keeps else PutOptions(ttl_s=self._chance.choice((0, 1, 60)))
        with self._change({name: number}):
            self._store.put(_path(name), content(number), options)

    def keep(self) -> None:
        """Store a content as a file that stays mutable, written to before and after it is one."""
        name, number = self._name(), draw(self._chance)
        data = content(number)
        with self._change({name: number}), self._store.stage() as staging:
            staging.write(data[:1000])
            # Whole and on disk before it is visible: what dying leaves half-written of a mutable
            # file is its engine's business.
            staging.pwrite(data[1000:], 1000)
            os.fdatasync(staging.fd)
            with self._store.keep_mutable(staging, _path(name))[1] as file:
                file.pwrite(data[:1000], 0)

    def delete(self) -> None:
        name = self._name()
        with self._change({name: None}):
            self._store.delete(_path(name))

    def copy(self) -> None:
        source, target = self._name(), self._name()
        if source != target and self._holds[source] is not None:
            with self._change({target: self._holds[source]}):
                self._store.copy(_path(source), _path(target))

    def rename(self) -> None:
        source, target = self._name(), self._name()
        above, below = self._place(source), self._place(target)
        if source == target or above is None or below is None or self._holds[source] is None:
            return
        with self._change({source: None, target: self._holds[source]}):
            self._store.rename(above, below)

    def link(self) -> None:
        source, target = self._name(), self._chance.choice(self._links)
        entry = self._store.find(_path(source))
        if entry is not None and self._holds[target] is None:
            with self._change({target: self._holds[source]}):
                self._store.link(entry.inode, ChildName(self._root, target.encode()))

    def unlink(self) -> None:
        name = self._chance.choice(self._links)
        with self._change({name: None}):
            self._store.unlink(ChildName(self._root, name.encode()))

    def get(self) -> None:
        """Read any worker's name: torn or mixed bytes would be nobody's content."""
        worker = self._chance.randrange(6)
        name = self._chance.choice(names_of(worker))
        with suppress(NotFound):
            data = self._store.get(_path(name))
            if number_of(data) < 0:
                self._ledger.complain(f"{name} holds {len(data)} torn bytes")

    def abandon(self) -> None:
        with self._store.stage(size_bytes=self._chance.choice((None, 2_000_000))) as staging:
            staging.write(b"x" * 10_000)

    def sweep(self) -> None:
        self._store.sweep()

    def trash(self) -> None:
        self._store.empty_trash()

    def flush(self) -> None:
        self._store.flush()

    def evict(self) -> None:
        if not self._keeps:
            self._store.evict(200_000)

    def expire(self) -> None:
        if not self._keeps:
            self._store.expire()

    def directories(self) -> None:
        """Make and remove a directory; another worker may be doing the same."""
        place = ChildName(self._root, b"made")
        with suppress(KvfsError):
            self._store.mkdir(place)
            self._store.rmdir(place)

    def _check_space(self) -> None:
        usage = self._store.usage()
        if usage.resident_bytes + usage.reserved_bytes > usage.capacity_bytes:
            self._ledger.complain(f"I4: {usage}")

    def _name(self) -> str:
        return self._chance.choice(self._names)

    def _place(self, name: str) -> ChildName | None:
        parent, parts = self._root, name.encode().split(b"/")
        for part in parts[:-1]:
            entry = self._store.find_child(parent, part)
            if entry is None:
                return None
            parent = entry.inode
        return ChildName(parent, parts[-1])

    def _look(self, name: str) -> int | None:
        try:
            return number_of(self._store.get(_path(name)))
        except NotFound:
            return None

    def _change(self, effect: Effect) -> _Change:
        return _Change(self._ledger, self._holds, effect)


class _Change:
    """Logs an operation's effect before it begins and after it is acknowledged."""

    def __init__(self, ledger: Ledger, holds: Effect, effect: Effect) -> None:
        self._ledger = ledger
        self._holds = holds
        self._effect = effect

    def __enter__(self) -> None:
        self._ledger.begin(self._effect)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._ledger.acknowledge(self._effect)
            self._holds.update(self._effect)


def _path(name: str) -> ObjectPath:
    return ObjectPath(BUCKET, name.encode())


def run_worker(root: Path, number: int, seed: int, log: Path, keeps: bool, steps: int) -> None:
    """Open the store and work on it. Errors other than refusals end the process loudly."""
    ledger = Ledger(log)
    clock = ManualClock(1_700_000_000_000_000_000 + seed * 1_000_000_000)
    try:
        with open_store(root, clock=clock, background=seed % 3 == 0) as store:
            Worker(store, number, seed, ledger, keeps).run(steps)
    except BaseException as error:
        where = traceback.format_exc() if not isinstance(error, KvfsError) else ""
        ledger.complain(f"worker {number} seed {seed}: {type(error).__name__}: {error} {where}")
        raise


def run_among_faults(root: Path, number: int, seed: int, log: Path, steps: int) -> None:
    """Work while one system call fails; then the process must have leaked nothing, and the store
    must be in order and usable, without being opened again."""
    ledger = Ledger(log)
    clock = ManualClock(1_700_000_000_000_000_000 + seed * 1_000_000_000)
    try:
        store = open_store(root, clock=clock)
    except KvfsError:
        return
    except BaseException as error:
        ledger.complain(f"open_store: {type(error).__name__}: {traceback.format_exc()}")
        raise
    try:
        with suppress(KvfsError):
            worker = Worker(store, number, seed, ledger, True)
            worker.expect_any_refusal()
            before = descriptors()
            worker.run(steps)
            after = descriptors()
            if after != before:
                ledger.complain(f"{before} descriptors became {after}")
        with suppress(KvfsError):
            store.close()
    except BaseException as error:
        ledger.complain(f"seed {seed}: {type(error).__name__}: {traceback.format_exc()}")
        raise
