"""Making, migrating and dropping pqcore's tables through SQLAlchemy's connections, in their transactions.

So SQLAlchemy logs the statements, over any driver, and ``AsyncConnection.run_sync`` works, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias, cast

import sqlalchemy

from pqcore import schema
from pqcore.db.blocking_runtime import BlockingRuntime
from pqcore.db.driver_errors import translate
from pqcore.db.isolation import Defaults
from pqcore.db.runtime import run_sync
from pqcore.db.session import Session
from pqcore.plugins import plugins
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import Query

Operation: TypeAlias = Callable[[Session, TableName], Awaitable[None]]


async def create(session: Session, names: TableName) -> None:
    """Make the tables, or migrate them to the latest version."""
    await schema.create(session, names, BlockingRuntime().sleep)


async def create_anew(session: Session, names: TableName) -> None:
    """Complete tables that SQLAlchemy has just made; forget the versions of earlier tables with the same names."""
    await schema.forget(session, names)
    await create(session, names)


def run_on(connection: sqlalchemy.Connection, operation: Operation, names: TableName) -> None:
    """Run an operation of `pqcore.schema` on a connection.

    The operation joins the connection's transaction, or begins one, as every statement of SQLAlchemy does. If the
    connection commits by itself (AUTOCOMMIT), the operation works like `pqcore.PQ.create` on its own connection.

    Raises:
        PQError: The operation raised the error.
    """
    session = cast("Session", _OnConnection(connection))
    run_sync(cast("Any", operation(session, names)))


class _OnConnection:
    """The methods of a session that `pqcore.schema` needs, on a SQLAlchemy connection."""

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self._connection = connection.execution_options(no_parameters=True)  # so that a % is literal
        self._joins = connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT"
        self._begun = False
        # The table's name has no effect here: only the dialect's rewriting of statements is used.
        self.sql = plugins.dialect()(TableName("queue"), "numeric_dollar")
        self.defaults = Defaults()

    async def execute(self, query: Query, parameters: Sequence[object] = ()) -> Any:
        return self._run(query.sql, query.name, rows=query.rows)

    def _run(self, sql: str, name: str, *, rows: bool = False) -> Any:
        try:
            result = self._connection.exec_driver_sql(sql)
            return result.fetchall() if rows else ()
        except sqlalchemy.exc.DBAPIError as exc:
            raise translate(exc.orig or exc, name, lost=exc.connection_invalidated) from exc

    def in_transaction(self) -> bool:
        return self._joins or self._begun

    def usable(self) -> bool:
        return not self._connection.invalidated

    async def direct(self) -> bool:
        return True  # behind a pooler, programs make tables in a transaction, which stays on one session

    async def begin_own(self) -> None:
        self._run("BEGIN ISOLATION LEVEL READ COMMITTED", "begin")
        self._begun = True

    async def commit(self) -> None:
        self._begun = False
        self._run("COMMIT", "commit")

    async def rollback(self) -> None:
        self._begun = False
        self._run("ROLLBACK", "rollback")
