"""Connections between two requests: one epoll for all, and HEADs answered without their tasks.

Owns the waiting of connections whose last request was a HEAD. A task that waits in trio for its
own socket costs a system call to arm it and 20 us of trio a request, as much as half of a HEAD's
work. Here one task is woken once for all sockets that are readable, and what a connection can
answer from memory and the index alone it answers on the spot; all else wakes its task.

Holds: nothing here waits for a disk, a lock or a peer; after MAX_TURNS answers all others have a
turn.
"""

from __future__ import annotations

import select
from collections.abc import Callable

import trio

MAX_TURNS = 16
"""Answers before other tasks get their turn: 1 ms."""
PATIENCE_SECONDS = 0.001
"""How long to wait for the next request without trio while no connection does anything else. New
connections and timers may be so much late; a HEAD is spared a third of its CPU."""

TakeTurn = Callable[[], bool]
"""Takes what has come, answers what can be answered; False when the connection's task is needed."""


class IdleConnections:
    """The set of one worker; lives on the event loop."""

    def __init__(self, open_count: Callable[[], int]) -> None:
        """open_count: how many connections there are, those waiting here among them."""
        self._open_count = open_count
        self._epoll = select.epoll()
        self._waiting: dict[int, tuple[TakeTurn, trio.lowlevel.Task]] = {}

    async def wait(self, fd: int, take_turn: TakeTurn) -> None:
        """Call `take_turn` whenever the socket is readable, until it returns False."""
        self._waiting[fd] = take_turn, trio.lowlevel.current_task()
        self._epoll.register(fd, select.EPOLLIN)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._forget(fd)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def take_turns(self) -> None:
        """Let those whose requests have come take their turns: for a task that works for long."""
        if self._waiting:
            for fd, _ in self._epoll.poll(0, MAX_TURNS):
                self._take_turn(fd)

    async def serve(self) -> None:
        """Let the waiting connections take their turns, until cancelled."""
        turns = 0
        with self._epoll:
            while True:
                is_alone = len(self._waiting) == self._open_count()
                ready = self._epoll.poll(PATIENCE_SECONDS if is_alone else 0, MAX_TURNS)
                for fd, _ in ready:
                    self._take_turn(fd)
                turns += len(ready)
                if not ready:
                    turns = 0
                    await trio.lowlevel.wait_readable(self._epoll)
                elif not is_alone or turns >= MAX_TURNS:
                    turns = 0
                    await trio.lowlevel.checkpoint()

    def _take_turn(self, fd: int) -> None:
        take_turn, task = self._waiting[fd]
        if not take_turn():
            self._forget(fd)
            trio.lowlevel.reschedule(task)

    def _forget(self, fd: int) -> None:
        del self._waiting[fd]
        self._epoll.unregister(fd)
