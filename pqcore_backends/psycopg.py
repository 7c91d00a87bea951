"""The blocking and the asynchronous backend for psycopg 3.

psycopg prepares a statement itself after it has run five times. While pqcore uses a connection that has no open
transaction, the connection is in autocommit mode; switching the mode sends nothing to the server.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import sql, waiting
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import FeatureNotSupported, InFailedSqlTransaction, InvalidSqlStatementName
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pqcore.backend import (
    ABORTED,
    WHO,
    AutocommitSession,
    Row,
    Signal,
    bare,
    connect_timeout_default,
    encoding_default,
    session_over,
    wait_readable,
)
from pqcore.sql.statement import Query
from pqcore_backends.psycopg_common import ASYNC_CURSORS, CANCELLING, CANCELS, CURSORS, Common
from pqcore_backends.psycopg_pipeline import drain, is_left
from pqcore_backends.psycopg_pools import POOL_ERRORS, Pooled, listening, pool_error


class PsycopgSession(Common, AutocommitSession):
    """One blocking connection."""

    aborted = InFailedSqlTransaction

    def __init__(self, connection: psycopg.Connection[Any], *, prepared: bool) -> None:
        self.prepared = prepared
        self._use(connection, CURSORS[prepared](connection, row_factory=tuple_row))

    def alive(self) -> bool:
        if self.usable() and wait_readable(self.connection.fileno()):
            self._plain.execute(b"SELECT 1")
        return self.usable()

    def execute(self, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        if self._begun and self._begins() and not self._alone():
            return self._send(None, query, parameters)
        text = query.sql if self._traced else query.encoded
        try:
            if query.hot and (statements := self._prepared_statements) is not None:
                with self.connection.lock:
                    if (exchange := statements.run(query, parameters)) is not None:
                        return self._exchange(exchange)  # type: ignore[no-any-return]
            self._cursor.execute(text, parameters or None)
        except FeatureNotSupported:
            if not self._forget_prepared():
                raise
            self._cursor.execute(text, parameters or None)
        except psycopg.OperationalError:
            self._bury()
            raise
        return self._plain.fetchall() if query.rows else ()

    def execute_behind(self, before: Query, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        if self._alone():
            self.execute(before, ())
            return self.execute(query, parameters)
        return self._send(before, query, parameters)

    def _send(self, before: Query | None, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        """Send several statements together, after BEGIN if a transaction must begin."""
        begins = self._begins()
        try:
            leading = self._leading(before)
            with self.connection.lock:
                if (exchange := self._prepared_behind(leading, query, parameters)) is not None:
                    return self._exchange(exchange)  # type: ignore[no-any-return]
            self._wait(self._together(leading, query, parameters))
        except (FeatureNotSupported, InvalidSqlStatementName):
            self._forget_prepared()
            if not begins:
                raise
            self.connection.rollback()  # nothing is lost: the transaction had only its BEGIN
            self._wait(self._together(self._leading(before), query, parameters))
        except psycopg.OperationalError:
            self._bury()
            raise
        return self._plain.fetchall() if query.rows else ()

    def _wait(self, exchange: Generator[Any, Any, None]) -> None:
        with self.connection.lock:
            self._exchange(exchange)

    def _exchange(self, exchange: Generator[Any, Any, Any]) -> Any:
        try:
            return self.connection.wait(exchange)
        except BaseException:
            exchange.close()  # after an interrupt, the traceback would keep the generator open
            if not is_left(self.connection.pgconn):
                self._cut_off()
            raise

    def _cut_off(self) -> None:
        """End an interrupted exchange with the server, as psycopg does when Ctrl-C interrupts a statement."""
        try:
            self.cancel()
        finally:
            drain(self.connection.pgconn, CANCELLING)
            self.connection._prepared.clear()  # the server may not have prepared the statements

    def _switch(self, *, autocommit: bool) -> None:
        if not self._flip(autocommit=autocommit):
            self.connection.autocommit = autocommit

    def _commit_failed(self, exc: BaseException) -> None:
        if isinstance(exc, psycopg.OperationalError):
            self._bury()

    def _bury(self) -> None:
        """Close a connection that psycopg found lost during a statement, and has not closed."""
        if self.connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
            self.connection.pgconn.finish()

    def listen(self, channel: str) -> None:
        self._collect(channel)
        self.connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

    def unlisten(self, channels: Sequence[str]) -> None:
        self.connection.execute(self._unlisten(channels))

    def fileno(self) -> int:
        return int(self.connection.fileno())

    def wait(self, seconds: float) -> None:
        wait_readable(self.connection.fileno(), seconds)

    def notifications(self) -> list[str]:
        return self._channels()

    def direct(self) -> bool:
        return self._is_own(self._plain.execute(WHO.encoded, prepare=False).fetchone())

    def close(self) -> None:
        self.connection.close()

    def cancel(self) -> None:
        if CANCELS:
            self.connection.cancel_safe(timeout=CANCELLING)


class AsyncPsycopgSession(Common):
    """One asynchronous connection."""

    # Older versions of psycopg wait with `asyncio.wait_for`, which since Python 3.12 cancels the task at a timeout.
    cancels_task = sys.version_info >= (3, 12) and "wait_for" in waiting.wait_async.__code__.co_names

    def __init__(self, connection: psycopg.AsyncConnection[Any], *, prepared: bool) -> None:
        self.prepared = prepared
        self._use(connection, ASYNC_CURSORS[prepared](connection, row_factory=tuple_row))

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
        if self._begun and self._begins() and not self._alone():
            return await self._send(None, query, parameters)
        text = query.sql if self._traced else query.encoded
        try:
            if query.hot and (statements := self._prepared_statements) is not None:
                async with self.connection.lock:
                    if (exchange := statements.run(query, parameters)) is not None:
                        return await self._exchange(exchange)  # type: ignore[no-any-return]
            await self._cursor.execute(text, parameters or None)
        except FeatureNotSupported:
            if not self._forget_prepared():
                raise
            await self._cursor.execute(text, parameters or None)
        return await self._plain.fetchall() if query.rows else ()

    async def execute_behind(self, before: Query, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        if self._alone():
            await self.execute(before, ())
            return await self.execute(query, parameters)
        return await self._send(before, query, parameters)

    async def _send(self, before: Query | None, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        """Send several statements together, after BEGIN if a transaction must begin."""
        begins = self._begins()
        try:
            leading = self._leading(before)
            async with self.connection.lock:
                if (exchange := self._prepared_behind(leading, query, parameters)) is not None:
                    return await self._exchange(exchange)  # type: ignore[no-any-return]
            await self._wait(self._together(leading, query, parameters))
        except (FeatureNotSupported, InvalidSqlStatementName):
            self._forget_prepared()
            if not begins:
                raise
            await self.connection.rollback()  # only BEGIN was sent before
            await self._wait(self._together(self._leading(before), query, parameters))
        return await self._plain.fetchall() if query.rows else ()

    async def _wait(self, exchange: Generator[Any, Any, None]) -> None:
        async with self.connection.lock:
            await self._exchange(exchange)

    async def _exchange(self, exchange: Generator[Any, Any, Any]) -> Any:
        try:
            return await self.connection.wait(exchange)
        except BaseException:
            exchange.close()  # after an interrupt, the traceback would keep the generator open
            if not is_left(self.connection.pgconn):  # a blocking session would wait here; an event loop must not
                self.connection.pgconn.finish()
            raise

    async def begin(self) -> None:
        self._begun = self._flipped = True  # set before the switch, because an interrupt may come between the two
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
        loop, arrived = asyncio.get_running_loop(), Signal()
        fileno = os.dup(self.connection.fileno())  # psycopg makes the loop watch its own descriptor of the socket
        loop.add_reader(fileno, arrived.set)
        try:
            await arrived.wait(seconds)
        finally:
            loop.remove_reader(fileno)
            os.close(fileno)

    async def notifications(self) -> list[str]:
        return self._channels()

    async def direct(self) -> bool:
        return self._is_own(await (await self._plain.execute(WHO.encoded, prepare=False)).fetchone())

    async def close(self) -> None:
        await self.connection.close()

    async def cancel(self) -> None:
        if CANCELS:
            await self.connection.cancel_safe(timeout=CANCELLING)


def _answers(session: PsycopgSession) -> bool:
    with suppress(psycopg.Error):
        return session.alive()
    return False


async def _answers_async(session: AsyncPsycopgSession) -> bool:
    with suppress(psycopg.Error):
        return await session.alive()
    return False


class PsycopgBackend(Pooled):
    """The maker of blocking sessions over psycopg's connections and psycopg_pool's pools."""

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
            except POOL_ERRORS as exc:
                raise pool_error(exc) from exc
            except BaseException:  # after an interrupt, the pool would otherwise count the connection as lent
                if connection is not None:
                    pool.putconn(connection)
                raise
            pool.putconn(connection)  # the server ended the connection while it was idle; the pool replaces it

    def release(self, pool: Any, session: PsycopgSession) -> None:
        pool.putconn(session.lent)

    def connect_like(self, pool: Any) -> PsycopgSession | None:
        said = pool.conninfo, pool.kwargs  # the pool calls such a function for each connection, too
        conninfo, kwargs = (each() if callable(each) else each for each in said)
        return self.wrap(bare(pool.connection_class.connect(conninfo or "", **listening(conninfo, kwargs))))

    def close_connection(self, connection: Any) -> None:
        connection.close()

    def close_pool(self, pool: Any) -> None:
        pool.close()


class AsyncPsycopgBackend(Pooled):
    """The maker of asynchronous sessions over psycopg's connections and psycopg_pool's pools."""

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
            except POOL_ERRORS as exc:
                raise pool_error(exc) from exc
            except BaseException:
                if connection is not None:
                    await pool.putconn(connection)
                raise
            await pool.putconn(connection)

    async def release(self, pool: Any, session: AsyncPsycopgSession) -> None:
        await pool.putconn(session.lent)

    async def connect_like(self, pool: Any) -> AsyncPsycopgSession | None:
        said = pool.conninfo, pool.kwargs  # the pool calls such a function for each connection, too
        values = [each() if callable(each) else each for each in said]
        conninfo, kwargs = [await value if inspect.isawaitable(value) else value for value in values]
        return self.wrap(bare(await pool.connection_class.connect(conninfo or "", **listening(conninfo, kwargs))))

    async def close_connection(self, connection: Any) -> None:
        await connection.close()

    async def close_pool(self, pool: Any) -> None:
        await pool.close()
