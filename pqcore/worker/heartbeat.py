"""Heartbeat what is held: lengthening leases, hearing what is to be cancelled, storing progress; and watching."""

from __future__ import annotations

import asyncio
import logging
import time

from pqcore.errors import PQError
from pqcore.operations import lease as leasing
from pqcore.operations import results
from pqcore.operations.job_outcome import Outcome
from pqcore.worker.executor import Executor
from pqcore.worker.state import ActiveJob, QueueState, WorkerState

logger = logging.getLogger("pqcore.tasks")

TEND = 0.2
"""Seconds between looks at what is held; they cost no statement unless there is something to say."""
STALE = 0.25
"""Seconds for which a job that was fetched ahead may wait for a place before it is given back."""
PROGRESS = 1.0
"""Seconds between two reports of a job's progress, at least."""
HEAR = 5.0
"""Seconds for which it is listened for cancellations at a time."""
LATE = 2.0
"""Seconds by which the loop may be late before that is worth a warning."""


class Heartbeat:
    """Tends the jobs that are held of one queue.

    Args:
        queue_state: The queue.
        executor: Who runs them.
        lease: Seconds for which jobs are leased.
    """

    def __init__(self, queue_state: QueueState, executor: Executor, lease: float) -> None:
        self._queue_state = queue_state
        self._executor = executor
        self._lease = lease

    async def run(self) -> None:
        """Do so until cancelled."""
        while True:
            await asyncio.sleep(TEND)
            try:
                await self._hold_on(time.monotonic())
                await self._report(time.monotonic())
            except PQError as exc:
                logger.warning("%r: cannot hold on to jobs: %s", self._queue_state.queue.name, exc)

    async def hear(self) -> None:
        """Hear at once of jobs that are to be cancelled; without LISTEN it is seen when leases are lengthened."""
        queue_state = self._queue_state
        engine = queue_state.bridge.engine
        ticket = None
        while True:
            try:
                await queue_state.bridge.run(engine.wait, queue_state.control, ticket, HEAR)
                # Drawn before the look, so that what comes after it counts.
                ticket, last = engine.snapshot(queue_state.control), ticket
                if ticket != last:
                    await self._look_for_cancelled()
            except PQError as exc:
                logger.debug("%r: cannot hear of cancellations: %s", queue_state.queue.name, exc)
                await asyncio.sleep(1.0)

    async def _look_for_cancelled(self) -> None:
        queue_state = self._queue_state
        ids = [held.job.id for held in queue_state.held.values() if not held.ended]
        if not ids:
            return
        rows = await queue_state.bridge.run(queue_state.bridge.engine.execute, "tasks.find_stop_requests", {"ids": ids})
        asked = {job_id for [job_id] in rows}
        for held in list(queue_state.held.values()):
            if held.job.id in asked:
                self._cancel(held)

    async def _hold_on(self, now: float) -> None:
        """Lengthen the leases that have run for a third of their time."""
        queue_state = self._queue_state
        due = [held for held in queue_state.held.values() if now - held.leased_at > self._lease / 3]
        if not due:
            return
        kept = await queue_state.bridge.call(leasing.beat, [held.job for held in due], self._lease)
        for held in due:
            asked = kept.get(held.key)
            if asked is not None:
                held.leased_at = now
                if asked:
                    self._cancel(held)
            elif held.context is not None and held.context.finished:
                continue  # its function finished it; if that is rolled back, the end is refused
            elif not held.ended:
                logger.warning("the lease of job %d of %r was lost", held.job.id, queue_state.queue.name)
                if not held.begun:
                    queue_state.buffer.remove(held)
                    queue_state.held.pop(held.key)
                else:
                    self._executor.stop(held, "lost")

    async def _report(self, now: float) -> None:
        queue_state = self._queue_state
        for held in list(queue_state.held.values()):
            if held.context is None or held.ended or now - held.reported < PROGRESS:
                continue
            value = held.context.take_progress()
            if value is not None:
                held.reported = now
                await queue_state.bridge.call(results.report_progress, queue_state.queue, held.job, value)

    def _cancel(self, held: ActiveJob) -> None:
        if held.ended:
            return
        if not held.begun:
            self._queue_state.buffer.remove(held)
            self._queue_state.decide(held, Outcome(held.job, "drop", reason="cancelled"))
        else:
            self._executor.stop(held, "cancelled")


async def watch_stalls(worker_state: WorkerState) -> None:
    """Give back what waits for too long, and say when the event loop stands still; until cancelled.

    Waits for no answer itself.
    """
    looked = time.monotonic()
    while True:
        await asyncio.sleep(TEND)
        now = time.monotonic()
        late, looked = now - looked - TEND, now
        for queue_state in worker_state.queue_states:
            queue_state.measure(now)
            if queue_state.buffer:
                queue_state.hand_back([held for held in queue_state.buffer if now - held.leased_at > STALE])
        coded, worker_state.coded = worker_state.coded, set(worker_state.coding)
        if late >= LATE:
            logger.warning(
                "the event loop stood still for %.1f seconds: %sa coroutine function blocks it (use a plain function,"
                " which runs in a thread), or the process was stopped",
                late,
                f"serializer {' or '.join(map(repr, sorted(coded)))} keeps other threads from running, "
                if coded
                else "",
            )
        worker_state.room.set()
