"""The daemons' share of the collection: the policy of kvfs-gc, in small steps between its runs.

Owns when a daemon plans and collects, and what a run shares with kvfs-gc: settings, the lock that
lets one process of the machine collect at a time, the survey, recoding and the scrub's due share.
What goes is policy's choice, how it goes is collection.py's business.
Holds: a plan takes at most a fifth of a processor from the doors of its process; nothing is planned
while another process collects; compressing and scrubbing are off unless lifecycle.toml asks.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kvfs.config import read_toml
from kvfs.errors import Closed, KvfsError, NoSpace, NotFound
from kvfs.index import tree
from kvfs.index.lmdb_index import ReadTransaction
from kvfs.model import Digest
from kvfs.policy.eviction import Budget, Plan, Planner
from kvfs.policy.settings import FILE_NAME, LifecycleSettings, parse_settings
from kvfs.policy.survey import Candidate
from kvfs.store.access_times import AccessTimes
from kvfs.store.collection import Collector, Walk
from kvfs.store.context import StoreContext
from kvfs.store.heat import read_heat
from kvfs.store.housekeeping import SweepReport
from kvfs.store.recoder import Outcome as Recoded
from kvfs.store.recoder import Recoder, Recoding
from kvfs.store.removal import Outcome
from kvfs.store.scrubber import Scrubber, ScrubReport
from kvfs.store.timekeeping import Timekeeper

log = logging.getLogger(__name__)

LOCK_NAME = "gc.lock"
LAST_PLAN_NAME = "gc.plan"
"""Its modification time is that of the last full plan, by any process."""
LAST_RUN_NAME = "gc.last"
"""Its modification time is that of the last share scrubbed; what is due follows from it."""
LAST_SWEEP_NAME = "gc.sweep"
"""Its modification time is that of the last sweep that a collection finished."""
MAX_SCRUB_GAP_S = 6 * 3600
"""After a longer time without runs the pass takes longer, rather than one run very long."""
IDLE_SHARE = 4
"""A plan rests this many times as long as each of its pages took."""
RETRY_S = 60.0
"""Over a watermark with nothing that may go: the next plan comes this much later."""
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class RecodeReport:
    """What recoding did."""

    compressed: int = 0
    promoted: int = 0
    saved_bytes: int = 0
    """Negative where blocks became raw again."""


def load_settings(root: Path) -> LifecycleSettings:
    """Return what <store>/lifecycle.toml says, or the defaults. Raises: InvalidArgument, Denied."""
    try:
        return parse_settings(read_toml(root / FILE_NAME))
    except NotFound:
        return LifecycleSettings()


@contextlib.contextmanager
def only_one(root: Path) -> Iterator[bool]:
    """Hold the collection's lock; yields False where another process has it."""
    descriptor = os.open(root / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        yield False
        return
    try:
        yield True
    finally:
        os.close(descriptor)


def note_plan(context: StoreContext) -> None:
    """Remember that a plan was just made, so that a machine's daemons do not each make one."""
    _touch(context.root / LAST_PLAN_NAME, context.now_s())


def survey(
    context: StoreContext,
    settings: LifecycleSettings,
    pace: Callable[[], None] = lambda: None,
    see: Callable[[Candidate], None] | None = None,
) -> tuple[Planner, Budget, Walk]:
    """Take every live name into a planner; changes nothing. see: called with each."""
    walk, budget = Walk(context, pace), Collector(context).budget(settings)
    with context.index.read() as txn:
        pending_s = Timekeeper(context).pending_s(txn)
        names = _namespace_names(txn)
        opens = read_heat(txn, context.now_s())
    wanted = settings.promote_opens
    often = frozenset(inode for inode, (_, count) in opens.items() if 0 < wanted <= count)
    planner = Planner(budget, context.now_s() - pending_s, settings.rules, names, often)
    planner.survey(walk.rows() if see is None else _shown(walk, see))
    return planner, budget, walk


def _shown(walk: Walk, see: Callable[[Candidate], None]) -> Iterator[Candidate]:
    for candidate in walk:
        see(candidate)
        yield candidate


def recode(
    context: StoreContext,
    plan: Plan,
    seconds: float,
    compress: Callable[[Digest], Recoding],
    promote: Callable[[Digest], Recoding],
    is_stopping: Callable[[], bool] = lambda: False,
) -> RecodeReport:
    """Make hot blocks raw, then compress cold ones, until the time is used up."""
    until_ns = context.clock.monotonic_ns() + int(seconds * NS_PER_S)
    compressed = promoted = saved = 0
    for inodes, is_cold in ((plan.hot, False), (plan.cold, True)):
        for inode in inodes:
            if is_stopping() or context.clock.monotonic_ns() >= until_ns:
                return RecodeReport(compressed, promoted, saved)
            with context.index.read() as txn:
                row = txn.inode(inode)
            if row is None or not row.digest:
                continue
            try:
                done = compress(row.digest) if is_cold else promote(row.digest)
            except NoSpace:  # no room for the copy: another time, after more has left
                return RecodeReport(compressed, promoted, saved)
            if done.outcome is Recoded.RECODED:
                compressed += is_cold
                promoted += not is_cold
                saved += done.saved_bytes
    return RecodeReport(compressed, promoted, saved)


def scrub_due(
    context: StoreContext, settings: LifecycleSettings, scrub: Callable[[int], ScrubReport]
) -> ScrubReport | None:
    """Check the share of the blocks that is due since the last time, by any process."""
    if not settings.scrub_pass_s:
        return None
    marker = context.root / LAST_RUN_NAME
    now_s = context.now_s()
    try:
        since_s = now_s - int(marker.stat().st_mtime)
    except FileNotFoundError:
        since_s = 0
    _touch(marker, now_s)
    due_ratio = min(max(since_s, 0), MAX_SCRUB_GAP_S) / settings.scrub_pass_s
    with context.index.read() as txn:
        due_bytes = int(txn.counters().resident * min(due_ratio, 1.0))
    return scrub(due_bytes) if due_bytes else None


def sweep_due(
    context: StoreContext, settings: LifecycleSettings, sweep: Callable[[], SweepReport]
) -> SweepReport | None:
    """Sweep the store's files if none of its collections has for as long as the settings say."""
    if not settings.sweep_every_s:
        return None
    marker, now_s = context.root / LAST_SWEEP_NAME, context.now_s()
    if _is_younger(marker, settings.sweep_every_s, now_s):
        return None
    report = sweep()
    _touch(marker, now_s)
    return report


class Lifecycle:
    """One daemon's collections. `step` belongs to one thread, `stop` to any."""

    def __init__(
        self, context: StoreContext, access: AccessTimes, recoder: Recoder, scrubber: Scrubber
    ) -> None:
        self._context = context
        self._access = access
        self._recoder = recoder
        self._scrubber = scrubber
        self._stopping = threading.Event()
        self._settings = LifecycleSettings()
        self._settings_stamp = -1
        self._next_check_ns = self._next_rescue_ns = 0
        self._next_plan_ns = self._after_s(self._settings.daemon_plan_s)
        self._page_ns = 0

    def stop(self) -> None:
        """Let the step under way end soon."""
        self._stopping.set()

    def step(self) -> Outcome | None:
        """Collect if it is time to, or a limit is passed; return what went, None if none was due.

        Raises: Unavailable.
        """
        now_ns = self._context.clock.monotonic_ns()
        if now_ns < self._next_check_ns:
            return None
        self._read_settings()
        settings = self._settings
        self._next_check_ns = self._after_s(settings.daemon_check_s)
        if not settings.daemon_check_s:
            self._next_check_ns = self._after_s(RETRY_S)
            return None
        is_planned = bool(settings.daemon_plan_s) and now_ns >= self._next_plan_ns
        is_over = now_ns >= self._next_rescue_ns and self._is_over()
        if not (is_planned or is_over or settings.daemon_scrub):
            return None
        with only_one(self._context.root) as is_first:
            if not is_first:
                return None
            if is_planned and not is_over and not self._is_plan_old():
                is_planned = False
                self._next_plan_ns = self._after_s(settings.daemon_plan_s)
            return self._collect(is_plan_wanted=is_planned or is_over)

    def _collect(self, *, is_plan_wanted: bool) -> Outcome | None:
        outcome = None
        with contextlib.suppress(Closed):  # the daemon ends: what is left waits for the next
            if is_plan_wanted:
                outcome = self._plan_and_remove()
            if self._settings.daemon_scrub and not self._stopping.is_set():
                scrub_due(self._context, self._settings, self._scrubber.step)
        return outcome

    def _plan_and_remove(self) -> Outcome:
        context, settings = self._context, self._settings
        self._access.flush()
        self._page_ns = context.clock.monotonic_ns()
        planner, _, _ = survey(context, settings, self._pace)
        plan = planner.plan()
        self._access.flush()  # what was asked for while we planned stays
        collector = Collector(context)
        low = settings.low_ratio * context.capacity_bytes
        outcome = collector.execute(
            plan.removals,
            plan.now_s,
            is_enough=lambda: collector.budget(settings).used_bytes <= low,
            is_stopping=self._stopping.is_set,
        )
        if settings.daemon_recode_s:
            recode(
                context, plan, settings.daemon_recode_s, self._recoder.compress,
                self._recoder.promote, self._stopping.is_set,
            )  # fmt: skip
        note_plan(context)
        self._next_plan_ns = self._after_s(settings.daemon_plan_s)
        self._next_rescue_ns = self._after_s(RETRY_S) if not outcome.removed else 0
        if outcome.removed:
            log.info("collection removed=%d", sum(outcome.removed.values()))
        return outcome

    def _is_plan_old(self) -> bool:
        """Return whether no process has planned for the time between two plans."""
        marker = self._context.root / LAST_PLAN_NAME
        return not _is_younger(marker, self._settings.daemon_plan_s, self._context.now_s())

    def _is_over(self) -> bool:
        """Return whether the store or a namespace is over its high watermark."""
        budget = Collector(self._context).budget(self._settings)
        high = budget.high_ratio
        return budget.used_bytes > high * budget.capacity_bytes or any(
            (quota.limit_bytes and quota.used_bytes > high * quota.limit_bytes)
            or (quota.limit_objects and quota.used_objects > high * quota.limit_objects)
            for quota in budget.quotas.values()
        )

    def _pace(self) -> None:
        """Rest after a page of the survey, or raise Closed to give it up."""
        now_ns = self._context.clock.monotonic_ns()
        if self._stopping.wait(min((now_ns - self._page_ns) * IDLE_SHARE / NS_PER_S, 1.0)):
            raise Closed("the store is closing")
        self._page_ns = self._context.clock.monotonic_ns()

    def _read_settings(self) -> None:
        """Read lifecycle.toml again if it changed; a bad one leaves what held before."""
        try:
            stamp = (self._context.root / FILE_NAME).stat().st_mtime_ns
        except FileNotFoundError:
            stamp = 0
        if stamp == self._settings_stamp:
            return
        self._settings_stamp = stamp
        try:
            self._settings = load_settings(self._context.root)
        except KvfsError as error:
            log.warning("lifecycle.toml is not used error=%s", error)

    def _after_s(self, seconds: float) -> int:
        return self._context.clock.monotonic_ns() + int(seconds * NS_PER_S)


def _is_younger(marker: Path, seconds: int, now_s: int) -> bool:
    """Return whether a marker was touched within `seconds`; one from the future was not."""
    try:
        return 0 <= now_s - int(marker.stat().st_mtime) < seconds
    except FileNotFoundError:
        return False


def _touch(path: Path, now_s: int) -> None:
    path.touch(mode=0o600)
    os.utime(path, (now_s, now_s))


def _namespace_names(txn: ReadTransaction) -> dict[int, bytes]:
    names = {}
    for namespace_id, row in list(txn.namespaces()):
        with contextlib.suppress(NotFound):
            names[int(namespace_id)] = tree.directory_row(txn, row.inode).name[:-1]
    return names
