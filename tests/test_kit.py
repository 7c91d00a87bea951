"""The conformance kit itself: wrong backends fail the right tests, and gaps in a run are told."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pqcore.testing.suite
from pqcore.testing.commands import alive, eventually, group, left_over
from pqcore.testing.report import standard_tests

SUITE = Path(pqcore.testing.suite.__path__[0])

WRONG = {
    "rollback commits": "def rollback(self): self.commit()",
    "notifications are dropped": "def notifications(self):\n        super().notifications()\n        return []",
    "rows are dictionaries": (
        "def execute(self, query, parameters):\n"
        "        return [dict(enumerate(row)) | {'x': 1} for row in super().execute(query, parameters)]"
    ),
    "the caller's transaction is committed": (
        "def enter(self):\n        self.connection.commit()\n        super().enter()"
    ),
    "a lost connection looks usable": "def alive(self): return True",
    "nothing is prepared": (
        "def __init__(self, connection, *, prepared): super().__init__(connection, prepared=False)"
    ),
}

PLUGIN = """
import dataclasses
from pqcore import hookimpl
from pqcore.plugins import plugins
from pqcore_backends.plugin import PSYCOPG2
from pqcore_backends.psycopg2 import Psycopg2Backend, Psycopg2Session

class WrongSession(Psycopg2Session):
    {body}

class WrongBackend(Psycopg2Backend):
    def connect(self, dsn):
        import psycopg2
        return WrongSession(psycopg2.connect(dsn), prepared=self._prepares)
    def wrap(self, connection):
        return WrongSession(connection, prepared=self._prepares)

class Plugin:
    @hookimpl
    def pqcore_register_backends(self, register):
        wrong = dict(name="wrong", load="wrong_plugin:WrongBackend", connections=(), pools=())
        register(dataclasses.replace(PSYCOPG2, **wrong))

plugins.register(Plugin(), "wrong")
"""


def run_suite(folder: Path, dsn: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the suite as a backend's author does; returns the process and the report."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    done = subprocess.run(
        [*command, "--pqcore-report", str(folder / "report"), *arguments],
        cwd=folder,
        env={**os.environ, "PQCORE_TEST_DSN": dsn, "PYTHONPATH": str(folder), "PQCORE_TEST_PATIENCE": "3"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    report = folder / "report.json"
    return done, json.loads(report.read_text()) if report.exists() else {}


@pytest.mark.parametrize(
    ("fault", "where", "which"),
    [
        ("rollback commits", "test_transactions.py", "block_is_undone_by_an_exception"),
        ("notifications are dropped", "test_waiting.py", "insert_by_another_client_wakes"),
        ("rows are dictionaries", "test_basics.py", "put_data_are_returned_by_get"),
        ("the caller's transaction is committed", "test_transactions.py", "owner"),
        ("a lost connection looks usable", "test_reconnect.py", "lost_connections_are_replaced"),
        ("nothing is prepared", "test_prepared.py", "hot_statements"),
    ],
)
def test_suite_fails_for_a_wrong_backend(
    tmp_path: Path, pqcore_server: str, fault: str, where: str, which: str
) -> None:
    (tmp_path / "wrong_plugin.py").write_text(PLUGIN.format(body=WRONG[fault]))
    arguments = [
        "-p",
        "wrong_plugin",
        "--pqcore-backend",
        "wrong",
        "-x",
        str(SUITE / where),
        "-k",
        which,
    ]
    done, report = run_suite(tmp_path, pqcore_server, *arguments)
    assert done.returncode == 1, done.stdout
    assert "failed" in report["backends"]["wrong"]["results"].values(), done.stdout


def test_suite_run_of_some_tests_is_reported_as_partial(tmp_path: Path, pqcore_server: str) -> None:
    arguments = [
        "--pqcore-backend",
        "psycopg2",
        str(SUITE / "test_basics.py"),
        "-k",
        "test_queues_of_different_names_are_separate",
    ]
    done, report = run_suite(tmp_path, pqcore_server, *arguments)
    assert done.returncode == 0, done.stdout
    assert report["complete"] is False
    assert "A partial run" in done.stdout


@pytest.mark.parametrize("how", ["skip", "xfail"])
def test_suite_run_with_skipped_or_xfailed_tests_fails(tmp_path: Path, pqcore_server: str, how: str) -> None:
    (tmp_path / "shirking.py").write_text(
        "import pytest\n"
        "def pytest_collection_modifyitems(items):\n"
        "    for item in items:\n"
        f"        item.add_marker(pytest.mark.{how}(reason='hard'))\n"
    )
    arguments = [
        "-o",
        "xfail_strict=false",
        "-p",
        "shirking",
        "--pqcore-backend",
        "psycopg2",
        str(SUITE / "test_basics.py"),
        "-k",
        "separate",
    ]
    done, report = run_suite(tmp_path, pqcore_server, *arguments)
    assert done.returncode == 1, done.stdout
    assert report["violations"], done.stdout


def test_suite_run_of_all_tests_is_complete(tmp_path: Path, pqcore_server: str) -> None:
    arguments = ["--collect-only", "--pqcore-backend", "psycopg2,asyncpg", "--pyargs", "pqcore.testing.suite"]
    done, report = run_suite(tmp_path, pqcore_server, *arguments)
    assert done.returncode == 0, done.stdout
    assert report["complete"] is True, done.stdout


def test_suite_harness_can_be_used_by_other_tests(tmp_path: Path, pqcore_server: str) -> None:
    def schemas() -> list[Any]:
        with psycopg.connect(pqcore_server) as connection:
            return connection.execute("SELECT oid FROM pg_namespace WHERE nspname LIKE 'pqcore_test%'").fetchall()

    before = schemas()
    (tmp_path / "test_mine.py").write_text("def test_mine(harness):\n    assert harness.queue().put(1) == 1\n")
    arguments = [
        "--pqcore-backend",
        "psycopg2",
        str(SUITE / "test_basics.py"),
        "test_mine.py",
        "-k",
        "separate or mine",
    ]
    done, report = run_suite(tmp_path, pqcore_server, *arguments)
    assert done.returncode == 0, done.stdout
    assert report["violations"] == []
    assert schemas() == before, "the run has dropped its schemas"
    assert report["backends"]["psycopg2"]["results"] == {
        "test_basics::test_queues_of_different_names_are_separate": "passed"
    }


def test_suite_run_of_an_unknown_backend_is_an_error(tmp_path: Path, pqcore_server: str) -> None:
    done, _ = run_suite(tmp_path, pqcore_server, "--pyargs", "pqcore.testing.suite", "--pqcore-backend", "nothing")
    assert done.returncode not in (0, 5)
    assert "unknown backend 'nothing'" in done.stdout + done.stderr


def test_suite_has_standard_tests_of_every_subject() -> None:
    subjects = {test.partition("::")[0] for test in standard_tests()}
    assert subjects >= {
        *("test_basics", "test_bulk", "test_cancellation", "test_concurrency", "test_errors", "test_leases"),
        *("test_names", "test_order", "test_prepared", "test_reconnect", "test_schema", "test_serializers"),
        *("test_transactions", "test_waiting"),
    }


# The contract


VOID = re.compile(r"(?<!PERFORM )\b(?:pg_notify|pg_sleep|pg_advisory_(?:xact_)?lock(?:_shared)?)\(")


def test_statements_return_no_column_of_type_void() -> None:
    """Drivers may not know the type: what returns it is read as text, or compared."""
    found = 0
    for path in Path(pqcore.__file__).parent.rglob("*.py"):
        text = path.read_text("utf-8")
        for call in VOID.finditer(text):
            depth, end = 1, call.end()
            while depth:
                depth += {"(": 1, ")": -1}.get(text[end], 0)
                end += 1
            number = text.count("\n", 0, call.start()) + 1
            assert re.match(r"::text| IS NULL", text[end:]), f"{path}:{number}: the result of {call[0]}) is void"
            found += 1
    assert found > 10


# What tests start, they end


def test_leftover_process_is_found_and_a_group_is_ended_as_a_whole(tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = f"sleep 600 & echo $! > {told}; mv {told} {told}.whole; exit 0"
    with group(["bash", "-c", script], stdin=subprocess.DEVNULL) as process:
        assert process.wait() == 0
        [pid] = [int(text) for text in told.with_suffix(".whole").read_text().split()]
        [left] = [each for each in left_over(os.getpid()) if f"process {pid}," in each]
        assert "sleep 600" in left
        assert "test_leftover_process_is_found" in left
    eventually(lambda: not alive(pid))
    assert [each for each in left_over(os.getpid()) if "sleep 600" in each] == []


def test_leftover_process_of_a_fork_server_is_found() -> None:
    forked = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(600,))
    forked.start()
    try:
        [left] = [each for each in left_over(os.getpid()) if "forkserver" in each]
        assert f"process {forked.pid}," in left
    finally:
        forked.kill()
        forked.join()
    assert [each for each in left_over(os.getpid()) if "forkserver" in each] == []


def test_leftover_child_ends_with_the_process_that_spawned_it() -> None:
    program = (
        "import os, sys; from pqcore.testing.consumers import Child; from tests.test_kit import hang\n"
        "if __name__ == '__main__':\n"
        "    child = Child(hang)\n"
        "    print(child.recv(20), flush=True)\n"
        "    os._exit(0)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True, check=True)
    pid = int(done.stdout)
    eventually(lambda: not alive(pid))


def hang(pipe: Connection) -> None:
    """Say which process this is, and end only when it is killed."""
    pipe.send(os.getpid())
    threading.Event().wait()
