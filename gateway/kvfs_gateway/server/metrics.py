"""Counters of all workers in one shared memory, and their Prometheus text.

Owns the layout: each worker writes only its own row of 64-bit numbers, the supervisor reads all, so
there is no lock and no message. A restarted worker goes on counting in the same row. Label values
come from enums only (never keys or buckets).
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Iterator

from kvfs.model import StoreUsage
from kvfs_gateway.s3.operations import Operation

_OPERATIONS = (*(operation.value for operation in Operation), "none")
_OPERATION_INDEX = {operation: index for index, operation in enumerate(Operation)}
_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
_BUCKETS_S = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0)
_GAUGES = (
    "connections", "capacity_bytes", "resident_bytes", "reserved_bytes", "object_count",
    "hits_total", "misses_total", "opens_total", "opened_bytes_total",
)  # fmt: skip
_TOTALS = ("sent_bytes", "received_bytes", "failures", "starts", "connections_opened")

_NO_OPERATION = len(_OPERATIONS) - 1
_CLASS_COUNT = len(_CLASSES)
_BUCKET_COUNT = len(_BUCKETS_S) + 1
_MICROSECONDS = len(_OPERATIONS) * _CLASS_COUNT
_HISTOGRAM = _MICROSECONDS + len(_OPERATIONS)
_TOTAL = _HISTOGRAM + len(_OPERATIONS) * _BUCKET_COUNT
_SENT = _TOTAL + _TOTALS.index("sent_bytes")
_RECEIVED = _TOTAL + _TOTALS.index("received_bytes")
_GAUGE = _TOTAL + len(_TOTALS)
ROW = _GAUGE + len(_GAUGES)


def create_shared(workers: int) -> int:
    """Return a descriptor of zeroed shared memory for `workers` rows; children inherit it."""
    fd = os.memfd_create("kvfs-gateway-metrics")
    os.ftruncate(fd, workers * ROW * 8)
    return fd


def _map(fd: int) -> memoryview:
    return memoryview(mmap.mmap(fd, 0)).cast("Q")


class WorkerMetrics:
    """One worker's row."""

    def __init__(self, fd: int, worker: int) -> None:
        """fd: from create_shared. worker: this worker's index."""
        self._row = _map(fd)[worker * ROW : (worker + 1) * ROW]
        self._row[_GAUGE] = 0
        self._add("starts", 1)

    def count_request(
        self, operation: Operation | None, status: int, sent: int, received: int, seconds: float
    ) -> None:
        """Count one answered request and the payload bytes of both directions."""
        index = _OPERATION_INDEX[operation] if operation is not None else _NO_OPERATION
        row = self._row
        row[index * _CLASS_COUNT + status // 100 - 1] += 1
        row[_MICROSECONDS + index] += int(seconds * 1e6)
        row[_HISTOGRAM + index * _BUCKET_COUNT + bisect_left(_BUCKETS_S, seconds)] += 1
        if sent:
            row[_SENT] += sent
        if received:
            row[_RECEIVED] += received

    def count_failure(self) -> None:
        """Count a request that ended in an unforeseen exception."""
        self._add("failures", 1)

    def count_connection(self, change: int) -> None:
        """Count a connection that opened (1) or closed (-1)."""
        self._row[_GAUGE] += change
        if change > 0:
            self._add("connections_opened", 1)

    def set_usage(self, usage: StoreUsage) -> None:
        """Publish the store's space for the supervisor, which does not open the store."""
        for index, name in enumerate(_GAUGES[1:], start=1):
            self._row[_GAUGE + index] = getattr(usage, name)

    def _add(self, name: str, amount: int) -> None:
        self._row[_TOTAL + _TOTALS.index(name)] += amount


class SharedMetrics:
    """All rows, for the supervisor."""

    def __init__(self, fd: int) -> None:
        self._rows = _map(fd)
        self._workers = len(self._rows) // ROW

    def render(self) -> str:
        """Return the Prometheus text format."""
        sums = [sum(self._rows[index::ROW]) for index in range(ROW)]
        lines = list(_request_lines(sums))
        for index, name in enumerate(_TOTALS):
            lines += _family(f"kvfs_gateway_{name}_total", "counter", [("", sums[_TOTAL + index])])
        connections = sums[_GAUGE]
        lines += _family("kvfs_gateway_connections", "gauge", [("", connections)])
        for index, name in enumerate(_GAUGES[1:], start=1):
            value = max(self._rows[_GAUGE + index :: ROW])
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += _family(f"kvfs_store_{name}", kind, [("", value)])
        lines += _family("kvfs_gateway_workers", "gauge", [("", self._workers)])
        return "\n".join(lines) + "\n"


def _request_lines(sums: list[int]) -> Iterator[str]:
    counts = [
        (f'{{operation="{name}",status="{_CLASSES[k]}"}}', sums[index * _CLASS_COUNT + k])
        for index, name in enumerate(_OPERATIONS)
        for k in range(_CLASS_COUNT)
        if sums[index * _CLASS_COUNT + k]
    ]
    yield from _family("kvfs_gateway_requests_total", "counter", counts)
    yield "# TYPE kvfs_gateway_request_seconds histogram"
    for index, name in enumerate(_OPERATIONS):
        start = _HISTOGRAM + index * _BUCKET_COUNT
        row = sums[start : start + _BUCKET_COUNT]
        if not sum(row):
            continue
        label = f'operation="{name}"'
        limits = [*(str(limit) for limit in _BUCKETS_S), "+Inf"]
        for k, limit in enumerate(limits):
            total = sum(row[: k + 1])
            yield f'kvfs_gateway_request_seconds_bucket{{{label},le="{limit}"}} {total}'
        seconds = sums[_MICROSECONDS + index] / 1e6
        yield f"kvfs_gateway_request_seconds_sum{{{label}}} {seconds}"
        yield f"kvfs_gateway_request_seconds_count{{{label}}} {sum(row)}"


def _family(name: str, kind: str, samples: list[tuple[str, int]]) -> list[str]:
    return [f"# TYPE {name} {kind}", *(f"{name}{labels} {value}" for labels, value in samples)]
