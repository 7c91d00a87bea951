"""The channels that a listening connection has registered; see `pqcore.db.listener`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pqcore.errors import ConnectionLost

if TYPE_CHECKING:
    from pqcore.db.session import Session

SLICE = 1.0
"""Seconds after which the listener checks whether it is still needed."""
REGISTER = 1.0
"""The largest number of seconds that a waiter waits for its channel's registration; after that, it polls until the
channel is registered."""
REFUSED = 15.0
"""Seconds until the next attempt after LISTEN failed although the connection was not lost."""
SETTLE = 0.05
"""Seconds for which a registered channel counts as new. When they are over, a put that began before the registration,
and commits by itself, is committed."""
LINGER = 5.0
"""Seconds for which a channel stays registered after a wait, so that a repeated waiter registers only once."""
MOST = 4_000
"""The largest number of registered channels: each takes an entry in the server's lock table, which all sessions share.
"""
BATCH = 100
"""The largest number of channels that are registered or given up together, because no notification is passed on
meanwhile."""
LISTEN_NOT_SUPPORTED = (
    "LISTEN does not last on this connection (behind PgBouncer in transaction mode, give prepared=False)"
)
LEFT = "its server accepts no more writes"

_tickets = itertools.count(1)


async def register(session: Session, channels: Sequence[str]) -> None:
    """LISTEN on channels, and take the advisory locks that the trigger of a put checks."""
    for channel in channels:
        await session.listen(channel)
    # This statement comes after LISTEN, because it checks whether the session listens to the channels.
    locked = await session.execute(session.sql.register, session.sql.register.bind({"channels": list(channels)}))
    if len(locked) < len(channels):
        raise ConnectionLost(LISTEN_NOT_SUPPORTED)


async def unregister(session: Session, channels: Sequence[str]) -> None:
    """Release the locks of channels, and the state that the server and the driver keep for the channels."""
    await session.execute(session.sql.unregister, session.sql.unregister.bind({"channels": list(channels)}))
    await session.unlisten(channels)


async def probe(session: Session, *, listens: bool) -> None:
    """Check that the server answers. If this session listens, check also that its LISTEN is still in force."""
    if not await session.execute(session.sql.listening) and listens:
        raise ConnectionLost(LISTEN_NOT_SUPPORTED)


def refuse_left(session: Session) -> None:
    """Raise `ConnectionLost` if a session's server is known to take no more writes."""
    if session.left:
        raise ConnectionLost(LEFT)


async def refuse_read_only(session: Session) -> None:
    """Raise `ConnectionLost` if a session's server takes no writes."""
    if not await session.writes():
        raise ConnectionLost(LEFT)


class Channels:
    """The registered channels, each with a counter that changes when the channel is notified.

    A ticket is a value of that counter, which `snapshot` returns.
    """

    def _forget(self) -> None:
        self._channels: set[str] = set()
        # For each new channel, the time when waiters with earlier tickets must look once more.
        self._unsettled: dict[str, float] = {}
        # For each channel, the time when the last wait ended.
        self._waited: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._retry_at = 0.0
        self._tidied = time.monotonic()

    def snapshot(self, channel: str) -> int | None:
        """Return the channel's ticket; None if the channel is not registered.

        Get the ticket before looking at the table for jobs, and then give the ticket to `wait`.
        """
        # The count is read first: if the channel is dropped and registered again meanwhile, the count has changed.
        count = self._counts.get(channel)
        return count if channel in self._channels else None

    def _register(self, channel: str) -> None:
        now = self._waited[channel] = time.monotonic()
        self._unsettled[channel] = now + SETTLE
        self._counts[channel] = next(_tickets)
        self._channels.add(channel)

    def _settle(self, channel: str) -> None:
        """When the channel is no longer new, invalidate the tickets that were drawn while it was new."""
        at = self._unsettled.get(channel)
        if at is not None and time.monotonic() >= at and self._unsettled.pop(channel, None) is not None:
            self.wake_waiters(channel)

    def _pause(self, channel: str, seconds: float) -> float:
        """Return the longest time to wait; for a new channel, the time until it is no longer new."""
        at = self._unsettled.get(channel)
        return seconds if at is None else max(min(seconds, at - time.monotonic()), 0.0)

    def _idle(self) -> list[str]:
        """Return the channels whose last wait ended some time ago; some of them may have a waiter again."""
        since = time.monotonic() - LINGER
        return [channel for channel in list(self._channels) if self._waited.get(channel, since) < since]

    def _drop(self, channels: Iterable[str]) -> None:
        """Forget channels before their locks are released; this order ensures that no ticket outlasts its lock."""
        for channel in channels:
            self._channels.discard(channel)
            self.wake_waiters(channel)
            for each in (self._counts, self._unsettled, self._waited):
                each.pop(channel, None)

    def wake_waiters(self, channel: str) -> None:
        """Wake the waiters on a channel."""
        if channel in self._counts:
            self._counts[channel] = next(_tickets)

    def wake(self, channel: str) -> None:
        """Wake the waiters on a channel, and callers that are about to wait."""
        self.wake_waiters(channel)
