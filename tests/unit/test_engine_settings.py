"""The printed settings parse as what they claim to be and carry the addresses."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from kvfs.config import Credential
from kvfs.errors import InvalidArgument
from kvfs_tools.engine_settings import ENGINES, Doors, settings_of

DOORS = Doors("/mnt/kvfs", "127.0.0.1:9000", "127.0.0.1:9001", "kv", Credential("AKEY", "ASECRET1"))


@pytest.mark.parametrize("engine", ENGINES)
def test_each_engine_gets_an_address_of_the_store(engine: str) -> None:
    text = settings_of(engine, DOORS)
    assert any(door in text for door in (DOORS.directory, DOORS.listen, DOORS.engine_listen))


@pytest.mark.parametrize("engine", ENGINES)
def test_json_in_the_settings_is_json(engine: str) -> None:
    for text in re.findall(r"'(\{.*\})'", settings_of(engine, DOORS)):
        assert json.loads(text)


@pytest.mark.parametrize("engine", ["vllm", "vllm-obj", "lmcache-server"])
def test_a_command_line_survives_the_shell(engine: str) -> None:
    lines = [line for line in settings_of(engine, DOORS).splitlines() if not line.startswith("#")]
    for line in lines:
        json.loads(shlex.split(line)[-1])


def test_lmcache_speaks_to_the_listener_that_stands_for_one_bucket() -> None:
    text = settings_of("lmcache", DOORS)
    assert 'remote_url: "s3://127.0.0.1:9001"' in text
    assert "save_chunk_meta: false" in text
    assert "aws_secret_access_key: ASECRET1" in text


def test_an_unknown_engine_is_told_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match="lmcache"):
        settings_of("lmcash", DOORS)


def test_mooncake_gets_the_directory_that_it_does_not_make_itself() -> None:
    make, start = (shlex.split(line) for line in settings_of("mooncake", DOORS).splitlines()[1:])
    assert make == ["mkdir", "-p", "/mnt/kvfs/kv/mooncake"]
    assert start[1:] == ["--root_fs_dir=/mnt/kvfs/kv/mooncake", "--cluster_id=kvfs"]
