"""What a limited credential may ask for: total, and shut where nothing opens it."""

from __future__ import annotations

import pytest

from kvfs_gateway.s3.operations import Operation
from kvfs_gateway.s3.permissions import RIGHTS, Right, permits

READING = ("Get", "Head", "List")


def test_every_operation_has_its_right() -> None:
    assert set(RIGHTS) == set(Operation)


@pytest.mark.parametrize("operation", Operation)
def test_what_a_read_only_credential_may_do_is_only_to_read(operation: Operation) -> None:
    is_reading = operation.value.startswith(READING)
    assert permits(operation, b"a", {b"a"}, is_read_only=True) is is_reading
    assert is_reading is (RIGHTS[operation] in (Right.READ, Right.LIST_BUCKETS))


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize("bucket", [b"b", b"A", b"a ", b"a/", b""])
def test_no_operation_reaches_another_bucket(operation: Operation, bucket: bytes) -> None:
    expected = operation is Operation.LIST_BUCKETS
    assert permits(operation, bucket, {b"a"}, is_read_only=False) is expected


@pytest.mark.parametrize("operation", Operation)
def test_in_its_own_bucket_only_the_bucket_itself_is_roots(operation: Operation) -> None:
    is_roots = operation in (Operation.CREATE_BUCKET, Operation.DELETE_BUCKET)
    assert permits(operation, b"a", {b"a"}, is_read_only=False) is not is_roots
