"""Workers under a supervisor: killed, drained, reloaded, and told apart by nobody."""

from __future__ import annotations

import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from kvfs.clock import SystemClock
from kvfs.open_store import init_store
from kvfs_gateway.main import main
from tests.integration.gateway_process import ENGINE_BUCKET, running_gateway
from tests.integration.gateway_raw import connect, one, signed

pytestmark = pytest.mark.s3

WAIT_SECONDS = 20


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait, bounded, for something another process does."""
    clock = SystemClock()
    end = clock.monotonic_ns() + WAIT_SECONDS * 10**9
    pause = threading.Event()
    while not holds():
        assert clock.monotonic_ns() < end, "it did not happen in time"
        pause.wait(0.02)


def fetch(address: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def test_a_killed_worker_is_replaced_and_acknowledged_writes_stay(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "store", workers=2) as gateway:
        client = gateway.client(retries={"max_attempts": 5})
        for number in range(4):
            key = f"k{number}"
            client.put_object(Bucket=ENGINE_BUCKET, Key=key, Body=key.encode())
            before = gateway.worker_pids()
            assert len(before) == 2
            os.kill(before[0], signal.SIGKILL)
            wait_until(lambda: len(set(gateway.worker_pids()) - set(before)) == 1)  # noqa: B023
            # One that is killed before it runs is never counted: let each come up.
            started = f"kvfs_gateway_starts_total {3 + number}\n"
            wait_until(lambda: started in fetch(gateway.admin_address, "/metrics"))  # noqa: B023
        for number in range(4):
            key = f"k{number}"
            got = client.get_object(Bucket=ENGINE_BUCKET, Key=key)
            assert got["Body"].read() == key.encode()


def test_connections_wait_while_the_only_worker_is_restarted(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "store", workers=1) as gateway:
        os.kill(gateway.worker_pids()[0], signal.SIGKILL)
        request = signed(gateway.address, "GET", f"/{ENGINE_BUCKET}")
        assert one(gateway.address, request.raw()).status == 200


def test_sigterm_lets_a_request_end_and_leaves_nobody(tmp_path: Path) -> None:
    body = b"x" * 100_000
    with running_gateway(tmp_path / "store", workers=1) as gateway:
        workers = gateway.worker_pids()
        request = signed(gateway.address, "PUT", f"/{ENGINE_BUCKET}/k", body=body)
        with connect(gateway.address) as sock:
            sock.sendall(request.head() + body[:1000])
            idle = connect(gateway.address)
            gateway.process.send_signal(signal.SIGTERM)
            assert idle.recv(100) == b""  # idle connections are closed at once
            idle.close()
            sock.sendall(body[1000:])
            answer = sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"Connection: close" in answer
        assert gateway.process.wait(WAIT_SECONDS) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    with running_gateway(tmp_path / "store", workers=1) as gateway:
        got = gateway.client().get_object(Bucket=ENGINE_BUCKET, Key="k")
        assert got["Body"].read() == body


def test_workers_end_with_a_killed_supervisor(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "store", workers=2) as gateway:
        workers = gateway.worker_pids()
        gateway.process.kill()
        gateway.process.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers))


def test_health_and_metrics_on_the_admin_listener(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "store", workers=2) as gateway:
        for path in ("/health/live", "/health/ready", "/minio/health/live", "/minio/health/ready"):
            assert fetch(gateway.admin_address, path)
            assert fetch(gateway.address, path) == "ok\n"
        client = gateway.client()
        client.put_object(Bucket=ENGINE_BUCKET, Key="k", Body=b"x")
        client.head_object(Bucket=ENGINE_BUCKET, Key="k")
        text = fetch(gateway.admin_address, "/metrics")
        assert 'kvfs_gateway_requests_total{operation="HeadObject",status="2xx"} 1' in text
        wait_until(lambda: "kvfs_store_object_count 1" in fetch(gateway.admin_address, "/metrics"))
        with connect(gateway.admin_address) as sock:
            sock.sendall(b"nonsense\r\n\r\n")
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1000).startswith(b"HTTP/1.1 400")


def test_metrics_count_the_bytes_that_went_each_way(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "store", workers=1) as gateway:
        client = gateway.client()
        client.put_object(Bucket=ENGINE_BUCKET, Key="k", Body=b"x" * 70_000)
        client.head_object(Bucket=ENGINE_BUCKET, Key="k")
        client.get_object(Bucket=ENGINE_BUCKET, Key="k", Range="bytes=0-999")["Body"].read()
        answered = 'kvfs_gateway_requests_total{operation="GetObject",status="2xx"} 1'
        wait_until(lambda: answered in fetch(gateway.admin_address, "/metrics"))
        text = fetch(gateway.admin_address, "/metrics")
        assert "kvfs_gateway_received_bytes_total 70000\n" in text
        assert "kvfs_gateway_sent_bytes_total 1000\n" in text, "a HEAD's answer has no body"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--store", "{tmp}/nothing"], 10),
        (["--store", "{tmp}/store", "--listen", "nonsense"], 2),
        (["--store", "{tmp}/store", "--listen", "127.0.0.1:{busy}"], 75),
        (["--store", "{tmp}/store", "--engine-listen", "127.0.0.1:0"], 2),
        ([], 2),
    ],
)
def test_bad_starts_end_with_a_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
) -> None:
    monkeypatch.setenv("KVFS_ACCESS_KEY", "a")
    monkeypatch.setenv("KVFS_SECRET_KEY", "long-enough")
    monkeypatch.delenv("KVFS_STORE", raising=False)
    init_store(tmp_path / "store", capacity_bytes=1 << 30)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        filled = [text.format(tmp=tmp_path, busy=port) for text in arguments]
        monkeypatch.setattr("sys.argv", ["kvfs-gateway", *filled])
        assert main() == status
    assert capsys.readouterr().err.strip()
