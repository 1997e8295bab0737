"""`kvfs credential` on a real store: the secret is shown once, and only there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvfs.bucket_credentials import FILE_NAME, BucketCredentials
from tests.integration.test_cli_store import kvfs, succeed


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    succeed(["init", path, "--capacity", "64M"])
    return path


def test_a_secret_is_printed_once_by_the_command_that_makes_it(store: Path) -> None:
    done = kvfs(["credential", "add", "--store", store, "--bucket", "a", "--bucket", "b"])
    assert done.returncode == 0
    shown = dict(line.split("=", 1) for line in done.stdout.decode().splitlines())
    made = BucketCredentials(store).read()[shown["AWS_ACCESS_KEY_ID"]]
    assert made.secret_key == shown["AWS_SECRET_ACCESS_KEY"]
    assert made.buckets == {b"a", b"b"}
    assert not made.is_read_only
    assert not done.stderr
    for options in ([], ["--json"]):
        listed = succeed(["credential", "ls", "--store", store, *options]).decode()
        assert made.access_key in listed
        assert made.secret_key not in listed
    assert (store / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_credentials_are_listed_as_text_and_as_json(store: Path) -> None:
    options = ["--bucket", "kv", "--read-only", "--json"]
    made = json.loads(succeed(["credential", "add", "--store", store, *options]))
    assert made.pop("secret_key")
    assert made == {"access_key": made["access_key"], "buckets": ["kv"], "read_only": True}
    assert json.loads(succeed(["credential", "ls", "--json"], KVFS_STORE=str(store))) == made
    line = succeed(["credential", "ls"], KVFS_STORE=str(store)).decode()
    assert line.split() == [made["access_key"], "read-only", "kv"]


def test_a_removed_credential_is_gone_and_an_unknown_one_an_error(store: Path) -> None:
    options = ["--store", store, "--bucket", "kv", "--json"]
    key = json.loads(succeed(["credential", "add", *options]))["access_key"]
    succeed(["credential", "rm", key, "--store", store])
    assert succeed(["credential", "ls", "--store", store]) == b""
    again = kvfs(["credential", "rm", key, "--store", store])
    assert again.returncode == 1
    assert key in again.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["add", "--bucket", "a", "--store", "{tmp}/nothing"], 10),
        (["ls", "--store", "{tmp}/nothing"], 10),
        (["add", "--store", "{tmp}/store"], 2),
        (["add", "--bucket", "a/b", "--store", "{tmp}/store"], 2),
        (["rm", "--store", "{tmp}/store"], 2),
        (["frob"], 2),
    ],
)
def test_what_cannot_be_ends_with_a_sentence(
    store: Path, tmp_path: Path, arguments: list[str], status: int
) -> None:
    done = kvfs(["credential", *(text.format(tmp=tmp_path) for text in arguments)])
    assert done.returncode == status, done.stderr
    assert done.stderr


def test_a_file_open_to_others_is_refused_with_the_command_that_mends_it(store: Path) -> None:
    succeed(["credential", "add", "--bucket", "a", "--store", store])
    (store / FILE_NAME).chmod(0o644)
    done = kvfs(["credential", "ls", "--store", store])
    assert done.returncode == 12
    assert b"chmod 600" in done.stderr
