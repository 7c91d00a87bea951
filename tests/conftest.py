"""Fixtures of the project's own tests."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

_numbers = itertools.count(1)


@pytest.fixture
def dsn(pqcore_server: str) -> Iterator[str]:
    """The DSN of an empty database of the test's own."""
    name = f"test_{time.time_ns()}_{next(_numbers)}"
    parts = urlsplit(pqcore_server)
    with psycopg.connect(pqcore_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield urlunsplit(parts._replace(path=f"/{name}"))
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
