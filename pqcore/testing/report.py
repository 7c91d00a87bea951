"""The report of a run of the suite: a table of capabilities and results, and a check that no standard test is missing.

Every standard test must have run, unchanged, for every tested backend. A deselected test makes the run a partial one. A
deleted, replaced, skipped or expected-to-fail test makes the run fail.
"""

from __future__ import annotations

import ast
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pqcore.backend import BackendSpec, Capability
from pqcore.plugins import plugins
from pqcore.testing.databases import prepared

ALONE = "alone"
"""The mode of a standard test that does not use the harness itself: it must run at least once."""


@cache
def standard_tests() -> Mapping[str, str | None]:
    """Return the names of all standard tests, as ``module::test``, with the mode that each is limited to, or `ALONE`.

    The names are read once from the source files, so that changes to the imported modules have no effect.
    """
    found: dict[str, str | None] = {}
    for entry in resources.files("pqcore.testing.suite").iterdir():
        if not entry.name.startswith("test_"):
            continue
        tree = ast.parse(entry.read_text("utf-8"))
        of_all = [
            mark
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
            for mark in (node.value.elts if isinstance(node.value, ast.List) else [node.value])
        ]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[f"{entry.name.removesuffix('.py')}::{node.name}"] = _mode(node, of_all)
    return found


def _without(spec: BackendSpec, why: Mapping[Capability, str]) -> BackendSpec:
    """Return a backend's declaration without some of its capabilities; ``why`` has the reason for each."""
    kept = {cap: reason for cap, reason in spec.missing_on_adopted.items() if cap not in why}
    missing = {**spec.missing, **why}
    return replace(spec, capabilities=spec.capabilities - why.keys(), missing=missing, missing_on_adopted=kept)


def _offered(spec: BackendSpec) -> BackendSpec:
    """Return the capabilities of a backend on this server, and through this pooler."""
    spec = _without(spec, plugins.dialect().missing)
    pooled = "a pooler is in between, or PQCORE_TEST_PREPARED is no"
    return spec if prepared() else _without(spec, dict.fromkeys((Capability.LISTEN, Capability.PREPARED), pooled))


def _mode(node: ast.FunctionDef, of_all: Sequence[ast.expr]) -> str | None:
    if "harness" not in {argument.arg for argument in node.args.args}:
        return ALONE
    for decorator in (*node.decorator_list, *of_all):
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.only":
            return str(ast.literal_eval(decorator.args[0]))
    return None


class Report:
    """The results of one run.

    Args:
        names: The backends to test; None for all registered ones.
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        self.specs: list[BackendSpec] = [_offered(plugins.backend_spec(name, mode)) for name, mode in _modes(names)]
        self.server = ""
        self._results: dict[tuple[str, str], str] = {}
        self._missing: dict[str, dict[Capability, int]] = {}
        self._collected: set[tuple[str, str]] = set()
        self._began = False

    def collected(self, items: Sequence[Any]) -> None:
        """Record the tests that are about to run."""
        self._began = True
        self._collected = {(_test(item), _backend(item)) for item in items}

    def add(self, item: Any, result: Any) -> None:
        """Record one phase of one test."""
        key = (_test(item), _backend(item))
        if hasattr(result, "wasxfail"):
            self._results[key] = "expected to fail"
        elif result.failed:
            self._results[key] = "failed"
        elif result.skipped:
            missing = getattr(item, "pqcore_missing", None)
            self._results[key] = "skipped" if missing is None else f"not offered: {missing}"
        elif result.when == "call":
            self._results.setdefault(key, "passed")

    def partial(self) -> list[tuple[str, str]]:
        """Return the standard tests that were deselected, or that no longer exist."""
        known = standard_tests()
        wanted = {
            (test, _label(spec)) for test, mode in known.items() for spec in self.specs if mode in (None, spec.mode)
        }
        alone = {test for test, mode in known.items() if mode == ALONE} - {test for test, _ in self._collected}
        return sorted((wanted - self._collected) | {(test, "") for test in alone})

    def violations(self) -> list[str]:
        """Return the reasons why the run proves less than it seems to."""
        wrong = [
            f"{test}[{backend}] was {outcome}"
            for (test, backend), outcome in self._results.items()
            if outcome in ("skipped", "expected to fail")
        ]
        known = standard_tests()
        wrong += [f"{test} is not a standard test" for test, _ in self._collected if test not in known]
        return wrong

    def write(self, path: str) -> None:
        """Write ``path.json`` and ``path.md``."""
        if not self._began:
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path + ".json").write_text(json.dumps(self._document(), indent=2) + "\n", "utf-8")
        Path(path + ".md").write_text("\n".join(self._lines()) + "\n", "utf-8")

    def summarize(self, terminal: Any) -> None:
        """Print the table."""
        if not self._began:
            return
        terminal.section("pqcore conformance")
        for line in self._lines():
            terminal.write_line(line)

    def _document(self) -> dict[str, Any]:
        def results(label: str) -> dict[str, str]:
            return {test: outcome for (test, backend), outcome in self._results.items() if backend == label}

        return {
            "server": self.server,
            "dialect": plugins.dialect().name,
            "python": platform.python_version(),
            "complete": not self.partial(),
            "violations": self.violations(),
            "backends": {
                _label(spec): {
                    "name": spec.name,
                    "mode": spec.mode,
                    "capabilities": {cap.name: cap in spec.capabilities for cap in Capability},
                    "missing": {cap.name: reason for cap, reason in spec.missing.items()},
                    "missing_on_adopted": {cap.name: reason for cap, reason in spec.missing_on_adopted.items()},
                    "results": results(_label(spec)),
                }
                for spec in self.specs
            },
        }

    def _lines(self) -> list[str]:
        labels = [_label(spec) for spec in self.specs]
        lines = [f"Server: {self.server}, {plugins.dialect().name}. Python {platform.python_version()}.", ""]
        lines += ["| | " + " | ".join(labels) + " |", "| --- |" + " --- |" * len(labels)]
        for cap in Capability:
            cells = ["yes" if cap in spec.capabilities else "no" for spec in self.specs]
            lines.append(f"| {cap.name}: {cap.value} | " + " | ".join(cells) + " |")
        for module in sorted({test.partition("::")[0] for test, _ in self._results}):
            cells = [self._count(module, label) for label in labels]
            lines.append(f"| {module.removeprefix('test_').replace('_', ' ')} | " + " | ".join(cells) + " |")
        reasons = [f"- {_label(spec)}: {cap.name}: {why}" for spec in self.specs for cap, why in spec.missing.items()]
        reasons += [
            f"- {_label(spec)}: {cap.name} on the caller's connection: {why}"
            for spec in self.specs
            for cap, why in spec.missing_on_adopted.items()
        ]
        if reasons:
            lines += ["", "Not offered:", *reasons]
        if failed := sorted(f"{test}[{label}]" for (test, label), what in self._results.items() if what == "failed"):
            lines += ["", "Failed:", *(f"- {name}" for name in failed)]
        if partial := self.partial():
            lines += [
                "",
                f"A partial run: {len(partial)} standard tests were not collected; conformance is not shown.",
            ]
        if wrong := self.violations():
            lines += ["", "Not as shipped:", *(f"- {line}" for line in wrong)]
        return lines

    def _count(self, module: str, label: str) -> str:
        prefix = module + "::"
        outcomes = [
            outcome
            for (test, backend), outcome in self._results.items()
            if backend == label and test.startswith(prefix)
        ]
        told = {
            "passed": outcomes.count("passed"),
            "failed": outcomes.count("failed"),
            "not offered": sum(outcome.startswith("not offered") for outcome in outcomes),
            "left out": sum(outcome in ("skipped", "expected to fail") for outcome in outcomes),
        }
        return ", ".join(f"{number} {what}" for what, number in told.items() if number) or "none"


def _modes(names: Sequence[str] | None) -> list[tuple[str, Any]]:
    registered = [(spec.name, spec.mode) for spec in plugins.backend_specs()]
    if names is None:
        return registered
    wanted = [name for part in names for name in part.split(",")]
    for name in wanted:
        if name not in {known for known, _ in registered}:
            plugins.backend_spec(name, "blocking")  # this call raises the error of a broken backend
    return [(name, mode) for name, mode in registered if name in wanted]


def _label(spec: BackendSpec) -> str:
    return spec.name if spec.mode == "blocking" else f"{spec.name}-async"


def _test(item: Any) -> str:
    return f"{item.module.__name__.rpartition('.')[2]}::{item.originalname}"


def _backend(item: Any) -> str:
    spec = getattr(item, "callspec", None) and item.callspec.params.get("harness")
    return _label(spec) if isinstance(spec, BackendSpec) else ""
