"""Sources of sessions: a DSN, a caller's connection, or a caller's pool."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from pqcore.backend import bare
from pqcore.db.backend_adapter import CLOSED, BackendAdapter
from pqcore.db.runtime import Runtime
from pqcore.db.session import Session
from pqcore.errors import ConnectionLost, PoolTimeout, PQError

logger = logging.getLogger("pqcore")

T = TypeVar("T")

LEFT = "the server accepts no more writes: its connections are replaced"


class Loan(list[Session]):
    """The use of one session by one operation, or by one ``with`` block: a list with the session, or an empty list.

    An interrupt (Ctrl-C, a time limit) may come between any two steps of a thread. So a session moves in one step, with
    ``append(pop())``. Code that gives a session back keeps the session in no variable, because a traceback would keep
    the variable. If an interrupt comes during a move, nothing refers to the session any more, so it is closed and no
    longer counted. A loan is itself the list: each operation makes a loan, and a second object would cost time.

    Attributes:
        idle: Whether the session is known to have been in no transaction when it was lent.
    """

    idle = False
    # Compared by identity: two loans are different, even if they lend the same session.
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]

    @property
    def session(self) -> Session:
        return self[-1]

    def abort(self) -> None:
        """Close the connection, if there is one, so that its running call fails."""
        for session in list(self):
            session.abort()


class SessionSource(Protocol):
    """A lender of sessions.

    Attributes:
        may_have_open_transaction: Whether a session may come with an open transaction of the caller.
        seeks_primary: Whether a new connection leads to a server that takes writes, if there are several servers.
    """

    may_have_open_transaction: bool
    seeks_primary: bool

    def lend(self, loan: Loan, now: float) -> bool:
        """Give the loan a session if that needs no wait; return whether it succeeded.

        If the result is False, the caller calls `acquire`.

        Args:
            loan: The loan.
            now: The time, by the monotonic clock.
        """
        return False

    def take_back(self, loan: Loan) -> bool:
        """Take back a session that is usable and in no transaction, if that needs no wait.

        Return whether the session was taken back.
        """
        return False

    async def acquire(self, loan: Loan) -> None:
        """Give the loan a session. Even if `acquire` fails, the caller must call `release`."""

    async def release(self, loan: Loan, *, sound: bool = False) -> None:
        """Take the session of a loan back, if the loan has one; the call may be repeated after an interrupt.

        Args:
            loan: The loan.
            sound: Whether the session is known to be usable, and in no transaction of pqcore.
        """

    def lose(self, loan: Loan) -> bool:
        """Close the session of a loan without waiting for the server; return whether that is possible."""

    async def listener(self) -> Session | None:
        """Return a session that nobody else uses, for LISTEN; None if none is available."""

    async def close(self) -> None: ...


async def lent(
    source: SessionSource,
    work: Callable[[Session], Awaitable[T]],
    acquire: Callable[[Loan], Awaitable[None]] | None = None,
) -> T:
    """Do some work with a session, and give the session back, even after an error.

    Args:
        source: The lender of the session.
        work: A function that returns what is awaited.
        acquire: A function that gives the loan a session; None for the source's own method.
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


class AdoptedPool(SessionSource):
    """A caller's pool.

    Some pools raise an error when all their connections are in use. After such an error, this class tries again, for up
    to ``timeout`` seconds.
    """

    may_have_open_transaction = True
    seeks_primary = False  # it is unknown whether the pool's connections require a primary

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
        """Take a connection of the pool; return whether it can be used as it is."""
        deadline = time.monotonic() + self._timeout
        driver: Any = None
        while True:
            try:
                driver = await self._opener.call("acquire", self._pool)
                loan.append(self._opener.session(driver))
                break
            except PoolTimeout:
                if time.monotonic() >= deadline:
                    raise
                await self._runtime.sleep(0.01)
            except BaseException:
                if driver is not None and not loan:
                    await self._opener.call("release", self._pool, driver)
                raise
        session = loan.session
        await session.enter()
        if self._looked or session.in_transaction():
            return True
        fits = await self._opener.direct(session)
        self._opener.refuse_large(self._pool)
        self._looked = True
        return fits

    async def release(self, loan: Loan, *, sound: bool = False) -> None:
        if not loan:
            return
        try:
            if loan.session.read_only and not await loan.session.writes():
                logger.warning(LEFT)
                self._opener.leave()
                await discard(loan.session)  # the pool replaces a closed connection
            await loan.session.leave()
        except BaseException:
            await self._give_back(loan)
            raise
        await self._give_back(loan)

    async def _give_back(self, loan: Loan) -> None:
        driver = loan.session.driver
        if self._runtime.suspends:
            loan.clear()
            await self._opener.call("release", self._pool, driver)
            return
        try:
            loan.clear()  # before the release, after which the pool may lend the connection to another thread
            self._opener.call_blocking("release", self._pool, driver)
        except BaseException as exc:
            loan.clear()
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
    """One connection of the caller, for one user at a time; other users wait up to ``timeout`` seconds.

    The thread that uses the connection may run further operations on it meanwhile, for example if the generator that
    it gave to `put_many` takes jobs.
    """

    may_have_open_transaction = True
    seeks_primary = False

    def __init__(self, opener: BackendAdapter, connection: object, runtime: Runtime, timeout: float) -> None:
        self._timeout = timeout
        self._opener = opener
        self._connection = connection
        self.session = opener.wrap(connection)
        self.on_release: Callable[[Session], Awaitable[None]] | None = None
        self._lock = runtime.lock()
        self._loans: list[Loan] = []
        self._looked = opener.prepared is not None

    async def acquire(self, loan: Loan) -> None:
        await self.acquire_within(self._timeout, loan)

    async def acquire_within(self, seconds: float, loan: Loan) -> None:
        """Give the loan the connection.

        Args:
            seconds: The largest number of seconds to wait until other users have given the connection back.
            loan: The loan.

        Raises:
            PoolTimeout: Other users have not given the connection back in time.
        """
        again = self._lock.mine()
        if not again and not await self._lock.enter_within(seconds):
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
        loan.append(self.session)

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
            loan.clear()
        elif mine or (self._lock.mine() and not self._loans):
            await self._leave(loan)

    async def _leave(self, loan: Loan) -> None:
        session = self.session
        try:
            if self.on_release is not None and session.usable():
                await self.on_release(session)
            await session.leave()
        finally:
            loan.clear()
            self._loans.clear()
            self._lock.leave()

    def lose(self, loan: Loan) -> bool:
        return False

    async def listener(self) -> Session | None:
        return None

    async def close(self) -> None:
        await self._opener.call("close_connection", self._connection)


class ConnectionProvider(ABC):
    """A keeper of connections that chooses one for each use, such as a framework with one connection for each thread.

    A program gives this object to `PQ` instead of a DSN. Operations on a connection join its transaction. The framework
    begins and ends transactions, and opens and closes connections.

    Attributes:
        backend: The name of the backend for its driver.
    """

    backend: str

    @abstractmethod
    def dsn(self) -> str:
        """Return the DSN with which a worker opens its own connections."""

    @abstractmethod
    def lend(self, wrap: Callable[[object], Session]) -> Session:
        """Return the session of the running thread's connection.

        `Session.caller_owned` is set if the session's driver begins a transaction with the first statement.

        Args:
            wrap: A function that makes the session of a driver's connection; one call for each connection is enough.

        Raises:
            PQError: The connection cannot be opened.
        """

    @abstractmethod
    def failed(self, session: Session) -> None:
        """Handle a failure on a lent connection, which may be lost."""


class ProvidedConnections(SessionSource):
    """The connections that a framework keeps."""

    may_have_open_transaction = True
    seeks_primary = False

    def __init__(self, opener: BackendAdapter, lender: ConnectionProvider) -> None:
        self._opener = opener
        self._lender = lender

    async def acquire(self, loan: Loan) -> None:
        session = self._lender.lend(self._opener.wrap)
        loan.append(session)
        if session.caller_owned and not session.in_transaction():
            # This statement begins the framework's transaction, because later statements must find it open.
            await session.execute(session.sql.ping)

    async def release(self, loan: Loan, *, sound: bool = False) -> None:
        if loan and not sound:
            self._lender.failed(loan.session)
        loan.clear()

    def lose(self, loan: Loan) -> bool:
        return False

    async def listener(self) -> Session | None:
        return None

    async def close(self) -> None:
        """Close nothing, because the connections are the framework's."""


def _reached(exc: BaseException, pool: object) -> bool:
    """Return whether an interrupt came while the pool's own code was running."""
    package, at = type(bare(pool)).__module__.partition(".")[0], exc.__traceback__
    while at is not None:
        if str(at.tb_frame.f_globals.get("__name__")).partition(".")[0] == package:
            return True
        at = at.tb_next
    return False


async def discard(session: Session) -> None:
    """Close a session that nobody uses any more."""
    with suppress(PQError):  # the connection may be lost already
        await session.close()
