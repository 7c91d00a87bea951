"""A backend, blocking or not, as the core calls it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import ref

from pqcore.backend import session_over
from pqcore.db.driver_errors import translate
from pqcore.db.isolation import Defaults
from pqcore.db.session import Session
from pqcore.db.watchdog import watchdog
from pqcore.errors import ConfigurationError, ConnectionLost, PQError
from pqcore.sql.dialect import Dialect

logger = logging.getLogger("pqcore")

LATELY = 6
"""For how many times the limit of a call a connection that was broken off counts."""
FEW = 10
"""Connections that may be broken off lately before the next one is opened later."""
LONGEST_PAUSE = 5.0
"""Seconds before another connection is opened, at most."""
CLOSED = "the connection is closed: give an open one, or a DSN or pool, which replace lost connections"
POOLED = (
    "a pooler is between here and the server: nothing is prepared, and waiters poll, as in transaction mode it lends"
    " the server's connections to others in between; give PQ prepared=True if its mode is session, else prepared=False"
)


class BackendAdapter:
    """A backend, blocking or not, as the core calls it.

    Args:
        make: Makes the backend, given ``prepared``.
        sql: The statements.
        suspends: Whether its methods return awaitables.
        prepared: Whether statements may be prepared; None to look.
        limit: Seconds that a call on a session may wait for the server's answer; None for no limit.

    Attributes:
        prepared: The same; false as soon as a pooler is found, if it was to be looked.
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
        self.backend = make(prepared=prepared is not False)
        self.errors = (*self.backend.errors, OSError)
        self.sql = sql
        self._suspends = suspends
        self._sessions: set[ref[Session]] = set()
        self._found: dict[str, object] = {}
        self._defaults = Defaults()
        self._broken_off: deque[float] = deque(maxlen=100)  # when connections were, of late

    async def call(self, method: str, *arguments: object) -> Any:
        """Call a method of the backend, awaiting it where it returns an awaitable."""
        if not self._suspends:
            return self.call_blocking(method, *arguments)
        try:
            return await getattr(self.backend, method)(*arguments)
        except PQError:  # which may be an OSError too
            raise
        except self.errors as exc:
            raise translate(exc, method, lost=method == "connect") from exc

    def call_blocking(self, method: str, *arguments: object) -> Any:
        """Call a method of a blocking backend. No line comes after it: an interrupt would lose what was opened."""
        try:
            return getattr(self.backend, method)(*arguments)
        except PQError:
            raise
        except self.errors as exc:
            raise translate(exc, method, lost=method == "connect") from exc

    async def open(self, method: str, *arguments: object) -> Session | None:
        """A session on a connection that a method of the backend opens, for us alone; None if it opens none."""
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
        """Whether the server's connection may be another from one transaction to the next: behind a pooler."""
        return self.prepared is False

    async def direct(self, session: Session) -> bool:
        """Whether no pooler is in between; if one is, nothing is prepared on sessions that are made from now on."""
        if await session.direct():
            return True
        if self.prepared is None:
            mine = object()
            if self._found.setdefault("pooler", mine) is mine:  # threads may find it together
                logger.warning(POOLED)
            self.backend = self._make(prepared=False)  # first: a thread that sees the other takes this one
            self.prepared = False
        return False

    def leave(self) -> None:
        """Have no session that there is now be lent again, nor listened on: their server takes no more writes."""
        for session in self.sessions():
            session.state_unknown = session.left = True

    def sessions(self) -> list[Session]:
        """The sessions that are in use somewhere."""
        there = [known() for known in self._sessions.copy()]
        return [session for session in there if session is not None]

    def count_broken_off(self, now: float) -> None:
        """Take note of a connection that was broken off, and may go on waiting on the server."""
        self._broken_off.append(now)

    def pause(self) -> float:
        """Seconds to wait before another connection is opened: more, the more were broken off lately."""
        if self._limit is None:
            return 0.0
        since = time.monotonic() - LATELY * self._limit
        number = sum(when > since for when in list(self._broken_off)) - FEW
        return 0.0 if number < 0 else min(0.1 * 2.0**number, LONGEST_PAUSE)

    def break_off_unheard(self, limit: float) -> None:
        """Break off what idles, and of which the server was not heard for ``limit`` seconds.

        Where one connection is half-open the others are likely to be so, too: they are not found out one by one.
        """
        since = time.monotonic() - limit
        for session in self.sessions():
            idles = session.listens or (session.pool is not None and session in session.pool.idle)
            if idles and session.busy_since is None and session.last_reply_at < since:
                session.break_off_idle()

    def for_listening(self, session: Session) -> Session:
        """Have a session serve to listen on: it is watched, whatever the limit of others."""
        session.listens = True
        watchdog.watch(self)
        return session

    def wrap(self, connection: object) -> Session:
        session = self.session(session_over(self.backend.wrap, connection))
        if not session.usable():
            raise ConnectionLost(CLOSED)
        return session
