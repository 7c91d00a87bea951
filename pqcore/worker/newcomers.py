"""Slots for tenants whose jobs arrive while a statement gives all free slots away.

The statement does not see such a job. If all slots get jobs that run long and end together, the tenant would have to
wait until then, although a slot was free when its job was put. So the worker holds the last of the leased jobs back for
a moment, and looks once more: a job of such a tenant gets the slot, and the worker gives the other job back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from pqcore.errors import PQError
from pqcore.operations.newcomer import take_newcomer
from pqcore.worker.executor import Executor
from pqcore.worker.state import LONGEST_AHEAD, QueueState

logger = logging.getLogger("pqcore.tasks")


def may_have_newcomer(queue_state: QueueState, rows: Sequence[Any], n: int) -> bool:
    """Return whether a job of another tenant may have come too late for a statement that filled all slots.

    Args:
        queue_state: The queue.
        rows: The rows that the statement leased.
        n: The number of jobs that the worker asked for.
    """
    lanes = queue_state.queue.lanes
    return (
        len(rows) == n and lanes.has_shares and queue_state.longest > LONGEST_AHEAD and queue_state.queue.rate is None
    )


async def run_newcomer(
    queue_state: QueueState,
    executor: Executor,
    lease: float,
    last: Any,
    accept: Callable[[Sequence[Any]], None],
) -> None:
    """Run a job of a tenant that was overlooked, if there is one, and otherwise the last job that was leased.

    Args:
        queue_state: The queue.
        executor: Runs the jobs.
        lease: Seconds for which jobs are leased.
        last: The row of the last job that was leased, which has not been accepted.
        accept: The function that accepts this row.
    """
    began, found = time.monotonic(), False
    queue_state.fetching, queue_state.reserved_slots = True, 1

    def take_over(rows: Sequence[Any] | None) -> None:
        nonlocal found
        found = bool(rows)
        executor.accept(queue_state, rows or (), began)

    try:
        take_over(await queue_state.bridge.finish(take_over, take_newcomer, queue_state.queue, lease))
    except PQError as exc:
        logger.debug("%r: cannot look for jobs of other tenants: %s", queue_state.queue.name, exc)
    finally:
        queue_state.fetching, queue_state.reserved_slots = False, 0
        accept([last])
        held = queue_state.active_jobs.get((last.id, last.attempts))
        if found and held is not None and not held.is_started:
            queue_state.give_back([held])
