"""A second process on a store: it runs what it is told over a pipe, and answers.

Run: python -m tests.property.store_worker. Each request is a pickled (method, args, kwargs), each
answer a pickled (result, error). It holds one store at a time and its own manual clock.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvfs.clock import ManualClock
from kvfs.errors import KvfsError, NoSpace
from kvfs.model import ObjectPath
from kvfs.open_store import open_store
from kvfs.store.store import Store

ROOT = Path(__file__).resolve().parents[2]
Request = tuple[str, tuple[Any, ...], dict[str, Any]]


class Actor:
    """One process's hold on a store; the same calls work here and in a worker."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._store: Store | None = None

    def open(self, root: Path, now_ns: int) -> None:
        self.clock = ManualClock(now_ns)
        self._store = open_store(root, clock=self.clock)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def put_many(self, place: ObjectPath, count: int, length: int, seed: int) -> int:
        """Put `count` objects of `length` bytes each of its own value; return how many fitted."""
        fitted = 0
        for number in range(count):
            path = ObjectPath(place.namespace, place.key + b"%d-%d" % (seed, number))
            with suppress(NoSpace):
                self.store.put(path, bytes([seed, number % 256]) * (length // 2))
                fitted += 1
        return fitted

    def put_often(self, place: ObjectPath, count: int, lengths: list[int], value: int) -> None:
        """Replace one object again and again, each time with equal bytes throughout."""
        for number in range(count):
            self.store.put(place, bytes([value]) * lengths[number % len(lengths)])

    @property
    def store(self) -> Store:
        assert self._store is not None, "open comes first"
        return self._store

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Run a method of this actor, or else of its store. Raises: what the method raises."""
        own = method in ("open", "close", "advance", "put_many", "put_often")
        return getattr(self if own else self.store, method)(*args, **kwargs)


class Worker:
    """The parent's end of the pipe."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.property.store_worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Run a method in the worker. Raises: what it raised there."""
        self.start(method, *args, **kwargs)
        return self.finish()

    def start(self, method: str, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Send a request without waiting for its answer."""
        assert self._process.stdin is not None
        pickle.dump((method, args, kwargs), self._process.stdin)
        self._process.stdin.flush()

    def finish(self) -> Any:  # noqa: ANN401
        """Wait for the answer to the oldest request. Raises: what it raised there."""
        assert self._process.stdout is not None
        result, error = pickle.load(self._process.stdout)
        if error is not None:
            raise error
        return result

    def kill(self) -> None:
        """SIGKILL it."""
        self._process.kill()
        self._end()

    def stop(self) -> None:
        """Let it end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._end()

    def _end(self) -> None:
        self._process.wait(timeout=30)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def serve() -> None:
    """Answer requests until the pipe ends."""
    actor = Actor()
    while True:
        try:
            method, args, kwargs = pickle.load(sys.stdin.buffer)
        except EOFError:
            actor.close()
            return
        answer: tuple[Any, BaseException | None]
        try:
            answer = actor.call(method, *args, **kwargs), None
        except (KvfsError, AssertionError, OSError, ValueError) as error:
            answer = None, error
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
