"""What is asked of every S3 client: the operations, and the process that asks one client for them.

Runs in the environment of the client, where nothing of kvfs is installed: standard library only.
A client is a class with the few methods of `Client` that it can do; each operation is a function
over those methods, the same for all. What a put left in the store is checked by the tests, from
outside (see `LEFT`); what a get brought is checked here.

    python minio_client.py '{"url": "http://127.0.0.1:9000", "bucket": "minio", ...}'

prints one line for each operation that it was asked for: `RESULT {"operation": ..., "error": ...}`.
"""

from __future__ import annotations

import json
import random
import re
import sys
import traceback
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import NoReturn

SMALL, LARGE, PARTED = 5_000_000, 64 << 20, 18_000_000
PART_BYTES = 5 << 20
"""The smallest part that S3 allows."""
MANY = 1100
"""More names than a page of S3 holds."""
MARKER = b"<- one bit of this turns over on the way ->"
WAIT_SECONDS = 60

GIVEN = {"given/small": SMALL, "given/d/x y+z": 7, "victims/one": 10, "tree/a": 3, "tree/b/c": 0}
"""Keys of the client's bucket that are there before it comes, and their lengths."""
GIVEN_TO_ALL = {"given/large": LARGE}
"""The same of the bucket that all clients share, which has the many names too."""
LENGTHS = {**GIVEN, **GIVEN_TO_ALL}
"""For clients that must know how much there is before they ask for it."""
LEFT = {
    "put-5": ("put/small", SMALL),
    "put-64": ("put/large", LARGE),
    "multipart": ("put/parted", PARTED),
    "copy": ("put/copied", SMALL),
}
"""By operation: the key that must be in the store afterwards, and its length."""

DENIED = re.compile(r"403|SignatureDoesNotMatch|Forbidden|AccessDenied|ACCESS.DENIED|PermissionDen")
EXISTS = re.compile(r"412|PreconditionFailed|AlreadyExists|FileExists|ConditionNotMatch")
MISSING = re.compile(r"404|NoSuchKey|Not ?Found|does not exist|NOT_FOUND|No such file", re.I)


@cache
def data_of(key: str, length: int) -> bytes:
    """Return the bytes that belong under `key`, the same in every process."""
    seed = "given/small" if key == "put/copied" else key
    return random.Random(seed).randbytes(length)


def many_names() -> list[str]:
    """Return the keys of the listing that takes more than one page, in order."""
    return [f"many/{number:05}" for number in range(MANY)]


@dataclass(frozen=True)
class Door:
    """Where the gateway is, and who asks."""

    address: str
    """`host:port` of path-style S3."""
    bucket: str
    shared_bucket: str
    """Read by all clients."""
    access_key: str
    secret_key: str
    flipping_address: str = ""
    """The same as `address`, through a wire that turns over one bit of MARKER."""
    scratch: str = ""
    """A directory of this client's own."""
    option: str = ""
    """Which of its ways the client takes."""
    virtual_host: str = ""
    """The name that stands for `address` where the bucket stands before the host."""

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def virtual_address(self) -> str:
        return f"{self.virtual_host}:{self.address.rpartition(':')[2]}"


class Client:
    """The methods of which a client implements those that it has; keys and buckets are literal."""

    DENIED, MISSING = DENIED, MISSING
    """What is looked for in the client's own words."""

    def __init__(self, door: Door) -> None:
        self.door = door

    def make_bucket(self) -> None:
        """Make the door's bucket."""
        raise NotImplementedError

    def put(self, key: str, data: bytes) -> None:
        raise NotImplementedError

    def put_parts(self, key: str, data: bytes) -> None:
        """Put by parts of PART_BYTES, or as near to it as the client can be told."""
        raise NotImplementedError

    def get(self, key: str) -> bytes:
        raise NotImplementedError

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def size(self, key: str) -> int:
        raise NotImplementedError

    def names(self, prefix: str) -> list[str]:
        """Return all keys that begin with `prefix`, in the order in which they came."""
        raise NotImplementedError

    def copy(self, source: str, target: str) -> None:
        raise NotImplementedError

    def delete(self, key: str) -> None:
        raise NotImplementedError

    def delete_all(self, prefix: str) -> None:
        """Delete all keys that begin with `prefix`, in the client's own way to do it at once."""
        raise NotImplementedError

    def put_once(self, key: str, data: bytes) -> None:
        """Put only if nothing is there."""
        raise NotImplementedError

    def presign(self, key: str) -> str:
        """Return a URL with which anybody may get `key`."""
        raise NotImplementedError

    def at(self, **changes: str) -> Client:
        """Return another client of this kind."""
        return type(self)(replace(self.door, **changes))


def expect(is_true: bool, what: str) -> None:
    if not is_true:
        raise AssertionError(what)


def must_fail(pattern: re.Pattern[str] | None, call: Callable[..., object], *given: object) -> None:
    """Check that a call fails, saying what `pattern` looks for."""
    try:
        answer = call(*given)
    except Exception as error:  # each client has errors of its own
        text = f"{type(error).__name__}: {error}"
        expect(pattern is None or bool(pattern.search(text)), f"another failure: {text}")
        return
    raise AssertionError(f"no failure, but {str(answer)[:100]!r}")


def create(client: Client) -> None:
    name = f"{client.door.bucket}-new"
    other = client.at(bucket=name)
    other.make_bucket()
    other.put("k", b"in a new bucket")


def put_small(client: Client) -> None:
    client.put("put/small", data_of("put/small", SMALL))


def put_large(client: Client) -> None:
    client.put("put/large", data_of("put/large", LARGE))


def get_small(client: Client) -> None:
    expect(client.get("given/small") == data_of("given/small", SMALL), "other bytes")


def get_large(client: Client) -> None:
    shared = client.at(bucket=client.door.shared_bucket)
    expect(shared.get("given/large") == data_of("given/large", LARGE), "other bytes")


def head(client: Client) -> None:
    found = client.size("given/d/x y+z")
    expect(found == 7, f"{found} bytes")


def ranges(client: Client) -> None:
    data = data_of("given/small", SMALL)
    for offset, length in ((3, 10), (1_000_000, SMALL - 1_000_000)):
        found = client.get_range("given/small", offset, length)
        expect(found == data[offset : offset + length], f"{len(found)} other bytes at {offset}")


def listing(client: Client) -> None:
    found = client.names("given/")
    expect(found == ["given/d/x y+z", "given/small"], str(found))


def pages(client: Client) -> None:
    found = client.at(bucket=client.door.shared_bucket).names("many/")
    expect(found == many_names(), f"{len(found)} names: {found[:3]} ... {found[-3:]}")


def multipart(client: Client) -> None:
    client.put_parts("put/parted", data_of("put/parted", PARTED))


def copy(client: Client) -> None:
    client.copy("given/small", "put/copied")


def delete(client: Client) -> None:
    client.delete("victims/one")


def delete_all(client: Client) -> None:
    client.delete_all("tree/")


def put_once(client: Client) -> None:
    client.put_once("put/once", b"the first")
    must_fail(EXISTS, client.put_once, "put/once", b"the second")


def presign(client: Client) -> None:
    url = client.presign("given/d/x y+z")
    with urllib.request.urlopen(url, timeout=WAIT_SECONDS) as answer:
        expect(answer.read() == data_of("given/d/x y+z", 7), "other bytes")
    try:
        urllib.request.urlopen(url.replace("x%20y", "small"), timeout=WAIT_SECONDS).close()
    except urllib.error.HTTPError as refused:
        expect(refused.code == 403, f"another key gives {refused.code}")
        refused.close()
    else:
        raise AssertionError("the URL opens another key")


def wrong_key(client: Client) -> None:
    secret = "another" + client.door.secret_key[7:]
    must_fail(client.DENIED, lambda: client.at(secret_key=secret).get("given/small"))


def missing(client: Client) -> None:
    must_fail(client.MISSING, client.get, "given/absent")


def bad_digest(client: Client) -> None:
    """What changed on the wire is refused, and what was there before stays."""
    client.put("put/flipped", b"old")
    damaged = client.at(address=client.door.flipping_address)
    must_fail(None, damaged.put, "put/flipped", b"new: " + MARKER)
    damaged.put("put/without marker", b"the wire carries everything else")


OPERATIONS: dict[str, Callable[[Client], None]] = {
    "create": create,
    "put-5": put_small,
    "put-64": put_large,
    "get-5": get_small,
    "get-64": get_large,
    "head": head,
    "range": ranges,
    "list": listing,
    "page": pages,
    "multipart": multipart,
    "copy": copy,
    "delete": delete,
    "delete-all": delete_all,
    "put-once": put_once,
    "presign": presign,
    "wrong-key": wrong_key,
    "missing": missing,
    "bad-digest": bad_digest,
}


def ask(make: Callable[[Door], Client], door: Door, operation: str) -> str:
    """Do one operation; return how it failed, or nothing."""
    try:
        OPERATIONS[operation](make(door))
    except Exception:  # reported, not hidden: the test shows it
        return traceback.format_exc()[-3000:]
    return ""


def main(make: Callable[[Door], Client]) -> NoReturn:
    """Do the operations that the command line names, on a client that `make` makes."""
    request = json.loads(sys.argv[1])
    operations = request.pop("operations")
    door = Door(**request)
    for operation in operations:
        result = {"operation": operation, "error": ask(make, door, operation)}
        print("RESULT " + json.dumps(result), flush=True)
    sys.exit(0)
