"""The fetcher leases jobs: as many as there are free slots, and some ahead if jobs run fast."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from pqcore.db.runtime import backoff
from pqcore.errors import ConfigurationError, PQError, SchemaError
from pqcore.operations import batch_counts, fetch, follow_ups
from pqcore.tasks.fetched_jobs import given_up_jobs
from pqcore.worker.executor import Executor
from pqcore.worker.state import PLACE_SECONDS, Prefetch, QueueState, WorkerState

logger = logging.getLogger("pqcore.tasks")

BURST_POLL = 0.05
"""Seconds between fetches of a burst worker that finds no job, while running jobs may put some."""


class Fetcher:
    """Leases the jobs of one queue, until the worker drains.

    Args:
        worker_state: What the worker's parts share.
        queue_state: The queue.
        executor: Runs the jobs.
        lease: Seconds for which jobs are leased.
        poll_interval: Seconds after which an idle fetcher tries again, woken or not.
        prefetch: How much is fetched ahead, at most.
        stop: What to call when there is nothing to do; None to wait instead.
    """

    def __init__(
        self,
        worker_state: WorkerState,
        queue_state: QueueState,
        executor: Executor,
        *,
        lease: float,
        poll_interval: float,
        prefetch: Prefetch,
        stop: Callable[[], None] | None,
    ) -> None:
        self._worker_state = worker_state
        self._queue_state = queue_state
        self._executor = executor
        self._lease = lease
        self._poll_interval = poll_interval
        self._prefetch = prefetch
        self._stop = stop
        self._took_all = False  # whether the last fetch took all jobs that were admitted
        self._before: int | None = None  # the snapshot before that fetch

    async def run(self) -> None:
        """Fetch jobs until the worker drains."""
        failures = 0
        await self._follow_given_up()
        while not self._worker_state.draining.is_set():
            n = await self._wait_for_slots()
            if n == 0:
                continue
            try:
                await self._fetch(n)
                if failures:
                    logger.info("%r: the server answers again", self._queue_state.queue.name)
                failures = 0
            except (SchemaError, ConfigurationError):
                raise
            except PQError as exc:
                failures += 1
                pause = backoff(failures)
                logger.warning("%r: cannot take jobs, next try in %.1f s: %s", self._queue_state.queue.name, pause, exc)
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._worker_state.draining.wait(), pause)

    async def _follow_given_up(self) -> None:
        """Do what follows from jobs that were taken from the queue with `get` before, and that nobody performed."""
        queue = self._queue_state.queue
        if given_up := given_up_jobs(queue):
            await self._queue_state.bridge.call(follow_ups.complete_given_up, queue, given_up)

    async def _wait_for_slots(self) -> int:
        """Return how many jobs to fetch; before it returns 0, wait until that may have changed."""
        worker_state, queue_state = self._worker_state, self._queue_state
        queue_state.measure(time.monotonic())
        slots = worker_state.slots_for(queue_state)
        n = 0 if queue_state.fetching else queue_state.fetch_size(slots, self._prefetch)
        if n and queue_state.shares_places:  # the statement that ends these jobs leases others, of all lanes
            n = 0
        queue_state.reserved_slots = max(min(n, slots), 0)
        if n == 0:
            queue_state.wants_slot = queue_state.next_job() is None
            worker_state.wake_fetchers.clear()
            pause = 2 * PLACE_SECONDS if queue_state.shares_places else None
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(worker_state.wake_fetchers.wait(), pause)
            queue_state.wants_slot = False
        return n

    async def _fetch(self, n: int) -> None:
        worker_state, queue_state = self._worker_state, self._queue_state
        engine = queue_state.bridge.engine
        snapshot = engine.snapshot(queue_state.channel)  # before the statement, so that a put after it counts
        seen, leased_at = worker_state.changes, time.monotonic()
        if self._took_all and snapshot in (None, self._before):
            self._took_all = False
            await self._wait_for_admission(snapshot)
            return
        queue_state.fetching = True
        try:
            late = partial(self._accept_late, leased_at)
            look = partial(fetch.look, patient=True)
            rows, wake_in = await queue_state.bridge.finish(late, look, queue_state.queue, n, self._lease)
        except Exception:
            queue_state.fetching = False
            worker_state.notify_if_idle()  # else a stopping worker waits for it
            raise
        finally:
            queue_state.reserved_slots = 0
        queue_state.fetching = False
        self._executor.accept(self._queue_state, rows, leased_at)
        worker_state.notify_if_idle()
        if rows:
            self._took_all, self._before = len(rows) < n and bool(queue_state.queue.lanes.lanes), snapshot
            return
        if self._stop is not None and wake_in != 0.0:
            queue_state.empty_at = seen
            await self._stop_if_done(self._stop)
            return
        pause = math.inf if wake_in is None else max(wake_in, 0.001)
        await queue_state.bridge.run(engine.wait_for_jobs, queue_state.queue, snapshot, pause, self._poll_interval)

    async def _wait_for_admission(self, snapshot: int | None) -> None:
        """Wait where the last fetch took all jobs that were admitted: a look would find no other before a change."""
        queue_state = self._queue_state
        if self._stop is not None:
            await self._stop_if_done(self._stop)
            return
        engine, queue = queue_state.bridge.engine, queue_state.queue
        wake_in = await queue_state.bridge.call(fetch.next_due, queue)
        pause = math.inf if wake_in is None else max(wake_in, 0.001)
        await queue_state.bridge.run(engine.wait_for_jobs, queue, snapshot, pause, self._poll_interval)

    def _accept_late(self, leased_at: float, found: tuple[Sequence[Any], float | None] | None) -> None:
        """Accept jobs that arrive after the fetcher was cancelled: they are given back."""
        self._queue_state.fetching = False
        if found is not None:
            self._executor.accept(self._queue_state, found[0], leased_at)
        self._worker_state.notify_if_idle()

    async def _end_lost_batches(self) -> bool:
        """End batches whose jobs are gone; True if there were some, as their end may have put jobs."""
        ended = 0
        for queue_state in list(self._worker_state.queue_states):
            ended += await queue_state.bridge.call(batch_counts.end_lost, queue_state.queue)
        if ended:
            self._worker_state.changes += 1
        return ended > 0

    async def _stop_if_done(self, stop: Callable[[], None]) -> None:
        worker_state = self._worker_state

        def is_done() -> bool:
            # A job that ended since the last fetch may have put others.
            now = time.monotonic()
            return not worker_state.is_busy() and all(
                each.empty_at == worker_state.changes and not each.queue.lanes.aside_for(now)
                for each in worker_state.queue_states
            )

        if is_done():
            if not await self._end_lost_batches() and is_done():
                stop()
            return
        worker_state.idle.clear()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(worker_state.idle.wait(), BURST_POLL)
