"""Every error kvfs raises on purpose.

Owns the tree and nothing else: no errno, no HTTP status (those are two total tables in layer 6,
and a test walks this tree to prove that neither misses a leaf). Facts about a failure are fields;
the message is one sentence that says what to do. `retryable` promises that the same call may
succeed later without anybody changing anything.
"""

from __future__ import annotations


class KvfsError(Exception):
    """Base of all; never raised itself."""

    retryable: bool = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotFound(KvfsError):
    """The name, namespace, upload or block is not there (or has expired)."""


class NamespaceNotFound(NotFound):
    """The first directory (S3: the bucket) is not there."""


class UploadNotFound(NotFound):
    """No such multipart upload, or it belongs to another key."""


class AlreadyExists(KvfsError):
    """The name is taken and the caller asked not to replace it."""


class NamespaceNotEmpty(KvfsError):
    """A namespace still holds objects."""


class DirectoryNotEmpty(KvfsError):
    """rmdir, or rename onto a directory that still has children."""


class IsADirectory(KvfsError):
    """A file operation met a directory."""


class NotADirectory(KvfsError):
    """A path component, or the target of a directory operation, is no directory."""


class CrossNamespace(KvfsError):
    """A rename or link would carry bytes into another namespace, whose salt differs (I6)."""


class InvalidName(KvfsError):
    """A name the store cannot hold: NUL, too long, too deep, `..` from a path-like door."""


class InvalidArgument(KvfsError):
    """A value out of its documented range."""


class InvalidPart(KvfsError):
    """CompleteMultipartUpload named a part that is absent or differs."""

    def __init__(self, message: str, part_number: int = 0) -> None:
        super().__init__(message)
        self.part_number = part_number


class InvalidPartOrder(KvfsError):
    """CompleteMultipartUpload listed its parts out of order."""


class PartTooSmall(KvfsError):
    """A part other than the last is below the minimum size."""


class PreconditionFailed(KvfsError):
    """An if-match / if-none-match condition on a write did not hold."""


class NoSpace(KvfsError):
    """Capacity or quota is used up, and eviction could not free enough."""

    def __init__(self, message: str, wanted_bytes: int = 0) -> None:
        super().__init__(message)
        self.wanted_bytes = wanted_bytes


class TooLarge(KvfsError):
    """One object exceeds what the store or namespace accepts."""


class Leased(KvfsError):
    """The object is pinned or leased and may not go now (I5)."""

    retryable = True


class Corrupt(KvfsError):
    """Stored bytes failed their check; they were quarantined and are never served (I1)."""

    def __init__(self, message: str, digest: bytes = b"") -> None:
        super().__init__(message)
        self.digest = digest


class Denied(KvfsError):
    """The operating system or the store's settings refuse it."""


class ReadOnly(Denied):
    """The store or mount was opened read-only."""


class Unavailable(KvfsError):
    """Not now: the disk failed, descriptors ran out, the index is being repaired."""

    retryable = True


class IndexFull(Unavailable):
    """The LMDB map is full; reads and deletes still work."""


class NotAStore(KvfsError):
    """The path is no kvfs store."""


class UnsupportedFormat(KvfsError):
    """The store was written by a newer kvfs, or lies where it cannot work (network filesystem)."""


class StoreExists(KvfsError):
    """`init` on a path that already is a store, or is not empty."""


class StoreDamaged(KvfsError):
    """The index is unreadable and could not be rebuilt by itself."""


class Closed(KvfsError):
    """The Store, staging file or view was closed before this call."""
