"""`kvfs verify`: whether a bucket's blocks are hashed each time they are opened."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvfs.errors import NamespaceNotFound
from kvfs.model import AttributeChange
from kvfs.store.reader import VERIFY_ATTRIBUTE
from kvfs_tools.command_store import json_option, name_bytes, open_command_store, store_option


@click.command()
@click.argument("bucket")
@click.option("--always", is_flag=True, help="Hash a block each time it is opened.")
@click.option("--trust", is_flag=True, help="Trust what was checked once, and the scrub.")
@store_option
@json_option
def verify(bucket: str, always: bool, trust: bool, store_path: Path | None, is_json: bool) -> None:
    """Show or set whether every open of a block in BUCKET checks its bytes first."""
    if always and trust:
        raise click.UsageError("Choose one of --always and --trust.")
    with open_command_store(store_path, read_only=not (always or trust)) as store:
        namespace = store.find_namespace(name_bytes(bucket))
        if namespace is None:
            raise NamespaceNotFound(f"There is no bucket {bucket!r}.")
        if always or trust:
            change = AttributeChange(set_attributes={VERIFY_ATTRIBUTE: b"always"})
            if trust:
                change = AttributeChange(set_attributes={VERIFY_ATTRIBUTE: b"trust"})
            store.set_attributes(namespace.inode, change)
        entry = store.stat_inode(namespace.inode)
    is_always = entry is not None and entry.attributes.get(VERIFY_ATTRIBUTE) == b"always"
    if is_json:
        click.echo(json.dumps({"bucket": bucket, "verify": "always" if is_always else "trust"}))
    elif is_always:
        click.echo(f"{bucket}: every open checks the block's bytes first.")
    else:
        click.echo(f"{bucket}: blocks are trusted once checked; the scrub checks them again.")
