"""`kvfs-gc`: one collection and exit, for cron and systemd.

Owns the order of a run and what is printed of it; what goes is policy's choice, how it goes is the
store's. Plan first, print with reasons (--dry-run ends there), then execute in short transactions.
Holds: safe twice at once (the second finds the lock taken and leaves at once with exit code 0: its
work is being done) and killed anywhere (every step is finished by the next run); a clock that
jumped expires nothing.
"""

from __future__ import annotations

import contextlib
import gc as cycles
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import click

from kvfs.errors import KvfsError, NotFound, Unavailable
from kvfs.model import ObjectPath
from kvfs.policy.eviction import Budget, Plan, Planner, Reason, Verdict
from kvfs.policy.settings import LifecycleSettings
from kvfs.store.collection import Collector, Walk
from kvfs.store.housekeeping import SweepReport
from kvfs.store.lifecycle import (
    load_settings,
    note_plan,
    only_one,
    recode,
    scrub_due,
    survey,
    sweep_due,
)
from kvfs.store.rebuild import write_snapshot
from kvfs.store.removal import Outcome
from kvfs.store.store import Store
from kvfs.store.timekeeping import Timekeeper
from kvfs_tools.command_store import json_option, name_bytes, open_command_store, store_option
from kvfs_tools.exit_codes import ExitCode, exit_code_of
from kvfs_tools.sizes import (
    parse_object_path,
    render_bytes,
    render_duration,
    render_json_name,
    render_size,
)

RESERVE_NAME = "gc.reserve"
RESERVE_LENGTH = 4 << 20
"""Disk space that only a collection on a full disk uses: deleting rows needs new index pages."""
HOUR = 3600
NOTHING_SWEPT = SweepReport(0, 0, 0, 0)
UPLOAD_BATCH, MAX_UPLOADS = 50, 10_000
"""Abandoned uploads dropped at once, and in one run (I8)."""


@dataclass(slots=True)
class Report:
    """What one run found and did."""

    budget: Budget
    plan: Plan
    jump_s: int = 0
    outcome: Outcome = field(default_factory=Outcome)
    trash_bytes: int = 0
    sweep: SweepReport | None = None
    """None: not due yet."""
    dead_readers: int = 0
    uploads: int = 0
    """Multipart uploads that nobody continued."""
    compressed: int = 0
    promoted: int = 0
    saved_bytes: int = 0
    """By compression; negative where blocks became raw again."""
    scrubbed_bytes: int = 0
    bad_blocks: int = 0
    has_snapshot: bool = False
    used_after: int = 0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@store_option
@click.option("--dry-run", is_flag=True, help="Print what would go and why; change nothing.")
@click.option("--explain", metavar="BUCKET/KEY", help="Say why one object stays or goes, and when.")
@json_option
def gc(store_path: Path | None, dry_run: bool, explain: str | None, is_json: bool) -> ExitCode:
    """Expire, evict and sweep once, then exit."""
    is_looking = dry_run or explain is not None
    with open_command_store(store_path, read_only=is_looking) as store:
        settings = load_settings(store.path)
        if explain is not None:
            return _explain(store, settings, parse_object_path(name_bytes(explain)), is_json)
        if dry_run:
            return _dry_run(store, settings, is_json)
        with only_one(store.path) as is_first:
            if not is_first:
                return _say_busy(is_json)
            return _print_report(collect(store, settings), is_json)


def collect(store: Store, settings: LifecycleSettings) -> Report:
    """Run one collection. Raises: Unavailable (the index cannot be written), StoreDamaged."""
    context, collector = store.context, Collector(store.context)
    _ensure_reserve(store.path)
    try:
        jump_s = Timekeeper(context).settle()
    except Unavailable:
        # The disk is full to the last page: this is what the reserve is for.
        (store.path / RESERVE_NAME).unlink(missing_ok=True)
        jump_s = Timekeeper(context).settle()
    dead_readers = context.index.free_dead_readers()
    trash_bytes = collector.empty_trash()
    report = plan_collection(store, settings)
    note_plan(context)
    report.jump_s, report.dead_readers, report.trash_bytes = jump_s, dead_readers, trash_bytes
    low = settings.low_ratio * context.capacity_bytes
    report.outcome = collector.execute(
        report.plan.removals,
        report.plan.now_s,
        is_enough=lambda: collector.budget(settings).used_bytes <= low,
    )
    while (count := store.expire_uploads(UPLOAD_BATCH)) and report.uploads < MAX_UPLOADS:
        report.uploads += count
    report.sweep = sweep_due(context, settings, store.sweep)
    done = recode(store.context, report.plan, settings.recode_s, store.compress, store.promote)
    report.compressed, report.promoted = done.compressed, done.promoted
    report.saved_bytes = done.saved_bytes
    report.trash_bytes += collector.empty_trash()
    found = scrub_due(store.context, settings, store.scrub)
    if found is not None:
        report.scrubbed_bytes, report.bad_blocks = found.checked_bytes, len(found.bad_digests)
    report.has_snapshot = _snapshot_when_due(store, settings)
    report.used_after = collector.budget(settings).used_bytes
    _ensure_reserve(store.path)
    return report


def plan_collection(store: Store, settings: LifecycleSettings) -> Report:
    """Survey the store and plan; changes nothing."""
    planner, budget, _ = _survey(store, settings)
    return Report(budget, planner.plan())


def _survey(store: Store, settings: LifecycleSettings) -> tuple[Planner, Budget, Walk]:
    """Survey without Python's search for reference cycles: a million tuples hold none."""
    was_enabled = cycles.isenabled()
    cycles.disable()
    try:
        return survey(store.context, settings)
    finally:
        if was_enabled:
            cycles.enable()


def _snapshot_when_due(store: Store, settings: LifecycleSettings) -> bool:
    if not settings.snapshot_every_s:
        return False
    taken = [path.name.rpartition("-")[2] for path in (store.path / "index").glob("snapshot-*")]
    newest_s = max((int(stamp) for stamp in taken if stamp.isdecimal()), default=0) // 10**9
    now_s = store.context.now_s()
    if newest_s <= now_s < newest_s + settings.snapshot_every_s:
        return False
    write_snapshot(store.context)
    return True


def _ensure_reserve(store: Path) -> None:
    """Keep some disk space that only a collection gives up; without room there is none."""
    path = store / RESERVE_NAME
    with contextlib.suppress(OSError):
        if path.exists() and path.stat().st_size == RESERVE_LENGTH:
            return
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_LENGTH)
        finally:
            os.close(descriptor)


# -- what is printed ----------------------------------------------------------------------------

MAX_LISTED = 10_000
"""Removals that a dry run lists; the summary counts all."""


def _dry_run(store: Store, settings: LifecycleSettings, is_json: bool) -> ExitCode:
    planner, budget, walk = _survey(store, settings)
    report = Report(budget, planner.plan(), used_after=budget.used_bytes)
    removals = report.plan.removals
    named = []
    for removal in removals[:MAX_LISTED]:
        candidate = walk.one(removal.inode)
        if candidate is not None:
            folder = walk.names.get(candidate.namespace_id, b"")
            named.append((folder + b"/" + candidate.key, removal))
    if is_json:
        document = _document(report) | {
            "dry_run": True,
            "removals": [
                {
                    "path": render_json_name(path),
                    "reason": removal.reason.value,
                    "freed_bytes": removal.freed_bytes,
                }
                for path, removal in named
            ],
            "removals_not_listed": len(removals) - len(named),
        }
        click.echo(json.dumps(document))
        return ExitCode.OK
    for path, removal in named:
        size = render_size(removal.freed_bytes)
        click.echo(f"would remove {render_bytes(path)}  {size}  {removal.reason.value}")
    if len(removals) > len(named):
        click.echo(f"... and {len(removals) - len(named)} more")
    click.echo(
        f"would free {render_size(report.plan.freed_bytes)} by removing {len(removals)} of "
        f"{report.plan.examined} objects; {_space(report)}"
    )
    return ExitCode.OK


def _print_report(report: Report, is_json: bool) -> ExitCode:
    if is_json:
        click.echo(json.dumps(_document(report)))
    else:
        click.echo(_summary(report))
    if report.bad_blocks:
        return ExitCode.DAMAGE
    return ExitCode.WARNINGS if report.plan.short_by else ExitCode.OK


def _document(report: Report) -> dict[str, object]:
    plan, outcome, sweep = report.plan, report.outcome, report.sweep or NOTHING_SWEPT
    return {
        "dry_run": False,
        "examined": plan.examined,
        "blocks": plan.groups,
        "planned": {reason.name.lower(): plan.count(reason) for reason in _GOING},
        "planned_bytes": plan.freed_bytes,
        "removed": {reason.name.lower(): outcome.removed.get(reason, 0) for reason in _GOING},
        "kept_after_all": outcome.kept,
        "freed_bytes": outcome.freed_bytes + report.trash_bytes,
        "transactions": outcome.transactions,
        "rows_removed_in_ns": outcome.rows_ns,
        "lock_held_ns_median": _share(outcome.held_ns, 0.5),
        "lock_held_ns_p99": _share(outcome.held_ns, 0.99),
        "swept": report.sweep is not None,
        "orphan_files": sweep.orphan_files,
        "orphan_bytes": sweep.orphan_bytes,
        "staging_files": sweep.staging_files,
        "quarantined_files_removed": sweep.quarantined_files,
        "abandoned_uploads": report.uploads,
        "dead_readers": report.dead_readers,
        "compressed_blocks": report.compressed,
        "promoted_blocks": report.promoted,
        "saved_bytes": report.saved_bytes,
        "scrubbed_bytes": report.scrubbed_bytes,
        "bad_blocks": report.bad_blocks,
        "index_snapshot": report.has_snapshot,
        "clock_jump_seconds": report.jump_s,
        "capacity_bytes": report.budget.capacity_bytes,
        "used_bytes": report.used_after,
        "short_by_bytes": plan.short_by,
        "unevictable_bytes": {each.name.lower(): size for each, size in plan.kept_bytes.items()},
        "written_bytes_per_hour": plan.written_last_hour_bytes,
        "full_in_seconds": _full_in_s(report),
    }


_GOING = (Reason.EXPIRED, Reason.QUOTA_BYTES, Reason.QUOTA_OBJECTS, Reason.CAPACITY)


def _summary(report: Report) -> str:
    outcome, sweep = report.outcome, report.sweep or NOTHING_SWEPT
    evicted = sum(outcome.removed.get(reason, 0) for reason in _GOING[1:])
    freed = outcome.freed_bytes + report.trash_bytes + sweep.orphan_bytes
    parts = [
        f"freed {render_size(freed)}: {outcome.removed.get(Reason.EXPIRED, 0)} expired, "
        f"{evicted} evicted, {sweep.orphan_files} orphans, "
        f"{sweep.staging_files} abandoned files, {report.uploads} abandoned uploads",
        _space(report),
    ]
    if report.compressed or report.promoted:
        parts.append(
            f"{report.compressed} blocks compressed, {report.promoted} raw again, "
            f"{render_size(report.saved_bytes)} saved"
        )
    if report.bad_blocks:
        parts.append(f"{report.bad_blocks} damaged blocks quarantined")
    if report.jump_s:
        parts.append(f"the clock jumped by {report.jump_s} s: lifetimes moved along")
    if report.plan.short_by:
        parts.append(f"{render_size(report.plan.short_by)} more should go, but may not")
    return "; ".join(parts)


def _space(report: Report) -> str:
    used, capacity = report.used_after, report.budget.capacity_bytes
    text = f"{render_size(used)} of {render_size(capacity)} used ({100 * used // capacity} %)"
    full_in_s = _full_in_s(report)
    if full_in_s is None:
        return text
    rate = render_size(report.plan.written_last_hour_bytes)
    return f"{text}, full in {render_duration(full_in_s)} at {rate} an hour"


def _full_in_s(report: Report) -> int | None:
    rate = report.plan.written_last_hour_bytes
    if not rate:
        return None
    return max(0, report.budget.capacity_bytes - report.used_after) * HOUR // rate


def _share(samples: Sequence[int], share: float) -> int:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def _explain(
    store: Store, settings: LifecycleSettings, path: ObjectPath, is_json: bool
) -> ExitCode:
    inode = store.stat(path).inode
    planner, _, walk = _survey(store, settings)
    candidate = walk.one(inode)
    if candidate is None:
        raise NotFound(f"{path} has just been removed")
    verdict = planner.explain(candidate)
    now_s = store.context.now_s()
    if is_json:
        click.echo(json.dumps(_verdict_document(path, verdict)))
        return ExitCode.OK
    click.echo(f"{path} {'goes' if verdict.goes else 'stays'}: {verdict.reason.value}.")
    if verdict.deadline_s > now_s:
        click.echo(f"  expires in {render_duration(verdict.deadline_s - now_s)} if nobody asks.")
    elif not verdict.deadline_s:
        click.echo("  never expires by time.")
    if verdict.group_size > 1:
        click.echo(f"  shares a block with {verdict.group_size - 1} other names: they go together.")
    if verdict.bytes_before is not None:
        click.echo(f"  {render_size(verdict.bytes_before)} would be evicted before it.")
    return ExitCode.OK


def _verdict_document(path: ObjectPath, verdict: Verdict) -> dict[str, object]:
    return {
        "path": f"{render_json_name(path.namespace)}/{render_json_name(path.key)}",
        "goes": verdict.goes,
        "reason": verdict.reason.value,
        "deadline": verdict.deadline_s or None,
        "bytes_before": verdict.bytes_before,
        "names_of_block": verdict.group_size,
    }


def _say_busy(is_json: bool) -> ExitCode:
    if is_json:
        click.echo(json.dumps({"skipped": "another kvfs-gc is at work on this store"}))
    else:
        click.echo("Another kvfs-gc is at work on this store; nothing to do.")
    return ExitCode.OK


def run(arguments: Sequence[str]) -> ExitCode:
    """Run one command line; return its exit code. Errors are one sentence on stderr."""
    try:
        outcome = gc.main(list(arguments), prog_name="kvfs-gc", standalone_mode=False)
    except KvfsError as error:
        click.echo(f"kvfs-gc: {error.message}", err=True)
        return exit_code_of(error)
    except click.ClickException as error:
        error.show()
        return ExitCode(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("kvfs-gc: interrupted; the next run goes on.", err=True)
        return ExitCode.INTERRUPTED
    except OSError as error:
        click.echo(f"kvfs-gc: {error.filename or 'store'}: {error.strerror}", err=True)
        return ExitCode.ERROR
    return ExitCode(outcome or 0)


def main() -> NoReturn:
    """Entry point of the `kvfs-gc` command."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
