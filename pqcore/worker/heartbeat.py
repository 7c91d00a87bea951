"""The heartbeat of active jobs: it extends leases, obeys cancellations and pauses, and stores progress."""

from __future__ import annotations

import asyncio
import logging
import time

from pqcore.errors import LeaseLost, PQError
from pqcore.operations import results
from pqcore.operations.job_outcome import Outcome
from pqcore.operations.lease import beat, extend
from pqcore.operations.paused_tasks import calls_one_of, paused_paths
from pqcore.operations.read_rules import current_rules
from pqcore.worker.executor import Executor
from pqcore.worker.state import ActiveJob, QueueState, WorkerState

logger = logging.getLogger("pqcore.tasks")

INTERVAL = 0.2
"""Seconds between beats; a beat runs a statement only if a lease is due or there is progress to store."""
MAX_PREFETCH_AGE = 0.25
"""Seconds for which a job that was fetched ahead may wait for a slot before it is given back."""
PROGRESS_INTERVAL = 1.0
"""The smallest number of seconds between two statements that store a job's progress."""
LISTEN_TIMEOUT = 5.0
"""Seconds of one wait for a notification of a cancellation."""
STALL_WARNING = 2.0
"""Seconds by which the event loop may be late before the worker logs a warning."""


class Heartbeat:
    """Extends the leases of one queue's active jobs, and stops jobs that are cancelled, paused, or have lost the lease.

    Args:
        queue_state: The queue.
        executor: Runs the jobs.
        lease: Seconds for which jobs are leased.
    """

    def __init__(self, queue_state: QueueState, executor: Executor, lease: float) -> None:
        self._queue_state = queue_state
        self._executor = executor
        self._lease = lease
        self._alone: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Extend leases and store progress until cancelled."""
        try:
            while True:
                await asyncio.sleep(INTERVAL)
                try:
                    await self._heed_pause()
                    await self._extend_leases(time.monotonic())
                    await self._store_progress(time.monotonic())
                except PQError as exc:
                    logger.warning("%r: cannot extend leases: %s", self._queue_state.queue.name, exc)
        finally:
            if self._alone is not None:
                self._alone.cancel()

    async def listen(self) -> None:
        """Stop jobs as soon as their cancellation is notified; without LISTEN, when their leases are extended.

        Changes of the queue's rules and schedules come by the same channel.
        """
        queue_state = self._queue_state
        engine = queue_state.bridge.engine
        snapshot = None
        while True:
            try:
                await queue_state.bridge.run(engine.wait, queue_state.control, snapshot, LISTEN_TIMEOUT, reads=False)
                # The snapshot is taken before the statement, so that a cancellation during the statement counts.
                snapshot, last = engine.snapshot(queue_state.control), snapshot
                if snapshot != last:
                    queue_state.schedules_changed.set()
                    queue_state.queue.rule_cache.forget(now=time.monotonic(), in_transaction=False)
                    await self._heed_pause()
                    await self._stop_cancelled()
            except PQError as exc:
                logger.debug("%r: cannot listen for cancellations: %s", queue_state.queue.name, exc)
                await asyncio.sleep(1.0)

    async def _heed_pause(self) -> None:
        """Give back jobs that were fetched ahead, if their queue or task is paused, so that no slot runs them."""
        queue_state = self._queue_state
        if not queue_state.buffer:
            return
        rules = await queue_state.bridge.call(current_rules, queue_state.queue)
        if rules.paused:
            queue_state.give_back(list(queue_state.buffer))
        elif paths := paused_paths(rules):
            queue = queue_state.queue
            queue_state.give_back([active for active in queue_state.buffer if calls_one_of(queue, active.job, paths)])

    async def _stop_cancelled(self) -> None:
        queue_state = self._queue_state
        ids = [active.job.id for active in queue_state.active_jobs.values() if not active.ended]
        if not ids:
            return
        rows = await queue_state.bridge.run(queue_state.bridge.engine.execute, "tasks.find_stop_requests", {"ids": ids})
        asked = {job_id for [job_id] in rows}
        for active in list(queue_state.active_jobs.values()):
            if active.job.id in asked:
                self._cancel(active)

    async def _extend_leases(self, now: float) -> None:
        """Extend each lease after a third of its duration."""
        queue_state = self._queue_state
        due = [active for active in queue_state.active_jobs.values() if now - active.leased_at > self._lease / 3]
        if not due:
            return
        kept, locked = await queue_state.bridge.call(beat, [active.job for active in due], self._lease)
        for active in due:
            asked = kept.get(active.key)
            if asked is not None:
                active.leased_at = now
                if asked:
                    self._cancel(active)
            elif active.key in locked:
                self._extend_alone(active)
            elif active.context is not None and active.context.finished:
                # the function finished the job; if the function's transaction is rolled back, the end is refused
                continue
            elif not active.ended:
                logger.warning("the lease of job %d of %r was lost", active.job.id, queue_state.queue.name)
                if not active.is_started:
                    queue_state.buffer.remove(active)
                    queue_state.active_jobs.pop(active.key)
                else:
                    self._executor.stop(active, "lost")

    def _extend_alone(self, active: ActiveJob) -> None:
        """Wait for the transaction that has locked a row, and then extend the row's lease.

        Only one row at a time is waited for, because each wait uses a connection of the worker. The next beat extends
        the leases of the other rows.
        """
        if self._alone is None or self._alone.done():
            self._alone = asyncio.create_task(self._wait_and_extend(active))

    async def _wait_and_extend(self, active: ActiveJob) -> None:
        began = time.monotonic()
        try:
            await self._queue_state.bridge.call(extend, self._queue_state.queue, active.job, self._lease)
        except LeaseLost:
            return  # the next beat also finds the lease lost, and stops the job
        except PQError as exc:
            logger.warning("%r: cannot extend leases: %s", self._queue_state.queue.name, exc)
        else:
            active.leased_at = max(began, active.leased_at)

    async def _store_progress(self, now: float) -> None:
        queue_state = self._queue_state
        for active in list(queue_state.active_jobs.values()):
            if active.context is None or active.ended or now - active.progress_stored_at < PROGRESS_INTERVAL:
                continue
            value = active.context.take_progress()
            if value is not None:
                active.progress_stored_at = now
                await queue_state.bridge.call(results.report_progress, queue_state.queue, active.job, value)

    def _cancel(self, active: ActiveJob) -> None:
        if active.ended:
            return
        if not active.is_started:
            self._queue_state.buffer.remove(active)
            self._queue_state.complete(active, Outcome(active.job, "drop", reason="cancelled"))
        else:
            self._executor.stop(active, "cancelled")


async def watch_stalls(worker_state: WorkerState) -> None:
    """Until cancelled, give back jobs that wait too long for a slot, and warn when the event loop stands still.

    This coroutine waits for no answer of the server.
    """
    looked = time.monotonic()
    while True:
        await asyncio.sleep(INTERVAL)
        now = time.monotonic()
        late, looked = now - looked - INTERVAL, now
        for queue_state in worker_state.queue_states:
            queue_state.measure(now)
            if queue_state.buffer:
                queue_state.give_back(
                    [active for active in queue_state.buffer if now - active.leased_at > MAX_PREFETCH_AGE]
                )
        coded, worker_state.serializers_seen = worker_state.serializers_seen, set(worker_state.serializers_running)
        if late >= STALL_WARNING:
            logger.warning(
                "the event loop was blocked for %.1f seconds: %sa coroutine function blocks the loop (use a plain"
                " function, which runs in a thread), or the process was stopped",
                late,
                f"serializer {' or '.join(map(repr, sorted(coded)))} keeps other threads from running, "
                if coded
                else "",
            )
        worker_state.wake_fetchers.set()
