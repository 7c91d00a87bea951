"""Sessions over pg8000's DB-API connections, past its cursors: those prepare nothing, and guess types."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pg8000 import core, dbapi
from pg8000.converters import PY_TYPES, make_param

from pqcore.backend import ABORTED, Row, shutdown_socket, wait_readable
from pqcore.sql.identifiers import quote
from pqcore.sql.statement import Query
from pqcore_pg8000.dsn import arguments, reach

CHANGED_RESULT = "0A000"
"""The SQLSTATE of "cached plan must not change result type", among others."""


class ServerError(dbapi.DatabaseError):  # type: ignore[misc]  # pg8000 has no types
    """The server's answer, with its SQLSTATE where pqcore looks for it; as text, the message alone."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__(fields)
        self.sqlstate = fields["C"]

    def __str__(self) -> str:
        return str(self.args[0]["M"])


class Pg8000Session:
    """One connection."""

    def __init__(self, connection: Any, *, prepared: bool) -> None:
        self.connection = connection
        self._switched = False
        self._notified: dict[str, None] = {}
        # These belong to the connection, because a session may be made for a single statement.
        self._statements = vars(connection).setdefault("_pqcore_statements", {}) if prepared else None

    def enter(self) -> None:
        if not self.in_transaction() and not self.connection.autocommit:
            self.connection.autocommit = self._switched = True  # an attribute: nothing is sent

    def leave(self) -> None:
        if self._switched:
            self.connection.autocommit = self._switched = False

    def in_transaction(self) -> bool:
        return self.connection._transaction_status in (core.IN_TRANSACTION, core.IN_FAILED_TRANSACTION)

    def usable(self) -> bool:
        return self.connection._usock is not None

    def execute(self, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        if not self.connection.autocommit and not self.in_transaction():
            self.begin()  # as the driver's cursor does
        values = [_text(value) for value in parameters]
        try:
            return self._run(query.sql, values, hot=query.hot)
        except ServerError as error:
            # A prepared statement's result has got other types, as by ALTER TABLE. The server did nothing of it.
            if error.sqlstate != CHANGED_RESULT or self._statements is None or self.in_transaction():
                raise
        return self._run(query.sql, values, hot=query.hot)

    def _run(self, sql: str, values: Sequence[str | None] = (), *, hot: bool = False) -> Sequence[Row]:
        "".join(filter(None, values)).encode()  # a lone surrogate fails here, not in the middle of a message
        with self._talking() as connection:
            if not hot or self._statements is None:
                return connection.execute_unnamed(sql, values).rows or ()
            if sql not in self._statements:
                self._statements[sql] = connection.prepare_statement(sql, ())
            name, columns, readers = self._statements[sql]
            try:
                return connection.execute_named(name, values, columns, readers, sql).rows or ()
            except dbapi.DatabaseError as error:
                if error.args[0].get("C") == CHANGED_RESULT:
                    self._statements.clear()  # others are likely to return the same columns
                raise

    def _send(self, command: str) -> None:
        with self._talking() as connection:
            connection.execute_simple(command)  # one round trip; statements with parameters take two

    @contextmanager
    def _talking(self) -> Iterator[Any]:
        if not self.usable():
            raise dbapi.InterfaceError("connection is closed")
        try:
            yield self.connection
        except dbapi.DatabaseError as error:  # the server's answer, all of it read
            raise ServerError(error.args[0]) from error
        except BaseException as error:  # the stream ended, or pg8000 lost its place in it
            self.abort()
            self.close()
            if isinstance(error, dbapi.Error) or not isinstance(error, Exception):
                raise
            raise dbapi.InterfaceError(f"network error: {error}") from error

    def begin(self) -> None:
        self._send("begin")

    def commit(self) -> None:
        if self.connection._transaction_status == core.IN_FAILED_TRANSACTION:
            self.rollback()
            raise ServerError({"C": "25P02", "M": ABORTED})
        self._send("commit")

    def rollback(self) -> None:
        self._send("rollback")

    def cursor(self, **options: Any) -> Any:
        return self.connection.cursor(**options)

    def listen(self, channel: str) -> None:
        self.connection.message_types[core.NOTIFICATION_RESPONSE] = self._read_notification
        self._run(f"listen {quote(channel)}")

    def _read_notification(self, data: bytes, context: Any) -> None:
        # pg8000's own function reads only ASCII. Its list, of the last hundred, is kept for its users.
        channel, payload = (part.decode(self.connection._client_encoding) for part in data[4:-1].split(b"\0"))
        self.connection.notifications.append((core.i_unpack(data)[0], channel, payload))
        self._notified[channel] = None

    def wait(self, seconds: float) -> None:
        sock = self.connection._usock
        if sock is not None and not self._notified:
            wait_readable(sock.fileno(), seconds)

    def notifications(self) -> list[str]:
        self.alive()
        channels, self._notified = list(self._notified), {}
        return channels

    def alive(self) -> bool:
        with self._talking() as connection:
            while _arrived(connection):  # between statements: a notification, a notice, a setting, or a farewell
                code, length = core.ci_unpack(core._read(connection._sock, 5))
                context = core.Context(None)
                connection.message_types[code](core._read(connection._sock, length - 4), context)
                if context.error:
                    raise context.error
        return True

    def close(self) -> None:
        sock, file = self.connection._usock, self.connection._sock
        if sock is None:
            return
        with suppress(dbapi.Error, OSError, ValueError):
            self.connection.close()
        with suppress(OSError, ValueError):  # pg8000 leaves the file open over it, which may be in a traceback
            shutdown_socket(sock.fileno())
            file.close()

    def abort(self) -> None:
        if (sock := self.connection._usock) is not None:
            with suppress(OSError):  # closed at this moment
                shutdown_socket(sock.fileno())


class Pg8000Backend:
    """Makes sessions over pg8000's connections; it has no pools."""

    errors = (dbapi.Error,)

    def __init__(self, *, prepared: bool = True) -> None:
        self._prepared = prepared

    def connect(self, dsn: str) -> Pg8000Session:
        given = arguments(dsn)
        sock = reach(given.pop("address"), given.pop("timeout"))
        try:
            connection = dbapi.connect(**given, sock=sock)
        except BaseException as error:
            sock.close()
            if isinstance(error, dbapi.DatabaseError):
                raise ServerError(error.args[0]) from error
            raise
        connection._usock.settimeout(None)  # it was for connecting
        return self.wrap(connection)

    def wrap(self, connection: Any) -> Pg8000Session:
        return Pg8000Session(connection, prepared=self._prepared)

    def close_connection(self, connection: Any) -> None:
        self.wrap(connection).close()


def _text(value: object) -> str | None:
    """A parameter as it is sent; pg8000 leaves 'null' in an array without quotes, which is NULL to the server."""
    if not isinstance(value, list):
        return make_param(PY_TYPES, value)  # type: ignore[no-any-return]
    texts = ["NULL" if one is None else '"' + re.sub(r'(["\\])', r"\\\1", str(_text(one))) + '"' for one in value]
    return "{" + ",".join(texts) + "}"


def _arrived(connection: Any) -> bool:
    """Whether there is something to read, in the socket or in the file over it: a message, or the end."""
    sock = connection._usock
    some, timeout = wait_readable(sock.fileno()), sock.gettimeout()
    sock.settimeout(0)
    try:
        return bool(connection._sock.peek(1)) or some
    except ssl.SSLWantReadError:  # half a record
        return False
    finally:
        sock.settimeout(timeout)
