"""The tables: the results that workers write, and the conductor's own records.

All are in one schema, which is dropped at the end.
"""

from __future__ import annotations

import importlib
import itertools
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pqcore import PQ
from pqcore.demo.messages import DemoError

# The table has no constraint against a second result of a job: the proof must be able to find one.
TABLES = """
CREATE TABLE demo_results (
  job_id bigint, path text, sha256 text, worker text, driver text,
  done_at timestamptz DEFAULT clock_timestamp()
);
CREATE TABLE demo_orders (job_id bigint, path text, driver text);
CREATE TABLE demo_put (job_id bigint, path text, driver text, ordered boolean);
CREATE TABLE demo_undone (job_id bigint);
CREATE TABLE demo_held (job_id bigint, worker text);
CREATE TABLE demo_files (path text, sha256 text)
"""


@dataclass
class Books:
    """The workers' reports, stored separately from what the workers wrote.

    Attributes:
        put: For each job that was put: id, path, driver, and whether it came with an order.
        undone: Jobs whose put was rolled back.
        held: Jobs that a worker held when it was killed, with the worker's name.
        files: The path and the hash of each file, computed again.
    """

    put: list[tuple[int, str, str, bool]] = field(default_factory=list)
    undone: list[tuple[int]] = field(default_factory=list)
    held: list[tuple[int, str]] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)


def insert_result(schema: str) -> str:
    """Return the statement that stores a job's result."""
    return f"INSERT INTO {schema}.demo_results (job_id, path, sha256, worker, driver) VALUES (%s, %s, %s, %s, %s)"


def insert_order(schema: str) -> str:
    """Return the statement that stores an order."""
    return f"INSERT INTO {schema}.demo_orders (job_id, path, driver) VALUES (%s, %s, %s)"


def numbered(sql: str) -> str:
    """Return a statement with placeholders in asyncpg's form."""
    count = itertools.count(1)
    return re.sub("%s", lambda _: f"${next(count)}", sql)


@contextmanager
def demo_schema(dsn: str) -> Iterator[tuple[Any, str]]:
    """Make the tables, and drop them at the end.

    Yields:
        A psycopg connection whose ``search_path`` is the schema of the tables, and the name of the schema.

    Raises:
        DemoError: The server cannot be reached, or refuses the statements.
    """
    schema = f"pqcore_demo_{secrets.token_hex(4)}"
    psycopg: Any = importlib.import_module("psycopg")
    try:
        connection = psycopg.connect(dsn, autocommit=True)
        connection.execute(f"CREATE SCHEMA {schema}")
    except psycopg.Error as error:
        raise DemoError(f"cannot make a schema on this server: {error}") from error
    try:
        connection.execute(f"SET search_path = {schema}; SET lock_timeout = '10s'")
        PQ(connection, schema=schema).create()
        connection.execute(TABLES)
        yield connection, schema
    finally:
        try:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")
        except psycopg.Error as error:  # this error must not hide an error of the block
            print(f"schema {schema} is left behind: {error}", file=sys.stderr)
        connection.close()


def write_books(connection: Any, books: Books) -> None:
    """Store the conductor's records next to the workers' results."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany("INSERT INTO demo_put VALUES (%s, %s, %s, %s)", books.put)
        cursor.executemany("INSERT INTO demo_undone VALUES (%s)", books.undone)
        cursor.executemany("INSERT INTO demo_held VALUES (%s, %s)", books.held)
        cursor.executemany("INSERT INTO demo_files VALUES (%s, %s)", books.files)
