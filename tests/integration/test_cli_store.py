"""The object commands on a real store, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = "import sys; from kvfs_tools.cli import main; sys.exit(main())"
MIB = 2**20


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KVFS_")}
    paths = (str(ROOT / part) for part in (".", "gateway", "tools"))
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}


def kvfs(
    arguments: Sequence[str | bytes | Path], data: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        input=data,
        capture_output=True,
        env={**environment(), **variables},
        timeout=120,
    )


def succeed(arguments: Sequence[str | bytes | Path], data: bytes = b"", **variables: str) -> bytes:
    done = kvfs(arguments, data, **variables)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    succeed(["init", path, "--capacity", "64M"])
    succeed(["mkdir", "kv", "--store", path])
    return path


def test_what_was_put_is_got_in_another_process(store: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(9 * MIB + 17))
    succeed(["put", source, "kv/a/b", "--store", store])
    succeed(["get", "kv/a/b", target, "--store", store])
    assert target.read_bytes() == source.read_bytes()
    assert succeed(["get", "kv/a/b", "-"], KVFS_STORE=str(store)) == source.read_bytes()


@pytest.mark.parametrize("length", [0, 1, 4096, 5 * MIB + 1])
def test_standard_input_of_any_length_is_stored_whole(store: Path, length: int) -> None:
    data = os.urandom(length)
    shown = succeed(["put", "-", "kv/piped", "--store", store, "--json"], data)
    assert json.loads(shown)["size"] == length
    assert succeed(["get", "kv/piped", "-", "--store", store]) == data


def test_init_writes_a_credential_that_only_its_owner_reads(store: Path) -> None:
    path = store / "credentials"
    assert path.stat().st_mode & 0o777 == 0o600
    assert "secret_key" in path.read_text()


def test_listing_follows_the_keys_byte_order_one_level_or_all(store: Path) -> None:
    for key in ("a", "a/b", "a-c", "d/e/f"):
        succeed(["put", "-", f"kv/{key}", "--store", store], key.encode())
    assert succeed(["ls", "--store", store]) == b"kv/\n"
    assert succeed(["ls", "kv", "--store", store]).split() == [b"a", b"a-c", b"a/", b"d/"]
    assert succeed(["ls", "-r", "kv/a", "--store", store]).split() == [b"a", b"a-c", b"a/b"]
    lines = succeed(["ls", "-r", "kv", "--store", store, "--json"]).splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["a", "a-c", "a/b", "d/e/f"]


def test_stat_tells_size_digest_and_expiry(store: Path) -> None:
    succeed(["put", "-", "kv/x", "--ttl", "1h", "--store", store], b"12345")
    record = json.loads(succeed(["stat", "kv/x", "--store", store, "--json"]))
    assert record["size"] == 5
    assert record["ttl_s"] == 3600
    assert record["expires"] > record["modified"]
    assert len(record["digest"]) == 64
    assert b"5 bytes" in succeed(["stat", "kv/x", "--store", store])
    assert json.loads(succeed(["stat", "kv", "--store", store, "--json"]))["objects"] == 1


def test_rm_removes_one_many_and_says_so_before(store: Path) -> None:
    for number in range(5):
        succeed(["put", "-", f"kv/p/{number}", "--store", store], b"x")
    plan = succeed(["rm", "-r", "kv/p/", "--dry-run", "--store", store])
    assert plan.count(b"would remove") == 5
    succeed(["rm", "kv/p/0", "--store", store])
    assert json.loads(succeed(["rm", "-r", "kv/", "--store", store, "--json"]))["removed"] == 4
    assert succeed(["ls", "-r", "kv", "--store", store]) == b""
    succeed(["rmdir", "kv", "--store", store])


def test_a_key_that_is_no_utf8_survives_the_command_line(store: Path) -> None:
    succeed(["put", "-", b"kv/\xff\x01", "--store", store], b"odd")
    assert succeed(["get", b"kv/\xff\x01", "-", "--store", store]) == b"odd"
    shown = succeed(["ls", "-r", "kv", "--store", store, "--json"])
    assert json.loads(shown)["key"].encode("utf-8", "surrogateescape") == b"\xff\x01"


def test_a_failed_get_leaves_no_file(store: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert kvfs(["get", "kv/absent", target, "--store", store]).returncode == 1
    assert list(tmp_path.glob("target*")) == []


def test_a_full_store_says_so_and_keeps_nothing_half(store: Path) -> None:
    done = kvfs(["put", "-", "kv/large", "--store", store], bytes(65 * MIB))
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert succeed(["ls", "-r", "kv", "--store", store]) == b""
    state = json.loads(succeed(["status", "--store", store, "--json"]))
    assert state["resident_bytes"] + state["reserved_bytes"] < MIB


def test_status_counts_names_and_blocks(store: Path) -> None:
    for name in ("one", "two"):
        succeed(["put", "-", f"kv/{name}", "--store", store], bytes(8192))
    state = json.loads(succeed(["status", "--store", store, "--json"]))
    assert (state["objects"], state["blocks"], state["resident_bytes"]) == (2, 1, 8192)
    assert len(succeed(["status", "--store", store]).splitlines()) == 6
    assert len(succeed(["status", "-x", "--store", store]).splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["put", "-", "nobucket/x"], 1, b"kvfs mkdir nobucket"),
        (["put", "-", "kv/../x"], 2, b"'..' component"),
        (["put", "-", "kv"], 2, b"BUCKET/KEY"),
        (["put", "-", "kv/" + "k" * 1025], 2, b"1024"),
        (["put", "-", "kv/x", "--ttl", "soon"], 2, b"12h"),
        (["put", "/no/such/file", "kv/x"], 1, b"No such file"),
        (["get", "kv/absent", "-"], 1, b"kv/absent"),
        (["stat", "kv/absent"], 1, b"kv/absent"),
        (["stat", "nobucket"], 1, b"nobucket"),
        (["rm", "kv/absent"], 1, b"kv/absent"),
        (["rm", "-r", "kv"], 2, b"kvfs rm -r kv/"),
        (["ls", "nobucket"], 1, b"nobucket"),
        (["mkdir", "kv"], 1, b"kv"),
        (["mkdir", ""], 2, b""),
        (["rmdir", "nobucket"], 1, b"nobucket"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_bad_input_ends_with_one_sentence_and_its_code(
    store: Path, arguments: list[str], code: int, sentence: bytes
) -> None:
    done = kvfs([*arguments, "--store", str(store)])
    assert done.returncode == code, done.stderr.decode()
    assert sentence in done.stderr
    assert b"Traceback" not in done.stderr


def test_what_is_no_store_is_named_with_the_command_that_makes_one(tmp_path: Path) -> None:
    done = kvfs(["ls", "--store", tmp_path])
    assert done.returncode == 10
    assert b"kvfs init" in done.stderr
    done = kvfs(["ls", "--store", tmp_path, "--json"])
    assert json.loads(done.stderr)["code"] == 10


def test_a_newer_format_is_refused(store: Path) -> None:
    settings = store / "kvfs.toml"
    settings.write_text(settings.read_text().replace("format = 1", "format = 99"))
    done = kvfs(["ls", "--store", store])
    assert done.returncode == 10
    assert b"upgrade" in done.stderr


def test_init_never_takes_over_what_is_there(store: Path, tmp_path: Path) -> None:
    assert kvfs(["init", store]).returncode == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("precious")
    assert kvfs(["init", other]).returncode == 1
    assert [path.name for path in other.iterdir()] == ["file"]
    assert kvfs(["init", tmp_path / "new", "--capacity", "lots"]).returncode == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as another user")
def test_another_user_is_told_that_it_may_not(store: Path, tmp_path: Path) -> None:
    # Everything is imported first: the other user may not be able to read the interpreter's files.
    load = "import os, kvfs_tools.object_commands"
    code = f"{load}; os.setgroups([]); os.setgid(65534); os.setuid(65534); {RUN}"
    for folder in (store, *tmp_path.parents):
        if os.fspath(folder).startswith(os.fspath(tmp_path.parents[1])):
            folder.chmod(0o711)
    done = subprocess.run(
        [sys.executable, "-c", code, "ls", "--store", str(store)],
        env=environment(),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 12, done.stderr.decode()
    assert b"owner" in done.stderr


def test_no_replace_keeps_the_first_and_create_bucket_makes_one(store: Path) -> None:
    succeed(["put", "-", "new/x", "--create-bucket", "--store", store], b"first")
    done = kvfs(["put", "-", "new/x", "--no-replace", "--store", store], b"second")
    assert done.returncode == 1
    assert succeed(["get", "new/x", "-", "--store", store]) == b"first"


def test_doctor_names_each_check_and_leaves_nothing(store: Path) -> None:
    before = sorted(store.rglob("*"))
    done = kvfs(["doctor", store, "--json"])
    assert done.returncode in (0, 3), done.stderr.decode()
    codes = {json.loads(line)["code"] for line in done.stdout.splitlines()}
    assert {"FUSE", "KERNEL", "FILESYSTEM", "XATTRS", "DIRECT_IO", "SPACE"} <= codes
    assert sorted(store.rglob("*")) == before


def test_env_prints_the_stores_own_credential(store: Path) -> None:
    access_key = (store / "credentials").read_text().split('"')[1]
    assert access_key.encode() in succeed(["env", "lmcache", "--store", store])
    assert b"ACCESS_KEY" in succeed(["env", "lmcache"])
