"""The PostgreSQL server for tests: a DSN, a container, or the embedded server, in this order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from pqcore.db.dsn import with_options
from pqcore.errors import ConfigurationError


@cache
def partitions() -> int | None:
    """Return the number of partitions for new tables: ``PQCORE_TEST_PARTITIONS``.

    None for tables without partitions.
    """
    said = os.environ.get("PQCORE_TEST_PARTITIONS", "")
    if said and not said.isdecimal():
        msg = f"PQCORE_TEST_PARTITIONS is {said!r}; give a number"
        raise ConfigurationError(msg)
    return int(said) if said else None


@contextmanager
def server() -> Iterator[tuple[str, str]]:
    """Yield a running server.

    With ``PQCORE_TEST_DSN``, this is the running server that the DSN names. Otherwise, with ``PQCORE_TEST_CONTAINER``,
    testcontainers runs the image that the variable names, such as ``postgres:15``. Without both variables, the function
    starts an embedded server, and stops it at the end.

    Yields:
        A DSN (a URL), and the origin of the server.

    Raises:
        ConfigurationError: A variable is wrong, testcontainers is not installed, or the container did not start.
    """
    if dsn := os.environ.get("PQCORE_TEST_DSN"):
        if "://" not in dsn:
            msg = f"PQCORE_TEST_DSN is {dsn!r}; give a URL, postgresql://user@host/database"
            raise ConfigurationError(msg)
        yield dsn, "PQCORE_TEST_DSN"
    elif image := os.environ.get("PQCORE_TEST_CONTAINER"):
        with _container(image) as dsn:
            yield dsn, f"container {image}"
    else:
        from pqcore_backends.embedded import EmbeddedServer

        # The tests make many small commits, databases and tables, and do not test durability.
        settings = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_wal_size": "256MB"}
        with EmbeddedServer(settings=settings, in_memory=True) as embedded:
            yield embedded.dsn(), f"embedded PostgreSQL {embedded.version}"


@contextmanager
def _container(image: str) -> Iterator[str]:
    made = _postgres_container()
    pid = os.getpid()
    try:
        container = made(image, username="postgres", password="postgres", dbname="pqcore", driver=None)
        container.start()
    except Exception as exc:
        said = str(exc).strip() or type(exc).__name__
        raise ConfigurationError(f"the container of {image} did not start: {said}{_about_ryuk(said)}") from exc
    try:
        yield container.get_connection_url()
    finally:
        if os.getpid() == pid:  # a forked child leaves the server to its parent
            container.stop()


def _postgres_container() -> Any:
    try:
        try:
            from testcontainers.community.postgres import PostgresContainer
        except ImportError:  # older versions of testcontainers have the class in this module
            from testcontainers.postgres import PostgresContainer
    except ImportError as exc:
        msg = f"PQCORE_TEST_CONTAINER needs testcontainers ({exc}): pip install 'pqcore[container]'"
        raise ConfigurationError(msg) from exc
    return PostgresContainer


def _about_ryuk(said: str) -> str:
    """Return advice for a failure to get or run the image of testcontainers' reaper."""
    if "ryuk" not in said.lower():
        return ""
    return (
        "; testcontainers first starts its container ryuk, which removes the containers of killed runs."
        " If the image of ryuk cannot be pulled, set TESTCONTAINERS_RYUK_DISABLED=true"
    )


def with_isolation(dsn: str, level: str) -> str:
    """Return a DSN with a default isolation level."""
    escaped = level.replace(" ", "\\ ")
    return with_options(dsn, options=f"-c default_transaction_isolation={escaped}")
