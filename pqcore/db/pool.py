"""The pool of connections that we open: lends them, looks at those that idled, and closes them."""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import ref

from pqcore.db.backend_adapter import BackendAdapter
from pqcore.db.dsn import has_several_at, seeks_primary, why_unread
from pqcore.db.runtime import Event, Runtime
from pqcore.db.session import Session
from pqcore.db.sources import LEFT, Loan, SessionSource, discard
from pqcore.errors import Closed, ConfigurationError, ConnectionLost, DatabaseError, PoolTimeout, PQError

logger = logging.getLogger("pqcore")

REPLAN = 10.0
"""Seconds after which prepared statements are planned again, for the table as it is by then."""
FRESH = 0.001
"""Seconds for which a connection that was just used is lent again without a look whether it still stands."""
CLOSING = 1.0
"""Seconds after which connections that are still to be closed are broken off."""
CHECK = "10s"
"""How often the server looks, while a statement runs, whether a connection of ours is still there."""
LOOK_AGAIN = 1.0
"""Seconds after which a waiter looks again whether there is room for another session: one may have been lost."""
CLOSED_PQ = "this PQ has been closed"
_NO_SETTING = ("42704", "22023")
"""The server knows no such setting, or no such value of it."""


class _Waiter:
    """A waiter for a session.

    Attributes:
        event: Set when the waiter should look again.
        held: The session that was handed over.
        over: Whether it waits no more.
    """

    __slots__ = ("event", "held", "over")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.held: list[Session] = []
        self.over = False


class _Place:
    """Stands for a session that is open, or being opened; no longer counted once nothing refers to it."""

    __slots__ = ("__weakref__",)


class _Sessions:
    """The sessions of one process, or of one of its event loops.

    It has no lock, which an interrupt could leave locked: each step is one method of a list, set or deque, of which
    no two threads do the same at the same moment.

    Attributes:
        idle: Those that nobody uses.
        waiting: Who waits for one, in turn.
        places: One for each that is open, those in use and being opened included.
        over: Whether sessions that come back are closed.
        end: What closes those that idle when the event loop ends.
    """

    def __init__(self) -> None:
        self.idle: list[Session] = []
        self.waiting: deque[_Waiter] = deque()
        self.places: set[ref[_Place]] = set()
        self.over = False
        self.end: object = None

    def reserve(self, size: int) -> _Place | None:
        """A place for another, if there are fewer than ``size``."""
        while len(self.places) < size:
            place = _Place()
            self.places.add(ref(place, self.places.discard))
            if len(self.places) <= size:
                return place
            self.places.discard(ref(place))  # another thread was there first, or looks again too
        return None

    def free(self, place: Any) -> None:
        """Count a session no longer: another may be opened."""
        self.places.discard(ref(place))
        with suppress(IndexError):
            self.waiting[0].event.set()

    def hand_over(self) -> None:
        """Hand what is free to those who wait, in turn."""
        while self.idle and self.waiting:
            try:
                waiter = self.waiting.popleft()
            except IndexError:
                return
            try:
                waiter.held.append(self.idle.pop())
            except IndexError:
                self.waiting.appendleft(waiter)
                continue
            waiter.event.set()
            if waiter.over:
                self.withdraw(waiter)

    def withdraw(self, waiter: _Waiter) -> None:
        """Wait no more, and pass on what was handed over meanwhile."""
        waiter.over = True
        with suppress(ValueError):
            self.waiting.remove(waiter)
        with suppress(IndexError):
            self.idle.append(waiter.held.pop())
            self.hand_over()


class Pool(SessionSource):
    """Connections that we open, kept for reuse.

    Opened when first needed.  One that idled is looked at before it is lent:
    a restart of the server goes unnoticed.  Each process has its own, and there each event loop,
    with which they are closed.

    One that comes back while others wait is handed to the first of them, as the thread that gave it
    back may want it again immediately, and would always be first.

    Args:
        opener: The backend.
        dsn: Where to connect.
        runtime: How to wait.
        size: Connections, at most; one more is opened for listening.
        timeout: Seconds to wait for a free one.
        idle_limit: Seconds after which the server ends one that idles in a transaction; None for as it is set to.

    Attributes:
        application_name: What the server calls the connections that are opened from now on, unless the DSN or the
            environment names them; None for nothing.

    Raises:
        ConfigurationError: There can be no such size or timeout.
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
        self.kept = runtime.kept(_Sessions)

    def lend(self, loan: Loan) -> bool:
        if self._closed:
            return False
        try:
            loan.append(self.kept.get().idle.pop())
        except IndexError:
            return False
        now, session = time.monotonic(), loan[-1]
        return now - session.last_reply_at < FRESH and now - session.planned_at < REPLAN

    async def acquire(self, loan: Loan) -> None:
        if self._closed:
            raise Closed(CLOSED_PQ)
        if not loan and self.lend(loan):
            return
        sessions = self.kept.get()
        if sessions.end is None:
            sessions.end = await self._runtime.at_end(partial(_end, sessions)) or True
        if not loan or not await self._sound(loan):
            await self._wait_or_open(sessions, loan)

    async def _wait_or_open(self, sessions: _Sessions, loan: Loan) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            waiter = _Waiter(self._runtime.event())
            try:
                sessions.waiting.append(waiter)  # before the look: what is given back after it is handed over
                opened = await self._wait(sessions, waiter, loan, deadline)
            except BaseException:
                sessions.withdraw(waiter)
                raise
            if opened or await self._sound(loan):
                return

    async def _wait(self, sessions: _Sessions, waiter: _Waiter, loan: Loan, deadline: float) -> bool:
        """Wait for a session that comes back, or for room to open one; whether it was opened."""
        while True:
            waiter.event = self._runtime.event()
            sessions.hand_over()
            if waiter.held:
                loan.append(waiter.held.pop())
                return False
            place = sessions.reserve(self._size)
            if place is not None:
                try:
                    sessions.withdraw(waiter)
                    loan.append(await self._connect(sessions, place))
                except BaseException:
                    sessions.free(place)
                    raise
                return True
            if (left := deadline - time.monotonic()) <= 0:
                msg = (
                    f"all {self._size} connections have been in use for {self._timeout} seconds: "
                    "raise max_connections, or look for transactions that are held open"
                )
                raise PoolTimeout(msg)
            await waiter.event.wait(min(left, LOOK_AGAIN))

    async def _sound(self, loan: Loan) -> bool:
        """Whether a session that idled can be lent; one that cannot is closed."""
        session = loan.session
        if not session.state_unknown and await session.alive() and await self._replanned(session):
            return True
        await _give_up(loan)
        return False

    async def _replanned(self, session: Session) -> bool:
        if time.monotonic() - session.planned_at > REPLAN:
            session.planned_at = time.monotonic()
            try:
                await session.execute(session.sql.replan)
            except ConnectionLost:
                return False
            # A session on which nothing is written is not told that its server takes no more writes.
            return not self.seeks_primary or await session.writes()
        return True

    def take_back(self, loan: Loan) -> bool:
        sessions: _Sessions = loan[-1].pool
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
        await _give_up(loan)
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
        """Use no connection any more that there is now: a new one may lead to the server that takes writes."""
        logger.warning(LEFT)
        self._opener.leave()
        await self.close_idle()

    async def close(self) -> None:
        self._closed = True
        for sessions in self.kept.others():
            while (session := _pop(sessions.idle)) is not None:
                sessions.free(session.place)
                session.drop()
        await self.close_idle()

    async def close_idle(self) -> None:
        """Close the connections of here that are free."""
        await _rest(self.kept.get())

    async def _connect(
        self, sessions: _Sessions | None = None, place: _Place | None = None, *, listens: bool = False
    ) -> Session:
        look = self._opener.prepared is None
        if pause := self._opener.pause():
            await self._runtime.sleep(pause)
        session: Session | None = None
        try:
            session = await self._reach()
            session.pool, session.place = sessions, place
            await session.enter()
            if look and not await self._opener.direct(session):
                await discard(session)
                session = await self._reach()
                session.pool, session.place = sessions, place
                await session.enter()
            session.lasting = not self._opener.alternates
            if session.lasting:
                await self._set_up(session, listens=listens)
            return session  # noqa: TRY300 - an interrupt may come to this line, too
        except BaseException:  # a cancellation, too: nobody else knows of it
            if session is not None:
                await discard(session)
            raise

    async def _set_up(self, session: Session, *, listens: bool) -> None:
        """Set what our own sessions need, in one statement; a server that refuses a setting goes without."""
        # Compiling takes longer than our statements run, and the planner's guess of their cost is a multiple of it.
        settings = {"jit": ("off", False)}
        if self.application_name is not None:
            settings["application_name"] = (self.application_name, True)
        if self._idle_limit is not None:
            settings["idle_in_transaction_session_timeout"] = (f"{max(int(self._idle_limit * 1000), 1)}ms", False)
        if listens:
            settings["idle_session_timeout"] = ("0", False)
        check = {"client_connection_check_interval": (CHECK, True)}  # not on every system: only where poll tells
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

    async def _reach(self) -> Session:
        try:
            return await self._opener.open("connect", self._dsn)  # type: ignore[return-value]
        except (ValueError, TypeError) as exc:  # a driver that reads the DSN itself
            raise ConfigurationError(why_unread(exc, self._dsn)) from None
        except PQError as exc:
            cause, sqlstate = exc.__cause__, getattr(exc, "sqlstate", None)
            unread = type(cause).__name__ == "ProgrammingError" and sqlstate is None
            if not (unread or isinstance(cause, ValueError) or sqlstate in _NO_SETTING or has_several_at(self._dsn)):
                raise
            # It was not a DSN. Drivers quote what they cannot read, so what this one said is not chained.
            raise ConfigurationError(why_unread(cause, self._dsn)) from None


def _pop(sessions: list[Session]) -> Session | None:
    try:
        return sessions.pop()
    except IndexError:
        return None


async def _end(sessions: _Sessions) -> None:
    """Close what idles, and what comes back later: the event loop ends."""
    sessions.over = True
    await _rest(sessions)


async def _rest(sessions: _Sessions) -> None:
    """Close the connections that are free; if one takes long to close, the others are broken off."""
    loan = Loan()
    began = time.monotonic()
    while sessions.idle:
        with suppress(IndexError):
            loan.append(sessions.idle.pop())
            if time.monotonic() - began > CLOSING:
                loan.abort()
            await _give_up(loan)


async def _give_up(loan: Loan) -> None:
    """Close the session of a loan: another may be opened."""
    session = loan.session
    session.pool.free(session.place)
    await discard(session)
    loan.clear()
