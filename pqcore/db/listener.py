"""Waiting for notifications: one listening connection in each process, shared by all queues.

A notification is a hint. Every wait is bounded, and after each wait the waiter looks at the table, so a lost
notification delays a job, but no job is lost. If the listening connection is lost, all waiters wake, and the next wait
opens another connection.

A put notifies only if somebody waits. A waiter asks the listener to register a channel: the listening session runs
LISTEN, and takes a shared advisory lock, which the trigger of a put checks. Then the waiter looks again, and waits. A
put that commits after that look notifies the waiter if the trigger saw the lock:

* if the INSERT ran while the lock was held, the put notifies the waiter, whenever its transaction commits;
* if the INSERT ran earlier, and its transaction commits after the look, the put does not notify the waiter. A put in a
  separate transaction commits within milliseconds. So if a waiter drew its ticket (see `Channels`) less than
  `SETTLE` seconds after its channel was registered, the waiter looks once more. If the transaction takes longer,
  polling finds the job.

The listener releases the lock when nobody has waited for `LINGER` seconds. The release counts as a notification, so
waiters with earlier tickets look again. Then neither this process nor the server keeps any state for the channel.

No waiter runs a statement on the listening connection. A waiter asks for the registration of its channel, and waits for
the registration at most as long as for a job. One thread or task registers all requested channels. A second thread or
task passes notifications on, unless a waiting thread reads the socket itself (see `pqcore.db.socket_turn`). If the
server does not answer a call on the listening connection within `ANSWER` seconds, the connection counts as lost.

Results and cancellations notify even if nobody waits, so their channels need no lock. The listener takes the lock for
these channels, too, because the lock does no harm.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pqcore.db import channels
from pqcore.db.listener_log import ListenerLog
from pqcore.db.runtime import Background, Event, Runtime, hold_lock, hold_lock_within
from pqcore.db.socket_turn import ReadingWaiter, SocketTurn, turn_for
from pqcore.db.sources import AdoptedPool, SessionSource
from pqcore.db.waiters import Waiters
from pqcore.errors import ConfigurationError

if TYPE_CHECKING:
    from pqcore.db.session import Session

logger = logging.getLogger("pqcore")

T = TypeVar("T")

PROBE = 15.0
"""Seconds of silence after which the listener checks that the server still answers."""
ANSWER = 5.0
"""Seconds in which the server must answer on the listening connection, which never waits for another transaction's
lock."""
CLOSING = 2.0
"""The largest number of seconds that ending the listener takes."""
RETRY = 1.0
"""Seconds between attempts to open a listening connection; waiters poll meanwhile."""

UNLIKE = "the pool does not tell how it connects, so no connection can be opened to listen on"


class Listener(Waiters):
    """The listening connection of a process or event loop, and its waiters.

    Args:
        source: The source of the connection.
        runtime: The runtime, which waits.
        able: Whether LISTEN is possible at all.
    """

    def __init__(self, source: SessionSource, runtime: Runtime, *, able: Callable[[], bool]) -> None:
        super().__init__(runtime)
        self._source = source
        self._able = able
        self._over = False
        self._most = channels.MOST
        self._session_lock = runtime.lock()
        self._session: Session | None = None
        self._turn: SocketTurn | None = None  # the turn to read the socket, if waiting threads read it
        self._background: Background | None = None
        self._end: object = None
        self._log = ListenerLog()
        self._heard = 0.0
        # The channels to register, and their waiters.
        self._wishes: dict[str, set[Event]] = {}
        # The thread or task that registers the channels.
        self._registrar: Background | None = None
        # An object that is replaced when the listener is closed.
        self._era = object()

    async def listen(self, channel: str, seconds: float) -> bool:
        """Ask for a channel's registration, and wait for it.

        Args:
            channel: The channel.
            seconds: The largest number of seconds to wait.

        Returns:
            Whether the channel is registered. If True, the caller must look again before it waits.
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
        """Register the requested channels, until no request is left."""
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
            # The driver may have read notifications together with the answers to LISTEN. The socket wakes no thread for
            # notifications that were already read.
            self._pass_on(await session.notifications())
        except Exception as exc:  # noqa: BLE001 - waiters poll, whatever it is
            if session.usable():  # for example, the lock table is full: all locks of this session are released
                self._retry_at = time.monotonic() + channels.REFUSED
                self._most = max((len(self._channels) + len(wanted)) // 2, 1)
            self._tell_loss(exc)
            await self._lose(session)
            return
        except BaseException:  # the state of the session after an interrupt is unknown
            await self._lose(session)
            raise
        for channel in wanted:
            self._register(channel)

    async def wait(self, channel: str, ticket: int, seconds: float, *, reads: bool = True) -> None:
        """Wait until the channel is notified again, for at most ``seconds``.

        Args:
            channel: The channel.
            ticket: The channel's ticket from before the last look.
            seconds: The largest number of seconds to wait.
            reads: Whether the waiter may read the socket: such a thread hears of a notification first.
        """
        event, turn = self._runtime.event(), self._turn
        waiter = event if turn is None or not reads else ReadingWaiter(turn, event, self._read)
        self._add(channel, waiter)
        try:
            if turn is not None and not reads:
                turn.read_for_others()
            self._settle(channel)
            if self._counts.get(channel) == ticket:
                await waiter.wait(self._pause(channel, seconds))
                self._settle(channel)
        finally:
            if channel in self._channels:
                self._waited[channel] = time.monotonic()
            self._remove(channel, waiter)
            if turn is not None:
                turn.leave(waiter)
                if self._waiters:
                    turn.read_for_others()

    async def close(self) -> None:
        """Stop listening, and wake the waiters."""
        self._era = object()
        if self._background is not None:
            self._background.stop()
        with self._lock:
            registrar, self._registrar = self._registrar, None
            wishes, self._wishes = self._wishes, {}
        if registrar is not None:
            registrar.stop()  # a thread ends, because `_era` has changed
        for event in itertools.chain.from_iterable(wishes.values()):
            event.set()
        session = self._session
        if session is None:
            return
        if not self._runtime.suspends:
            session.abort()  # threads that use the connection or wait for it then notice the end immediately
        entered = await self._session_lock.enter_within(CLOSING)
        try:
            if not entered:
                session.abort()
            await self._lose(session)
        finally:
            if entered:
                self._session_lock.leave()

    async def end(self) -> None:
        """Stop listening permanently."""
        self._over = True
        await self.close()

    def end_from_afar(self) -> None:
        """Stop listening permanently, from another event loop than the one that listens."""
        self._over = True
        if self._session is not None:
            self._session.abort()

    async def _open(self, era: object) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        try:
            session = await self._source.listener()
        except Exception as exc:  # noqa: BLE001 - such as an error of a caller's function: waiters poll after any error
            self._retry_at = time.monotonic() + RETRY
            self._log.warn_refused(exc)
            return False
        if session is None:
            self._retry_at = time.monotonic() + channels.REFUSED
            if isinstance(self._source, AdoptedPool):
                self._log.warn_refused(ConfigurationError(UNLIKE))
            return False
        # If this was the first connection, opening it may have shown that the server is behind a pooler. Also, the
        # listener may have been closed meanwhile.
        if not self._able() or self._era is not era:
            await self._discard(session)
            return False
        session.limit = ANSWER
        self._log.forget()
        try:
            if self._end is None:
                self._end = await self._runtime.at_end(self.close) or True
            self._session, self._turn = session, turn_for(session)
            self._background = self._runtime.start(lambda: self._follow(session))
        except BaseException:
            await self._lose(session)
            raise
        return True

    async def _follow(self, session: Session) -> None:
        """Pass notifications on until the connection is lost or closed."""
        self._heard = self._tidied = time.monotonic()
        while self._session is session:
            try:
                turn = self._turn
                if turn is None:
                    await session.wait(channels.SLICE)
                else:
                    turn.wait_idle(channels.SLICE)
                notified = await hold_lock(self._session_lock, lambda: self._look(session))
            except Exception as exc:  # noqa: BLE001 - waiters poll, whatever it is
                if isinstance(exc.__context__, GeneratorExit):  # the program closed the loop without ending its tasks
                    return
                self._tell_loss(exc)
                await hold_lock(self._session_lock, lambda: self._lose(session))
                return
            if notified:
                self._heard = time.monotonic()
                self._pass_on(notified)

    async def _read(self, seconds: float) -> None:
        """Read arrived notifications in a waiting thread, for at most ``seconds``."""
        session = self._session
        if session is None:
            return
        try:
            notified = await hold_lock_within(self._session_lock, seconds, lambda: self._notified(session))
        except Exception as exc:  # noqa: BLE001 - waiters poll, whatever it is
            self._tell_loss(exc)
            await hold_lock(self._session_lock, lambda: self._lose(session))
            return
        if notified:
            self._heard = time.monotonic()
            self._pass_on(notified)

    async def _notified(self, session: Session) -> list[str]:
        if self._session is not session:
            return []
        channels.refuse_left(session)
        return await session.notifications()

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

    def _tell_loss(self, error: Exception) -> None:
        if not self._over:
            self._log.tell_loss(error)

    async def _lose(self, session: Session) -> None:
        if self._session is not session:
            return
        turn, self._session, self._turn = self._turn, None, None
        self._drop(set(self._channels) | set(self._waiters))
        if turn is not None:
            turn.end()
        await self._discard(session)

    async def _discard(self, session: Session) -> None:
        try:
            await session.close()
        except Exception:
            logger.debug("closing the listening connection failed", exc_info=True)
