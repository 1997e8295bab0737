"""`python -m bench [PATTERN ...]`: find the cases, run them, print one JSON line a measurement.

Owns discovery and the command line; bench/report.py owns what a line says. A PATTERN is a glob
over `<module>::<case>` or any part of it; without one, everything runs.
"""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import click

import bench.cases
from bench.report import Case, Context, describe_commit, describe_machine, run_case
from kvfs.errors import KvfsError

ROOT = Path(__file__).resolve().parent.parent
CASE_FAILURES = (KvfsError, OSError, ValueError, RuntimeError, AssertionError)
for _folder in (ROOT / "tools", ROOT / "gateway"):
    sys.path.insert(0, str(_folder))


def find_modules() -> Iterator[str]:
    """Yield the names of the case modules, in order."""
    for found in sorted(pkgutil.iter_modules(bench.cases.__path__), key=lambda module: module.name):
        yield found.name


def find_cases(module_name: str) -> Iterator[tuple[str, Case]]:
    """Import one module and yield its cases as (`module::bench_...`, function)."""
    module = importlib.import_module(f"bench.cases.{module_name}")
    for name, value in vars(module).items():
        if name.startswith("bench_") and callable(value):
            yield f"{module_name}::{name}", cast("Case", value)


def is_wanted(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether `name` matches a pattern (or there is none)."""
    return not patterns or any(fnmatch.fnmatch(name, f"*{pattern}*") for pattern in patterns)


def run_one(name: str, case: Case, *, quick: bool, commit: str, machine: str) -> list[str]:
    """Run a case in its own directory, printing lines as they come; return them."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kvfs-bench-") as directory:
        context = Context(directory=Path(directory), quick=quick)
        for line in run_case(name, case, context, commit, machine):
            click.echo(line)
            lines.append(line)
    return lines


@click.command()
@click.argument("patterns", nargs=-1)
@click.option("--list", "only_list", is_flag=True, help="Print the names of the cases and exit.")
@click.option("--quick", is_flag=True, help="Small sizes: about a second a case.")
@click.option("--out", type=click.Path(path_type=Path), help="Also append the lines to this file.")
def main(patterns: tuple[str, ...], only_list: bool, quick: bool, out: Path | None) -> None:
    """Run the benchmark cases whose `module::name` matches a PATTERN (all without one)."""
    commit, machine = describe_commit(ROOT), describe_machine()
    failed = False
    for module_name in find_modules():
        try:
            cases = list(find_cases(module_name))
        except ImportError as error:
            # An optional peer or dependency is missing: the other subjects still run.
            click.echo(f"bench: {module_name} not run: {error}", err=True)
            failed = True
            continue
        for name, case in cases:
            if not is_wanted(name, patterns):
                continue
            if only_list:
                click.echo(name)
                continue
            try:
                lines = run_one(name, case, quick=quick, commit=commit, machine=machine)
            except CASE_FAILURES:  # one broken case must not hide the numbers of the others
                traceback.print_exc()
                failed = True
                continue
            if out is not None:
                with out.open("a") as sink:
                    sink.writelines(line + "\n" for line in lines)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
