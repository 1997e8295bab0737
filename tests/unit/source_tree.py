"""The project's own Python files as syntax trees, for the tests that check rules of structure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "kvfs": "kvfs",
    "kvfs_gateway": "gateway/kvfs_gateway",
    "kvfs_tools": "tools/kvfs_tools",
}


@dataclass(frozen=True, slots=True)
class Module:
    """One source file."""

    name: str
    path: Path
    tree: ast.Module
    length: int

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


@cache
def modules() -> tuple[Module, ...]:
    """Return every module of the three packages, by name."""
    found = []
    for package, folder in PACKAGES.items():
        base = ROOT / folder
        for path in sorted(base.rglob("*.py")):
            parts = [package, *path.relative_to(base).with_suffix("").parts]
            name = ".".join(part for part in parts if part != "__init__")
            text = path.read_text(encoding="utf-8")
            found.append(Module(name, path, ast.parse(text), text.count("\n")))
    return tuple(found)


def imported_names(module: Module, statement: ast.stmt) -> list[str]:
    """Return what one import statement names, as absolute dotted names (module and attribute)."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    if not isinstance(statement, ast.ImportFrom):
        return []
    base = statement.module or ""
    if statement.level:
        package = module.name if module.is_package else module.name.rpartition(".")[0]
        anchor = package.split(".")[: len(package.split(".")) - statement.level + 1]
        base = ".".join([*anchor, base]) if base else ".".join(anchor)
    return [f"{base}.{alias.name}" for alias in statement.names]


def imports(module: Module) -> Iterator[str]:
    """Yield every dotted name that a module imports anywhere, type-checking blocks included."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported_names(module, node)


def runtime_imports(module: Module) -> Iterator[str]:
    """Yield what importing the module imports: no function bodies, no `if TYPE_CHECKING`."""
    pending: list[ast.AST] = list(module.tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported_names(module, node)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))


def project_module(name: str) -> str | None:
    """Return the project module that a dotted name lies in, or None for foreign names."""
    known = {module.name for module in modules()}
    while name:
        if name in known:
            return name
        name = name.rpartition(".")[0]
    return None


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method of a module."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def text_constants(module: Module) -> Iterator[str]:
    """Yield every string constant, docstrings included."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
