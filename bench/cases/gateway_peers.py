"""The same client against every S3 server that is installed here, one after the other.

HEADs by boto3, one at a time, and objects of 64 MiB that the AWS Common Runtime stores and fetches
in parts of 8 MiB, as LMCache does. A peer is a program on PATH; one that is not there is named on
stderr and left out. docs/gateway.md says how to install them. Each serves a directory of its own
on loopback, with its defaults; moto keeps objects in memory, the others in files.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import awscrt.auth  # type: ignore[import-untyped]
import awscrt.exceptions  # type: ignore[import-untyped]
import awscrt.http  # type: ignore[import-untyped]
import awscrt.io  # type: ignore[import-untyped]
import awscrt.s3  # type: ignore[import-untyped]
import boto3
import botocore.config
import botocore.exceptions

from bench.cases.gateway_start import free_address
from bench.report import NS_PER_S, Context, Measurement
from tests.integration.gateway_process import ACCESS_KEY, SECRET_KEY, S3Client, running_gateway

MIB = 1 << 20
OBJECT = 64 * MIB
PART = 8 * MIB
BUCKET = "bench"
START_SECONDS = 30
PEER_FAILURES = (
    AssertionError,
    OSError,
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.ClientError,
    awscrt.exceptions.AwsCrtError,
)


@dataclass(frozen=True, slots=True)
class Peer:
    """One server: the program, and how it is told its address and directory."""

    name: str
    program: str
    arguments: Callable[[str, str, Path], list[str]]
    """From host, port and directory."""
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY


PEERS = (
    Peer("moto", "moto_server", lambda host, port, _: ["-H", host, "-p", port]),
    Peer(
        "s3rver",
        "s3rver",
        lambda host, port, folder: ["-s", "-a", host, "-p", port, "-d", str(folder)],
        "S3RVER",
        "S3RVER",
    ),
    Peer(
        "rclone serve s3",
        "rclone",
        lambda host, port, folder: [
            *("serve", "s3", str(folder), "--addr", f"{host}:{port}"),
            *("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--vfs-cache-mode", "off"),
        ],
    ),
    Peer(
        "nanio",
        "nanio",
        lambda host, port, folder: [
            *("serve", "--host", host, "--port", port, "--data-dir", str(folder)),
            "--no-access-log",
        ],
    ),
    Peer(
        "localbucket",
        "localbucket",
        lambda host, port, folder: ["--host", host, "--port", port, str(folder)],
    ),
    Peer(
        "local-s3-server",
        "local-s3-server",
        lambda host, port, folder: [
            *("--hostname", host, "--port", port, "--root-dir", str(folder)),
        ],
    ),
    Peer(
        "versitygw",
        "versitygw",
        lambda host, port, folder: [
            *("--access", ACCESS_KEY, "--secret", SECRET_KEY, "--port", f"{host}:{port}"),
            *("posix", str(folder)),
        ],
    ),
    Peer(
        "minio",
        "minio",
        lambda host, port, folder: ["server", "--address", f"{host}:{port}", str(folder)],
    ),
)


def bench_gateway_peers__same_client(context: Context) -> Iterator[Measurement]:
    with running_gateway(context.directory / "store", workers=2) as gateway:
        yield from _measure(context, "kvfs-gateway", gateway.address, ACCESS_KEY, SECRET_KEY)
    for peer in PEERS:
        program = shutil.which(peer.program)
        if program is None:
            sys.stderr.write(f"bench: {peer.name} not measured: no {peer.program} on PATH\n")
            continue
        with _running(context, peer, program) as address:
            yield from _measure(context, peer.name, address, peer.access_key, peer.secret_key)


@contextlib.contextmanager
def _running(context: Context, peer: Peer, program: str) -> Iterator[str]:
    folder = context.directory / peer.program
    folder.mkdir()
    address = free_address()
    host, _, port = address.rpartition(":")
    environment = os.environ | {
        "MINIO_ROOT_USER": peer.access_key,
        "MINIO_ROOT_PASSWORD": peer.secret_key,
        "NANIO_ACCESS_KEY": peer.access_key,
        "NANIO_SECRET_KEY": peer.secret_key,
    }
    process = subprocess.Popen(
        [program, *peer.arguments(host, port, folder)],
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield address
    finally:
        process.terminate()
        process.wait(20)


def _client(address: str, access_key: str, secret_key: str) -> S3Client:
    config = botocore.config.Config(
        retries={"max_attempts": 1}, s3={"addressing_style": "path"}, read_timeout=60
    )
    return cast("Any", boto3.session.Session()).client(
        "s3",
        endpoint_url=f"http://{address}",
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=config,
    )


def _measure(
    context: Context, name: str, address: str, access_key: str, secret_key: str
) -> Iterator[Measurement]:
    client = _client(address, access_key, secret_key)
    body = os.urandom(OBJECT)
    runtime = _Runtime(address, access_key, secret_key)
    requests: tuple[tuple[str, Callable[[], object]], ...] = (
        ("boto3 HEAD", lambda: client.head_object(Bucket=BUCKET, Key="object")),
        ("awscrt PUT", lambda: runtime.put(f"{BUCKET}/object", body)),
        ("awscrt GET", lambda: runtime.get(f"{BUCKET}/object")),
    )
    heads, rounds = (50, 2) if context.quick else (500, 7)
    try:
        _create_bucket(context, client)
        client.put_object(Bucket=BUCKET, Key="object", Body=body)
    except PEER_FAILURES as error:
        sys.stderr.write(f"bench: {name} stores nothing: {error}\n")
        return
    for request, work in requests:
        params: dict[str, str | int] = {"server": name, "request": request}
        try:
            if request == "boto3 HEAD":
                taken = context.times_s(work, heads, warmup=20)
                yield Measurement("ms", [each * 1000 for each in taken], params)
            else:
                speeds = [OBJECT / 1e9 / each for each in context.times_s(work, rounds)]
                yield Measurement("GB/s", speeds, {**params, "part_MiB": PART // MIB})
        except PEER_FAILURES as error:  # no failure of ours, and the next request still runs
            sys.stderr.write(f"bench: {name} fails at {request}: {error}\n")


def _create_bucket(context: Context, client: S3Client) -> None:
    """Create the bucket as soon as the server answers."""
    end = context.clock.monotonic_ns() + START_SECONDS * NS_PER_S
    pause = threading.Event()
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
        except botocore.exceptions.BotoCoreError:  # not listening yet
            assert context.clock.monotonic_ns() < end, "the server does not answer"
            pause.wait(0.1)
        else:
            return


class _Runtime:
    """The AWS Common Runtime's S3 client, set up as LMCache sets it up."""

    def __init__(self, address: str, access_key: str, secret_key: str) -> None:
        self._host = address
        loop = awscrt.io.EventLoopGroup(2)
        bootstrap = awscrt.io.ClientBootstrap(loop, awscrt.io.DefaultHostResolver(loop))
        signing = awscrt.s3.create_default_s3_signing_config(
            region="us-east-1",
            credential_provider=awscrt.auth.AwsCredentialsProvider.new_static(
                access_key, secret_key
            ),
        )
        self._client = awscrt.s3.S3Client(
            bootstrap=bootstrap,
            region="us-east-1",
            signing_config=signing,
            part_size=PART,
            throughput_target_gbps=10,
            tls_mode=awscrt.s3.S3RequestTlsMode.DISABLED,
        )

    def put(self, path: str, body: bytes) -> None:
        """Store an object, in parts sent side by side."""
        stream = awscrt.io.InputStream(io.BytesIO(body))
        headers = [("content-length", str(len(body))), ("content-type", "binary/octet-stream")]
        self._make(awscrt.s3.S3RequestType.PUT_OBJECT, "PUT", path, headers, stream)

    def get(self, path: str) -> None:
        """Fetch an object and count its bytes."""
        received = 0

        def on_body(chunk: bytes, **_: object) -> None:
            nonlocal received
            received += len(chunk)

        self._make(awscrt.s3.S3RequestType.GET_OBJECT, "GET", path, [], None, on_body)
        assert received == OBJECT, "the whole object came"

    def _make(
        self,
        kind: object,
        method: str,
        path: str,
        headers: list[tuple[str, str]],
        stream: object,
        on_body: Callable[..., None] | None = None,
    ) -> None:
        all_headers = awscrt.http.HttpHeaders([("host", self._host), *headers])
        request = awscrt.http.HttpRequest(method, f"/{path}", all_headers, stream)
        made = self._client.make_request(type=kind, request=request, on_body=on_body)
        made.finished_future.result(120)
