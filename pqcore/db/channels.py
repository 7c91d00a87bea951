"""The channels that a listening connection has registered: see `pqcore.db.listener`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pqcore.errors import ConnectionLost

if TYPE_CHECKING:
    from pqcore.db.session import Session

SLICE = 1.0
"""Seconds after which the listener looks whether it is still wanted."""
REGISTER = 1.0
"""Seconds that a waiter waits until its channel is registered, at most; then it looks, and polls meanwhile."""
REFUSED = 15.0
"""Seconds until it is tried again where we could not listen, though the connection was not lost."""
SETTLE = 0.05
"""Seconds after which a put that did not see who began to wait is committed, if it commits by itself."""
LINGER = 5.0
"""Seconds for which a channel stays registered after a wait: who waits again and again does it once."""
MOST = 4_000
"""Channels that are registered, at most: each takes a place in the server's lock table, which all sessions share."""
BATCH = 100
"""Channels that are registered, or given up, in one go, at most: meanwhile no notification is passed on."""
LISTEN_NOT_SUPPORTED = (
    "LISTEN does not last on this connection (behind PgBouncer in transaction mode, give prepared=False)"
)
LEFT = "its server takes no more writes"

_tickets = itertools.count(1)


async def register(session: Session, channels: Sequence[str]) -> None:
    """Listen to channels, and take the locks that puts look for."""
    for channel in channels:
        await session.listen(channel)
    # A statement of its own, as it asks the session whether it listens.
    locked = await session.execute(session.sql.register, session.sql.register.bind({"channels": list(channels)}))
    if len(locked) < len(channels):
        raise ConnectionLost(LISTEN_NOT_SUPPORTED)


async def unregister(session: Session, channels: Sequence[str]) -> None:
    """Give up the locks of channels, and what the server and the driver keep of them."""
    await session.execute(session.sql.unregister, session.sql.unregister.bind({"channels": list(channels)}))
    await session.unlisten(channels)


async def probe(session: Session, *, listens: bool) -> None:
    """Ask the server whether it is there, and, if this session listens, whether that is still in force."""
    if not await session.execute(session.sql.listening) and listens:
        raise ConnectionLost(LISTEN_NOT_SUPPORTED)


def refuse_left(session: Session) -> None:
    """Raise `ConnectionLost` if it was found that a session's server takes no more writes."""
    if session.left:
        raise ConnectionLost(LEFT)


async def refuse_read_only(session: Session) -> None:
    """Raise `ConnectionLost` if a session's server takes no writes."""
    if not await session.writes():
        raise ConnectionLost(LEFT)


class Channels:
    """The channels that are registered, and the ticket of each, which changes when the channel is notified."""

    def _forget(self) -> None:
        self._channels: set[str] = set()
        self._unsettled: dict[str, float] = {}  # when those who drew a ticket before are to look once more
        self._waited: dict[str, float] = {}  # when the last wait ended
        self._counts: dict[str, int] = {}
        self._retry_at = 0.0
        self._tidied = time.monotonic()

    def snapshot(self, channel: str) -> int | None:
        """The ticket of the channel; None if it is not registered.

        To be drawn before looking at the table, and given to `wait` after.
        """
        count = self._counts.get(channel)  # first: if the channel goes and comes again meanwhile, it has changed
        return count if channel in self._channels else None

    def _register(self, channel: str) -> None:
        now = self._waited[channel] = time.monotonic()
        self._unsettled[channel] = now + SETTLE
        self._counts[channel] = next(_tickets)
        self._channels.add(channel)

    def _settle(self, channel: str) -> None:
        """If the channel is no longer new, void the tickets that were drawn while it was; once."""
        at = self._unsettled.get(channel)
        if at is not None and time.monotonic() >= at and self._unsettled.pop(channel, None) is not None:
            self.wake_waiters(channel)

    def _pause(self, channel: str, seconds: float) -> float:
        """How long to wait, at most: while the channel is new, only as long as it is."""
        at = self._unsettled.get(channel)
        return seconds if at is None else max(min(seconds, at - time.monotonic()), 0.0)

    def _idle(self) -> list[str]:
        """The channels on which nobody has waited for some time, which may be in use all the same."""
        since = time.monotonic() - LINGER
        return [channel for channel in list(self._channels) if self._waited.get(channel, since) < since]

    def _drop(self, channels: Iterable[str]) -> None:
        """Forget channels, before their locks are given up; in this order, so that no ticket outlasts that."""
        for channel in channels:
            self._channels.discard(channel)
            self.wake_waiters(channel)
            for each in (self._counts, self._unsettled, self._waited):
                each.pop(channel, None)

    def wake_waiters(self, channel: str) -> None:
        """Wake those who wait on a channel."""
        if channel in self._counts:
            self._counts[channel] = next(_tickets)

    def wake(self, channel: str) -> None:
        """Wake those who wait on a channel, or are about to."""
        self.wake_waiters(channel)
