"""The observer: a connection of its own, over one of the backends, that reads counters of the server."""

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
"""The name under which the connections that are measured are known to the server."""
_FLUSHES = (
    "SELECT EXISTS (SELECT FROM pg_proc"
    " WHERE proname = 'pg_stat_force_next_flush' AND has_function_privilege(oid, 'EXECUTE'))"
)
LEAVING = 10.0
"""Seconds that sessions have to end."""


def named(dsn: str) -> str:
    """A DSN whose connections are told from others.

    Raises:
        ConfigurationError: It is no URL.
    """
    if "://" not in dsn:
        msg = f"the benchmarks' DSN is to be a URL, postgresql://user@host/database, not {dsn!r}"
        raise ConfigurationError(msg)
    return f"{dsn}{'&' if '?' in dsn else '?'}application_name={APPLICATION}"


class Observer:
    """One connection, used from wherever; every statement commits by itself, unless it begins a transaction.

    Args:
        contender: Over which backend; one that blocks is better, as it needs no loop of its own.
        dsn: Where.

    Attributes:
        statements: How many were run.
        flushes: Whether the server can be told to count immediately what they did (PostgreSQL 15).
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
        """Run one statement; its rows."""
        self.statements += 1
        query = plain("bench", text, rows=rows)
        return [tuple(row) for row in self._run(lambda: self._session.execute(query))]

    def one(self, text: str) -> Any:
        """The one value that a statement gives."""
        return self.sql(text)[0][0]

    def do(self, *texts: str) -> None:
        """Run statements that give no rows."""
        for text in texts:
            self.sql(text, rows=False)

    def alone(self) -> None:
        """Wait until the sessions that were measured have ended: only then what they did is counted in full."""
        deadline = time.monotonic() + LEAVING
        query = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{APPLICATION}'"
        while self.one(query) and time.monotonic() < deadline:
            time.sleep(0.02)

    def close(self) -> None:
        """Close the connection; a transaction that is open on it is rolled back."""
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
    """What the server has counted since it was set up.

    Attributes:
        wal: Bytes of write-ahead log.
        commits: Transactions in this database.
        dead: Rows of the table that were updated or deleted: each left a dead one.
        left: Dead rows that are still there.
    """

    wal: int
    commits: int
    dead: int
    left: int

    @classmethod
    def read(cls, server_observer: Observer, table: str) -> Counters:
        """What it has counted by now, of all sessions that have ended; but for commits of the server_observer' own."""
        own = 0
        if server_observer.flushes:  # else it is not to be known what of them is counted yet
            server_observer.sql("SELECT pg_stat_force_next_flush()")
            own = server_observer.statements
        [[wal, commits, dead, left]] = server_observer.sql(
            "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint,"
            " (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()),"
            f" pg_stat_get_tuples_updated('{table}'::regclass) + pg_stat_get_tuples_deleted('{table}'::regclass),"
            f" pg_stat_get_dead_tuples('{table}'::regclass)"
        )
        return cls(int(wal), int(commits) - own, int(dead), int(left))
