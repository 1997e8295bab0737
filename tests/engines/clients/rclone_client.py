"""rclone, as Debian packages it."""

from __future__ import annotations

import json

from command_line import file_of, new_file, run
from operations import Client, Door, main


class Rclone(Client):
    def __init__(self, door: Door) -> None:
        super().__init__(door)
        self.settings = {
            "RCLONE_CONFIG": "/dev/null",
            "RCLONE_RETRIES": "1",
            "RCLONE_LOW_LEVEL_RETRIES": "1",
            "RCLONE_CONFIG_DOOR_TYPE": "s3",
            "RCLONE_CONFIG_DOOR_PROVIDER": "Other",
            "RCLONE_CONFIG_DOOR_ACCESS_KEY_ID": door.access_key,
            "RCLONE_CONFIG_DOOR_SECRET_ACCESS_KEY": door.secret_key,
            "RCLONE_CONFIG_DOOR_REGION": "us-east-1",
            "RCLONE_CONFIG_DOOR_ENDPOINT": door.url,
        }

    def rclone(self, *arguments: str) -> bytes:
        return run(["/usr/bin/rclone", *arguments], self.settings)

    def place(self, key: str) -> str:
        return f"door:{self.door.bucket}/{key}"

    def make_bucket(self) -> None:
        self.rclone("mkdir", f"door:{self.door.bucket}")

    def put(self, key: str, data: bytes) -> None:
        self.rclone("copyto", file_of(self.door.scratch, data), self.place(key))

    def put_parts(self, key: str, data: bytes) -> None:
        parts = ("--s3-upload-cutoff=5M", "--s3-chunk-size=5M")
        self.rclone("copyto", *parts, file_of(self.door.scratch, data), self.place(key))

    def get(self, key: str) -> bytes:
        path = new_file(self.door.scratch)  # `cat` of a missing key is empty, and no error
        self.rclone("copyto", self.place(key), str(path))
        return path.read_bytes()

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        return self.rclone("cat", f"--offset={offset}", f"--count={length}", self.place(key))

    def size(self, key: str) -> int:
        return int(json.loads(self.rclone("lsjson", "--stat", self.place(key)))["Size"])

    def names(self, prefix: str) -> list[str]:
        found = self.rclone("lsf", "--recursive", "--files-only", self.place(prefix))
        # By directory, not by key: the order is rclone's own.
        return sorted(prefix + name for name in found.decode().splitlines())

    def copy(self, source: str, target: str) -> None:
        self.rclone("copyto", self.place(source), self.place(target))

    def delete(self, key: str) -> None:
        self.rclone("deletefile", self.place(key))

    def delete_all(self, prefix: str) -> None:
        self.rclone("delete", self.place(prefix))

    def presign(self, key: str) -> str:
        return self.rclone("link", "--expire=10m", self.place(key)).decode().strip()


if __name__ == "__main__":
    main(Rclone)
