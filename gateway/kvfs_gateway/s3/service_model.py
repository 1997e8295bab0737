"""botocore's description of S3, loaded once: the source of routes, XML shapes and parameters.

Owns the file (`botocore/data/s3/<version>/service-2.json`) and the few words of it that are needed
here. botocore itself is not imported: with all it brings that takes 0.1 s of every worker's start,
and the file alone 0.02 s. A test compares what is read here with what botocore reads.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

_TRAITS = {
    "locationName": "name",
    "location": "location",
    "flattened": "flattened",
    "payload": "payload",
    "xmlAttribute": "xmlAttribute",
    "xmlNamespace": "xmlNamespace",
}
"""Which of the file's words say how a member is written, and what `serialization` calls them."""


class Shape:
    """A type and how it is written where it stands: as a member, an element, or a whole body."""

    def __init__(self, model: ServiceModel, name: str, raw: Mapping[str, Any]) -> None:
        """raw: the shape's description, with the words of the member that refers to it."""
        self._model = model
        self._raw = raw
        self.name = name
        self.type_name = str(raw["type"])
        self.serialization: Mapping[str, Any] = {
            ours: raw[theirs] for theirs, ours in _TRAITS.items() if theirs in raw
        }


class StructureShape(Shape):
    """A structure."""

    @functools.cached_property
    def members(self) -> Mapping[str, Shape]:
        """The shapes of its members, by name."""
        found = self._raw.get("members", {})
        return {name: self._model.shape(reference) for name, reference in found.items()}

    @property
    def required_members(self) -> list[str]:
        """The members that must be there."""
        return list(self._raw.get("required", ()))


class ListShape(Shape):
    """A list."""

    @functools.cached_property
    def member(self) -> Shape:
        """The shape of its items."""
        return self._model.shape(self._raw["member"])


_CLASSES = {"structure": StructureShape, "list": ListShape}


class OperationModel:
    """One operation."""

    def __init__(self, model: ServiceModel, raw: Mapping[str, Any]) -> None:
        self._model = model
        self._raw = raw
        self.method = str(raw["http"]["method"])
        self.request_uri = str(raw["http"]["requestUri"])

    @functools.cached_property
    def input_shape(self) -> StructureShape | None:
        """What a request carries."""
        return self._structure("input")

    @functools.cached_property
    def output_shape(self) -> StructureShape | None:
        """What an answer carries."""
        return self._structure("output")

    def _structure(self, name: str) -> StructureShape | None:
        reference = self._raw.get(name)
        return cast("StructureShape", self._model.shape(reference)) if reference else None


class ServiceModel:
    """All operations and shapes."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._shapes = raw["shapes"]
        self._operations = raw["operations"]

    @property
    def operation_names(self) -> list[str]:
        """Every operation's name."""
        return list(self._operations)

    @functools.cache  # noqa: B019  the one model lives as long as the process
    def operation_model(self, name: str) -> OperationModel:
        """Return one operation's model."""
        return OperationModel(self, self._operations[name])

    def shape(self, reference: Mapping[str, Any]) -> Shape:
        """Return the shape a member refers to; what the reference says goes first."""
        name = reference["shape"]
        raw = {**self._shapes[name], **reference}
        return _CLASSES.get(raw["type"], Shape)(self, name, raw)


@functools.cache
def s3_service() -> ServiceModel:
    """Return S3's service model."""
    package = importlib.util.find_spec("botocore")
    assert package is not None, "the gateway is installed with botocore"
    versions = sorted(Path(package.origin or "").parent.joinpath("data", "s3").iterdir())
    packed = versions[-1] / "service-2.json.gz"
    if packed.exists():
        return ServiceModel(json.loads(gzip.decompress(packed.read_bytes())))
    return ServiceModel(json.loads((versions[-1] / "service-2.json").read_bytes()))


def s3_operation(name: str) -> OperationModel:
    """Return one operation's model."""
    return s3_service().operation_model(name)
