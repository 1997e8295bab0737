"""The operator's wishes for lifetimes and space: <store>/lifecycle.toml, parsed.

Owns the file's grammar (docs/lifecycle.md describes it); reads no file. Every key is optional, and
an unknown one is refused, because a misspelt rule that silently does nothing costs a night.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from kvfs.engine_keys import Engine
from kvfs.errors import InvalidArgument
from kvfs.policy.expiry import BUILTIN_CLASSES, DAY, DEFAULT_PRIORITY, HOUR, Rule, RuleSet, TtlClass

FILE_NAME = "lifecycle.toml"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LifecycleSettings:
    """What lifecycle.toml says, or what holds without one."""

    rules: RuleSet = field(default_factory=RuleSet)
    high_ratio: float = 0.95
    """Used share of capacity at which eviction starts ..."""
    low_ratio: float = 0.90
    """... and at which it stops: 5 % is what a fast writer fills between two runs."""
    grace_s: int = 5
    snapshot_every_s: int = 6 * HOUR
    """An index snapshot's age from which a run writes a new one; 0 = never."""
    sweep_every_s: int = HOUR
    """Time between two searches of all files for what no row names; 0 = never. A crash leaves a few
    such files, and looking at every file takes longer than a small collection."""
    recode_s: int = 30
    """Time a run may spend on compressing cold blocks and making hot ones raw; 0 = never."""
    promote_opens: int = 3
    """Opens within a quarter of an hour that make a compressed block raw again; 0 = it stays."""
    scrub_pass_s: int = 14 * DAY
    """Time in which regular runs read and check every block once; 0 = never."""
    daemon_check_s: int = 5
    """How often a daemon looks whether a watermark or quota is passed; 0 = it leaves all to
    kvfs-gc (and to writers that meet a full store)."""
    daemon_plan_s: int = 900
    """How often a daemon plans anyway, for lifetimes that rules give; 0 = never."""
    daemon_recode_s: int = 0
    """Time a daemon's collection may spend on recoding; off, for it is the doors' processor."""
    daemon_scrub: bool = False
    """Whether daemons check their share of `scrub_pass_s` between runs of kvfs-gc."""


def parse_settings(table: Mapping[str, object]) -> LifecycleSettings:
    """Return the settings of a parsed TOML table. Raises: InvalidArgument."""
    _refuse_unknown(
        table,
        "high_watermark low_watermark grace_seconds snapshot_every_seconds "
        "sweep_every_seconds recode_seconds promote_opens scrub_pass_seconds "
        "daemon_check_seconds daemon_plan_seconds daemon_recode_seconds daemon_scrub class rule",
    )
    classes = {each.name: each for each in BUILTIN_CLASSES}
    for entry in _tables(table, "class"):
        ttl_class = _parse_class(entry)
        classes[ttl_class.name] = ttl_class
    rules = [_parse_rule(entry) for entry in _tables(table, "rule")]
    standard = LifecycleSettings()
    settings = LifecycleSettings(
        rules=RuleSet(rules, classes.values()),
        high_ratio=_number(table, "high_watermark", standard.high_ratio),
        low_ratio=_number(table, "low_watermark", standard.low_ratio),
        grace_s=_get(table, "grace_seconds", int, standard.grace_s),
        snapshot_every_s=_get(table, "snapshot_every_seconds", int, standard.snapshot_every_s),
        sweep_every_s=_get(table, "sweep_every_seconds", int, standard.sweep_every_s),
        recode_s=_get(table, "recode_seconds", int, standard.recode_s),
        promote_opens=_get(table, "promote_opens", int, standard.promote_opens),
        scrub_pass_s=_get(table, "scrub_pass_seconds", int, standard.scrub_pass_s),
        daemon_check_s=_get(table, "daemon_check_seconds", int, standard.daemon_check_s),
        daemon_plan_s=_get(table, "daemon_plan_seconds", int, standard.daemon_plan_s),
        daemon_recode_s=_get(table, "daemon_recode_seconds", int, standard.daemon_recode_s),
        daemon_scrub=_get(table, "daemon_scrub", bool, standard.daemon_scrub),
    )
    if not 0 < settings.low_ratio <= settings.high_ratio <= 1:
        raise InvalidArgument("watermarks must satisfy 0 < low_watermark <= high_watermark <= 1")
    numbers = (
        settings.promote_opens,
        settings.grace_s,
        settings.snapshot_every_s,
        settings.sweep_every_s,
        settings.recode_s,
        settings.scrub_pass_s,
        settings.daemon_check_s,
        settings.daemon_plan_s,
        settings.daemon_recode_s,
    )
    if min(numbers) < 0:
        raise InvalidArgument("a number of seconds or opens is negative")
    return settings


def _parse_class(entry: Mapping[str, object]) -> TtlClass:
    _refuse_unknown(
        entry, "name ttl_seconds sliding priority compress_after_seconds max_age_seconds"
    )
    name = _get(entry, "name", str, "")
    if not name:
        raise InvalidArgument("a [[class]] has no name")
    return TtlClass(
        name,
        _get(entry, "ttl_seconds", int, 0),
        _get(entry, "sliding", bool, True),
        _get(entry, "priority", int, DEFAULT_PRIORITY),
        _get(entry, "compress_after_seconds", int, HOUR),
        _get(entry, "max_age_seconds", int, 0),
    )


def _parse_rule(entry: Mapping[str, object]) -> Rule:
    _refuse_unknown(entry, "class namespace path engine model tags")
    engine = _get(entry, "engine", str, "")
    if engine and engine not in set(Engine):
        known = ", ".join(each.value for each in Engine)
        raise InvalidArgument(f"a rule names the unknown engine {engine!r}; known: {known}")
    tags = _get(entry, "tags", dict, {})
    return Rule(
        _get(entry, "class", str, ""),
        _get(entry, "namespace", str, "*").encode(),
        _get(entry, "path", str, "*").encode(),
        Engine(engine) if engine else None,
        _get(entry, "model", str, "*").encode(),
        {str(name): str(value).encode() for name, value in tags.items()},
    )


def _get(table: Mapping[str, object], key: str, kind: type[T], default: T) -> T:
    value = table.get(key, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidArgument(f"{key} must be a {kind.__name__}, not {value!r}")
    return value


def _number(table: Mapping[str, object], key: str, default: float) -> float:
    value = table.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidArgument(f"{key} must be a number, not {value!r}")
    return float(value)


def _tables(table: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    entries = _get(table, key, list, [])
    if not all(isinstance(entry, dict) for entry in entries):
        raise InvalidArgument(f"[[{key}]] must be a table")
    return entries


def _refuse_unknown(table: Mapping[str, object], known: str) -> None:
    unknown = sorted(set(table) - set(known.split()))
    if unknown:
        raise InvalidArgument(f"unknown settings {', '.join(unknown)}; known are: {known}")
