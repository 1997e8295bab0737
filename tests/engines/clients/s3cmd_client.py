"""s3cmd, as Debian packages it."""

from __future__ import annotations

from command_line import file_of, new_file, run
from operations import Client, main


class S3cmd(Client):
    def s3cmd(self, *arguments: str) -> bytes:
        door = self.door
        command = [
            *("/usr/bin/s3cmd", "--config=/dev/null", "--no-ssl", "--no-progress"),
            *(f"--access_key={door.access_key}", f"--secret_key={door.secret_key}"),
            *(f"--host={door.address}", f"--host-bucket={door.address}", *arguments),
        ]
        return run(command, {})

    def url(self, key: str) -> str:
        return f"s3://{self.door.bucket}/{key}"

    def make_bucket(self) -> None:
        self.s3cmd("mb", f"s3://{self.door.bucket}")

    def put(self, key: str, data: bytes) -> None:
        self.s3cmd("put", file_of(self.door.scratch, data), self.url(key))

    def put_parts(self, key: str, data: bytes) -> None:
        source = file_of(self.door.scratch, data)
        self.s3cmd("put", "--multipart-chunk-size-mb=5", source, self.url(key))

    def get(self, key: str) -> bytes:
        path = new_file(self.door.scratch)
        self.s3cmd("get", self.url(key), str(path))
        return path.read_bytes()

    def size(self, key: str) -> int:
        lines = self.s3cmd("info", self.url(key)).decode().splitlines()
        return next(int(line.split()[-1]) for line in lines if "File size" in line)

    def names(self, prefix: str) -> list[str]:
        lines = self.s3cmd("ls", "--recursive", self.url(prefix)).decode().splitlines()
        return [line.partition(self.url(""))[2] for line in lines]

    def copy(self, source: str, target: str) -> None:
        self.s3cmd("cp", self.url(source), self.url(target))

    def delete(self, key: str) -> None:
        self.s3cmd("del", self.url(key))

    def delete_all(self, prefix: str) -> None:
        self.s3cmd("del", "--recursive", "--force", self.url(prefix))

    def presign(self, key: str) -> str:
        return self.s3cmd("signurl", self.url(key), "+600").decode().strip()


if __name__ == "__main__":
    main(S3cmd)
