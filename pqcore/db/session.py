"""A driver's session as operations see it: awaitable, raising only `PQError`.

A blocking session's methods become coroutines that never suspend; an
asynchronous one's are awaited.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pqcore.backend import AsyncDriverSession, DriverSession, Row
from pqcore.db.bounded_call import bounded
from pqcore.db.driver_errors import READ_ONLY, is_refusal, translate
from pqcore.db.isolation import ABOVE, BEGIN, COMMIT, DEFAULT, LOWER, NOT_SERIALIZABLE, ON_ROWS, ROLLBACK, Defaults
from pqcore.db.runtime import Lock
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

UNLISTENED = 20
"""Channels that are given up in one call, at most."""
ASKING = 5.0
"""Seconds that a cancel request may take."""
_asking = threading.BoundedSemaphore(8)  # cancel requests under way, in threads: one may hang as its connection did
NO_ANSWER = "the server had not answered for long, and was asked to cancel it; see answer_timeout"
UNKNOWN = "it may have taken effect, or not: look before you do it again"


class Session:
    """One connection, to an operation.

    Args:
        driver: The backend's session.
        sql: The statements, as the driver wants them.
        errors: What its driver raises.
        suspends: Whether its methods return awaitables.
        defaults: What is known of the defaults of this connection, and of others like it.
        limit: Seconds that a call may wait for the server's answer; None for no limit. See `pqcore.db.watchdog`.
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
        # Whether a call of the driver may cancel the task that it runs in, as `asyncio.timeout` does.
        self.cancels_task = bool(getattr(driver, "cancels_task", True))
        self.limit = limit
        self._loop: asyncio.AbstractEventLoop | None = None
        if suspends:
            import asyncio  # takes long to import: sessions of threads do without

            with suppress(RuntimeError):  # a connection of the caller's may be wrapped before the loop runs
                self._loop = asyncio.get_running_loop()
        # The call for which a cancel request was sent, and the call whose connection was broken off: when each began.
        self._asked: float | None = None
        self._broken_off: float | None = None
        self.planned_at = time.monotonic()
        # When the call that is under way began, and what it is; None between calls.
        self.busy_since: float | None = None
        self.statement = ""
        # When it answered a statement last.
        self.last_reply_at = self.planned_at
        # Whether it is known to be one session of the server's, so that no pooler must be looked for.
        self.known_direct = False
        # Whether the caller handed the connection over for this operation, to be left in its mode.
        self.caller_owned = False
        # Whether we opened it: nobody else closes it.
        self.opened = False
        # Where its pool keeps it, and what counts it there.
        self.pool: Any = None
        self.place: object = None
        # A forked child has a copy of it, and leaves it to its parent.
        self.process = os.getpid()
        # The thread in whose transaction block it is used.
        self.block_of: int | None = None
        # Whether it is the one that is listened on.
        self.listens = False
        # Whether a statement commits by itself, as no transaction is open.
        self.autocommit = True
        # Whether the open transaction was begun by `begin_own`: it holds statements of pqcore's only.
        self.own = False
        # Whether settings may be made on it for its whole life: pqcore opened it, and no pooler lends it to others.
        self.lasting = False
        # The default isolation level that it had, once pqcore has lowered it to READ COMMITTED.
        self.lowered: str | None = None
        # What has to be done once the open transaction, a block of pqcore's, is committed; None in any other.
        self.owed: list[Callable[[Session], Awaitable[None]]] | None = None
        # Whether the open transaction goes on seeing what was there when it began, whatever is committed meanwhile.
        self.late = False
        # The SAVEPOINT that is sent with the next statement; None if none is.
        self.ahead: Query | None = None
        # Taken by who uses it within a transaction block.
        self.lock: Lock | None = None
        # Interrupted in the middle of something: nobody knows what state it is in.
        self.state_unknown = False
        # Its server takes no more writes, which was found on another session: it is not used again.
        self.left = False
        # Whether the server refused to write on it.
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
        """Return a cursor of the driver's, for statements of the user's.

        Args:
            options: For the driver.

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
        if self.defaults.isolation is not None and self.lowered is None and self.autocommit and not self.caller_owned:
            return await self._at_read_committed(query, parameters)
        # As `_call` does, with nothing between: it is what nearly all time goes through.
        self.statement = query.name
        began = self.busy_since = time.monotonic()
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
            self.last_reply_at = time.monotonic()
            return rows  # type: ignore[no-any-return]
        finally:
            self.busy_since = None
        return await self._at_read_committed(query, parameters)

    async def _execute_behind(self, ahead: Query, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        """Run a statement behind a savepoint: in one round trip, where the driver can send the two together.

        `ahead` stays set if there is no savepoint: an aborted transaction refuses it, and a driver sends nothing if it
        cannot adapt a value.
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
        """Whether a statement failed for the isolation level that it ran at, and can be run again: it was alone.

        At READ COMMITTED no single statement has a serialization failure, but for one that a trigger raises.
        """
        if getattr(error, "sqlstate", None) != NOT_SERIALIZABLE or not self.autocommit or self.in_transaction():
            return False
        [[level]] = await self._call("isolation", self.driver.execute, DEFAULT, ())
        self.defaults.learn(level)
        self.lowered = None
        return level in ABOVE

    async def _at_read_committed(self, query: Query, parameters: Sequence[object]) -> Sequence[Row]:
        """Run a statement that commits by itself, where the default isolation level is above READ COMMITTED."""
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
        """Whether a statement commits by itself what it writes."""
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
        """Begin a transaction for statements of the user's, too: at the level that their settings give."""
        self.autocommit = False
        if self.lowered is not None:
            return self._begin_at(self.lowered)
        return self._call("begin", self.driver.begin)

    async def _begin_at(self, level: str) -> None:
        await self._call("begin", self.driver.begin)
        await self._call("begin", self.driver.execute, ABOVE[level], ())

    async def begin_own(self) -> None:
        """Begin a transaction that holds statements of pqcore's only: at READ COMMITTED, whatever the settings.

        As a statement, not by the driver's own method: connections of psycopg's and psycopg2's have a level.
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
        self.last_reply_at = time.monotonic()

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
        """Listen to channels no more, where the driver can do that."""
        if hasattr(self.driver, "unlisten"):
            for start in range(0, len(channels), UNLISTENED):  # a driver may need a round trip for each
                await self._call("unlisten", self.driver.unlisten, channels[start : start + UNLISTENED])

    async def wait(self, seconds: float) -> None:
        # Leaves no mark: another call may be under way on it meanwhile, whose mark would go with it.
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
        """Whether no pooler is in between, as far as the backend tells."""
        if self.known_direct or not hasattr(self.driver, "direct"):
            return True
        return bool(await self._call("direct", self.driver.direct))

    async def writes(self) -> bool:
        """Whether the server takes writes on it, between transactions; true if it cannot be asked."""
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
        """Close the connection without waiting, as nobody uses it; from whatever thread."""
        if self.process != os.getpid():
            return
        self.opened = False
        with suppress(*self._errors):
            getattr(self.driver, "drop", self.driver.abort)()

    def __del__(self) -> None:
        if getattr(self, "opened", False):  # lost on its way, by an interrupt or with its event loop
            self.drop()

    def abort(self) -> None:
        """Break the connection off, whoever uses it: what is under way on it fails."""
        if self.process != os.getpid():
            return
        self.state_unknown = True
        with suppress(*self._errors):  # who uses it may find it lost, and close it, at this moment
            self.driver.abort()

    # For the watchdog, from its thread

    def break_off(self, since: float) -> bool:
        """Break the connection off if the call that began at ``since`` is still under way.

        A session of an event loop is broken off in that loop, after the loop had time to read what arrived.

        Returns:
            Whether this is the first attempt for that call.
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
            waited = time.monotonic() - since
            logger.warning("no answer on a connection for %.1f seconds (%s): it is broken off", waited, self.statement)
            self.abort()

    def busy(self) -> bool:
        """Whether a statement is under way, the caller's own ones included, as far as the driver tells."""
        return self.busy_since is not None or (hasattr(self.driver, "busy") and bool(self.driver.busy()))

    def break_off_idle(self) -> None:
        """Break the connection off if nothing is under way on it."""
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
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(call, since)

    def _break_off_later(self, since: float) -> None:
        import asyncio

        # Twice round the loop, so that an answer that lay there unread is read before.
        asyncio.get_running_loop().call_later(0.05, self._break_off, since)

    def abort_if_busy(self, since: float | None) -> None:
        """Break the connection off if the call that began at ``since`` is still under way."""
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
            self._asking = asyncio.ensure_future(ask())  # kept: a loop holds its tasks weakly

    def _answered_late(self, doing: str, *, commits: bool) -> None:
        """Judge an answer that came though the server was asked to cancel the statement.

        The cancel request may reach the next statement, so the connection is not used again.

        Raises:
            OutcomeUnknown: It was a commit: one that waits for a replica, and is cancelled, is answered as done.
        """
        self._asked = None
        self.state_unknown = True
        if commits:
            raise OutcomeUnknown(f"{doing}: {NO_ANSWER}: {UNKNOWN}")

    def _told(self, exc: BaseException, doing: str, *, commits: bool) -> Exception:
        """What a driver's exception means.

        Args:
            exc: The exception.
            doing: What was under way.
            commits: Whether that commits: if the connection is lost before it answers, nobody knows whether it did.
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
        began = self.busy_since = time.monotonic()
        try:
            result: Any = method(*arguments)
            if self.suspends:
                result = await (bounded(result, self) if self._bounds else result)
        except PQError:  # which may be an OSError too
            raise
        except self._errors as exc:
            raise self._told(exc, doing, commits=doing == "commit") from exc
        finally:
            self.busy_since = None
        if self._asked is not None:
            self._answered_late(doing, commits=began == self._asked and doing == "commit")
        return result
