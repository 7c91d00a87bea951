"""The conformance kit itself: wrong backends fail the right tests, and the report shows what was not run."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
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
from pqcore.backend import Capability
from pqcore.plugins import plugins
from pqcore_backends.plugin import PSYCOPG2
from pqcore_backends.psycopg2 import Psycopg2Backend, Psycopg2Session

class WrongSession(Psycopg2Session):
    opened = False
    {body}

class WrongBackend(Psycopg2Backend):
    def connect(self, dsn):
        import psycopg2
        session = self.wrap(psycopg2.connect(dsn))
        session.opened = True
        return session
    def wrap(self, connection):
        return WrongSession(connection, prepared=self._prepares)

class Plugin:
    @hookimpl
    def pqcore_register_backends(self, register):
        wrong = dict(name="wrong", load="wrong_plugin:WrongBackend", connections=(), pools=())
        register(dataclasses.replace(PSYCOPG2, **wrong | dict({more})))

plugins.register(Plugin(), "wrong")
"""


PLAIN = """
import dataclasses
from pqcore import hookimpl
from pqcore.backend import Capability
from pqcore.plugins import plugins
from pqcore_backends.plugin import PSYCOPG
from pqcore_backends.psycopg import PsycopgBackend

class PlainSession:
    def __init__(self, session):
        self._session, self.connection = session, session.connection

def passed_on(name):
    return lambda self, *arguments, **options: getattr(self._session, name)(*arguments, **options)

for name in (
    *("enter", "leave", "in_transaction", "usable", "alive", "execute", "begin", "commit", "rollback"),
    *("cursor", "close", "abort"),
):
    setattr(PlainSession, name, passed_on(name))

class PlainBackend:
    def __init__(self, *, prepared=True):
        self._backend = PsycopgBackend(prepared=prepared)
        self.errors = self._backend.errors
        self.close_connection = self._backend.close_connection
    def connect(self, dsn):
        return PlainSession(self._backend.connect(dsn))
    def wrap(self, connection):
        return PlainSession(self._backend.wrap(connection))

class Plugin:
    @hookimpl
    def pqcore_register_backends(self, register):
        lacks = dict(capabilities=frozenset(), missing=dict.fromkeys(Capability, "it is plain"), pools=())
        register(dataclasses.replace(PSYCOPG, name="plain", load="plain_plugin:PlainBackend", **lacks))

plugins.register(Plugin(), "plain")
"""
"""A backend without capabilities, whose sessions lack all optional methods."""
FAIR = (
    "test_retried_dead_letter_wakes_a_worker",
    "test_worker_survives_the_loss_of_all_connections",
    "test_worker_finds_jobs_after_a_connection_went_silent",
    "test_result_waits_until_the_job_ends",
    "test_task_past_its_timeout_loses_the_block_that_it_waits_in",
    "test_answer_timeout_cancels_a_blocked_statement_on_the_server",
    "test_notifications_of_the_callers_channels_are_left_to_the_caller",
)
"""Scenarios that could by mistake need more than the contract demands."""


def run_suite(
    folder: Path, dsn: str, *arguments: str, variables: Mapping[str, str] | None = None
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the suite as a backend's author does; return the process and the report."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    done = subprocess.run(
        [*command, "--pqcore-report", str(folder / "report"), *arguments],
        cwd=folder,
        env={**os.environ, "PQCORE_TEST_DSN": dsn, "PYTHONPATH": str(folder), **(variables or {})},
        capture_output=True,
        text=True,
        timeout=170,
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
    (tmp_path / "wrong_plugin.py").write_text(PLUGIN.format(body=WRONG[fault], more=""))
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
    # The scenarios wait for what never happens.
    done, report = run_suite(tmp_path, pqcore_server, *arguments, variables={"PQCORE_TEST_PATIENCE": "3"})
    assert done.returncode == 1, done.stdout
    assert "failed" in report["backends"]["wrong"]["results"].values(), done.stdout


def test_suite_test_whose_driver_never_answers_fails_after_a_while(tmp_path: Path, pqcore_server: str) -> None:
    hangs = (
        "def execute(self, query, parameters):\n"
        "        if '1 / 0' in query.sql: import time; time.sleep(60)\n"
        "        return super().execute(query, parameters)"
    )
    short = "from pqcore.testing import plugin\nplugin.LONGEST = 3\n"
    (tmp_path / "wrong_plugin.py").write_text(short + PLUGIN.format(body=hangs, more=""))
    which = ("-k", "error_of_the_server or separate")
    arguments = ["-p", "wrong_plugin", "--pqcore-backend", "wrong", str(SUITE / "test_basics.py"), *which]
    arguments += ["-o", "timeout="]  # without the setting of this project
    done, report = run_suite(tmp_path, pqcore_server, *arguments)
    assert "Timeout" in done.stdout, done.stdout
    assert report["backends"]["wrong"]["results"] == {
        "test_basics::test_error_of_the_server_has_its_sqlstate": "failed",
        "test_basics::test_queues_of_different_names_are_separate": "passed",
    }


def test_suite_leaves_out_what_a_backend_lacks_on_the_callers_connection(tmp_path: Path, pqcore_server: str) -> None:
    (tmp_path / "wrong_plugin.py").write_text(
        PLUGIN.format(
            body="def listen(self, channel): super().listen(channel) if self.opened else self.connection.close()",
            more="connections=PSYCOPG2.connections, missing_on_adopted={Capability.LISTEN: 'it is deaf'}",
        )
    )
    which = ("-k", "one_connection_is_woken_in_its_first_wait or one_connection_wakes or put_wakes_the_first_wait")
    arguments = ["-p", "wrong_plugin", "--pqcore-backend", "wrong", str(SUITE / "test_waiting.py"), *which]
    done, report = run_suite(tmp_path, pqcore_server, *arguments)
    assert done.returncode == 0, done.stdout
    assert report["backends"]["wrong"]["missing_on_adopted"] == {"LISTEN": "it is deaf"}
    assert report["backends"]["wrong"]["results"] == {
        "test_waiting::test_put_wakes_the_first_wait": "passed",
        "test_waiting::test_waiter_over_one_connection_is_woken_in_its_first_wait": (
            "not offered: LISTEN on the caller's connection"
        ),
        "test_waiting::test_waiter_over_one_connection_wakes_when_a_job_becomes_due": "passed",
    }
    assert "LISTEN on the caller's connection: it is deaf" in done.stdout


def test_suite_is_fair_to_a_backend_that_leaves_out_what_it_may(tmp_path: Path, pqcore_server: str) -> None:
    (tmp_path / "plain_plugin.py").write_text(PLAIN)
    modules = [str(SUITE / f"test_{name}.py") for name in ("dead_letters", "worker_faults", "results", "silence")]
    arguments = ["-p", "plain_plugin", "--pqcore-backend", "plain", *modules, "-k", " or ".join(FAIR)]
    done, report = run_suite(tmp_path, pqcore_server, *arguments)
    assert done.returncode == 0, done.stdout
    results = {test.partition("::")[2]: outcome for test, outcome in report["backends"]["plain"]["results"].items()}
    assert results == dict.fromkeys(FAIR[:-2], "passed") | {
        FAIR[-2]: "not offered: cancel()",
        FAIR[-1]: "not offered: LISTEN",
    }


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
    """Drivers may not know a type, so a value of it is returned as text, or only compared."""
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


# Tests end the processes that they start


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
    """Write this process's id, and wait to be killed."""
    pipe.send(os.getpid())
    threading.Event().wait()
