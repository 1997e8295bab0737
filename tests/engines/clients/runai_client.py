"""runai-model-streamer: reads weights out of S3 into memory by aws-sdk-cpp, many ranges at once."""

from __future__ import annotations

import itertools
import os
import re

os.environ["RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING"] = "0"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"

from operations import LENGTHS, Client, Door, main
from runai_model_streamer.file_streamer import FileStreamer
from runai_model_streamer.file_streamer.requests_iterator import FileChunks
from runai_model_streamer.s3_utils.s3_utils import S3Credentials


class RunaiStreamer(Client):
    DENIED = MISSING = re.compile("File access error")

    def __init__(self, door: Door) -> None:
        super().__init__(door)
        self.credentials = S3Credentials(
            access_key_id=door.access_key,
            secret_access_key=door.secret_key,
            region_name="us-east-1",
            endpoint=door.url,
        )

    def url(self, key: str) -> str:
        return f"s3://{self.door.bucket}/{key}"

    def sizes(self, prefix: str) -> dict[str, int]:
        os.environ["AWS_ACCESS_KEY_ID"] = self.door.access_key
        os.environ["AWS_SECRET_ACCESS_KEY"] = self.door.secret_key
        os.environ["AWS_ENDPOINT_URL"] = self.door.url
        os.environ["AWS_REGION"] = "us-east-1"
        found = FileStreamer().list_files(self.url(prefix))
        return {path.removeprefix(self.url("")): size for path, size in found}

    def get(self, key: str) -> bytes:
        return self.get_range(key, 0, LENGTHS.get(key, 1))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Stream in four pieces, as a model's tensors would come."""
        ends = [length * n // 4 for n in range(5)]
        sizes = [end - begin for begin, end in itertools.pairwise(ends) if end > begin]
        with FileStreamer() as streamer:
            chunks = FileChunks.contiguous(0, self.url(key), offset, sizes)
            streamer.stream_files([chunks], self.credentials)
            found = {
                index: bytes(tensor.numpy().tobytes()) for _, index, tensor in streamer.get_chunks()
            }
        return b"".join(found[index] for index in range(len(sizes)))

    def size(self, key: str) -> int:
        return self.sizes(key)[key]

    def names(self, prefix: str) -> list[str]:
        return list(self.sizes(prefix))


if __name__ == "__main__":
    main(RunaiStreamer)
