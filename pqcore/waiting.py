"""Waiting for notifications: one listening connection a process, shared by all queues.

A notification is a hint.  Every wait is bounded, and a waiter looks at the table
whenever it ends, so one that is lost costs time and no job.  Losing the
listening connection wakes everybody; the next to wait opens another.

A put notifies only where somebody waits.  To be waited on, a channel is registered:
LISTEN, and a shared advisory lock of the listening session's, which the trigger of a
put looks for.  After that the waiter looks again, and waits.  What is committed after
that look notifies, if its INSERT saw the lock:

* one that ran while the lock was there is heard, whenever it commits;
* one that ran before, and commits after the look, is not.  If it commits by itself,
  milliseconds lie between the two; so whoever drew a ticket within `SETTLE` seconds
  of the registration looks once more.  If its transaction is longer it is found by
  polling.

The lock is given up when nobody has waited for `LINGER` seconds.  That counts as a
notification, and so voids the tickets drawn before: their holders look again.
Results and cancellations are notified of whether or not somebody waits; their
channels are registered alike, which costs a lock and does no harm.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from pqcore.connections import CallersConnection, CallersPool, Source, lent
from pqcore.errors import ConfigurationError, ConnectionLost, PQError
from pqcore.runtime import Background, Event, Runtime, held
from pqcore.settings import logger

if TYPE_CHECKING:
    from pqcore.sessions import CoreSession

SLICE = 1.0
"""Seconds after which the listener looks whether it is still wanted."""
PROBE = 15.0
"""Seconds of silence after which the listener asks the server whether it is still there."""
BLIND_POLL = 0.25
"""Seconds between looks while nothing can wake a waiter."""
RETRY = 1.0
"""Seconds between attempts to open a listening connection; meanwhile waiters poll."""
REFUSED = 15.0
"""Seconds until it is tried again where we could not listen, though the connection was not lost."""
SETTLE = 0.05
"""Seconds after which a put that did not see who began to wait is committed, if it commits by itself."""
LINGER = 5.0
"""Seconds for which a channel stays registered after a wait: who waits again and again does it once."""
LEFT = "its server takes no more writes"
DEAF = "LISTEN does not last on this connection (behind PgBouncer in transaction mode, give prepared=False)"

UNLIKE = "the pool does not tell how it connects, so no connection like its own can be opened to listen on"


async def _attend(session: CoreSession, channel: str) -> None:
    """Listen, and let those who put see it."""
    await session.listen(channel)
    # A statement of its own, as it asks the session whether it listens.
    if not await session.execute(session.sql.attend, session.sql.attend.bind({"channel": channel})):
        raise ConnectionLost(DEAF)


async def _nothing(session: CoreSession) -> None:
    """Do nothing with a session."""


def _told(exc: Exception) -> str:
    return str(exc) if isinstance(exc, PQError) else f"{type(exc).__name__}: {exc}"


def _unexpected(exc: Exception) -> bool:
    """Whether an exception is none that is known to come: its traceback is logged."""
    return not isinstance(exc, PQError)


class _Channels:
    """The channels that are registered, and how often each was notified."""

    def _forget(self) -> None:
        self._channels: set[str] = set()
        self._unsettled: dict[str, float] = {}  # when those who drew a ticket before are to look once more
        self._waited: dict[str, float] = {}  # when the last wait ended
        self._counts: dict[str, int] = defaultdict(int)
        self._retry_at = 0.0

    def ticket(self, channel: str) -> int | None:
        """How often the channel was notified so far; None if it is not registered.

        To be drawn before looking at the table, and given to `wait` after.
        """
        count = self._counts[channel]  # first: if the channel goes and comes again meanwhile, it has changed
        return count if channel in self._channels else None

    def _register(self, channel: str) -> None:
        now = self._waited[channel] = time.monotonic()
        self._unsettled[channel] = now + SETTLE
        self._channels.add(channel)

    def _settle(self, channel: str) -> None:
        """If the channel is no longer new, void the tickets that were drawn while it was; once."""
        at = self._unsettled.get(channel)
        if at is not None and time.monotonic() >= at and self._unsettled.pop(channel, None) is not None:
            self.wake(channel)

    def _pause(self, channel: str, seconds: float) -> float:
        """How long to wait, at most: while the channel is new, only as long as it is."""
        at = self._unsettled.get(channel)
        return seconds if at is None else max(min(seconds, at - time.monotonic()), 0.0)

    def _idle(self) -> list[str]:
        """The channels on which nobody has waited for some time, which may be in use all the same."""
        since = time.monotonic() - LINGER
        return [channel for channel in list(self._channels) if self._waited[channel] < since]

    def _drop(self, channels: Iterable[str]) -> None:
        """Take channels out, before their locks are given up; in this order, so that no ticket outlasts that."""
        for channel in channels:
            self._channels.discard(channel)
            self.wake(channel)

    def wake(self, channel: str) -> None:
        """Wake those who wait on a channel."""
        self._counts[channel] += 1


class Listener(_Channels):
    """The listening connection of a process, or of one of its event loops, and those who wait for it.

    Args:
        source: Where the connection comes from.
        runtime: How to wait.
        able: Whether we can listen at all.
    """

    def __init__(self, source: Source, runtime: Runtime, *, able: Callable[[], bool]) -> None:
        self._source = source
        self._runtime = runtime
        self._able = able
        self._over = False
        self._forget()
        self._gate = runtime.gate()
        self._session: CoreSession | None = None
        self._background: Background | None = None
        self._waiters: dict[str, set[Event]] = defaultdict(set)
        self._end: object = None
        self._refused = ""  # why it could not listen, as far as that was told
        self._heard = self._tidied = 0.0
        self._paused: dict[str, int] = {}  # how often a channel had been notified when the last pause on it ended

    async def listen(self, channel: str) -> bool:
        """Register a channel; False if that cannot be done now. Then it is to be looked again, before a wait."""
        return await held(self._gate, lambda: self._listen(channel))

    async def _listen(self, channel: str) -> bool:
        if channel in self._channels:
            return True
        if self._over or not self._able() or (self._session is None and not await self._open()):
            return False
        session = self._session
        if session is None:
            return False
        try:
            await _attend(session, channel)
            # What came with the answers may not stir who waits on the socket.
            self._pass_on(await session.notifications())
        except Exception as exc:  # noqa: BLE001 - waiters poll, whatever it is
            if session.usable():  # as when there are too many locks: all of ours are given up
                self._retry_at = time.monotonic() + REFUSED
            logger.warning("lost the listening connection: %s", _told(exc), exc_info=_unexpected(exc))
            await self._lose(session)
            return False
        except BaseException:  # what was interrupted on it is not known
            await self._lose(session)
            raise
        self._register(channel)
        return True

    async def wait(self, channel: str, ticket: int, seconds: float) -> None:
        """Wait until the channel is notified again, for at most ``seconds``."""
        event = self._runtime.event()
        waiters = self._waiters[channel]
        waiters.add(event)
        try:
            self._settle(channel)
            if self._counts[channel] == ticket:
                await event.wait(self._pause(channel, seconds))
                self._settle(channel)
        finally:
            self._waited[channel] = time.monotonic()
            waiters.discard(event)

    async def pause(self, channel: str, seconds: float) -> None:
        """Wait where the channel is not registered: for ``seconds``, or until this process wakes the channel."""
        count = self._counts[channel]
        if self._paused.get(channel, 0) == count:  # else it was woken since the last pause
            event = self._runtime.event()
            self._waiters[channel].add(event)
            try:
                await event.wait(seconds)
            finally:
                self._waiters[channel].discard(event)
        self._paused[channel] = self._counts[channel]

    async def close(self) -> None:
        """Stop listening; waiters are woken."""
        if self._background is not None:
            self._background.stop()
        await held(self._gate, self._close)  # one that is being opened is to be closed too

    async def _close(self) -> None:
        if self._session is not None:
            if not self._runtime.suspends:
                self._session.abort()  # the thread that waits on it is to notice at once
            await self._lose(self._session)

    async def end(self) -> None:
        """Stop listening, for good."""
        self._over = True
        await self.close()

    def end_from_afar(self) -> None:
        """Stop listening, for good; from another event loop than the one that listens."""
        self._over = True
        if self._session is not None:
            self._session.abort()

    async def _open(self) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        try:
            session = await self._source.listener()
        except Exception as exc:  # noqa: BLE001 - such as of a function of the caller's: waiters poll, whatever it is
            self._retry_at = time.monotonic() + RETRY
            self._warn(exc)
            return False
        if session is None:
            self._retry_at = time.monotonic() + REFUSED
            if isinstance(self._source, CallersPool):
                self._warn(ConfigurationError(UNLIKE))
            return False
        if not self._able():  # it was the first connection, and found a pooler
            await self._discard(session)
            return False
        self._refused = ""
        try:
            if self._end is None:
                self._end = await self._runtime.at_end(self.close) or True
            self._session = session
            self._background = self._runtime.start(lambda: self._follow(session))
        except BaseException:
            await self._lose(session)
            raise
        return True

    def _warn(self, exc: Exception) -> None:
        """Say that it cannot listen: once, as long as the reason is the same."""
        told = _told(exc)
        if told != self._refused:
            self._refused = told
            logger.warning("cannot listen, so waiters poll: %s", told, exc_info=_unexpected(exc))

    async def _follow(self, session: CoreSession) -> None:
        """Pass notifications on until the connection is lost or closed."""
        self._heard = self._tidied = time.monotonic()
        while self._session is session:
            try:
                await session.wait(SLICE)
                channels = await held(self._gate, lambda: self._look(session))
            except Exception as exc:  # noqa: BLE001 - waiters poll, whatever it is
                if isinstance(exc.__context__, GeneratorExit):  # the event loop was closed without ending its tasks
                    return
                logger.warning("lost the listening connection: %s", _told(exc), exc_info=_unexpected(exc))
                await held(self._gate, lambda: self._lose(session))
                return
            if channels:
                self._heard = time.monotonic()
                self._pass_on(channels)

    async def _look(self, session: CoreSession) -> list[str]:
        if self._session is not session:
            return []
        if session.left:
            raise ConnectionLost(LEFT)
        if time.monotonic() - self._heard > PROBE:
            if not await session.execute(session.sql.listening):
                raise ConnectionLost(DEAF)
            if self._source.seeks_primary and not await session.writes():
                raise ConnectionLost(LEFT)
            self._heard = time.monotonic()
        if time.monotonic() - self._tidied > SLICE:
            await self._leave(session)
            self._tidied = time.monotonic()
        return await session.notifications()

    def _pass_on(self, channels: Sequence[str]) -> None:
        for channel in set(channels):
            self.wake(channel)

    async def _leave(self, session: CoreSession) -> None:
        """Give up the locks of channels on which nobody waits any more; that they are listened to does no harm."""
        idle = [channel for channel in self._idle() if not self._waiters.get(channel)]
        if idle:
            self._drop(idle)
            await session.execute(session.sql.unattend, session.sql.unattend.bind({"channels": idle}))

    def wake(self, channel: str) -> None:
        self._counts[channel] += 1
        for event in list(self._waiters[channel]):
            event.set()

    async def _lose(self, session: CoreSession) -> None:
        if self._session is not session:
            return
        self._session = None
        self._drop(set(self._channels) | set(self._waiters))
        await self._discard(session)

    async def _discard(self, session: CoreSession) -> None:
        try:
            await session.close()
        except Exception:  # noqa: BLE001 - it is given up
            logger.debug("closing the listening connection failed", exc_info=True)


class SoleListener(_Channels):
    """Waiting on the caller's only connection, in turn with everything else on it.

    Nothing runs in the background: the waiter looks at the socket itself, and
    what arrived is read whenever the connection is given back.  The trigger does
    not see the lock of its own session, so puts on the connection itself always
    notify meanwhile: another task may wait on it.
    """

    def __init__(self, source: CallersConnection, runtime: Runtime, *, able: Callable[[], bool]) -> None:
        self._forget()
        self._source = source
        self._runtime = runtime
        self._able = able
        self._notifies = False  # whether it was us who had it so
        source.on_release = self._read

    async def listen(self, channel: str) -> bool:
        """See `Listener.listen`; not within a transaction of the caller's, where nothing arrives."""
        if time.monotonic() < self._retry_at:
            return False
        # Lending it looks whether a pooler is in between.
        return await lent(self._source, lambda session: self._listen(session, channel))

    async def _listen(self, session: CoreSession, channel: str) -> bool:
        if not self._able() or session.in_transaction():
            return False
        try:
            await _attend(session, channel)
            self._notifies |= bool(await session.execute(session.sql.notify_always))
        except PQError as exc:
            if not session.usable():
                raise
            self._retry_at = time.monotonic() + REFUSED
            logger.warning("cannot listen, so waiters poll: %s", exc)
            return False
        self._register(channel)
        return True

    async def wait(self, channel: str, ticket: int, seconds: float) -> None:
        """See `Listener.wait`."""
        self._settle(channel)
        deadline = time.monotonic() + self._pause(channel, seconds)
        session = self._source.session
        while self._counts[channel] == ticket and (left := deadline - time.monotonic()) > 0:
            if session.in_transaction():
                await self._runtime.sleep(min(left, BLIND_POLL))
                return
            self._waited[channel] = time.monotonic()
            await session.wait(min(left, SLICE))
            await lent(self._source, _nothing)  # what arrived is read as it is given back
        self._settle(channel)

    async def pause(self, channel: str, seconds: float) -> None:
        """Wait for ``seconds``."""
        await self._runtime.sleep(seconds)

    async def close(self) -> None:
        """Nothing to close: the connection is the caller's."""

    async def end(self) -> None:
        """End nothing: the connection is the caller's."""

    def end_from_afar(self) -> None:
        """End nothing: the connection is the caller's."""

    async def _read(self, session: CoreSession) -> None:
        if not self._channels or session.in_transaction():
            return
        for channel in await session.notifications():
            self.wake(channel)
        if idle := self._idle():
            self._drop(idle)
            await self._leave(session, idle)

    async def _leave(self, session: CoreSession, channels: list[str]) -> None:
        try:
            await session.execute(session.sql.unattend, session.sql.unattend.bind({"channels": channels}))
            if self._notifies and not self._channels:
                await session.execute(session.sql.notify_waiters)
                self._notifies = False
        except PQError:  # not the fault of what was done on it
            logger.debug("what was waited on stays locked", exc_info=True)
