"""The AWS command line, version 1: `aws s3` where it has a command, else `aws s3api`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from command_line import file_of, new_file, run
from operations import Client, Door, main

PARTED = "[default]\ns3 =\n  multipart_threshold = 5MB\n  multipart_chunksize = 5MB\n"


class AwsCli(Client):
    def __init__(self, door: Door) -> None:
        super().__init__(door)
        self.settings = {
            "AWS_ACCESS_KEY_ID": door.access_key,
            "AWS_SECRET_ACCESS_KEY": door.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def aws(self, *arguments: str, **settings: str) -> bytes:
        program = str(Path(sys.executable).with_name("aws"))
        command = [sys.executable, program, "--endpoint-url", self.door.url, *arguments]
        return run(command, self.settings | settings)

    def api(self, operation: str, *arguments: str) -> str:
        return self.aws("s3api", operation, "--bucket", self.door.bucket, *arguments).decode()

    def url(self, key: str) -> str:
        return f"s3://{self.door.bucket}/{key}"

    def make_bucket(self) -> None:
        self.aws("s3", "mb", f"s3://{self.door.bucket}")

    def put(self, key: str, data: bytes) -> None:
        self.aws("s3", "cp", "--no-progress", file_of(self.door.scratch, data), self.url(key))

    def put_parts(self, key: str, data: bytes) -> None:
        config = Path(self.door.scratch) / "config"
        config.write_text(PARTED)
        source = file_of(self.door.scratch, data)
        self.aws("s3", "cp", "--no-progress", source, self.url(key), AWS_CONFIG_FILE=str(config))

    def get(self, key: str) -> bytes:
        path = new_file(self.door.scratch)
        self.aws("s3", "cp", "--no-progress", self.url(key), str(path))
        return path.read_bytes()

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        path = new_file(self.door.scratch)
        text = f"bytes={offset}-{offset + length - 1}"
        self.api("get-object", "--key", key, "--range", text, str(path))
        return path.read_bytes()

    def size(self, key: str) -> int:
        return int(json.loads(self.api("head-object", "--key", key))["ContentLength"])

    def names(self, prefix: str) -> list[str]:
        answer = json.loads(self.api("list-objects-v2", "--prefix", prefix))
        return [item["Key"] for item in answer["Contents"]]

    def copy(self, source: str, target: str) -> None:
        self.aws("s3", "cp", "--no-progress", self.url(source), self.url(target))

    def delete(self, key: str) -> None:
        self.aws("s3", "rm", self.url(key))

    def delete_all(self, prefix: str) -> None:
        self.aws("s3", "rm", "--recursive", self.url(prefix))

    def put_once(self, key: str, data: bytes) -> None:
        source = file_of(self.door.scratch, data)
        self.api("put-object", "--key", key, "--body", source, "--if-none-match", "*")

    def presign(self, key: str) -> str:
        return self.aws("s3", "presign", self.url(key)).decode().strip()


if __name__ == "__main__":
    main(AwsCli)
