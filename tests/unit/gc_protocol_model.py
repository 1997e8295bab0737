"""The publish and collection protocol as a machine small enough to try every interleaving.

One digest, one index row, a handful of processes; each step is what the real code does between two
points at which another process can get in or a kill can land: a transaction, an open, a link, an
unlink. A kill ends a process at any step: its locks go, its files and rows stay. `search` visits
every reachable state and checks what must always hold; then it lets every dead end recover (empty
the trash, sweep) and checks what must be left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_RETRIES = 4
MAX_STATES = 2_000_000


class World(NamedTuple):
    """Everything that outlives a process, and the locks that do not."""

    names: frozenset[int] = frozenset()
    """Names that refer to the digest."""
    row: tuple[int, int] | None = None
    """(generation, references), or no row."""
    trash: frozenset[int] = frozenset()
    files: frozenset[int] = frozenset()
    """Generations that are linked."""
    locks: frozenset[int] = frozenset()
    """Generations that their writer still holds."""
    next_generation: int = 1


class Process(NamedTuple):
    """A running program: where it is and what it remembers."""

    kind: str
    step: str
    name: int = 0
    generation: int = 0
    """Its own file, or the one it is about to remove; 0 = none."""
    todo: frozenset[int] = frozenset()
    retries: int = 0

    @property
    def is_done(self) -> bool:
        return self.step == "done"


Move = tuple[World, Process]
Program = Callable[[World, Process], Iterator[Move]]


class Violation(Exception):
    """A state that must not be reachable, with the steps that led to it."""


@dataclass(frozen=True, slots=True)
class Report:
    """How much was searched."""

    states: int
    ends: int


def done(process: Process) -> Process:
    return process._replace(step="done")


def put(world: World, process: Process) -> Iterator[Move]:
    """Publisher.publish: look, link, commit, settle."""
    generation = process.generation
    if process.step == "start":
        yield world, process._replace(step="commit" if world.row else "link")
    elif process.step == "link":
        number = world.next_generation
        yield (
            world._replace(
                files=world.files | {number},
                locks=world.locks | {number},
                next_generation=number + 1,
            ),
            process._replace(step="commit", generation=number),
        )
    elif process.step == "commit":
        if world.row is None and not generation:
            yield world, process._replace(step="link")
        elif world.row is None:
            row = (generation, 1)
            yield (
                world._replace(row=row, names=world.names | {process.name}),
                process._replace(step="unlock"),
            )
        else:
            row = (world.row[0], world.row[1] + 1)
            yield (
                world._replace(row=row, names=world.names | {process.name}),
                process._replace(step="discard" if generation else "done"),
            )
    elif process.step == "discard":
        yield world._replace(files=world.files - {generation}), process._replace(step="unlock")
    elif process.step == "unlock":
        yield world._replace(locks=world.locks - {generation}), done(process)


def delete(world: World, process: Process) -> Iterator[Move]:
    """Drop one name; with the last one the row goes and its file is trash; then unlink, clear."""
    if process.step == "start":
        yield from drop(world, process, frozenset({process.name}))
    else:
        yield from empty(world, process)


def evict(world: World, process: Process) -> Iterator[Move]:
    """Drop every name of the block in one transaction."""
    if process.step == "start":
        yield from drop(world, process, world.names)
    else:
        yield from empty(world, process)


def drop(world: World, process: Process, names: frozenset[int]) -> Iterator[Move]:
    gone = world.names & names
    if not gone or world.row is None:
        yield world, done(process)
        return
    generation, references = world.row
    left = references - len(gone)
    world = world._replace(names=world.names - gone)
    if left:
        yield world._replace(row=(generation, left)), done(process)
        return
    yield (
        world._replace(row=None, trash=world.trash | {generation}),
        process._replace(step="unlink", todo=frozenset({generation})),
    )


def collect(world: World, process: Process) -> Iterator[Move]:
    """Empty the trash that others left."""
    if process.step == "start":
        yield world, process._replace(step="unlink", todo=world.trash)
    else:
        yield from empty(world, process)


def empty(world: World, process: Process) -> Iterator[Move]:
    if process.step == "unlink":
        yield world._replace(files=world.files - process.todo), process._replace(step="clear")
    elif process.step == "clear":
        yield world._replace(trash=world.trash - process.todo), done(process)


def sweep(world: World, process: Process) -> Iterator[Move]:
    """For each file: its lock first, then the index, then unlink."""
    if process.step == "start":
        yield world, process._replace(step="next", todo=world.files)
    elif process.step == "next":
        if not process.todo:
            yield world, done(process)
            return
        for generation in process.todo:
            rest = process.todo - {generation}
            if generation not in world.files or generation in world.locks:
                yield world, process._replace(todo=rest)
            else:
                yield (
                    world._replace(locks=world.locks | {generation}),
                    process._replace(step="ask", generation=generation, todo=rest),
                )
    elif process.step == "ask":
        generation = process.generation
        is_named = generation in world.trash or (world.row or (0, 0))[0] == generation
        yield world, process._replace(step="unlock" if is_named else "unlink")
    elif process.step == "unlink":
        yield (
            world._replace(files=world.files - {process.generation}),
            process._replace(step="unlock"),
        )
    elif process.step == "unlock":
        yield (
            world._replace(locks=world.locks - {process.generation}),
            process._replace(step="next", generation=0),
        )


def get(world: World, process: Process) -> Iterator[Move]:
    """Look up, open; a file that is gone means looking again, at most MAX_RETRIES times."""
    if process.step == "start":
        if world.row is None:
            yield world, process._replace(step="done", generation=0)
        else:
            yield world, process._replace(step="open", generation=world.row[0])
    elif process.step == "open":
        if process.generation in world.files:
            yield world, done(process)
        else:
            retries = process.retries + 1
            step = "miss" if retries > MAX_RETRIES else "start"
            yield world, process._replace(step=step, retries=retries)
    elif process.step == "miss":
        yield world, done(process)


def delete_unlinking_inside(world: World, process: Process) -> Iterator[Move]:
    """Broken on purpose: the file goes before the transaction that drops its row commits."""
    if process.step == "start":
        is_last = world.row is not None and process.name in world.names and world.row[1] == 1
        if not is_last:
            yield from drop(world, process, frozenset({process.name}))
            return
        assert world.row is not None
        yield (
            world._replace(files=world.files - {world.row[0]}),
            process._replace(step="commit", generation=world.row[0]),
        )
    elif process.step == "commit":
        yield world._replace(row=None, names=world.names - {process.name}), done(process)


def put_by_plain_name(world: World, process: Process) -> Iterator[Move]:
    """Broken on purpose: one file name a digest; what exists is not written again."""
    if process.step == "start":
        yield world._replace(files=world.files | {1}), process._replace(step="commit")
    elif process.step == "commit":
        references = world.row[1] + 1 if world.row else 1
        yield world._replace(row=(1, references), names=world.names | {process.name}), done(process)


def sweep_asking_first(world: World, process: Process) -> Iterator[Move]:
    """Broken on purpose: asks the index before it takes the file's lock."""
    if process.step == "start":
        yield world, process._replace(step="ask", todo=world.files)
    elif process.step == "ask":
        named = world.trash | {(world.row or (0, 0))[0]}
        yield world, process._replace(step="lock", todo=process.todo - named)
    elif process.step == "lock":
        yield world._replace(files=world.files - (process.todo - world.locks)), done(process)


PROGRAMS: dict[str, Program] = {
    "put": put,
    "delete": delete,
    "evict": evict,
    "collect": collect,
    "sweep": sweep,
    "get": get,
    "delete_unlinking_inside": delete_unlinking_inside,
    "put_by_plain_name": put_by_plain_name,
    "sweep_asking_first": sweep_asking_first,
}


def search(world: World, kinds: Sequence[tuple[str, int]], kills: int) -> Report:
    """Visit every state that the processes `(kind, name)` can reach with up to `kills` deaths.

    Raises: Violation.
    """
    start = (world, tuple(Process(kind, "start", name) for kind, name in kinds), kills)
    seen = {start}
    waiting = [(start, ())]
    ends = 0
    trail: tuple[str, ...]
    while waiting:
        (world, processes, left), trail = waiting.pop()
        check(world, trail)
        is_end = True
        for index, process in enumerate(processes):
            if process.is_done:
                continue
            is_end = False
            moves = list(PROGRAMS[process.kind](world, process))
            if left:
                moves.append((die(world, process), done(process)))
            for number, (after, moved) in enumerate(moves):
                is_kill = left and number == len(moves) - 1
                others = (*processes[:index], moved, *processes[index + 1 :])
                state = (after, others, left - 1 if is_kill else left)
                if state not in seen:
                    seen.add(state)
                    told = f"{index}:{process.kind}.{'KILL' if is_kill else process.step}"
                    waiting.append((state, (*trail, told)))
        if is_end:
            ends += 1
            check_recovered(recover(world), trail)
        assert len(seen) < MAX_STATES, "the model has outgrown an exhaustive search"
    return Report(len(seen), ends)


def die(world: World, process: Process) -> World:
    """A killed process loses its locks; what it wrote stays."""
    if process.generation and process.kind in ("put", "sweep"):
        return world._replace(locks=world.locks - {process.generation})
    return world


def check(world: World, trail: Sequence[str]) -> None:
    """What must hold in every state (I2, and references are counted right)."""
    if world.row is not None and world.row[0] not in world.files:
        raise Violation(f"a row names a file that is gone: {' '.join(trail)}")
    references = world.row[1] if world.row else 0
    if references != len(world.names):
        raise Violation(f"{references} references, {len(world.names)} names: {' '.join(trail)}")
    if world.row is not None and world.row[0] in world.trash:
        raise Violation(f"a live file is trash: {' '.join(trail)}")


def recover(world: World) -> World:
    """Everybody has ended: empty the trash, sweep."""
    world = world._replace(files=world.files - world.trash, trash=frozenset())
    live = {world.row[0]} if world.row else set()
    orphans = {each for each in world.files if each not in live and each not in world.locks}
    return world._replace(files=world.files - orphans)


def check_recovered(world: World, trail: Sequence[str]) -> None:
    """After recovery exactly the live file is left: nothing leaks, nothing dangles."""
    live = frozenset({world.row[0]}) if world.row else frozenset()
    if world.files != live or world.locks:
        raise Violation(f"left over: {sorted(world.files - live)}: {' '.join(trail)}")
