"""botocore's description of S3, loaded once: the source of routes, XML shapes and parameters.

Owns the loading. A model of 1 MB of JSON takes 90 ms to read, so it is read at import, before a
worker answers its first request.
"""

from __future__ import annotations

import functools

from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel


@functools.cache
def s3_service() -> ServiceModel:
    """Return S3's service model."""
    return ServiceModel(Loader().load_service_model("s3", "service-2"), "s3")


@functools.cache
def s3_operation(name: str) -> OperationModel:
    """Return one operation's model."""
    return s3_service().operation_model(name)
