"""The common parts of psycopg's blocking and asynchronous sessions: cursors, and methods that only ask the driver."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import postgres, sql
from psycopg.adapt import AdaptersMap
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from psycopg.types import array

from pqcore.backend import Inbox, Row, bare, shutdown_socket
from pqcore.sql.statement import Query
from pqcore_backends.psycopg_pipeline import SUPPORTED, together
from pqcore_backends.psycopg_prepared import PreparedStatements

if TYPE_CHECKING:
    from typing_extensions import Self

CANCELLING = 5.0
"""Seconds that a cancel request may take."""
CANCELS = hasattr(psycopg, "capabilities") and psycopg.capabilities.has_cancel_safe()
"""Whether a cancel request lets other threads run: from psycopg 3.2 and libpq 17 on.

Earlier versions block all threads of the process during a cancel request, until the server answers.
"""
_ADAPTERS = AdaptersMap()
"""psycopg's own adapters; a connection's adapters, and `psycopg.adapters`, include those of the application."""
postgres.register_default_types(_ADAPTERS.types)
postgres.register_default_adapters(_ADAPTERS)
array.register_all_arrays(_ADAPTERS)


class Cursor(psycopg.RawCursor[Row]):
    """A cursor that accepts $1 unchanged, returns tuples, and ignores the application's adapters."""

    @property
    def adapters(self) -> AdaptersMap:
        return _ADAPTERS


class AsyncCursor(psycopg.AsyncRawCursor[Row]):
    """An asynchronous `Cursor`."""

    @property
    def adapters(self) -> AdaptersMap:
        return _ADAPTERS


class UnpreparedCursor(Cursor):
    """A cursor for which psycopg prepares nothing.

    A class is needed, because some tracers' cursors do not pass the argument ``prepare`` on to psycopg.
    """

    def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = False, binary: bool | None = None
    ) -> Self:
        return super().execute(query, params, prepare=False, binary=binary)


class UnpreparedAsyncCursor(AsyncCursor):
    """An asynchronous `UnpreparedCursor`."""

    async def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = False, binary: bool | None = None
    ) -> Self:
        return await super().execute(query, params, prepare=False, binary=binary)


CURSORS = {True: Cursor, False: UnpreparedCursor}
"""The kind of blocking cursor, by whether statements may be prepared."""
ASYNC_CURSORS = {True: AsyncCursor, False: UnpreparedAsyncCursor}
"""The kind of asynchronous cursor, by whether statements may be prepared."""


class Common:
    """The methods of a session that only ask the driver, not the server."""

    connection: Any
    prepared: bool
    cursor: Any
    # The object that a pool lent, and takes back.
    lent: Any
    # A cursor of pqcore's own class, or a tracer's cursor around such a cursor.
    _cursor: Any
    # A cursor of pqcore's own class.
    _plain: Any
    # The value is None if nothing may be prepared, or if the cursor is a tracer's.
    _prepared_statements: PreparedStatements | None
    # Whether the cursor is a tracer's. Such a cursor gets statements as text: a tracer cannot add a comment to bytes.
    _traced = False
    server_version = ""
    _switched = False
    _begun = False
    _flipped = False  # set by `begin`, until autocommit is switched back
    _inbox: Inbox | None = None
    # The SQLSTATE and the message with which the server ended the connection. libpq reports them only as a notice.
    _farewell: tuple[str, str | None] | None = None

    def _use(self, connection: Any, cursor: Any) -> None:
        self.connection = self.lent = connection
        self.cursor = connection.cursor
        self._cursor = self._plain = cursor
        self._prepared_statements = PreparedStatements(cursor) if self.prepared else None

    def through(self, proxy: Any) -> None:
        self.lent = proxy
        self.cursor = proxy.cursor
        connection, kind = self.connection, type(self._plain)
        before, connection.cursor_factory = connection.cursor_factory, kind
        try:
            cursor = proxy.cursor(row_factory=tuple_row)
        except TypeError:  # the connection makes only the caller's kind of cursors
            return
        finally:
            connection.cursor_factory = before
        if type(bare(cursor)) is kind:
            self._cursor, self._plain = cursor, bare(cursor)
            self._traced = cursor is not self._plain
            if self._traced:
                self._prepared_statements = None

    def in_transaction(self) -> bool:
        return self._begun or self.connection.pgconn.transaction_status != TransactionStatus.IDLE

    def _failed(self) -> bool:
        return bool(self.connection.pgconn.transaction_status == TransactionStatus.INERROR)

    def usable(self) -> bool:
        return not self.connection.closed

    def abort(self) -> None:
        if self.usable():
            shutdown_socket(self.connection.fileno())

    def drop(self) -> None:
        self.connection.pgconn.finish()

    def _forget_prepared(self) -> bool:
        """Forget prepared statements after one was refused; return whether the statement can be sent again.

        PostgreSQL refuses a prepared statement whose result types have changed, for example after ALTER TABLE ("cached
        plan must not change result type"). psycopg itself would not prepare such a statement again.
        """
        return bool(self.connection._prepared.clear()) and not self.in_transaction()

    def _is_own(self, row: Row) -> bool:
        """Read the answer to `pqcore.backend.WHO`."""
        pid, self.server_version = row
        return bool(pid == self.connection.info.backend_pid)

    def _alone(self) -> bool:
        """Return whether statements must be sent one by one: to a tracer, in a caller's pipeline, or with old libpq."""
        return self._traced or self.connection._pipeline is not None or not SUPPORTED

    def _begins(self) -> bool:
        """Return whether psycopg would send BEGIN before the next statement, and wait for the answer to BEGIN."""
        connection = self.connection
        return not connection._autocommit and connection.pgconn.transaction_status == TransactionStatus.IDLE

    def _leading(self, before: Query | None) -> list[bytes]:
        """Return the statements to send before the next one: BEGIN, if a transaction must begin, and the given ones."""
        leading = [self.connection._get_tx_start_command()] if self._begins() else []
        if before is not None:
            leading.append(before.encoded)
        return leading

    def _prepared_behind(
        self, leading: Sequence[bytes], query: Query, parameters: Sequence[object]
    ) -> Generator[Any, Any, Sequence[Row]] | None:
        """Return what `PreparedStatements.run` returns."""
        statements = self._prepared_statements
        return statements.run(query, parameters, leading) if query.hot and statements is not None and leading else None

    def _together(
        self, leading: Sequence[bytes], query: Query, parameters: Sequence[object]
    ) -> Generator[Any, Any, None]:
        connection, cursor = self.connection, self._plain
        return together(connection, cursor, leading, query.encoded, parameters, prepared=self.prepared)

    def _to_switch(self) -> bool:
        return not self.connection.autocommit and not self.in_transaction()

    def _flip(self, autocommit: bool) -> bool:
        """Switch autocommit between transactions, when no statement is running; return whether that was possible.

        This is the essential part of `set_autocommit`, whose lock, check and generator cost more than the rest of a
        block.
        """
        self.connection._autocommit = autocommit
        return self.connection.autocommit is autocommit

    def busy(self) -> bool:
        return self.usable() and self.connection.pgconn.transaction_status == TransactionStatus.ACTIVE

    def _collect(self, channel: str) -> None:
        """Keep the notifications of a channel that arrive while statements run.

        Notifications of other channels go to the caller's handlers.
        """
        pgconn = self.connection.pgconn
        if self._inbox is None:
            self.connection.add_notice_handler(self._noticed)
        if not isinstance(pgconn.notify_handler, _Handler):
            pgconn.notify_handler = _Handler(pgconn.notify_handler)
        self._inbox = pgconn.notify_handler.inbox
        self._inbox.listen(self, channel)

    def _noticed(self, diagnostic: Any) -> None:
        if diagnostic.severity_nonlocalized == "FATAL":
            self._farewell = diagnostic.sqlstate or "", diagnostic.message_primary

    def _raise_farewell(self) -> None:
        if self._farewell is not None:
            with suppress(KeyError):  # psycopg does not know the SQLSTATE
                raise psycopg.errors.lookup(self._farewell[0])(self._farewell[1] or "")

    def _unlisten(self, channels: Sequence[str]) -> sql.Composed:
        """Return the statement that unlistens from those channels to which no other session listens."""
        gone = channels if self._inbox is None else self._inbox.unlisten(self, channels)
        return sql.SQL("; ").join(sql.SQL("UNLISTEN {}").format(sql.Identifier(channel)) for channel in gone)

    def _channels(self) -> list[str]:
        pgconn = self.connection.pgconn
        try:
            pgconn.consume_input()
        except psycopg.OperationalError:
            pgconn.notifies()  # makes libpq parse what arrived before the end, such as the server's last message
            self._raise_farewell()
            raise
        while notify := pgconn.notifies():
            if pgconn.notify_handler is not None:
                pgconn.notify_handler(notify)
        self._raise_farewell()
        return [] if self._inbox is None else self._inbox.take(self)


class _Handler:
    """A handler of a connection's notifications: it keeps those for pqcore's channels, and passes the others on.

    `add_notify_handler` is not used, because psycopg then stores no notifications for ``connection.notifies()``.
    """

    def __init__(self, before: Any) -> None:
        self.inbox = Inbox(before)

    def __call__(self, notify: Any) -> None:
        self.inbox.put(notify.relname.decode(errors="replace"), notify)
