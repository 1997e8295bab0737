"""boto3, which every engine's S3 backend in Python is made of; the option is its checksum mode.

`when_supported` and `when_required` are botocore's own words; `CRC32` ... `SHA256` name the
algorithm that each put asks for; `virtual host` puts the bucket there.
"""

from __future__ import annotations

from typing import Any

import boto3
import botocore.config
from operations import PART_BYTES, Client, Door, main

MODES = ("when_supported", "when_required")


class Boto3(Client):
    def __init__(self, door: Door) -> None:
        super().__init__(door)
        mode = door.option if door.option in MODES else "when_supported"
        is_virtual = door.option == "virtual host"
        is_algorithm = door.option.isupper()
        self.extra = {"ChecksumAlgorithm": door.option} if is_algorithm else {}
        self.s3: Any = boto3.client(
            "s3",
            endpoint_url=f"http://{door.virtual_address}" if is_virtual else door.url,
            region_name="us-east-1",
            aws_access_key_id=door.access_key,
            aws_secret_access_key=door.secret_key,
            config=botocore.config.Config(
                request_checksum_calculation=mode,
                response_checksum_validation=mode,
                retries={"max_attempts": 1},
                s3={"addressing_style": "virtual" if is_virtual else "path"},
            ),
        )

    def of(self, key: str) -> dict[str, str]:
        return {"Bucket": self.door.bucket, "Key": key}

    def make_bucket(self) -> None:
        self.s3.create_bucket(Bucket=self.door.bucket)
        self.s3.head_bucket(Bucket=self.door.bucket)

    def put(self, key: str, data: bytes) -> None:
        self.s3.put_object(**self.of(key), Body=data, **self.extra)

    def put_parts(self, key: str, data: bytes) -> None:
        upload = self.s3.create_multipart_upload(**self.of(key), **self.extra)["UploadId"]
        parts = []
        for number, offset in enumerate(range(0, len(data), PART_BYTES), 1):
            answer = self.s3.upload_part(
                **self.of(key),
                **self.extra,
                UploadId=upload,
                PartNumber=number,
                Body=data[offset : offset + PART_BYTES],
            )
            kept = {k: v for k, v in answer.items() if k == "ETag" or k.startswith("Checksum")}
            parts.append({**kept, "PartNumber": number})
        listed = self.s3.list_parts(**self.of(key), UploadId=upload)["Parts"]
        assert [part["ETag"] for part in listed] == [part["ETag"] for part in parts]
        self.s3.complete_multipart_upload(
            **self.of(key), UploadId=upload, MultipartUpload={"Parts": parts}
        )

    def get(self, key: str) -> bytes:
        data: bytes = self.s3.get_object(**self.of(key))["Body"].read()
        return data

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        text = f"bytes={offset}-{offset + length - 1}"
        data: bytes = self.s3.get_object(**self.of(key), Range=text)["Body"].read()
        return data

    def size(self, key: str) -> int:
        return int(self.s3.head_object(**self.of(key))["ContentLength"])

    def names(self, prefix: str) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(
            Bucket=self.door.bucket, Prefix=prefix
        )
        return [item["Key"] for page in pages for item in page["Contents"]]

    def copy(self, source: str, target: str) -> None:
        self.s3.copy_object(**self.of(target), CopySource=self.of(source), **self.extra)

    def delete(self, key: str) -> None:
        self.s3.delete_object(**self.of(key))

    def delete_all(self, prefix: str) -> None:
        victims = [{"Key": name} for name in self.names(prefix)]
        answer = self.s3.delete_objects(Bucket=self.door.bucket, Delete={"Objects": victims})
        assert len(answer["Deleted"]) == len(victims)

    def put_once(self, key: str, data: bytes) -> None:
        self.s3.put_object(**self.of(key), Body=data, IfNoneMatch="*", **self.extra)

    def presign(self, key: str) -> str:
        return str(self.s3.generate_presigned_url("get_object", self.of(key)))


if __name__ == "__main__":
    main(Boto3)
