"""Putting the jobs of ticks, the same for periodic tasks that are declared in code and for schedules."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta

from pqcore.events import PutEvent
from pqcore.hook_dispatch import call_hook
from pqcore.operations.deferred_put import StoredPut
from pqcore.operations.periodic import put
from pqcore.plugins import plugins
from pqcore.tasks.periodic import Timetable
from pqcore.worker.state import QueueState

MANY_TICKS = timedelta(hours=1)
"""If the last tick is at least this long ago, a thread computes the missed ticks, because there may be many."""


async def due_ticks(timetable: Timetable, last: datetime, now: datetime) -> list[datetime]:
    """Return the ticks to put, after ``last`` and up to ``now``, in order."""
    if now - last < MANY_TICKS:
        return timetable.due(last, now)
    return await asyncio.to_thread(timetable.due, last, now)  # millions of ticks may be due


async def put_ticks(
    queue_state: QueueState,
    name: str,
    ticks: Iterable[datetime],
    job: Callable[[], Awaitable[StoredPut]],
    event: Callable[[StoredPut], PutEvent],
    version: datetime | None = None,
) -> int:
    """Put the jobs of ticks, except those that other workers have put, and call plugins' hooks for them.

    Args:
        queue_state: The queue.
        name: The name under which ticks are stored.
        ticks: The ticks, in order.
        job: A function that makes the job. It is called for each tick, because a job may have a deadline that counts
            from its put.
        event: A function that makes the event for plugins, without the job's id.
        version: For a schedule, when its row was changed last; see `pqcore.operations.periodic.put`.

    Returns:
        The number of jobs that were put.
    """
    number = 0
    for tick in ticks:
        stored = await job()
        job_id = await queue_state.bridge.call(put, queue_state.queue, name, tick, stored.values(), version)
        if job_id is None:
            continue
        number += 1
        if plugins.has_impl("pqcore_job_put"):
            told = event(stored)
            told.ids = [job_id]
            await call_hook("pqcore_job_put", told)
    return number
