"""Where sessions come from: a DSN, a connection of the caller's, or a pool of the caller's."""

from __future__ import annotations

import logging
import os
import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote
from weakref import ref

from pqcore.backend import bare, session_over
from pqcore.db.runtime import Event, Runtime
from pqcore.db.session import Defaults, Session, translate
from pqcore.db.watchdog import watchdog
from pqcore.errors import Closed, ConfigurationError, ConnectionLost, DatabaseError, PoolTimeout, PQError
from pqcore.sql.dialect import Dialect

logger = logging.getLogger("pqcore")

T = TypeVar("T")

REPLAN = 10.0
"""Seconds after which prepared statements are planned anew, for the table as it is by then."""
FRESH = 0.001
"""Seconds for which a connection that was just used is lent again without a look whether it still stands."""
CLOSING = 1.0
"""Seconds after which connections that are still to be closed are broken off."""
CHECK = "10s"
"""How often the server looks, while a statement runs, whether a connection of ours is still there."""
LATELY = 6
"""For how many times the limit of a call a connection that was broken off counts."""
FEW = 10
"""Connections that may be broken off lately before the next one is opened later."""
LONGEST_PAUSE = 5.0
"""Seconds before another connection is opened, at most."""
CLOSED_PQ = "this PQ has been closed"
CLOSED = "the connection is closed: give an open one, or a DSN or pool, which replace lost connections"


LEFT = "the server takes no more writes: its connections are replaced"
_SEEKS_PRIMARY = re.compile(r"\btarget_session_attrs\s*=\s*'?(read-write|primary)\b")
POOLED = (
    "a pooler is between here and the server: nothing is prepared, and waiters poll, as in transaction mode it lends"
    " the server's connections to others in between; give PQ prepared=True if its mode is session, else prepared=False"
)


class BackendAdapter:
    """A backend, blocking or not, as the core calls it.

    Args:
        make: Makes the backend, given ``prepared``.
        sql: The statements.
        suspends: Whether its methods are to be awaited.
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
        """Call a method of the backend, awaiting it where it is to be awaited."""
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


class Loan:
    """The use of one session by one operation, or by one ``with`` block.

    An interrupt (Ctrl-C, a time limit) may come between any two steps of a thread. So a session moves in one step,
    with ``append(pop())``, and what gives it back holds it in no variable of its own, which a traceback would keep.
    A session that is interrupted on its way belongs to nobody then: it is closed, and no longer counted.

    Attributes:
        held: The session, if there is one.
        idle: Whether it is known to have been in no transaction when it was lent.
    """

    __slots__ = ("held", "idle")

    def __init__(self) -> None:
        self.held: list[Session] = []
        self.idle = False

    @property
    def session(self) -> Session:
        return self.held[-1]

    def abort(self) -> None:
        """Break the connection off, if there is one: what is under way on it fails."""
        for session in list(self.held):
            session.abort()


class SessionSource(Protocol):
    """Lends sessions.

    Attributes:
        joins: Whether a session may come with a transaction of the caller's open.
        seeks_primary: Whether a new connection leads to a server that takes writes, where there are several.
    """

    may_have_open_transaction: bool
    seeks_primary: bool

    def lend(self, loan: Loan) -> bool:
        """Give the loan a session if that takes no wait; whether it can be used. If not, `acquire` is called."""
        return False

    def take_back(self, loan: Loan) -> bool:
        """Take a session back, known to be usable and in no transaction, if that takes no wait; whether it did."""
        return False

    async def acquire(self, loan: Loan) -> None:
        """Give the loan a session. If that fails, `release` is called all the same."""

    async def release(self, loan: Loan, *, sound: bool = False) -> None:
        """Take the session of a loan back, if it has one; may be called again after an interrupt.

        Args:
            loan: The loan.
            sound: Whether the session is known to be usable, and in no transaction of ours.
        """

    def lose(self, loan: Loan) -> bool:
        """Close the session of a loan without waiting for the server; whether that can be done."""

    async def listener(self) -> Session | None:
        """A session that nobody else uses, to listen on; None if there is none to be had."""

    async def close(self) -> None: ...


async def lent(
    source: SessionSource,
    work: Callable[[Session], Awaitable[T]],
    acquire: Callable[[Loan], Awaitable[None]] | None = None,
) -> T:
    """Do some work with a session, which is given back whatever happens.

    Args:
        source: Lends the session.
        work: Gives what is awaited.
        acquire: Gives the loan a session; None for the source's own way.
    """
    loan = Loan()
    try:
        await (acquire or source.acquire)(loan)
        result = await work(loan.session)
        await source.release(loan)
    except BaseException:
        await source.release(loan)
        raise
    return result


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
                turn = self.waiting.popleft()
            except IndexError:
                return
            try:
                turn.held.append(self.idle.pop())
            except IndexError:
                self.waiting.appendleft(turn)
                continue
            turn.event.set()
            if turn.over:
                self.withdraw(turn)

    def withdraw(self, turn: _Waiter) -> None:
        """Wait no more, and pass on what was handed over meanwhile."""
        turn.over = True
        with suppress(ValueError):
            self.waiting.remove(turn)
        with suppress(IndexError):
            self.idle.append(turn.held.pop())
            self.hand_over()


LOOK_AGAIN = 1.0
"""Seconds after which a waiter looks again whether there is room for another session: one may have been lost."""


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
        self._opener = opener
        self._dsn = dsn
        self._runtime = runtime
        self._size = size
        self._timeout = timeout
        self._idle_limit = idle_limit
        self.seeks_primary = _seeks_primary(dsn)
        self._closed = False
        self.kept = runtime.kept(_Sessions)

    def lend(self, loan: Loan) -> bool:
        held = loan.held
        if self._closed:
            return False
        try:
            held.append(self.kept.get().idle.pop())
        except IndexError:
            return False
        now, session = time.monotonic(), held[-1]
        return now - session.last_reply_at < FRESH and now - session.planned_at < REPLAN

    async def acquire(self, loan: Loan) -> None:
        if self._closed:
            raise Closed(CLOSED_PQ)
        if not loan.held and self.lend(loan):
            return
        sessions = self.kept.get()
        if sessions.end is None:
            sessions.end = await self._runtime.at_end(partial(_end, sessions)) or True
        if not loan.held or not await self._sound(loan):
            await self._wait_or_open(sessions, loan)

    async def _wait_or_open(self, sessions: _Sessions, loan: Loan) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            turn = _Waiter(self._runtime.event())
            try:
                sessions.waiting.append(turn)  # before the look: what is given back after it is handed over
                opened = await self._turn(sessions, turn, loan, deadline)
            except BaseException:
                sessions.withdraw(turn)
                raise
            if opened or await self._sound(loan):
                return

    async def _turn(self, sessions: _Sessions, turn: _Waiter, loan: Loan, deadline: float) -> bool:
        """Wait for a session that comes back, or for room to open one; whether it was opened."""
        while True:
            turn.event = self._runtime.event()
            sessions.hand_over()
            if turn.held:
                loan.held.append(turn.held.pop())
                return False
            place = sessions.reserve(self._size)
            if place is not None:
                try:
                    sessions.withdraw(turn)
                    loan.held.append(await self._connect(sessions, place))
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
            await turn.event.wait(min(left, LOOK_AGAIN))

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
        held = loan.held
        sessions: _Sessions = held[-1].pool
        if self._closed or sessions.over or held[-1].state_unknown:
            return False
        sessions.idle.append(held.pop())
        if sessions.waiting:
            sessions.hand_over()
        return True

    async def release(self, loan: Loan, *, sound: bool = False) -> None:
        held = loan.held
        if not held or ((sound or (held[-1].usable() and not held[-1].in_transaction())) and self.take_back(loan)):
            return
        left = held[-1].read_only and not await held[-1].writes()
        await _give_up(loan)
        if left:
            await self._leave_server()

    def lose(self, loan: Loan) -> bool:
        for session in loan.held:
            session.pool.free(session.place)
            session.drop()
        loan.held.clear()
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
                await _discard(session)
                session = await self._reach()
                session.pool, session.place = sessions, place
                await session.enter()
            session.lasting = not self._opener.alternates
            if session.lasting:
                await self._set_up(session, listens=listens)
            return session  # noqa: TRY300 - an interrupt may come to this line, too
        except BaseException:  # a cancellation, too: nobody else knows of it
            if session is not None:
                await _discard(session)
            raise

    async def _set_up(self, session: Session, *, listens: bool) -> None:
        """Set what our own sessions need, in one statement; a server that refuses a setting goes without."""
        settings = {}
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
                if wanted:
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
            raise ConfigurationError(_unread(exc, self._dsn)) from None
        except PQError as exc:
            cause, sqlstate = exc.__cause__, getattr(exc, "sqlstate", None)
            unread = type(cause).__name__ == "ProgrammingError" and sqlstate is None
            if not (unread or isinstance(cause, ValueError) or sqlstate in _NO_SETTING or _split(self._dsn)):
                raise
            # It was not a DSN. Drivers quote what they cannot read, so what this one said is not chained.
            raise ConfigurationError(_unread(cause, self._dsn)) from None


_NO_SETTING = ("42704", "22023")
"""The server knows no such setting, or no such value of it."""


def _split(dsn: str) -> bool:
    """Whether a URL has more than one @ before its path: a driver may take part of the password for the host."""
    return re.split("[/?]", dsn.partition("://")[2], maxsplit=1)[0].count("@") > 1


def _unread(exc: object, dsn: str) -> str:
    if _split(dsn):
        return "not a DSN: there are several @ before the host's name: in a user's name or password, write %40"
    said = redact(str(exc).strip(), dsn)
    if any(word in said for word in _secret_words(dsn)):
        return (
            "not a DSN, and what the driver says of it quotes what may be a password; give a URL,"
            " postgresql://user@host/database, with what is special written as in %40, or words, host=... dbname=...,"
            " with quotes around blanks"
        )
    return f"not a DSN: {said}"


def _secret_words(dsn: str) -> set[str]:
    """All words of a DSN that nobody can read which may be part of a password."""
    _, _, named = dsn.partition("password")
    user, at, _ = dsn.partition("://")[2].rpartition("@")
    return set(re.findall(r"\w{2,}", f"{named} {user.partition(':')[2] if at else ''}"))


def redact(text: str, dsn: str) -> str:
    """Remove a DSN, and the password in it, from a text."""
    secrets = [dsn]
    for pattern in (r"://[^/@:]*:(.+)@", r"password\s*=\s*'?([^'\s&]+)"):
        for secret in re.findall(pattern, dsn):
            secrets += [secret, unquote(secret)]
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def _seeks_primary(dsn: str) -> bool:
    said = _SEEKS_PRIMARY.search(unquote(dsn))
    return said is not None or os.environ.get("PGTARGETSESSIONATTRS") in ("read-write", "primary")


class AdoptedPool(SessionSource):
    """A pool of the caller's.

    Some raise an error when all of their connections are in use; then we ask
    again, for ``timeout`` seconds.
    """

    may_have_open_transaction = True
    seeks_primary = False  # nobody knows

    def __init__(self, opener: BackendAdapter, pool: object, runtime: Runtime, timeout: float) -> None:
        self._opener = opener
        self._pool = pool
        self._runtime = runtime
        self._timeout = timeout
        self._looked = opener.prepared is not None

    async def acquire(self, loan: Loan) -> None:
        if not await self._borrow(loan):
            await self.release(loan)
            await self._borrow(loan)

    async def _borrow(self, loan: Loan) -> bool:
        """Take a connection of the pool; whether it can be used as it is."""
        deadline = time.monotonic() + self._timeout
        driver: Any = None
        while True:
            try:
                driver = await self._opener.call("acquire", self._pool)
                loan.held.append(self._opener.session(driver))
                break
            except PoolTimeout:
                if time.monotonic() >= deadline:
                    raise
                await self._runtime.sleep(0.01)
            except BaseException:
                if driver is not None and not loan.held:
                    await self._opener.call("release", self._pool, driver)
                raise
        session = loan.session
        await session.enter()
        if self._looked or session.in_transaction():
            return True
        fits = await self._opener.direct(session)
        self._looked = True
        return fits

    async def release(self, loan: Loan, *, sound: bool = False) -> None:
        if not loan.held:
            return
        try:
            if loan.session.read_only and not await loan.session.writes():
                logger.warning(LEFT)
                self._opener.leave()
                await _discard(loan.session)  # for which the pool opens another
            await loan.session.leave()
        except BaseException:
            await self._give_back(loan)
            raise
        await self._give_back(loan)

    async def _give_back(self, loan: Loan) -> None:
        driver = loan.session.driver
        if self._runtime.suspends:
            loan.held.clear()
            await self._opener.call("release", self._pool, driver)
            return
        try:
            loan.held.clear()  # before: the pool may lend it to another thread at any moment
            self._opener.call_blocking("release", self._pool, driver)
        except BaseException as exc:
            loan.held.clear()
            if not isinstance(exc, PQError) and not _reached(exc, self._pool):
                self._opener.call_blocking("release", self._pool, driver)
            raise

    def lose(self, loan: Loan) -> bool:
        return False

    async def listener(self) -> Session | None:
        session = await self._opener.open("connect_like", self._pool)
        return None if session is None else self._opener.for_listening(session)

    async def close(self) -> None:
        await self._opener.call("close_pool", self._pool)


class AdoptedConnection(SessionSource):
    """One connection of the caller's, for one at a time; others wait for it for ``timeout`` seconds.

    A thread that uses it may use it again meanwhile, as a generator within put_many does.
    """

    may_have_open_transaction = True
    seeks_primary = False

    def __init__(self, opener: BackendAdapter, connection: object, runtime: Runtime, timeout: float) -> None:
        self._timeout = timeout
        self._opener = opener
        self._connection = connection
        self.session = opener.wrap(connection)
        self.on_release: Callable[[Session], Awaitable[None]] | None = None
        self._gate = runtime.lock()
        self._loans: list[Loan] = []
        self._looked = opener.prepared is not None

    async def acquire(self, loan: Loan) -> None:
        await self.acquire_within(self._timeout, loan)

    async def acquire_within(self, seconds: float, loan: Loan) -> None:
        """Give the loan the connection.

        Args:
            seconds: How long to wait until others have given it back.
            loan: The loan.

        Raises:
            PoolTimeout: They have not.
        """
        again = self._gate.mine()
        if not again and not await self._gate.enter_within(seconds):
            msg = (
                f"the connection has been in use by another thread or task for {seconds} seconds: "
                "give PQ a DSN or a pool, or look for transactions that are held open"
            )
            raise PoolTimeout(msg)
        self._loans.append(loan)
        if not self.session.usable():
            raise ConnectionLost(CLOSED)
        if not again:
            await self.session.enter()
            if not self._looked and not self.session.in_transaction():
                await self._look()
        loan.held.append(self.session)

    async def _look(self) -> None:
        fits = await self._opener.direct(self.session)
        self._looked = True
        if not fits:
            await self.session.leave()
            self.session = self._opener.wrap(self._connection)
            await self.session.enter()

    async def release(self, loan: Loan, *, sound: bool = False) -> None:
        mine = loan in self._loans
        if mine and len(self._loans) > 1:
            self._loans.remove(loan)
            loan.held.clear()
        elif mine or (self._gate.mine() and not self._loans):
            await self._leave(loan)

    async def _leave(self, loan: Loan) -> None:
        session = self.session
        try:
            if self.on_release is not None and session.usable():
                await self.on_release(session)
            await session.leave()
        finally:
            loan.held.clear()
            self._loans.clear()
            self._gate.leave()

    def lose(self, loan: Loan) -> bool:
        return False

    async def listener(self) -> Session | None:
        return None

    async def close(self) -> None:
        await self._opener.call("close_connection", self._connection)


class ConnectionProvider(ABC):
    """Who keeps connections, and says which is to be used here and now: a framework that has one a thread.

    Given to `PQ` instead of a DSN. What is done on a connection is part of the transaction that it
    is in; the framework begins transactions, ends them, and opens and closes connections.

    Attributes:
        backend: The name of the backend of its driver.
    """

    backend: str

    @abstractmethod
    def dsn(self) -> str:
        """Where a worker opens connections of its own."""

    @abstractmethod
    def lend(self, wrap: Callable[[object], Session]) -> Session:
        """The session of the connection of the running thread.

        ``callers`` is set on it if its driver begins a transaction with the first statement.

        Args:
            wrap: Makes the session of a driver's connection; once a connection is enough.

        Raises:
            PQError: It cannot be opened.
        """

    @abstractmethod
    def failed(self, session: Session) -> None:
        """Hear that something failed on a connection that was lent, which may be lost."""


class ProvidedConnections(SessionSource):
    """Connections that a framework keeps."""

    may_have_open_transaction = True
    seeks_primary = False

    def __init__(self, opener: BackendAdapter, lender: ConnectionProvider) -> None:
        self._opener = opener
        self._lender = lender

    async def acquire(self, loan: Loan) -> None:
        session = self._lender.lend(self._opener.wrap)
        loan.held.append(session)
        if session.caller_owned and not session.in_transaction():
            await session.execute(session.sql.ping)  # so that what follows is found to be in the framework's

    async def release(self, loan: Loan, *, sound: bool = False) -> None:
        if loan.held and not sound:
            self._lender.failed(loan.session)
        loan.held.clear()

    def lose(self, loan: Loan) -> bool:
        return False

    async def listener(self) -> Session | None:
        return None

    async def close(self) -> None:
        """Close nothing: they are the framework's."""


def _pop(sessions: list[Session]) -> Session | None:
    try:
        return sessions.pop()
    except IndexError:
        return None


def _reached(exc: BaseException, pool: object) -> bool:
    """Whether an interrupt came to a pool's own code, and not on the way there."""
    package, at = type(bare(pool)).__module__.partition(".")[0], exc.__traceback__
    while at is not None:
        if str(at.tb_frame.f_globals.get("__name__")).partition(".")[0] == package:
            return True
        at = at.tb_next
    return False


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
            loan.held.append(sessions.idle.pop())
            if time.monotonic() - began > CLOSING:
                loan.abort()
            await _give_up(loan)


async def _give_up(loan: Loan) -> None:
    """Close the session of a loan: another may be opened."""
    session = loan.session
    session.pool.free(session.place)
    await _discard(session)
    loan.held.clear()


async def _discard(session: Session) -> None:
    with suppress(PQError):  # it may have been lost before
        await session.close()
