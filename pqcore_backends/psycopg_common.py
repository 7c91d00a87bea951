"""What psycopg's blocking and asynchronous sessions have in common: cursors, and all that asks the driver only."""

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

if TYPE_CHECKING:
    from typing_extensions import Self

_ADAPTERS = AdaptersMap()
"""psycopg's own adapters: those of a connection, and `psycopg.adapters`, have what the application registers."""
postgres.register_default_types(_ADAPTERS.types)
postgres.register_default_adapters(_ADAPTERS)
array.register_all_arrays(_ADAPTERS)


class Cursor(psycopg.RawCursor[Row]):
    """Takes $1 as it is, returns tuples, and adapts no value as the application does."""

    @property
    def adapters(self) -> AdaptersMap:
        return _ADAPTERS


class AsyncCursor(psycopg.AsyncRawCursor[Row]):
    """`Cursor`, awaited."""

    @property
    def adapters(self) -> AdaptersMap:
        return _ADAPTERS


class UnpreparedCursor(Cursor):
    """Has psycopg prepare nothing: it is told here, as the cursors of tracers may pass no such option on."""

    def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = False, binary: bool | None = None
    ) -> Self:
        return super().execute(query, params, prepare=False, binary=binary)


class UnpreparedAsyncCursor(AsyncCursor):
    """`UnpreparedCursor`, awaited."""

    async def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = False, binary: bool | None = None
    ) -> Self:
        return await super().execute(query, params, prepare=False, binary=binary)


class Common:
    """What asks the driver only, not the server."""

    connection: Any
    prepared: bool
    cursor: Any
    lent: Any  # what a pool gave, and takes back
    _cursor: Any  # of our own kind, or a tracer's around it
    _plain: Any  # of our own kind
    _traced = False  # then it is given text: what writes a comment to a statement cannot do so to bytes
    _switched = False
    _begun = False
    _flipped = False  # by begin, until it is switched back
    _inbox: Inbox | None = None
    # The SQLSTATE and message with which the server ended the connection: libpq takes them for a notice.
    _farewell: tuple[str, str | None] | None = None

    def _use(self, connection: Any, cursor: Any) -> None:
        self.connection = self.lent = connection
        self.cursor = connection.cursor
        self._cursor = self._plain = cursor

    def through(self, proxy: Any) -> None:
        self.lent = proxy
        self.cursor = proxy.cursor
        connection, kind = self.connection, type(self._plain)
        before, connection.cursor_factory = connection.cursor_factory, kind
        try:
            cursor = proxy.cursor(row_factory=tuple_row)
        except TypeError:  # it gives no other cursors than the caller's
            return
        finally:
            connection.cursor_factory = before
        if type(bare(cursor)) is kind:
            self._cursor, self._plain = cursor, bare(cursor)
            self._traced = cursor is not self._plain

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
        """Forget prepared statements, of which one was refused; return whether the statement can be sent again.

        PostgreSQL refuses a prepared statement whose result has got other types, as by ALTER TABLE ("cached plan must
        not change result type"). psycopg would prepare no other in its place.
        """
        return bool(self.connection._prepared.clear()) and not self.in_transaction()

    def _alone(self) -> bool:
        """Return whether statements are sent one by one: to a tracer, in a pipeline of the caller's, by old libpq."""
        return self._traced or self.connection._pipeline is not None or not SUPPORTED

    def _begins(self) -> bool:
        """Return whether psycopg would send BEGIN before the next statement, and wait for the answer to that."""
        connection = self.connection
        return not connection._autocommit and connection.pgconn.transaction_status == TransactionStatus.IDLE

    def _leading(self, before: Query | None) -> list[bytes]:
        """Return what goes before a statement: BEGIN, if that is due, and what is given."""
        leading = [self.connection._get_tx_start_command()] if self._begins() else []
        if before is not None:
            leading.append(before.encoded)
        return leading

    def _together(
        self, leading: Sequence[bytes], query: Query, parameters: Sequence[object]
    ) -> Generator[Any, Any, None]:
        connection, cursor = self.connection, self._plain
        return together(connection, cursor, leading, query.encoded, parameters, prepared=self.prepared)

    def _to_switch(self) -> bool:
        return not self.connection.autocommit and not self.in_transaction()

    def _flip(self, autocommit: bool) -> bool:
        """Switch between transactions, when nothing is under way: whether that was possible.

        It is all that `set_autocommit` does, after a lock, a check and a turn of its generator,
        which cost more than the rest of a block.
        """
        self.connection._autocommit = autocommit
        return self.connection.autocommit is autocommit

    def busy(self) -> bool:
        return self.usable() and self.connection.pgconn.transaction_status == TransactionStatus.ACTIVE

    def _collect(self, channel: str) -> None:
        """Keep the notifications of a channel that arrive while statements run; the rest goes where it went."""
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
            with suppress(KeyError):  # psycopg does not know the code
                raise psycopg.errors.lookup(self._farewell[0])(self._farewell[1] or "")

    def _unlisten(self, channels: Sequence[str]) -> sql.Composed:
        """What unlistens from those channels to which no other session listens."""
        gone = channels if self._inbox is None else self._inbox.unlisten(self, channels)
        return sql.SQL("; ").join(sql.SQL("UNLISTEN {}").format(sql.Identifier(channel)) for channel in gone)

    def _channels(self) -> list[str]:
        pgconn = self.connection.pgconn
        try:
            pgconn.consume_input()
        except psycopg.OperationalError:
            pgconn.notifies()  # reads what had arrived before the end
            self._raise_farewell()
            raise
        while notify := pgconn.notifies():
            if pgconn.notify_handler is not None:
                pgconn.notify_handler(notify)
        self._raise_farewell()
        return [] if self._inbox is None else self._inbox.take(self)


class _Handler:
    """What psycopg's connection calls with each notification: ours are sorted out, the rest goes on.

    Not `add_notify_handler`, with which psycopg keeps no others for ``connection.notifies()``.
    """

    def __init__(self, before: Any) -> None:
        self.inbox = Inbox(before)

    def __call__(self, notify: Any) -> None:
        self.inbox.put(notify.relname.decode(errors="replace"), notify)
