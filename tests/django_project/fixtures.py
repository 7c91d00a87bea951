"""The project in the process of the tests: set up once, with a database of each module's own."""

# ruff: noqa: E402 - the first import decides on the driver
from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

DRIVER = os.environ.get("DJANGO_TEST_DRIVER", "psycopg")
"""Django takes psycopg if it is there: for the other one it is not, while Django is imported."""
if DRIVER == "psycopg2":
    sys.modules["psycopg"] = None  # type: ignore[assignment]

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.management import call_command
from django.db import connection, connections
from django.db.backends.postgresql import base, psycopg_any

sys.modules["psycopg"] = psycopg
from django_project import settings as of_project
from pqcore.plugins import plugins

if not settings.configured:
    settings.configure(**{name: value for name, value in vars(of_project).items() if name.isupper()})
django.setup()
assert psycopg_any.is_psycopg3 == (DRIVER == "psycopg")
assert base.Database.__name__ == DRIVER

from pqcore.integrations.django import queue, stale_connections
from pqcore.worker import Worker, process_main

plugins.manager.unregister(stale_connections.PLUGIN)  # other tests of this process have none
_numbers = itertools.count(1)
# The project's settings for processes that run jobs, while it is not in use.
_first: list[str] = []
_around: list[Any] = []


def point_to(dsn: str) -> None:
    """Have Django's database be another."""
    connections.settings["default"] = connections.configure_settings({"default": of_project.database(dsn)})["default"]
    _forget()
    asyncio.run(sync_to_async(_forget)())


def _forget() -> None:
    """Close the connections of this thread; the next one is made with the settings as they are then."""
    connections.close_all()
    with suppress(AttributeError):  # it has none
        del connections["default"]


@pytest.fixture(scope="module")
def project(pqcore_server: str) -> Iterator[str]:
    """The DSN of a database in which all migrations were run."""
    name = f"django_{time.time_ns()}_{next(_numbers)}"
    dsn = urlunsplit(urlsplit(pqcore_server)._replace(path=f"/{name}"))
    with psycopg.connect(pqcore_server, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        point_to(dsn)
        stale_connections.register()
        process_main.PRELOADED_MODULES += _first
        process_main.CALL_CONTEXTS += _around
        call_command("migrate", run_syncdb=True, verbosity=0)
        yield dsn
        plugins.manager.unregister(stale_connections.PLUGIN)
        _first[:], _around[:] = process_main.PRELOADED_MODULES, process_main.CALL_CONTEXTS
        process_main.PRELOADED_MODULES.clear()
        process_main.CALL_CONTEXTS.clear()
        point_to(dsn)
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def dsn(project: str) -> Iterator[str]:
    """The same, without jobs and orders."""
    yield project
    connections.close_all()
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE queue, queue_dead, queue_archive, queue_results, queue_slots, shop_order")
    connections.close_all()


MANAGE = Path(__file__).parent / "manage.py"
SECRET = "s3cr%t w/rd"


def work(*names: str, **options: Any) -> None:
    """Run all due jobs in a worker of this process."""
    asyncio.run(Worker(*map(queue, names), burst=True, **options).run())


def manage(dsn: str, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``manage.py pqcore``, from another folder, as a deployment would."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PQCORE_", "DJANGO_"))}
    secret = dsn.replace("postgres@", f"postgres:{SECRET.replace('%', '%25').replace(' ', '%20').replace('/', '%2F')}@")
    variables |= {"DJANGO_TEST_DSN": secret, "PQCORE_DSN": "postgresql://nobody@127.0.0.1:1/elsewhere"}
    return subprocess.run(
        [sys.executable, str(MANAGE), "pqcore", *arguments],
        cwd=folder,
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
