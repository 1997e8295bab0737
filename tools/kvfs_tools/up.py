"""`kvfs up`: store, mount and gateway on one machine, proven with one block, until Ctrl-C.

Owns the order: store, gateway, mount, proof, settings; and the reverse at the end. A machine that
cannot mount is told so and served over S3 alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import botocore.config
import botocore.exceptions
import botocore.session
import click

from kvfs.clock import SystemRandomness
from kvfs.config import process_environment, read_root_credential
from kvfs.errors import AlreadyExists, Corrupt, Unavailable
from kvfs.model import Durability
from kvfs.open_store import open_store
from kvfs_tools.child_processes import (
    RUN_CLI,
    RUN_GATEWAY,
    Child,
    start_child,
    stop_child,
    wait_until_ready,
)
from kvfs_tools.command_store import name_bytes
from kvfs_tools.door_options import (
    bucket_option,
    engine_listen_option,
    listen_option,
    mount_option,
)
from kvfs_tools.engine_settings import Doors, settings_of
from kvfs_tools.exit_codes import ExitCode
from kvfs_tools.store_commands import make_store

PROOF_BYTES = 2**20
"""One MiB: an ordinary small KV block."""
WATCH_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """What to bring up."""

    store: Path
    doors: Doors
    workers: int
    has_mount: bool


@click.command()
@click.argument(
    "store_path", metavar="[STORE]", default="./var/store", type=click.Path(path_type=Path)
)
@mount_option
@listen_option
@engine_listen_option
@bucket_option
@click.option("--workers", default=2, show_default=True, help="Gateway processes.")
@click.option("--capacity", help="Most bytes the store may hold, when it is made now.")
@click.option("--no-mount", is_flag=True, help="Serve S3 alone.")
def up(
    store_path: Path,
    mount: str,
    listen: str,
    engine_listen: str,
    bucket: str,
    workers: int,
    capacity: str | None,
    no_mount: bool,
) -> ExitCode:
    """Bring up STORE (made when absent), its mount and its gateway; serve until Ctrl-C."""
    ensure_store(store_path, bucket, capacity)
    credential = read_root_credential(store_path, process_environment())
    obstacle = "" if no_mount else mount_obstacle()
    if obstacle:
        click.echo(f"No mount: {obstacle}. Serving S3 only.", err=True)
    has_mount = not (no_mount or obstacle)
    doors = Doors(mount if has_mount else "", listen, engine_listen, bucket, credential)
    with stop_signals() as stopped:
        return serve(Plan(store_path, doors, workers, has_mount), stopped)


def ensure_store(store_path: Path, bucket: str, capacity: str | None) -> None:
    """Make the store and the engines' bucket where they are absent."""
    if not (store_path / "kvfs.toml").exists():
        credentials = make_store(store_path, capacity, Durability.CACHE)
        click.echo(f"Made the store {store_path}; its credential is in {credentials}.")
    with open_store(store_path) as store, contextlib.suppress(AlreadyExists):
        store.create_namespace(name_bytes(bucket))


def mount_obstacle() -> str:
    """Return why this machine cannot mount, or "" when it can."""
    if not os.path.exists("/dev/fuse"):
        return "/dev/fuse is missing (load the fuse module, or give the container the device)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse may not be opened by this user"
    return ""


def serve(plan: Plan, stopped: threading.Event) -> ExitCode:
    """Run the parts until `stopped`; end them in reverse order whatever happens."""
    with contextlib.ExitStack() as parts:
        children = [_start_gateway(plan, parts)]
        if plan.has_mount:
            children.append(_start_mount(plan, parts))
        click.echo(prove(plan))
        click.echo(_settings(plan, shows_secret=sys.stdout.isatty()))
        while not stopped.wait(WATCH_SECONDS):
            for child in children:
                if not child.is_running:
                    code = child.process.returncode
                    raise Unavailable(f"The {child.name} ended with code {code}; see above.")
        click.echo("Stopping.")
    click.echo("Stopped; the store is closed." + (" Unmounted." if plan.has_mount else ""))
    return ExitCode.OK


def _start_gateway(plan: Plan, parts: contextlib.ExitStack) -> Child:
    doors = plan.doors
    arguments = ["--store", str(plan.store), "--listen", doors.listen]
    arguments += ["--engine-listen", f"{doors.engine_listen}={doors.bucket}"]
    arguments += ["--workers", str(plan.workers)]
    child = start_child("gateway", RUN_GATEWAY, arguments)
    parts.callback(stop_child, child)
    client = S3Door(doors)
    wait_until_ready(child, client.answers)
    return child


def _start_mount(plan: Plan, parts: contextlib.ExitStack) -> Child:
    with contextlib.suppress(FileExistsError):  # a mount left dead is there, too, and is recovered
        os.makedirs(plan.doors.mount)
    arguments = ["mount", str(plan.store), plan.doors.mount, "--foreground"]
    child = start_child("mount", RUN_CLI, arguments)
    parts.callback(stop_child, child)
    wait_until_ready(child, lambda: os.path.isdir(plan.doors.directory))
    return child


class S3Door:
    """The gateway as an ordinary S3 client sees it."""

    def __init__(self, doors: Doors) -> None:
        self._bucket = doors.bucket
        self._url = doors.url
        # Made at run time from a service model: no class that a type checker could see.
        self._client: Any = botocore.session.get_session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=doors.url,
            aws_access_key_id=doors.credential.access_key,
            aws_secret_access_key=doors.credential.secret_key,
            config=botocore.config.Config(
                s3={"addressing_style": "path"},
                retries={"max_attempts": 0},
                connect_timeout=2,
                read_timeout=30,
            ),
        )

    def answers(self) -> bool:
        """Return whether the gateway serves the bucket.

        Raises: Unavailable when something answers there that is not our gateway.
        """
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except botocore.exceptions.BotoCoreError:
            return False  # nobody listens yet
        except botocore.exceptions.ClientError as error:
            raise Unavailable(
                f"{self._url} is answered by another server ({error}): stop it, or choose another "
                "address with --listen"
            ) from error
        return True

    def put(self, key: str, data: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        answer = self._client.get_object(Bucket=self._bucket, Key=key)
        return bytes(answer["Body"].read())

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=key)


def prove(plan: Plan) -> str:
    """Carry one block through each door to the other and compare; return a sentence that says so.

    Raises: Corrupt when a byte differs.
    """
    door = S3Door(plan.doors)
    random = SystemRandomness()
    key, block = f".kvfs-proof-{random.token(8).hex()}", random.token(PROOF_BYTES)
    door.put(key, block)
    try:
        seen = [door.get(key)]
        if plan.has_mount:
            file = Path(plan.doors.directory) / key
            seen.append(file.read_bytes())
            block_back = random.token(PROOF_BYTES)
            file.write_bytes(block_back)
            seen.append(block if door.get(key) == block_back else b"")
        door.delete(key)
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise Corrupt(f"The proof failed at the S3 door: {error}") from error
    if any(data != block for data in seen):
        raise Corrupt("The doors showed different bytes for one block; run kvfs-fsck.")
    if plan.has_mount:
        return "Proof: a 1 MiB block put through S3 reads the same in the mount, and the other way."
    return "Proof: a 1 MiB block put through S3 reads back the same."


def _settings(plan: Plan, *, shows_secret: bool) -> str:
    """Return what to paste. Where a log may be reading along the secret stays in its file."""
    doors = plan.doors
    if not shows_secret:
        place = f"<secret_key in {plan.store}/credentials>"
        doors = replace(doors, credential=replace(doors.credential, secret_key=place))
    lines = ["", f"S3       {doors.url}  (bucket {doors.bucket}: http://{doors.engine_listen})"]
    if plan.has_mount:
        lines.append(f"mount    {doors.mount}")
    lines += ["", settings_of("lmcache", doors)]
    if plan.has_mount:
        lines += ["", settings_of("lmcache-fs", doors)]
    lines += ["", "Other engines: kvfs env --help. Serving until Ctrl-C."]
    return "\n".join(lines)


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set; the old handlers come back at the end."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
