"""A look at the table, shared by all waiters that no notification can wake.

Waiters must poll if the server is behind a pooler, or if too many channels are registered already. If each waiter
polled, ten thousand waiters would load the server, and would find jobs late. So one waiter leads: in one statement, it
asks which queues of all these waiters have a job, and wakes the waiters of these queues. Each woken waiter then runs
its own statement to take a job.

The leader is not a separate thread or task. When the leader is woken, times out or is cancelled, it stirs another
waiter, which then leads. If a leader is interrupted before it has stirred another waiter, the next waiter that comes
leads.
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
"""The largest number of polling looks per second by all waiters of a `PQ` together."""
CHUNK = 1_000
"""The largest number of queues in one statement."""
NAMES = 15_000.0
"""The largest number of queues per second that the shared look asks for."""
OWN_LOOK = 15.0
"""Seconds after which a waiter that shares the look also looks by itself, and tries again to be notified."""
OWN_LOOKS = 100.0
"""The largest number of looks per second that waiters make by themselves, all waiters together."""
GRACE = 5.0
"""Seconds by which a leader may be late before another waiter leads."""
LOOKING = 75.0
"""Seconds that a look may take before another waiter leads. This is longer than the default time limit of a statement.
"""

Look = Callable[[Sequence[str]], Awaitable[Sequence[str]]]
"""A function that gets names of queues, and returns the names of the queues that have a job."""


class Sharer:
    """A waiter that shares looks with other waiters: an `Event` that `stir` wakes without setting it.

    Args:
        queue: The name of the queue.
        channel: The queue's channel.
        make: A function that makes an event.

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
        self.woken = True  # set first, because the event may be replaced meanwhile
        self._event.set()

    def stir(self) -> None:
        """Wake the waiter, so that it checks whether it must lead now."""
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Wait until `set` or `stir` is called, for at most ``seconds``; return whether `set` was called."""
        if await self._event.wait(seconds):
            self._event = self._make()
        return self.woken


class SharedLook:
    """The waiters that share the look, and their leader.

    Args:
        wake: A function that wakes all waiters on a channel.
    """

    def __init__(self, wake: Callable[[str], None]) -> None:
        self._wake = wake
        self._lock = Lock()
        self._sharers: dict[Sharer, None] = {}  # in the order of their arrival
        self._leader: Sharer | None = None
        # The time of the next look.
        self._due = 0.0
        # The time from which the leader counts as gone.
        self._missed_at = 0.0

    async def wait(self, sharer: Sharer, seconds: float, look: Look) -> None:
        """Wait until a waiter is woken, for at most ``seconds``.

        The call may return early, so that the caller looks at the table.

        Args:
            sharer: The waiter.
            seconds: The largest number of seconds to wait.
            look: The function that looks, if this waiter leads.
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
                self._due = now + BLIND_POLL  # this waiter has just looked
                self._missed_at = self._due + GRACE

    def _leave(self, sharer: Sharer) -> None:
        with self._lock:
            self._sharers.pop(sharer, None)
            if self._leader is not sharer:
                return
            # The waiter that came last is chosen, because it may stay longest.
            heir = self._leader = next(reversed(self._sharers), None)
            self._missed_at = time.monotonic() + GRACE
        if heir is not None:
            heir.stir()

    async def _look(self, look: Look) -> None:
        """Look for jobs in the queues of all waiters, and wake the waiters whose queues have a job."""
        waiting: dict[str, list[Sharer]] = {}
        with self._lock:
            for sharer in self._sharers:
                waiting.setdefault(sharer.queue, []).append(sharer)
        names, woken = list(waiting), 0
        try:
            for start in range(0, len(names), CHUNK):
                for name in await look(names[start : start + CHUNK]):
                    woken += self._wake_all(waiting[name])
        except PQError:  # each waiter looks by itself, and gets the error
            woken = sum(map(self._wake_all, waiting.values()))
        # At each shared look, waiters wake for a due job, even if no waiter can take this job. So the pause is long
        # enough for the looks of all woken waiters.
        self._due = time.monotonic() + max(BLIND_POLL, len(names) / NAMES, woken / LOOKS)

    def _wake_all(self, sharers: Sequence[Sharer]) -> int:
        self._wake(sharers[0].channel)
        return len(sharers)
