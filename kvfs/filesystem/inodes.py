"""The kernel's inodes of one mount: nodeids, their lookup counts, and what stands behind each.

Owns the table nodeid -> Node and the pairing with the store's inodes. Refuses to know names,
requests and the store. An ordinary nodeid is the store's inode number, so st_ino survives an
unmount. A file being written has a *private* nodeid (high bit set) until, and as long as, the
kernel remembers it; publishing pairs it with the inode that was made.
Must hold: a node leaves the table only when the kernel has forgotten it, nothing has it open and
nobody holds it; one that the kernel was never told of leaves with the operation that made it. At
most one node is paired with a store inode.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvfs.filesystem.records import ROOT_NODEID, Attributes
from kvfs.model import ROOT_INODE

if TYPE_CHECKING:
    from kvfs.filesystem.handles import SharedView, WritingFile
    from kvfs.model import ChildName

PRIVATE = 1 << 63
"""Set in private nodeids; the store counts its inodes up from 1 and never comes near."""


@dataclass(slots=True, eq=False)
class Node:
    """One inode as the kernel knows it."""

    nodeid: int
    inode: int
    """The store's inode, or 0 while nothing has been published."""
    lookups: int = 0
    openers: int = 0
    holds: int = 0
    """By operations under way and by pending overwrites (see pending_names.py), although the kernel
    does not know it, or forgot it."""
    writing: WritingFile | None = None
    reading: SharedView | None = None
    overwrites: ChildName | None = None
    """An alias: opening it for writing starts a private file that will replace this name."""
    shown: Attributes | None = None
    """What an alias of an unpublished file looks like until it is opened."""
    last: Attributes | None = None
    """As last told to the kernel: what a removed file goes on looking like, without its links."""
    is_private: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_private = self.nodeid >= PRIVATE

    @property
    def ino(self) -> int:
        """st_ino: the store's number where there is one, so that every mount shows the same.

        A file not yet published keeps its private number, by which its descriptors are found in
        /proc.
        """
        if self.overwrites is not None:
            return self.nodeid
        return self.inode or self.nodeid


class InodeTable:
    """Every node the kernel may name."""

    def __init__(self) -> None:
        root = Node(ROOT_NODEID, ROOT_INODE, lookups=1)
        self._by_nodeid: dict[int, Node] = {ROOT_NODEID: root}
        self._by_inode: dict[int, Node] = {ROOT_INODE: root}
        self._serial = itertools.count(1)

    def __len__(self) -> int:
        return len(self._by_nodeid)

    def get(self, nodeid: int) -> Node:
        """Return the node.

        Raises: OSError ESTALE if the kernel names one that was forgotten, EROFS for one of the
        content view, where only what asks for it by itself may go on.
        """
        node = self._by_nodeid.get(nodeid)
        if node is None and nodeid >> 62 == 1:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def find(self, nodeid: int) -> Node | None:
        """Return the node, None if the kernel names none of this table."""
        return self._by_nodeid.get(nodeid)

    def find_inode(self, inode: int) -> Node | None:
        """Return the node paired with the store's `inode`, if the kernel knows one."""
        return self._by_inode.get(inode)

    def for_inode(self, inode: int) -> Node:
        """Return the node paired with the store's `inode`, making it if need be."""
        node = self._by_inode.get(inode)
        if node is None:
            node = self._by_nodeid.get(inode)
            if node is None or node.inode != inode:
                # The number may still be taken by a node that was paired with it before a later
                # publish moved it on; a private number is always free.
                nodeid = inode if node is None else next(self._serial) | PRIVATE
                node = self._by_nodeid[nodeid] = Node(nodeid, inode)
            self._by_inode[inode] = node
        return node

    @contextlib.contextmanager
    def held(self, inode: int) -> Iterator[Node]:
        """Yield `for_inode`, kept meanwhile, whoever else forgets it; and no longer than that if
        the kernel is not told of it."""
        node = self.for_inode(inode)
        node.holds += 1
        try:
            yield node
        finally:
            node.holds -= 1
            self.release(node)

    def make_private(self, inode: int = 0) -> Node:
        """Make a node of its own for a file to be written; `inode` is what it shows until then."""
        node = Node(next(self._serial) | PRIVATE, inode)
        self._by_nodeid[node.nodeid] = node
        return node

    def pair(self, node: Node, inode: int) -> None:
        """Let `node` stand for the store's `inode` from now on."""
        if self._by_inode.get(node.inode) is node:
            del self._by_inode[node.inode]
        node.inode = inode
        self._by_inode[inode] = node

    def unpair(self, node: Node) -> None:
        """Part `node` from its store inode: a later lookup of that makes a new node."""
        if self._by_inode.get(node.inode) is node:
            del self._by_inode[node.inode]

    def remember(self, node: Node, count: int = 1) -> None:
        """The kernel was told of `node` `count` times."""
        node.lookups += count

    def forget(self, nodeid: int, count: int) -> None:
        """The kernel drops `count` of its references."""
        node = self._by_nodeid.get(nodeid)
        if node is None or nodeid == ROOT_NODEID:
            return
        node.lookups = max(0, node.lookups - count)
        self.release(node)

    def release(self, node: Node) -> None:
        """Drop `node` if nothing needs it any more."""
        if node.lookups or node.openers or node.holds or node.nodeid == ROOT_NODEID:
            return
        self._by_nodeid.pop(node.nodeid, None)
        if self._by_inode.get(node.inode) is node:
            del self._by_inode[node.inode]
