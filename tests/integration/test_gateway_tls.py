"""TLS: boto3 over it, a certificate replaced while serving, and what is no TLS."""

from __future__ import annotations

import io
import os
import signal
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any, cast

import boto3
import pytest

from tests.integration.gateway_process import (
    ACCESS_KEY,
    ENGINE_BUCKET,
    SECRET_KEY,
    Gateway,
    S3Client,
    running_gateway,
)
from tests.integration.gateway_raw import connect

pytestmark = pytest.mark.s3


def make_certificate(directory: Path, name: str) -> None:
    """Write a self-signed certificate for 127.0.0.1 to cert.pem and key.pem."""
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def served_name(address: str) -> str:
    """Return the name in the certificate that a fresh connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with connect(address) as sock, context.wrap_socket(sock) as tls:
        shown = tls.getpeercert(binary_form=True)
    assert shown is not None
    text = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", "-subject"],
        input=shown,
        check=True,
        capture_output=True,
        timeout=60,
    ).stdout.decode()
    return text.rpartition("=")[2].strip()


def tls_arguments(directory: Path) -> list[str]:
    return ["--tls-cert", str(directory / "cert.pem"), "--tls-key", str(directory / "key.pem")]


def tls_client(gateway: Gateway, directory: Path) -> S3Client:
    return cast("Any", boto3.session.Session()).client(
        "s3",
        endpoint_url=f"https://{gateway.address}",
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        verify=str(directory / "cert.pem"),
    )


def test_every_checksum_travels_as_a_trailer_over_tls(tmp_path: Path) -> None:
    make_certificate(tmp_path, "first")
    arguments = tls_arguments(tmp_path)
    with running_gateway(tmp_path / "store", workers=1, arguments=arguments) as gateway:
        client = tls_client(gateway, tmp_path)
        trailers: list[str] = []

        def note(request: Any, **_: object) -> None:  # noqa: ANN401
            trailers.append(request.headers["X-Amz-Trailer"].decode())

        client.meta.events.register("before-send.s3.PutObject", note)
        data = os.urandom(300_000)
        for algorithm in ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"):
            place = {"Bucket": ENGINE_BUCKET, "Key": algorithm}
            put = client.put_object(**place, Body=io.BytesIO(data), ChecksumAlgorithm=algorithm)
            assert trailers.pop() == f"x-amz-checksum-{algorithm.lower()}"
            got = client.get_object(**place, ChecksumMode="ENABLED")
            assert got["Body"].read() == data
            assert got[f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"]


def test_objects_travel_over_tls_and_certificates_are_replaced(tmp_path: Path) -> None:
    make_certificate(tmp_path, "first")
    arguments = tls_arguments(tmp_path)
    with running_gateway(tmp_path / "store", workers=1, arguments=arguments) as gateway:
        client = tls_client(gateway, tmp_path)
        data = os.urandom(9 << 20)
        client.put_object(Bucket=ENGINE_BUCKET, Key="k", Body=data)
        assert client.get_object(Bucket=ENGINE_BUCKET, Key="k")["Body"].read() == data
        part = client.get_object(Bucket=ENGINE_BUCKET, Key="k", Range="bytes=5-1000004")
        assert part["Body"].read() == data[5:1_000_005]

        with connect(gateway.address) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1000):
                pass
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with connect(gateway.address) as sock, pytest.raises((ssl.SSLError, ConnectionError)):
            old.wrap_socket(sock)

        assert served_name(gateway.address) == "first"
        make_certificate(tmp_path, "second")
        gateway.process.send_signal(signal.SIGHUP)
        pause = threading.Event()
        for _ in range(200):
            if served_name(gateway.address) == "second":
                break
            pause.wait(0.05)
        assert served_name(gateway.address) == "second"
        head = client.head_object(Bucket=ENGINE_BUCKET, Key="k")
        assert head["ContentLength"] == len(data)
