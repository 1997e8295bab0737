"""The store that a command works on: `--store`, else KVFS_STORE, else a sentence that says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import click

from kvfs.config import STORE_VARIABLE, process_environment, store_from_environment
from kvfs.open_store import open_store
from kvfs.store.store import Store

P = ParamSpec("P")
R = TypeVar("R")


def store_option(command: Callable[P, R]) -> Callable[P, R]:
    """Add `--store` to a command."""
    return click.option(
        "--store",
        "store_path",
        type=click.Path(path_type=Path),
        help=f"The store's directory (default: ${STORE_VARIABLE}).",
    )(command)


def json_option(command: Callable[P, R]) -> Callable[P, R]:
    """Add `--json` to a command."""
    return click.option("--json", "is_json", is_flag=True, help="Print JSON.")(command)


def chosen_store(store_path: Path | None) -> Path:
    """Return the store's path as given or from the environment.

    Raises: click.UsageError when neither names one.
    """
    path = store_path or store_from_environment(process_environment())
    if path is None:
        raise click.UsageError(f"Name the store with --store STORE, or set {STORE_VARIABLE}.")
    return path


def open_command_store(store_path: Path | None, *, read_only: bool = False) -> Store:
    """Open the chosen store; the caller closes it (it is a context manager)."""
    return open_store(chosen_store(store_path), read_only=read_only)


def name_bytes(text: str) -> bytes:
    """Return a command-line argument as the bytes that the shell passed."""
    return os.fsencode(text)
