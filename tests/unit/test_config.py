"""Where the root credential comes from, and who may read it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kvfs.config import (
    MAX_SETTINGS_BYTES,
    Credential,
    make_credential,
    process_environment,
    read_root_credential,
    read_toml,
    store_from_environment,
    write_root_credential,
)
from kvfs.errors import AlreadyExists, Denied, InvalidArgument, NotFound


class CountingRandomness:
    def token(self, length: int) -> bytes:
        return bytes(range(length))


def test_a_written_credential_is_read_back_and_is_its_owners_alone(tmp_path: Path) -> None:
    credential = make_credential(CountingRandomness())
    path = write_root_credential(tmp_path, credential)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_root_credential(tmp_path, {}) == credential


def test_a_credential_is_never_replaced_silently(tmp_path: Path) -> None:
    write_root_credential(tmp_path, Credential("FIRST", "first-secret"))
    with pytest.raises(AlreadyExists, match="remove it first"):
        write_root_credential(tmp_path, Credential("SECOND", "second-secret"))
    assert read_root_credential(tmp_path, {}).access_key == "FIRST"


def test_a_credential_open_to_others_is_refused_with_the_command_that_mends_it(
    tmp_path: Path,
) -> None:
    path = write_root_credential(tmp_path, Credential("KEY", "long-enough"))
    path.chmod(0o640)
    with pytest.raises(Denied, match="chmod 600"):
        read_root_credential(tmp_path, {})


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    write_root_credential(tmp_path, Credential("FILE", "file-secret"))
    environment = {"KVFS_ACCESS_KEY": "ENV", "KVFS_SECRET_KEY": "env-secret"}
    assert read_root_credential(tmp_path, environment) == Credential("ENV", "env-secret")


def test_a_key_and_a_secret_may_come_from_files_that_the_environment_names(tmp_path: Path) -> None:
    key, secret = tmp_path / "key", tmp_path / "secret"
    key.write_text("FROMFILE\n")
    secret.write_text("secret-from-file\n")
    environment = {"KVFS_ACCESS_KEY_FILE": str(key), "KVFS_SECRET_KEY_FILE": str(secret)}
    assert read_root_credential(tmp_path, environment) == Credential("FROMFILE", "secret-from-file")


def test_a_named_file_that_is_absent_is_no_reason_to_use_another_credential(
    tmp_path: Path,
) -> None:
    write_root_credential(tmp_path, Credential("FILE", "file-secret"))
    with pytest.raises(Denied, match="KVFS_ACCESS_KEY_FILE"):
        read_root_credential(tmp_path, {"KVFS_ACCESS_KEY_FILE": str(tmp_path / "absent")})


@pytest.mark.parametrize("name", ["KVFS_ACCESS_KEY", "KVFS_SECRET_KEY"])
def test_half_a_credential_in_the_environment_is_an_error(tmp_path: Path, name: str) -> None:
    write_root_credential(tmp_path, Credential("FILE", "file-secret"))
    with pytest.raises(InvalidArgument, match="both"):
        read_root_credential(tmp_path, {name: "something-long"})


def test_without_any_credential_the_sentence_says_where_one_may_be(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="KVFS_ACCESS_KEY"):
        read_root_credential(tmp_path, {})


@pytest.mark.parametrize(
    ("key", "secret"),
    [("", "long-enough"), ("a/b", "long-enough"), ("KEY", "short"), ("ü", "x" * 9)],
)
def test_a_credential_that_no_client_could_sign_with_is_refused(
    tmp_path: Path, key: str, secret: str
) -> None:
    path = tmp_path / "credentials"
    path.write_text(f'access_key = "{key}"\nsecret_key = "{secret}"\n')
    path.chmod(0o600)
    with pytest.raises(InvalidArgument):
        read_root_credential(tmp_path, {})


def test_a_secret_never_shows_in_a_repr() -> None:
    assert "hush-hush" not in repr(Credential("KEY", "hush-hush"))


def test_i8_a_settings_file_is_never_read_past_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    path.write_bytes(b"#" * (MAX_SETTINGS_BYTES + 1))
    with pytest.raises(InvalidArgument, match="no settings file"):
        read_toml(path)


@pytest.mark.parametrize("text", ["a = " + "[" * 60_000, "a = " + "1" * 60_000])
def test_a_settings_file_that_toml_cannot_hold_is_refused_as_any_other(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "endless.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=r"endless\.toml"):
        read_toml(path)


def test_a_broken_settings_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(b"\xff = 1")
    with pytest.raises(InvalidArgument, match=r"broken\.toml"):
        read_toml(path)
    with pytest.raises(NotFound):
        read_toml(tmp_path / "absent.toml")


def test_an_empty_store_variable_is_none() -> None:
    assert store_from_environment({"KVFS_STORE": ""}) is None
    assert store_from_environment({"KVFS_STORE": "/x"}) == Path("/x")


def test_the_process_environment_is_this_process() -> None:
    assert process_environment() == os.environ
