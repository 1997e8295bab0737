"""What a check of a store can find; plain records.

Owns the words. A DAMAGE finding breaks an invariant: somebody may get a miss, a wrong count or an
error because of it. A WARNING is what killed processes leave and what the next sweep, trash run or
reclaim removes by itself.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from kvfs.index.lmdb_index import WriteTransaction
from kvfs.model import Digest


class Severity(enum.Enum):
    """How bad a finding is."""

    WARNING = "warning"
    DAMAGE = "damage"


Fix = Callable[[WriteTransaction], None]
"""Corrects rows, inside the very transaction whose scan made the finding."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it must be."""

    code: str
    """Stable, for programs: `block-refs`, `orphan-file`, ... (docs/format.md lists them)."""
    severity: Severity
    subject: str
    detail: str
    fix: Fix | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class LostBlock:
    """A block whose file is gone, short, or holds other bytes; its names must go."""

    digest: Digest
    generation: int


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check saw, and what a repair left."""

    findings: tuple[Finding, ...]
    """Of a repair: what it found before it began."""
    left: tuple[Finding, ...]
    """What is still there: equal to `findings` unless repaired."""
    lost: tuple[LostBlock, ...]
    is_repaired: bool
    inodes: int
    blocks: int
    files: int
    bytes_hashed: int
    names_dropped: int = 0
    """Names of lost blocks that a repair removed."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found at all."""
        return not self.findings

    @property
    def has_damage_left(self) -> bool:
        """Whether an invariant is still broken."""
        return any(finding.severity is Severity.DAMAGE for finding in self.left)
