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
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from pqcore.backend_registry import importable
from pqcore.testing.commands import MARK, left_over

# Django 5 has no tasks of its own; django-tasks is a package.
collect_ignore = [] if importable("django.tasks") or importable("django_tasks") else ["test_django_tasks.py"]
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs pytest in the background has it ignore SIGINT, and so would the processes that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
SOON = 5.0
"""Seconds in which processes have ended that were told to end by the last test."""
_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def _every_process_is_ended() -> Iterator[None]:
    """Fail at the end of the run if a test has left a process behind."""
    before = os.environ.get(MARK)
    os.environ[MARK] = str(os.getpid())
    yield
    deadline = time.monotonic() + SOON
    while (left := left_over(os.getpid())) and time.monotonic() < deadline:
        time.sleep(0.05)
    if before is not None:  # this run is itself a test's
        os.environ[MARK] = before
    assert not left, "tests have started these, and not ended them:\n" + "\n".join(left)


@pytest.fixture
def dsn(pqcore_server: str) -> Iterator[str]:
    """The DSN of an empty database of the test's own."""
    name = f"test_{time.time_ns()}_{next(_numbers)}"
    parts = urlsplit(pqcore_server)
    with psycopg.connect(pqcore_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield urlunsplit(parts._replace(path=f"/{name}"))
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def install(tmp_path: Path) -> Callable[[Path], dict[str, str]]:
    """Installs a project in a folder of its own; gives the environment of processes that import it."""

    def installed(project: Path) -> dict[str, str]:
        site, copy = tmp_path / "site", tmp_path / "copy"
        shutil.copytree(project, copy)  # setuptools leaves files behind where it builds
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-build-isolation", "--no-index", "--target", str(site), str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return {**os.environ, "PYTHONPATH": str(site)}

    return installed
