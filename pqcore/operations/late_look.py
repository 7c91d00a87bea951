"""A wait and the look that follows it, as one operation, so that one thread of a blocking engine does both."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.operations import fetch
from pqcore.settings import QueueSettings


class LateLook(NamedTuple):
    """The result of a look that came after a wait.

    Attributes:
        snapshot: A snapshot of the queue's channel from before the look.
        leased_at: When the leases began, by the monotonic clock.
        n: The number of jobs that the look asked for.
        rows: The rows that were leased.
        wake_in: Seconds until the next look is worthwhile; None if unknown.
    """

    snapshot: int | None
    leased_at: float
    n: int
    rows: Sequence[Row]
    wake_in: float | None


async def wait_and_look(
    engine: Engine,
    queue: QueueSettings,
    lease: float,
    *,
    snapshot: int | None,
    pause: float | None,
    poll_interval: float,
    begin: Callable[[], int],
) -> LateLook | None:
    """Wait until there may be a job, and then look; one thread of a blocking engine does both.

    Args:
        engine: The engine.
        queue: The queue.
        lease: The length of the leases, in seconds.
        snapshot: A snapshot for `Engine.wait_for_jobs`, taken before the last look, after which no due job was left.
        pause: Seconds until the next look is worthwhile; None if unknown, so that this operation asks the server.
        poll_interval: Seconds after which to look in any case.
        begin: A function that is called after the wait, from any thread. It returns the largest number of jobs to
            lease, or 0 for no look.

    Returns:
        The result of the look; None if ``begin`` returned 0, so that the operation did not look.
    """
    if pause is None:
        wake_in = await fetch.next_due(engine, queue)
        pause = math.inf if wake_in is None else max(wake_in, 0.001)
    await engine.wait_for_jobs(queue, snapshot, pause, poll_interval)
    n = begin()
    if not n:
        return None
    before, snapshot = snapshot, engine.snapshot(queue.channel)  # read before the look, so no later put is missed
    leased_at, woken = time.monotonic(), before is not None and snapshot != before
    rows, wake_in = await fetch.look(engine, queue, n, lease, patient=True, woken=woken)
    return LateLook(snapshot, leased_at, n, rows, wake_in)
