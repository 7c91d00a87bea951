"""Where sessions come from: a DSN, a connection of the caller's, or a pool of the caller's."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from threading import Lock
from typing import Any, Protocol
from urllib.parse import unquote
from weakref import WeakSet

from pqcore.dialect import Dialect
from pqcore.errors import Closed, ConfigurationError, ConnectionLost, PoolTimeout, PQError
from pqcore.runtime import Runtime
from pqcore.sessions import CoreSession, translate
from pqcore.statement import Query

REPLAN = 10.0
"""Seconds after which prepared statements are planned anew, for the table as it is by then."""
CLOSED = "the connection is closed: give an open one, or a DSN or pool, which replace lost connections"


class Opener:
    """A backend, blocking or not, as the core calls it."""

    def __init__(self, backend: Any, sql: Dialect, *, suspends: bool) -> None:
        self.backend = backend
        self.errors = (*backend.errors, OSError)
        self.sql = sql
        self._suspends = suspends
        self._sessions: WeakSet[CoreSession] = WeakSet()
        self._counting = Lock()

    async def call(self, method: str, *arguments: object) -> Any:
        """Call a method of the backend, awaiting it where it is to be awaited."""
        try:
            result = getattr(self.backend, method)(*arguments)
            return await result if self._suspends else result
        except PQError:  # which may be an OSError too
            raise
        except self.errors as exc:
            raise translate(exc, method, lost=method == "connect") from exc

    def session(self, driver: Any) -> CoreSession:
        made = CoreSession(driver, self.sql, self.errors, suspends=self._suspends)
        with self._counting:
            self._sessions.add(made)
        return made

    def stalled(self, limit: float) -> list[CoreSession]:
        """The sessions with a call that has not returned for ``limit`` seconds, and should have."""
        since = time.monotonic() - limit
        return [session for session in self._all() if session.waits and (session.busy_since or since) < since]

    def unheard(self, limit: float) -> list[CoreSession]:
        """The sessions without such a call of which the server was not heard for ``limit`` seconds."""
        since = time.monotonic() - limit
        return [session for session in self._all() if not session.waits and session.heard_at < since]

    def _all(self) -> list[CoreSession]:
        with self._counting:
            return list(self._sessions)

    def wrap(self, connection: object) -> CoreSession:
        session = self.session(self.backend.wrap(connection))
        if not session.usable():
            raise ConnectionLost(CLOSED)
        return session


class Source(Protocol):
    """Lends sessions."""

    async def acquire(self) -> CoreSession: ...
    async def release(self, session: CoreSession) -> None: ...
    async def listener(self) -> CoreSession | None:
        """A session that nobody else uses, to listen on; None if there is none to be had."""

    async def close(self) -> None: ...


class OwnPool:
    """Connections that we open, kept for reuse.

    Opened when first needed.  One that idled is looked at before it is lent:
    a restart of the server goes unnoticed.  After a fork, or in another event
    loop, the old ones are left to their owner.

    Args:
        opener: The backend.
        dsn: Where to connect.
        runtime: How to wait.
        size: Connections, at most; one more is opened for listening.
        timeout: Seconds to wait for a free one.
        idle_limit: Seconds after which the server ends one that idles in a transaction; None for as it is set to.
    """

    def __init__(
        self, opener: Opener, dsn: str, runtime: Runtime, size: int, timeout: float, idle_limit: float | None = None
    ) -> None:
        self._opener = opener
        self._dsn = dsn
        self._runtime = runtime
        self._size = size
        self._timeout = timeout
        self._idle_limit = idle_limit
        self._closed = False
        self._owner: Hashable = None
        self._idle: list[CoreSession] = []
        self._abandoned: list[CoreSession] = []
        self._places = runtime.gate(size)
        self._taking_over = Lock()

    async def acquire(self) -> CoreSession:
        self._check()
        owner = self._runtime.owner()
        if self._owner != owner and self._take_over(owner):
            await self._runtime.at_end(self._close_idle)
        places = self._places
        if not await places.enter(self._timeout):
            msg = (
                f"all {self._size} connections have been in use for {self._timeout} seconds: "
                "raise max_connections, or look for transactions that are held open"
            )
            raise PoolTimeout(msg)
        try:
            while self._idle:
                session = self._idle.pop()
                if not session.doubtful and await session.alive() and await self._replanned(session):
                    return session
                await _discard(session)
            return await self._connect()
        except BaseException:
            places.leave()
            raise

    async def _replanned(self, session: CoreSession) -> bool:
        if time.monotonic() - session.planned_at > REPLAN:
            session.planned_at = time.monotonic()
            try:
                await session.execute(session.sql.replan)
            except ConnectionLost:
                return False
        return True

    def _take_over(self, owner: Hashable) -> bool:
        with self._taking_over:  # threads may come here together
            if self._owner == owner:
                return False
            # Kept, not closed: closing would end the connection for its owner too.
            self._abandoned += self._idle
            self._idle, self._places = [], self._runtime.gate(self._size)
            self._owner = owner
            return True

    async def release(self, session: CoreSession) -> None:
        keep = session.usable() and not session.in_transaction() and not session.doubtful and not self._closed
        if keep:
            self._idle.append(session)
        self._places.leave()
        if not keep:
            await _discard(session)

    async def listener(self) -> CoreSession | None:
        self._check()
        return await self._connect()

    def _check(self) -> None:
        if self._closed:
            msg = "this PQ has been closed"
            raise Closed(msg)

    async def close(self) -> None:
        self._closed = True
        if self._owner == self._runtime.owner():
            await self._close_idle()

    async def _close_idle(self) -> None:
        while self._idle:
            await _discard(self._idle.pop())

    async def _connect(self) -> CoreSession:
        try:
            session = self._opener.session(await self._opener.call("connect", self._dsn))
        except (ValueError, TypeError) as exc:  # a driver that reads the DSN itself
            raise ConfigurationError(f"not a DSN: {redact(str(exc), self._dsn)}") from None
        except PQError as exc:
            cause = exc.__cause__
            unread = type(cause).__name__ == "ProgrammingError" and getattr(exc, "sqlstate", None) is None
            if not unread and not isinstance(cause, ValueError):
                raise
            # It was not a DSN. Drivers quote what they cannot read, so what this one said is not chained.
            raise ConfigurationError(redact(str(exc), self._dsn)) from None
        await session.enter()
        if self._idle_limit is not None:
            sql = f"SET idle_in_transaction_session_timeout = {max(int(self._idle_limit * 1000), 1)}"
            await session.execute(Query("idle_limit", sql, sql, (), (), rows=False, hot=False))
        return session


def redact(text: str, dsn: str) -> str:
    """Remove a DSN, and the password in it, from a text."""
    secrets = [dsn]
    for pattern in (r"://[^/@:]*:(.+)@", r"password\s*=\s*'?([^'\s&]+)"):
        for secret in re.findall(pattern, dsn):
            secrets += [secret, unquote(secret)]
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


class CallersPool:
    """A pool of the caller's.

    Some raise an error when all of their connections are in use; then we ask
    again, for ``timeout`` seconds.
    """

    def __init__(self, opener: Opener, pool: object, runtime: Runtime, timeout: float) -> None:
        self._opener = opener
        self._pool = pool
        self._runtime = runtime
        self._timeout = timeout

    async def acquire(self) -> CoreSession:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                session = self._opener.session(await self._opener.call("acquire", self._pool))
                break
            except PoolTimeout:
                if time.monotonic() >= deadline:
                    raise
                await self._runtime.sleep(0.01)
        try:
            await session.enter()
        except BaseException:
            await self.release(session)
            raise
        return session

    async def release(self, session: CoreSession) -> None:
        try:
            await session.leave()
        finally:
            await self._opener.call("release", self._pool, session.driver)

    async def listener(self) -> CoreSession | None:
        driver = await self._opener.call("connect_like", self._pool)
        return None if driver is None else self._opener.session(driver)

    async def close(self) -> None:
        await self._opener.call("close_pool", self._pool)


class CallersConnection:
    """One connection of the caller's, for one at a time."""

    def __init__(self, opener: Opener, connection: object, runtime: Runtime) -> None:
        self._opener = opener
        self._connection = connection
        self.session = opener.wrap(connection)
        self.on_release: Callable[[CoreSession], Awaitable[None]] | None = None
        self._turn = runtime.turn()
        self._depth = 0

    async def acquire(self) -> CoreSession:
        await self._turn.enter()
        try:
            if not self.session.usable():
                raise ConnectionLost(CLOSED)  # noqa: TRY301
            if self._depth == 0:
                await self.session.enter()
        except BaseException:
            self._turn.leave()
            raise
        self._depth += 1
        return self.session

    async def release(self, session: CoreSession) -> None:
        self._depth -= 1
        try:
            if self._depth == 0:
                if self.on_release is not None and session.usable():
                    await self.on_release(session)
                await session.leave()
        finally:
            self._turn.leave()

    async def listener(self) -> CoreSession | None:
        return None

    async def close(self) -> None:
        await self._opener.call("close_connection", self._connection)


async def _discard(session: CoreSession) -> None:
    with suppress(PQError):  # it may have been lost before
        await session.close()
