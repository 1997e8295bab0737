"""`kvfs du`: what the space is used for, by bucket, engine, model, rank, lifetime or age."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from kvfs.engine_keys import parse_key
from kvfs.model import Pin
from kvfs.policy.survey import Candidate
from kvfs.store.collection import Walk
from kvfs_tools.command_store import json_option, open_command_store, store_option
from kvfs_tools.sizes import render_bytes, render_duration, render_json_name, render_size

AGES_S = (60, 3600, 86_400, 7 * 86_400, 30 * 86_400)
MAX_ROWS = 100_000
"""Distinct values kept apart; what comes later is counted as one (I8)."""
OTHERS = b"(others)"


@dataclass(slots=True)
class Share:
    """What one value accounts for."""

    objects: int = 0
    stored_bytes: float = 0.0
    """A block with several names is shared out among them."""


@click.command()
@click.option(
    "--by",
    type=click.Choice(["bucket", "engine", "model", "rank", "lifetime", "age"]),
    default="bucket",
    show_default=True,
)
@store_option
@json_option
def du(by: str, store_path: Path | None, is_json: bool) -> None:
    """Say what the space is used for, largest first."""
    shares: dict[bytes, Share] = {}
    with open_command_store(store_path, read_only=True) as store:
        walk, now_s = Walk(store.context), store.context.now_s()
        value_of = _values(walk, now_s)[by]
        for candidate in walk:
            value = value_of(candidate)
            if value not in shares and len(shares) >= MAX_ROWS:
                value = OTHERS
            share = shares.setdefault(value, Share())
            share.objects += 1
            share.stored_bytes += candidate.stored_bytes / max(1, candidate.block_refs)
    rows = sorted(shares.items(), key=lambda row: (-row[1].stored_bytes, row[0]))
    if is_json:
        document = [
            {by: render_json_name(value), "objects": s.objects, "bytes": round(s.stored_bytes)}
            for value, s in rows
        ]
        click.echo(json.dumps(document))
        return
    for value, share in rows:
        size = render_size(share.stored_bytes)
        click.echo(f"{size:>10}  {share.objects:>9}  {render_bytes(value)}")


def _values(walk: Walk, now_s: int) -> dict[str, Callable[[Candidate], bytes]]:
    return {
        "bucket": lambda each: walk.names.get(each.namespace_id, b"(root)"),
        "engine": lambda each: parse_key(each.key).engine.value.encode(),
        "model": lambda each: parse_key(each.key).model or b"(unknown)",
        "rank": lambda each: _rank(each),
        "lifetime": _lifetime,
        "age": lambda each: _age(now_s - each.accessed_s),
    }


def _rank(candidate: Candidate) -> bytes:
    rank = parse_key(candidate.key).rank
    return b"(unknown)" if rank < 0 else b"%d" % rank


def _lifetime(candidate: Candidate) -> bytes:
    if candidate.pin == Pin.HARD:
        return b"pinned"
    if candidate.ttl_s:
        return render_duration(candidate.ttl_s).encode()
    return b"a date" if candidate.expires_at_s else b"by rule"


def _age(idle_s: int) -> bytes:
    for limit_s in AGES_S:
        if idle_s < limit_s:
            return b"unused for under " + render_duration(limit_s).encode()
    return b"unused for longer"
