"""The file of credentials limited to buckets: its form, its bounds, and who may read it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from kvfs.bucket_credentials import (
    FILE_NAME,
    MAX_BUCKETS,
    MAX_CREDENTIALS,
    BucketCredentials,
)
from kvfs.clock import SystemRandomness
from kvfs.config import MAX_SETTINGS_BYTES
from kvfs.errors import Denied, InvalidArgument, NotFound, TooLarge, Unavailable

RANDOMNESS = SystemRandomness()


def write(store: Path, text: str) -> BucketCredentials:
    path = store / FILE_NAME
    path.write_text(text)
    path.chmod(0o600)
    return BucketCredentials(store)


def table(name: str = "KEY", buckets: str = '["b"]', rest: str = "read_only = false") -> str:
    return f'[{name}]\nsecret_key = "long-enough"\nbuckets = {buckets}\n{rest}\n'


def test_a_store_without_the_file_has_no_limited_credential(tmp_path: Path) -> None:
    assert BucketCredentials(tmp_path).read() == {}


def test_what_was_added_is_read_back_and_is_its_owners_alone(tmp_path: Path) -> None:
    file = BucketCredentials(tmp_path)
    first = file.add(RANDOMNESS, ["a", "b", "a"], is_read_only=False)
    second = file.add(RANDOMNESS, ['qu"o\\te ü'], is_read_only=True)
    assert first.buckets == {b"a", b"b"}
    assert BucketCredentials(tmp_path).read() == {
        first.access_key: first,
        second.access_key: second,
    }
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [FILE_NAME]


def test_what_was_removed_is_gone_and_the_others_stay(tmp_path: Path) -> None:
    file = BucketCredentials(tmp_path)
    first = file.add(RANDOMNESS, ["a"], is_read_only=False)
    second = file.add(RANDOMNESS, ["b"], is_read_only=False)
    file.remove(first.access_key)
    assert file.read() == {second.access_key: second}
    with pytest.raises(NotFound, match=first.access_key):
        file.remove(first.access_key)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_open_to_others_is_refused_and_never_replaced(tmp_path: Path, mode: int) -> None:
    file = write(tmp_path, table())
    (tmp_path / FILE_NAME).chmod(mode)
    with pytest.raises(Denied, match="chmod 600"):
        file.read()
    with pytest.raises(Denied, match="chmod 600"):
        file.add(RANDOMNESS, ["a"], is_read_only=False)
    assert (tmp_path / FILE_NAME).read_text() == table()


@pytest.mark.parametrize(
    "text",
    [
        "[KEY",
        "KEY = 1",
        "[KEY]",
        table(rest=""),
        table(rest="readonly = true"),
        table(rest="read_only = false\nadmin = true"),
        table(rest='read_only = "yes"'),
        table(rest="read_only = 1"),
        table(buckets="[]"),
        table(buckets='"b"'),
        table(buckets="[1]"),
        table(buckets='[""]'),
        table(buckets='["a/b"]'),
        table(buckets='["a\\u0000"]'),
        table(buckets=f'["{"x" * 256}"]'),
        table(buckets=str([f"b{number}" for number in range(MAX_BUCKETS + 1)])),
        table(name='"a/b"'),
        table(name='""'),
        table(name='"a\\u0000"'),
        table() + table(),
        table().replace("long-enough", "short"),
        table().replace("long-enough", "with space"),
        table("GOOD") + table("BAD", rest=""),
        "#" * (MAX_SETTINGS_BYTES + 1),
        "a = " + "[" * 60_000,
        "".join(table(f"K{number}") for number in range(MAX_CREDENTIALS + 1)),
    ],
)
def test_a_file_that_is_wrong_anywhere_gives_no_credential_and_is_left_alone(
    tmp_path: Path, text: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(InvalidArgument, match=FILE_NAME) as caught:
        file.read()
    assert "long-enough" not in str(caught.value)
    with pytest.raises(InvalidArgument):
        file.add(RANDOMNESS, ["a"], is_read_only=False)
    assert (tmp_path / FILE_NAME).read_text() == text


@hypothesis.given(st.text(max_size=300))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_any_text_is_read_or_refused_and_nothing_else(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, text.encode("utf-8", "replace").decode())
    with contextlib.suppress(InvalidArgument):
        file.read()


@pytest.mark.parametrize(
    "buckets", [[], [""], ["a/b"], ["a\n"], ["\udcff"], [str(n) for n in range(MAX_BUCKETS + 1)]]
)
def test_buckets_that_cannot_be_are_refused(tmp_path: Path, buckets: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        BucketCredentials(tmp_path).add(RANDOMNESS, buckets, is_read_only=False)
    assert not os.listdir(tmp_path)


def test_i8_there_are_only_so_many_credentials(tmp_path: Path) -> None:
    file = write(tmp_path, "".join(table(f"K{number}") for number in range(MAX_CREDENTIALS)))
    with pytest.raises(TooLarge, match="remove one"):
        file.add(RANDOMNESS, ["a"], is_read_only=False)
    file.remove("K7")
    file.add(RANDOMNESS, ["a"], is_read_only=False)
    assert len(file.read()) == MAX_CREDENTIALS


def test_i8_a_file_never_grows_past_what_is_read_of_it(tmp_path: Path) -> None:
    file = BucketCredentials(tmp_path)
    buckets = [f"{number:0200}" for number in range(MAX_BUCKETS)]
    fitting = MAX_SETTINGS_BYTES // (MAX_BUCKETS * 210)
    for _ in range(fitting):
        file.add(RANDOMNESS, buckets, is_read_only=False)
    with pytest.raises(TooLarge, match="bytes"):
        file.add(RANDOMNESS, buckets, is_read_only=False)
    assert len(file.read()) == fitting


def test_two_commands_do_not_undo_each_other(tmp_path: Path) -> None:
    file = BucketCredentials(tmp_path)
    other = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="try again"):
            file.add(RANDOMNESS, ["a"], is_read_only=False)
    finally:
        os.close(other)
    file.add(RANDOMNESS, ["a"], is_read_only=False)


def test_what_a_killed_command_left_is_no_obstacle_and_lends_no_mode(tmp_path: Path) -> None:
    left = tmp_path / (FILE_NAME + ".new")
    left.write_text("half")
    left.chmod(0o644)
    made = BucketCredentials(tmp_path).add(RANDOMNESS, ["a"], is_read_only=False)
    assert BucketCredentials(tmp_path).read() == {made.access_key: made}
    assert not left.exists()


def test_a_change_is_seen_until_it_was_read(tmp_path: Path) -> None:
    reader, writer = BucketCredentials(tmp_path), BucketCredentials(tmp_path)
    assert not reader.has_changed()
    made = writer.add(RANDOMNESS, ["a"], is_read_only=False)
    assert reader.has_changed()
    reader.read()
    assert not reader.has_changed()
    writer.remove(made.access_key)
    assert reader.has_changed()
    reader.read()
    (tmp_path / FILE_NAME).unlink()
    assert reader.has_changed()
    assert reader.read() == {}
    write(tmp_path, "[broken")
    with pytest.raises(InvalidArgument):
        reader.read()
    assert not reader.has_changed(), "a broken file is told of once"


def test_a_limited_secret_never_shows_in_a_repr(tmp_path: Path) -> None:
    made = BucketCredentials(tmp_path).add(RANDOMNESS, ["a"], is_read_only=False)
    assert made.secret_key not in repr(made)
