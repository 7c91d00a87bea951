"""The observer: a separate connection, over one of the backends, that reads the server's counters."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pqcore.db.backend_adapter import BackendAdapter
from pqcore.errors import ConfigurationError
from pqcore.plugins import plugins
from pqcore.sql.dialect import Dialect
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import plain
from pqcore.testing.portal import Portal

from .backends import Contender
from .coroutines import run_sync

T = TypeVar("T")
APPLICATION = "pqcore-bench"
"""The application name of the measured connections."""
_FLUSHES = (
    "SELECT EXISTS (SELECT FROM pg_proc"
    " WHERE proname = 'pg_stat_force_next_flush' AND has_function_privilege(oid, 'EXECUTE'))"
)
LEAVING = 10.0
"""Seconds within which sessions must end."""


def named(dsn: str) -> str:
    """Return a DSN whose connections can be distinguished from others.

    Raises:
        ConfigurationError: The DSN is not a URL.
    """
    if "://" not in dsn:
        msg = f"the DSN of the benchmarks is {dsn!r}; give a URL, postgresql://user@host/database"
        raise ConfigurationError(msg)
    return f"{dsn}{'&' if '?' in dsn else '?'}application_name={APPLICATION}"


class Observer:
    """A connection for any thread; every statement commits by itself, unless it begins a transaction.

    Args:
        contender: The backend; a blocking one is better, because it needs no loop.
        dsn: The DSN.

    Attributes:
        statements: The number of statements run.
        flushes: Whether the server can be told to count the statements' effects immediately (PostgreSQL 15).
    """

    def __init__(self, contender: Contender, dsn: str) -> None:
        self._portal = None if contender.blocking else Portal()
        sql = Dialect(TableName("queue"), contender.spec.paramstyle)
        make = partial(plugins.make, contender.spec)
        self._opener = BackendAdapter(make, sql, suspends=not contender.blocking, prepared=False)

        async def connect() -> Any:
            session = self._opener.session(await self._opener.call("connect", dsn))
            await session.enter()
            return session

        self.statements = 0
        try:
            self._session = self._run(connect)
            self.flushes = bool(self.one(_FLUSHES))
        except BaseException:
            self._end()
            raise

    def sql(self, text: str, *, rows: bool = True) -> list[tuple[Any, ...]]:
        """Run one statement, and return its rows."""
        self.statements += 1
        query = plain("bench", text, rows=rows)
        return [tuple(row) for row in self._run(lambda: self._session.execute(query))]

    def one(self, text: str) -> Any:
        """Return the single value of a statement."""
        return self.sql(text)[0][0]

    def do(self, *texts: str) -> None:
        """Run statements that return no rows."""
        for text in texts:
            self.sql(text, rows=False)

    def alone(self) -> None:
        """Wait until the measured sessions have ended, because only then their effects are counted completely."""
        deadline = time.monotonic() + LEAVING
        query = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{APPLICATION}'"
        while self.one(query) and time.monotonic() < deadline:
            time.sleep(0.02)

    def close(self) -> None:
        """Close the connection, which rolls back its open transaction."""
        self._run(lambda: self._session.close())
        self._end()

    def _end(self) -> None:
        if self._portal is not None:
            self._portal.close()

    def _run(self, make: Callable[[], Awaitable[T]]) -> T:
        if self._portal is None:
            return run_sync(make())  # type: ignore[arg-type]
        result: T = self._portal.call(make)
        return result


@dataclass(frozen=True)
class Counters:
    """The server's counts since it was set up.

    Attributes:
        wal: The bytes of write-ahead log.
        commits: The number of transactions in this database.
        dead: The number of rows of the table updated or deleted; each left a dead row.
        left: The number of dead rows that are still there.
    """

    wal: int
    commits: int
    dead: int
    left: int

    @classmethod
    def read(cls, server_observer: Observer, table: str) -> Counters:
        """Return the present counts, of all sessions that have ended, without the commits of the observer."""
        own = 0
        if server_observer.flushes:  # otherwise it is unknown which of its commits are counted yet
            server_observer.sql("SELECT pg_stat_force_next_flush()::text")
            own = server_observer.statements
        [[wal, commits, dead, left]] = server_observer.sql(
            "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint,"
            " (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()),"
            f" pg_stat_get_tuples_updated('{table}'::regclass) + pg_stat_get_tuples_deleted('{table}'::regclass),"
            f" pg_stat_get_dead_tuples('{table}'::regclass)"
        )
        return cls(int(wal), int(commits) - own, int(dead), int(left))
