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
notification, and so voids the tickets drawn before: their holders look again.  Then
nothing is left of the channel, here or on the server.

No waiter uses the listening connection: it asks for its channel, and waits for that
no longer than it would wait for a job.  One thread or task registers all channels that
were asked for meanwhile, another passes notifications on.  A call on that connection
that the server does not answer within `ANSWER` seconds loses the connection.

Results and cancellations are notified of whether or not somebody waits; their
channels are registered alike, which costs a lock and does no harm.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from pqcore.db import channels
from pqcore.db.channels import Channels
from pqcore.db.runtime import Background, Event, Runtime, hold_lock
from pqcore.db.shared_poll import Look, SharedLook, Sharer
from pqcore.db.sources import AdoptedPool, SessionSource
from pqcore.errors import ConfigurationError, PQError

if TYPE_CHECKING:
    from pqcore.db.session import Session

logger = logging.getLogger("pqcore")

T = TypeVar("T")

PROBE = 15.0
"""Seconds of silence after which the listener asks the server whether it is still there."""
ANSWER = 5.0
"""Seconds in which the server has to answer on the listening connection, which waits for no lock."""
CLOSING = 2.0
"""Seconds that the end of the listener takes, at most."""
RETRY = 1.0
"""Seconds between attempts to open a listening connection; meanwhile waiters poll."""

UNLIKE = "the pool does not tell how it connects, so no connection like its own can be opened to listen on"
IDLE_SESSION = "57P05"
"""The SQLSTATE of a session that the server's idle_session_timeout ended."""


def _told(exc: Exception) -> str:
    return str(exc) if isinstance(exc, PQError) else f"{type(exc).__name__}: {exc}"


def _unexpected(exc: Exception) -> bool:
    """Whether an exception is none that is known to come: its traceback is logged."""
    return not isinstance(exc, PQError)


class Listener(Channels):
    """The listening connection of a process, or of one of its event loops, and those who wait for it.

    Args:
        source: Where the connection comes from.
        runtime: How to wait.
        able: Whether we can listen at all.
    """

    def __init__(self, source: SessionSource, runtime: Runtime, *, able: Callable[[], bool]) -> None:
        self._source = source
        self._runtime = runtime
        self._able = able
        self._over = False
        self._most = channels.MOST
        self._forget()
        self._session_lock = runtime.lock()
        self._session: Session | None = None
        self._background: Background | None = None
        self._end: object = None
        self._refused = ""  # why it could not listen, as far as that was told
        self._heard = 0.0
        self._lock = Lock()  # of those below
        self._waiters: dict[str, set[Event]] = {}
        self._paused: dict[str, float] = {}  # channels that are not registered: when a ticket was last asked for
        self._woken: set[str] = set()  # of these, those that were woken since
        self._shared = SharedLook(self.wake_waiters)
        self._wishes: dict[str, set[Event]] = {}  # channels to register, and the waiters for that
        self._registrar: Background | None = None  # who registers them
        self._trimmed = 0.0  # when those that nobody waits on were forgotten
        self._era = object()  # changes when the listener is closed

    @property
    def crowd(self) -> int:
        """How many channels are waited on."""
        return len(self._waiters)

    async def listen(self, channel: str, seconds: float) -> bool:
        """Have a channel registered, and wait for that.

        Args:
            channel: The channel.
            seconds: How long to wait, at most.

        Returns:
            Whether it is registered. Then the caller must look again, before it waits.
        """
        if channel in self._channels:
            return True
        if self._over or not self._able() or len(self._channels) >= self._most:
            return False
        if time.monotonic() < self._retry_at:
            return False
        event, era = self._runtime.event(), self._era
        with self._lock:
            self._wishes.setdefault(channel, set()).add(event)
            if self._registrar is None:
                self._registrar = self._runtime.start(lambda: self._register_wishes(era))
        await event.wait(min(seconds, channels.REGISTER))
        return channel in self._channels

    async def _register_wishes(self, era: object) -> None:
        """Register the channels that are asked for, until there are none."""
        while self._era is era:
            with self._lock:
                wishes, self._wishes = self._wishes, {}
                if not wishes:
                    self._registrar = None
                    return
            wanted = list(wishes)
            try:
                for start in range(0, len(wanted), channels.BATCH):
                    batch = wanted[start : start + channels.BATCH]
                    await hold_lock(self._session_lock, partial(self._register_all, batch, era))
            finally:
                for event in itertools.chain.from_iterable(wishes.values()):
                    event.set()

    async def _register_all(self, wanted: Sequence[str], era: object) -> None:
        wanted = [channel for channel in wanted if channel not in self._channels]
        wanted = wanted[: max(self._most - len(self._channels), 0)]
        if not wanted or (self._session is None and not await self._open(era)):
            return
        session = self._session
        if session is None:
            return
        try:
            await channels.register(session, wanted)
            # What came with the answers may not wake the thread that waits on the socket.
            self._pass_on(await session.notifications())
        except Exception as exc:  # noqa: BLE001 - waiters poll, whatever it is
            if session.usable():  # as when there are too many locks: all of ours are given up
                self._retry_at = time.monotonic() + channels.REFUSED
                self._most = max((len(self._channels) + len(wanted)) // 2, 1)
            self._tell_loss(exc)
            await self._lose(session)
            return
        except BaseException:  # what was interrupted on it is not known
            await self._lose(session)
            raise
        for channel in wanted:
            self._register(channel)

    async def wait(self, channel: str, ticket: int, seconds: float) -> None:
        """Wait until the channel is notified again, for at most ``seconds``."""
        event = self._runtime.event()
        self._add(channel, event)
        try:
            self._settle(channel)
            if self._counts.get(channel) == ticket:
                await event.wait(self._pause(channel, seconds))
                self._settle(channel)
        finally:
            if channel in self._channels:
                self._waited[channel] = time.monotonic()
            self._remove(channel, event)

    def snapshot(self, channel: str) -> int | None:
        """See `Channels.snapshot`; has a wake that comes after it count, where the channel is not registered, too."""
        ticket = super().snapshot(channel)
        if ticket is None:
            now = self._paused[channel] = time.monotonic()
            if len(self._paused) > channels.MOST and now - self._trimmed > channels.SLICE:
                self._trim(now)
        return ticket

    def _trim(self, now: float) -> None:
        """Forget channels on which nobody waits any more."""
        self._trimmed = now
        for channel in [name for name, when in list(self._paused.items()) if when < now - channels.LINGER]:
            if channel not in self._waiters:
                self._paused.pop(channel, None)
                self._woken.discard(channel)

    async def pause(self, channel: str, seconds: float) -> None:
        """Wait where the channel is not registered: for ``seconds``, or until this process wakes the channel."""
        event = self._runtime.event()
        await self._pause_on(channel, event, partial(event.wait, seconds))

    async def share(self, channel: str, queue: str, seconds: float, look: Look) -> None:
        """Wait where the channel is not registered, for a job: as `pause` does, or until a look finds one.

        Args:
            channel: The queue's channel.
            queue: The queue's name.
            seconds: How long to wait, at most.
            look: How to look, if this waiter looks for all.
        """
        sharer = Sharer(queue, channel, self._runtime.event)
        await self._pause_on(channel, sharer, partial(self._shared.wait, sharer, seconds, look))

    async def _pause_on(self, channel: str, event: Event, pause: Callable[[], Awaitable[object]]) -> None:
        self._add(channel, event)
        try:
            if channel in self._woken:  # since the ticket
                self._woken.discard(channel)
            else:
                await pause()
        finally:
            self._remove(channel, event)

    def _add(self, channel: str, event: Event) -> None:
        with self._lock:
            self._waiters.setdefault(channel, set()).add(event)

    def _remove(self, channel: str, event: Event) -> None:
        with self._lock:
            if waiters := self._waiters.get(channel):
                waiters.discard(event)
                if not waiters:
                    del self._waiters[channel]

    async def close(self) -> None:
        """Stop listening; waiters are woken."""
        self._era = object()
        if self._background is not None:
            self._background.stop()
        with self._lock:
            registrar, self._registrar = self._registrar, None
            wishes, self._wishes = self._wishes, {}
        if registrar is not None:
            registrar.stop()  # a thread finds that the era is over
        for event in itertools.chain.from_iterable(wishes.values()):
            event.set()
        session = self._session
        if session is None:
            return
        if not self._runtime.suspends:
            session.abort()  # the threads that use it, or wait on it, are to notice immediately
        entered = await self._session_lock.enter_within(CLOSING)
        try:
            if not entered:
                session.abort()
            await self._lose(session)
        finally:
            if entered:
                self._session_lock.leave()

    async def end(self) -> None:
        """Stop listening, for good."""
        self._over = True
        await self.close()

    def end_from_afar(self) -> None:
        """Stop listening, for good; from another event loop than the one that listens."""
        self._over = True
        if self._session is not None:
            self._session.abort()

    async def _open(self, era: object) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        try:
            session = await self._source.listener()
        except Exception as exc:  # noqa: BLE001 - such as of a function of the caller's: waiters poll, whatever it is
            self._retry_at = time.monotonic() + RETRY
            self._warn(exc)
            return False
        if session is None:
            self._retry_at = time.monotonic() + channels.REFUSED
            if isinstance(self._source, AdoptedPool):
                self._warn(ConfigurationError(UNLIKE))
            return False
        # It may have been the first connection, and have found a pooler; or the listener was closed meanwhile.
        if not self._able() or self._era is not era:
            await self._discard(session)
            return False
        session.limit = ANSWER
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

    async def _follow(self, session: Session) -> None:
        """Pass notifications on until the connection is lost or closed."""
        self._heard = self._tidied = time.monotonic()
        while self._session is session:
            try:
                await session.wait(channels.SLICE)
                notified = await hold_lock(self._session_lock, lambda: self._look(session))
            except Exception as exc:  # noqa: BLE001 - waiters poll, whatever it is
                if isinstance(exc.__context__, GeneratorExit):  # the event loop was closed without ending its tasks
                    return
                self._tell_loss(exc)
                await hold_lock(self._session_lock, lambda: self._lose(session))
                return
            if notified:
                self._heard = time.monotonic()
                self._pass_on(notified)

    async def _look(self, session: Session) -> list[str]:
        if self._session is not session:
            return []
        channels.refuse_left(session)
        if time.monotonic() - self._heard > PROBE:
            await channels.probe(session, listens=bool(self._channels))
            if self._source.seeks_primary:
                await channels.refuse_read_only(session)
            self._heard = time.monotonic()
        if time.monotonic() - self._tidied > channels.SLICE:
            await self._leave(session)
            self._tidied = time.monotonic()
        return await session.notifications()

    def _pass_on(self, notified: Sequence[str]) -> None:
        for channel in set(notified):
            self.wake_waiters(channel)

    async def _leave(self, session: Session) -> None:
        """Give up the channels on which nobody waits any more."""
        idle = [channel for channel in self._idle() if channel not in self._waiters][: channels.BATCH]
        if idle:
            self._drop(idle)
            await channels.unregister(session, idle)

    def wake_waiters(self, channel: str) -> None:
        super().wake_waiters(channel)
        with self._lock:
            events = list(self._waiters.get(channel, ()))
            if not events and channel in self._paused:
                self._woken.add(channel)
        for event in events:
            event.set()

    def wake(self, channel: str) -> None:
        """Wake those who wait on a channel; where nobody does, and it is not registered, the next to wait."""
        self._paused.setdefault(channel, time.monotonic())
        self.wake_waiters(channel)

    def _tell_loss(self, error: Exception) -> None:
        if self._over:
            return
        if getattr(error, "sqlstate", None) == IDLE_SESSION:
            logger.info("idle_session_timeout ended the listening connection; the next waiter opens another: %s", error)
        else:
            logger.warning("lost the listening connection: %s", _told(error), exc_info=_unexpected(error))

    async def _lose(self, session: Session) -> None:
        if self._session is not session:
            return
        self._session = None
        self._drop(set(self._channels) | set(self._waiters))
        await self._discard(session)

    async def _discard(self, session: Session) -> None:
        try:
            await session.close()
        except Exception:
            logger.debug("closing the listening connection failed", exc_info=True)
