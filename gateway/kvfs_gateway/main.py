"""`kvfs-gateway`: the command line of the S3 endpoint.

Owns flags, the check that the store and its credentials are there before anything is started, and
the exit status: 0 stopped by signal, 1 error, 2 usage, 10 no store, 12 credential or permission, 75
an address in use or another thing that may pass.
"""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path

import click
import trio

from kvfs.bucket_credentials import BucketCredentials
from kvfs.config import process_environment, read_root_credential, store_from_environment
from kvfs.errors import (
    Denied,
    InvalidArgument,
    KvfsError,
    NotAStore,
    NotFound,
    Unavailable,
    UnsupportedFormat,
)
from kvfs.format import read_format
from kvfs_gateway.server.addresses import Address, listen, parse_address
from kvfs_gateway.server.supervisor import Listening, Supervisor
from kvfs_gateway.server.tls_transport import make_context
from kvfs_gateway.server.worker_settings import WorkerSettings

DEFAULT_WORKERS = 2

_EXIT_CODES: dict[type[KvfsError], int] = {
    NotAStore: 10,
    UnsupportedFormat: 10,
    NotFound: 12,
    Denied: 12,
    Unavailable: 75,
    InvalidArgument: 2,
}


@click.command(context_settings={"max_content_width": 100})
@click.option("--store", type=click.Path(path_type=Path), help="The store to serve [KVFS_STORE].")
@click.option("--listen", "listen_on", multiple=True, metavar="HOST:PORT", help="Path-style S3.")
@click.option(
    "--engine-listen",
    multiple=True,
    metavar="HOST:PORT=BUCKET",
    help="S3 whose keys begin at the root of the URL, for `s3://HOST:PORT` in LMCache.",
)
@click.option("--admin-listen", metavar="HOST:PORT", help="/health/live, /health/ready, /metrics.")
@click.option("--workers", type=click.IntRange(1, 256), default=DEFAULT_WORKERS, show_default=True)
@click.option(
    "--virtual-host",
    multiple=True,
    metavar="SUFFIX",
    help="Make `Host: BUCKET.SUFFIX` name the bucket; may be given several times.",
)
@click.option("--region", default="us-east-1", show_default=True, help="Region told to clients.")
@click.option(
    "--etag",
    type=click.Choice(["auto", "md5"]),
    default="auto",
    show_default=True,
    help="md5: every ETag is an MD5, at 0.4 GB/s; auto: of objects up to 256 KiB.",
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate chain, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its private key, PEM.")
@click.option(
    "--access-log", type=click.Choice(["none", "aws", "json"]), default="none", show_default=True
)
def command(
    store: Path | None,
    listen_on: tuple[str, ...],
    engine_listen: tuple[str, ...],
    admin_listen: str | None,
    workers: int,
    virtual_host: tuple[str, ...],
    region: str,
    etag: str,
    access_log: str,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> None:
    """Serve a kvfs store as S3."""
    environment = process_environment()
    root = store or store_from_environment(environment)
    if root is None:
        raise click.UsageError("give --store STORE, or set KVFS_STORE")
    if not listen_on and not engine_listen:
        listen_on = ("127.0.0.1:9000",)
    if (tls_cert is None) is not (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    if tls_cert is not None and tls_key is not None:
        make_context(tls_cert, tls_key)  # refuses a bad pair before anything is started
    read_format(root)
    read_root_credential(root, environment)
    BucketCredentials(root).read()
    scheme = "http" if tls_cert is None else "https"
    addresses, listening = _open_listeners(listen_on, engine_listen, workers, scheme)
    admin_sockets: list[socket.socket] = []
    if admin_listen:
        address, admin_sockets = listen(parse_address(admin_listen), 1)
        addresses.append(f"admin http://{address}")
    template = WorkerSettings(
        store=str(root),
        worker=0,
        listeners=(),
        metrics_fd=-1,
        ready_fd=-1,
        virtual_hosts=tuple(suffix.lower().strip(".") for suffix in virtual_host),
        access_format=access_log,
        region=region,
        has_md5_etags=etag == "md5",
        tls_certificate=str(tls_cert or ""),
        tls_key=str(tls_key or ""),
    )

    def on_ready() -> None:
        for line in addresses:
            click.echo(f"kvfs-gateway: {line}", err=True)
        click.echo("kvfs-gateway: ready", err=True)

    supervisor = Supervisor(template, listening, workers, admin_sockets, on_ready)
    sys.exit(trio.run(supervisor.run))


def _open_listeners(
    listen_on: tuple[str, ...], engine_listen: tuple[str, ...], workers: int, scheme: str
) -> tuple[list[str], list[Listening]]:
    wanted: list[tuple[Address, str]] = [(parse_address(text), "") for text in listen_on]
    for text in engine_listen:
        address_text, equals, bucket = text.partition("=")
        if not equals or not bucket:
            raise InvalidArgument(f"{text!r} is no HOST:PORT=BUCKET, such as 127.0.0.1:9001=kv")
        wanted.append((parse_address(address_text), bucket))
    addresses, listening = [], []
    for address, bucket in wanted:
        bound, sockets = listen(address, workers)
        listening.append(Listening(sockets, bucket))
        addresses.append(f"s3 {scheme}://{bound}" + (f" bucket {bucket}" if bucket else ""))
    return addresses, listening


def main() -> int:
    """Run the command; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    try:
        command(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Abort:
        return 130
    except KvfsError as error:
        click.echo(f"kvfs-gateway: {error}", err=True)
        found = (_EXIT_CODES[kind] for kind in type(error).__mro__ if kind in _EXIT_CODES)
        return next(found, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
