"""`kvfs-fsck`: check a store, and repair it when told to.

Owns the report and the exit codes; the checking itself is kvfs/store/check.py. An index that cannot
be read is found by a child process (looking at a bad one can kill the looker), and only while
nobody else has the store open: whoever has it open is reading it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from kvfs.errors import NoSpace, StoreDamaged
from kvfs.open_store import is_index_good, open_store
from kvfs.store.findings import CheckReport, Finding, Severity
from kvfs_tools.cli import run
from kvfs_tools.command_store import chosen_store, json_option, store_option
from kvfs_tools.exit_codes import ExitCode
from kvfs_tools.progress import Progress
from kvfs_tools.sizes import render_size

MAX_SHOWN = 50
"""Findings printed as text; --json prints them all."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One word for the outcome, and its exit code."""

    state: str
    code: ExitCode


def verdict_of(report: CheckReport, *, is_rebuilt: bool) -> Verdict:
    """Judge a report."""
    if report.has_damage_left:
        return Verdict("damaged", ExitCode.DAMAGE)
    if report.is_repaired and (report.findings or is_rebuilt):
        return Verdict("repaired", ExitCode.WARNINGS)
    if report.left:
        return Verdict("warnings", ExitCode.WARNINGS)
    return Verdict("clean", ExitCode.OK)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--repair", "is_repair", is_flag=True, help="Correct what can be corrected.")
@click.option("--full", "is_full", is_flag=True, help="Hash every block file, too.")
@store_option
@json_option
def fsck(is_repair: bool, is_full: bool, store_path: Path | None, is_json: bool) -> ExitCode:
    """Compare a store's index with its files, both ways.

    Exit code 0: clean; 3: warnings, or all of the damage was repaired; 4: damage is left.
    """
    root = chosen_store(store_path)
    is_readable = is_index_good(root)
    if not is_readable and not is_repair:
        raise StoreDamaged(
            f"the index of {root} is unreadable: `kvfs-fsck --repair --store {root}` rebuilds it "
            "from its snapshot and the blocks' labels"
        )
    with open_store(root, distrust_index=not is_readable) as store:
        before = store.usage()
        total = before.resident_bytes if is_full else before.block_count
        shown = _Line("Hashing" if is_full else "Checking", total, is_full)
        with shown.progress:
            try:
                report = store.check(is_full=is_full, repair=is_repair, progress=shown.count)
            except NoSpace as error:
                raise NoSpace(f"{error.message}; fsck needs a little to correct rows") from error
    verdict = verdict_of(report, is_rebuilt=not is_readable)
    if is_json:
        click.echo(json.dumps(_record(root, report, verdict, is_rebuilt=not is_readable)))
    else:
        click.echo(_text(root, report, verdict, is_rebuilt=not is_readable))
    return verdict.code


class _Line:
    """The progress line: bytes when hashing, blocks otherwise."""

    def __init__(self, label: str, total: int, is_full: bool) -> None:
        self._unit = "bytes" if is_full else "blocks"
        if is_full:
            self.progress = Progress(label, total)
        else:
            self.progress = Progress(label, total, render=lambda amount: f"{amount:.0f} blocks")

    def count(self, what: str, amount: int) -> None:
        if what == self._unit:
            self.progress.add(amount)


def _record(
    root: Path, report: CheckReport, verdict: Verdict, *, is_rebuilt: bool
) -> dict[str, object]:
    left = set(report.left) if report.is_repaired else set(report.findings)
    return {
        "store": str(root),
        "state": verdict.state,
        "code": int(verdict.code),
        "is_index_rebuilt": is_rebuilt,
        "inodes": report.inodes,
        "blocks": report.blocks,
        "files": report.files,
        "bytes_hashed": report.bytes_hashed,
        "objects_dropped": report.names_dropped,
        "findings": [
            _finding(finding, is_left=finding in left)
            for finding in dict.fromkeys([*report.findings, *report.left])
        ],
    }


def _finding(finding: Finding, *, is_left: bool) -> dict[str, object]:
    return {
        "code": finding.code,
        "severity": finding.severity.value,
        "subject": finding.subject,
        "detail": finding.detail,
        "is_left": is_left,
    }


def _text(root: Path, report: CheckReport, verdict: Verdict, *, is_rebuilt: bool) -> str:
    lines = ["The index was unreadable and has been rebuilt."] if is_rebuilt else []
    shown = report.left if report.is_repaired else report.findings
    if report.is_repaired and len(report.findings) > len(report.left):
        lines += [f"repaired {_line(f)}" for f in report.findings[:MAX_SHOWN] if f not in shown]
    lines += [f"{finding.severity.value} {_line(finding)}" for finding in shown[:MAX_SHOWN]]
    hidden = len(shown) - MAX_SHOWN
    if hidden > 0:
        lines.append(f"... and {hidden} more (--json lists them all)")
    if report.names_dropped:
        lines.append(f"{report.names_dropped} objects were lost and are misses now.")
    hashed = f", {render_size(report.bytes_hashed)} hashed" if report.bytes_hashed else ""
    lines.append(f"{root}: {report.inodes} inodes, {report.blocks} blocks, "
                 f"{report.files} files{hashed}: {verdict.state}")  # fmt: skip
    if not report.is_repaired and any(f.severity is Severity.DAMAGE for f in shown):
        lines.append(f"Run `kvfs-fsck --repair --store {root}`.")
    return "\n".join(lines)


def _line(finding: Finding) -> str:
    return f"{finding.code}: {finding.subject}: {finding.detail}"


def main() -> None:
    """Entry point of the `kvfs-fsck` command."""
    sys.exit(run(sys.argv[1:], fsck, "kvfs-fsck"))


if __name__ == "__main__":
    main()
