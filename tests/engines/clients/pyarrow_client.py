"""pyarrow's S3FileSystem: aws-sdk-cpp; every stream is an upload by parts."""

from __future__ import annotations

from operations import Client, Door, main
from pyarrow import fs


class PyArrow(Client):
    def __init__(self, door: Door) -> None:
        super().__init__(door)
        self.fs = fs.S3FileSystem(
            access_key=door.access_key,
            secret_key=door.secret_key,
            endpoint_override=door.virtual_address if door.option else door.address,
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
            force_virtual_addressing=bool(door.option),
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        )

    def path(self, key: str) -> str:
        return f"{self.door.bucket}/{key}"

    def make_bucket(self) -> None:
        self.fs.create_dir(self.door.bucket)

    def put(self, key: str, data: bytes) -> None:
        with self.fs.open_output_stream(self.path(key)) as stream:
            stream.write(data)

    def put_parts(self, key: str, data: bytes) -> None:
        self.put(key, data)

    def get(self, key: str) -> bytes:
        with self.fs.open_input_stream(self.path(key)) as stream:
            return bytes(stream.read())

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        with self.fs.open_input_file(self.path(key)) as file:
            return bytes(file.read_at(length, offset))

    def size(self, key: str) -> int:
        return int(self.fs.get_file_info(self.path(key)).size)

    def names(self, prefix: str) -> list[str]:
        found = self.fs.get_file_info(fs.FileSelector(self.path(prefix), recursive=True))
        return sorted(info.path.partition("/")[2] for info in found if info.is_file)

    def copy(self, source: str, target: str) -> None:
        self.fs.copy_file(self.path(source), self.path(target))

    def delete(self, key: str) -> None:
        self.fs.delete_file(self.path(key))

    def delete_all(self, prefix: str) -> None:
        self.fs.delete_dir(self.path(prefix))


if __name__ == "__main__":
    main(PyArrow)
