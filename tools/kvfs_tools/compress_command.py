"""`kvfs compress`: whether a bucket's objects are compressed as they are stored, or when idle."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvfs.errors import NamespaceNotFound
from kvfs.model import AttributeChange
from kvfs.store.recoder import COMPRESS_ATTRIBUTE
from kvfs_tools.command_store import json_option, name_bytes, open_command_store, store_option


@click.command()
@click.argument("bucket")
@click.option("--inline", is_flag=True, help="Compress an object before its writer is answered.")
@click.option("--idle", is_flag=True, help="Leave it to kvfs-gc, when it has been idle.")
@store_option
@json_option
def compress(bucket: str, inline: bool, idle: bool, store_path: Path | None, is_json: bool) -> None:
    """Show or set when the objects of BUCKET are compressed."""
    if inline and idle:
        raise click.UsageError("Choose one of --inline and --idle.")
    with open_command_store(store_path, read_only=not (inline or idle)) as store:
        namespace = store.find_namespace(name_bytes(bucket))
        if namespace is None:
            raise NamespaceNotFound(f"There is no bucket {bucket!r}.")
        if inline or idle:
            change = AttributeChange(
                set_attributes={COMPRESS_ATTRIBUTE: b"inline" if inline else b"idle"}
            )
            store.set_attributes(namespace.inode, change)
        entry = store.stat_inode(namespace.inode)
    is_inline = entry is not None and entry.attributes.get(COMPRESS_ATTRIBUTE) == b"inline"
    if is_json:
        click.echo(json.dumps({"bucket": bucket, "compress": "inline" if is_inline else "idle"}))
    elif is_inline:
        click.echo(f"{bucket}: objects are compressed as they are stored.")
    else:
        click.echo(f"{bucket}: objects are compressed when they have been idle.")
