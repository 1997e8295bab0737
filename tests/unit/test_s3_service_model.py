"""The service model read here against botocore's own reading of it."""

from __future__ import annotations

import botocore.model
import pytest
from botocore.loaders import Loader

from kvfs_gateway.s3.service_model import ListShape, Shape, StructureShape, s3_service

THEIRS = botocore.model.ServiceModel(Loader().load_service_model("s3", "service-2"), "s3")
WORDS = ("name", "location", "flattened", "payload", "xmlAttribute", "xmlNamespace")
RETYPED = {"Expires"}
"""Shapes that botocore's extras file gives another type: headers, never part of a document."""


def test_the_operations_are_those_of_botocore() -> None:
    assert set(s3_service().operation_names) == set(THEIRS.operation_names)


@pytest.mark.parametrize("name", THEIRS.operation_names)
def test_each_operation_is_read_as_botocore_reads_it(name: str) -> None:
    ours, theirs = s3_service().operation_model(name), THEIRS.operation_model(name)
    assert (ours.method, ours.request_uri) == (theirs.http["method"], theirs.http["requestUri"])
    for mine, other in (
        (ours.input_shape, theirs.input_shape),
        (ours.output_shape, theirs.output_shape),
    ):
        if other is None:
            assert mine is None
        else:
            assert mine is not None
            compare(mine, other, set())


def compare(ours: Shape, theirs: botocore.model.Shape, seen: set[str]) -> None:
    assert ours.name == theirs.name
    if ours.name not in RETYPED:
        assert ours.type_name == theirs.type_name
    wanted = {word: theirs.serialization[word] for word in WORDS if word in theirs.serialization}
    assert ours.serialization == wanted
    if ours.name in seen:
        return
    seen.add(ours.name)
    if isinstance(theirs, botocore.model.StructureShape):
        assert isinstance(ours, StructureShape)
        assert ours.required_members == list(theirs.required_members)
        assert set(ours.members) == set(theirs.members)
        for name, member in theirs.members.items():
            compare(ours.members[name], member, seen)
    elif isinstance(theirs, botocore.model.ListShape):
        assert isinstance(ours, ListShape)
        compare(ours.member, theirs.member, seen)
