"""`kvfs credential add`, `ls` and `rm`: S3 credentials limited to buckets.

Owns what is shown of them. Holds: a secret is printed once, by the command that made it, and on
standard output alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click

from kvfs.bucket_credentials import BucketCredential, BucketCredentials
from kvfs.clock import SystemRandomness
from kvfs.format import read_format
from kvfs_tools.command_store import chosen_store, json_option, store_option


@click.group()
def credential() -> None:
    """Make, list and remove S3 credentials that open some buckets only."""


@credential.command()
@click.option(
    "--bucket",
    "buckets",
    multiple=True,
    required=True,
    help="A bucket that it opens; may be given several times.",
)
@click.option("--read-only", "is_read_only", is_flag=True, help="It changes nothing.")
@store_option
@json_option
def add(
    buckets: tuple[str, ...], is_read_only: bool, store_path: Path | None, is_json: bool
) -> None:
    """Make a credential and print it: the secret is shown this once."""
    made = _credentials(store_path).add(SystemRandomness(), buckets, is_read_only=is_read_only)
    if is_json:
        click.echo(json.dumps({**_record(made), "secret_key": made.secret_key}))
        return
    click.echo(f"AWS_ACCESS_KEY_ID={made.access_key}\nAWS_SECRET_ACCESS_KEY={made.secret_key}")


@credential.command()
@store_option
@json_option
def ls(store_path: Path | None, is_json: bool) -> None:
    """List the credentials, without their secrets."""
    for item in _credentials(store_path).read().values():
        click.echo(json.dumps(_record(item)) if is_json else _line(item))


@credential.command()
@click.argument("access_key")
@store_option
def rm(access_key: str, store_path: Path | None) -> None:
    """Remove the credential ACCESS_KEY; running gateways refuse it within a second or two."""
    _credentials(store_path).remove(access_key)
    click.echo(f"Removed the credential {access_key}.")


def _credentials(store_path: Path | None) -> BucketCredentials:
    """Return the chosen store's limited credentials. Raises: NotAStore, UnsupportedFormat."""
    path = chosen_store(store_path)
    read_format(path)
    return BucketCredentials(path)


def _buckets(item: BucketCredential) -> list[str]:
    return sorted(name.decode() for name in item.buckets)


def _record(item: BucketCredential) -> Mapping[str, object]:
    return {
        "access_key": item.access_key,
        "buckets": _buckets(item),
        "read_only": item.is_read_only,
    }


def _line(item: BucketCredential) -> str:
    rights = "read-only " if item.is_read_only else "read-write"
    return f"{item.access_key}  {rights}  {', '.join(_buckets(item))}"
