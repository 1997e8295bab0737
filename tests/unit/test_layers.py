"""The structure that ARCHITECTURE.md promises, checked on the syntax trees of all sources.

A failure here names the file and the rule. Moving a line of the tables below is a decision of
design: it belongs in the same change as its reason.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from fnmatch import fnmatch

import pytest

from tests.unit.source_tree import (
    ROOT,
    Module,
    functions,
    imports,
    modules,
    project_module,
    runtime_imports,
)

# First match decides. Lower layers never import higher ones; layer 6 is four islands (see PEERS).
LAYERS: tuple[tuple[str, int], ...] = (
    ("kvfs", 0),
    ("kvfs.errors", 0),
    ("kvfs.model", 0),
    ("kvfs.clock", 0),
    ("kvfs.config", 1),
    ("kvfs.bucket_credentials", 1),
    ("kvfs.metrics", 1),
    ("kvfs.format", 1),
    ("kvfs.engine_keys", 2),
    ("kvfs.codec*", 2),
    ("kvfs.policy*", 2),
    ("kvfs.index.schema", 2),
    ("kvfs.index*", 3),
    ("kvfs.store*", 4),
    ("kvfs.aio", 5),
    ("kvfs.open_store", 5),
    ("kvfs.tensors", 5),
    ("kvfs.filesystem*", 6),
    ("kvfs_gateway.s3*", 2),
    ("kvfs_gateway*", 6),
    ("kvfs_tools*", 7),
)

# Who may import a foreign package that must stay in one place.
OWNERS: dict[str, tuple[str, ...]] = {
    "lmdb": ("kvfs.index.*", "kvfs.store.rebuild"),
    "blake3": ("kvfs.codec.*",),
    "zstandard": ("kvfs.codec.*",),
    "pyfuse3": ("kvfs.filesystem.pyfuse3_session",),
    "trio": ("kvfs.aio", "kvfs.filesystem.*", "kvfs_gateway.*"),
    "boto3": ("kvfs.store.remote_tier",),
    "torch": ("kvfs.tensors",),
    "numpy": ("kvfs.tensors", "kvfs.codec.numpy_planes"),
    "xxhash": ("kvfs.codec.*",),
    "httptools": ("kvfs_gateway.*",),
    "botocore": ("kvfs_gateway.*", "kvfs_tools.*"),
    "awscrt": ("kvfs_gateway.*",),
    "defusedxml": ("kvfs_gateway.s3.*",),
    "click": ("kvfs_gateway.main", "kvfs_tools.*"),
    "rich": ("kvfs_tools.*",),
    "time": ("kvfs.clock",),
    "datetime": ("kvfs_gateway.*", "kvfs_tools.*"),
    "random": (),
    "secrets": (),
    "importlib": ("kvfs_tools.cli", "kvfs_tools.doctor", "kvfs_gateway.s3.service_model"),
    "tomllib": ("kvfs.config", "kvfs.format"),
}

# Facts about the outside that the S3 protocol core must not know: it gets bytes and gives events.
S3_ISLAND_FORBIDS = ("kvfs.", "socket", "trio", "time", "os", "asyncio", "threading", "kvfs_tools")

LONG_MODULE_LINES = 600
LONG_FUNCTION_LINES = 100


def layer_of(name: str) -> int:
    for pattern, layer in LAYERS:
        if name == pattern or (pattern != "kvfs" and fnmatch(name, pattern)):
            return layer
    raise AssertionError(
        f"{name} has no layer: give it one in LAYERS, and a line in ARCHITECTURE.md"
    )


def by_name(module: Module) -> str:
    return module.name


@pytest.mark.parametrize("module", modules(), ids=by_name)
def test_a_lower_layer_never_imports_a_higher_one(module: Module) -> None:
    layer = layer_of(module.name)
    for name in imports(module):
        target = project_module(name)
        if target is not None and target != module.name:
            assert layer_of(target) <= layer, f"{module.name} (layer {layer}) imports {target}"


@pytest.mark.parametrize("module", modules(), ids=by_name)
def test_the_mount_and_the_gateway_know_nothing_of_each_other(module: Module) -> None:
    islands = {"kvfs.filesystem": "kvfs_gateway", "kvfs_gateway": "kvfs.filesystem"}
    for island, other in islands.items():
        if module.name.startswith(island):
            strangers = [name for name in imports(module) if name.startswith(other)]
            assert not strangers, f"{module.name} imports {strangers}"


@pytest.mark.parametrize("module", modules(), ids=by_name)
def test_the_s3_core_knows_neither_store_nor_sockets_nor_time(module: Module) -> None:
    if not module.name.startswith("kvfs_gateway.s3"):
        return
    for name in imports(module):
        forbidden = [
            word
            for word in S3_ISLAND_FORBIDS
            if name == word or name.startswith(word.rstrip(".") + ".")
        ]
        assert not forbidden, f"{module.name} imports {name}"


def test_there_is_no_import_cycle() -> None:
    graph = {
        module.name: {
            target
            for name in runtime_imports(module)
            if (target := project_module(name)) not in (None, module.name)
        }
        for module in modules()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("module", modules(), ids=by_name)
def test_no_import_hides_inside_a_function(module: Module) -> None:
    hidden = [
        f"{function.name}:{node.lineno}"
        for function in functions(module)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not hidden, f"{module.path.relative_to(ROOT)}: {hidden}"


@pytest.mark.parametrize("module", modules(), ids=by_name)
def test_foreign_packages_stay_with_their_owners(module: Module) -> None:
    for name in imports(module):
        owners = OWNERS.get(name.split(".")[0])
        if owners is None or project_module(name) is not None:
            continue
        allowed = any(fnmatch(module.name, owner) for owner in owners)
        assert allowed, f"{module.name} imports {name}; only {owners or 'nobody'} may"


@pytest.mark.parametrize("module", modules(), ids=by_name)
def test_i7_only_the_clock_makes_randomness_and_only_config_reads_the_environment(
    module: Module,
) -> None:
    rules = {"environ": "kvfs.config", "environb": "kvfs.config", "getenv": "kvfs.config"}
    rules["urandom"] = rules["getrandom"] = "kvfs.clock"
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
            and node.attr in rules
        ):
            assert module.name == rules[node.attr], (
                f"{module.name}:{node.lineno} uses os.{node.attr}"
            )


@pytest.mark.parametrize("module", modules(), ids=by_name)
def test_i7_nobody_asks_datetime_for_the_present(module: Module) -> None:
    calls = [
        f"{module.name}:{node.lineno}"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today")
        if "datetime" in ast.dump(node.value) or "date" in ast.dump(node.value)
    ]
    assert not calls, calls


def swallowing_handlers(module: Module) -> list[int]:
    """Return the lines of handlers that catch everything and do not raise it on."""
    lines = []
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = "" if node.type is None else ast.dump(node.type)
        is_broad = node.type is None or "'Exception'" in caught or "'BaseException'" in caught
        raises_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
        if is_broad and not raises_on:
            lines.append(node.lineno)
    return lines


def test_everything_is_caught_only_at_the_two_edges() -> None:
    found = {m.name: lines for m in modules() if (lines := swallowing_handlers(m))}
    # The committer hands each error to the thread that waits for it, where it is raised again.
    edges = {"kvfs.filesystem": 1, "kvfs_gateway.server": 1, "kvfs.index.committer": 2}
    strays = {name for name in found if not name.startswith(tuple(edges))}
    assert not strays, f"except Exception away from the edges: {strays}"
    for edge, most in edges.items():
        places = [
            f"{n}:{line}" for n, lines in found.items() if n.startswith(edge) for line in lines
        ]
        assert len(places) <= most, f"{edge} catches everything in {places}; once is the rule"


@pytest.mark.parametrize("module", modules(), ids=by_name)
def test_each_module_says_what_it_owns_and_long_ones_say_why(module: Module) -> None:
    header = ast.get_docstring(module.tree) or ""
    assert header, f"{module.path.relative_to(ROOT)} has no module docstring"
    if module.length > LONG_MODULE_LINES:
        assert "Length:" in header, (
            f"{module.path.relative_to(ROOT)} has {module.length} lines: split it, or give the "
            "reason in its header as `Length: ...`"
        )


@pytest.mark.parametrize("module", modules(), ids=by_name)
def test_no_function_is_longer_than_a_screen_or_two(module: Module) -> None:
    long = {
        function.name: lines
        for function in functions(module)
        if (lines := (function.end_lineno or function.lineno) - function.lineno + 1)
        > LONG_FUNCTION_LINES
    }
    assert not long, f"{module.name}: {long}"


@pytest.mark.parametrize("module", modules(), ids=by_name)
def test_no_file_is_named_after_a_noun_not_yet_found(module: Module) -> None:
    last = module.name.rpartition(".")[2]
    assert last not in {"utils", "common", "helpers", "manager", "base", "misc", "util"}


def test_import_kvfs_loads_no_heavy_package() -> None:
    heavy = ["trio", "pyfuse3", "torch", "boto3", "botocore", "numpy", "click", "rich"]
    code = f"import sys, kvfs; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=60,
    )
    assert loaded.stdout.strip() == "[]"


def test_the_open_store_loads_neither_a_door_nor_an_engine() -> None:
    if project_module("kvfs.open_store") != "kvfs.open_store":
        pytest.skip("kvfs.open_store is not written yet")
    heavy = ["trio", "pyfuse3", "torch", "boto3", "botocore", "click", "rich", "kvfs_gateway"]
    code = f"import sys, kvfs.open_store; print([n for n in {heavy} if n in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=60,
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("kvfs_gateway.main", ["lmdb", "awscrt", "numpy", "kvfs.store", "kvfs_gateway.s3.sigv4"]),
        ("kvfs_gateway.server.worker", ["botocore", "urllib3", "click", "rich"]),
    ],
)
def test_the_gateway_starts_without_what_it_does_not_use(module: str, unwanted: list[str]) -> None:
    code = f"import sys, {module}; print([n for n in {unwanted} if n in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
    )
    assert loaded.stdout.strip() == "[]"
