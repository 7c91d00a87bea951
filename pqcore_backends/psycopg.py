"""psycopg 3: blocking and asynchronous, two faces of one driver.

psycopg prepares a statement by itself once it has run five times.  While we
use an idle connection it is switched to autocommit, which sends nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql, waiting
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import FeatureNotSupported, InFailedSqlTransaction
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pqcore.backend import (
    ABORTED,
    AutocommitSession,
    Row,
    bare,
    connect_timeout_default,
    encoding_default,
    session_over,
    wait_readable,
)
from pqcore.errors import Closed, PoolTimeout
from pqcore.sql.statement import Query
from pqcore_backends.psycopg_common import AsyncCursor, Common, Cursor, UnpreparedAsyncCursor, UnpreparedCursor

try:
    import psycopg_pool
except ImportError:  # without it there are no pools to adopt
    _POOL_ERRORS: tuple[type[Exception], ...] = ()
else:
    _POOL_ERRORS = (psycopg_pool.PoolClosed, psycopg_pool.PoolTimeout)

CANCELLING = 5.0
"""Seconds that a cancel request may take."""
_CANCELS = hasattr(psycopg, "capabilities") and psycopg.capabilities.has_cancel_safe()
# psycopg 3.2 over libpq 17. Before, a cancel request stops all threads of the process until the server answers.
WHO = "SELECT pg_backend_pid()"


class PsycopgSession(Common, AutocommitSession):
    """One connection, blocking."""

    aborted = InFailedSqlTransaction

    def __init__(self, connection: psycopg.Connection[Any], *, prepared: bool) -> None:
        self.prepared = prepared
        kind = Cursor if prepared else UnpreparedCursor
        self._use(connection, kind(connection, row_factory=tuple_row))

    def alive(self) -> bool:
        if self.usable() and wait_readable(self.connection.fileno()):
            self._plain.execute(b"SELECT 1")
        return self.usable()

    def execute(self, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        text = query.sql if self._traced else query.encoded
        try:
            self._cursor.execute(text, parameters or None)
        except FeatureNotSupported:
            if not self._forget_prepared():
                raise
            self._cursor.execute(text, parameters or None)
        except psycopg.OperationalError:
            self._bury()
            raise
        return self._plain.fetchall() if query.rows else ()

    def _switch(self, *, autocommit: bool) -> None:
        if not self._flip(autocommit=autocommit):
            self.connection.autocommit = autocommit

    def _commit_failed(self, exc: BaseException) -> None:
        if isinstance(exc, psycopg.OperationalError):
            self._bury()

    def _bury(self) -> None:
        """Close what psycopg has found cut off, while a statement was under way, and has not closed."""
        if self.connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
            self.connection.pgconn.finish()

    def listen(self, channel: str) -> None:
        self._collect(channel)
        self.connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

    def unlisten(self, channels: Sequence[str]) -> None:
        self.connection.execute(self._unlisten(channels))

    def wait(self, seconds: float) -> None:
        wait_readable(self.connection.fileno(), seconds)

    def notifications(self) -> list[str]:
        return self._channels()

    def direct(self) -> bool:
        row = self._plain.execute(WHO, prepare=False).fetchone()
        return bool(row == (self.connection.info.backend_pid,))

    def close(self) -> None:
        self.connection.close()

    def cancel(self) -> None:
        if _CANCELS:
            self.connection.cancel_safe(timeout=CANCELLING)


class AsyncPsycopgSession(Common):
    """One connection, asynchronous."""

    # Older versions of psycopg wait by `asyncio.wait_for`, which since Python 3.12 cancels the task when time is up.
    cancels_task = sys.version_info >= (3, 12) and "wait_for" in waiting.wait_async.__code__.co_names

    def __init__(self, connection: psycopg.AsyncConnection[Any], *, prepared: bool) -> None:
        self.prepared = prepared
        kind = AsyncCursor if prepared else UnpreparedAsyncCursor
        self._use(connection, kind(connection, row_factory=tuple_row))

    async def enter(self) -> None:
        if self._to_switch():
            self._switched = True
            await self.connection.set_autocommit(True)

    async def leave(self) -> None:
        if self._switched:
            await self.connection.set_autocommit(False)
            self._switched = False

    async def alive(self) -> bool:
        if self.usable() and wait_readable(self.connection.fileno()):
            await self._plain.execute(b"SELECT 1")
        return self.usable()

    async def execute(self, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        text = query.sql if self._traced else query.encoded
        try:
            await self._cursor.execute(text, parameters or None)
        except FeatureNotSupported:
            if not self._forget_prepared():
                raise
            await self._cursor.execute(text, parameters or None)
        return await self._plain.fetchall() if query.rows else ()

    async def begin(self) -> None:
        self._begun = self._flipped = True  # first: an interrupt may come in between
        if not self._flip(autocommit=False):
            await self.connection.set_autocommit(False)

    async def commit(self) -> None:
        self._begun = False
        failed = self._failed()
        try:
            await self.connection.commit()
        except BaseException:
            await self._end()
            raise
        if not self._flip(autocommit=True):
            await self.connection.set_autocommit(True)
        self._flipped = False
        if failed:
            raise InFailedSqlTransaction(ABORTED)

    async def rollback(self) -> None:
        self._begun = False
        try:
            await self.connection.rollback()
        finally:
            await self._end()

    async def _end(self) -> None:
        if self._flipped and self.usable() and not self.in_transaction():
            if not self._flip(autocommit=True):
                await self.connection.set_autocommit(True)
            self._flipped = False

    async def listen(self, channel: str) -> None:
        self._collect(channel)
        await self.connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

    async def unlisten(self, channels: Sequence[str]) -> None:
        await self.connection.execute(self._unlisten(channels))

    async def wait(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        arrived = loop.create_future()
        # A file of our own for the same socket: psycopg, too, has the loop watch its file.
        fileno = os.dup(self.connection.fileno())

        def stir() -> None:
            if not arrived.done():
                arrived.set_result(None)

        loop.add_reader(fileno, stir)
        try:
            await asyncio.wait([arrived], timeout=seconds)
        finally:
            loop.remove_reader(fileno)
            os.close(fileno)

    async def notifications(self) -> list[str]:
        return self._channels()

    async def direct(self) -> bool:
        cursor = await self._plain.execute(WHO, prepare=False)
        return bool(await cursor.fetchone() == (self.connection.info.backend_pid,))

    async def close(self) -> None:
        await self.connection.close()

    async def cancel(self) -> None:
        if _CANCELS:
            await self.connection.cancel_safe(timeout=CANCELLING)


class _Pooled:
    """A session a connection, kept on the connection, which its pool keeps."""

    errors = (psycopg.Error, UnicodeError)

    def __init__(self, *, prepared: bool = True) -> None:
        self._prepares = prepared

    def _session(self, connection: Any) -> Any:
        session = getattr(connection, "_pqcore_session", None)
        if session is None or session.prepared is not self._prepares:
            session = connection._pqcore_session = session_over(self.wrap, connection)
        session.lent = connection
        return session

    def wrap(self, connection: Any) -> Any:
        raise NotImplementedError


def _answers(session: PsycopgSession) -> bool:
    try:
        return session.alive()
    except psycopg.Error:
        return False


async def _answers_async(session: AsyncPsycopgSession) -> bool:
    try:
        return await session.alive()
    except psycopg.Error:
        return False


def _listening(conninfo: str | None, kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """A pool's arguments, for a connection that listens."""
    said = {**conninfo_to_dict(conninfo or ""), **(kwargs or {})}
    return {**(kwargs or {}), **connect_timeout_default(said), "autocommit": True}


def _pool_error(exc: Exception) -> Exception:
    if isinstance(exc, psycopg_pool.PoolClosed):
        return Closed(f"the connection pool is closed: {exc}: give PQ an open one")
    return PoolTimeout(f"the connection pool is exhausted: {exc}")


class PsycopgBackend(_Pooled):
    """Makes blocking sessions over psycopg's connections and psycopg_pool's pools."""

    def connect(self, dsn: str) -> PsycopgSession:
        said = conninfo_to_dict(dsn)
        connection = psycopg.connect(dsn, autocommit=True, **connect_timeout_default(said), **encoding_default(said))
        try:
            return session_over(self.wrap, connection)
        except BaseException:  # an interrupt
            connection.close()
            raise

    def wrap(self, connection: Any) -> PsycopgSession:
        return PsycopgSession(connection, prepared=self._prepares)

    def acquire(self, pool: Any) -> PsycopgSession:
        while True:
            connection = None
            try:
                connection = pool.getconn()
                session: PsycopgSession = self._session(connection)
                if session.in_transaction() or _answers(session):
                    return session
            except _POOL_ERRORS as exc:
                raise _pool_error(exc) from exc
            except BaseException:  # an interrupt: the pool would count it for good
                if connection is not None:
                    pool.putconn(connection)
                raise
            pool.putconn(connection)  # the server ended it while it idled; the pool replaces it

    def release(self, pool: Any, session: PsycopgSession) -> None:
        pool.putconn(session.lent)

    def connect_like(self, pool: Any) -> PsycopgSession | None:
        said = pool.conninfo, pool.kwargs
        conninfo, kwargs = (each() if callable(each) else each for each in said)  # as the pool asks for each connection
        return self.wrap(bare(pool.connection_class.connect(conninfo or "", **_listening(conninfo, kwargs))))

    def close_connection(self, connection: Any) -> None:
        connection.close()

    def close_pool(self, pool: Any) -> None:
        pool.close()


class AsyncPsycopgBackend(_Pooled):
    """Makes asynchronous sessions over psycopg's connections and psycopg_pool's pools."""

    async def connect(self, dsn: str) -> AsyncPsycopgSession:
        said = conninfo_to_dict(dsn)
        more = {**connect_timeout_default(said), **encoding_default(said)}
        return session_over(self.wrap, await psycopg.AsyncConnection.connect(dsn, autocommit=True, **more))

    def wrap(self, connection: Any) -> AsyncPsycopgSession:
        return AsyncPsycopgSession(connection, prepared=self._prepares)

    async def acquire(self, pool: Any) -> AsyncPsycopgSession:
        while True:
            connection = None
            try:
                connection = await pool.getconn()
                session: AsyncPsycopgSession = self._session(connection)
                if session.in_transaction() or await _answers_async(session):
                    return session
            except _POOL_ERRORS as exc:
                raise _pool_error(exc) from exc
            except BaseException:
                if connection is not None:
                    await pool.putconn(connection)
                raise
            await pool.putconn(connection)

    async def release(self, pool: Any, session: AsyncPsycopgSession) -> None:
        await pool.putconn(session.lent)

    async def connect_like(self, pool: Any) -> AsyncPsycopgSession | None:
        said = []
        for each in (pool.conninfo, pool.kwargs):  # as the pool asks for each connection
            value = each() if callable(each) else each
            said.append(await value if inspect.isawaitable(value) else value)
        conninfo, kwargs = said
        return self.wrap(bare(await pool.connection_class.connect(conninfo or "", **_listening(conninfo, kwargs))))

    async def close_connection(self, connection: Any) -> None:
        await connection.close()

    async def close_pool(self, pool: Any) -> None:
        await pool.close()
