"""Where tests get their PostgreSQL: a DSN, a container, or the embedded server, in this order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from urllib.parse import quote

from pqcore.errors import ConfigurationError, PQError
from pqcore.identifiers import TableName


@cache
def prepared() -> bool:
    """Whether what is tested may prepare statements and listen: not over a pooler that shares its connections.

    ``PQCORE_TEST_PREPARED`` says ``yes`` or ``no``; else it is looked whether ``PQCORE_TEST_DSN`` leads to a pooler.
    """
    said = os.environ.get("PQCORE_TEST_PREPARED", "")
    if said not in ("", "yes", "no"):
        msg = f"PQCORE_TEST_PREPARED is to be yes or no, not {said!r}"
        raise ConfigurationError(msg)
    dsn = os.environ.get("PQCORE_TEST_DSN", "")
    if said or "://" not in dsn:
        return said != "no"
    from pqcore.testing.databases import Connection

    try:
        connection = Connection(dsn, TableName("queue"))
        try:
            connection.sql("SELECT 1")
            return not connection.engine._opener(connection.engine.spec).alternates
        finally:
            connection.close()
    except PQError:  # the first test says it
        return True


@cache
def partitions() -> int | None:
    """In how many partitions tables are made: ``PQCORE_TEST_PARTITIONS``; None for tables without."""
    said = os.environ.get("PQCORE_TEST_PARTITIONS", "")
    if said and not said.isdecimal():
        msg = f"PQCORE_TEST_PARTITIONS is to be a number, not {said!r}"
        raise ConfigurationError(msg)
    return int(said) if said else None


@contextmanager
def server() -> Iterator[tuple[str, str]]:
    """A running server.

    Taken from, in this order: ``PQCORE_TEST_DSN``, a running one;
    ``PQCORE_TEST_CONTAINER``, an image for testcontainers, such as ``postgres:15``;
    else an embedded one, which is stopped at the end.

    Yields:
        A DSN (a URL), and where it came from.
    """
    if dsn := os.environ.get("PQCORE_TEST_DSN"):
        if "://" not in dsn:
            msg = f"PQCORE_TEST_DSN is to be a URL, postgresql://user@host/database, not {dsn!r}"
            raise ConfigurationError(msg)
        yield dsn, "PQCORE_TEST_DSN"
    elif image := os.environ.get("PQCORE_TEST_CONTAINER"):
        with _container(image) as dsn:
            yield dsn, f"container {image}"
    else:
        from pqcore_backends.embedded import EmbeddedServer

        # Durability is not what is tested here, and the tests make many small commits.
        settings = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        with EmbeddedServer(settings=settings) as embedded:
            yield embedded.dsn(), f"embedded PostgreSQL {embedded.version}"


@contextmanager
def _container(image: str) -> Iterator[str]:
    try:
        from testcontainers.community.postgres import PostgresContainer
    except ImportError:  # before it moved
        from testcontainers.postgres import PostgresContainer
    container = PostgresContainer(image, username="postgres", password="postgres", dbname="pqcore", driver=None)
    pid = os.getpid()
    container.start()
    try:
        yield container.get_connection_url()
    finally:
        if os.getpid() == pid:  # a forked child leaves it to its parent
            container.stop()


def with_options(dsn: str, **options: str) -> str:
    """Add options, such as ``application_name``, to a DSN that is a URL."""
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items())
    return f"{dsn}{'&' if '?' in dsn else '?'}{query}"


def with_isolation(dsn: str, level: str) -> str:
    """A DSN with a default isolation level."""
    escaped = level.replace(" ", "\\ ")
    return with_options(dsn, options=f"-c default_transaction_isolation={escaped}")
