"""The walk that brings lifecycle rules to objects that were there before, or came by the mount.

Owns when: small buckets at once, in the request that changes the rules; the rest in the first
worker's background, from the beginning after a change and every few hours. A change is noted on the
bucket (`user.s3.lifecycle-changed.<ns>`) in the transaction that makes it, and the note goes only
when a walk that began SETTLE_S later has ended: so a worker that dies leaves nothing half done, and
a write that began under the old rules is met, too.

Cost: 10 us an object and, of those whose end changes, a row; it rests four times as long as it
works.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field

import trio

from kvfs.errors import KvfsError, NotFound
from kvfs.model import AttributeChange, Entry, Namespace
from kvfs_gateway.server.lifetimes import ATTRIBUTE, revise_page
from kvfs_gateway.server.service import Service

log = logging.getLogger(__name__)

NOTE_PREFIX = ATTRIBUTE + "-changed."
CHECK_S = 30.0
SETTLE_S = 60
WALK_EVERY_S = 6 * 3600
"""How long a file that came by the mount may be without its end, which is a day off at least."""
PROMPT_PAGES = 10
"""Pages revised before a change of rules is answered."""
REST_SHARE = 4
NS_PER_S = 1_000_000_000


def changed_document(entry: Entry, text: bytes, now_ns: int) -> AttributeChange:
    """Return the change of a bucket's directory that replaces its document; b"" = none any more."""
    old = [name for name in entry.attributes if name.startswith(NOTE_PREFIX)]
    fresh = {f"{NOTE_PREFIX}{now_ns:020}": b"1"}
    if text:
        fresh[ATTRIBUTE] = text
    elif ATTRIBUTE in entry.attributes:
        old.append(ATTRIBUTE)
    return AttributeChange(
        set_attributes=fresh, remove_attributes=tuple(name for name in old if name not in fresh)
    )


async def walk_promptly(service: Service, namespace: Namespace) -> None:
    """Revise a bucket's first objects after its rules changed: of small buckets all."""
    after = b""
    for _ in range(PROMPT_PAGES):
        after = await _revise(service, namespace, after, only_new=False)
        if not after:
            return


async def _revise(service: Service, namespace: Namespace, after: bytes, *, only_new: bool) -> bytes:
    return await service.write(
        revise_page, service.store, namespace, after, service.now_s(), only_new=only_new
    )


@dataclass(slots=True)
class LifetimeWalk:
    """One worker's walks over all buckets with rules."""

    service: Service
    _walked_ns: dict[int, int] = field(default_factory=dict)
    """When each bucket's last whole walk began, by its directory; since the start of the worker."""

    async def run_forever(self) -> None:
        """Walk what is due, for as long as the worker serves."""
        while True:
            await trio.sleep(CHECK_S)
            try:
                await self.step()
            except KvfsError as error:  # the next turn tries again
                log.warning("event=lifetime_walk_failed error=%s", error)

    async def step(self) -> None:
        """Walk each bucket that is due, once. Raises: as a commit."""
        store = self.service.store
        namespaces = await self.service.read(store.list_namespaces)
        inodes = {namespace.inode for namespace in namespaces}
        self._walked_ns = {k: v for k, v in self._walked_ns.items() if k in inodes}
        for namespace in namespaces:
            entry = store.stat_inode(namespace.inode)
            if entry is None:
                continue
            notes = [name for name in entry.attributes if name.startswith(NOTE_PREFIX)]
            if notes or (ATTRIBUTE in entry.attributes and self._is_old(namespace)):
                with contextlib.suppress(NotFound):  # the bucket was deleted meanwhile
                    await self._walk(namespace, notes)

    def _is_old(self, namespace: Namespace) -> bool:
        walked_ns = self._walked_ns.get(namespace.inode)
        now_ns = self.service.clock.monotonic_ns()
        return walked_ns is None or now_ns - walked_ns >= WALK_EVERY_S * NS_PER_S

    async def _walk(self, namespace: Namespace, notes: list[str]) -> None:
        clock = self.service.clock
        began_ns, settled_ns = clock.monotonic_ns(), clock.now_ns() - SETTLE_S * NS_PER_S
        after = b""
        while True:
            page_ns = clock.monotonic_ns()
            after = await _revise(self.service, namespace, after, only_new=not notes)
            if not after:
                break
            await trio.sleep((clock.monotonic_ns() - page_ns) * REST_SHARE / NS_PER_S)
        self._walked_ns[namespace.inode] = began_ns
        settled = [name for name in notes if _noted_ns(name) <= settled_ns]
        if settled:
            change = AttributeChange(remove_attributes=tuple(settled))
            await self.service.write(self.service.store.set_attributes, namespace.inode, change)


def _noted_ns(name: str) -> int:
    """Return when a change was noted; one that somebody else wrote is as old as can be."""
    text = name.removeprefix(NOTE_PREFIX)
    return int(text) if text.isascii() and text.isdigit() and len(text) == 20 else 0
