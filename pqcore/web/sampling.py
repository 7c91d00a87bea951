"""The figures of each queue, now and over time. The figures are read only while a page is open, once for all pages."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import NamedTuple, TypeVar

from pqcore.errors import AccessDenied
from pqcore.operations import admin
from pqcore.operations.activity import Activity, Finished, read_activity, recent_completions
from pqcore.operations.admin import QueueFigures
from pqcore.operations.expiry import Expiry, list_expiry
from pqcore.operations.rules import list_paused_queues
from pqcore.operations.unknown_tasks import UnknownTask, list_unknown_tasks
from pqcore.web.target import Target
from pqcore.web.time_limits import ANSWER, NoAnswer, ended, mark_seen

K = TypeVar("K")
V = TypeVar("V")

WINDOW = 900.0
"""The longest time that charts go back, in seconds."""
SAMPLES = 450
"""The largest number of samples that are remembered."""
QUEUES = 100
"""The number of queues whose samples are remembered: the queues with most jobs."""
REST = 10.0
"""The pause after a look, as a multiple of the shorter of the last two looks: pages take a tenth of a server's time."""
LONGEST_PAUSE = 30.0
"""The longest pause, in seconds."""
YOUNG = 10.0
"""The shortest time for which figures count as up to date, in seconds."""
_NOTHING = QueueFigures(0, 0, 0, None)
_NONE = Finished(0, 0, None, None)


class Figures(NamedTuple):
    """The figures of a queue.

    Attributes:
        ready: Jobs that a get would find.
        scheduled: Jobs that are not due yet.
        leased: Jobs held under a lease.
        parked: Jobs that wait for a place, or for their turn.
        dead: Dead letters.
        oldest: Seconds since the oldest ready job became due; None without a ready job.
        minute: Jobs finished within the last minute, as far as known.
        hour: Jobs finished within the last hour, as far as known.
        median: The median time from due to finished, of the jobs of the last minute, in seconds; None without such
            jobs.
        slow: The 95th percentile of the same times.
        paused: Whether the whole queue is paused.
    """

    ready: int = 0
    scheduled: int = 0
    leased: int = 0
    parked: int = 0
    dead: int = 0
    oldest: float | None = None
    minute: int = 0
    hour: int = 0
    median: float | None = None
    slow: float | None = None
    paused: bool = False

    @property
    def weight(self) -> int:
        """How many jobs the queue has."""
        return self.ready + self.scheduled + self.leased + self.parked + self.dead + self.hour


@dataclass(frozen=True)
class Sample:
    """The figures of all queues at one moment.

    Attributes:
        at: The moment.
        clock: The same moment, by the monotonic clock.
        queues: The figures of each queue; the keys are the names, in order.
        activity: The server's statistics of the table.
        unknown: The tasks that jobs wait for, and that no living worker knows.
        expiry: How long rows are kept.
        took: Seconds that the look took.
    """

    at: datetime
    clock: float
    queues: Mapping[str, Figures]
    activity: Activity
    unknown: Sequence[UnknownTask]
    expiry: Sequence[Expiry]
    took: float

    @property
    def age(self) -> float:
        """Seconds since the look began."""
        return time.monotonic() - self.clock + self.took

    def total(self) -> Figures:
        """The sum of all queues, without the times that jobs took."""
        rows = self.queues.values()
        ages = [row.oldest for row in rows if row.oldest is not None]
        counts = {
            name: sum(getattr(row, name) for row in rows)
            for name in ("ready", "scheduled", "leased", "parked", "dead", "minute", "hour")
        }
        return Figures(**counts, oldest=max(ages, default=None))


class Point(NamedTuple):
    """An earlier sample of one queue, with its time by the monotonic clock."""

    clock: float
    figures: Figures


class Follower:
    """A page that is kept up to date. The sampler counts a follower from its creation until `close`.

    Args:
        sampler: The sampler that it follows.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Make `turns` end."""
        self._stopped.set()

    async def turns(self) -> AsyncGenerator[None, None]:
        """Yield whenever it is time to look again, until told to stop."""
        while not self._stopped.is_set():
            yield
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), self._sampler.next_look())

    def close(self) -> None:
        """Stop following."""
        self._sampler.leave(self)


class Sampler:
    """A sampler, which reads the figures of the table for all open pages.

    Args:
        target: The table.
        interval: The shortest time between two looks, in seconds.

    Attributes:
        looks: The number of looks so far.
    """

    def __init__(self, target: Target, interval: float) -> None:
        self.interval = interval
        self.looks = 0
        self._target = target
        self._last: Sample | None = None
        self._cost = 0.0  # seconds that the faster of the last two looks took, so that one slow look has no effect
        self._taking: asyncio.Task[Sample] | None = None
        self._past: deque[tuple[float, dict[str, Figures]]] = deque(maxlen=SAMPLES)
        self._followers: set[Follower] = set()

    @property
    def followers(self) -> int:
        """The number of followers."""
        return len(self._followers)

    async def latest(self, *, fresh: bool = False) -> Sample:
        """Return a sample that is not older than the pause between two looks.

        Args:
            fresh: Whether the sample must be a new one.

        Raises:
            NoAnswer: The look takes longer than `ANSWER` seconds. The look goes on.
            PQError: The table cannot be read.
        """
        if self._last is not None and not fresh and time.monotonic() < self._last.clock + self._pause():
            return self._last
        taking = self._taking
        if taking is None or taking.done() or taking.get_loop() is not asyncio.get_running_loop():
            taking = self._taking = asyncio.create_task(self._take())
            taking.add_done_callback(mark_seen)
        elif fresh:  # this look began before the call
            await ended(taking, ANSWER)
            return await self.latest(fresh=True)
        await ended(taking, ANSWER)
        return taking.result()

    async def shown(self) -> Sample:
        """Return the latest sample, or the previous one if the database does not answer.

        Raises:
            NoAnswer: The database does not answer, and there is no earlier sample.
            PQError: The table cannot be read.
        """
        try:
            return await self.latest()
        except NoAnswer:
            if self._last is None:
                raise
            return self._last

    @property
    def young(self) -> float:
        """The number of seconds for which figures count as up to date, so that a page may call itself live."""
        return max(YOUNG, 1.5 * self.interval + ANSWER)

    def follow(self) -> Follower:
        """Return a new follower, and count it."""
        follower = Follower(self)
        self._followers.add(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        """Stop counting a follower."""
        self._followers.discard(follower)

    def next_look(self) -> float:
        """The number of seconds until the next look is due."""
        last = self._last
        left = self.interval if last is None else last.clock + self._pause() - time.monotonic()
        return max(left, self.interval / 10)

    def stop(self) -> None:
        """Tell all open pages that follow the figures to end."""
        for each in list(self._followers):
            each.stop()

    def past(self, queue: str) -> list[Point]:
        """Return the samples of a queue within the last `WINDOW` seconds."""
        since = time.monotonic() - WINDOW
        return [Point(clock, queues[queue]) for clock, queues in self._past if clock >= since and queue in queues]

    def _pause(self) -> float:
        return max(self.interval, min(REST * self._cost, LONGEST_PAUSE))

    async def _take(self) -> Sample:
        begun = time.monotonic()
        read = self._target.read
        there = await read(admin.count_queues)
        finished = await read(recent_completions)
        activity = await read(read_activity)
        paused: Sequence[str] = ()
        unknown: Sequence[UnknownTask] = ()
        expiry: Sequence[Expiry] = ()
        with suppress(AccessDenied):  # the role may read jobs, but not these statistics
            paused = await read(list_paused_queues)
            expiry = await read(list_expiry)
            unknown = await read(list_unknown_tasks)
        queues = {}
        for name in sorted(there.keys() | finished.keys() | {*paused}):
            stats, done = there.get(name, _NOTHING), finished.get(name, _NONE)
            queues[name] = Figures(
                stats.ready,
                stats.scheduled,
                stats.leased,
                stats.parked,
                stats.dead,
                stats.oldest,
                done.minute,
                done.hour,
                done.median,
                done.slow,
                name in paused,
            )
        clock = time.monotonic()
        took = clock - begun
        self._cost = took if self._last is None else min(took, self._last.took)
        sample = Sample(datetime.now(timezone.utc), clock, queues, activity, unknown, expiry, took)
        kept = sorted(queues, key=lambda name: queues[name].weight, reverse=True)[:QUEUES]
        known = self._past[-1][1].keys() if self._past else ()
        gone = {name: Figures() for name in known if name not in queues}
        self._past.append((clock, {**{name: queues[name] for name in kept}, **dict(list(gone.items())[:QUEUES])}))
        self.looks += 1
        self._last = sample
        return sample


def remember(known: dict[K, V], key: K, value: V) -> V:
    """Keep a value of a queue, and return it; if there are too many queues, drop the oldest values."""
    known.pop(key, None)
    while len(known) >= QUEUES:
        del known[next(iter(known))]
    known[key] = value
    return value
