"""Where sessions come from: a DSN, a connection of the caller's, or a pool of the caller's."""

from __future__ import annotations

import os
import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from threading import Lock
from typing import Any, Protocol
from urllib.parse import unquote
from weakref import WeakSet

from pqcore.dialect import Dialect
from pqcore.errors import Closed, ConfigurationError, ConnectionLost, PoolTimeout, PQError
from pqcore.runtime import Event, Runtime
from pqcore.sessions import CoreSession, Defaults, translate
from pqcore.settings import logger
from pqcore.statement import plain

REPLAN = 10.0
"""Seconds after which prepared statements are planned anew, for the table as it is by then."""
FRESH = 0.001
"""Seconds for which a connection that was just used is lent again without a look whether it still stands."""
CLOSED_PQ = "this PQ has been closed"
CLOSED = "the connection is closed: give an open one, or a DSN or pool, which replace lost connections"


LEFT = "the server takes no more writes: its connections are replaced"
_SEEKS_PRIMARY = re.compile(r"\btarget_session_attrs\s*=\s*'?(read-write|primary)\b")
POOLED = (
    "a pooler is between here and the server: nothing is prepared, and waiters poll, as in transaction mode it lends"
    " the server's connections to others in between; give PQ prepared=True if its mode is session, else prepared=False"
)


class Opener:
    """A backend, blocking or not, as the core calls it.

    Args:
        make: Makes the backend, given ``prepared``.
        sql: The statements.
        suspends: Whether its methods are to be awaited.
        prepared: Whether statements may be prepared; None to look.

    Attributes:
        prepared: The same; false as soon as a pooler is found, if it was to be looked.
    """

    def __init__(self, make: Callable[..., Any], sql: Dialect, *, suspends: bool, prepared: bool | None = True) -> None:
        self._make = make
        self.prepared = prepared
        self.backend = make(prepared=prepared is not False)
        self.errors = (*self.backend.errors, OSError)
        self.sql = sql
        self._suspends = suspends
        self._sessions: WeakSet[CoreSession] = WeakSet()
        self._defaults = Defaults()
        self._lock = Lock()

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
        made = CoreSession(driver, self.sql, self.errors, suspends=self._suspends, defaults=self._defaults)
        made.believed = self.prepared is True
        with self._lock:
            self._sessions.add(made)
        return made

    @property
    def alternates(self) -> bool:
        """Whether the server's connection may be another from one transaction to the next: behind a pooler."""
        return self.prepared is False

    async def direct(self, session: CoreSession) -> bool:
        """Whether no pooler is in between; if one is, nothing is prepared on sessions that are made from now on."""
        if await session.direct():
            return True
        with self._lock:  # threads may find it together
            if self.prepared is None:
                logger.warning(POOLED)
                self.backend = self._make(prepared=False)  # first: who sees the other takes this one
                self.prepared = False
        return False

    def stalled(self, limit: float) -> list[CoreSession]:
        """The sessions with a call that has not returned for ``limit`` seconds, and should have."""
        since = time.monotonic() - limit
        return [session for session in self._all() if session.waits and (session.busy_since or since) < since]

    def unheard(self, limit: float) -> list[CoreSession]:
        """The sessions without such a call of which the server was not heard for ``limit`` seconds."""
        since = time.monotonic() - limit
        return [session for session in self._all() if not session.waits and session.heard_at < since]

    def leave(self) -> None:
        """Have no session that there is now be lent again, nor listened on: their server takes no more writes."""
        for session in self._all():
            session.doubtful = session.left = True

    def _all(self) -> list[CoreSession]:
        with self._lock:
            return list(self._sessions)

    def wrap(self, connection: object) -> CoreSession:
        session = self.session(self.backend.wrap(connection))
        if not session.usable():
            raise ConnectionLost(CLOSED)
        return session


class Source(Protocol):
    """Lends sessions.

    Attributes:
        joins: Whether a session may come with a transaction of the caller's open.
        seeks_primary: Whether a new connection leads to a server that takes writes, where there are several.
    """

    joins: bool
    seeks_primary: bool

    async def acquire(self) -> CoreSession: ...
    async def release(self, session: CoreSession, *, sound: bool = False) -> None:
        """Take a session back.

        Args:
            session: The session.
            sound: Whether it is known to be usable, and in no transaction of ours.
        """

    async def listener(self) -> CoreSession | None:
        """A session that nobody else uses, to listen on; None if there is none to be had."""

    async def close(self) -> None: ...


class _Turn:
    """One who waits for a session."""

    def __init__(self, event: Event) -> None:
        self.event = event
        self.session: CoreSession | None = None  # what was handed over; None: try again


class _Shelf:
    """The sessions of one owner: of a process, and there of an event loop.

    Attributes:
        idle: Those that nobody uses.
        opened: How many there are, those in use and being opened included.
        waiting: Who waits for one, in turn.
    """

    def __init__(self) -> None:
        self.idle: list[CoreSession] = []
        self.opened = 0
        self.waiting: deque[_Turn] = deque()


class OwnPool:
    """Connections that we open, kept for reuse.

    Opened when first needed.  One that idled is looked at before it is lent:
    a restart of the server goes unnoticed.  After a fork, or in another event
    loop, the old ones are left to their owner.

    Lending one that is there takes no lock.  One that comes back while others wait is handed to
    the first of them, as who gave it back may want it again at once, and would always be first.

    Args:
        opener: The backend.
        dsn: Where to connect.
        runtime: How to wait.
        size: Connections, at most; one more is opened for listening.
        timeout: Seconds to wait for a free one.
        idle_limit: Seconds after which the server ends one that idles in a transaction; None for as it is set to.
    """

    joins = False

    def __init__(
        self, opener: Opener, dsn: str, runtime: Runtime, size: int, timeout: float, idle_limit: float | None = None
    ) -> None:
        self._opener = opener
        self._dsn = dsn
        self._runtime = runtime
        self._size = size
        self._timeout = timeout
        self._idle_limit = idle_limit
        self.seeks_primary = _seeks_primary(dsn)
        self._closed = False
        self._owner: Hashable = None
        self._shelf = _Shelf()
        self._abandoned: list[_Shelf] = []
        self._lock = Lock()

    async def acquire(self) -> CoreSession:
        if self._closed:
            raise Closed(CLOSED_PQ)
        owner = self._runtime.owner()
        if self._owner != owner and self._take_over(owner):
            await self._runtime.at_end(self.rest)
        shelf = self._shelf
        try:
            session = shelf.idle.pop()
        except IndexError:
            return await self._wait_or_open(shelf)
        now = time.monotonic()
        if now - session.heard_at < FRESH and now - session.planned_at < REPLAN:
            return session
        return session if await self._sound(shelf, session) else await self._wait_or_open(shelf)

    async def _wait_or_open(self, shelf: _Shelf) -> CoreSession:
        deadline = time.monotonic() + self._timeout
        while True:
            turn = _Turn(self._runtime.event())
            with self._lock:
                shelf.waiting.append(turn)  # before the look: what is given back after it is handed over
                session = _pop(shelf.idle)
                opens = session is None and shelf.opened < self._size
                if opens:
                    shelf.opened += 1
                if opens or session is not None:
                    shelf.waiting.remove(turn)
            if opens:
                return await self._open(shelf)
            if session is None:
                session = await self._handed_over(shelf, turn, deadline)
            if session is not None and await self._sound(shelf, session):
                return session

    async def _handed_over(self, shelf: _Shelf, turn: _Turn, deadline: float) -> CoreSession | None:
        try:
            await turn.event.wait(max(deadline - time.monotonic(), 0.0))
        except BaseException:
            if not self._withdrawn(shelf, turn) and turn.session is not None:
                shelf.idle.append(turn.session)
                self._hand_over(shelf)
            raise
        if self._withdrawn(shelf, turn):
            msg = (
                f"all {self._size} connections have been in use for {self._timeout} seconds: "
                "raise max_connections, or look for transactions that are held open"
            )
            raise PoolTimeout(msg)
        return turn.session

    def _withdrawn(self, shelf: _Shelf, turn: _Turn) -> bool:
        """Wait no more; False if it was this one's turn just now."""
        with self._lock:
            if turn in shelf.waiting:
                shelf.waiting.remove(turn)
                return True
        return False

    async def _open(self, shelf: _Shelf) -> CoreSession:
        try:
            session = await self._connect()
        except BaseException:
            self._gone(shelf)
            raise
        session.shelf = shelf
        return session

    async def _sound(self, shelf: _Shelf, session: CoreSession) -> bool:
        """Whether a session that idled can be lent; one that cannot is closed."""
        try:
            if not session.doubtful and await session.alive() and await self._replanned(session):
                return True
        except BaseException:
            self._gone(shelf)
            raise
        self._gone(shelf)
        await _discard(session)
        return False

    async def _replanned(self, session: CoreSession) -> bool:
        if time.monotonic() - session.planned_at > REPLAN:
            session.planned_at = time.monotonic()
            try:
                await session.execute(session.sql.replan)
            except ConnectionLost:
                return False
            # A session on which nothing is written is not told that its server takes no more writes.
            return not self.seeks_primary or await session.writes()
        return True

    def _take_over(self, owner: Hashable) -> bool:
        with self._lock:  # threads may come here together
            if self._owner == owner:
                return False
            # Kept, not closed: closing would end the connection for its owner too.
            self._abandoned.append(self._shelf)
            self._shelf = _Shelf()
            self._owner = owner
            return True

    async def release(self, session: CoreSession, *, sound: bool = False) -> None:
        shelf: _Shelf = session.shelf
        if self._closed or session.doubtful or not (sound or (session.usable() and not session.in_transaction())):
            self._gone(shelf)
            left = session.read_only and not await session.writes()
            await _discard(session)
            if left:
                await self._leave_server()
            return
        shelf.idle.append(session)
        if shelf.waiting:
            self._hand_over(shelf)

    def _hand_over(self, shelf: _Shelf) -> None:
        with self._lock:
            if shelf.waiting and (free := _pop(shelf.idle)) is not None:
                turn = shelf.waiting.popleft()
                turn.session = free
                turn.event.set()

    def _gone(self, shelf: _Shelf) -> None:
        """One less: another may be opened."""
        with self._lock:
            shelf.opened -= 1
            if shelf.waiting:
                shelf.waiting.popleft().event.set()

    async def listener(self) -> CoreSession | None:
        if self._closed:
            raise Closed(CLOSED_PQ)
        return await self._connect()

    async def _leave_server(self) -> None:
        """Use no connection any more that there is now: a new one may lead to the server that takes writes."""
        logger.warning(LEFT)
        self._opener.leave()
        await self.rest()

    async def close(self) -> None:
        self._closed = True
        if self._owner == self._runtime.owner():
            await self.rest()

    async def rest(self) -> None:
        """Close the connections that are free."""
        while (session := _pop(self._shelf.idle)) is not None:
            self._gone(self._shelf)
            await _discard(session)

    async def _connect(self) -> CoreSession:
        look = self._opener.prepared is None
        session = await self._reach()
        try:
            await session.enter()
            if look and not await self._opener.direct(session):
                await _discard(session)
                session = await self._reach()
                await session.enter()
            session.lasting = not self._opener.alternates
            if self._idle_limit is not None and session.lasting:
                sql = f"SET idle_in_transaction_session_timeout = {max(int(self._idle_limit * 1000), 1)}"
                await session.execute(plain("idle_limit", sql, rows=False))
        except BaseException:  # a cancellation, too: nobody else knows of it
            await _discard(session)
            raise
        return session

    async def _reach(self) -> CoreSession:
        try:
            return self._opener.session(await self._opener.call("connect", self._dsn))
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


class CallersPool:
    """A pool of the caller's.

    Some raise an error when all of their connections are in use; then we ask
    again, for ``timeout`` seconds.
    """

    joins = True
    seeks_primary = False  # nobody knows

    def __init__(self, opener: Opener, pool: object, runtime: Runtime, timeout: float) -> None:
        self._opener = opener
        self._pool = pool
        self._runtime = runtime
        self._timeout = timeout
        self._looked = opener.prepared is not None

    async def acquire(self) -> CoreSession:
        session, fits = await self._borrow()
        if not fits:
            await self.release(session)
            session, _ = await self._borrow()
        return session

    async def _borrow(self) -> tuple[CoreSession, bool]:
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
            if self._looked or session.in_transaction():
                return session, True
            fits = await self._opener.direct(session)
            self._looked = True
        except BaseException:
            await self.release(session)
            raise
        return session, fits

    async def release(self, session: CoreSession, *, sound: bool = False) -> None:
        try:
            if session.read_only and not await session.writes():
                logger.warning(LEFT)
                self._opener.leave()
                await _discard(session)  # for which the pool opens another
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

    joins = True
    seeks_primary = False

    def __init__(self, opener: Opener, connection: object, runtime: Runtime) -> None:
        self._opener = opener
        self._connection = connection
        self.session = opener.wrap(connection)
        self.on_release: Callable[[CoreSession], Awaitable[None]] | None = None
        self._gate = runtime.gate()
        self._depth = 0
        self._looked = opener.prepared is not None

    async def acquire(self) -> CoreSession:
        await self._gate.enter()
        try:
            if not self.session.usable():
                raise ConnectionLost(CLOSED)  # noqa: TRY301
            if self._depth == 0:
                await self.session.enter()
                if not self._looked and not self.session.in_transaction():
                    await self._look()
        except BaseException:
            self._gate.leave()
            raise
        self._depth += 1
        return self.session

    async def _look(self) -> None:
        fits = await self._opener.direct(self.session)
        self._looked = True
        if not fits:
            await self.session.leave()
            self.session = self._opener.wrap(self._connection)
            await self.session.enter()

    async def release(self, session: CoreSession, *, sound: bool = False) -> None:
        self._depth -= 1
        try:
            if self._depth == 0:
                if self.on_release is not None and session.usable():
                    await self.on_release(session)
                await session.leave()
        finally:
            self._gate.leave()

    async def listener(self) -> CoreSession | None:
        return None

    async def close(self) -> None:
        await self._opener.call("close_connection", self._connection)


class Lender(ABC):
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
    def lend(self, wrap: Callable[[object], CoreSession]) -> CoreSession:
        """The session of the connection of the running thread.

        ``callers`` is set on it if its driver begins a transaction with the first statement.

        Args:
            wrap: Makes the session of a driver's connection; once a connection is enough.

        Raises:
            PQError: It cannot be opened.
        """

    @abstractmethod
    def failed(self, session: CoreSession) -> None:
        """Hear that something failed on a connection that was lent, which may be lost."""


class LentConnections:
    """Connections that a framework keeps."""

    joins = True
    seeks_primary = False

    def __init__(self, opener: Opener, lender: Lender) -> None:
        self._opener = opener
        self._lender = lender

    async def acquire(self) -> CoreSession:
        session = self._lender.lend(self._opener.wrap)
        if session.callers and not session.in_transaction():
            await session.execute(session.sql.ping)  # so that what follows is found to be in the framework's
        return session

    async def release(self, session: CoreSession, *, sound: bool = False) -> None:
        if not sound:
            self._lender.failed(session)

    async def listener(self) -> CoreSession | None:
        return None

    async def close(self) -> None:
        """Close nothing: they are the framework's."""


def _pop(sessions: list[CoreSession]) -> CoreSession | None:
    try:
        return sessions.pop()
    except IndexError:
        return None


async def _discard(session: CoreSession) -> None:
    with suppress(PQError):  # it may have been lost before
        await session.close()
