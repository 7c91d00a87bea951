"""Fixtures of the project's own tests."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from pqcore import PQ
from pqcore.backend_registry import importable
from pqcore.db.dsn import with_database
from pqcore.testing.commands import MARK, left_over
from pqcore.testing.plugin import spare_collected_tests

# Django 5 has no tasks of its own; django-tasks is a package.
collect_ignore = [] if importable("django.tasks") or importable("django_tasks") else ["test_django_tasks.py"]
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts pytest in the background makes it ignore SIGINT, and its child processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
SOON = 5.0
"""Seconds within which processes end that the last test told to end."""
_numbers = itertools.count(1)


def pytest_collection_finish(session: pytest.Session) -> None:
    spare_collected_tests(session)


@pytest.fixture(scope="session", autouse=True)
def _every_process_is_ended() -> Iterator[None]:
    """Fail at the end of the run if a test has left a process behind."""
    before = os.environ.get(MARK)
    os.environ[MARK] = str(os.getpid())
    yield
    deadline = time.monotonic() + SOON
    while (left := left_over(os.getpid())) and time.monotonic() < deadline:
        time.sleep(0.05)
    if before is not None:  # this run was started by a test
        os.environ[MARK] = before
    assert not left, "tests have started these, and not ended them:\n" + "\n".join(left)


class Copies:
    """Databases of tests, which are copies of two templates: an empty one, and one with the tables.

    Args:
        server: The DSN of the server.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._name = f"test_{os.getpid()}_{time.time_ns()}"
        self._originals: dict[bool, str] = {}
        self._connection = psycopg.connect(server, autocommit=True)
        found = self._connection.execute(
            "SELECT current_setting('server_version_num')::int >= 150000 AND current_setting('fsync') = 'off'"
        ).fetchone()
        # Copying files is faster, but takes checkpoints, which are slow on a server with fsync.
        self._strategy = " STRATEGY FILE_COPY" if found == (True,) else ""

    @contextmanager
    def lent(self, *, tables: bool) -> Iterator[str]:
        """Give the DSN of a copy, which is dropped at the end.

        Args:
            tables: Whether it has the tables of a queue.
        """
        original = self._original(tables)
        name = f"{self._name}_{next(_numbers)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {original}{self._strategy}")
        yield with_database(self._server, name)
        self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def close(self) -> None:
        """Drop the originals."""
        for name in self._originals.values():
            self._run(f"DROP DATABASE {name} WITH (FORCE)")
        self._connection.close()

    def _original(self, tables: bool) -> str:
        if tables not in self._originals:
            name = f"{self._name}_{'tables' if tables else 'empty'}"
            self._run(f"CREATE DATABASE {name}")
            self._originals[tables] = name
            # The first session of a database writes the file from which others fill their caches; it is copied, too.
            dsn = with_database(self._server, name)
            psycopg.connect(dsn).close()
            if tables:
                with PQ(dsn, backend="psycopg") as pq:
                    pq.create()
        return self._originals[tables]

    def _run(self, statement: str) -> None:
        try:
            self._connection.execute(statement.encode())
        except psycopg.OperationalError:
            if not self._connection.closed:
                raise
            self._connection = psycopg.connect(self._server, autocommit=True)  # a test has ended all sessions
            self._connection.execute(statement.encode())


@pytest.fixture(scope="session")
def _copies(pqcore_server: str) -> Iterator[Copies]:
    copies = Copies(pqcore_server)
    yield copies
    copies.close()


@pytest.fixture
def empty_dsn(_copies: Copies) -> Iterator[str]:
    """The DSN of an empty database for this test alone."""
    with _copies.lent(tables=False) as dsn:
        yield dsn


@pytest.fixture
def made_dsn(_copies: Copies) -> Iterator[str]:
    """The DSN of a database for this test alone, with the tables that `PQ.create` makes."""
    with _copies.lent(tables=True) as dsn:
        yield dsn


@pytest.fixture
def dsn(empty_dsn: str) -> str:
    """The DSN of a database for this test alone; a module that needs the tables from the start overrides this."""
    return empty_dsn


@pytest.fixture
def install(tmp_path: Path) -> Callable[[Path], dict[str, str]]:
    """Install a project in its own folder; return the environment of processes that import it."""

    def installed(project: Path) -> dict[str, str]:
        site, copy = tmp_path / "site", tmp_path / "copy"
        shutil.copytree(project, copy)  # setuptools leaves files behind where it builds
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-build-isolation", "--no-index", "--target", str(site), str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return {**os.environ, "PYTHONPATH": str(site)}

    return installed
