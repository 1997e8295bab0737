"""`kvfs verify` and `kvfs compress`: what a bucket's operator chooses for all of its objects."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvfs.errors import NamespaceNotFound
from kvfs.model import AttributeChange
from kvfs.store.reader import VERIFY_ATTRIBUTE
from kvfs.store.recoder import COMPRESS_ATTRIBUTE
from kvfs_tools.command_store import json_option, name_bytes, open_command_store, store_option


@click.command()
@click.argument("bucket")
@click.option("--always", is_flag=True, help="Hash a block each time it is opened.")
@click.option("--trust", is_flag=True, help="Trust what was checked once, and the scrub.")
@store_option
@json_option
def verify(bucket: str, always: bool, trust: bool, store_path: Path | None, is_json: bool) -> None:
    """Show or set whether every open of a block in BUCKET checks its bytes first."""
    wanted = _chosen(always=always, trust=trust)
    setting = _set_or_find(store_path, bucket, VERIFY_ATTRIBUTE, wanted)
    if is_json:
        _print_json(bucket, "verify", "always" if setting == "always" else "trust")
    elif setting == "always":
        click.echo(f"{bucket}: every open checks the block's bytes first.")
    else:
        click.echo(f"{bucket}: blocks are trusted once checked; the scrub checks them again.")


@click.command()
@click.argument("bucket")
@click.option("--inline", is_flag=True, help="Compress an object before its writer is answered.")
@click.option("--idle", is_flag=True, help="Leave it to kvfs-gc, when it has been idle.")
@store_option
@json_option
def compress(bucket: str, inline: bool, idle: bool, store_path: Path | None, is_json: bool) -> None:
    """Show or set when the objects of BUCKET are compressed."""
    wanted = _chosen(inline=inline, idle=idle)
    setting = _set_or_find(store_path, bucket, COMPRESS_ATTRIBUTE, wanted)
    if is_json:
        _print_json(bucket, "compress", "inline" if setting == "inline" else "idle")
    elif setting == "inline":
        click.echo(f"{bucket}: objects are compressed as they are stored.")
    else:
        click.echo(f"{bucket}: objects are compressed when they have been idle.")


def _chosen(**flags: bool) -> str:
    """Return the one flag that was given, "" for none. Raises: UsageError for two."""
    given = [name for name, is_given in flags.items() if is_given]
    if len(given) > 1:
        raise click.UsageError(f"Choose one of {' and '.join(f'--{name}' for name in flags)}.")
    return given[0] if given else ""


def _set_or_find(store_path: Path | None, bucket: str, attribute: str, wanted: str) -> str:
    """Set the bucket's attribute unless `wanted` is ""; return what it is then."""
    with open_command_store(store_path, read_only=not wanted) as store:
        namespace = store.find_namespace(name_bytes(bucket))
        if namespace is None:
            raise NamespaceNotFound(f"There is no bucket {bucket!r}.")
        if wanted:
            change = AttributeChange(set_attributes={attribute: wanted.encode()})
            store.set_attributes(namespace.inode, change)
        entry = store.stat_inode(namespace.inode)
    return entry.attributes.get(attribute, b"").decode("latin-1") if entry is not None else ""


def _print_json(bucket: str, name: str, setting: str) -> None:
    click.echo(json.dumps({"bucket": bucket, name: setting}))
