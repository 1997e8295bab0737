"""`kvfs top`: what a store is doing now, live or once.

Owns a look at the index and its picture. Works from the index alone, so it sees every process of
the machine and disturbs none: lookups, opens and accesses show once their process wrote them down
(within about 10 s). The hit rate counts each lookup, the prefixes each object once.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kvfs.model import StoreUsage
from kvfs.policy.survey import Candidate
from kvfs.store.lifecycle import load_settings, survey
from kvfs.store.store import Store
from kvfs.store.use_counts import UseCounts
from kvfs_tools.command_store import json_option, open_command_store, store_option
from kvfs_tools.sizes import render_bytes, render_json_name, render_size

ROWS = 10
MAX_WINDOW_S = 600
"""As far back as the store's counts are kept apart."""
MAX_PREFIXES = 100_000
"""Prefixes kept apart; what comes later is left out (I8)."""


@dataclass(slots=True)
class Look:
    """One look at the store."""

    now_s: int
    usage: StoreUsage
    uses: UseCounts
    """What was asked within the window."""
    written: int = 0
    """Objects written within the window."""
    written_bytes: int = 0
    used: int = 0
    """Objects used since they were written, within the window."""
    used_bytes: int = 0
    hot: list[tuple[bytes, int]] = field(default_factory=list)
    """(prefix, objects used within the window), hottest first."""
    next_out: list[tuple[bytes, int, int]] = field(default_factory=list)
    """(path, bytes, seconds unused) of what is evicted first."""


def look(store: Store, window_s: int) -> Look:
    """Survey the store: what happened within the last `window_s` seconds, and what goes next."""
    seen = Look(store.context.now_s(), store.usage(), store.recent_uses(window_s))
    since_s = seen.now_s - window_s
    hot: Counter[tuple[int, bytes]] = Counter()

    def see(candidate: Candidate) -> None:
        if candidate.written_s > since_s:
            seen.written += 1
            seen.written_bytes += candidate.stored_bytes
        if candidate.accessed_s > max(since_s, candidate.written_s):
            seen.used += 1
            seen.used_bytes += candidate.stored_bytes
            prefix = candidate.namespace_id, _prefix(candidate.key)
            if prefix in hot or len(hot) < MAX_PREFIXES:
                hot[prefix] += 1

    planner, _, walk = survey(store.context, load_settings(store.path), see=see)
    for (namespace_id, prefix), count in hot.most_common(ROWS):
        seen.hot.append((walk.names.get(namespace_id, b"") + b"/" + prefix, count))
    for inode in islice(planner.next_inodes(), ROWS):
        each = walk.one(inode)
        if each is not None:
            path = walk.names.get(each.namespace_id, b"") + b"/" + each.key
            seen.next_out.append((path, each.stored_bytes, max(0, seen.now_s - each.accessed_s)))
    return seen


@click.command()
@click.option("--once", is_flag=True, help="Print one picture and exit.")
@click.option("--interval", default=2.0, show_default=True, help="Seconds between two pictures.")
@click.option(
    "--window", default=60, show_default=True, help="Seconds that are looked back on (600 at most)."
)
@store_option
@json_option
def top(once: bool, interval: float, window: int, store_path: Path | None, is_json: bool) -> None:
    """Show hit rate, bytes, the hottest prefixes and the next evictions, until Ctrl-C."""
    if interval <= 0 or not 0 < window <= MAX_WINDOW_S:
        raise click.UsageError("--interval must be more than 0, --window between 1 and 600.")
    if is_json and not once:
        raise click.UsageError("--json prints one document: add --once.")
    with open_command_store(store_path, read_only=True) as store:
        if is_json:
            click.echo(json.dumps(_document(look(store, window), window)))
        elif once:
            Console().print(_picture(look(store, window), window))
        else:
            _show_live(store, interval, window)


def _show_live(store: Store, interval_s: float, window_s: int) -> None:
    """Show picture after picture; Ctrl-C is how it ends, not an error."""
    pause = threading.Event()
    first = _picture(look(store, window_s), window_s)
    with contextlib.suppress(KeyboardInterrupt), Live(first, auto_refresh=False) as live:
        while not pause.wait(interval_s):
            live.update(_picture(look(store, window_s), window_s), refresh=True)


def _prefix(key: bytes) -> bytes:
    """Return the key's first directory (or its model, where there is none)."""
    head, slash, _ = key.partition(b"/")
    return head + slash if slash else head.partition(b"@")[0]


def _document(seen: Look, window_s: int) -> dict[str, object]:
    usage = seen.usage
    return {
        "window_seconds": window_s,
        "hit_ratio": seen.uses.hit_ratio,
        "hits": seen.uses.hits,
        "misses": seen.uses.misses,
        "opens": seen.uses.opens,
        "opened_bytes": seen.uses.opened_bytes,
        "used_objects": seen.used,
        "used_bytes": seen.used_bytes,
        "written_objects": seen.written,
        "written_bytes": seen.written_bytes,
        "objects": usage.object_count,
        "resident_bytes": usage.resident_bytes,
        "reserved_bytes": usage.reserved_bytes,
        "capacity_bytes": usage.capacity_bytes,
        "hottest_prefixes": [
            {"prefix": render_json_name(prefix), "used_objects": count}
            for prefix, count in seen.hot
        ],
        "next_evictions": [
            {"path": render_json_name(path), "bytes": size, "unused_seconds": idle_s}
            for path, size, idle_s in seen.next_out
        ],
    }


def _picture(seen: Look, window_s: int) -> Group:
    usage = seen.usage
    held = usage.resident_bytes + usage.reserved_bytes
    uses = seen.uses
    hits = "-" if uses.hit_ratio is None else f"{100 * uses.hit_ratio:.1f} %"
    head = (
        f"hit rate {hits}   hits {uses.hits}   misses {uses.misses}   "
        f"opens {uses.opens} ({render_size(uses.opened_bytes)})   in {window_s} s\n"
        f"objects  used {seen.used} ({render_size(seen.used_bytes)})   "
        f"written {seen.written} ({render_size(seen.written_bytes)})\n"
        f"space    {render_size(held)} of {render_size(usage.capacity_bytes)}   "
        f"{usage.object_count} objects\n"
    )
    hot = Table("used", "hottest prefixes", box=None, expand=True)
    for prefix, count in seen.hot:
        hot.add_row(str(count), Text(render_bytes(prefix)))
    out = Table("size", "unused", "next evictions", box=None, expand=True)
    for path, size, idle_s in seen.next_out:
        out.add_row(render_size(size), f"{idle_s} s", Text(render_bytes(path)))
    return Group(Text(head), hot, Text(""), out)
