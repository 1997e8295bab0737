"""Apache OpenDAL."""

from __future__ import annotations

import asyncio

import opendal
from operations import PART_BYTES, Client, Door, main


class OpenDal(Client):
    def __init__(self, door: Door) -> None:
        super().__init__(door)
        self.operator = opendal.Operator(
            "s3",
            bucket=door.bucket,
            endpoint=door.url,
            access_key_id=door.access_key,
            secret_access_key=door.secret_key,
            region="us-east-1",
            checksum_algorithm="crc32c",
        )

    def put(self, key: str, data: bytes) -> None:
        self.operator.write(key, data)

    def put_parts(self, key: str, data: bytes) -> None:
        self.operator.write(key, data, chunk=PART_BYTES)

    def get(self, key: str) -> bytes:
        return bytes(self.operator.read(key))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        with self.operator.open(key, "rb") as file:
            file.seek(offset)
            found = b""
            while len(found) < length and (piece := file.read(length - len(found))):
                found += piece  # one read brings what one buffer holds
            return found

    def size(self, key: str) -> int:
        return self.operator.stat(key).content_length

    def names(self, prefix: str) -> list[str]:
        return [entry.path for entry in self.operator.scan(prefix)]

    def copy(self, source: str, target: str) -> None:
        self.operator.copy(source, target)

    def delete(self, key: str) -> None:
        self.operator.delete(key)

    def delete_all(self, prefix: str) -> None:
        self.operator.remove_all(prefix)

    def put_once(self, key: str, data: bytes) -> None:
        self.operator.write(key, data, if_not_exists=True)

    def presign(self, key: str) -> str:
        async def sign() -> str:
            return (await self.operator.to_async_operator().presign_read(key, 600)).url

        return asyncio.run(sign())


if __name__ == "__main__":
    main(OpenDal)
