"""Connections of the tested backend that belong to no queue: scenarios use them, or observe the database with them."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from pqcore.backend import BackendSpec
from pqcore.db.backend_adapter import BackendAdapter
from pqcore.db.dsn import with_options
from pqcore.db.runtime import run_sync
from pqcore.db.session import Session
from pqcore.errors import PQError
from pqcore.plugins import plugins
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import Query, plain
from pqcore.testing.databases import prepared
from pqcore.testing.portal import Portal

WaitFor = Callable[[Callable[[], Awaitable[Any]]], Any]
"""A function that runs a coroutine of the backend to its end, such as `Harness.wait_for`."""

_numbers = itertools.count(1)
_OBSERVING = """
SELECT set_config(name, value, false)
FROM (VALUES ('idle_session_timeout', '0'), ('idle_in_transaction_session_timeout', '0'), ('transaction_timeout', '0'),
  ('DateStyle', 'ISO')) AS wanted (name, value)
WHERE current_setting(name, true) IS NOT NULL"""
# Statements that change the state of a connection: settings, transactions, LISTEN, temporary tables, advisory locks.
_LASTING = re.compile(
    r"^\s*(?:SET|BEGIN|START|SAVEPOINT|LISTEN|PREPARE|DECLARE|LOAD)\b"
    r"|\btemp(?:orary)?\b|\bset_config\b|\bpg_(?:try_)?advisory_lock",
    re.IGNORECASE,
)


def statement(sql: str, *, rows: bool = True) -> Query:
    """Return a statement without parameters."""
    return plain("test", sql, rows=rows)


class Connection:
    """A connection of the driver, opened as a user would open it, with methods to use it.

    Attributes:
        raw: The driver's connection.
    """

    def __init__(self, wait_for: WaitFor, session: Session) -> None:
        self._wait_for = wait_for
        self.session = session
        self.raw: Any = session.driver.connection

    def begin(self) -> None:
        """Begin a transaction of the user."""
        self._wait_for(lambda: self.session.begin())
        self.sql("SELECT 1")  # some drivers begin the transaction only with the first statement

    def commit(self) -> None:
        self._wait_for(lambda: self.session.commit())

    def rollback(self) -> None:
        self._wait_for(lambda: self.session.rollback())

    def sql(self, text: str, *, rows: bool = True) -> list[tuple[Any, ...]]:
        """Run a statement, and return its rows."""
        found = self._wait_for(lambda: self.session.execute(statement(text, rows=rows)))
        return [tuple(row) for row in found]

    def close(self) -> None:
        if self.session.usable():
            self._wait_for(lambda: self.session.close())


class Observer:
    """A connection from which harnesses look at the database, one harness after another.

    The observer has its own event loop if the backend is asynchronous. The connection may stay idle for the whole test,
    and reads dates as text, whatever the server's settings are.

    Args:
        spec: The backend.
        dsn: The DSN of the server.
    """

    def __init__(self, spec: BackendSpec, dsn: str) -> None:
        self.of = (spec, dsn)
        self._pid = os.getpid()
        self._portal = Portal() if spec.mode == "async" else None
        sql = plugins.dialect()(TableName("queue"), spec.paramstyle)
        make = partial(plugins.make, spec)
        opener = BackendAdapter(make, sql, suspends=spec.mode == "async", prepared=prepared())
        # The connection has its own application name, so that a pooler never gives it a session that queues use.
        named = with_options(dsn, application_name=f"pqcore-test-observer-{self._pid}-{next(_numbers)}")

        async def connect() -> Session:
            session = opener.session(await opener.call("connect", named))
            await session.enter()
            return session

        self._running = 0
        self._changed = False
        try:
            self._connection = Connection(self._wait_for, self._wait_for(connect))
            if prepared():  # without this check, the setting could stay on a connection that a pooler lends to others
                self._connection.sql(_OBSERVING)
        except BaseException:
            self._close_portal()
            raise

    @property
    def session(self) -> Session:
        """Return the session of the connection."""
        return self._connection.session

    def sql(self, text: str, *, rows: bool = True) -> list[tuple[Any, ...]]:
        """Run a statement, and return its rows."""
        self._changed = self._changed or _LASTING.search(text) is not None
        self._running += 1
        try:
            found = self._connection.sql(text, rows=rows)
        except PQError:
            self._running -= 1
            raise
        self._running -= 1  # after an interrupt, the state of the connection is unknown, and it counts as in use
        return found

    def unchanged(self) -> bool:
        """Return whether another test may use the connection, because its state is that of a new connection."""
        known = not self._changed and not self._running
        return known and os.getpid() == self._pid and self.session.usable()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
        self._close_portal()

    def _wait_for(self, make: Callable[[], Awaitable[Any]]) -> Any:
        return run_sync(make()) if self._portal is None else self._portal.call(make)  # type: ignore[arg-type]

    def _close_portal(self) -> None:
        if self._portal is not None:
            self._portal.close()
