"""Samples of the figures of each queue: workers keep about one sample per minute, for the charts of the last day.

In each minute, one worker of a table reads the figures, and keeps them. The worker counts waiting jobs with the
statement of `stats`, which reads only partial indexes, so finished jobs add nothing to the cost. The worker counts
finished jobs only among the latest 10,000 of the table and of the archive, as the web page does. No caller waits for
this reading. If a reading takes long, as with millions of waiting jobs, more time passes before the next sample.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter

from pqcore.db.engine import Engine
from pqcore.operations.activity import Finished, recent_completions
from pqcore.operations.admin import QueueFigures, count_queues

ALL_QUEUES = ""
"""The name that stands for the sum of all queues."""
MOST_QUEUES = 100
"""The largest number of queues in a sample: the queues with most jobs."""
SHORTEST = 60.0
"""The shortest time between two samples, in seconds."""
REST = 100.0
"""The shortest time between two samples, as a multiple of the time that a reading took, so that readings take at most
1 % of the time."""
KEPT = 86_400.0
"""How long samples are kept, in seconds."""
_COUNTS = ("ready", "scheduled", "leased", "parked", "dead", "finished")
_NO_JOBS = QueueFigures(0, 0, 0, None)
_NONE_FINISHED = Finished(0, 0, None, None)


@dataclass(frozen=True)
class QueueSample:
    """The figures of a queue at one moment.

    Attributes:
        ready: Jobs that a get would find.
        scheduled: Jobs that are not due yet.
        leased: Jobs held under a lease.
        parked: Jobs that wait for a place, or for their turn.
        dead: Dead letters.
        finished: Jobs finished within the minute before, as far as known.
        oldest: Seconds since the oldest ready job became due; None without a ready job.
        median: The median time from due to finished, of the jobs of the minute before, in seconds; None without such
            jobs.
        slow: The 95th percentile of the same times.
    """

    ready: int = 0
    scheduled: int = 0
    leased: int = 0
    parked: int = 0
    dead: int = 0
    finished: int = 0
    oldest: float | None = None
    median: float | None = None
    slow: float | None = None

    @property
    def weight(self) -> int:
        """How many jobs the queue has."""
        return self.ready + self.scheduled + self.leased + self.parked + self.dead + self.finished


@dataclass(frozen=True)
class PastSample:
    """The figures of queues at one moment in the past.

    Attributes:
        age: Seconds since that moment.
        queues: The figures by queue. A queue is missing if it was not asked for, had no jobs, or is not in the sample.
        total: The sum of all queues; None if row-level security hides it.
        complete: Whether all queues that had jobs are in the sample; if not, only the queues with most jobs are.
    """

    age: float
    queues: Mapping[str, QueueSample]
    total: QueueSample | None
    complete: bool

    def of(self, queue: str) -> QueueSample | None:
        """Return the figures of a queue; None if they are not known."""
        found = self.queues.get(queue)
        return QueueSample() if found is None and self.complete else found


class Sampling:
    """A part of a worker's maintenance that keeps samples.

    Attributes:
        task: The work, for a message.
    """

    task = "keep samples of figures"

    async def run(self, engine: Engine) -> int:
        """If a sample is due, and no other worker takes it, store a sample; return the number of queues in the sample.

        Raises:
            AccessDenied: The role may not read all figures, or may not write samples.
        """
        if engine.security is not None:
            return 0  # the figures would lack the jobs that row-level security hides
        [[at, age, took]] = await engine.execute("samples.last_sample", {})
        # A sample from the future, taken while the server's clock was ahead, does not delay the next sample.
        if age is not None and -SHORTEST < age < max(SHORTEST, REST * (took or 0.0)):
            return 0
        if not await engine.execute("samples.claim_sample", {"at": at}):
            return 0
        begun = time.monotonic()
        queues = await read_figures(engine)
        took = time.monotonic() - begun
        items = [{"q_name": ALL_QUEUES, "took": took, "queues": len(queues), **_written(_sum(queues.values()))}]
        most = sorted(queues, key=lambda name: (-queues[name].weight, name))[:MOST_QUEUES]
        items += [{"q_name": name, **_written(queues[name])} for name in most]
        await engine.execute("samples.keep_sample", {"at": at, "items": json.dumps(items)})
        await engine.execute("samples.prune_samples", {})
        return len(most)


async def read_figures(engine: Engine) -> dict[str, QueueSample]:
    """Return the present figures of each queue that has jobs, by the queue's name."""
    waiting, finished = await count_queues(engine), await recent_completions(engine)
    found = {}
    for name in sorted(waiting.keys() | finished.keys()):
        stats, done = waiting.get(name, _NO_JOBS), finished.get(name, _NONE_FINISHED)
        numbers = (stats.ready, stats.scheduled, stats.leased, stats.parked, stats.dead, done.minute)
        found[name] = QueueSample(**_counts(numbers), oldest=stats.oldest, median=done.median, slow=done.slow)
    return {name: sample for name, sample in found.items() if sample.weight}


async def read_samples(engine: Engine, queue: str | None = None, period: float = KEPT) -> list[PastSample]:
    """Return the samples that are kept, the oldest first.

    Args:
        engine: The engine.
        queue: Return the figures of this queue alone; None for all queues.
        period: Return the samples of this number of seconds until now.
    """
    rows = await engine.execute("samples.find_samples", {"q_name": queue, "seconds": float(period)}, protect=False)
    found = []
    for age, group in groupby(rows, key=itemgetter(0)):
        samples = {}
        complete = False
        for _, name, *values, number in group:
            oldest, median, slow = values[6:]
            samples[name] = QueueSample(**_counts(values[:6]), oldest=oldest, median=median, slow=slow)
            complete = complete or (name == ALL_QUEUES and number <= MOST_QUEUES)
        total = samples.pop(ALL_QUEUES, None)
        found.append(PastSample(float(age), samples, total, complete))
    return found


def _sum(samples: Iterable[QueueSample]) -> QueueSample:
    """Return the sum of figures, without the times that jobs took."""
    rows = list(samples)
    counts = [sum(getattr(row, name) for row in rows) for name in _COUNTS]
    oldest = max((row.oldest for row in rows if row.oldest is not None), default=None)
    return QueueSample(**_counts(counts), oldest=oldest)


def _counts(numbers: Iterable[int]) -> dict[str, int]:
    return {name: int(number) for name, number in zip(_COUNTS, numbers, strict=True)}


def _written(sample: QueueSample) -> dict[str, float | None]:
    """Return figures for JSON, which has no infinite numbers: a job may be due since ``-infinity``."""
    figures = asdict(sample)
    return {name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()}
