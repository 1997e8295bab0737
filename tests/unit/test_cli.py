"""The command line's edge: loading, usage errors, exit codes; no store needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from kvfs.errors import KvfsError, Leased, NotAStore
from kvfs_tools import cli as cli_module
from kvfs_tools.cli import COMMANDS, cli, run
from kvfs_tools.exit_codes import ExitCode
from tests.unit.source_tree import ROOT


def test_help_names_every_command_and_loads_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) is ExitCode.OK
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_the_command_line_imports_no_store_before_a_command_is_named() -> None:
    code = (
        "import sys; sys.path[:0] = ['.', 'tools']; import kvfs_tools.cli; "
        "print([n for n in ('lmdb', 'kvfs.store', 'botocore', 'rich') if n in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_loads_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) is ExitCode.OK
    assert f"kvfs {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_and_the_command_begin_with_the_same_word(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    assert command.help


@pytest.mark.parametrize("arguments", [["nonsense"], ["put"], ["ls", "--no-such-flag"]])
def test_a_mistyped_command_line_is_a_usage_error(arguments: list[str]) -> None:
    assert run(arguments) is ExitCode.USAGE


def test_a_command_without_a_store_says_how_to_name_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KVFS_STORE", raising=False)
    assert run(["ls"]) is ExitCode.USAGE
    assert "--store" in capsys.readouterr().err


def raising(error: BaseException) -> click.Command:
    @click.command()
    @click.option("--json", "is_json", is_flag=True)
    def fail(is_json: bool) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotAStore("No store here; run kvfs init."), ExitCode.NO_STORE),
        (Leased("pinned"), ExitCode.LOCKED),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
        (PermissionError(13, "Permission denied", "x"), ExitCode.DENIED),
        (FileNotFoundError(2, "No such file or directory", "x"), ExitCode.ERROR),
    ],
)
def test_what_a_command_raises_ends_as_one_line_and_a_code(
    error: BaseException,
    code: ExitCode,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli_module.LazyGroup, "get_command", lambda self, ctx, name: raising(error))
    assert run(["anything"]) is code
    assert len(capsys.readouterr().err.split("\n")) <= 3  # click itself ends the line of a ^C
    assert run(["anything", "--json"]) is code
    line = json.loads(capsys.readouterr().err)
    assert line["message_type"] == "exit_error"
    assert line["code"] == int(code)
    assert isinstance(error, KvfsError) <= (line["message"] == str(error))


def test_settings_are_printed_for_an_engine_without_a_store(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("KVFS_STORE", "KVFS_ACCESS_KEY", "KVFS_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert run(["env", "lmcache", "--engine-listen", "10.0.0.1:9001"]) is ExitCode.OK
    assert 's3://10.0.0.1:9001"' in capsys.readouterr().out
