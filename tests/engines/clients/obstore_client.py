"""obstore: the object_store of Rust (arrow, delta) in Python."""

from __future__ import annotations

import datetime

import obstore
from obstore.store import S3Store
from operations import PART_BYTES, Client, Door, main


class Obstore(Client):
    def __init__(self, door: Door) -> None:
        super().__init__(door)
        self.store = S3Store(
            door.bucket,
            endpoint=door.url,
            access_key_id=door.access_key,
            secret_access_key=door.secret_key,
            region="us-east-1",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
            checksum_algorithm="SHA256",
        )

    def put(self, key: str, data: bytes) -> None:
        obstore.put(self.store, key, data)

    def put_parts(self, key: str, data: bytes) -> None:
        obstore.put(self.store, key, data, use_multipart=True, chunk_size=PART_BYTES)

    def get(self, key: str) -> bytes:
        return bytes(obstore.get(self.store, key).bytes())

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        return bytes(obstore.get_range(self.store, key, start=offset, length=length))

    def size(self, key: str) -> int:
        return obstore.head(self.store, key)["size"]

    def names(self, prefix: str) -> list[str]:
        return [meta["path"] for meta in obstore.list(self.store, prefix).collect()]

    def copy(self, source: str, target: str) -> None:
        obstore.copy(self.store, source, target)

    def delete(self, key: str) -> None:
        obstore.delete(self.store, key)

    def delete_all(self, prefix: str) -> None:
        obstore.delete(self.store, self.names(prefix))

    def put_once(self, key: str, data: bytes) -> None:
        obstore.put(self.store, key, data, mode="create")

    def presign(self, key: str) -> str:
        return obstore.sign(self.store, "GET", key, datetime.timedelta(minutes=10))


if __name__ == "__main__":
    main(Obstore)
