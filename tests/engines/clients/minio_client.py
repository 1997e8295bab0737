"""minio-py."""

from __future__ import annotations

import io

import minio
import minio.commonconfig
import minio.deleteobjects
from operations import PART_BYTES, Client, Door, main


class Minio(Client):
    def __init__(self, door: Door) -> None:
        super().__init__(door)
        self.client = minio.Minio(
            door.address, access_key=door.access_key, secret_key=door.secret_key, secure=False
        )

    def make_bucket(self) -> None:
        self.client.make_bucket(self.door.bucket)
        assert self.client.bucket_exists(self.door.bucket)

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(self.door.bucket, key, io.BytesIO(data), len(data))

    def put_parts(self, key: str, data: bytes) -> None:
        stream = io.BytesIO(data)
        self.client.put_object(self.door.bucket, key, stream, -1, part_size=PART_BYTES)

    def get(self, key: str) -> bytes:
        return self.get_range(key, 0, 0)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        answer = self.client.get_object(self.door.bucket, key, offset, length)
        try:
            return answer.read()
        finally:
            answer.close()
            answer.release_conn()

    def size(self, key: str) -> int:
        return self.client.stat_object(self.door.bucket, key).size or 0

    def names(self, prefix: str) -> list[str]:
        found = self.client.list_objects(self.door.bucket, prefix, recursive=True)
        return [item.object_name or "" for item in found]

    def copy(self, source: str, target: str) -> None:
        place = minio.commonconfig.CopySource(self.door.bucket, source)
        self.client.copy_object(self.door.bucket, target, place)

    def delete(self, key: str) -> None:
        self.client.remove_object(self.door.bucket, key)

    def delete_all(self, prefix: str) -> None:
        victims = [minio.deleteobjects.DeleteObject(name) for name in self.names(prefix)]
        assert not list(self.client.remove_objects(self.door.bucket, victims))

    def presign(self, key: str) -> str:
        return self.client.presigned_get_object(self.door.bucket, key)


if __name__ == "__main__":
    main(Minio)
