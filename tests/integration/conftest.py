"""One gateway for all tests of a module, a client of it, and a bucket for each test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests.integration.gateway_process import Gateway, S3Client, running_gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway") / "store") as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> S3Client:
    return gateway.client()


@pytest.fixture
def bucket(client: S3Client, request: pytest.FixtureRequest) -> str:
    name = "b-" + hashlib.sha1(request.node.nodeid.encode()).hexdigest()[:16]
    client.create_bucket(Bucket=name)
    return name
