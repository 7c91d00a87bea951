"""The asynchronous backend for asyncpg.

asyncpg prepares every statement and caches it. Transactions use asyncpg's own objects, because asyncpg refuses
``connection.transaction()`` within a transaction that a BEGIN statement began.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import asyncpg
from asyncpg.connect_utils import _cancel

from pqcore.backend import ABORTED, POOL_CLOSED, POOL_EXHAUSTED, WHO, Row, Signal, bare, session_over, shutdown_socket
from pqcore.errors import Closed, PoolTimeout
from pqcore.sql.statement import Query
from pqcore_backends.asyncpg_dsn import arguments

T = TypeVar("T")

POOL_WAIT = 30.0
"""Seconds to wait for a connection of the caller's pool; asyncpg's own limit is none."""
CLOSING = 2.0
"""Seconds that closing a connection may take, before it is broken off."""
LOST = "the server ended the connection"
CLOSED = "connection is closed"


class AsyncpgSession:
    """One connection."""

    ends_when_cancelled = True
    cancels_task = False
    server_version = ""

    def __init__(self, connection: Any, reopen: Callable[[Any], Awaitable[Any]] | None = None) -> None:
        self.connection = connection
        self.lent = connection  # the object that a pool lent, and takes back
        self._reopen = reopen
        self._transaction: Any = None
        self._arrived: list[str] = []
        self._stirred = Signal()

    def through(self, proxy: Any) -> None:
        self.lent = proxy

    async def enter(self) -> None:
        """Switch nothing, because asyncpg has no implicit transactions."""

    async def leave(self) -> None:
        """Undo nothing."""

    def in_transaction(self) -> bool:
        return self.usable() and bool(self.connection.is_in_transaction())

    def usable(self) -> bool:
        try:
            return not self.connection.is_closed()
        except asyncpg.InterfaceError:  # the pool has detached its proxy from a lost connection
            return False

    async def alive(self) -> bool:
        return self.usable()  # if the event loop has not noticed yet that the connection is lost, `execute` notices it

    async def _answer(self, send: Callable[..., Awaitable[T]], *arguments: Any, again: bool = False) -> T:
        """Await the answer to the call of a method.

        Args:
            send: The method.
            *arguments: Its arguments.
            again: Whether the call may be repeated on another connection, if the server has ended this one.
        """
        try:
            return await send(*arguments)
        except (asyncpg.InternalClientError, AttributeError) as exc:
            await self._deal_with(exc, again=again)
        return await self._answer(send, *arguments)

    async def _deal_with(self, exc: Exception, *, again: bool) -> None:
        """Replace the connection, so that the call can be repeated, or raise an error for the exception."""
        if isinstance(exc, asyncpg.InternalClientError):
            if not again:
                raise exc
            await self._replace()
        elif self.usable():
            raise exc
        else:
            # asyncpg sets `_protocol` of an aborted connection to None, even between two messages of one call.
            raise asyncpg.ConnectionDoesNotExistError(LOST) from exc

    async def execute(self, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        try:  # this inlines `_answer`
            return await self._execute(query, parameters)
        except (asyncpg.InternalClientError, AttributeError) as exc:
            await self._deal_with(exc, again=True)
        return await self._answer(self._execute, query, parameters)

    async def _execute(self, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        connection = self.connection
        if not query.rows and not parameters:
            await connection.execute(query.sql)
            return ()
        if connection.is_closed():
            raise asyncpg.InterfaceError(CLOSED)
        # Like fetch(), but with asyncpg's own codecs, because the application may have set other codecs on its
        # connection.
        rows: Sequence[Row] = await connection._execute(query.sql, parameters, 0, None, ignore_custom_codec=True)
        return rows if query.rows else ()

    async def _replace(self) -> None:
        """Open another connection in place of an idle one that the server ended.

        asyncpg has read that the server ended the connection, and refuses to send anything, so nothing was sent.
        """
        within = self._transaction is not None or self.connection.is_in_transaction()
        self.connection.terminate()
        if self._reopen is None or within:
            raise asyncpg.ConnectionDoesNotExistError(LOST)
        self.lent = await self._reopen(self.lent)
        self.connection = bare(self.lent)

    def begin(self) -> Coroutine[Any, Any, None]:
        return self._answer(self._begin, again=True)

    async def _begin(self) -> None:
        transaction = self.connection.transaction()
        await transaction.start()
        self._transaction = transaction

    async def commit(self) -> None:
        transaction, self._transaction = self._transaction, None
        # transaction.commit() does not check whether the server answers ROLLBACK, so it is not used.
        transaction._connection._top_xact = None
        if await self._answer(self.connection.execute, "COMMIT") != "COMMIT":
            raise asyncpg.InFailedSQLTransactionError(ABORTED)

    async def rollback(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            await self._answer(transaction.rollback)

    def cursor(self, **options: Any) -> Any:
        return self.lent

    async def listen(self, channel: str) -> None:
        self.connection.add_termination_listener(self._stir)
        await self._answer(self.connection.add_listener, channel, self._collect)

    async def unlisten(self, channels: Sequence[str]) -> None:
        for channel in channels:
            await self._answer(self.connection.remove_listener, channel, self._collect)

    async def wait(self, seconds: float) -> None:
        await self._stirred.wait(seconds)

    async def notifications(self) -> list[str]:
        if not self.usable():
            raise asyncpg.InterfaceError(CLOSED)
        self._stirred.clear()
        arrived, self._arrived = self._arrived, []
        return arrived

    def _collect(self, connection: Any, pid: int, channel: str, payload: str) -> None:
        self._arrived.append(channel)
        self._stirred.set()

    def _stir(self, connection: Any) -> None:
        self._stirred.set()

    def direct(self) -> Coroutine[Any, Any, bool]:
        return self._answer(self._direct)

    async def _direct(self) -> bool:
        told: list[bytes] = []

        async def keep(data: bytes) -> None:
            told.append(data)

        # COPY is used because asyncpg prepares every other statement that returns rows.
        await self.connection.copy_from_query(WHO.sql, output=keep)
        pid, _, self.server_version = b"".join(told).decode(errors="replace").partition("\t")
        return bool(int(pid) == self.connection.get_server_pid())

    async def close(self) -> None:
        await self.connection.close(timeout=CLOSING)

    def cancel(self) -> Coroutine[Any, Any, None]:
        return self._answer(self._cancel)

    async def _cancel(self) -> None:
        # asyncpg itself sends a cancel request only when it gives up a call.
        connection = self.connection
        protocol = connection._protocol
        await _cancel(
            loop=connection._loop,
            addr=connection._addr,
            params=connection._params,
            backend_pid=protocol.backend_pid,
            backend_secret=protocol.backend_secret,
        )

    def abort(self) -> None:
        loop = self.connection._loop
        if asyncio._get_running_loop() is loop:
            self.connection.terminate()
        elif loop.is_running():  # called from another thread
            loop.call_soon_threadsafe(self.connection.terminate)
        else:
            with suppress(OSError):
                shutdown_socket(self.connection._transport.get_extra_info("socket").fileno())


async def _borrow(pool: Any) -> Any:
    """Borrow a connection of the caller's pool.

    Raises:
        PoolTimeout: All connections have been in use for `POOL_WAIT` seconds.
    """
    try:
        return await pool.acquire(timeout=POOL_WAIT)
    except asyncio.TimeoutError as exc:
        size = bare(pool).get_max_size()
        if bare(pool).get_size() < size:  # the pool could have opened a connection: the server did not answer
            raise
        raise PoolTimeout(f"{POOL_EXHAUSTED} (all {size} connections are in use)") from exc


class AsyncpgBackend:
    """The maker of sessions over asyncpg's connections and pools."""

    errors = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncio.TimeoutError)

    def __init__(self, *, prepared: bool = True) -> None:
        self._options: dict[str, Any] = {} if prepared else {"statement_cache_size": 0}

    async def connect(self, dsn: str) -> AsyncpgSession:
        async def opened(lost: Any) -> Any:
            return await asyncpg.connect(**arguments(dsn), **self._options)

        return session_over(partial(AsyncpgSession, reopen=opened), await opened(None))

    def wrap(self, connection: Any) -> AsyncpgSession:
        return AsyncpgSession(connection)

    def pool_size(self, pool: Any) -> int:
        # asyncpg prepares and executes in two round trips: in a shared session, another client may come in between.
        return int(bare(pool).get_max_size())

    async def acquire(self, pool: Any) -> AsyncpgSession:
        if pool.is_closing():
            raise Closed(POOL_CLOSED)
        if not pool._initialized:
            await bare(pool)

        async def another(lost: Any) -> Any:
            await pool.release(lost)
            return await _borrow(pool)

        return session_over(partial(AsyncpgSession, reopen=another), await _borrow(pool))

    async def release(self, pool: Any, session: AsyncpgSession) -> None:
        await pool.release(session.lent)

    async def connect_like(self, pool: Any) -> AsyncpgSession | None:
        pool = bare(pool)
        connect = getattr(pool, "_connect", asyncpg.connect)  # a function that the caller may set, since asyncpg 0.30
        classes = {"connection_class": pool._connection_class, "record_class": pool._record_class}
        return self.wrap(bare(await connect(*pool._connect_args, loop=pool._loop, **classes, **pool._connect_kwargs)))

    async def close_connection(self, connection: Any) -> None:
        await connection.close()

    async def close_pool(self, pool: Any) -> None:
        await pool.close()
