"""Waiting for notifications: one listening connection a process, shared by all queues.

A notification is a hint.  Every wait is bounded, and a waiter looks at the table
whenever it ends, so one that is lost costs time and no job.  Losing the
listening connection wakes everybody; the next to wait opens another.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Hashable
from threading import Lock
from typing import TYPE_CHECKING

from pqcore.errors import PQError
from pqcore.runtime import Background, Event, Runtime, held
from pqcore.settings import logger

if TYPE_CHECKING:
    from pqcore.connections import CallersConnection, Source
    from pqcore.sessions import CoreSession

SLICE = 1.0
"""Seconds after which the listener looks whether it is still wanted."""
PROBE = 15.0
"""Seconds of silence after which the listener asks the server whether it is still there."""
BLIND_POLL = 0.25
"""Seconds between looks while nothing can wake a waiter."""
RETRY = 1.0
"""Seconds between attempts to open a listening connection; meanwhile waiters poll."""


class Listener:
    """The listening connection, and those who wait for it.

    Args:
        source: Where the connection comes from.
        runtime: How to wait.
        able: Whether the backend can listen at all.
    """

    def __init__(self, source: Source, runtime: Runtime, *, able: bool) -> None:
        self._source = source
        self._runtime = runtime
        self._able = able
        self._owner: Hashable = None
        self._over = False
        self._taking_over = Lock()
        self._reset()

    def _reset(self) -> None:
        self._gate = self._runtime.gate()
        self._session: CoreSession | None = None
        self._background: Background | None = None
        self._channels: set[str] = set()
        self._counts: dict[str, int] = defaultdict(int)
        self._waiters: dict[str, set[Event]] = defaultdict(set)
        self._retry_at = 0.0

    def ticket(self, channel: str) -> int | None:
        """How often the channel was notified so far; None if it is not listened to.

        To be drawn before looking at the table, and given to `wait` after.
        """
        self._take_over()
        return self._counts[channel] if channel in self._channels else None

    def _take_over(self) -> None:
        if self._owner != (owner := self._runtime.owner()):
            with self._taking_over:  # threads may come here together
                if self._owner != owner:
                    self._reset()
                    self._owner = owner

    async def listen(self, channel: str) -> bool:
        """Start to listen to a channel; False if that cannot be done now."""
        self._take_over()
        async with held(self._gate):
            if channel in self._channels:
                return True
            if self._over or not self._able or (self._session is None and not await self._open()):
                return False
            session = self._session
            if session is None:
                return False
            try:
                await session.listen(channel)
            except PQError as exc:
                logger.warning("lost the listening connection: %s", exc)
                await self._lose(session)
                return False
            self._channels.add(channel)
            return True

    async def wait(self, channel: str, ticket: int, seconds: float) -> None:
        """Wait until the channel is notified again, for at most ``seconds``."""
        event = self._runtime.event()
        waiters = self._waiters[channel]
        waiters.add(event)
        try:
            if self._counts[channel] == ticket:
                await event.wait(seconds)
        finally:
            waiters.discard(event)

    async def close(self) -> None:
        """Stop listening; waiters are woken."""
        if self._owner != self._runtime.owner():
            return
        if self._background is not None:
            self._background.stop()
        async with held(self._gate):  # one that is being opened is to be closed too
            if self._session is not None:
                if not self._runtime.suspends:
                    self._session.abort()  # the thread that waits on it is to notice at once
                await self._lose(self._session)

    async def end(self) -> None:
        """Stop listening, for good."""
        self._over = True
        await self.close()

    async def _open(self) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        try:
            session = await self._source.listener()
        except PQError as exc:
            self._retry_at = time.monotonic() + RETRY
            logger.warning("cannot listen, so waiters poll: %s", exc)
            return False
        if session is None:
            return False
        await self._runtime.at_end(self.close)
        self._session = session
        self._background = self._runtime.start(lambda: self._follow(session))
        return True

    async def _follow(self, session: CoreSession) -> None:
        """Pass notifications on until the connection is lost or closed."""
        heard = time.monotonic()
        while self._session is session:
            try:
                await session.wait(SLICE)
                async with held(self._gate):
                    if self._session is not session:
                        return
                    if time.monotonic() - heard > PROBE:
                        await session.execute(session.sql.ping)
                        heard = time.monotonic()
                    channels = await session.notifications()
            except PQError as exc:
                logger.warning("lost the listening connection: %s", exc)
                async with held(self._gate):
                    await self._lose(session)
                return
            if channels:
                heard = time.monotonic()
                for channel in set(channels):
                    self.wake(channel)

    def wake(self, channel: str) -> None:
        """Wake those who wait on a channel."""
        self._counts[channel] += 1
        for event in list(self._waiters[channel]):
            event.set()

    async def _lose(self, session: CoreSession) -> None:
        if self._session is not session:
            return
        self._session = None
        for channel in self._channels | set(self._waiters):
            self.wake(channel)
        self._channels.clear()
        try:
            await session.close()
        except PQError:
            logger.debug("closing the lost listening connection failed", exc_info=True)


class SoleListener:
    """Waiting on the caller's only connection, in turn with everything else on it.

    Nothing runs in the background: the waiter looks at the socket itself, and
    what arrived is read whenever the connection is given back.
    """

    def __init__(self, source: CallersConnection, runtime: Runtime, *, able: bool) -> None:
        self._source = source
        self._runtime = runtime
        self._able = able
        self._channels: set[str] = set()
        self._counts: dict[str, int] = defaultdict(int)
        source.on_release = self._read

    def ticket(self, channel: str) -> int | None:
        """See `Listener.ticket`."""
        return self._counts[channel] if channel in self._channels else None

    async def listen(self, channel: str) -> bool:
        """See `Listener.listen`; not within a transaction of the caller's, where nothing arrives."""
        if not self._able:
            return False
        session = await self._source.acquire()
        try:
            if session.in_transaction():
                return False
            await session.listen(channel)
            self._channels.add(channel)
            return True
        finally:
            await self._source.release(session)

    async def wait(self, channel: str, ticket: int, seconds: float) -> None:
        """See `Listener.wait`."""
        deadline = time.monotonic() + seconds
        session = self._source.session
        while self._counts[channel] == ticket and (left := deadline - time.monotonic()) > 0:
            if session.in_transaction():
                await self._runtime.sleep(min(left, BLIND_POLL))
                return
            await session.wait(min(left, SLICE))
            await self._source.release(await self._source.acquire())

    def wake(self, channel: str) -> None:
        """See `Listener.wake`; who waits sees it within `SLICE` seconds."""
        self._counts[channel] += 1

    async def close(self) -> None:
        """Nothing to close: the connection is the caller's."""

    async def end(self) -> None:
        """Likewise."""

    async def _read(self, session: CoreSession) -> None:
        if self._channels and not session.in_transaction():
            for channel in await session.notifications():
                self._counts[channel] += 1
