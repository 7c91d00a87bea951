"""A look at the table that all waiters share which no notification can wake.

Behind a pooler, and on more queues than may be registered, waiters poll.  If each did, ten thousand waiters
would keep a server busy, and hear late.  So one of them leads: it asks for the queues of all, in one statement,
and wakes the waiters of those that have a job.  Each of them then takes by itself.

The leader is no thread or task of its own.  When it leaves, because it was woken, is out of time or was
cancelled, another waiter is stirred to lead.  A leader that is cut off between the two is missed by the next
waiter that comes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from threading import Lock

from pqcore.db.runtime import Event
from pqcore.errors import PQError

BLIND_POLL = 0.25
"""Seconds between looks while nothing can wake a waiter."""
LOOKS = 1_000.0
"""Looks per second that the waiters of a `PQ` make by polling, at most, all together."""
CHUNK = 1_000
"""Queues that one statement asks for, at most."""
NAMES = 15_000.0
"""Queues per second that the shared look asks for, at most."""
OWN_LOOK = 15.0
"""Seconds after which a waiter that shares the look also looks by itself, and tries again to be notified."""
OWN_LOOKS = 100.0
"""Such looks per second, at most, all together."""
GRACE = 5.0
"""Seconds by which a leader may be late before another waiter leads."""
LOOKING = 75.0
"""Seconds that a look may take before another waiter leads: more than a statement waits for its answer by default."""

Look = Callable[[Sequence[str]], Awaitable[Sequence[str]]]
"""Given names of queues, gives those that have a job."""


class Sharer:
    """A waiter that shares the look: an `Event`, which may also be stirred.

    Args:
        queue: The name of the queue.
        channel: The queue's channel.
        make: Makes an event.

    Attributes:
        woken: Whether the event is set.
    """

    def __init__(self, queue: str, channel: str, make: Callable[[], Event]) -> None:
        self.queue = queue
        self.channel = channel
        self.woken = False
        self._make = make
        self._event = make()

    def set(self) -> None:
        """Wake the waiter, which then looks."""
        self.woken = True  # first: the event may be replaced meanwhile
        self._event.set()

    def stir(self) -> None:
        """Have the waiter see whether it leads."""
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Wait until set or stirred, for at most ``seconds``; whether it is set."""
        if await self._event.wait(seconds):
            self._event = self._make()
        return self.woken


class SharedLook:
    """The waiters that share the look, and their leader.

    Args:
        wake: Wakes all waiters of a channel.
    """

    def __init__(self, wake: Callable[[str], None]) -> None:
        self._wake = wake
        self._lock = Lock()
        self._sharers: dict[Sharer, None] = {}  # in the order in which they came
        self._leader: Sharer | None = None
        self._due = 0.0  # when the next look is due
        self._missed_at = 0.0  # when the leader is believed to be gone

    async def wait(self, sharer: Sharer, seconds: float, look: Look) -> None:
        """Wait until a waiter is woken, for at most ``seconds``; may return early, to look at the table.

        Args:
            sharer: The waiter.
            seconds: How long to wait, at most.
            look: How to look, if this waiter leads.
        """
        deadline = time.monotonic() + min(seconds, max(OWN_LOOK, len(self._sharers) / OWN_LOOKS))
        try:
            self._run_in_block(sharer)
            while not sharer.woken and (left := deadline - time.monotonic()) > 0:
                if self._leader is not sharer:
                    await sharer.wait(left)
                elif (pause := self._due - time.monotonic()) > 0:
                    self._missed_at = self._due + GRACE
                    await sharer.wait(min(left, pause))
                else:
                    self._missed_at = time.monotonic() + LOOKING
                    await self._look(look)
        finally:
            self._leave(sharer)

    def _run_in_block(self, sharer: Sharer) -> None:
        now = time.monotonic()
        with self._lock:
            self._sharers[sharer] = None
            if self._leader is None or now > self._missed_at:
                self._leader = sharer
                self._due = now + BLIND_POLL  # it has just looked
                self._missed_at = self._due + GRACE

    def _leave(self, sharer: Sharer) -> None:
        with self._lock:
            self._sharers.pop(sharer, None)
            if self._leader is not sharer:
                return
            # The one that came last, as it may stay for longest.
            heir = self._leader = next(reversed(self._sharers), None)
            self._missed_at = time.monotonic() + GRACE
        if heir is not None:
            heir.stir()

    async def _look(self, look: Look) -> None:
        """Ask for the queues of all, and wake the waiters of those that have a job."""
        waiting: dict[str, list[Sharer]] = {}
        with self._lock:
            for sharer in self._sharers:
                waiting.setdefault(sharer.queue, []).append(sharer)
        names, woken = list(waiting), 0
        try:
            for start in range(0, len(names), CHUNK):
                for name in await look(names[start : start + CHUNK]):
                    woken += self._wake_all(waiting[name])
        except PQError:  # each looks by itself, and is told
            woken = sum(map(self._wake_all, waiting.values()))
        # What is found, and cannot be taken, is found again: so the pause is as long as their looks may take.
        self._due = time.monotonic() + max(BLIND_POLL, len(names) / NAMES, woken / LOOKS)

    def _wake_all(self, sharers: Sequence[Sharer]) -> int:
        self._wake(sharers[0].channel)
        return len(sharers)
