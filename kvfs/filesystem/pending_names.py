"""Names on their way: files being written under a name, overwrites announced, renames still owed.

Owns three small tables of one mount and knows neither the store nor requests:
- *writers*: which files being written will be published under a name;
- *overwrites*: OPEN for writing of a published file answers ESTALE, the kernel walks the path
  again, and that thread's next lookup of the name gets an alias nodeid with a private file of its
  own. So two writers of one name never share an inode, and readers of the old file keep it. An OPEN
  for reading that came too late walks again, too: what the name leads to then is held, for the
  kernel does not walk a third time, however often twins replace it;
- *credits*: twins that wrote one temporary name and both rename it: the second finds nothing. A
  publish that had a twin leaves a credit, which that process's lookup and rename of the then absent
  name may use. Never given without a twin, so a name that a stranger moved away stays absent.
Must hold: every table is bounded and forgets by time (I8).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from kvfs.clock import Clock
from kvfs.filesystem.handles import WritingFile
from kvfs.filesystem.inodes import Node
from kvfs.filesystem.processes import Creator
from kvfs.filesystem.records import Attributes
from kvfs.model import ChildName
from kvfs.store.read_view import ReadView

LIFETIME_NS = 10 * 1_000_000_000
READING_LIFETIME_NS = 1_000_000_000
"""What is held hides from its thread what others did since: for a second at most."""
MAX_OVERWRITES = 1024
MAX_CREDITS = 4096


@dataclass(slots=True)
class Overwrite:
    """An OPEN that was answered ESTALE, waiting for the second walk."""

    nodeid: int
    """What was opened."""
    expires_ns: int
    is_emptying: bool
    """With O_TRUNC: what the name leads to will not be needed."""
    place: ChildName | None = None
    """The name that the walk ended at, once it has."""
    alias: Node | None = None
    base: ReadView | None = None
    """The bytes that the alias begins with, held from the walk on: twins may replace them."""
    is_reading: bool = False
    """It was opened for reading and gone already: the alias is the very node of what the name leads
    to now."""


@dataclass(slots=True)
class Credit:
    """A published temporary that a twin may have renamed away."""

    creator: Creator
    inode: int
    expires_ns: int
    attributes: Attributes
    """How the file looked: a twin's rename may have been overtaken, and the file be gone."""
    has_twin: bool
    """Another thread wrote the same name about the same time; otherwise it counts for nothing."""


class PendingNames:
    """The three tables."""

    def __init__(self, clock: Clock, drop_alias: Callable[[Node], None]) -> None:
        """drop_alias: told of an alias that no overwrite will come for."""
        self._clock = clock
        self._drop_alias = drop_alias
        self._writers: dict[ChildName, list[WritingFile]] = {}
        self._writers_in: dict[int, int] = {}
        self._overwrites: OrderedDict[int, Overwrite] = OrderedDict()
        self._credits: OrderedDict[ChildName, list[Credit]] = OrderedDict()

    # -- writers

    def add_writer(self, writing: WritingFile) -> None:
        """Register under `writing.place`; files at one name at one time are twins."""
        place = writing.place
        if place is None:
            return
        others = self._writers.setdefault(place, [])
        for other in others:
            other.has_twin = writing.has_twin = True
        for credit in self._credits.get(place, ()):
            if credit.creator != writing.creator and self._is_fresh(credit.expires_ns):
                credit.has_twin = writing.has_twin = True
        others.append(writing)
        self._writers_in[place.parent] = self._writers_in.get(place.parent, 0) + 1

    def remove_writer(self, writing: WritingFile) -> None:
        """Forget a file that will not be published (again) under its name."""
        place = writing.place
        if place is None or writing not in self._writers.get(place, ()):
            return
        self._writers[place].remove(writing)
        if not self._writers[place]:
            del self._writers[place]
        self._writers_in[place.parent] -= 1
        if not self._writers_in[place.parent]:
            del self._writers_in[place.parent]

    def move_writer(self, writing: WritingFile, place: ChildName | None) -> None:
        """Let the file be published elsewhere, or nowhere."""
        self.remove_writer(writing)
        writing.place = place
        self.add_writer(writing)

    def writers(self, place: ChildName) -> tuple[WritingFile, ...]:
        return tuple(self._writers.get(place, ()))

    def own_hidden(self, place: ChildName, thread: int) -> WritingFile | None:
        """Return the unpublished file that `thread` itself is writing under this name."""
        for writing in self._writers.get(place, ()):
            if writing.is_hidden and writing.creator.thread == thread:
                return writing
        return None

    def has_hidden_below(self, directory: int) -> bool:
        return directory in self._writers_in

    def is_quiet(self, thread: int, parent: int, name: bytes) -> bool:
        """Whether the name means to `thread` what it means to everybody: what the store says."""
        if thread in self._overwrites:
            return False
        if not self._writers and not self._credits:
            return True
        place = ChildName(parent, name)
        return place not in self._writers and place not in self._credits

    # -- overwrites

    def announce_overwrite(self, thread: int, nodeid: int, *, is_emptying: bool) -> bool:
        """Note that `thread` opens `nodeid` for writing and will walk to it again.

        Returns False if it just did and came back without a walk (a /proc/self/fd link), or is not
        known: then there is no name to walk to, and the open must be served on the inode itself.
        """
        known = self._overwrites.pop(thread, None)
        if known is not None:
            self._drop(known)
            is_same = known.nodeid == nodeid and known.alias is None and not known.is_reading
            if is_same and self._is_fresh(known.expires_ns):
                return False
        if not thread:
            return False
        self.expire()
        self._overwrites[thread] = Overwrite(nodeid, self._deadline(), is_emptying)
        return True

    def announce_reading(self, thread: int, nodeid: int) -> None:
        """Note that `thread` opened `nodeid` for reading when it was gone, and will walk again."""
        self.finish_overwrite(thread)
        if not thread:
            return
        self.expire()
        expires_ns = self._clock.monotonic_ns() + READING_LIFETIME_NS
        self._overwrites[thread] = Overwrite(nodeid, expires_ns, False, is_reading=True)

    def is_walking(self, thread: int) -> bool:
        """Whether `thread` announced an open that has not come yet."""
        return thread in self._overwrites

    def find_overwrite(self, thread: int, place: ChildName) -> Overwrite | None:
        """Return what `thread` announced, if its walk may end at this file's name.

        A thread does one thing at a time: the first file (not directory) that it looks up after
        ESTALE is the one it opens. By then the name may lead to another inode than before, or the
        old one may be forgotten, so neither can be asked for.
        """
        known = self._overwrites.get(thread)
        if known is None or not self._is_fresh(known.expires_ns):
            return None
        return known if known.place in (None, place) else None

    def take_base(self, thread: int, alias: Node) -> ReadView | None:
        """Hand over the bytes that `thread` was led to; the caller closes them."""
        known = self._overwrites.get(thread)
        if known is None or known.alias is not alias:
            return None
        base, known.base = known.base, None
        return base

    def finish_overwrite(self, thread: int) -> None:
        """The walk is over: the alias was opened, or the name was created."""
        known = self._overwrites.pop(thread, None)
        if known is not None:
            self._drop(known)

    def expire(self) -> None:
        """Give up the overwrites that nobody came for in time: their aliases, and files held open.

        A thread may be killed between its two walks, or be refused the open by the kernel itself.
        """
        while self._overwrites:
            thread, oldest = next(iter(self._overwrites.items()))
            if len(self._overwrites) < MAX_OVERWRITES and self._is_fresh(oldest.expires_ns):
                return
            del self._overwrites[thread]
            self._drop(oldest)

    def _drop(self, overwrite: Overwrite) -> None:
        if overwrite.base is not None:
            overwrite.base.close()
        if overwrite.alias is not None:
            overwrite.alias.holds -= 1
            self._drop_alias(overwrite.alias)

    # -- credits

    def give_credit(self, writing: WritingFile, attributes: Attributes) -> None:
        """`writing` was published under its name, and a twin may rename that first."""
        place, creator = writing.place, writing.creator
        if place is None:
            return
        # One thread owes one rename: what it published there before, it has itself replaced.
        others = [c for c in self._credits.get(place, ()) if c.creator != creator]
        fresh = Credit(creator, writing.inode, self._deadline(), attributes, writing.has_twin)
        # More than 64 twins of one name are more than any engine's pool has threads.
        self._credits[place] = [*others[-63:], fresh]
        self._credits.move_to_end(place)
        while len(self._credits) > MAX_CREDITS:
            self._credits.popitem(last=False)

    def has_credits(self, place: ChildName) -> bool:
        return place in self._credits

    def credit(self, place: ChildName, group: int) -> Credit | None:
        """Return the newest credit of this process for this name, of those that had a twin."""
        for credit in reversed(self._credits.get(place, ())):
            is_valid = credit.has_twin and self._is_fresh(credit.expires_ns)
            if is_valid and credit.creator.group == group:
                return credit
        return None

    def use_credit(self, place: ChildName, creator: Creator) -> None:
        """A rename of this name is done: one credit less, its thread's own before its process's."""
        credits = self._credits.get(place, [])
        own = [c for c in credits if c.creator == creator]
        own = own or [c for c in credits if c.creator.group == creator.group]
        if own:
            credits.remove(own[0])
        if place in self._credits and not credits:
            del self._credits[place]

    def drop_credits(self, place: ChildName) -> None:
        """The name was removed on purpose: whoever looks must see that."""
        self._credits.pop(place, None)

    def _deadline(self) -> int:
        return self._clock.monotonic_ns() + LIFETIME_NS

    def _is_fresh(self, expires_ns: int) -> bool:
        return self._clock.monotonic_ns() < expires_ns
