"""The gateway's tables are total, and answers cannot be broken out of."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies as st

import kvfs.errors
from kvfs.model import StoreUsage
from kvfs_gateway.s3.errors import S3Error
from kvfs_gateway.s3.operations import Operation
from kvfs_gateway.server.dispatch import HANDLERS
from kvfs_gateway.server.error_map import CODES, to_s3_error
from kvfs_gateway.server.metrics import SharedMetrics, WorkerMetrics, create_shared
from kvfs_gateway.server.response import Response, clean, render_head


def error_classes() -> list[type[kvfs.errors.KvfsError]]:
    return [
        value
        for value in vars(kvfs.errors).values()
        if isinstance(value, type) and issubclass(value, kvfs.errors.KvfsError)
    ]


def test_every_error_of_the_store_has_its_own_row() -> None:
    missing = [error.__name__ for error in error_classes() if error not in CODES]
    assert not missing
    for error in error_classes():
        assert isinstance(to_s3_error(error("a sentence")), S3Error)


def test_an_error_without_a_row_takes_its_parents() -> None:
    class Odd(kvfs.errors.NamespaceNotFound):
        pass

    assert to_s3_error(Odd("x")).code == "NoSuchBucket"


def test_every_routed_operation_has_a_handler() -> None:
    assert set(HANDLERS) == set(Operation)


@hypothesis.given(st.text())
def test_no_header_value_breaks_out_of_its_line(value: str) -> None:
    response = Response(200, [("x-amz-meta-a", clean(value))])
    head = render_head(response, date="d", request_id="1", keeps_alive=True, is_http_1_0=False)
    assert head.count(b"\r\n") == 7
    assert head.count(b"\n") == 7
    assert head.count(b"\r") == 7


def test_metrics_of_all_workers_are_summed() -> None:
    fd = create_shared(2)
    shared = SharedMetrics(fd)
    for worker in range(2):
        metrics = WorkerMetrics(fd, worker)
        metrics.count_request(Operation.HEAD_OBJECT, 404, 100, 7, 0.002)
        metrics.count_connection(1)
        metrics.set_usage(StoreUsage(1, 2, 3, 4, 5, 6, hits_total=7, misses_total=8))
    text = shared.render()
    assert 'kvfs_gateway_requests_total{operation="HeadObject",status="4xx"} 2' in text
    assert "kvfs_gateway_sent_bytes_total 200" in text
    assert "kvfs_gateway_received_bytes_total 14" in text
    assert "kvfs_gateway_connections 2" in text
    assert "# TYPE kvfs_store_hits_total counter\nkvfs_store_hits_total 7\n" in text
    assert "kvfs_store_object_count 5\n" in text
    assert "kvfs_store_misses_total 8\n" in text
    assert 'kvfs_gateway_request_seconds_bucket{operation="HeadObject",le="0.005"} 2' in text
