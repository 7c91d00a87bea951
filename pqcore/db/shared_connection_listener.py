"""Waiting on the caller's only connection; `pqcore.db.listener` explains how puts find out that somebody waits."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pqcore.db import channels
from pqcore.db.channels import Channels
from pqcore.db.listener_log import ListenerLog
from pqcore.db.runtime import Runtime
from pqcore.db.shared_poll import BLIND_POLL
from pqcore.db.sources import AdoptedConnection, lent
from pqcore.errors import PoolTimeout, PQError

if TYPE_CHECKING:
    from pqcore.db.session import Session

logger = logging.getLogger("pqcore")

T = TypeVar("T")


async def _nothing(session: Session) -> None:
    """Do nothing: the notifications are read when the loan ends."""


class SharedConnectionListener(Channels):
    """A listener on the caller's only connection; the listener and operations use the connection in turn.

    Nothing runs in the background: the waiter polls the socket itself, and notifications are read whenever the
    connection is given back. The trigger of a put cannot notice a lock that the session of the put itself holds, but
    another task may put a job over this connection. So while a waiter waits, all puts on this connection notify.
    """

    def __init__(self, source: AdoptedConnection, runtime: Runtime, *, able: Callable[[], bool]) -> None:
        self._forget()
        self._source = source
        self._runtime = runtime
        self._able = able
        self._notifies = False  # whether this listener turned notifications on
        self.crowd = 1
        self._log = ListenerLog()
        source.on_release = self._read

    async def listen(self, channel: str, seconds: float) -> bool:
        """See `Listener.listen`. Within a caller's transaction, do nothing, because no notification arrives there."""
        if time.monotonic() < self._retry_at or len(self._channels) >= channels.MOST:
            return False
        try:  # borrowing the connection also checks for a pooler
            return await self._lent(min(seconds, channels.REGISTER), lambda session: self._listen(session, channel))
        except PoolTimeout:  # another thread or task uses the connection
            return False

    async def _lent(self, seconds: float, work: Callable[[Session], Awaitable[T]]) -> T:
        return await lent(self._source, work, partial(self._source.acquire_within, seconds))

    async def _listen(self, session: Session, channel: str) -> bool:
        if not self._able() or session.in_transaction():
            return False
        try:
            await channels.register(session, [channel])
            self._notifies |= bool(await session.execute(session.sql.notify_always))
        except PQError as exc:
            if not session.usable():
                raise
            self._retry_at = time.monotonic() + channels.REFUSED
            self._log.warn_refused(exc)
            return False
        self._log.forget()
        self._register(channel)
        return True

    async def wait(self, channel: str, ticket: int, seconds: float, *, reads: bool = True) -> None:
        """See `Listener.wait`; each waiter polls the socket."""
        self._settle(channel)
        deadline = time.monotonic() + self._pause(channel, seconds)
        session = self._source.session
        while self._counts.get(channel) == ticket and (left := deadline - time.monotonic()) > 0:
            if session.in_transaction():
                await self._runtime.sleep(min(left, BLIND_POLL))
                return
            self._waited[channel] = time.monotonic()
            await session.wait(min(left, channels.SLICE))
            try:
                # notifications that have arrived are read at the end of the loan
                await self._lent(max(deadline - time.monotonic(), 0.0), _nothing)
            except PoolTimeout:  # the current user of the connection reads notifications when giving it back
                return
        self._settle(channel)

    async def pause(self, channel: str, seconds: float) -> None:
        """Wait for ``seconds``."""
        await self._runtime.sleep(seconds)

    async def close(self) -> None:
        """Close nothing, because the connection is the caller's."""

    async def end(self) -> None:
        """End nothing, because the connection is the caller's."""

    def end_from_afar(self) -> None:
        """End nothing, because the connection is the caller's."""

    async def _read(self, session: Session) -> None:
        if not self._channels or session.in_transaction():
            return
        for channel in await session.notifications():
            self.wake_waiters(channel)
        now = time.monotonic()
        if now - self._tidied > channels.SLICE:
            self._tidied = now
            if idle := self._idle()[: channels.BATCH]:
                self._drop(idle)
                await self._leave(session, idle)

    async def _leave(self, session: Session, unused: list[str]) -> None:
        try:
            await channels.unregister(session, unused)
            if self._notifies and not self._channels:
                await session.execute(session.sql.notify_waiters)
                self._notifies = False
        except PQError:  # the operation that used the connection has already succeeded
            logger.debug("cannot release the advisory locks of channels", exc_info=True)
