"""`kvfs ttl`, `pin`, `unpin` and `touch`: how long single objects stay."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvfs.model import AttributeChange, Entry, ObjectPath, Pin
from kvfs.store.store import Store
from kvfs_tools.command_store import json_option, name_bytes, open_command_store, store_option
from kvfs_tools.sizes import parse_duration, parse_object_path, render_duration


@click.command()
@click.argument("target", metavar="BUCKET/KEY")
@click.argument("duration", required=False)
@click.option("--fixed", is_flag=True, help="Counted from now on, whatever is read meanwhile.")
@store_option
@json_option
def ttl(
    target: str, duration: str | None, fixed: bool, store_path: Path | None, is_json: bool
) -> None:
    """Show the lifetime of BUCKET/KEY, or set it to DURATION (30m, 12h, 7d; 0 = never)."""
    path = parse_object_path(name_bytes(target))
    with open_command_store(store_path, read_only=duration is None) as store:
        entry = store.stat(path)
        if duration is not None:
            change = AttributeChange(ttl_s=parse_duration(duration), is_sliding=not fixed)
            entry = store.set_attributes(entry.inode, change)
        now_s = store.context.now_s()
    if is_json:
        click.echo(json.dumps(_record(entry)))
    else:
        click.echo(_text(path, entry, now_s))


@click.command()
@click.argument("targets", metavar="BUCKET/KEY...", nargs=-1, required=True)
@click.option("--soft", is_flag=True, help="Leave last, rather than never.")
@store_option
def pin(targets: tuple[str, ...], soft: bool, store_path: Path | None) -> None:
    """Keep objects: neither eviction nor their TTL removes them."""
    _change_all(store_path, targets, AttributeChange(pin=Pin.SOFT if soft else Pin.HARD))


@click.command()
@click.argument("targets", metavar="BUCKET/KEY...", nargs=-1, required=True)
@store_option
def unpin(targets: tuple[str, ...], store_path: Path | None) -> None:
    """Let pinned objects leave again."""
    _change_all(store_path, targets, AttributeChange(pin=Pin.NONE))


@click.command()
@click.argument("targets", metavar="BUCKET/KEY...", nargs=-1, required=True)
@store_option
def touch(targets: tuple[str, ...], store_path: Path | None) -> None:
    """Count an access to objects: a sliding lifetime starts anew."""
    with open_command_store(store_path) as store:
        now = AttributeChange(accessed_s=store.context.now_s())
        for entry in _entries(store, targets):
            store.set_attributes(entry.inode, now)


def _change_all(store_path: Path | None, targets: tuple[str, ...], change: AttributeChange) -> None:
    with open_command_store(store_path) as store:
        for entry in _entries(store, targets):
            store.set_attributes(entry.inode, change)


def _entries(store: Store, targets: tuple[str, ...]) -> list[Entry]:
    """Look all names up before any is changed. Raises: NotFound."""
    return [store.stat(parse_object_path(name_bytes(target))) for target in targets]


def _record(entry: Entry) -> dict[str, object]:
    return {
        "ttl_seconds": entry.ttl_s,
        "sliding": entry.is_sliding,
        "expires_at": entry.expires_at_s or None,
        "priority": entry.priority,
        "pin": entry.pin.name.lower(),
    }


def _text(path: ObjectPath, entry: Entry, now_s: int) -> str:
    if entry.pin is Pin.HARD:
        return f"{path} is pinned."
    if not entry.expires_at_s:
        return f"{path} has no lifetime of its own; the rules of lifecycle.toml decide."
    kind = "sliding" if entry.is_sliding else "fixed"
    left = render_duration(entry.expires_at_s - now_s)
    return f"{path} expires in {left} ({render_duration(entry.ttl_s)}, {kind})."
