"""`kvfs status`: state, space and what to do, in a few lines that stay in place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click

from kvfs.filesystem.running_mark import served_mounts
from kvfs.model import Durability, StoreUsage
from kvfs_tools.command_store import chosen_store, json_option, open_command_store, store_option
from kvfs_tools.exit_codes import ExitCode
from kvfs_tools.sizes import render_size

NEARLY_FULL_RATIO = 0.95
"""Eviction keeps a full cache working; above this it is what every writer waits for."""


@dataclass(frozen=True, slots=True)
class Health:
    """One verdict: `state` is OK or WARNING, `action` says what to do about it."""

    state: str
    action: str


def health_of(usage: StoreUsage) -> Health:
    """Judge a store by its accounts."""
    if usage.resident_bytes + usage.reserved_bytes > NEARLY_FULL_RATIO * usage.capacity_bytes:
        return Health("WARNING", "The store is nearly full: writers evict. Give it more capacity.")
    return Health("OK", "Nothing to do.")


@click.command()
@click.option("-x", "--only-trouble", is_flag=True, help="One line when all is well.")
@store_option
@json_option
def status(only_trouble: bool, store_path: Path | None, is_json: bool) -> ExitCode:
    """Say how the store is. Exit code 3 when there is something to look at."""
    path = chosen_store(store_path)
    with open_command_store(path, read_only=True) as store:
        usage, durability = store.usage(), store.durability
    health, mounts = health_of(usage), served_mounts(path)
    if is_json:
        click.echo(json.dumps(_record(path, usage, durability, health) | {"mounts": mounts}))
    elif only_trouble and health.state == "OK":
        click.echo(f"{path} is healthy.")
    else:
        click.echo(_text(path, usage, durability, health, mounts))
    return ExitCode.OK if health.state == "OK" else ExitCode.WARNINGS


def _record(
    path: Path, usage: StoreUsage, durability: Durability, health: Health
) -> dict[str, object]:
    return {
        "store": str(path),
        "state": health.state,
        "action": health.action,
        "durability": durability.value,
        "capacity_bytes": usage.capacity_bytes,
        "resident_bytes": usage.resident_bytes,
        "reserved_bytes": usage.reserved_bytes,
        "logical_bytes": usage.logical_bytes,
        "objects": usage.object_count,
        "blocks": usage.block_count,
        "hits_total": usage.hits_total,
        "misses_total": usage.misses_total,
        "opens_total": usage.opens_total,
        "opened_bytes_total": usage.opened_bytes_total,
    }


def _text(
    path: Path, usage: StoreUsage, durability: Durability, health: Health, mounts: dict[str, str]
) -> str:
    used = usage.resident_bytes + usage.reserved_bytes
    share = 100 * used / usage.capacity_bytes if usage.capacity_bytes else 0.0
    saved = usage.logical_bytes / usage.resident_bytes if usage.resident_bytes else 1.0
    places = [f"{place} ({transport})" for place, transport in mounts.items()]
    return "\n".join(
        [
            f"store    {path} ({durability.value})",
            f"state    {health.state}",
            f"action   {health.action}",
            f"space    {render_size(used)} of {render_size(usage.capacity_bytes)} ({share:.0f} %)",
            f"objects  {usage.object_count} in {usage.block_count} blocks, "
            f"{render_size(usage.logical_bytes)} named ({saved:.2f}x what is stored)",
            f"mounts   {', '.join(places) or 'none'}",
        ]
    )
