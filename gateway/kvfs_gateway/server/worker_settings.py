"""What the supervisor tells a worker: one JSON argument.

Owns the record, apart from the worker itself: the supervisor serves nothing, so it loads nothing
that serves, and its workers begin half a second earlier.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

DRAIN_SECONDS = 25.0
"""After SIGTERM; systemd kills after 90 s by default, Kubernetes after 30."""


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """One inherited listening socket."""

    fd: int
    default_bucket: str = ""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """All that a worker is told; no secrets."""

    store: str
    worker: int
    listeners: tuple[ListenerSettings, ...]
    metrics_fd: int
    ready_fd: int
    virtual_hosts: tuple[str, ...] = ()
    access_format: str = "none"
    region: str = "us-east-1"
    has_md5_etags: bool = False
    tls_certificate: str = ""
    """ "" = plain HTTP."""
    tls_key: str = ""

    def to_json(self) -> str:
        """Return the form that goes into the worker's argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WorkerSettings:
        """Return what `to_json` wrote."""
        fields = json.loads(text)
        fields["listeners"] = tuple(ListenerSettings(**item) for item in fields["listeners"])
        fields["virtual_hosts"] = tuple(fields["virtual_hosts"])
        return cls(**fields)
