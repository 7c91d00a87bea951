"""The pool of pqcore's own connections: it lends them, checks idle ones, and closes them."""

from __future__ import annotations

import logging
import math
from functools import partial
from time import monotonic

from pqcore.db.backend_adapter import BackendAdapter
from pqcore.db.dsn import has_several_at, seeks_primary, why_unread
from pqcore.db.pool_sessions import Place, Sessions, Waiter, close_idle_sessions, end_sessions, give_up, pop_idle
from pqcore.db.runtime import Runtime
from pqcore.db.session import Session
from pqcore.db.shared_session import ONE_CLIENT
from pqcore.db.sources import LEFT, Loan, SessionSource, discard
from pqcore.errors import (
    AccessDenied,
    Closed,
    ConfigurationError,
    ConnectionLost,
    DatabaseError,
    PoolTimeout,
    PQError,
)

logger = logging.getLogger("pqcore")

REPLAN = 10.0
"""Seconds after which prepared statements are planned again, because the table may have changed."""
FRESH = 0.001
"""Seconds for which a connection that was just used is lent again without a check."""
CHECK = "10s"
"""How often the server checks, during a statement, that a connection of the pool still exists."""
LOOK_AGAIN = 1.0
"""Seconds after which a waiter checks again whether a session may be opened, because an open session may be lost."""
FIRST_LOOK = 1.0
"""The largest number of seconds for which the pool keeps to one connection, until it knows whether all clients of the
server share one session."""
REOPEN = 2.0
"""Seconds for which a server that takes only one client may still count a connection that was just closed."""
CLOSED_PQ = "this PQ has been closed"
_NO_SETTING = ("42704", "22023")
"""The SQLSTATEs for an unknown setting, and for a value that a setting cannot have."""


class Pool(SessionSource):
    """A pool of connections that pqcore opens, kept for reuse.

    Connections are opened when first needed. An idle connection is checked before it is lent, so callers do not notice
    a restart of the server. Each process, and in it each event loop, has its own connections, which end with the
    process or loop.

    If callers wait, a connection that is given back goes to the first waiter. Otherwise a thread that gives back a
    connection, and wants one again immediately, would always come before the waiters.

    If all clients of the server share one session, the pool has one connection, whatever its size. So the pool opens no
    second connection before the first one has shown whether the server is of this kind.

    Args:
        opener: The adapter of the backend.
        dsn: The DSN to connect to.
        runtime: The runtime, which waits.
        size: The largest number of connections; one more is opened for LISTEN.
        timeout: Seconds to wait for a free connection.
        idle_limit: Seconds after which the server ends a connection that is idle in a transaction; None for the
            server's setting.

    Attributes:
        application_name: The ``application_name`` of new connections, unless the DSN or the environment sets one; None
            for none.

    Raises:
        ConfigurationError: The size or timeout is invalid.
    """

    may_have_open_transaction = False

    def __init__(
        self,
        opener: BackendAdapter,
        dsn: str,
        runtime: Runtime,
        size: int,
        timeout: float,
        idle_limit: float | None = None,
    ) -> None:
        if not isinstance(size, int) or size < 1:
            msg = f"max_connections is {size!r}; give a number of at least 1"
            raise ConfigurationError(msg)
        if not isinstance(timeout, (int, float)) or not timeout >= 0:
            msg = f"pool_timeout is {timeout!r}; give a number of seconds"
            raise ConfigurationError(msg)
        self._opener = opener
        self._dsn = dsn
        self._runtime = runtime
        self._size = size
        self._timeout = timeout
        self._idle_limit = idle_limit
        self.application_name: str | None = None
        self.seeks_primary = seeks_primary(dsn)
        self._closed = False
        # The time until which the first connection is the only one.
        self._alone_until = 0.0 if opener.prepared else math.inf
        self.kept = runtime.kept(Sessions)

    def lend(self, loan: Loan, now: float) -> bool:
        if self._closed:
            return False
        try:
            loan.append(self.kept.get().idle.pop())
        except IndexError:
            return False
        session = loan[-1]
        return now - session.last_reply_at < FRESH and now - session.planned_at < REPLAN

    async def acquire(self, loan: Loan) -> None:
        if self._closed:
            raise Closed(CLOSED_PQ)
        if not loan and self.lend(loan, monotonic()):
            return
        sessions = self.kept.get()
        if sessions.end is None:
            sessions.end = await self._runtime.at_end(partial(end_sessions, sessions)) or True
        if not loan or not await self._sound(loan):
            await self._wait_or_open(sessions, loan)

    def _most(self) -> int:
        """Return how many connections may be open at this moment."""
        alone = self._opener.shares_session or monotonic() < self._alone_until
        return 1 if alone else self._size

    async def _wait_or_open(self, sessions: Sessions, loan: Loan) -> None:
        deadline = monotonic() + self._timeout
        while True:
            waiter = Waiter(self._runtime.event())
            try:
                sessions.waiting.append(waiter)  # from here on, a session that comes back is handed to the waiter
                opened = await self._wait(sessions, waiter, loan, deadline)
            except BaseException:
                sessions.withdraw(waiter)
                raise
            if opened or await self._sound(loan):
                return

    async def _wait(self, sessions: Sessions, waiter: Waiter, loan: Loan, deadline: float) -> bool:
        """Wait until a session is given back, or until one may be opened; return whether this call opened one."""
        while True:
            waiter.event = self._runtime.event()
            sessions.hand_over()
            if waiter.held:
                loan.append(waiter.held.pop())
                return False
            place = None
            try:
                place = sessions.reserve(self._most())
                if place is not None:
                    sessions.withdraw(waiter)
                    loan.append(await self._connect(sessions, place))
            except BaseException:
                if place is not None:  # a traceback may keep the token
                    sessions.free(place)
                raise
            if place is not None:
                return True
            if (left := max(deadline, self._alone_until) - monotonic()) <= 0:
                raise PoolTimeout(self._why_none())
            await waiter.event.wait(min(left, LOOK_AGAIN))

    def _why_none(self) -> str:
        if self._opener.shares_session:
            return (
                f"the only connection has been in use for {self._timeout} seconds, and {ONE_CLIENT}: "
                "look for transactions that are held open"
            )
        return (
            f"all {self._size} connections have been in use for {self._timeout} seconds: "
            "raise max_connections, or look for transactions that are held open"
        )

    async def _sound(self, loan: Loan) -> bool:
        """Return whether the idle session of a loan can be lent; close a session that cannot be lent."""
        session = loan.session
        if not session.state_unknown and await session.alive() and await self._replanned(session):
            return True
        await give_up(loan)
        return False

    async def _replanned(self, session: Session) -> bool:
        if monotonic() - session.planned_at > REPLAN:
            session.planned_at = monotonic()
            try:
                await self._renew_plans(session)
            except ConnectionLost:
                return False
            # If the server stops taking writes, it does not tell a session that writes nothing, so pqcore asks.
            return not self.seeks_primary or await session.writes()
        return True

    async def _renew_plans(self, session: Session) -> None:
        """Make the server plan prepared statements again; if none is prepared, check that the server answers."""
        if self._opener.alternates:
            await session.execute(session.sql.ping)
            return
        try:
            await session.execute(session.sql.replan)
        except AccessDenied:
            await session.execute(session.sql.discard_plans)

    def take_back(self, loan: Loan) -> bool:
        sessions: Sessions = loan[-1].pool
        if self._closed or sessions.over or loan[-1].state_unknown:
            return False
        sessions.idle.append(loan.pop())
        if sessions.waiting:
            sessions.hand_over()
        return True

    async def release(self, loan: Loan, *, sound: bool = False) -> None:
        if not loan or ((sound or (loan[-1].usable() and not loan[-1].in_transaction())) and self.take_back(loan)):
            return
        left = loan[-1].read_only and not await loan[-1].writes()
        await give_up(loan)
        if left:
            await self._leave_server()

    def lose(self, loan: Loan) -> bool:
        for session in loan:
            session.pool.free(session.place)
            session.drop()
        loan.clear()
        return True

    async def listener(self) -> Session | None:
        if self._closed:
            raise Closed(CLOSED_PQ)
        return self._opener.for_listening(await self._connect(listens=True))

    async def _leave_server(self) -> None:
        """Stop using the present connections: a new connection may lead to the server that takes writes."""
        logger.warning(LEFT)
        self._opener.leave()
        await self.close_idle()

    async def close(self) -> None:
        self._closed = True
        for sessions in self.kept.others():
            while (session := pop_idle(sessions.idle)) is not None:
                sessions.free(session.place)
                session.drop()
        await self.close_idle()

    async def close_idle(self) -> None:
        """Close the idle connections of this process or event loop."""
        await close_idle_sessions(self.kept.get())

    async def _connect(
        self, sessions: Sessions | None = None, place: Place | None = None, *, listens: bool = False
    ) -> Session:
        unknown = self._opener.prepared is None
        look = unknown or self._alone_until == math.inf
        if self._alone_until == math.inf:
            self._alone_until = monotonic() + FIRST_LOOK
        if pause := self._opener.pause():
            await self._runtime.sleep(pause)
        session: Session | None = None
        try:
            session = await self._reach()
            session.pool, session.place = sessions, place
            await session.enter()
            if look and not await self._opener.direct(session) and unknown:
                await discard(session)
                session = await self._reach_again()
                session.pool, session.place = sessions, place
                await session.enter()
            session.lasting = not self._opener.alternates
            if session.lasting:
                await self._set_up(session, listens=listens)
            return session  # noqa: TRY300 - an interrupt may come to this line, too
        except BaseException:  # even after a cancellation: no other code could close the session
            if session is not None:
                await discard(session)
            raise
        finally:
            if self._alone_until:
                self._alone_until = 0.0
                self.kept.get().stir()

    async def _set_up(self, session: Session, *, listens: bool) -> None:
        """Set what pqcore's own sessions need, in one statement; skip a setting that the server refuses."""
        # JIT compilation takes longer than pqcore's statements run, and the planner greatly overestimates their cost.
        settings = {"jit": ("off", False)}
        if self.application_name is not None:
            settings["application_name"] = (self.application_name, True)
        if self._idle_limit is not None:
            settings["idle_in_transaction_session_timeout"] = (f"{max(int(self._idle_limit * 1000), 1)}ms", False)
        if listens:
            settings["idle_session_timeout"] = ("0", False)
        check = {"client_connection_check_interval": (CHECK, True)}  # needs a poll(2) that reports closed sockets
        for wanted in ({**settings, **check}, settings):
            values = {
                "names": list(wanted),
                "values": [value for value, _ in wanted.values()],
                "mild": [mild for _, mild in wanted.values()],
            }
            query = session.sql.session_settings
            try:
                await session.execute(query, query.bind(values))
            except ConnectionLost:
                raise
            except DatabaseError as exc:
                logger.debug("the server refuses settings of a session: %s", exc)
            else:
                return

    async def _reach_again(self) -> Session:
        """Open a connection in place of a connection that was just closed."""
        deadline = monotonic() + REOPEN
        while True:
            try:
                return await self._reach()
            except ConnectionLost:
                if not self._opener.shares_session or monotonic() > deadline:
                    raise
            await self._runtime.sleep(0.05)

    async def _reach(self) -> Session:
        try:
            return await self._opener.open("connect", self._dsn)  # type: ignore[return-value]
        except (ValueError, TypeError) as exc:  # from a driver that parses the DSN itself
            raise ConfigurationError(why_unread(exc, self._dsn)) from None
        except PQError as exc:
            cause, sqlstate = exc.__cause__, getattr(exc, "sqlstate", None)
            unread = type(cause).__name__ == "ProgrammingError" and sqlstate is None
            if not (unread or isinstance(cause, ValueError) or sqlstate in _NO_SETTING or has_several_at(self._dsn)):
                raise
            # The text is not a DSN. Drivers quote a text that they cannot parse, which may hold a password, so the
            # driver's exception is not chained.
            raise ConfigurationError(why_unread(cause, self._dsn)) from None
