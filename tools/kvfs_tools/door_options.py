"""The options that say where a store's doors are, with the defaults that `kvfs up` uses."""

from __future__ import annotations

import click

DEFAULT_MOUNT = "/mnt/kvfs"
DEFAULT_LISTEN = "127.0.0.1:9000"
DEFAULT_ENGINE_LISTEN = "127.0.0.1:9001"
DEFAULT_BUCKET = "kv"
"""The bucket that a bare engine address (`s3://HOST:PORT`) means."""

mount_option = click.option(
    "--mount", default=DEFAULT_MOUNT, show_default=True, help="Where the mount is."
)
listen_option = click.option(
    "--listen",
    default=DEFAULT_LISTEN,
    show_default=True,
    metavar="HOST:PORT",
    help="The S3 endpoint.",
)
engine_listen_option = click.option(
    "--engine-listen",
    default=DEFAULT_ENGINE_LISTEN,
    show_default=True,
    metavar="HOST:PORT",
    help="The S3 endpoint that stands for one bucket.",
)
bucket_option = click.option(
    "--bucket",
    default=DEFAULT_BUCKET,
    show_default=True,
    help="The bucket for engines: the first directory of the mount.",
)
