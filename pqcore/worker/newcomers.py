"""Slots for tenants whose jobs arrive while a statement gives all free slots away.

The statement does not see such a job. If all slots get jobs that run long and end together, the tenant would have to
wait until then, although a slot was free when its job was put. So the worker holds one of the leased jobs back for
a moment, and looks once more: if it is the tenant's turn, its job gets the slot, and the worker gives the other job
back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from pqcore.errors import PQError
from pqcore.operations.newcomer import share_of, take_newcomer
from pqcore.rows import JobRow
from pqcore.worker.executor import Executor
from pqcore.worker.state import LONGEST_AHEAD, QueueState

logger = logging.getLogger("pqcore.tasks")


async def accept_fairly(
    queue_state: QueueState,
    executor: Executor,
    lease: float,
    n: int,
    rows: Sequence[Any],
    leased_at: float,
    accept: Callable[[Sequence[Any]], None],
) -> None:
    """Run leased jobs, and in the last slot, a job of a tenant that came too late, if it is the tenant's turn.

    Args:
        queue_state: The queue.
        executor: Runs the jobs.
        lease: Seconds for which jobs are leased.
        n: The number of jobs that the worker asked for.
        rows: The rows of the jobs that a statement leased.
        leased_at: When the leases began, by the monotonic clock, in seconds.
        accept: The function that records the end of the statement, and accepts rows.
    """
    held = _held_back(queue_state, rows, n)
    if held is None:
        accept(rows)
        return
    accept([*rows[:held], *rows[held + 1 :]])
    job = JobRow._make(rows[held])
    began, found = time.monotonic(), False
    queue_state.fetching, queue_state.reserved_slots = True, 1

    def take_over(late: Sequence[Any] | None) -> None:
        nonlocal found
        found = bool(late)
        executor.accept(queue_state, late or (), began)

    try:
        take_over(await queue_state.bridge.finish(take_over, take_newcomer, queue_state.queue, lease, share_of(job)))
    except PQError as exc:
        logger.debug("%r: cannot look for jobs of other tenants: %s", queue_state.queue.name, exc)
    finally:
        queue_state.fetching, queue_state.reserved_slots = False, 0
        executor.accept(queue_state, [job], leased_at)
        active = queue_state.active_jobs.get((job.id, job.attempts))
        if found and active is not None and not active.is_started:
            queue_state.give_back([active])
        if queue_state.outcomes:
            queue_state.wake_completer.set()  # the completer may have waited for the end of this look


def _held_back(queue_state: QueueState, rows: Sequence[Any], n: int) -> int | None:
    """Return the position of the job that may have to give its slot to another tenant; None if there is no such job."""
    lanes, is_long = queue_state.queue.lanes, queue_state.longest > LONGEST_AHEAD
    if len(rows) < n or not is_long or not lanes.has_shares or queue_state.queue.rate is not None:
        return None
    return int(lanes.furthest([share_of(row) for row in rows]))
