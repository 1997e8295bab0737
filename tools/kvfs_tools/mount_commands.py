"""`kvfs mount` and `kvfs umount`: the command line of kvfs/filesystem/mount.py."""

from __future__ import annotations

from pathlib import Path

import click

from kvfs.filesystem.mount import TRANSPORTS, mount_store, unmount


@click.command()
@click.argument("store_path", metavar="STORE", type=click.Path(path_type=Path))
@click.argument("mountpoint", metavar="MOUNTPOINT", type=click.Path(path_type=Path))
@click.option(
    "--transport",
    type=click.Choice(TRANSPORTS),
    default="auto",
    show_default=True,
    help="How to speak to the kernel.",
)
@click.option("--foreground", is_flag=True, help="Stay until unmounted or told to stop.")
@click.option("--read-only", is_flag=True, help="Refuse every change.")
@click.option("--allow-other", is_flag=True, help="Let other users in.")
def mount(
    store_path: Path,
    mountpoint: Path,
    transport: str,
    foreground: bool,
    read_only: bool,
    allow_other: bool,
) -> None:
    """Mount STORE on MOUNTPOINT; return once it serves."""
    mount_store(
        store_path,
        mountpoint,
        transport=transport,
        foreground=foreground,
        read_only=read_only,
        allow_other=allow_other,
    )


@click.command()
@click.argument("mountpoint", metavar="MOUNTPOINT", type=click.Path(path_type=Path))
def umount(mountpoint: Path) -> None:
    """Unmount MOUNTPOINT and return once its daemon has let go of the store."""
    unmount(mountpoint)
