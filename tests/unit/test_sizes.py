"""What people type as sizes, durations and names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs.errors import InvalidArgument, InvalidName
from kvfs.model import ObjectPath
from kvfs_tools.sizes import (
    parse_duration,
    parse_object_path,
    parse_size,
    render_bytes,
    render_duration,
    render_json_name,
    render_size,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1K", 1024),
        ("100G", 100 * 2**30),
        ("1.5TiB", 3 * 2**39),
        ("2 mb", 2**21),
    ],
)
def test_sizes_are_powers_of_1024(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "-1", "1X", "1e9", "1 000"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidArgument, match="100G"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 * 2**20, "200 MiB")],
)
def test_sizes_are_shown_with_the_unit_that_fits(size_bytes: int, text: str) -> None:
    assert render_size(size_bytes) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("0", 0), ("30m", 1800), ("12h", 43_200), ("7d", 604_800)]
)
def test_durations_are_whole_seconds(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1h", "1.5h", "1y", "9" * 20])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_duration(text)


def test_a_duration_shows_its_two_largest_units() -> None:
    assert render_duration(0) == "0s"
    assert render_duration(3 * 86_400 + 4 * 3_600 + 59) == "3d 4h"


def test_the_key_is_literal_after_the_first_slash() -> None:
    assert parse_object_path(b"kv/a//b") == ObjectPath(b"kv", b"a//b")
    assert parse_object_path(b"kv/d/") == ObjectPath(b"kv", b"d/")


@pytest.mark.parametrize("text", [b"", b"kv", b"kv/", b"/key", b"kv/a\0b", b"kv/../x", b"kv/a/."])
def test_a_name_that_cannot_be_meant_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidName):
        parse_object_path(text)


@given(st.binary(max_size=64))
def test_any_bytes_give_a_path_or_the_declared_error(text: bytes) -> None:
    try:
        path = parse_object_path(text)
    except InvalidName:
        return
    assert path.namespace + b"/" + path.key == text


@given(st.binary(max_size=64))
def test_a_name_on_a_terminal_is_printable_and_in_json_reversible(name: bytes) -> None:
    assert render_bytes(name).isprintable()
    assert render_json_name(name).encode("utf-8", "surrogateescape") == name
