"""A driver's session in the form that operations use: its methods are awaited, and raise only `PQError`.

The methods of a blocking session become coroutines that never suspend; those of an asynchronous session are awaited.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pqcore.backend import AsyncDriverSession, DriverSession, Row
from pqcore.db.bounded_call import bounded
from pqcore.db.driver_errors import READ_ONLY, is_refusal, translate
from pqcore.db.isolation import ABOVE, BEGIN, COMMIT, DEFAULT, LOWER, NOT_SERIALIZABLE, ON_ROWS, ROLLBACK, Defaults
from pqcore.db.runtime import Lock
from pqcore.db.shared_session import shares_session
from pqcore.errors import (
    ConnectionLost,
    DatabaseError,
    OutcomeUnknown,
    PQError,
    StatementCancelled,
    TransactionAborted,
)
from pqcore.sql.dialect import Dialect
from pqcore.sql.statement import Query, writes

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger("pqcore")

T = TypeVar("T")
Errors: TypeAlias = tuple[type[BaseException], ...]

LEAVING = 0.25
"""Seconds that an asynchronous call may take to end after its connection was broken off; then it is abandoned."""
UNLISTENED = 20
"""The largest number of channels that one call gives up."""
ASKING = 5.0
"""Seconds that a cancel request may take."""
# This semaphore limits the threads that send cancel requests: a cancel request may hang like the connection itself.
_asking = threading.BoundedSemaphore(8)
NO_ANSWER = "the server did not answer in time (answer_timeout), and was asked to cancel the statement"
UNKNOWN = "it may have taken effect, or not: check before you repeat it"


class Session:
    """One connection, as operations use it.

    Args:
        driver: The backend's session.
        sql: The statements, in the paramstyle of the driver.
        errors: The exceptions that the driver raises.
        suspends: Whether the driver's methods return awaitables.
        defaults: The known default settings of this connection and similar ones.
        limit: Seconds that a call may wait for the server's answer; None for no limit. `pqcore.db.watchdog` enforces
            the limit.
    """

    def __init__(
        self,
        driver: DriverSession | AsyncDriverSession,
        sql: Dialect,
        errors: Errors,
        *,
        suspends: bool,
        defaults: Defaults | None = None,
        limit: float | None = None,
    ) -> None:
        self.driver: Any = driver
        self.defaults = defaults or Defaults()
        self.sql = sql
        self._errors = errors
        self.suspends = suspends
        self._bounds = suspends and not getattr(driver, "ends_when_cancelled", False)
        # Whether a call of the driver may cancel its own task, as `asyncio.timeout` does.
        self.cancels_task = bool(getattr(driver, "cancels_task", True))
        self.limit = limit
        self._loop: asyncio.AbstractEventLoop | None = None
        if suspends:
            import asyncio  # asyncio takes long to import, and sessions of threads do not need it

            with suppress(RuntimeError):  # a caller's connection may be wrapped before the loop runs
                self._loop = asyncio.get_running_loop()
        # The start time of the call for which a cancel request was sent, and of the call whose connection was closed.
        self._asked: float | None = None
        self._broken_off: float | None = None
        # What the running call of an asynchronous driver waits for, and the start time of the call that was abandoned.
        self.waited_for: Any = None
        self.left_call: float | None = None
        self.planned_at = monotonic()
        # The start time and the name of the running call; None between calls.
        self.busy_since: float | None = None
        self.statement = ""
        # When the server last answered a statement.
        self.last_reply_at = self.planned_at
        # Whether it is known that no pooler is between pqcore and the server, so that no check is needed.
        self.known_direct = False
        # Whether all clients of the server share one session, as `direct` found.
        self.shares_session = False
        # Whether the caller gave the connection for this operation, so that its mode must not change.
        self.caller_owned = False
        # Whether pqcore opened the connection, so that no other code closes it.
        self.opened = False
        # The pool's record of the session, and the token with which the pool counts the session.
        self.pool: Any = None
        self.place: object = None
        # A forked child has a copy of the connection, and must leave it to the parent.
        self.process = os.getpid()
        # The thread whose transaction block uses the session.
        self.block_of: int | None = None
        # Whether the session is the one used for LISTEN.
        self.listens = False
        # Whether a statement commits by itself, because no transaction is open.
        self.autocommit = True
        # Whether `begin_own` began the open transaction, so that it holds only pqcore's statements.
        self.own = False
        # Whether settings may last for the whole connection: pqcore opened it, and no pooler lends it to other clients.
        self.lasting = False
        # The session's default isolation level before pqcore lowered it to READ COMMITTED; None if pqcore left it.
        self.lowered: str | None = None
        # The SAVEPOINT to send with the next statement; None if there is none.
        self.ahead: Query | None = None
        # The lock held while a task uses this session inside a transaction block.
        self.lock: Lock | None = None
        # Whether an interrupt left the session in an unknown state.
        self.state_unknown = False
        # Whether another session found that the server takes no more writes, so that this session is not used again.
        self.left = False
        # Whether the server refused to write on this session.
        self.read_only = False

    @contextmanager
    def limited(self, limit: float | None) -> Iterator[None]:
        """Give the calls in the block another limit."""
        before, self.limit = self.limit, limit
        try:
            yield
        finally:
            self.limit = before

    def in_transaction(self) -> bool:
        return bool(self.driver.in_transaction())

    def cursor(self, options: Mapping[str, Any]) -> Any:
        """Return a cursor of the driver, for the user's statements.

        Args:
            options: The driver's options for the cursor.

        Raises:
            ConnectionLost: The connection was closed at this moment.
        """
        try:
            return self.driver.cursor(**options)
        except self._errors as exc:
            if self.usable():
                raise
            raise translate(exc, "cursor", lost=True) from exc

    def usable(self) -> bool:
        return bool(self.driver.usable())

    async def execute(self, query: Query, parameters: Sequence[object] = ()) -> Sequence[Row]:
        if self.ahead is not None:
            return await self._execute_behind(self.ahead, query, parameters)
        if self.defaults.isolation is not None and self.lowered is None and self._commits_alone():
            return await self._at_read_committed(query, parameters)
        # The next lines inline `_call`, because nearly all time is spent in them.
        self.statement = query.name
        began = self.busy_since = monotonic()
        try:
            rows: Any = self.driver.execute(query, parameters)
            if self.suspends:
                rows = await (bounded(rows, self) if self._bounds else rows)
        except PQError:
            raise
        except self._errors as exc:
            error = self._told(exc, query.name, commits=self._commits(query))
            if not await self._is_too_high(error):
                raise error from exc
        else:
            if self._asked is not None:
                self._answered_late(query.name, commits=began == self._asked and self._commits(query))
            self.last_reply_at = monotonic()
            return rows  # type: ignore[no-any-return]
        finally:
            self.busy_since = None
        return await self._at_read_committed(query, parameters)

    async def _execute_behind(self, ahead: Query, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        """Run a statement behind a savepoint, in one round trip if the driver can send both together.

        If the savepoint was not made, `ahead` stays set. This happens if the transaction is aborted, or if the driver
        cannot adapt a value and so sends nothing.
        """
        if not hasattr(self.driver, "execute_behind"):
            self.ahead = None
            try:
                await self.execute(ahead)
            except BaseException:
                self.ahead = ahead
                raise
            return await self.execute(query, parameters)
        self.ahead = None
        try:
            rows = await self._call(query.name, self.driver.execute_behind, ahead, query, parameters)
        except PQError as exc:
            if isinstance(exc, TransactionAborted) or getattr(exc, "sqlstate", None) is None:
                self.ahead = ahead
            raise
        return rows  # type: ignore[no-any-return]

    async def _is_too_high(self, error: Exception) -> bool:
        """Return whether a statement failed because of its isolation level, and can be repeated because it ran alone.

        At READ COMMITTED, a single statement has no serialization failure, unless a trigger raises one.
        """
        if getattr(error, "sqlstate", None) != NOT_SERIALIZABLE or not self.autocommit or self.in_transaction():
            return False
        [[level]] = await self._call("isolation", self.driver.execute, DEFAULT, ())
        self.defaults.learn(level)
        self.lowered = None
        return level in ABOVE

    def _commits_alone(self) -> bool:
        """Return whether a statement commits by itself: the caller has no transaction open on the connection either."""
        return self.autocommit and not self.caller_owned and not self.in_transaction()

    async def _at_read_committed(self, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        """Run a statement that commits by itself, although the default isolation level is above READ COMMITTED."""
        if self.lasting:
            self.lowered = self.defaults.isolation
            await self._call("isolation", self.driver.execute, LOWER, ())
            return await self.execute(query, parameters)
        if ON_ROWS.match(query.sql) is None:
            rows: Sequence[Row] = await self._call(query.name, self.driver.execute, query, parameters)
            return rows
        await self.begin_own()
        try:
            rows = await self.execute(query, parameters)
        except BaseException:
            if self.usable():
                await self.rollback()
            raise
        await self.commit()
        return rows

    def _commits(self, query: Query) -> bool:
        """Return whether a statement writes, and commits by itself."""
        return self.autocommit and not self.caller_owned and writes(query.sql)

    async def enter(self) -> None:
        await self._call("checkout", self.driver.enter)

    async def leave(self) -> None:
        if self.usable():
            await self._call("checkin", self.driver.leave)

    async def alive(self) -> bool:
        try:
            return bool(await self._call("ping", self.driver.alive))
        except PQError:
            return False

    def begin(self) -> Awaitable[None]:
        """Begin a transaction that may include the user's statements, at the isolation level of the user's settings."""
        self.autocommit = False
        if self.lowered is not None:
            return self._begin_at(self.lowered)
        return self._call("begin", self.driver.begin)

    async def _begin_at(self, level: str) -> None:
        await self._call("begin", self.driver.begin)
        await self._call("begin", self.driver.execute, ABOVE[level], ())

    async def begin_own(self) -> None:
        """Begin a transaction that holds only pqcore's statements, at READ COMMITTED, whatever the settings.

        BEGIN is sent as a statement, because connections of psycopg and psycopg2 have an isolation level of their own.
        """
        self.autocommit = False
        self.own = True
        await self._call("begin", self.driver.execute, BEGIN, ())

    async def commit(self) -> None:
        self.autocommit = True
        if self.own:
            self.own = False
            await self._call("commit", self.driver.execute, COMMIT, ())
        else:
            await self._call("commit", self.driver.commit)
        self.last_reply_at = monotonic()

    async def rollback(self) -> None:
        self.autocommit = True
        if self.own:
            self.own = False
            await self._call("rollback", self.driver.execute, ROLLBACK, ())
        else:
            await self._call("rollback", self.driver.rollback)

    async def listen(self, channel: str) -> None:
        await self._call("listen", self.driver.listen, channel)

    async def unlisten(self, channels: Sequence[str]) -> None:
        """UNLISTEN from channels, if the driver can do that."""
        if hasattr(self.driver, "unlisten"):
            for start in range(0, len(channels), UNLISTENED):  # a driver may need a round trip for each channel
                await self._call("unlisten", self.driver.unlisten, channels[start : start + UNLISTENED])

    async def wait(self, seconds: float) -> None:
        # This method does not set `busy_since`, because another call may be running, and its `busy_since` must stay.
        try:
            waiting: Any = self.driver.wait(seconds)
            if self.suspends:
                await waiting
        except PQError:
            raise
        except self._errors as exc:
            raise self._told(exc, "wait", commits=False) from exc

    async def notifications(self) -> list[str]:
        return list(await self._call("notifications", self.driver.notifications))

    async def direct(self) -> bool:
        """Return whether the server's session belongs to this connection alone.

        Return False if the backend finds a pooler, or if all clients of the server share one session.
        """
        if self.known_direct or not hasattr(self.driver, "direct"):
            return True
        direct = bool(await self._call("direct", self.driver.direct))
        self.shares_session = shares_session(getattr(self.driver, "server_version", ""))
        return direct and not self.shares_session

    async def writes(self) -> bool:
        """Return whether the server takes writes on this session; it can be asked only between transactions.

        Return True also if the session cannot ask the server now, or if the server answers with an error.
        """
        if not self.usable() or self.in_transaction():
            return True
        try:
            [[read_only]] = await self.execute(self.sql.read_only)
        except PQError:
            return True
        return not read_only

    async def close(self) -> None:
        if self.process != os.getpid():
            return
        await self._call("close", self.driver.close)
        self.opened = False

    def drop(self) -> None:
        """Close the unused connection from any thread, without waiting."""
        if self.process != os.getpid():
            return
        self.opened = False
        with suppress(*self._errors):
            getattr(self.driver, "drop", self.driver.abort)()

    def __del__(self) -> None:
        if getattr(self, "opened", False):  # an interrupt or the end of the event loop dropped all references
            self.drop()

    def abort(self) -> None:
        """Close the connection even if another thread uses it: the call of the other thread then fails."""
        if self.process != os.getpid():
            return
        self.state_unknown = True
        with suppress(*self._errors):  # the thread that uses the connection may be closing it now
            self.driver.abort()
        if self._bounds and (since := self.busy_since) is not None:
            self._in_loop(self._leave_later, since)

    def _leave_later(self, since: float) -> None:
        import asyncio

        asyncio.get_running_loop().call_later(LEAVING, self._leave_call, since)

    def _leave_call(self, since: float) -> None:
        """Abandon the call that began at ``since``, if the driver did not end it.

        A driver that gives pqcore no socket to shut down may never end the call.
        """
        if self.busy_since == since and (cancel := getattr(self.waited_for, "cancel", None)) is not None:
            self.left_call = since
            cancel()

    # Methods that the watchdog calls from its thread

    def break_off(self, since: float) -> bool:
        """Close the connection if the call that began at ``since`` is still running.

        The session of an event loop is closed in that loop, after the loop had time to read what arrived.

        Returns:
            True if the call is still running, and was not broken off before.
        """
        if self._broken_off == since or self.busy_since != since:
            return False
        self._broken_off = since
        if not self.suspends:
            self._break_off(since)
        else:
            self._in_loop(self._break_off_later, since)
        return True

    def _break_off(self, since: float) -> None:
        if self.busy_since == since:
            waited = monotonic() - since
            logger.warning(
                "closing a connection, because the server has not answered for %.1f seconds (%s)",
                waited,
                self.statement,
            )
            self.abort()

    def busy(self) -> bool:
        """Return whether a statement is running, including the caller's own, according to the driver."""
        return self.busy_since is not None or (hasattr(self.driver, "busy") and bool(self.driver.busy()))

    def break_off_idle(self) -> None:
        """Close the connection if no statement is running on it."""
        if not self.suspends:
            self.abort()
        else:
            self._in_loop(self._break_off_if_idle, 0.0)

    def _break_off_if_idle(self, _: float) -> None:
        if self.busy_since is None:
            self.abort()

    def ask_to_cancel(self, since: float) -> None:
        """Ask the server, once, to cancel the statement of the call that began at ``since``."""
        if self._asked == since or self.busy_since != since or not hasattr(self.driver, "cancel"):
            return
        self._asked = since
        if self.suspends:
            self._in_loop(self._ask_in_loop, since)
        elif _asking.acquire(blocking=False):
            threading.Thread(target=self._ask_in_thread, name="pqcore-cancel", daemon=True).start()

    def _in_loop(self, call: Callable[[float], object], since: float) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(call, since)

    def _break_off_later(self, since: float) -> None:
        import asyncio

        # The delay lets the loop turn twice, so that it reads an answer that had already arrived.
        asyncio.get_running_loop().call_later(0.05, self._break_off, since)

    def abort_if_busy(self, since: float | None) -> None:
        """Close the connection if the call that began at ``since`` is still running."""
        if since is not None and self.busy_since == since:
            self.abort()

    def _ask_in_thread(self) -> None:
        try:
            with suppress(*self._errors):
                self.driver.cancel()
        finally:
            _asking.release()

    def _ask_in_loop(self, since: float) -> None:
        import asyncio

        async def ask() -> None:
            with suppress(*self._errors, asyncio.TimeoutError):
                await asyncio.wait_for(self.driver.cancel(), ASKING)

        if self.busy_since == since:
            self._asking = asyncio.ensure_future(ask())  # the reference keeps the task alive: a loop holds tasks weakly

    def _answered_late(self, doing: str, *, commits: bool) -> None:
        """Handle an answer that came although the server was asked to cancel the statement.

        The cancel request may reach the next statement, so the connection is not used again.

        Raises:
            OutcomeUnknown: The statement was a commit. If a commit that waits for a replica is cancelled, the server
                answers that the commit is done, although the replica may lack it.
        """
        self._asked = None
        self.state_unknown = True
        if commits:
            raise OutcomeUnknown(f"{doing}: {NO_ANSWER}: {UNKNOWN}")

    def _told(self, exc: BaseException, doing: str, *, commits: bool) -> Exception:
        """Return pqcore's error for a driver's exception.

        Args:
            exc: The driver's exception.
            doing: The name of the call.
            commits: Whether the call commits; then, if the connection is lost before the answer, the outcome is
                unknown.
        """
        usable = self.usable()
        error = translate(exc, doing, lost=not usable)
        if isinstance(error, DatabaseError) and error.sqlstate == READ_ONLY:
            self.state_unknown = self.read_only = True
        if self._asked is not None:
            self._asked = None
            self.state_unknown = True  # the cancel request may reach the next statement
            if isinstance(error, StatementCancelled):
                error = StatementCancelled(f"{error}: {NO_ANSWER}", error.sqlstate)
        if commits and isinstance(error, ConnectionLost) and not (usable and is_refusal(error)):
            return OutcomeUnknown(f"{error}: {UNKNOWN}", error.sqlstate)
        return error

    async def _call(self, doing: str, method: Callable[..., Any], *arguments: object) -> Any:
        self.statement = doing
        began = self.busy_since = monotonic()
        try:
            result: Any = method(*arguments)
            if self.suspends:
                result = await (bounded(result, self) if self._bounds else result)
        except PQError:  # already pqcore's error: some PQErrors are OSErrors, and so are some drivers' errors
            raise
        except self._errors as exc:
            raise self._told(exc, doing, commits=doing == "commit") from exc
        finally:
            self.busy_since = None
        if self._asked is not None:
            self._answered_late(doing, commits=began == self._asked and doing == "commit")
        return result
