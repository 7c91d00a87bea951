"""What modules may import, and what they may reach into.

Imports within functions and under ``TYPE_CHECKING`` count as any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTING = ROOT / "pqcore" / "testing"
PACKAGES = {"pqcore": "pqcore", "pqcore_backends": "pqcore_backends", "benchmarks": "pqcore.benchmarks"}
"""Where each package is, and the name under which it is imported."""

LAYERS = (
    ("pqcore.sql",),
    ("pqcore.db", "pqcore.schema"),
    ("pqcore.operations",),
    ("pqcore.queue", "pqcore.async_queue", "pqcore.dead_letters", "pqcore.tasks"),
    (
        "pqcore.benchmarks",
        "pqcore.cli",
        "pqcore.demo",
        "pqcore.instruments",
        "pqcore.integrations",
        "pqcore.mcp",
        "pqcore.testing",
        "pqcore.web",
        "pqcore.worker",
    ),
)
"""From the lowest to the highest: none imports what stands in a higher one."""
CONTRACT = (
    "pqcore.backend",
    "pqcore.errors",
    "pqcore.hookspecs",
    "pqcore.sql.identifiers",
    "pqcore.sql.statement",
)
"""What a backend may import of the core; see docs/backends.md."""
BESIDES = {("pqcore_backends.plugin", "pqcore.serializers")}
"""The plugin that brings the backends brings the serializers that need no library, too."""


def test_modules_import_one_another_in_no_circle() -> None:
    circles = [sorted(circle) for circle in _circles(_imports())]
    assert circles == []


@pytest.mark.parametrize("layer", range(len(LAYERS) - 1))
def test_lower_layer_imports_no_higher_one(layer: int) -> None:
    higher = [package for each in LAYERS[layer + 1 :] for package in each]
    assert _arrows(LAYERS[layer], higher) == []


def test_core_imports_nothing_built_upon_it() -> None:
    outside = (*LAYERS[-1], "pqcore_backends", "pqcore.__main__")
    found = [
        f"{module} -> {target}"
        for module, targets in _imports().items()
        for target in targets
        if not _within(module, outside) and _within(target, outside)
    ]
    assert sorted(found) == []


def test_backends_import_the_contract_alone() -> None:
    found = {
        (module, target)
        for module, targets in _imports().items()
        for target in targets
        if module.startswith("pqcore_backends.") and target.startswith("pqcore.") and not _within(target, CONTRACT)
    }
    assert sorted(found - BESIDES) == []


def test_circle_of_annotations_is_found() -> None:
    modules = {
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.b import B\n",
        "b": "def f():\n    from . import c\n",
        "c": "import p.a\n",
        "d": "from p import a\n",
    }
    parsed = {f"p.{name}": ast.parse(text) for name, text in modules.items()}
    graph = {module: set(_targets(module, tree, {*parsed})) for module, tree in parsed.items()}
    assert [sorted(circle) for circle in _circles(graph)] == [["p.a", "p.b", "p.c"]]


def test_modules_reach_into_no_private_attribute_of_another_class() -> None:
    mark = "SLF001"  # the rule of ruff that finds such an access
    marked = [
        f"{path.relative_to(ROOT)}:{number}"
        for package in ("pqcore", "pqcore_backends")
        for path in sorted((ROOT / package).rglob("*.py"))
        if TESTING not in path.parents
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if mark in line
    ]
    assert marked == []


@cache
def _imports() -> dict[str, set[str]]:
    """Each module, and the modules of ours that it imports."""
    trees = {}
    packages = set()
    for folder, package in PACKAGES.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = (*package.split("."), *file.relative_to(ROOT / folder).with_suffix("").parts)
            module = ".".join(parts).removesuffix(".__init__")
            trees[module] = ast.parse(file.read_text())
            if file.name == "__init__.py":
                packages.add(module)
    return {module: set(_targets(module, tree, trees.keys(), module in packages)) for module, tree in trees.items()}


def _targets(module: str, tree: ast.Module, known: Iterable[str], is_package: bool = False) -> Iterator[str]:
    """The modules of ``known`` that a module imports."""
    known = set(known)
    for node in ast.walk(tree):
        named: list[str] = []
        if isinstance(node, ast.Import):
            named = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*above, *filter(None, [node.module])])
            named = [full if (full := f"{base}.{each.name}") in known else base for each in node.names]
        for name in named:
            if name in known and name != module:
                yield name


def _circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The sets of modules of which each imports each, over others or not (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for target in graph[module]:
            if target not in number:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], number[target])
        if lowest[module] == number[module]:
            circle = {*stack[stack.index(module) :]}
            del stack[stack.index(module) :]
            if len(circle) > 1:
                found.append(circle)

    for module in graph:
        if module not in number:
            visit(module)
    return found


def _arrows(modules: Iterable[str], targets: Iterable[str]) -> list[str]:
    """The imports from some packages or modules to others, as text."""
    modules, targets = tuple(modules), tuple(targets)
    return sorted(
        f"{module} -> {target}"
        for module, imported in _imports().items()
        for target in imported
        if _within(module, modules) and _within(target, targets)
    )


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
