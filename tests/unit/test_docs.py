"""The documentation names everything that a user can name: commands, flags, variables, errors."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import click
import pytest

import kvfs.errors
from kvfs.errors import KvfsError
from kvfs_tools.cli import COMMANDS, cli
from kvfs_tools.exit_codes import ExitCode
from tests.engines.clients.catalogue import ASKED, Asked, Environment
from tests.engines.clients.operations import OPERATIONS
from tests.unit.source_tree import ROOT, Module, modules, text_constants

METRIC = re.compile(r"kvfs_[a-z0-9]+(?:_[a-z0-9]+)*_(?:total|seconds|bytes|ratio|count|info)")
VARIABLE = re.compile(r"KVFS_[A-Z][A-Z_]+")
FLAG = re.compile(r"--[a-z][a-z0-9-]+")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
REQUIREMENTS = {
    Environment.OURS: (),
    Environment.CLIENTS: ("tests/engines/clients/requirements.txt",),
    Environment.ENGINES: ("tests/engines/engines.txt",),
}
OPTION_MAKERS = {"option", "add_argument", "version_option"}


@cache
def documents() -> dict[Path, str]:
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return {path: path.read_text(encoding="utf-8") for path in paths}


@cache
def all_text() -> str:
    return "\n".join(documents().values())


def flags_of(module: Module) -> set[str]:
    """Return the long flags that a module declares, by click or argparse."""
    flags = set()
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name in OPTION_MAKERS:
            texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
            flags |= {
                flag for text in texts if isinstance(text, str) for flag in FLAG.findall(text)
            }
    return flags


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_and_its_flags_stand_in_the_command_reference(name: str) -> None:
    text = documents()[ROOT / "docs" / "cli.md"]
    sections = {
        part.splitlines()[0].split()[0]: part
        for part in re.split(r"^#+ `?kvfs ", text, flags=re.MULTILINE)[1:]
    }
    assert name in sections, f"docs/cli.md has no heading `kvfs {name}`"
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    within = command.commands if isinstance(command, click.Group) else {}
    for inner in within:
        assert f"kvfs {name} {inner}" in sections[name], f"kvfs {name} {inner} is not described"
    for parameter in [*command.params, *(p for inner in within.values() for p in inner.params)]:
        for option in parameter.opts if isinstance(parameter, click.Option) else []:
            if option.startswith("--"):
                assert f"`{option}" in sections[name], f"kvfs {name} {option} is not described"


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_each_flag_metric_and_variable_in_the_code_is_documented(module: Module) -> None:
    constants = list(text_constants(module))
    found = flags_of(module)
    found |= {match for text in constants for match in METRIC.findall(text)}
    found |= {text for text in constants if VARIABLE.fullmatch(text)}
    missing = sorted(item for item in found if item not in all_text())
    assert not missing, f"{module.name} names what no document does: {missing}"


def error_classes() -> list[type[KvfsError]]:
    return [
        value
        for value in vars(kvfs.errors).values()
        if isinstance(value, type) and issubclass(value, KvfsError) and value is not KvfsError
    ]


@pytest.mark.parametrize("error", error_classes(), ids=lambda error: error.__name__)
def test_each_error_is_explained(error: type[KvfsError]) -> None:
    assert f"`{error.__name__}`" in documents()[ROOT / "docs" / "errors.md"]


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_each_exit_code_stands_in_the_table(code: ExitCode) -> None:
    assert re.search(rf"^\| {int(code)} \|", documents()[ROOT / "docs" / "cli.md"], re.MULTILINE)


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_link_between_documents_leads_somewhere(path: Path) -> None:
    targets = [t for t in LINK.findall(documents()[path]) if "://" not in t]
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert not missing, f"{path.relative_to(ROOT)} links to {missing}"


def row_of_client(name: str, asked: Asked) -> str:
    lacks: dict[str, list[str]] = {}
    for operation, reason in asked.cannot.items():
        lacks.setdefault(reason, []).append(operation)
    words = [f"{', '.join(sorted(lacks[reason]))}: it {reason}" for reason in sorted(lacks)]
    return f"| {name} | {asked.release} | {'; '.join(words) or 'nothing'} |"


def test_the_table_of_clients_says_what_each_is_asked_for() -> None:
    text = documents()[ROOT / "docs" / "s3-compat.md"]
    missing = [row for name, it in ASKED.items() if (row := row_of_client(name, it)) not in text]
    assert not missing, "docs/s3-compat.md lacks these rows:\n" + "\n".join(missing)
    unnamed = [operation for operation in OPERATIONS if f"`{operation}`" not in text]
    assert not unnamed, f"docs/s3-compat.md does not explain {unnamed}"


def test_the_clients_of_the_table_are_those_that_are_installed() -> None:
    for asked in ASKED.values():
        files = (ROOT / name for name in REQUIREMENTS[asked.environment])
        pins = [pin for file in files for pin in file.read_text().splitlines()]
        wanted = asked.release.replace(" ", "==")
        assert asked.environment is Environment.OURS or wanted in pins, f"{wanted} is not pinned"


def test_each_decision_stands_in_the_index() -> None:
    index = documents()[ROOT / "docs" / "adr" / "README.md"]
    records = [path.name for path in (ROOT / "docs" / "adr").glob("[0-9]*.md")]
    missing = [name for name in records if f"({name})" not in index]
    assert records
    assert not missing, f"docs/adr/README.md does not list {missing}"


def test_the_architecture_names_every_module_and_stays_short() -> None:
    text = documents()[ROOT / "ARCHITECTURE.md"]
    assert text.count("\n") < 200
    missing = [
        str(module.path.relative_to(ROOT))
        for module in modules()
        if not module.is_package and module.path.name not in text
    ]
    assert not missing, f"ARCHITECTURE.md has no line for {missing}"


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    wanted = set(re.findall(r"`make ([a-z-]+)", all_text()))
    missing = [target for target in wanted if not re.search(rf"^{target}:", makefile, re.MULTILINE)]
    assert not missing
