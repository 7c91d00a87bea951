"""Servers that are set up in another way than usual: their defaults, the names of role and database, the rights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg

from pqcore_backends.embedded import EmbeddedServer

from .cells import Cell
from .servers import FAST


@contextmanager
def _server(
    settings: dict[str, str], statements: tuple[str, ...] = (), user: str = "", database: str = ""
) -> Iterator[str]:
    """A server with its own settings, and the objects that were made on it.

    Args:
        settings: The settings, as in postgresql.conf.
        statements: The statements to run first.
        user: The role of the suite, if not the superuser.
        database: The database of the suite, if not ``postgres``.
    """
    with EmbeddedServer(settings={**FAST, **settings}) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())
        parts = urlsplit(server.dsn())
        if user:
            parts = parts._replace(netloc=f"{quote(user, '')}@{parts.netloc.rpartition('@')[2]}")
        yield urlunsplit(parts._replace(path=f"/{quote(database or 'postgres', '')}"))


_OTHER_TEXT = {
    "bytea_output": "escape",
    "DateStyle": "SQL, DMY",
    "TimeZone": "Asia/Kathmandu",
    "extra_float_digits": "-5",
    "quote_all_identifiers": "on",
    "xmlbinary": "hex",
}
_OTHER_PLANS = {
    "enable_seqscan": "off",
    "enable_indexonlyscan": "off",
    "jit": "on",
    "jit_above_cost": "0",
    "plan_cache_mode": "force_generic_plan",
    "max_parallel_workers_per_gather": "4",
    "min_parallel_table_scan_size": "0",
    "parallel_setup_cost": "0",
}
_IMPATIENT = {
    "idle_session_timeout": "5s",
    "idle_in_transaction_session_timeout": "20s",
    "statement_timeout": "20s",
    "lock_timeout": "20s",
    "transaction_timeout": "30s",
}
_LATIN = "latin"
_OWNER = 'Owner of "queues" %'
_DATABASE = 'Möbel "50%" /\\ \''


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


SETTINGS = (
    Cell("settings text", partial(_server, _OTHER_TEXT)),
    Cell("settings plans", partial(_server, _OTHER_PLANS)),
    Cell("settings impatient", partial(_server, _IMPATIENT)),
    Cell(
        "settings few connections", partial(_server, {"max_connections": "40", "superuser_reserved_connections": "3"})
    ),
    *(
        Cell(f"settings {level}", partial(_server, {"default_transaction_isolation": level}))
        for level in ("repeatable read", "serializable")
    ),
    Cell(
        "settings latin1",
        partial(
            _server,
            {},
            (f"CREATE DATABASE {_LATIN} TEMPLATE template0 ENCODING LATIN1 LOCALE_PROVIDER libc LOCALE 'C'",),
            database=_LATIN,
        ),
    ),
    Cell("partitions", environment={"PQCORE_TEST_PARTITIONS": "4"}),
    Cell(
        "rights owner",
        partial(
            _server,
            {},
            (
                f"CREATE ROLE {_quoted(_OWNER)} LOGIN",
                f"CREATE DATABASE {_quoted(_DATABASE)} OWNER {_quoted(_OWNER)}",
            ),
            user=_OWNER,
            database=_DATABASE,
        ),
    ),
)
"""In each of them, and of no more rights than an owner's, a queue is a queue."""
