"""s3torchconnector: PyTorch's checkpoints and datasets over mountpoint-s3's client."""

from __future__ import annotations

import os

from operations import Client, Door, main
from s3torchconnector import S3ClientConfig, S3MapDataset
from s3torchconnector._s3client import S3Client


class S3TorchConnector(Client):
    def __init__(self, door: Door) -> None:
        super().__init__(door)
        os.environ["AWS_ACCESS_KEY_ID"] = door.access_key
        os.environ["AWS_SECRET_ACCESS_KEY"] = door.secret_key
        self.config = S3ClientConfig(force_path_style=True, part_size=5 << 20, max_attempts=1)
        self.client = S3Client("us-east-1", endpoint=door.url, s3client_config=self.config)

    def put(self, key: str, data: bytes) -> None:
        with self.client.put_object(self.door.bucket, key) as writer:
            writer.write(data)

    def put_parts(self, key: str, data: bytes) -> None:
        self.put(key, data)

    def get(self, key: str) -> bytes:
        return self.client.get_object(self.door.bucket, key).read()

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        reader = self.client.get_object(self.door.bucket, key)
        reader.seek(offset)
        return reader.read(length)

    def size(self, key: str) -> int:
        return int(self.client.head_object(self.door.bucket, key).size)

    def names(self, prefix: str) -> list[str]:
        dataset = S3MapDataset.from_prefix(
            f"s3://{self.door.bucket}/{prefix}",
            region="us-east-1",
            endpoint=self.door.url,
            s3client_config=self.config,
            transform=lambda reader: reader.key,
        )
        return [dataset[number] for number in range(len(dataset))]

    def copy(self, source: str, target: str) -> None:
        self.client.copy_object(self.door.bucket, source, self.door.bucket, target)

    def delete(self, key: str) -> None:
        self.client.delete_object(self.door.bucket, key)


if __name__ == "__main__":
    main(S3TorchConnector)
