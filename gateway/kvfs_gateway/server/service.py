"""What every handler is given: the store, time, keys and limits of one worker, and one call.

Owns authorization: the one function that turns a head into an authenticated, routed call. Holds: no
handler runs for a request whose signature was not checked, or whose credential is not for its
bucket; a listener's health paths are the only answers to anonymous requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from kvfs.aio import BlockingCalls
from kvfs.bucket_credentials import BucketCredential
from kvfs.clock import Clock, Randomness
from kvfs.config import Credential
from kvfs.model import ObjectPath
from kvfs.store.store import Store
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.head import Head
from kvfs_gateway.s3.permissions import permits
from kvfs_gateway.s3.routing import Addressing, Route, route
from kvfs_gateway.s3.sigv2 import is_presigned_v2, verify_presigned_v2
from kvfs_gateway.s3.sigv4 import Authentication, SignatureVerifier
from kvfs_gateway.s3.target import Target, parse_target
from kvfs_gateway.server.body import BufferPool, RequestBody

P = ParamSpec("P")
T = TypeVar("T")

WRITE_THREADS = 16
"""Staging, deleting, copying: what may wait for the disk or the index's write lock."""
PUBLISH_THREADS = 8
"""Each maps 8 MiB at a time to hash it, so all of them add 64 MiB to the worker's memory; small
objects that publish together share one commit."""
READ_THREADS = 8
"""Looking up and opening. A HEAD needs no thread, so a full pool never delays it."""
LOAD_THREADS = 8
"""Reading cold files: apart from opening, so that what is in memory is served while they wait."""


@dataclass(slots=True)
class Service:
    """One worker's state; lives on the event loop."""

    store: Store
    clock: Clock
    randomness: Randomness
    credential: Credential
    region: str = "us-east-1"
    has_md5_etags: bool = False
    """Every ETag an MD5 (`--etag md5`), at MD5's 0.4 GB/s."""
    bucket_credentials: Mapping[str, BucketCredential] = field(default_factory=dict)
    """By access key, which is never root's: root's goes first."""
    buffers: BufferPool = field(default_factory=BufferPool)
    writers: BlockingCalls = field(default_factory=lambda: BlockingCalls(WRITE_THREADS))
    publishers: BlockingCalls = field(default_factory=lambda: BlockingCalls(PUBLISH_THREADS))
    readers: BlockingCalls = field(default_factory=lambda: BlockingCalls(READ_THREADS))
    loaders: BlockingCalls = field(default_factory=lambda: BlockingCalls(LOAD_THREADS))
    senders: int = 0
    """Objects being sent now."""
    verifier: SignatureVerifier = field(init=False)

    def __post_init__(self) -> None:
        self.verifier = SignatureVerifier(self.secret_of)

    def secret_of(self, access_key: str) -> str | None:
        """Return the secret of an access key, None if there is no such key."""
        if access_key == self.credential.access_key:
            return self.credential.secret_key
        limited = self.bucket_credentials.get(access_key)
        return None if limited is None else limited.secret_key

    def limits_of(self, access_key: str) -> BucketCredential | None:
        """Return what limits an access key that has a secret, None for root's."""
        if access_key == self.credential.access_key:
            return None
        return self.bucket_credentials[access_key]

    @property
    def owner_id(self) -> str:
        """The canonical user id that S3's answers name as owner."""
        return "kvfs"

    def now_s(self) -> int:
        """Return whole seconds since the epoch."""
        return self.clock.now_ns() // 1_000_000_000

    async def write(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a store call that may wait for the disk or the write lock."""
        return await self.writers.run(call, *args, **kwargs)

    async def publish(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a store call that hashes a whole object and commits it."""
        return await self.publishers.run(call, *args, **kwargs)

    async def read(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a store call that looks up or opens."""
        return await self.readers.run(call, *args, **kwargs)

    async def load(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call that waits for the disk to read an object's bytes."""
        return await self.loaders.run(call, *args, **kwargs)

    def authorize(
        self, head: Head, addressing: Addressing
    ) -> tuple[Target, Route, Authentication, BucketCredential | None]:
        """Return what is asked, by whom, and that credential's limits. Raises: S3Error.

        Nothing is waited for, so secret and limits are those of one moment; a request goes on with
        them whatever is read meanwhile.
        """
        target = parse_target(head.target)
        now_s = self.now_s()
        if target.query and is_presigned_v2(target):
            found = route(head, target, addressing)
            authentication = verify_presigned_v2(
                head, target, found.resource, self.secret_of, now_s
            )
        else:
            authentication = self.verifier.verify(head, target, now_s)
            found = route(head, target, addressing)
        limits = self.limits_of(authentication.access_key)
        if limits is not None and not permits(
            found.operation, found.bucket, limits.buckets, is_read_only=limits.is_read_only
        ):
            raise S3Error("AccessDenied")
        expected_owner = head.headers.get("x-amz-expected-bucket-owner")
        if expected_owner is not None and expected_owner != self.owner_id:
            raise S3Error("AccessDenied")
        return target, found, authentication, limits


@dataclass(slots=True)
class Call:
    """One authenticated request on its way through a handler; nobody changes it.

    Not frozen: that would take five times as long to make, and every request makes one.
    """

    service: Service
    head: Head
    target: Target
    route: Route
    authentication: Authentication
    limits: BucketCredential | None
    """None: root asks."""
    body: RequestBody
    request_id: str

    @property
    def path(self) -> ObjectPath:
        """The object named by the request."""
        return ObjectPath(self.route.bucket, self.route.key)

    def may_see(self, bucket: bytes) -> bool:
        """Return whether the request may learn of a bucket that its route does not name."""
        return self.limits is None or bucket in self.limits.buckets

    def parameter(self, name: str, default: str = "") -> str:
        """Return a query parameter as text. Raises: S3Error InvalidArgument if it is not UTF-8."""
        value = self.target.value(name.encode())
        if value is None:
            return default
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise S3Error("InvalidArgument", f"{name} must be UTF-8.") from None

    def count(self, name: str, default: int, maximum: int) -> int:
        """Return a numeric parameter, at most `maximum`. Raises: S3Error InvalidArgument."""
        text = self.parameter(name)
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise S3Error("InvalidArgument", f"Provided {name} not an integer or within range")
        return min(int(text), maximum)
