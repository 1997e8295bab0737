"""s3fs, the S3 of fsspec (pandas, dask): aiobotocore under a file system's methods."""

from __future__ import annotations

from operations import PART_BYTES, Client, Door, main
from s3fs import S3FileSystem


class S3fs(Client):
    def __init__(self, door: Door) -> None:
        super().__init__(door)
        self.fs = S3FileSystem(
            key=door.access_key,
            secret=door.secret_key,
            endpoint_url=door.url,
            client_kwargs={"region_name": "us-east-1"},
            skip_instance_cache=True,
            use_listings_cache=False,
        )

    def path(self, key: str) -> str:
        return f"{self.door.bucket}/{key}"

    def make_bucket(self) -> None:
        self.fs.mkdir(self.door.bucket)
        assert self.fs.exists(self.door.bucket)

    def put(self, key: str, data: bytes) -> None:
        self.fs.pipe_file(self.path(key), data)

    def put_parts(self, key: str, data: bytes) -> None:
        with self.fs.open(self.path(key), "wb", block_size=PART_BYTES) as file:
            for offset in range(0, len(data), PART_BYTES):  # one write would be one part
                file.write(data[offset : offset + PART_BYTES])

    def get(self, key: str) -> bytes:
        data: bytes = self.fs.cat_file(self.path(key))
        return data

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        data: bytes = self.fs.cat_file(self.path(key), start=offset, end=offset + length)
        return data

    def size(self, key: str) -> int:
        return int(self.fs.size(self.path(key)))

    def names(self, prefix: str) -> list[str]:
        found = self.fs.find(self.path(prefix))
        return [name.partition("/")[2] for name in found]

    def copy(self, source: str, target: str) -> None:
        self.fs.copy(self.path(source), self.path(target))

    def delete(self, key: str) -> None:
        self.fs.rm_file(self.path(key))

    def delete_all(self, prefix: str) -> None:
        self.fs.rm(self.path(prefix), recursive=True)

    def put_once(self, key: str, data: bytes) -> None:
        self.fs.pipe_file(self.path(key), data, mode="create")

    def presign(self, key: str) -> str:
        return str(self.fs.sign(self.path(key)))


if __name__ == "__main__":
    main(S3fs)
