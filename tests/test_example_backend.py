"""examples/pqcore-pg8000: a driver more, in a package of its own, for which nothing in the core was changed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pg8000  # noqa: F401 - where it is missing, these tests are to fail, not to be passed over
import pytest

import pqcore

PROJECT = Path(__file__).parent.parent / "examples" / "pqcore-pg8000"
CONTRACT = {
    *("pqcore", "pqcore.backend", "pqcore.backend_dsn", "pqcore.benchmarks.baseline"),
    *("pqcore.sql.identifiers", "pqcore.sql.statement"),
}
TESTS = (
    "test_basics.py",
    "test_prepared.py",
    "test_waiting.py::test_put_wakes_a_waiter",
    "test_waiting.py::test_notifications_do_not_accumulate",
    "test_transactions.py::test_operation_joins_the_callers_transaction",
    "test_transactions.py::test_block_on_an_idle_connection_is_a_transaction",
    "test_transactions.py::test_block_whose_transaction_was_aborted_raises_at_its_end",
    "test_reconnect.py::test_lost_connections_are_replaced",
    "test_worker_faults.py::test_worker_finds_jobs_after_a_connection_went_silent",
    "test_serializers.py::test_text_that_the_server_cannot_hold_is_refused",
)
"""A part of the suite, in which each method of the contract is called."""


def test_example_backend_passes_the_suite(
    tmp_path: Path, pqcore_server: str, install: Callable[[Path], dict[str, str]]
) -> None:
    variables = {**install(PROJECT), "PQCORE_TEST_DSN": pqcore_server}
    tests = [f"pqcore.testing.suite.{test.replace('.py', '')}" for test in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", f"--rootdir={PROJECT}", f"--config-file={PROJECT}/pyproject.toml"]
    command += ["-p", "no:cacheprovider", f"--pqcore-report={tmp_path}/report", str(PROJECT / "tests"), *tests]
    done = subprocess.run(
        command, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "report.json").read_text("utf-8"))["backends"]["pg8000"]["results"]
    assert len({test.partition("[")[0] for test in results}) >= len(TESTS)
    assert set(results.values()) == {"passed"}


def test_example_backend_is_listed_by_pqcore(install: Callable[[Path], dict[str, str]]) -> None:
    command = [sys.executable, "-m", "pqcore", "backends", "--json"]
    done = subprocess.run(command, env=install(PROJECT), capture_output=True, text=True, timeout=60, check=True)
    found = {spec["name"]: spec for spec in map(json.loads, done.stdout.splitlines())}["pg8000"]
    assert found["usable"], found["why_not"]
    assert found["capabilities"] == ["LISTEN", "PREPARED"]
    assert found["missing"] == {"POOL": "pg8000 has no pools"}


@pytest.mark.parametrize("source", sorted((PROJECT / "pqcore_pg8000").glob("*.py")), ids=lambda path: path.name)
def test_example_backend_imports_only_the_contract(source: Path) -> None:
    imported = {
        node.module
        for node in ast.walk(ast.parse(source.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "pqcore"
    }
    assert imported <= CONTRACT


def test_core_does_not_mention_the_example_backend() -> None:
    core = Path(pqcore.__file__).parent
    assert [path for path in core.rglob("*.py") if "pg8000" in path.read_text("utf-8")] == []
