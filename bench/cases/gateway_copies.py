"""UploadPartCopy of 64 MiB: the worker's CPU, beside reading and writing the bytes in Python.

The floor is what a copy through memory takes: 1 MiB read, summed and written at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from bench.cases.gateway import process_seconds
from bench.report import Context, Measurement
from kvfs_gateway.s3.checksums import Algorithm, new_hasher
from tests.integration.gateway_process import ENGINE_BUCKET, running_gateway

MIB = 1 << 20
PART = 64 * MIB
ROUNDS, COPIES = 5, 8
"""A tick of /proc is 10 ms, so each sample is several copies."""


def bench_gateway_copies__part_64MiB(context: Context) -> Iterator[Measurement]:
    rounds = 2 if context.quick else ROUNDS
    samples, floors = [], []
    with running_gateway(context.directory / "store", workers=1) as gateway:
        client, (worker,) = gateway.client(), gateway.worker_pids()
        place = {"Bucket": ENGINE_BUCKET, "Key": "copy"}
        client.put_object(Bucket=ENGINE_BUCKET, Key="source", Body=os.urandom(PART))
        source = f"{ENGINE_BUCKET}/source"
        for _ in range(rounds):
            upload = client.create_multipart_upload(**place)["UploadId"]
            before = process_seconds(worker)
            for number in range(1, COPIES + 1):
                client.upload_part_copy(
                    **place, UploadId=upload, PartNumber=number, CopySource=source
                )
            samples.append((process_seconds(worker) - before) * 1000 / COPIES)
            client.abort_multipart_upload(**place, UploadId=upload)
            floors.append(_through_memory_ms(context.directory))
    yield Measurement("CPU ms", samples, {}, floors, "read, sum and write in 1 MiB")


def _through_memory_ms(directory: Path) -> float:
    source, target = directory / "source", directory / "target"
    source.write_bytes(os.urandom(PART))
    before = process_seconds(os.getpid())
    for _ in range(COPIES):
        hasher = new_hasher(Algorithm.CRC64NVME)
        with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
            while piece := reader.read(MIB):
                hasher.update(memoryview(piece))
                writer.write(piece)
        target.unlink()
    return (process_seconds(os.getpid()) - before) * 1000 / COPIES
