"""The adapter through which the core calls a backend, blocking or asynchronous."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any
from weakref import ref

from pqcore.backend import Capability, session_over
from pqcore.db.driver_errors import translate
from pqcore.db.isolation import Defaults
from pqcore.db.session import Session
from pqcore.db.shared_session import ONE_CLIENT, SHARED
from pqcore.db.watchdog import watchdog
from pqcore.errors import ConfigurationError, ConnectionLost, PQError
from pqcore.sql.dialect import Dialect
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import Paramstyle

logger = logging.getLogger("pqcore")

LATELY = 6
"""A connection counts as recently closed for this number of times the time limit of a call."""
FEW = 10
"""The number of recently closed connections from which the next connection is opened only after a pause."""
LONGEST_PAUSE = 5.0
"""The longest pause before another connection is opened, in seconds."""
CLOSED = "the connection is closed: give an open one; or give a DSN or a pool, with which lost connections are replaced"
POOLED = (
    "a pooler is between this process and the server: statements are not prepared, and waiters poll, because in"
    " transaction mode other clients use the same server connections; give PQ prepared=True if the pooler is in session"
    " mode, else prepared=False"
)


@lru_cache(maxsize=32)
def compiled(dialect: Callable[[TableName, Paramstyle], Dialect], names: TableName, paramstyle: Paramstyle) -> Dialect:
    """Compile the statements of a table once for a queue and all its workers, because compiling takes milliseconds."""
    return dialect(names, paramstyle)


class BackendAdapter:
    """A backend, blocking or asynchronous, in the form that the core calls.

    Args:
        make: A function that makes the backend, given ``prepared``.
        sql: The statements of the dialect.
        suspends: Whether the backend's methods return awaitables.
        prepared: Whether statements may be prepared; None to check for a pooler.
        limit: Seconds that a call on a session may wait for the server's answer; None for no limit.

    Attributes:
        prepared: The argument ``prepared``. If it was None, it is false after a check that found a pooler, or a server
            whose clients share one session.
        shares_session: Whether a check found that all clients of the server share one session.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        sql: Dialect,
        *,
        suspends: bool,
        prepared: bool | None = True,
        limit: float | None = None,
    ) -> None:
        if limit is not None and not (isinstance(limit, (int, float)) and limit > 0):
            msg = f"answer_timeout is {limit!r}; give a number of seconds greater than 0, or None"
            raise ConfigurationError(msg)
        self._make = make
        self._limit = limit
        self.prepared = prepared
        self.shares_session = False
        self.backend = make(prepared=prepared is not False)
        self.errors = (*self.backend.errors, OSError)
        self.sql = sql
        self._suspends = suspends
        self._sessions: set[ref[Session]] = set()
        self._found: dict[str, object] = {}
        self._defaults = Defaults()
        self._broken_off: deque[float] = deque(maxlen=100)  # the times at which connections were closed recently

    async def call(self, method: str, *arguments: object) -> Any:
        """Call a method of the backend, and await an awaitable result."""
        if not self._suspends:
            return self.call_blocking(method, *arguments)
        try:
            return await getattr(self.backend, method)(*arguments)
        except PQError:  # no second translation: some PQErrors are OSErrors, and `errors` may include OSError
            raise
        except self.errors as exc:
            raise translate(exc, method, lost=method == "connect") from exc

    def call_blocking(self, method: str, *arguments: object) -> Any:
        """Call a method of a blocking backend.

        This method must do nothing after the call: an interrupt after the call would lose the opened connection.
        """
        try:
            return getattr(self.backend, method)(*arguments)
        except PQError:
            raise
        except self.errors as exc:
            raise translate(exc, method, lost=method == "connect") from exc

    async def open(self, method: str, *arguments: object) -> Session | None:
        """Return a session on a connection that a method of the backend opens for pqcore alone.

        Return None if the method opens no connection.
        """
        driver: Any = None
        try:
            driver = await self.call(method, *arguments)
            if driver is None:
                return None
            session = self.session(driver)
            session.opened = True
            return session  # noqa: TRY300 - an interrupt may come to this line, too
        except BaseException:
            if driver is not None:
                with suppress(*self.errors):
                    getattr(driver, "drop", driver.abort)()
            raise

    def session(self, driver: Any) -> Session:
        made = Session(
            driver, self.sql, self.errors, suspends=self._suspends, defaults=self._defaults, limit=self._limit
        )
        made.known_direct = self.prepared is True
        self._sessions.add(ref(made, self._sessions.discard))
        if self._limit is not None:
            watchdog.watch(self)
        return made

    @property
    def alternates(self) -> bool:
        """Return whether the server's session may also serve other clients, as it does behind a pooler."""
        return self.prepared is False

    async def direct(self, session: Session) -> bool:
        """Return whether the server's session belongs to this connection alone.

        If not, later sessions prepare no statements.
        """
        if Capability.PREPARED in self.sql.missing:  # the server may also lack the functions that the check calls
            return True
        if await session.direct():
            return True
        if self.prepared is None or session.shares_session:
            mine = object()
            if self._found.setdefault("told", mine) is mine:  # two threads may find a shared session concurrently
                logger.warning(SHARED if session.shares_session else POOLED)
            self.shares_session = session.shares_session
        if self.prepared is None:
            # `backend` is set before `prepared`: a thread that sees the new `prepared` must also see the new backend
            self.backend = self._make(prepared=False)
            self.prepared = False
        return False

    def refuse_large(self, pool: object) -> None:
        """Raise if a caller's pool is too large for a server whose clients share one session.

        Some drivers support only one connection to such a server.

        Args:
            pool: The caller's pool.

        Raises:
            ConfigurationError: The pool is too large.
        """
        size_of = getattr(self.backend, "pool_size", None)
        if self.shares_session and size_of is not None and (size := size_of(pool)) > 1:
            msg = (
                f"the pool may open {size} connections, but {ONE_CLIENT}, and this driver's clients run each other's"
                " statements there: give a DSN, a pool of at most 1 connection, or a connection of another driver"
            )
            raise ConfigurationError(msg)

    def leave(self) -> None:
        """Stop lending the present sessions and using them for LISTEN, because the server no longer takes writes."""
        for session in self.sessions():
            session.state_unknown = session.left = True

    def sessions(self) -> list[Session]:
        """Return the sessions in use."""
        there = [known() for known in self._sessions.copy()]
        return [session for session in there if session is not None]

    def count_broken_off(self, now: float) -> None:
        """Record that a connection was closed although its statement may still wait on the server."""
        self._broken_off.append(now)

    def pause(self) -> float:
        """Return the seconds to wait before another connection is opened.

        The pause grows with the number of recently closed connections.
        """
        if self._limit is None:
            return 0.0
        since = time.monotonic() - LATELY * self._limit
        number = sum(when > since for when in list(self._broken_off)) - FEW
        return 0.0 if number < 0 else min(0.1 * 2.0**number, LONGEST_PAUSE)

    def break_off_unheard(self, limit: float) -> None:
        """Close idle connections on which the server has sent no answer for ``limit`` seconds.

        If one connection is half-open, the others probably are, too: finding them one by one would take long.
        """
        since = time.monotonic() - limit
        for session in self.sessions():
            idles = session.listens or (session.pool is not None and session in session.pool.idle)
            if idles and session.busy_since is None and session.last_reply_at < since:
                session.break_off_idle()

    def for_listening(self, session: Session) -> Session:
        """Use a session for LISTEN: the watchdog checks this session even if other sessions have no limit."""
        session.listens = True
        watchdog.watch(self)
        return session

    def wrap(self, connection: object) -> Session:
        session = self.session(session_over(self.backend.wrap, connection))
        if not session.usable():
            raise ConnectionLost(CLOSED)
        return session
