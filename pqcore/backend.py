"""The whole contract between the core and a driver: the duties and the options of a backend.

A backend has a few hundred lines. It carries statements to the server and rows back, and knows nothing of queues. A
backend has two parts:

* a `BackendSpec`, which a plugin registers (see `pqcore.hookspecs`). The spec names the backend and its capabilities;
  importing the spec imports no driver;
* a class that the spec points to, with the methods of `Backend` (a blocking
  driver) or `AsyncBackend`, and a session class with those of `DriverSession` or
  `AsyncDriverSession`.

These classes are protocols: a backend need not inherit from them. `PLUGIN_API` increases when a change of the contract
breaks existing backends.
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

from pqcore.sql.statement import Paramstyle, Query, plain

if TYPE_CHECKING:
    import asyncio

PLUGIN_API = 1
"""The version of this contract and of the hooks (`pqcore.hookspecs`); see docs/plugins.md."""

_S = TypeVar("_S")
Mode: TypeAlias = Literal["blocking", "async"]
Row: TypeAlias = Sequence[Any]
"""A row, whose columns are read by position."""


class Capability(enum.Enum):
    """An ability that a backend may have, beyond running statements in transactions.

    `BackendSpec.missing` must give a reason for each ability that the backend lacks. The conformance report lists the
    abilities, and these reasons.
    """

    LISTEN = "waits for notifications; else waiters poll"
    POOL = "adopts a pool of the driver's own"
    PREPARED = "prepares hot statements on the server"


@dataclass(frozen=True)
class BackendSpec:
    """The name and the abilities of a backend, known without importing its driver.

    Attributes:
        name: The name that users write: ``backend="asyncpg"``. A driver with both faces registers two specs of one
            name, one for each mode.
        mode: ``"blocking"`` serves `PQ`, ``"async"`` serves `AsyncPQ`.
        load: The path of the class, as ``"package.module:Class"``; the class is imported when the backend is chosen.
        requires: The modules that must be importable, such as ``("asyncpg",)``.
        install: The command that installs the modules, shown when they are missing.
        paramstyle: The style of the placeholders in statements.
        capabilities: The abilities that the backend has.
        missing: The reason why the backend lacks an ability, for each ability that is not in ``capabilities``.
        missing_on_adopted: For an ability that only connections of `Backend.connect` have: the reason why a connection
            that the caller opened lacks it. Only LISTEN can be such an ability.
        connections: Dotted names of the connection classes that the backend accepts: the class's ``__module__``, a dot,
            and its ``__qualname__``. A compiled class may have another name than the one that users import.
        pools: Dotted names of the pool classes that the backend accepts.
        schemes: URL schemes that choose the backend, such as ``("postgresql+asyncpg",)``.
        lowest: The lowest versions of distributions that work, such as ``{"psycopg": "3.2"}``; distributions that are
            not installed are ignored.
        api: The version of the plugin API that the backend was written for, as a literal number; do not pass
            `PLUGIN_API`, which differs between installations.
        bare_loop: The path of the driver's bare loop, as ``"package.module:Class"``: a subclass of
            `pqcore.benchmarks.baseline.BareLoop`, with which benchmarks compare the backend.
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
    missing_on_adopted: Mapping[Capability, str] = field(default_factory=dict)


class DriverSession(Protocol):
    """One connection of a blocking driver.

    Between `enter` and `leave`, every statement commits by itself, unless the caller's transaction is open or `begin`
    was called.

    Attributes:
        connection: The driver's connection.
        server_version: What the server's function ``version()`` returned to `direct`. The core finds out from this text
            whether all clients of the server share one session. May be left out: then the core assumes that they do
            not.
    """

    connection: Any

    def enter(self) -> None:
        """Start to use the connection.

        If the driver begins transactions by itself, switch an idle connection to autocommit, and remember the switch.
        Do not change a connection with an open transaction, which belongs to the caller.
        """

    def leave(self) -> None:
        """Stop using the connection, and undo what `enter` switched."""

    def in_transaction(self) -> bool:
        """Return whether a transaction is open, even a failed one; ask the driver, not the server.

        Return True after `begin`, even if the driver sends BEGIN later. Even in asynchronous sessions, the method is
        not awaited. If the driver's own answer is a coroutine, await that answer in `enter`, and then keep track of
        each BEGIN, COMMIT and ROLLBACK that `begin`, `commit`, `rollback` and `execute` send.
        """

    def usable(self) -> bool:
        """Return whether the driver still considers the connection open; make no round trip.

        If the driver never notices a lost connection, `execute` must close the connection after any error that is not
        an answer of the server (network, interrupt, partial message).
        """

    def alive(self) -> bool:
        """Return whether an idle connection still works, or raise the driver's error.

        Call `pqcore.backend.wait_readable` first, which is cheap; send ``SELECT 1`` only if the socket is readable.
        """

    def execute(self, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        """Run one statement, and return its rows as sequences; without ``query.rows``, return an empty sequence.

        Act as the driver's own cursor does: without autocommit, the statement begins a transaction. Adapters, codecs
        and row types that the application registered must not affect pqcore's statements.

        Args:
            query: ``query.sql`` is the text, in the paramstyle of the spec. ``query.hot`` marks a statement that runs
                often: prepare it on the server (capability PREPARED), unless the backend was made with
                ``prepared=False``.
            parameters: The values in the order of the placeholders: None, str, int, float, bytes, aware datetimes, or
                lists of these. Rows hold str, int, float, bool, bytes, naive datetimes, None, and lists of str or int
                (arrays); JSON is text.
        """

    def execute_behind(self, before: Query, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        """Run a SAVEPOINT and one statement within a transaction, in one round trip; return the statement's rows.

        If the driver cannot adapt a value, send nothing, and raise an error without a SQLSTATE. May be left out:
        without it, the core sends the two statements one after the other.

        Args:
            before: The SAVEPOINT statement, without parameters or rows.
            query: The statement; see `execute`.
            parameters: The parameters; see `execute`.
        """

    def begin(self) -> None:
        """Begin a transaction in the driver's own way, so that code which uses the driver works in it.

        If the driver sends BEGIN with the next statement, `execute` may send BEGIN together with pqcore's first
        statement. The user's first statement must also come after BEGIN.
        """

    def commit(self) -> None:
        """Commit in the driver's own way.

        If a statement of the transaction failed, the server rolls back at COMMIT, and reports the rollback only in the
        command tag, which most drivers ignore. In this case, raise the driver's error for SQLSTATE 25P02, with the text
        `pqcore.backend.ABORTED`.
        """

    def rollback(self) -> None:
        """Roll back in the driver's own way."""

    def cursor(self, **options: Any) -> Any:
        """Return what ``with queue as cursor`` yields: the object with which users of the driver run SQL."""

    def listen(self, channel: str) -> None:
        """LISTEN to a channel, whose name is any text of up to 63 bytes (capability LISTEN).

        See `pqcore.sql.identifiers.quote`. LISTEN must be in force when the method returns, on the connection on which
        `execute` runs statements. The method may raise one of the driver's errors: then pqcore logs a warning, polls,
        and tries again 15 seconds later. If LISTEN never works on a caller's connection, declare that in
        `BackendSpec.missing_on_adopted`.
        """

    def unlisten(self, channels: Sequence[str]) -> None:
        """UNLISTEN from channels, and forget the channels.

        This method may be left out: without it, the connection listens to the channels until it is closed.
        """

    def wait(self, seconds: float) -> None:
        """Wait until a notification may have arrived, for up to ``seconds`` (capability LISTEN).

        Return immediately if a notification was already read. The method must not lock the connection, because other
        callers may run statements meanwhile. Blocking drivers can use `pqcore.backend.wait_readable`; asynchronous
        drivers can use a `pqcore.backend.Signal` that the driver's callback sets.
        """

    def fileno(self) -> int:
        """Return the socket's file descriptor, so that a thread that waits for a job reads notifications itself.

        Only blocking drivers have this method. May be left out: without it, a thread of the core calls `wait`, and
        wakes the waiters.
        """

    def notifications(self) -> list[str]:
        """Return the channels of `listen` that were notified since the last call, without waiting; then forget them.

        Include notifications that were read while statements ran. Raise the driver's error if the connection is lost.
        Notifications on other channels belong to the caller, even on the same connection: leave them where the driver's
        users look for them.
        """

    def direct(self) -> bool:
        """Return whether the server itself, and no pooler, is at the other end.

        Run `WHO`, and compare the process id that it returns with the id that the server sent when the connection was
        opened. `WHO` also returns the server's version: keep it in the attribute `server_version`.

        Prepare nothing on the server for this check. This method may be left out if the driver does not keep the
        process id that the server sent.
        """

    def close(self) -> None:
        """Close the connection, so that the server's session ends, even within a transaction."""

    def cancel(self) -> None:
        """Ask the server to cancel the running statement, with a cancel request on a separate connection.

        Another thread calls this method, which may block its own thread but no other. Do nothing if the driver cannot
        cancel. This method may be left out: then a statement that waits for a lock continues on the server
        after its connection was closed.
        """

    def busy(self) -> bool:
        """Return whether a statement is running, including the caller's own; ask the driver, not the server.

        Another thread calls this method. May be left out: without it, pqcore cannot break off a statement that the
        caller runs in a transaction block.
        """

    def through(self, proxy: Any) -> None:
        """Receive the proxy through which the caller uses the connection, such as a tracer's; see `bare`.

        The session must make users' cursors from the proxy. The session may also use the proxy for its own statements,
        if the tracer's cursor does not change their results. May be left out: without it, the tracer sees no
        statements.
        """

    def abort(self) -> None:
        """Close the connection immediately, from another thread, even while a call on it is waiting.

        The waiting call must then fail. Send nothing and wait for nothing, because the server may be unreachable; see
        `pqcore.backend.shutdown_socket`. If an asynchronous driver gives no socket, let go of its connection, and
        return false from `usable`: the core abandons a call that has not ended after a quarter of a second. A session
        may also have a method ``drop``, which closes an unused connection from any thread without waiting.
        """


class AsyncDriverSession(Protocol):
    """One connection of an asynchronous driver: like `DriverSession`, but awaited.

    If a call of the driver ends immediately when its task is cancelled, the session may set an attribute
    ``ends_when_cancelled`` to true. Otherwise the core ends the call, at a small cost per call. Some calls
    of a driver cancel their own task, as `asyncio.timeout` does. If no call of the driver cancels its task, the session
    may set an attribute ``cancels_task`` to false, and a get or a lease then needs no separate task.

    If the task is cancelled, the call may raise `asyncio.CancelledError`, even if the server still runs the statement.
    On its own connection, pqcore then calls only `abort` and `close`. On a caller's connection, it waits until `begin`
    has ended, and then calls `rollback`. So `rollback` must also end a transaction whose `begin` was cancelled,
    and `in_transaction` must be true as soon as BEGIN may have been sent. If the session cannot know its state, it
    closes the connection.
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
    """The maker of sessions, for a blocking driver.

    The constructor takes ``prepared`` (bool): whether statements may be prepared on the server. ``prepared`` is False
    behind a pooler that gives each transaction another session of the server.
    """

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """The exceptions that the driver raises: its base class, and others that do not derive from it.

        OSError need not be included.

        The core reads the SQLSTATE from an attribute ``sqlstate`` or ``pgcode``; if the driver keeps it elsewhere, set
        the attribute. Every error that the server reports must have a SQLSTATE: docs/reference/backend-contract.md
        lists what pqcore does with which SQLSTATE. A backend over a driver without SQLSTATEs cannot conform.
        Users see the ``str()`` of an exception, and pqcore reads the server's DETAIL from this text, or from an
        attribute ``detail``. A class attribute may replace the property.
        """

    def connect(self, dsn: str) -> DriverSession:
        """Open a connection.

        Give up after `pqcore.backend.CONNECT_TIMEOUT` seconds, unless the DSN or ``PGCONNECT_TIMEOUT`` sets another
        time. For libpq, `pqcore.backend.connect_timeout_default` returns the parameter to add.

        Args:
            dsn: A URL, percent-encoded (``postgresql://user:password@host:port/database?application_name=...``),
                or a keyword string, as libpq reads them; `pqcore.backend_dsn.dsn_parameters` reads both.

        Raises:
            ValueError: The DSN cannot be read; the message must not contain a password.
        """

    def wrap(self, connection: Any) -> DriverSession:
        """Make a session for a connection that the caller gave; pqcore uses the session for one call, or keeps it.

        State that must outlive the session, such as names of prepared statements, belongs on the connection.
        ``connection`` is the driver's own object. If the caller gave a proxy around that object, see
        `pqcore.backend.DriverSession.through`.
        """

    def acquire(self, pool: Any) -> DriverSession:
        """Borrow a connection of the caller's pool (capability POOL).

        Wait as long as the pool makes its own users wait, which may be no time at all. pqcore repeats the call after a
        `PoolTimeout`, until the ``pool_timeout`` of the `PQ` is over.

        Raises:
            pqcore.errors.PoolTimeout: No connection became free in time; the message begins with
                `pqcore.backend.POOL_EXHAUSTED`.
            pqcore.errors.Closed: The pool is closed; the message is `pqcore.backend.POOL_CLOSED`.
        """

    def release(self, pool: Any, session: DriverSession) -> None:
        """Give a connection back to the pool, even a broken one (capability POOL)."""

    def connect_like(self, pool: Any) -> DriverSession | None:
        """Open another connection with the pool's parameters, for LISTEN.

        Return None if the parameters are unknown (capability POOL).
        """

    def pool_size(self, pool: Any) -> int:
        """Return the largest number of connections of the caller's pool.

        Only a driver that needs several round trips for one statement, for example to prepare it and then to execute
        it, needs this method. If all clients of the server share one session, the round trips of two connections may
        mix, so the core refuses a pool of more than one connection. May be left out for other drivers.
        """

    def close_connection(self, connection: Any) -> None:
        """Close a connection of the driver, whether the backend or the caller opened it."""

    def close_pool(self, pool: Any) -> None:
        """Close a pool (capability POOL)."""


class AsyncBackend(Protocol):
    """The maker of sessions, for an asynchronous driver: like `Backend`, but awaited."""

    @property
    def errors(self) -> tuple[type[BaseException], ...]: ...
    def wrap(self, connection: Any) -> AsyncDriverSession: ...
    def pool_size(self, pool: Any) -> int: ...
    async def connect(self, dsn: str) -> AsyncDriverSession: ...
    async def acquire(self, pool: Any) -> AsyncDriverSession: ...
    async def release(self, pool: Any, session: Any) -> None: ...
    async def connect_like(self, pool: Any) -> AsyncDriverSession | None: ...
    async def close_connection(self, connection: Any) -> None: ...
    async def close_pool(self, pool: Any) -> None: ...


PROXIES = 10
"""The largest number of nested proxies that `layers` looks through."""


def layers(target: Any) -> Iterator[Any]:
    """Iterate over an object, the object in its ``__wrapped__``, and so on, up to the innermost object.

    Tracers wrap connections, cursors and pools in proxies with this attribute.

    Args:
        target: The object.
    """
    yield target
    for _ in range(PROXIES):
        try:
            target = target.__wrapped__
        except (AttributeError, RuntimeError):  # not a proxy, or a proxy that is not bound at this moment
            return
        yield target


def bare(target: Any) -> Any:
    """Return the innermost of an object's `layers`: the driver's own connection, cursor or pool.

    Args:
        target: The object, or a proxy around it.
    """
    *_, innermost = layers(target)
    return innermost


def session_over(wrap: Callable[[Any], _S], connection: Any) -> _S:
    """Make a session for a connection; if a proxy wraps the connection, tell the session about the proxy.

    Args:
        wrap: A function that makes a session for the driver's own connection: `Backend.wrap`.
        connection: The connection or proxy that the caller, a pool or the driver's patched ``connect`` gave.
    """
    own = bare(connection)
    session = wrap(own)
    if own is not connection and (through := getattr(session, "through", None)) is not None:
        through(connection)
    return session


CONNECT_TIMEOUT = 10
"""Seconds that `Backend.connect` may take: without a limit, it could wait forever for a server that never answers."""
WHO = plain("who", "SELECT pg_backend_pid(), version()")
"""The statement with which `DriverSession.direct` finds out which server answers."""
ABORTED = "the transaction was rolled back, because a statement in it had failed"
"""The message that a session's ``commit`` raises after a failed statement."""
POOL_CLOSED = "the connection pool is closed: give an open one"
"""The message that `Backend.acquire` raises for a closed pool."""
POOL_EXHAUSTED = (
    "the connection pool is exhausted: give it more connections, or look for transactions that are held open"
)
"""The beginning of the message that `Backend.acquire` raises if no connection of the pool became free in time."""


def connect_timeout_default(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the libpq parameter for the connection timeout, unless the caller or the environment has set it."""
    said = "connect_timeout" in parameters or "PGCONNECT_TIMEOUT" in os.environ
    return {} if said else {"connect_timeout": CONNECT_TIMEOUT}


def encoding_default(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the libpq parameter that lets the connection send and read any text, unless the caller has set it.

    Without this parameter, the connection uses the database's encoding, which may lack letters, or be SQL_ASCII.
    """
    said = "client_encoding" in parameters or "PGCLIENTENCODING" in os.environ
    return {} if said else {"client_encoding": "UTF8"}


class AutocommitSession:
    """A base class for sessions of blocking drivers whose connections have an attribute ``autocommit``.

    Between `enter` and `leave` an idle connection is in autocommit. A transaction begins in the driver's own way, with
    autocommit off; its end switches autocommit on again. The code allows for an interrupt between any two lines.

    A subclass adds the other methods of `DriverSession`, and these:

    Attributes:
        aborted: The driver's exception class for SQLSTATE 25P02.
    """

    connection: Any
    aborted: type[Exception]
    # Whether `enter` switched the connection to autocommit.
    _switched = False
    # Whether `begin` was called, even if the driver sends BEGIN only with the next statement.
    _begun = False
    # Whether autocommit is off because `begin` switched it off.
    _flipped = False

    def in_transaction(self) -> bool:
        raise NotImplementedError

    def usable(self) -> bool:
        raise NotImplementedError

    def _failed(self) -> bool:
        """Return whether a statement of the open transaction failed."""
        raise NotImplementedError

    def _switch(self, *, autocommit: bool) -> None:
        """Switch the connection's autocommit while no transaction is open."""
        self.connection.autocommit = autocommit

    def _commit_failed(self, exc: BaseException) -> None:
        """Clean up after a failed commit, if the driver does not."""

    def enter(self) -> None:
        if not self.connection.autocommit and not self.in_transaction():
            self._switched = True  # set before the switch, because an interrupt may come between the two lines
            self.connection.autocommit = True

    def leave(self) -> None:
        if self._switched:
            self.connection.autocommit = False
            self._switched = False

    def begin(self) -> None:
        self._begun = self._flipped = True  # set before the switch: an interrupt may come between the two lines
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
    """An `asyncio.Event` with a timeout, which wakes the waiters of one event loop without a task for each wait."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: list[asyncio.Future[None]] = []

    def set(self) -> None:
        """Wake all waiting tasks; tasks that wait later return immediately, until `clear`."""
        self._is_set = True
        for waiter in self._waiters:
            _settle(waiter)

    def clear(self) -> None:
        """Make later callers of `wait` wait again."""
        self._is_set = False

    async def wait(self, seconds: float) -> bool:
        """Wait until the signal is set, for at most ``seconds``; return whether it is set."""
        if not self._is_set:
            from asyncio import get_running_loop  # asyncio takes long to import, and blocking drivers do not need it

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
    """A sorter of a connection's notifications: some belong to pqcore's sessions, and the rest to the caller.

    Several sessions may share a connection, if a caller gives it to more than one `PQ`.

    Args:
        rest: A function that takes each notification to which no session listens; None to drop them.
    """

    def __init__(self, rest: Callable[[Any], object] | None = None) -> None:
        self._rest = rest
        self._boxes: WeakKeyDictionary[object, tuple[set[str], list[str]]] = WeakKeyDictionary()

    def listen(self, session: object, channel: str) -> None:
        """Keep the notifications on a channel for a session."""
        self._boxes.setdefault(session, (set(), []))[0].add(channel)

    def unlisten(self, session: object, channels: Sequence[str]) -> list[str]:
        """Stop keeping notifications for a session, and return the channels to which no other session listens."""
        self._boxes.setdefault(session, (set(), []))[0].difference_update(channels)
        kept = set().union(*(wanted for wanted, _ in self._boxes.values()))
        return [channel for channel in channels if channel not in kept]

    def wants(self, channel: str) -> bool:
        """Return whether a session listens to a channel."""
        return any(channel in wanted for wanted, _ in self._boxes.values())

    def put(self, channel: str, notification: object = None) -> None:
        """Store a notification for the sessions that listen, or pass it to ``rest``."""
        taken = False
        for wanted, arrived in self._boxes.values():
            if channel in wanted:
                arrived.append(channel)
                taken = True
        if not taken and self._rest is not None:
            self._rest(notification)

    def take(self, session: object) -> list[str]:
        """Return the channels that were notified since the last call."""
        _, arrived = self._boxes.get(session, (None, []))
        taken = arrived.copy()
        del arrived[: len(taken)]
        return taken


def shutdown_socket(fileno: int) -> None:
    """Shut a socket down in both directions, so that every thread that waits on it reads the end of the stream."""
    duplicate = socket.socket(fileno=os.dup(fileno))
    with duplicate, suppress(OSError):  # the socket is not connected any more
        duplicate.shutdown(socket.SHUT_RDWR)


def wait_readable(fileno: int, seconds: float = 0) -> bool:
    """Return whether a socket becomes readable within ``seconds``.

    An idle connection is readable only if a notification, a message that the server ends the connection, or the end of
    the stream has arrived. poll(2) is used because select(2) fails for file descriptors from 1,024 on.
    """
    if seconds == 0:  # this check must be cheap, because it precedes each use of a connection
        try:
            return bool(_polls(fileno).poll(0))
        except RuntimeError:  # another thread polls at the same moment
            pass
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


@lru_cache(maxsize=1_000)
def _polls(fileno: int) -> select.poll:
    # A poll object refers to the number of a file descriptor. So the cached object also works when another socket has
    # this number later.
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return poll
