"""The blocking backend for psycopg2.

Hot statements use PREPARE and EXECUTE, because psycopg2 itself prepares nothing. While pqcore uses an idle connection,
the connection is in autocommit mode; switching it sends nothing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from datetime import datetime
from functools import cached_property, partial
from operator import itemgetter
from typing import Any, NamedTuple

import psycopg2
from psycopg2 import extensions
from psycopg2._psycopg import List
from psycopg2.errors import FeatureNotSupported, InFailedSqlTransaction, InvalidSqlStatementName
from psycopg2.pool import PoolError

from pqcore.backend import (
    POOL_CLOSED,
    POOL_EXHAUSTED,
    WHO,
    AutocommitSession,
    Row,
    bare,
    connect_timeout_default,
    encoding_default,
    session_over,
    shutdown_socket,
    wait_readable,
)
from pqcore.errors import Closed, PoolTimeout
from pqcore.sql.identifiers import quote
from pqcore.sql.statement import Query

_names = itertools.count()


_KINDS = (
    psycopg2.BINARY,
    extensions.BOOLEAN,
    extensions.DECIMAL,
    extensions.FLOAT,
    extensions.INTEGER,
    extensions.LONGINTEGER,
    extensions.LONGINTEGERARRAY,
    extensions.PYDATETIME,
    extensions.PYDATETIMETZ,
    extensions.UNICODE,
    extensions.UNICODEARRAY,
)
_TYPECASTERS = {oid: kind for kind in _KINDS for oid in kind.values}
"""psycopg2's own typecasters, by OID. They are kept here because an application may register other typecasters for its
connection or for the process."""
_ADAPTERS: dict[type, Callable[[Any], Any]] = {
    bool: extensions.Boolean,
    int: extensions.Int,
    float: extensions.Float,
    str: extensions.QuotedString,
    bytes: extensions.Binary,
    datetime: extensions.TimestampFromPy,
    list: List,
}
"""psycopg2's own adapters. They are kept here because an application may register other adapters, which then apply to
the whole process."""


_CASTS: dict[str, Sequence[type]] = {
    "bigint": (int,),
    "boolean": (bool,),
    "bytea": (bytes,),
    "float8": (float, int),
    "int": (int,),
    "text": (str,),
    "timestamptz": (datetime,),
}
"""The types of the parameters that statements cast to a type of the server."""


def _adapted(value: Any) -> Any:
    """Return a parameter wrapped in psycopg2's own adapter, so that psycopg2 looks up no other adapter."""
    if isinstance(value, list):
        return List([_adapted(element) for element in value])
    own = next((_ADAPTERS[kind] for kind in type(value).__mro__ if kind in _ADAPTERS), None)
    return value if own is None else own(value)


class _Call(NamedTuple):
    """The way in which a statement is sent: as EXECUTE, or as text.

    Attributes:
        sql: The EXECUTE statement; None if the statement is not prepared.
        registered: A function that reads from `_registered` only the adapters that the parameters need, because
            comparing all adapters takes longer.
        own: The result of ``registered`` if each adapter is psycopg2's own.
    """

    sql: str | None
    registered: Callable[[Any], Any]
    own: Any

    @classmethod
    def of(cls, sql: str | None, kinds: Iterable[type]) -> _Call:
        registered = itemgetter(*[(kind, extensions.ISQLQuote) for kind in kinds])
        return cls(sql, registered, registered({(kind, extensions.ISQLQuote): own for kind, own in _ADAPTERS.items()}))


_NOT_PREPARED = _Call.of(None, _ADAPTERS)
_registered = extensions.adapters
"""The adapters of the process; an application may add to them at any time."""


def _kinds_of(query: Query) -> Iterable[type]:
    """Return the types that a statement's parameters may have: all types unless the statement casts each one."""
    casts = dict(re.findall(r"\$(\d+)::(\w+(?:\[\])?)", query.numbered))
    if not casts or len(casts) < len(query.first) or not _CASTS.keys() >= {*casts.values()}:
        return _ADAPTERS
    return dict.fromkeys(kind for cast in casts.values() for kind in _CASTS[cast])


class _Aborted(InFailedSqlTransaction):
    pgcode = "25P02"  # psycopg2 sets `pgcode` only on errors that the server sent


class Psycopg2Session(AutocommitSession):
    """One connection."""

    aborted = _Aborted
    server_version = ""

    def __init__(self, connection: Any, *, prepared: bool, reach: Callable[[], Any] | None = None) -> None:
        self.connection = connection
        self._reach = reach  # a function that opens another connection to the same server
        self.cursor = connection.cursor
        self._prepares = prepared
        self._calls: dict[str, _Call | None] = {}
        self._listening: set[str] = set()
        self._proxy = connection
        self.lent = connection  # the object that a pool lent, and takes back

    def through(self, proxy: Any) -> None:
        self._proxy = self.lent = proxy
        self.cursor = proxy.cursor

    @cached_property
    def _cursor(self) -> Any:
        # A cursor of pqcore's own class, because the caller's class may return dictionaries.
        try:
            cursor = self._proxy.cursor(cursor_factory=extensions.cursor)
        except TypeError:  # a proxy that does not accept `cursor_factory`
            cursor = None
        own = bare(cursor)
        if type(own) is not extensions.cursor:
            own = cursor = self.connection.cursor(cursor_factory=extensions.cursor)
        own.string_types = _TYPECASTERS
        return cursor

    def in_transaction(self) -> bool:
        return self._begun or self.connection.get_transaction_status() != extensions.TRANSACTION_STATUS_IDLE

    def _failed(self) -> bool:
        return bool(self.connection.get_transaction_status() == extensions.TRANSACTION_STATUS_INERROR)

    def usable(self) -> bool:
        return bool(self.connection.closed == 0)

    def alive(self) -> bool:
        if self.usable() and wait_readable(self.connection.fileno()):
            self._cursor.execute("SELECT 1")
        return self.usable()

    def execute_behind(self, before: Query, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        return self.execute(query, parameters, f"{before.sql}; ")

    def execute(self, query: Query, parameters: Sequence[object], before: str = "") -> Sequence[Row]:
        cursor = self._cursor
        call = self._calls.get(query.sql)
        if call is None:
            call = (self._prepare(query) if query.hot and self._prepares else None) or _NOT_PREPARED
        sql, registered, own = call
        if parameters and registered(_registered) != own:
            parameters = [_adapted(value) for value in parameters]
        if sql is None:
            cursor.execute(before + query.sql, parameters or None)
        else:
            try:
                given = parameters if query.distinct else query.pick(parameters)
                cursor.execute(before + sql if before else sql, given)
            except (InvalidSqlStatementName, FeatureNotSupported):
                # Other code deallocated the statement (DISCARD ALL, a pooler), or its result types have changed, as by
                # ALTER TABLE ("cached plan must not change result type"). The refused statement had no effect, so it is
                # repeated, unless the refusal has aborted a transaction.
                self._calls.clear()
                if self.in_transaction():
                    raise
                cursor.execute(query.sql, parameters or None)
        return cursor.fetchall() if query.rows else ()

    def _prepare(self, query: Query) -> _Call | None:
        call = None
        if query.sql in self._calls:  # the second call of a statement: from here on, preparing is worthwhile
            name = f"pqcore_{next(_names)}"
            self._cursor.execute(query.prepare(name))
            call = _Call.of(f"EXECUTE {name} ({', '.join(['%s'] * len(query.first))})", _kinds_of(query))
        self._calls[query.sql] = call  # stored only after the prepared statement exists on the server
        return call

    def listen(self, channel: str) -> None:
        self._listening.add(channel)
        self._cursor.execute(f"LISTEN {quote(channel)}")

    def unlisten(self, channels: Sequence[str]) -> None:
        self._listening.difference_update(channels)
        self._cursor.execute("; ".join(f"UNLISTEN {quote(channel)}" for channel in channels))

    def fileno(self) -> int:
        return int(self.connection.fileno())

    def wait(self, seconds: float) -> None:
        wait_readable(self.connection.fileno(), seconds)

    def notifications(self) -> list[str]:
        self.connection.poll()
        arrived = self.connection.notifies  # a list, or another object that the caller has put in its place
        ours = [notify.channel for notify in arrived if notify.channel in self._listening]
        if ours:
            others = [notify for notify in arrived if notify.channel not in self._listening]
            arrived.clear()
            arrived.extend(others)
        return ours

    def direct(self) -> bool:
        self._cursor.execute(WHO.sql)
        pid, self.server_version = self._cursor.fetchone()
        return bool(pid == self.connection.get_backend_pid())

    def close(self) -> None:
        self.connection.close()

    drop = close

    def cancel(self) -> None:
        # connection.cancel() would block all threads of the process until the server answers.
        if self._reach is not None:
            with closing(self._reach()) as other, other.cursor() as cursor:
                cursor.execute("SELECT pg_cancel_backend(%s)", [self.connection.get_backend_pid()])

    def busy(self) -> bool:
        return bool(self.connection.get_transaction_status() == extensions.TRANSACTION_STATUS_ACTIVE)

    def abort(self) -> None:
        if self.usable():
            shutdown_socket(self.connection.fileno())


class Psycopg2Backend:
    """The maker of sessions over psycopg2's connections and pools."""

    errors = (psycopg2.Error, UnicodeError)

    def __init__(self, *, prepared: bool = True) -> None:
        self._prepares = prepared
        self._pooled: dict[Any, Psycopg2Session] = {}

    def connect(self, dsn: str) -> Psycopg2Session:
        said = extensions.parse_dsn(dsn)
        reach = partial(psycopg2.connect, dsn, **connect_timeout_default(said), **encoding_default(said))
        connection = reach()
        try:
            return session_over(partial(Psycopg2Session, prepared=self._prepares, reach=reach), connection)
        except BaseException:  # an interrupt
            connection.close()
            raise

    def wrap(self, connection: Any) -> Psycopg2Session:
        return Psycopg2Session(connection, prepared=self._prepares)

    def acquire(self, pool: Any) -> Psycopg2Session:
        while True:
            connection = None
            try:
                connection = pool.getconn()
                if not connection.closed:
                    session = self._session(connection)
                    if session.in_transaction() or _answers(session):
                        return session
            except PoolError as exc:
                if pool.closed:
                    raise Closed(POOL_CLOSED) from exc
                raise PoolTimeout(f"{POOL_EXHAUSTED} (all {pool.maxconn} connections are in use)") from exc
            except BaseException:  # after an interrupt, the pool would otherwise count the connection as lent
                if connection is not None:
                    pool.putconn(connection, close=True)
                raise
            pool.putconn(connection, close=True)  # the server ended the connection while it was idle

    def _session(self, connection: Any) -> Psycopg2Session:
        session = self._pooled.get(connection)
        if session is None:
            for gone in [other for other in list(self._pooled) if other.closed]:
                self._pooled.pop(gone, None)
            session = self._pooled[connection] = session_over(self.wrap, connection)
        session.lent = connection
        return session

    def release(self, pool: Any, session: Psycopg2Session) -> None:
        if not pool.closed:
            pool.putconn(session.lent, close=not session.usable())

    def connect_like(self, pool: Any) -> Psycopg2Session | None:
        args, kwargs = getattr(pool, "_args", None), getattr(pool, "_kwargs", None)
        if args is None or kwargs is None:  # a pool of another class
            return None
        said = {**extensions.parse_dsn(args[0] if args else kwargs.get("dsn") or ""), **kwargs}
        connection = bare(psycopg2.connect(*args, **{**kwargs, **connect_timeout_default(said)}))
        connection.autocommit = True
        return self.wrap(connection)

    def close_connection(self, connection: Any) -> None:
        connection.close()

    def close_pool(self, pool: Any) -> None:
        if not pool.closed:
            pool.closeall()


def _answers(session: Psycopg2Session) -> bool:
    try:
        return session.alive()
    except psycopg2.Error:
        return False
