"""A look for jobs that follows a wait, as one operation: a blocking engine's thread does both."""

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
    """What a look found that came after a wait.

    Attributes:
        snapshot: Of the queue's channel, from before the look.
        leased_at: When the leases began, by the monotonic clock.
        n: How many jobs were asked for.
        rows: The rows that were leased.
        wake_in: Seconds until it is worth another look; None if that is unknown.
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
    """Wait until there may be a job, and then look, in one operation: a blocking engine's thread does both.

    Args:
        engine: Where.
        queue: From which queue.
        lease: Seconds for which the jobs are leased.
        snapshot: As for `Engine.wait_for_jobs`; taken before the last look, which left no job.
        pause: Seconds until it is worth another look; None if that is unknown, and asked for.
        poll_interval: Seconds after which to look in any case.
        begin: Called after the wait, from whatever thread: gives how many jobs to lease, at most. 0 for no look.

    Returns:
        What was found; None if it did not look.
    """
    if pause is None:
        wake_in = await fetch.next_due(engine, queue)
        pause = math.inf if wake_in is None else max(wake_in, 0.001)
    await engine.wait_for_jobs(queue, snapshot, pause, poll_interval)
    n = begin()
    if not n:
        return None
    before, snapshot = snapshot, engine.snapshot(queue.channel)  # before the look, so that a put after it counts
    leased_at, woken = time.monotonic(), before is not None and snapshot != before
    rows, wake_in = await fetch.look(engine, queue, n, lease, patient=True, woken=woken)
    return LateLook(snapshot, leased_at, n, rows, wake_in)
