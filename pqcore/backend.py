"""What a backend is: the contract between the core and a driver, and all of it.

A backend is some hundred lines.  It carries statements to the server and rows
back; it knows nothing of queues.  It comes in two parts:

* a `BackendSpec`, which a plugin registers (see `pqcore.hookspecs`).  It names
  the backend and says what it can do, and importing it imports no driver;
* a class that the spec points to, with the methods of `Backend` (a blocking
  driver) or `AsyncBackend`, and a session class with those of `DriverSession` or
  `AsyncDriverSession`.

Protocols are matched by shape: nothing needs to be inherited.  `PLUGIN_API` is
raised when the contract changes in a way that breaks a backend written for the
last one.
"""

from __future__ import annotations

import enum
import os
import select
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from pqcore.sql.statement import Paramstyle, Query

if TYPE_CHECKING:
    import asyncio

PLUGIN_API = 1
"""The version of this contract, and of that of hooks (`pqcore.hookspecs`); see docs/plugins.md."""

_S = TypeVar("_S")
Mode: TypeAlias = Literal["blocking", "async"]
Row: TypeAlias = Sequence[Any]
"""A row, by position."""


class Capability(enum.Enum):
    """What a backend may offer beyond running statements in transactions.

    What it does not offer it must give a reason for (`BackendSpec.missing`);
    the conformance report lists both.
    """

    LISTEN = "waits for notifications; else waiters poll"
    POOL = "adopts a pool of the driver's own"
    PREPARED = "prepares hot statements on the server"


@dataclass(frozen=True)
class BackendSpec:
    """What a backend is called and what it can do, known without importing its driver.

    Attributes:
        name: As users write it: ``backend="asyncpg"``.  A driver with both
            faces registers two specs of one name, one a mode.
        mode: ``"blocking"`` serves `PQ`, ``"async"`` serves `AsyncPQ`.
        load: Where the class is, as ``"package.module:Class"``; imported when chosen.
        requires: The modules that must be importable, such as ``("asyncpg",)``.
        install: How to get them, shown when they are missing.
        paramstyle: How its statements have placeholders.
        capabilities: What it offers.
        missing: Why it lacks each of the others.
        connections: Dotted names of the connection classes that it adopts.
        pools: Dotted names of the pool classes that it adopts.
        schemes: URL schemes that choose it, such as ``("postgresql+asyncpg",)``.
        lowest: The lowest versions that work of the distributions that it uses, such as ``{"psycopg": "3.2"}``;
            of one that is not installed it says nothing.
        api: The version of the plugin API that it was written for: a number, not what `PLUGIN_API` is
            where it is installed.
        bare_loop: Where the driver's bare loop is, as ``"package.module:Class"``: a subclass of
            `pqcore.benchmarks.baseline.BareLoop`, with which the benchmarks compare the backend.
    """

    name: str
    mode: Mode
    load: str
    requires: tuple[str, ...]
    install: str
    paramstyle: Paramstyle
    capabilities: frozenset[Capability]
    missing: Mapping[Capability, str] = field(default_factory=dict)
    connections: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    lowest: Mapping[str, str] = field(default_factory=dict)
    api: int = 1
    bare_loop: str = ""


class DriverSession(Protocol):
    """One connection of a blocking driver.

    Between `enter` and `leave` every statement commits by itself, unless the
    caller's own transaction is open or `begin` was called.

    Attributes:
        connection: The driver's connection.
    """

    connection: Any

    def enter(self) -> None:
        """Start to use the connection.

        If the driver begins transactions by itself, switch an idle connection to autocommit, and remember that. Leave
        one with an open transaction as it is: that is the caller's.
        """

    def leave(self) -> None:
        """Stop using the connection: put back what `enter` switched."""

    def in_transaction(self) -> bool:
        """Return whether a transaction is open, also one that failed; asks the driver, not the server.

        True after `begin`, even where the driver sends BEGIN later.
        """

    def usable(self) -> bool:
        """Return whether the driver still holds the connection to be open; no round trip.

        Where the driver never notices that it is not: close it in `execute` after an error that is not the server's
        answer (network, an interrupt, half a message).
        """

    def alive(self) -> bool:
        """Return whether a connection that idled still works, or raise the driver's error.

        `pqcore.backend.wait_readable` tells cheaply whether there is anything to look at; only then ask the server:
        ``SELECT 1``.
        """

    def execute(self, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        """Run one statement and return its rows, as sequences; nothing unless ``query.rows``.

        As the driver's own cursor would: on a connection that is not in autocommit, it begins a transaction. The
        adapters, codecs and row types that the application has registered change nothing.

        Args:
            query: ``query.sql`` is the text, in the paramstyle of the spec. ``query.hot`` says that it runs often:
                prepare it on the server (capability PREPARED), unless the backend was made with ``prepared=False``.
            parameters: In the order of the placeholders: None, str, int, float, bytes, aware datetimes, or lists
                of these. Rows hold str, int, float, bool, bytes, naive datetimes and None; JSON is text.
        """

    def execute_behind(self, before: Query, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        """Run a SAVEPOINT and one statement within a transaction, in one round trip; return the rows of the statement.

        If a value cannot be adapted, nothing is sent, and the error has no SQLSTATE. May be left out: then the core
        sends the two one after the other.

        Args:
            before: The savepoint, without parameters or rows.
            query: As for `execute`.
            parameters: As for `execute`.
        """

    def begin(self) -> None:
        """Begin a transaction in the driver's own way, so that its users' code works in it.

        Where the driver sends BEGIN with the next statement, `execute` may send BEGIN and a statement of ours together.
        Whatever the user runs first must come after BEGIN, too.
        """

    def commit(self) -> None:
        """Commit in the driver's own way.

        If a statement had failed, the server rolls back instead, and says so in a place that few drivers look at:
        raise the driver's error for SQLSTATE 25P02 then, with the text `pqcore.backend.ABORTED`.
        """

    def rollback(self) -> None:
        """Roll back in the driver's own way."""

    def cursor(self, **options: Any) -> Any:
        """Return what ``with queue as cursor`` gives the user: whatever users of the driver run SQL with."""

    def listen(self, channel: str) -> None:
        """LISTEN to a channel (capability LISTEN), any text up to 63 bytes: see `pqcore.sql.identifiers.quote`."""

    def unlisten(self, channels: Sequence[str]) -> None:
        """UNLISTEN from channels, and forget them.  May be left out: then they are listened to until the end."""

    def wait(self, seconds: float) -> None:
        """Return when a notification may have arrived, at the latest after ``seconds`` (capability LISTEN).

        Immediately, if something was read already. Must not hold the connection: others may run statements meanwhile.
        Over a blocking driver `pqcore.backend.wait_readable` does that, over an asynchronous one a
        `pqcore.backend.Signal` that the driver's callback sets.
        """

    def fileno(self) -> int:
        """Return the file descriptor of the socket: a thread that waits for a job then reads notifications itself.

        Of a blocking driver only.  May be left out: then a thread of the core's calls `wait`, and wakes those that
        wait.
        """

    def notifications(self) -> list[str]:
        """Return the channels of `listen` notified since the last call, without waiting; they are forgotten.

        Those too that were read while statements ran. Raises the driver's error if the connection is lost.
        Notifications on other channels belong to the caller, and may come over the same connection: they stay where
        the driver's users look for them.
        """

    def direct(self) -> bool:
        """Whether the server itself is at the other end, and no pooler: who answers has the process id that was told.

        It prepares nothing to find it out.  May be left out where the driver does not know what it was told.
        """

    def close(self) -> None:
        """Close the connection."""

    def cancel(self) -> None:
        """Ask the server to cancel the statement under way: a cancel request, on a connection of its own.

        Called from another thread, and may block there, but not the other threads.  Does nothing where that is not
        possible.  May be left out: then a statement that waits for a lock
        goes on waiting on the server after its connection was broken off.
        """

    def busy(self) -> bool:
        """Whether a statement is under way, the caller's own ones included; asks the driver, not the server.

        Called from another thread.  May be left out.
        """

    def through(self, proxy: Any) -> None:
        """Hear of the proxy around the connection that the caller uses, as a tracer makes one; see `bare`.

        The cursors that the session gives to users come from it.  So may those for its own statements, where the
        tracer's cursor changes nothing about them.  May be left out: then the tracer sees none of them.
        """

    def abort(self) -> None:
        """Break the connection off immediately, from another thread, while a call on it may be waiting.

        That call must fail. Sends nothing and waits for nothing, as the other side may be gone: see
        `pqcore.backend.shutdown_socket`.
        A method ``drop`` may be there too: it closes a connection that nobody uses, without waiting, from any thread.
        """


class AsyncDriverSession(Protocol):
    """One connection of an asynchronous driver: `DriverSession`, awaited.

    If the driver ends a call immediately when its task is cancelled, and waits for nothing then, the session may
    have an attribute ``ends_when_cancelled`` that is true. Else the core sees to that, which costs a little per call.
    If no call of the driver cancels the task that it runs in, as `asyncio.timeout` does, the session may have an
    attribute ``cancels_task`` that is false: then a get or a lease needs no task of its own.
    """

    connection: Any

    def in_transaction(self) -> bool: ...
    def usable(self) -> bool: ...
    def cursor(self, **options: Any) -> Any: ...
    async def enter(self) -> None: ...
    async def leave(self) -> None: ...
    async def alive(self) -> bool: ...
    async def execute(self, query: Query, parameters: Sequence[object]) -> Sequence[Row]: ...
    async def execute_behind(self, before: Query, query: Query, parameters: Sequence[object]) -> Sequence[Row]: ...
    async def begin(self) -> None: ...
    async def commit(self) -> None: ...
    async def rollback(self) -> None: ...
    async def listen(self, channel: str) -> None: ...
    async def wait(self, seconds: float) -> None: ...
    async def notifications(self) -> list[str]: ...
    async def direct(self) -> bool: ...
    async def close(self) -> None: ...
    async def unlisten(self, channels: Sequence[str]) -> None: ...
    async def cancel(self) -> None: ...
    def through(self, proxy: Any) -> None: ...
    def abort(self) -> None: ...


class Backend(Protocol):
    """Makes sessions, with a blocking driver.

    Constructed with ``prepared`` (bool): whether statements may be prepared on
    the server; False behind a pooler that changes servers between transactions.
    """

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """What the driver raises: its base class, and what escapes that; OSError need not be named.

        They are told apart by SQLSTATE, in an attribute ``sqlstate`` or ``pgcode``; if the driver keeps it elsewhere,
        set the attribute. ``str()`` of one is shown to users. A class attribute does as well.
        """

    def connect(self, dsn: str) -> DriverSession:
        """Open a connection.

        Gives up after `pqcore.backend.CONNECT_TIMEOUT` seconds, unless the DSN or ``PGCONNECT_TIMEOUT`` says
        otherwise; for libpq, `pqcore.backend.connect_timeout_default` has what to add.

        Args:
            dsn: A URL, percent-encoded (``postgresql://user:password@host:port/database?application_name=...``),
                or a keyword string, as libpq reads them.

        Raises:
            ValueError: It cannot be read; the message must not have a password in it.
        """

    def wrap(self, connection: Any) -> DriverSession:
        """Use a connection that the caller handed over, once or for long.

        What must last, such as names of prepared statements, belongs to the connection. It is the driver's own. Where
        the caller's is a proxy around that, see `pqcore.backend.DriverSession.through`.
        """

    def acquire(self, pool: Any) -> DriverSession:
        """Borrow a connection of the caller's pool (capability POOL).

        Raises:
            pqcore.errors.PoolTimeout: There is none to be had.
            pqcore.errors.Closed: The pool is closed.
        """

    def release(self, pool: Any, session: DriverSession) -> None:
        """Give a connection back to the pool, also when it broke (capability POOL)."""

    def connect_like(self, pool: Any) -> DriverSession | None:
        """Open one more, with the parameters of the pool, to listen on; None if they are unknown (capability POOL)."""

    def close_connection(self, connection: Any) -> None:
        """Close a connection of the driver's, whoever opened it."""

    def close_pool(self, pool: Any) -> None:
        """Close a pool (capability POOL)."""


class AsyncBackend(Protocol):
    """Makes sessions, with an asynchronous driver: `Backend`, awaited."""

    @property
    def errors(self) -> tuple[type[BaseException], ...]: ...
    def wrap(self, connection: Any) -> AsyncDriverSession: ...
    async def connect(self, dsn: str) -> AsyncDriverSession: ...
    async def acquire(self, pool: Any) -> AsyncDriverSession: ...
    async def release(self, pool: Any, session: Any) -> None: ...
    async def connect_like(self, pool: Any) -> AsyncDriverSession | None: ...
    async def close_connection(self, connection: Any) -> None: ...
    async def close_pool(self, pool: Any) -> None: ...


PROXIES = 10
"""Proxies around one object that `layers` looks through, at most."""


def layers(target: Any) -> Iterator[Any]:
    """Iterate over an object and what it holds, if it is a proxy that says so by ``__wrapped__``: the outermost first.

    Tracers put such proxies around connections, cursors and pools.

    Args:
        target: The object.
    """
    yield target
    for _ in range(PROXIES):
        try:
            target = target.__wrapped__
        except (AttributeError, RuntimeError):  # no proxy, or one that is bound to nothing at this moment
            return
        yield target


def bare(target: Any) -> Any:
    """Return the innermost of an object's `layers`: a driver's own connection, cursor or pool.

    Args:
        target: The object, or a proxy around it.
    """
    *_, innermost = layers(target)
    return innermost


def session_over(wrap: Callable[[Any], _S], connection: Any) -> _S:
    """Make a session over a connection, or over the connection within a proxy, of which the session is told.

    Args:
        wrap: Makes the session of the driver's own connection: `Backend.wrap`.
        connection: What the caller, a pool or the driver's patched ``connect`` gave.
    """
    own = bare(connection)
    session = wrap(own)
    if own is not connection and (through := getattr(session, "through", None)) is not None:
        through(connection)
    return session


CONNECT_TIMEOUT = 10
"""Seconds that `Backend.connect` may take: the other side may accept a connection, and never answer."""
ABORTED = "the transaction was rolled back, as a statement in it had failed"
"""What a session's ``commit`` says then."""


def connect_timeout_default(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be added to libpq's parameters, so that connecting does not take for ever."""
    said = "connect_timeout" in parameters or "PGCONNECT_TIMEOUT" in os.environ
    return {} if said else {"connect_timeout": CONNECT_TIMEOUT}


def encoding_default(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be added to libpq's parameters, so that text of any kind can be sent and read.

    Else the connection has the database's own encoding, which may lack letters, or be none.
    """
    said = "client_encoding" in parameters or "PGCLIENTENCODING" in os.environ
    return {} if said else {"client_encoding": "UTF8"}


class AutocommitSession:
    """The ends of a blocking session whose driver's connection has an attribute ``autocommit``.

    Between `enter` and `leave` an idle connection is in autocommit. A transaction begins in the driver's own way, out
    of autocommit, and at its end the connection is switched back. An interrupt may come between any two lines.

    A subclass has the rest of `DriverSession`, and these:

    Attributes:
        aborted: What the driver raises for SQLSTATE 25P02.
    """

    connection: Any
    aborted: type[Exception]
    _switched = False  # by enter
    _begun = False  # though the driver may send BEGIN with the next statement only
    _flipped = False  # by begin, until it is switched back

    def in_transaction(self) -> bool:
        raise NotImplementedError

    def usable(self) -> bool:
        raise NotImplementedError

    def _failed(self) -> bool:
        """Return whether a statement of the open transaction failed."""
        raise NotImplementedError

    def _switch(self, *, autocommit: bool) -> None:
        """Switch the connection, when nothing is under way."""
        self.connection.autocommit = autocommit

    def _commit_failed(self, exc: BaseException) -> None:
        """Do what the driver leaves undone after a commit that failed."""

    def enter(self) -> None:
        if not self.connection.autocommit and not self.in_transaction():
            self._switched = True  # first: an interrupt may come in between
            self.connection.autocommit = True

    def leave(self) -> None:
        if self._switched:
            self.connection.autocommit = False
            self._switched = False

    def begin(self) -> None:
        self._begun = self._flipped = True  # first: an interrupt may come in between
        self._switch(autocommit=False)

    def commit(self) -> None:
        self._begun = False
        failed = self._failed()
        try:
            self.connection.commit()
            self._switch(autocommit=True)
            self._flipped = False
        except BaseException as exc:
            self._commit_failed(exc)
            self._end()
            raise
        if failed:
            raise self.aborted(ABORTED)

    def rollback(self) -> None:
        self._begun = False
        try:
            self.connection.rollback()
        finally:
            self._end()

    def _end(self) -> None:
        if self._flipped and self.usable() and not self.in_transaction():
            self._switch(autocommit=True)
            self._flipped = False


class Signal:
    """Wakes the tasks of one event loop that wait: `asyncio.Event` with a timeout, and without a task per wait."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: list[asyncio.Future[None]] = []

    def set(self) -> None:
        """Wake all that wait, and those that come, until it is cleared."""
        self._is_set = True
        for waiter in self._waiters:
            _settle(waiter)

    def clear(self) -> None:
        """Have those that come wait."""
        self._is_set = False

    async def wait(self, seconds: float) -> bool:
        """Wait until set, for at most ``seconds``; return whether it is set."""
        if not self._is_set:
            from asyncio import get_running_loop  # takes long to import: blocking drivers do without

            loop = get_running_loop()
            waiter = loop.create_future()
            timer = loop.call_later(seconds, _settle, waiter)
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiters.remove(waiter)
        return self._is_set


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Inbox:
    """Sorts a connection's notifications: those that a session listens to, and the rest, which are the caller's.

    Several sessions may share a connection, as where a caller gives it to more than one `PQ`.

    Args:
        rest: What takes a notification that no session listens to; None for nothing.
    """

    def __init__(self, rest: Callable[[Any], object] | None = None) -> None:
        self._rest = rest
        self._boxes: WeakKeyDictionary[object, tuple[set[str], list[str]]] = WeakKeyDictionary()

    def listen(self, session: object, channel: str) -> None:
        """Keep the notifications on a channel for a session."""
        self._boxes.setdefault(session, (set(), []))[0].add(channel)

    def unlisten(self, session: object, channels: Sequence[str]) -> list[str]:
        """Keep them no more; those of the channels to which no other session listens."""
        self._boxes.setdefault(session, (set(), []))[0].difference_update(channels)
        kept = set().union(*(wanted for wanted, _ in self._boxes.values()))
        return [channel for channel in channels if channel not in kept]

    def wants(self, channel: str) -> bool:
        """Whether a session listens to a channel."""
        return any(channel in wanted for wanted, _ in self._boxes.values())

    def put(self, channel: str, notification: object = None) -> None:
        """Sort a notification."""
        taken = False
        for wanted, arrived in self._boxes.values():
            if channel in wanted:
                arrived.append(channel)
                taken = True
        if not taken and self._rest is not None:
            self._rest(notification)

    def take(self, session: object) -> list[str]:
        """The channels that were notified since the last call."""
        _, arrived = self._boxes.get(session, (None, []))
        taken = arrived.copy()
        del arrived[: len(taken)]
        return taken


def shutdown_socket(fileno: int) -> None:
    """Shut a socket down, both ways: who waits on it, in whatever thread, finds it at its end."""
    duplicate = socket.socket(fileno=os.dup(fileno))
    with duplicate, suppress(OSError):  # not connected any more
        duplicate.shutdown(socket.SHUT_RDWR)


def wait_readable(fileno: int, seconds: float = 0) -> bool:
    """Whether a socket has something to read; waits for at most ``seconds``.

    An idle connection has not: what there is to read is a notification, a
    farewell of the server, or its end.  poll(2), as select(2) stops at 1,024 files.
    """
    if seconds == 0:  # before each use of a connection: it is to cost little
        try:
            return bool(_polls(fileno).poll(0))
        except RuntimeError:  # another thread asks the same at this moment
            pass
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


@lru_cache(maxsize=1_000)
def _polls(fileno: int) -> select.poll:
    # Holds a number, not a file: it is as good for the next file of that number.
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return poll
