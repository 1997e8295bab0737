"""Lifetimes: TTL classes, the rules that give them, and what a clock may be believed.

Owns the arithmetic of deadlines; touches neither rows nor clocks (callers pass `now_s` and clock
readings). A writer's own TTL wins; where it gave none, the first rule that matches the name gives
a class. Rules are applied when a plan is made, not when an object is written, so changing a rule
changes the fate of what is already there.
Holds: a deadline is never further off than the TTL itself, so a clock that went back makes nothing
immortal; and where the wall clock moved but the machine's uptime did not, stored times move along,
so a clock that leaps a month ahead expires nothing (clock_jump_s, rebased_times).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvfs.engine_keys import Engine, Shape, identify, spell_model
from kvfs.errors import InvalidArgument

MINUTE, HOUR, DAY = 60, 3600, 86_400
DEFAULT_PRIORITY = 100
MAX_CLASSES, MAX_RULES = 256, 1024
MAX_ANSWERS = 4096
_WILD = re.compile(rb"[*?\[]")
NEVER_S = 1 << 62
MIN_SLIDE_SHARE = 10
"""A sliding deadline is rewritten once a tenth of the TTL has passed: a write a read would cost
more than the read."""


@dataclass(frozen=True, slots=True)
class TtlClass:
    """A named lifetime."""

    name: str
    ttl_s: int = 0
    """0 = never expires; space decides."""
    is_sliding: bool = True
    """Whether an access starts the TTL anew."""
    priority: int = DEFAULT_PRIORITY
    """0-255, higher leaves later."""
    compress_after_s: int = HOUR
    """Idle time after which a block is worth compressing; 0 = never."""
    max_age_s: int = 0
    """Seconds after writing at which it goes however often it is read; 0 = no such limit."""

    @property
    def limits(self) -> Limits:
        return Limits(
            self.ttl_s or NEVER_S,
            self.max_age_s or NEVER_S,
            self.is_sliding,
            self.priority,
            self.compress_after_s,
        )


class Limits(NamedTuple):
    """A class as a plan asks a million times: unpacked in one step, with NEVER_S for no limit.

    A name is over when `since + ttl_s <= now`, counted from its last access where that is sliding
    and later than its writing, or when `written + max_age_s <= now`: deadline_s says the same, for
    a time in the future makes no sum that has passed.
    """

    ttl_s: int
    max_age_s: int
    is_sliding: bool
    priority: int
    compress_after_s: int


DEFAULT_CLASS = TtlClass("default", ttl_s=7 * DAY, max_age_s=90 * DAY)
"""A week unread: long enough for a weekend, short enough that a retired model leaves by itself."""

BUILTIN_CLASSES = (
    DEFAULT_CLASS,
    TtlClass("session", ttl_s=30 * MINUTE, priority=80, compress_after_s=10 * MINUTE),
    TtlClass("day", ttl_s=DAY),
    TtlClass("week", ttl_s=7 * DAY),
    TtlClass("month", ttl_s=30 * DAY, priority=120),
    TtlClass("system", ttl_s=30 * DAY, priority=160, compress_after_s=DAY),
    TtlClass("keep", priority=200, compress_after_s=DAY),
)
"""Chat, and prompts that every conversation starts with, are one rule each."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Which names get a class. Every condition given must hold; globs' `*` also matches `/`."""

    ttl_class: str
    namespace: bytes = b"*"
    path: bytes = b"*"
    engine: Engine | None = None
    model: bytes = b"*"
    tags: Mapping[str, bytes] = field(default_factory=dict)
    """Attributes of the object (`user.s3.meta.x`, `user.s3.tag.x`) that must have these values."""

    @property
    def looks_at_name(self) -> bool:
        return self.path != b"*" or self.engine is not None or self.model != b"*"


class RuleSet:
    """Rules in order with their classes; immutable, safe to share between threads."""

    def __init__(
        self, rules: Sequence[Rule] = (), classes: Iterable[TtlClass] = BUILTIN_CLASSES
    ) -> None:
        """Check the rules. Raises: InvalidArgument (unknown or doubtful class, too many)."""
        self.classes = {each.name: each for each in classes}
        if len(rules) > MAX_RULES or len(self.classes) > MAX_CLASSES:
            raise InvalidArgument(f"at most {MAX_RULES} rules and {MAX_CLASSES} TTL classes")
        for each in self.classes.values():
            _check_class(each)
        for rule in rules:
            if rule.ttl_class not in self.classes:
                raise InvalidArgument(f"a rule names the unknown TTL class {rule.ttl_class!r}")
        self._default = self.classes.get("default", DEFAULT_CLASS)
        self._rules = tuple(
            (rule, _glob(rule.namespace), _glob(rule.path), _glob(rule.model)) for rule in rules
        )

    @property
    def default(self) -> TtlClass:
        """The class of names that no rule matches."""
        return self._default

    def for_namespace(self, namespace: bytes) -> NamespaceRules:
        """Return the rules that can apply in one namespace: do this once, then classify names."""
        kept: list[_NameRule] = []
        for rule, namespace_glob, path_glob, model_glob in self._rules:
            if not namespace_glob.fullmatch(namespace):
                continue
            ttl_class = self.classes[rule.ttl_class]
            prefix = _prefix_of(rule.path)
            kept.append(_NameRule(rule, path_glob, prefix, model_glob, ttl_class))
            if not rule.looks_at_name and not rule.tags:
                break  # matches everything here: later rules cannot be reached
        return NamespaceRules(tuple(kept), self._default)


@dataclass(frozen=True, slots=True)
class _NameRule:
    rule: Rule
    path: re.Pattern[bytes]
    prefix: bytes | None
    """The path glob without its `*`, where that is all it has: three times as fast to match."""
    model: re.Pattern[bytes]
    ttl_class: TtlClass


@dataclass(frozen=True, slots=True)
class NamespaceRules:
    """What is left of a RuleSet inside one namespace."""

    rules: tuple[_NameRule, ...]
    default: TtlClass
    _answers: dict[tuple[Engine | None, bytes, Engine, bytes], bool] = field(default_factory=dict)

    @property
    def is_by_folder(self) -> bool:
        """Whether all names of one directory, engine and model have one class: a glob that ends in
        `/*` asks nothing of what follows the directory's last slash, and needs that slash."""
        return all(
            not each.rule.tags and (each.rule.path == b"*" or each.rule.path.endswith(b"/*"))
            for each in self.rules
        )

    def classify(
        self,
        key: bytes,
        attributes: Mapping[str, bytes] | None = None,
        shape: Shape | None = None,
    ) -> TtlClass:
        """Return the class of the first rule that matches, or the default class.

        shape: what engine_keys.identify found, if the caller has already asked it.
        """
        for each in self.rules:
            rule = each.rule
            if each.prefix is not None:
                if not key.startswith(each.prefix):
                    continue
            elif not each.path.fullmatch(key):
                continue
            if rule.engine is not None or rule.model != b"*":
                shape = shape or identify(key)[0]
                if rule.engine is not None and rule.engine is not shape.engine:
                    continue
                if not self._is_from(each, shape.engine, shape.model):
                    continue
            if not rule.tags or _has_tags(attributes or {}, rule.tags):
                return each.ttl_class
        return self.default

    def _is_from(self, each: _NameRule, engine: Engine, model: bytes) -> bool:
        """Whether engine and model satisfy a rule; the answers are few, so they are kept."""
        question = (each.rule.engine, each.rule.model, engine, model)
        answer = self._answers.get(question)
        if answer is None:
            fits = each.rule.engine in (None, engine)
            answer = fits and each.model.fullmatch(spell_model(model)) is not None
            if len(self._answers) < MAX_ANSWERS:
                self._answers[question] = answer
        return answer


def deadline_s(ttl_class: TtlClass, written_s: int, accessed_s: int, now_s: int) -> int:
    """Return when an object under a rule's class expires; 0 = never.

    Times in the future (the clock went back since) count as now.
    """
    # Comparisons instead of min and max: four times as fast, and a plan asks a million times.
    if written_s > now_s:
        written_s = now_s
    if accessed_s > now_s:
        accessed_s = now_s
    deadline = 0
    if ttl_class.ttl_s:
        is_later = ttl_class.is_sliding and accessed_s > written_s
        deadline = (accessed_s if is_later else written_s) + ttl_class.ttl_s
    if ttl_class.max_age_s:
        oldest = written_s + ttl_class.max_age_s
        if not deadline or oldest < deadline:
            deadline = oldest
    return deadline


def clamp_deadline_s(expires_at_s: int, ttl_s: int, now_s: int) -> int:
    """Return a stored deadline as it may be believed: at most one TTL from now.

    It lies further off only if the clock has gone back since it was written. An absolute deadline
    without a TTL is taken as it is.
    """
    if expires_at_s and ttl_s:
        return min(expires_at_s, now_s + ttl_s)
    return expires_at_s


def slid_deadline_s(
    expires_at_s: int, ttl_s: int, now_s: int, *, is_sliding: bool = True
) -> int | None:
    """Return the new deadline after an access, or None if it is not worth writing yet."""
    if not is_sliding or not ttl_s or not expires_at_s:
        return None
    used_s = now_s + ttl_s - expires_at_s
    if 0 <= used_s * MIN_SLIDE_SHARE <= ttl_s:
        return None
    return now_s + ttl_s


CLOCK_TOLERANCE_S = HOUR * 12
"""Smaller jumps (NTP, a wrong time zone) are followed: they cost a lifetime at most that."""
MAX_TRUSTED_GAP_S = DAY
"""Time between two boots that is believed to have passed. Nothing can prove a longer one, and
believing a dead battery's clock would empty the store; space is kept by eviction meanwhile."""


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The wall clock beside something that does not jump."""

    wall_s: int
    uptime_s: int
    """Seconds since boot, suspend included (/proc/uptime)."""
    boot_id: str


def clock_jump_s(before: ClockReading, now: ClockReading) -> int:
    """Return how far the wall clock jumped between two readings; 0 = it is to be believed."""
    wall_s, uptime_s = now.wall_s - before.wall_s, now.uptime_s - before.uptime_s
    if now.boot_id == before.boot_id and uptime_s >= 0:
        jump_s = wall_s - uptime_s
    else:
        jump_s = min(wall_s, 0) + max(wall_s - MAX_TRUSTED_GAP_S, 0)
    return jump_s if abs(jump_s) > CLOCK_TOLERANCE_S else 0


def rebased_times(
    accessed_s: int, expires_at_s: int, ttl_s: int, jump_s: int, now_s: int
) -> tuple[int, int]:
    """Return a row's (last access, deadline) after the clock jumped by `jump_s` to `now_s`.

    What was written before the jump moves along with it, so it is as old as it was and lives as
    long as it would have. Nothing ends up in the future, or with more than its TTL to go; an
    absolute deadline (no TTL) is a date and stays. A clock that went back tells rows written
    before from rows written since by their lying in the future.
    """
    is_ahead = accessed_s > now_s or (ttl_s > 0 and expires_at_s > now_s + ttl_s)
    if jump_s < 0 and not is_ahead:
        return accessed_s, expires_at_s
    accessed_s = min(accessed_s + jump_s, now_s)
    if expires_at_s and ttl_s:
        expires_at_s = clamp_deadline_s(expires_at_s + jump_s, ttl_s, now_s)
    return accessed_s, expires_at_s


def _glob(pattern: bytes) -> re.Pattern[bytes]:
    # fnmatch keeps no more than one repeat open at a time, so hostile globs stay linear.
    return re.compile(fnmatch.translate(pattern.decode("latin-1")).encode("latin-1"))


def _prefix_of(pattern: bytes) -> bytes | None:
    stem = pattern.removesuffix(b"*")
    return stem if stem != pattern and not _WILD.search(stem) else None


def _has_tags(present: Mapping[str, bytes], wanted: Mapping[str, bytes]) -> bool:
    return all(present.get(name) == value for name, value in wanted.items())


def _check_class(ttl_class: TtlClass) -> None:
    times = (ttl_class.ttl_s, ttl_class.compress_after_s, ttl_class.max_age_s)
    if min(times) < 0 or not 0 <= ttl_class.priority <= 255:
        raise InvalidArgument(f"TTL class {ttl_class.name!r} has a value out of range")
