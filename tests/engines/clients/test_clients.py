"""Every client, every operation that it has: real packages, unmodified, against the real gateway.

A client runs once, in its own environment and process, and is asked for all that it can do; each
operation is a test of its own. What it put is read from the store, not through the client.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest

from kvfs.model import ObjectPath
from kvfs.open_store import open_store
from kvfs.store.store import Store
from tests.engines.clients.catalogue import ASKED, BY_VIRTUAL_HOST, Asked, Environment
from tests.engines.clients.flipping_wire import flipping_wire
from tests.engines.clients.operations import (
    GIVEN,
    GIVEN_TO_ALL,
    LEFT,
    OPERATIONS,
    Door,
    data_of,
    many_names,
)
from tests.engines.doors import ROOT, VIRTUAL_HOST, Gateway, resolving

pytestmark = [pytest.mark.slow, pytest.mark.s3]

HERE = Path(__file__).parent
WAIT_SECONDS = 200
BY_PARTS = re.compile(r"-([2-9]|[1-9]\d+)$")
"""An ETag of two parts or more; -1 is what a large object put at once has."""
Errors = dict[str, str]
"""By operation: how it failed, or nothing."""

CASES = [
    pytest.param(name, operation, id=f"{name.replace(', ', ':').replace(' ', '-')}-{operation}")
    for name, asked in ASKED.items()
    for operation in OPERATIONS
    if operation not in asked.cannot
]


def python_of(environment: Environment) -> Path:
    if environment is Environment.OURS:
        return Path(sys.executable)
    variable = f"KVFS_TEST_{environment.name}_PYTHON"
    python = Path(os.environ.get(variable) or ROOT / environment.value / "bin/python")
    if not python.exists():
        pytest.skip(
            f"{environment.value} is missing: run `make install-{environment.name.lower()}`"
        )
    return python


@pytest.fixture(scope="module")
def wire(gateway: Gateway) -> Iterator[str]:
    with flipping_wire(gateway.url.removeprefix("http://")) as address:
        yield address


@pytest.fixture(scope="module")
def shared_bucket(store: Path) -> str:
    with open_store(store) as opened:
        give(opened, b"shared", GIVEN_TO_ALL)
        with ThreadPoolExecutor(32) as pool:  # one synced commit for as many as wait
            paths = [ObjectPath(b"shared", key.encode()) for key in many_names()]
            list(pool.map(opened.put, paths, itertools.repeat(b"x")))
    return "shared"


def give(store: Store, bucket: bytes, lengths: Mapping[str, int]) -> None:
    """Put there what a client is to find."""
    store.create_namespace(bucket)
    for key, length in lengths.items():
        store.put(ObjectPath(bucket, key.encode()), data_of(key, length))


def check_left(store: Store, bucket: bytes, errors: Errors) -> None:
    """Compare what the operations left in the store with what they must have left."""
    for operation, (key, length) in LEFT.items():
        if errors.get(operation) == "":
            errors[operation] = fault_of(store, ObjectPath(bucket, key.encode()), length)
    upload = store.find(ObjectPath(bucket, b"put/parted"))
    if errors.get("multipart") == "" and (upload is None or not BY_PARTS.search(upload.etag)):
        errors["multipart"] = f"it did not come by parts: {upload and upload.etag}"
    if errors.get("delete") == "" and store.find(ObjectPath(bucket, b"victims/one")) is not None:
        errors["delete"] = "it is still there"
    if errors.get("bad-digest") == "":
        is_old = store.get(ObjectPath(bucket, b"put/flipped")) == b"old"
        errors["bad-digest"] = "" if is_old else "the damaged bytes took the place of the old ones"
    if errors.get("delete-all") == "":
        left = store.list_objects(bucket, prefix=b"tree/").objects
        errors["delete-all"] = f"still there: {left}" if left else ""
    if errors.get("put-once") == "":
        is_first = store.get(ObjectPath(bucket, b"put/once")) == b"the first"
        errors["put-once"] = "" if is_first else "the second took the place of the first"
    if errors.get("create") == "":
        is_there = store.get(ObjectPath(bucket + b"-new", b"k")) == b"in a new bucket"
        errors["create"] = "" if is_there else "the new bucket holds other bytes"


def fault_of(store: Store, path: ObjectPath, length: int) -> str:
    if store.find(path) is None:
        return f"the store has no {path}"
    is_equal = store.get(path) == data_of(path.key.decode(), length)
    return "" if is_equal else f"the store has other bytes under {path}"


def clear(store: Store, bucket: bytes) -> None:
    """Give the space back."""
    if store.find_namespace(bucket) is None:
        return
    while found := store.list_objects(bucket).objects:
        for item in found:
            store.delete(ObjectPath(bucket, item.key))


def settings_of(asked: Asked, door: Door) -> dict[str, str]:
    """Return the environment of a client: none of the settings that this machine has for others."""
    foreign = ("KVFS_", "AWS_", "PYTHON", "RCLONE_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(foreign) and not name.lower().endswith("_proxy")
    }
    kept |= {"HOME": door.scratch, "AWS_EC2_METADATA_DISABLED": "true"}
    if asked.option == BY_VIRTUAL_HOST:
        buckets = (door.bucket, f"{door.bucket}-new", door.shared_bucket)
        kept |= resolving(Path(door.scratch), *buckets)
    return kept


def ask(asked: Asked, door: Door) -> Errors:
    """Run one client; return how each of its operations ended."""
    wanted = [operation for operation in OPERATIONS if operation not in asked.cannot]
    request = json.dumps({**asdict(door), "operations": wanted})
    process = subprocess.Popen(
        [str(python_of(asked.environment)), str(HERE / asked.script), request],
        env=settings_of(asked, door),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, log = process.communicate(timeout=WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, log = process.communicate(timeout=WAIT_SECONDS)
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    results = [json.loads(line.removeprefix("RESULT ")) for line in lines]
    errors = {result["operation"]: result["error"] for result in results}
    silence = f"no result, exit code {process.returncode}: {log[-3000:]}"
    return {operation: errors.get(operation, silence) for operation in wanted}


@pytest.fixture(scope="module")
def errors_of(
    store: Path,
    gateway: Gateway,
    wire: str,
    shared_bucket: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Errors]:
    """Return how the operations of a client ended; each client runs once."""
    known: dict[str, Errors] = {}

    def of(name: str) -> Errors:
        python_of(ASKED[name].environment)  # or a skip, before anything is made
        if name not in known:
            bucket = "c-" + hashlib.sha1(name.encode()).hexdigest()[:12]
            door = Door(
                address=gateway.url.removeprefix("http://"),
                bucket=bucket,
                shared_bucket=shared_bucket,
                access_key=gateway.access_key,
                secret_key=gateway.secret_key,
                flipping_address=wire,
                scratch=str(tmp_path_factory.mktemp("client")),
                option=ASKED[name].option,
                virtual_host=VIRTUAL_HOST,
            )
            with open_store(store) as opened:
                give(opened, bucket.encode(), GIVEN)
                known[name] = ask(ASKED[name], door)
                check_left(opened, bucket.encode(), known[name])
                clear(opened, bucket.encode())
                clear(opened, f"{bucket}-new".encode())
        return known[name]

    return of


@pytest.mark.parametrize(("client", "operation"), CASES)
def test_a_client_can(errors_of: Callable[[str], Errors], client: str, operation: str) -> None:
    error = errors_of(client)[operation]
    if error:
        pytest.fail(error, pytrace=False)
