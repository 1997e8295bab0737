"""Conditional writes and deletes: what the client demands holds at the moment of the change."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import botocore.exceptions
import pytest

from tests.integration.gateway_process import Gateway, S3Client

FAILED = ("PreconditionFailed", 412)


def code_of(call: Callable[..., object], **arguments: object) -> tuple[str, int] | None:
    """Return the error that a call ends with, None for success."""
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        return str(error.response["Error"]["Code"]), int(status)
    return None


def test_a_put_may_demand_that_the_object_is_not_this_one(client: S3Client, bucket: str) -> None:
    first = client.put_object(Bucket=bucket, Key="k", Body=b"1")["ETag"]
    again = {"Bucket": bucket, "Key": "k", "Body": b"2"}
    assert code_of(client.put_object, **again, IfNoneMatch=first) == FAILED
    assert code_of(client.put_object, **again, IfNoneMatch="another") is None
    assert code_of(client.put_object, **again, IfNoneMatch=first) is None
    assert code_of(client.put_object, Bucket=bucket, Key="absent", IfNoneMatch=first) is None


@pytest.mark.parametrize("condition", ["IfMatch", "IfMatchSize", "IfMatchLastModifiedTime"])
def test_a_delete_spares_what_is_not_as_demanded(
    client: S3Client, bucket: str, condition: str
) -> None:
    wrong: dict[str, object] = {
        "IfMatch": '"another"',
        "IfMatchSize": 4,
        "IfMatchLastModifiedTime": datetime.datetime(2015, 1, 1, tzinfo=datetime.UTC),
    }
    client.put_object(Bucket=bucket, Key="k", Body=b"123")
    head = client.head_object(Bucket=bucket, Key="k")
    right: dict[str, object] = {
        "IfMatch": head["ETag"],
        "IfMatchSize": 3,
        "IfMatchLastModifiedTime": head["LastModified"],
    }
    place = {"Bucket": bucket, "Key": "k"}
    assert code_of(client.delete_object, **place, **{condition: wrong[condition]}) == FAILED
    assert client.head_object(**place)["ETag"] == head["ETag"]
    assert code_of(client.delete_object, **place, **{condition: right[condition]}) is None
    assert code_of(client.head_object, **place) == ("404", 404)
    for value in (wrong[condition], right[condition]):  # nothing there is success
        assert code_of(client.delete_object, **place, **{condition: value}) is None


def test_each_key_of_a_list_has_conditions_of_its_own(client: S3Client, bucket: str) -> None:
    etags = {
        key: client.put_object(Bucket=bucket, Key=key, Body=key.encode())["ETag"] for key in "abcd"
    }
    listed = [
        {"Key": "a", "ETag": etags["a"]},
        {"Key": "b", "ETag": etags["a"]},
        {"Key": "c", "Size": 2},
        {"Key": "d", "LastModifiedTime": datetime.datetime(2015, 1, 1, tzinfo=datetime.UTC)},
        {"Key": "absent", "ETag": etags["a"]},
    ]
    answer = client.delete_objects(Bucket=bucket, Delete={"Objects": listed})
    assert [item["Key"] for item in answer["Deleted"]] == ["a", "absent"]
    refused = [(item["Key"], item["Code"]) for item in answer["Errors"]]
    assert refused == [(key, "PreconditionFailed") for key in "bcd"]
    left = client.list_objects_v2(Bucket=bucket)["Contents"]
    assert [item["Key"] for item in left] == ["b", "c", "d"]


def test_a_conditional_delete_never_removes_what_replaced_the_object(
    gateway: Gateway, bucket: str
) -> None:
    clients = [gateway.client() for _ in range(2)]  # connections of their own, maybe two workers
    place = {"Bucket": bucket, "Key": "k"}
    for number in range(40):
        old = clients[0].put_object(**place, Body=b"old %d" % number)["ETag"]
        together = threading.Barrier(2)

        def replace(start: threading.Barrier = together) -> None:
            start.wait(10)
            clients[0].put_object(**place, Body=b"new")

        def delete(start: threading.Barrier = together, etag: str = old) -> None:
            start.wait(10)
            code_of(clients[1].delete_object, **place, IfMatch=etag)

        with ThreadPoolExecutor(2) as pool:
            for task in [pool.submit(replace), pool.submit(delete)]:
                task.result(30)
        assert clients[0].get_object(**place)["Body"].read() == b"new"


def test_swaps_by_etag_lose_no_update(gateway: Gateway, bucket: str) -> None:
    gateway.client().put_object(Bucket=bucket, Key="n", Body=b"0")

    def count_up(client: S3Client) -> None:
        done = 0
        for _ in range(2_000):
            now = client.get_object(Bucket=bucket, Key="n")
            body = b"%d" % (int(now["Body"].read()) + 1)
            put = code_of(client.put_object, Bucket=bucket, Key="n", Body=body, IfMatch=now["ETag"])
            done += put is None
            if done == 10:
                return
        raise AssertionError("an update was never let through")

    with ThreadPoolExecutor(4) as pool:
        for task in [pool.submit(count_up, gateway.client()) for _ in range(4)]:
            task.result(60)
    assert gateway.client().get_object(Bucket=bucket, Key="n")["Body"].read() == b"40"
