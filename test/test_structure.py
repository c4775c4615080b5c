"""The structure of the library: imports point downwards, there are no circles, and functions and modules stay short."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pantherseg
from pantherseg.events import EventCode

PACKAGE = Path(pantherseg.__file__).parent
DOCS = Path(__file__).parents[1] / "docs"
# From the bottom up: each may import those above it in this list. Packages count as one, and so do their modules.
LAYERS = (
    *(
        "errors",
        "events",
        "labels",
        "orientation",
        "volume",
        "paths",
        "machine",
        "files",
        "logs",
        "progress",
        "verdict",
    ),
    *("tables", "registry", "arrays", "contours", "results"),
    *("archives", "io", "dicom_results"),
    *("preprocessing", "fusion", "postprocess", "fast", "recipe"),
    *("networks", "model_sources", "models", "packing"),
    *("inference", "localize"),
    *("phantom", "evaluation", "confidence", "report", "sbom", "weights", "datasets", "training", "selection"),
    *("ensemble", "session", "fingerprint", "pipeline", "case", "batch", "cohort"),
    *("grand_challenge", "api", "cli"),
)
# The package itself (its version) and the entry points that only call another module.
FREE = {"__init__", "__main__"}
MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 330


# The text and the syntax tree of every module by its dotted name below the package.
TEXTS = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
    if "data" not in path.relative_to(PACKAGE).parts
}
MODULES = {name: ast.parse(text) for name, text in TEXTS.items()}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports of the package when it runs, in its functions too, by dotted names below it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (name for child in node.orelse for name in imported(child))
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pantherseg":
            base = (node.module or "").partition(".")[2]
            for alias in node.names:
                inner = f"{base}.{alias.name}" if base else alias.name
                found = [name for name in (inner, f"{inner}.__init__", base, f"{base}.__init__") if name in MODULES]
                yield from found[:1]
        yield from imported(node)


def test_every_module_has_a_layer() -> None:
    assert {name.split(".")[0] for name in MODULES} == {*LAYERS, *FREE}


@pytest.mark.parametrize("name", [name for name in MODULES if name not in FREE])
def test_imports_point_downwards(name: str) -> None:
    layer = name.split(".")[0]
    upwards = [
        other
        for other in imported(MODULES[name])
        if other not in FREE and LAYERS.index(other.split(".")[0]) > LAYERS.index(layer)
    ]
    assert upwards == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    # A package's __init__ runs before its modules, which do not import it in turn.
    graph = {name: {other for other in imported(tree) if other != name} for name, tree in MODULES.items()}
    while leaves := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert graph == {}, "these import each other"


def test_functions_are_short() -> None:
    long = [
        f"{name}: {node.name}, {(node.end_lineno or 0) - node.lineno + 1} lines"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


def test_modules_are_short() -> None:
    sizes = {name: len(text.splitlines()) for name, text in TEXTS.items()}
    assert {name: lines for name, lines in sizes.items() if lines > MAX_MODULE_LINES} == {}


def test_durations_are_never_taken_from_the_system_clock() -> None:
    assert [name for name, text in TEXTS.items() if re.search(r"\btime\.time\(|\bdatetime\.now\(\)", text)] == []


def test_every_event_code_is_documented() -> None:
    pages = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("developer.md", "engine.md"))
    assert [code.value for code in EventCode if f"`{code}`" not in pages] == []
