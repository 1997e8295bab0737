"""`kvfs init`, `mkdir` and `rmdir`: a store and its buckets."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvfs.clock import SystemRandomness
from kvfs.config import make_credential, write_root_credential
from kvfs.model import Durability
from kvfs.open_store import init_store
from kvfs_tools.command_store import json_option, name_bytes, open_command_store, store_option
from kvfs_tools.sizes import parse_size, render_bytes


@click.command()
@click.argument("store_path", metavar="STORE", type=click.Path(path_type=Path))
@click.option("--capacity", help="Most bytes it may hold, for example 100G (default: see docs).")
@click.option(
    "--durability",
    type=click.Choice([level.value for level in Durability]),
    default=Durability.CACHE.value,
    show_default=True,
    help="What an acknowledged write survives: the process, or power loss too.",
)
@json_option
def init(store_path: Path, capacity: str | None, durability: str, is_json: bool) -> None:
    """Make a store in the directory STORE, and its root credential (mode 0600)."""
    credentials = make_store(store_path, capacity, Durability(durability))
    if is_json:
        click.echo(json.dumps({"store": str(store_path), "credentials": str(credentials)}))
        return
    click.echo(f"Made the store {store_path}; its S3 credential is in {credentials}.")


@click.command()
@click.argument("bucket")
@store_option
def mkdir(bucket: str, store_path: Path | None) -> None:
    """Make the bucket BUCKET (the mount shows it as a directory)."""
    with open_command_store(store_path) as store:
        store.create_namespace(name_bytes(bucket))


@click.command()
@click.argument("bucket")
@store_option
def rmdir(bucket: str, store_path: Path | None) -> None:
    """Remove the bucket BUCKET, which must be empty."""
    with open_command_store(store_path) as store:
        store.delete_namespace(name_bytes(bucket))
    click.echo(f"Removed the bucket {render_bytes(name_bytes(bucket))}.")


def make_store(store_path: Path, capacity: str | None, durability: Durability) -> Path:
    """Make a store with a new root credential; return the credential's file.

    Raises: StoreExists, Denied, InvalidArgument, UnsupportedFormat (a network filesystem).
    """
    capacity_bytes = None if capacity is None else parse_size(capacity)
    init_store(store_path, capacity_bytes=capacity_bytes, durability=durability)
    return write_root_credential(store_path, make_credential(SystemRandomness()))
