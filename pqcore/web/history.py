"""The figures of queues in the past: the samples that workers keep, and those that this process has taken itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby, pairwise
from statistics import median
from typing import Any, NamedTuple

from pqcore.errors import AccessDenied
from pqcore.operations.samples import PastSample, QueueSample, read_samples
from pqcore.web.charts import GAP
from pqcore.web.sampling import WINDOW, Figures, Point, Sampler, remember
from pqcore.web.target import Target

SPANS = {"15 min": WINDOW, "3 h": 10_800.0, "24 h": 86_400.0}
"""How far charts go back, in seconds, by the words that a visitor chooses."""
USUAL = "3 h"
"""The span of charts if a visitor chooses none."""
MOST_POINTS = 240
"""The largest number of points in a chart. A point of a longer time has the highest figures of that time."""
FEW_POINTS = 40
"""The largest number of points in a small chart."""
RENEWED = 30.0
"""Seconds after which stored samples are read again."""


class Past(NamedTuple):
    """The figures of a queue in the past.

    Attributes:
        points: The points of a chart, the oldest first.
        gap: The number of seconds without a point after which a line has a gap.
    """

    points: list[Point]
    gap: float


class _Stored(NamedTuple):
    """The stored samples of the last ``seconds`` seconds, and the time of reading, by the monotonic clock."""

    seconds: float
    clock: float
    samples: Sequence[PastSample]


class History:
    """The figures of queues in the past.

    Args:
        target: The table.
        sampler: The sampler of this process, whose samples are closer together.
    """

    def __init__(self, target: Target, sampler: Sampler) -> None:
        self._target = target
        self._sampler = sampler
        self._read: dict[str | None, _Stored] = {}

    async def of_queue(self, queue: str, seconds: float) -> Past:
        """Return the past figures of a queue, for a chart.

        Args:
            queue: The name of the queue.
            seconds: How far the chart goes back.
        """
        return self._past(queue, await self._stored(queue, seconds), seconds, MOST_POINTS)

    async def of_queues(self, queues: Sequence[str]) -> dict[str, Past]:
        """Return the figures of several queues during the last `WINDOW` seconds, for small charts."""
        stored = await self._stored(None, WINDOW)
        return {name: self._past(name, stored, WINDOW, FEW_POINTS) for name in queues}

    def _past(self, queue: str, samples: Sequence[tuple[float, PastSample]], seconds: float, most: int) -> Past:
        stored = [Point(clock, _figures(found)) for clock, each in samples if (found := each.of(queue)) is not None]
        points = sorted([*stored, *self._sampler.past(queue)], key=lambda point: point.clock)
        size = seconds / most
        groups = groupby(points[:-1], key=lambda point: point.clock // size)
        gap = GAP * max(self._sampler.interval, size, _spacing(stored))
        return Past([*(_highest(list(group)) for _, group in groups), *points[-1:]], gap)

    async def _stored(self, queue: str | None, seconds: float) -> Sequence[tuple[float, PastSample]]:
        """Return the samples that workers have stored, each with its time by this process's monotonic clock."""
        known = self._read.get(queue)
        if known is None or known.seconds < seconds or time.monotonic() > known.clock + RENEWED:
            found: Sequence[PastSample] = ()
            with suppress(AccessDenied):  # the role may read jobs, but not samples
                found = await self._target.read(read_samples, queue, seconds)
            known = remember(self._read, queue, _Stored(seconds, time.monotonic(), found))
        since = time.monotonic() - seconds
        return [(clock, each) for each in known.samples if (clock := known.clock - each.age) >= since]


def _spacing(points: Sequence[Point]) -> float:
    """Return the usual time between two points, in seconds; 0 if there are fewer than two."""
    return median(later.clock - earlier.clock for earlier, later in pairwise(points)) if len(points) > 1 else 0.0


def _figures(sample: QueueSample) -> Figures:
    return Figures(
        sample.ready,
        sample.scheduled,
        sample.leased,
        sample.parked,
        sample.dead,
        sample.oldest,
        minute=sample.finished,
        median=sample.median,
        slow=sample.slow,
    )


def _highest(points: Sequence[Point]) -> Point:
    """Return one point in place of several: it has the moment of the last point, and the highest figures of all."""
    rows = [point.figures for point in points]
    highest: dict[str, Any] = {
        name: max((value for row in rows if (value := getattr(row, name)) is not None), default=None)
        for name in Figures._fields
    }
    return Point(points[-1].clock, Figures(**highest))
