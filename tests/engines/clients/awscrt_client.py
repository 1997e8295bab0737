"""The AWS common runtime from Python, as LMCache uses it: transfers by parts of 8 MiB in parallel.

The option is where it puts a checksum: `none` (LMCache), `header` or `trailer`.
"""

from __future__ import annotations

import urllib.parse
from io import BytesIO
from typing import Any

from awscrt import auth, http, io, s3
from operations import PART_BYTES, WAIT_SECONDS, Client, Door, main

LOCATIONS = {
    "header": s3.S3ChecksumLocation.HEADER,
    "trailer": s3.S3ChecksumLocation.TRAILER,
}


class AwsCrt(Client):
    def __init__(self, door: Door) -> None:
        super().__init__(door)
        group = io.EventLoopGroup(2)
        provider = auth.AwsCredentialsProvider.new_static(door.access_key, door.secret_key)
        self.client = s3.S3Client(
            bootstrap=io.ClientBootstrap(group, io.DefaultHostResolver(group)),
            region="us-east-1",
            tls_mode=s3.S3RequestTlsMode.DISABLED,
            signing_config=s3.create_default_s3_signing_config(
                region="us-east-1", credential_provider=provider
            ),
            part_size=PART_BYTES,
            multipart_upload_threshold=PART_BYTES + (1 << 20),
        )

    def ask(
        self,
        method: str,
        key: str,
        kind: s3.S3RequestType = s3.S3RequestType.DEFAULT,
        body: bytes | None = None,
        operation: str | None = None,
        **headers: str,
    ) -> tuple[bytes, dict[str, str]]:
        """Send one request; return the body and the headers that came."""
        sent = http.HttpHeaders([("host", self.door.address)])
        for name, value in headers.items():
            sent.add(name.replace("_", "-"), value)
        stream = None
        if body is not None:
            sent.add("content-length", str(len(body)))
            stream = BytesIO(body)
        got = bytearray()
        answered: dict[str, str] = {}

        def on_headers(status_code: int, headers: list[tuple[str, str]], **_: Any) -> None:
            answered.update({name.lower(): value for name, value in headers})

        def on_body(chunk: bytes, offset: int, **_: Any) -> None:
            end = offset + len(chunk)
            if len(got) < end:
                got.extend(bytes(end - len(got)))
            got[offset:end] = chunk

        path = f"/{self.door.bucket}/{urllib.parse.quote(key)}"
        request = self.client.make_request(
            request=http.HttpRequest(method, path, sent, stream),
            type=kind,
            operation_name=operation,
            on_headers=on_headers,
            on_body=on_body,
            checksum_config=self.checksums(kind),
        )
        try:
            request.finished_future.result(WAIT_SECONDS)
        except s3.S3ResponseError as error:
            raise OSError(f"{error.status_code}: {error}") from error
        return bytes(got), answered

    def checksums(self, kind: s3.S3RequestType) -> s3.S3ChecksumConfig | None:
        if kind is s3.S3RequestType.DEFAULT or self.door.option not in LOCATIONS:
            return None
        if kind is s3.S3RequestType.GET_OBJECT:
            return s3.S3ChecksumConfig(validate_response=True)
        return s3.S3ChecksumConfig(
            algorithm=s3.S3ChecksumAlgorithm.CRC32C, location=LOCATIONS[self.door.option]
        )

    def make_bucket(self) -> None:
        self.ask("PUT", "", operation="CreateBucket")

    def put(self, key: str, data: bytes) -> None:
        self.ask("PUT", key, s3.S3RequestType.PUT_OBJECT, data)

    def put_parts(self, key: str, data: bytes) -> None:
        self.put(key, data)  # more than a part: by parts

    def get(self, key: str) -> bytes:
        return self.ask("GET", key, s3.S3RequestType.GET_OBJECT)[0]

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        text = f"bytes={offset}-{offset + length - 1}"
        found = self.ask("GET", key, s3.S3RequestType.GET_OBJECT, range=text)[0]
        return found[offset:] if len(found) > length else found

    def size(self, key: str) -> int:
        return int(self.ask("HEAD", key, operation="HeadObject")[1]["content-length"])

    def copy(self, source: str, target: str) -> None:
        place = urllib.parse.quote(f"{self.door.bucket}/{source}")
        self.ask("PUT", target, operation="CopyObject", x_amz_copy_source=place)

    def put_once(self, key: str, data: bytes) -> None:
        self.ask("PUT", key, s3.S3RequestType.PUT_OBJECT, data, if_none_match="*")

    def delete(self, key: str) -> None:
        self.ask("DELETE", key, operation="DeleteObject")


if __name__ == "__main__":
    main(AwsCrt)
