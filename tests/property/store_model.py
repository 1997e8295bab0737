"""What a Store means, as dictionaries: the oracle of the stateful test.

Names are full keys below a bucket (`a/b`, a directory's with its "/"). Every method does what the
Store method of its name does to names, or raises the same error, having changed nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kvfs.errors import (
    AlreadyExists,
    CrossNamespace,
    DirectoryNotEmpty,
    InvalidArgument,
    IsADirectory,
    NamespaceNotEmpty,
    NotADirectory,
    NotFound,
)
from kvfs.model import Pin
from kvfs.store.renames import RenameMode

EXPIRY_GRACE_S = 30


@dataclass(eq=False, slots=True)
class Node:
    """A file (data) or a symlink (target)."""

    data: bytes = b""
    expires_at_s: int = 0
    ttl_s: int = 0
    pin: Pin = Pin.NONE
    is_symlink: bool = False


@dataclass(slots=True)
class Bucket:
    """One namespace: `directories` maps each to whether a put implied it; b"" is the bucket."""

    nodes: dict[bytes, Node] = field(default_factory=dict)
    directories: dict[bytes, bool] = field(default_factory=lambda: {b"": False})


def parent_of(name: bytes) -> bytes:
    """Return the directory (with its "/", b"" = the bucket) that holds a key or directory."""
    return name[: name[:-1].rfind(b"/") + 1] if name.endswith(b"/") else holder_of(name)


def holder_of(key: bytes) -> bytes:
    """Return the directory of a file's literal key: `d/` lies in `d/`, under the empty name."""
    return key[: key.rfind(b"/") + 1]


class Model:
    """Buckets, names, and the time."""

    def __init__(self, now_s: int, *names: bytes) -> None:
        self.now_s = now_s
        self.buckets = {name: Bucket() for name in names}

    # -- looking --------------------------------------------------------------------------------

    def is_visible(self, node: Node) -> bool:
        return node.pin is Pin.HARD or not node.expires_at_s or self.now_s < node.expires_at_s

    def file(self, bucket: bytes, key: bytes) -> Node:
        """Return the visible file at a literal key. Raises: NotFound."""
        node = self.buckets[bucket].nodes.get(key)
        if node is None or node.is_symlink or not self.is_visible(node):
            raise NotFound("")
        return node

    def keys(self, bucket: bytes, *, expired_too: bool = False) -> list[bytes]:
        nodes = self.buckets[bucket].nodes
        return sorted(
            key
            for key, node in nodes.items()
            if not node.is_symlink and (expired_too or self.is_visible(node))
        )

    def shown(self, bucket: bytes, directory: bytes) -> list[bytes]:
        """Return what the mount shows in a directory, in the order of the stored names."""
        inside = self.buckets[bucket]
        below = (name for name in inside.directories if name and parent_of(name) == directory)
        stored = {name[len(directory) :] for name in below}
        stored |= {
            key[len(directory) :]
            for key, node in inside.nodes.items()
            if holder_of(key) == directory
            and self.is_visible(node)
            and key + b"/" not in inside.directories
        }
        names = [name.removesuffix(b"/") for name in sorted(stored)]
        return [name for name in names if name and len(name) <= 255]

    def names_of(self, node: Node) -> list[tuple[bytes, bytes]]:
        return [
            (name, key)
            for name, bucket in self.buckets.items()
            for key, other in bucket.nodes.items()
            if other is node
        ]

    def children(self, bucket: bytes, directory: bytes) -> Iterator[bytes]:
        inside = self.buckets[bucket]
        yield from (key for key in inside.nodes if holder_of(key) == directory)
        yield from (name for name in inside.directories if name and parent_of(name) == directory)

    # -- files ----------------------------------------------------------------------------------

    def put(self, bucket: bytes, key: bytes, node: Node, *, must_be_absent: bool) -> None:
        inside = self.buckets[bucket]
        old = inside.nodes.get(key)
        if must_be_absent and old is not None and self.is_visible(old):
            raise AlreadyExists("")
        directory = holder_of(key)
        while directory not in inside.directories:
            inside.directories[directory] = True
            directory = parent_of(directory)
        inside.nodes[key] = node

    def put_child(self, bucket: bytes, key: bytes, node: Node, *, must_be_absent: bool) -> None:
        if key + b"/" in self.buckets[bucket].directories:
            raise IsADirectory("")
        self.put(bucket, key, node, must_be_absent=must_be_absent)

    def delete(self, bucket: bytes, key: bytes) -> None:
        node = self.buckets[bucket].nodes.get(key)
        if node is None or node.is_symlink:
            raise NotFound("")
        self.drop(bucket, key)

    def unlink(self, bucket: bytes, key: bytes) -> None:
        inside = self.buckets[bucket]
        if key + b"/" in inside.directories:
            raise IsADirectory("")
        if key not in inside.nodes:
            raise NotFound("")
        self.drop(bucket, key)

    def drop(self, bucket: bytes, key: bytes) -> None:
        del self.buckets[bucket].nodes[key]
        self.prune(bucket, holder_of(key))

    def drop_node(self, node: Node) -> None:
        for bucket, key in self.names_of(node):
            self.drop(bucket, key)

    def prune(self, bucket: bytes, directory: bytes) -> None:
        """Remove implied directories from `directory` upwards while they are empty."""
        directories = self.buckets[bucket].directories
        while directories.get(directory) and not any(self.children(bucket, directory)):
            del directories[directory]
            directory = parent_of(directory)

    # -- names ----------------------------------------------------------------------------------

    def clear_for_new(self, bucket: bytes, key: bytes) -> None:
        """Make room for a new name: an expired one goes. Raises: AlreadyExists, NotFound."""
        inside = self.buckets[bucket]
        node = inside.nodes.get(key)
        if key + b"/" in inside.directories or (node is not None and self.is_visible(node)):
            raise AlreadyExists("")
        if node is not None:
            self.drop_node(node)
        if holder_of(key) not in inside.directories:
            raise NotFound("")  # the expired name was all that its implied directory held

    def mkdir(self, bucket: bytes, key: bytes) -> None:
        self.clear_for_new(bucket, key)
        self.buckets[bucket].directories[key + b"/"] = False

    def symlink(self, bucket: bytes, key: bytes) -> None:
        self.clear_for_new(bucket, key)
        self.buckets[bucket].nodes[key] = Node(is_symlink=True)

    def link(self, source: bytes, node: Node, bucket: bytes, key: bytes) -> None:
        if source != bucket:
            raise CrossNamespace("")
        self.clear_for_new(bucket, key)
        self.buckets[bucket].nodes[key] = node

    def rmdir(self, bucket: bytes, key: bytes) -> None:
        inside = self.buckets[bucket]
        if key + b"/" not in inside.directories:
            raise NotADirectory("") if key in inside.nodes else NotFound("")
        self._remove_directory(bucket, key + b"/")
        self.prune(bucket, parent_of(key + b"/"))

    def _remove_directory(self, bucket: bytes, directory: bytes) -> None:
        if any(self.children(bucket, directory)):
            raise DirectoryNotEmpty("")
        del self.buckets[bucket].directories[directory]

    def empty_bucket(self, bucket: bytes) -> None:
        if self.buckets[bucket].nodes:
            raise NamespaceNotEmpty("")
        self.buckets[bucket] = Bucket()

    def rename(
        self, source: tuple[bytes, bytes], target: tuple[bytes, bytes], mode: RenameMode
    ) -> None:
        (bucket, old), (other, new) = source, target
        inside, beside = self.buckets[bucket], self.buckets[other]
        is_directory = old + b"/" in inside.directories
        if not is_directory and old not in inside.nodes:
            raise NotFound("")
        if bucket != other:
            raise CrossNamespace("")
        if is_directory and new.startswith(old + b"/"):
            raise InvalidArgument("")
        has_directory = new + b"/" in beside.directories
        present = beside.nodes.get(new)
        is_there = has_directory or present is not None
        if mode is RenameMode.NO_REPLACE and (
            has_directory or (present is not None and self.is_visible(present))
        ):
            raise AlreadyExists("")
        if old == new and is_there:
            return
        if not is_directory and not has_directory and present is inside.nodes[old]:
            return
        if mode is RenameMode.EXCHANGE:
            self._exchange(bucket, old, new, is_directory, has_directory, present)
        elif is_directory:
            if has_directory:
                self._remove_directory(bucket, new + b"/")
            elif present is not None:
                raise NotADirectory("")
            self._move_directory(bucket, {old + b"/": new + b"/"})
            self.prune(bucket, parent_of(old + b"/"))
        else:
            if has_directory:
                raise IsADirectory("")
            inside.nodes[new] = inside.nodes.pop(old)
            self.prune(bucket, holder_of(old))

    def _exchange(
        self, bucket: bytes, old: bytes, new: bytes, is_directory: bool, has_directory: bool,
        present: Node | None,
    ) -> None:  # fmt: skip
        inside = self.buckets[bucket]
        if not has_directory and present is None:
            raise NotFound("")
        if has_directory and old.startswith(new + b"/"):
            raise InvalidArgument("")
        if is_directory and has_directory:
            self._move_directory(bucket, {old + b"/": new + b"/", new + b"/": old + b"/"})
            return
        if not is_directory and not has_directory:
            inside.nodes[old], inside.nodes[new] = inside.nodes[new], inside.nodes[old]
            return
        file, directory = (new, old) if is_directory else (old, new)
        if directory in inside.nodes:  # a file that the mount hides behind the directory
            raise AlreadyExists("")
        inside.nodes[directory] = inside.nodes.pop(file)
        self._move_directory(bucket, {directory + b"/": file + b"/"})

    def _move_directory(self, bucket: bytes, moves: dict[bytes, bytes]) -> None:
        def moved(name: bytes) -> bytes:
            for old, new in moves.items():
                if name.startswith(old):
                    return new + name[len(old) :]
            return name

        inside = self.buckets[bucket]
        inside.nodes = {moved(key): node for key, node in inside.nodes.items()}
        inside.directories = {moved(name): is_ for name, is_ in inside.directories.items()}

    # -- lifecycle ------------------------------------------------------------------------------

    def expire(self) -> None:
        for node in {id(n): n for b in self.buckets.values() for n in b.nodes.values()}.values():
            is_due = node.expires_at_s and node.expires_at_s <= self.now_s - EXPIRY_GRACE_S
            if is_due and node.pin is not Pin.HARD:
                self.drop_node(node)
