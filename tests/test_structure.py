"""The imports of modules, and their access to private names.

Imports within functions and under ``TYPE_CHECKING`` count as any other.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTING = ROOT / "pqcore" / "testing"
SUITE = TESTING / "suite"
RETURNED = ("rows", "found", "records")
"""The names of variables that hold a row of a statement's result."""
PACKAGES = {"pqcore": "pqcore", "pqcore_backends": "pqcore_backends", "benchmarks": "pqcore.benchmarks"}
"""The folder of each package, and the name under which it is imported."""

LAYERS = (
    ("pqcore.sql",),
    ("pqcore.db", "pqcore.schema"),
    ("pqcore.operations",),
    ("pqcore.base_pq", "pqcore.queue", "pqcore.async_queue", "pqcore.dead_letters", "pqcore.runner", "pqcore.tasks"),
    ("pqcore.doctor",),
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
"""From the lowest to the highest: no package imports a higher one."""
CONTRACT = (
    "pqcore.backend",
    "pqcore.backend_dsn",
    "pqcore.errors",
    "pqcore.hookspecs",
    "pqcore.sql.identifiers",
    "pqcore.sql.statement",
)
"""What a backend may import of the core; see docs/backends.md."""
BESIDES = {
    ("pqcore_backends.plugin", "pqcore.serializers"),  # it brings those that need no library, too
    ("pqcore_backends.embedded", "pqcore.db.dsn"),  # a server, and no driver
}
LONGEST = 400
"""The most lines of a module; scenarios of the conformance suite stay together by subject, however many there are."""
LONGER = {
    "benchmarks/admission_workloads.py": "the workloads of one subject: a class each",
    "benchmarks/peers/measuring.py": "one measurement, from its databases to its row",
    "benchmarks/peers/runner.py": "what drives each peer: a file per peer stands next to it",
    "benchmarks/plans.py": "a table and its plans: mostly statements",
    "pqcore/async_queue.py": "the awaited face: as many methods as the blocking one",
    "pqcore/backend.py": "the contract of a driver, all of it in one place for its author",
    "pqcore/db/session.py": "one class: a connection, and what is known of it",
    "pqcore/sql/queue_statements.py": "the statements of one class, most of them text",
    "pqcore/queue.py": "the blocking face: mostly docstrings",
    "pqcore/testing/databases.py": "databases of a run of tests, and looking at them",
    "pqcore/testing/harness.py": "one class: what a scenario sees of a backend",
    "pqcore/testing/jobs.py": "one class: the fixture `pqcore_jobs`",
}
"""Modules that are longer, each with the reason."""
PUBLIC = ("pqcore", "pqcore.backend", "pqcore.errors", "pqcore.plugins", "pqcore.tasks", "pqcore.worker")
"""Names that documents use, so that other builds must have them, too."""


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


def test_process_that_measures_another_build_imports_public_names_alone() -> None:
    within = "pqcore.benchmarks"
    left, seen = [f"{within}.build_process"], set()
    while left:
        module = left.pop()
        seen.add(module)
        left += [each for each in _imports()[module] - seen if _within(each, [within])]
    assert len(seen) > 3
    found = {target for module in seen for target in _imports()[module] if not _within(target, [within])}
    assert sorted(found - {*PUBLIC}) == []


def test_module_is_no_longer_than_it_may_be() -> None:
    long = {
        str(file.relative_to(ROOT)): lines
        for folder in PACKAGES
        for file in (ROOT / folder).rglob("*.py")
        if file.parent.name != "suite" and (lines := len(file.read_text().splitlines())) > LONGEST
    }
    assert {name: lines for name, lines in long.items() if name not in LONGER} == {}


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
    mark = "SLF001"  # ruff's rule for access to private names
    marked = [
        f"{path.relative_to(ROOT)}:{number}"
        for package in ("pqcore", "pqcore_backends")
        for path in sorted((ROOT / package).rglob("*.py"))
        if TESTING not in path.parents
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if mark in line
    ]
    assert marked == []


def test_columns_of_rows_are_read_by_name() -> None:
    read = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in ("pqcore", "pqcore_backends")
        for path in sorted((ROOT / package).rglob("*.py"))
        if SUITE not in path.parents
        for line in _columns_by_number(path.read_text())
    ]
    assert read == []


@pytest.mark.parametrize("text", ["row[4]", "row[5:8]", "rows[0][2]", "found[-1][1]", "(await s.execute(query))[0][0]"])
def test_column_read_by_number_is_found(text: str) -> None:
    assert list(_columns_by_number(f"async def read() -> None:\n    return {text}\n")) == [2]


@pytest.mark.parametrize("text", ["row.attempts", "rows[0]", "rows[:n]", "row[name]", "places[0][0]"])
def test_subscript_of_something_else_is_left_alone(text: str) -> None:
    assert list(_columns_by_number(text)) == []


def _columns_by_number(source: str) -> Iterator[int]:
    """Return the lines that read a column of a row by its position: ``row[4]``, ``rows[0][4]``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript) and _is_number(node.slice) and _is_row(node.value):
            yield node.lineno


def _is_number(index: ast.expr) -> bool:
    if isinstance(index, ast.Slice):
        return any(edge is not None and _is_number(edge) for edge in (index.lower, index.upper))
    if isinstance(index, ast.UnaryOp):
        index = index.operand
    return isinstance(index, ast.Constant) and isinstance(index.value, int)


def _is_row(value: ast.expr) -> bool:
    """Return whether an expression is a row, as far as names tell: ``row``, or an item of a statement's result."""
    if isinstance(value, ast.Name):
        return value.id in ("row", "record")
    if not isinstance(value, ast.Subscript) or isinstance(value.slice, ast.Slice) or not _is_number(value.slice):
        return False
    several = value.value
    return isinstance(several, ast.Await) or (isinstance(several, ast.Name) and several.id in RETURNED)


@cache
def _imports() -> dict[str, set[str]]:
    """Return each module, with the project's modules that it imports."""
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
    """Return the modules of ``known`` that a module imports."""
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
    """Return the imports from some packages or modules to others, as text."""
    modules, targets = tuple(modules), tuple(targets)
    return sorted(
        f"{module} -> {target}"
        for module, imported in _imports().items()
        for target in imported
        if _within(module, modules) and _within(target, targets)
    )


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


NO_SUBJECT = re.compile(
    r"""test_(?:
    a | an | the | its? | this | that | those | these | ones? | of | what | whatever | which | whichever | who | whoever
    | whom | whose | all | each | every | everything | everybody | nothing | none | nobody | no | some | something
    | somebody | any | another | others? | either | neither | both | so | there | how | where | when | while | with
    | without | within | at | in | on | to | or | as | and | but | until | till | after | before | behind | besides?
    | over | by | if | only | many | several | two | more | most | too | even | for | from | into | not | does | do
    | is | are | be
    )_""",
    re.VERBOSE,
)
"""Words at the beginning of a test's name that do not say what the test is about."""


def test_test_names_begin_with_their_subject() -> None:
    suites = ((ROOT / "tests").rglob("*.py"), (TESTING / "suite").glob("*.py"), (ROOT / "examples").rglob("test_*.py"))
    found = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in chain(*suites)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if NO_SUBJECT.match(node.name)
    ]
    assert found == [], "name a test test_<subject>_<what is expected>"
