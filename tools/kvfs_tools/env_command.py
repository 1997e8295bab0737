"""`kvfs env ENGINE`: paste-ready settings for an engine."""

from __future__ import annotations

from pathlib import Path

import click

from kvfs.config import (
    Credential,
    process_environment,
    read_root_credential,
    store_from_environment,
)
from kvfs.errors import NotFound
from kvfs_tools.door_options import (
    bucket_option,
    engine_listen_option,
    listen_option,
    mount_option,
)
from kvfs_tools.engine_settings import ENGINES, Doors, settings_of

PLACEHOLDER = Credential("ACCESS_KEY", "SECRET_KEY")
"""Stands in the text where no store is named: the settings are still worth reading."""


@click.command()
@click.argument("engine", type=click.Choice(list(ENGINES)))
@click.option("--store", "store_path", type=click.Path(path_type=Path), help="Whose credential.")
@mount_option
@listen_option
@engine_listen_option
@bucket_option
def env(
    engine: str, store_path: Path | None, mount: str, listen: str, engine_listen: str, bucket: str
) -> None:
    """Print paste-ready settings for ENGINE: through the mount, the S3 door, or both."""
    environment = process_environment()
    store = store_path or store_from_environment(environment)
    try:
        credential = read_root_credential(store or Path("."), environment)
    except NotFound:
        if store is not None:
            raise
        credential = PLACEHOLDER
    click.echo(settings_of(engine, Doors(mount, listen, engine_listen, bucket, credential)))
