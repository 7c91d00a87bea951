"""The fetcher leases jobs: one for each free slot, and some ahead if jobs run fast."""

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
from pqcore.operations.late_look import LateLook, wait_and_look
from pqcore.tasks.fetched_jobs import given_up_jobs
from pqcore.worker.executor import Executor
from pqcore.worker.newcomers import accept_fairly
from pqcore.worker.state import PLACE_SECONDS, Prefetch, QueueState, WorkerState

logger = logging.getLogger("pqcore.tasks")

BURST_POLL = 0.05
"""Seconds between fetches of a burst worker that finds no job, while running jobs may put some."""


class Fetcher:
    """Leases the jobs of one queue, until the worker drains.

    Args:
        worker_state: The state that the worker's parts share.
        queue_state: The queue.
        executor: Runs the jobs.
        lease: Seconds for which jobs are leased.
        poll_interval: Seconds after which an idle fetcher tries again, even if nothing woke it.
        prefetch: The limits of fetching ahead.
        stop: The function to call when there is nothing to do; None to wait instead.
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
        # Whether the last fetch took all jobs that were due and admitted.
        self._took_all = False
        # The channel's snapshot from before the last fetch.
        self._before: int | None = None
        # The number of failed fetches since the last successful one.
        self._failures = 0
        # The channel's snapshot from before a wait, if the wait ended without a look.
        self._slept_with: int | None = None

    async def run(self) -> None:
        """Fetch jobs until the worker drains."""
        await self._follow_given_up()
        while not self._worker_state.draining.is_set():
            n = await self._wait_for_slots()
            if n == 0:
                continue
            try:
                await self._fetch(n)
            except (SchemaError, ConfigurationError):
                raise
            except PQError as exc:
                self._failures += 1
                pause = backoff(self._failures)
                logger.warning("%r: cannot take jobs, next try in %.1f s: %s", self._queue_state.queue.name, pause, exc)
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._worker_state.draining.wait(), pause)

    async def _follow_given_up(self) -> None:
        """Put the follow-ups of jobs that this thread took with `get` and never performed."""
        queue = self._queue_state.queue
        if given_up := given_up_jobs(queue):
            await self._queue_state.bridge.call(follow_ups.complete_given_up, queue, given_up)

    async def _wait_for_slots(self) -> int:
        """Return how many jobs to fetch. If none can be fetched now, wait for a change, and return 0."""
        worker_state, queue_state = self._worker_state, self._queue_state
        queue_state.measure(time.monotonic())
        slots = worker_state.slots_for(queue_state)
        n = 0 if queue_state.fetching or queue_state.quiet else queue_state.fetch_size(slots, self._prefetch)
        if n and (queue_state.shares_places or queue_state.awaits_ends):
            n = 0  # the statement that ends the running jobs will lease the next jobs
        queue_state.reserved_slots = max(min(n, slots), 0)
        if n == 0:
            if queue_state.quiet and self._stop is not None and not worker_state.draining.is_set():
                self._stop()  # a burst worker stops; it does not wait for an operator's permission to take jobs
            queue_state.wants_slot = not queue_state.quiet and queue_state.next_job() is None
            worker_state.wake_fetchers.clear()
            pause = 2 * PLACE_SECONDS if queue_state.shares_places else None
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(worker_state.wake_fetchers.wait(), pause)
            queue_state.wants_slot = False
        return n

    async def _fetch(self, n: int) -> None:
        worker_state, queue_state = self._worker_state, self._queue_state
        engine = queue_state.bridge.engine
        snapshot = engine.snapshot(queue_state.channel)  # read before the look, so that no later put is missed
        woken = None not in (snapshot, self._slept_with) and snapshot != self._slept_with
        self._slept_with = None
        seen, leased_at = worker_state.changes, time.monotonic()
        rows: Sequence[Any]
        wake_in: float | None
        left_none_since, queue_state.left_none_since = queue_state.left_none_since, None
        took_all = snapshot is not None and snapshot == left_none_since
        if took_all or (self._took_all and snapshot in (None, self._before)):
            self._took_all = False
            if self._stop is not None:
                await self._stop_if_done(self._stop)
                return
            await asyncio.sleep(0)  # let the jobs that were just taken start before the next fetch
            found = await self._wait_and_look(snapshot, None)
            if found is None:
                return
            snapshot, leased_at, n, rows, wake_in = found
        else:
            rows, wake_in = await self._look(n, leased_at, woken=woken)
        accept = partial(self._accept, leased_at=leased_at)
        await accept_fairly(queue_state, self._executor, self._lease, n, rows, leased_at, accept)
        while not self._note(rows, n, snapshot):
            if self._stop is not None and wake_in != 0.0:
                if fetch.looks_fully_next(queue_state.queue):
                    return
                queue_state.empty_at = seen
                await self._stop_if_done(self._stop)
                return
            found = await self._wait_and_look(snapshot, math.inf if wake_in is None else max(wake_in, 0.001))
            if found is None:
                return
            snapshot, leased_at, n, rows, wake_in = found
            self._accept(rows, leased_at)

    async def _look(self, n: int, leased_at: float, *, woken: bool) -> tuple[Sequence[Any], float | None]:
        """Lease up to ``n`` jobs, with leases that count from ``leased_at``; see `fetch.look`."""
        queue_state = self._queue_state
        queue_state.fetching = True
        try:
            late = partial(self._accept_late, leased_at)
            look = partial(fetch.look, patient=True, woken=woken)
            rows, wake_in = await queue_state.bridge.finish(late, look, queue_state.queue, n, self._lease)
        except Exception:
            queue_state.fetching = False
            self._worker_state.notify_if_idle()  # without this, a stopping worker would not notice that the look ended
            raise
        finally:
            queue_state.reserved_slots = 0
        return rows, wake_in

    def _accept(self, rows: Sequence[Any], leased_at: float) -> None:
        """Run the jobs of a look that has ended."""
        self._queue_state.fetching, self._queue_state.reserved_slots = False, 0
        self._executor.accept(self._queue_state, rows, leased_at)
        self._worker_state.notify_if_idle()
        if self._queue_state.outcomes:
            self._queue_state.wake_completer.set()

    def _note(self, rows: Sequence[Any], n: int, snapshot: int | None) -> bool:
        """Record the result of a look, and return whether it found jobs."""
        if self._failures:
            logger.info("%r: the server answers again", self._queue_state.queue.name)
            self._failures = 0
        if rows:
            lanes = self._queue_state.queue.lanes
            self._took_all = len(rows) < n and (bool(lanes.lanes) or (lanes.left_none and snapshot is not None))
            self._before = snapshot
        return bool(rows)

    async def _wait_and_look(self, snapshot: int | None, pause: float | None) -> LateLook | None:
        """Wait until there may be a job, and look; over a blocking driver, the same thread does both.

        Args:
            snapshot: The channel's snapshot from before the last look, which left no job.
            pause: Seconds until another look may find a job; None if that is unknown.

        Returns:
            The result of the look; None if the event loop must begin a look.
        """
        queue_state, begun = self._queue_state, False

        def begin() -> int:
            nonlocal begun
            n = self._begin_look()
            begun = n > 0
            return n

        def late(found: LateLook | None) -> None:
            if begun:
                self._accept(*((), 0.0) if found is None else (found.rows, found.leased_at))

        operation = partial(
            wait_and_look, snapshot=snapshot, pause=pause, poll_interval=self._poll_interval, begin=begin
        )
        try:
            found = await queue_state.bridge.finish(late, operation, queue_state.queue, self._lease)
        except Exception:
            if begun:
                self._accept((), 0.0)  # a stopping worker waits until this look is recorded as ended
            raise
        if found is None:
            self._slept_with = snapshot
        return found

    def _begin_look(self) -> int:
        """Return how many jobs to fetch after a wait; 0 if only the event loop can tell.

        With a blocking driver, a thread calls this method. The thread knows the free slots only if the worker has a
        single queue. With several queues, the event loop gives slots away meanwhile.
        """
        worker_state, queue_state = self._worker_state, self._queue_state
        in_thread = not queue_state.bridge.engine.runtime.suspends
        if worker_state.draining.is_set() or queue_state.fetching or queue_state.queue.lanes.lanes:
            return 0
        if queue_state.quiet:
            return 0
        if in_thread and len(worker_state.queue_states) > 1:
            return 0
        slots = worker_state.slots_for(queue_state)
        n = queue_state.fetch_size(slots, self._prefetch)
        if n > 0:
            queue_state.fetching, queue_state.reserved_slots = True, max(min(n, slots), 0)
        return n

    def _accept_late(self, leased_at: float, found: tuple[Sequence[Any], float | None] | None) -> None:
        """Accept jobs that arrive after the fetcher was cancelled; the executor gives them back."""
        self._accept(() if found is None else found[0], leased_at)

    async def _end_lost_batches(self) -> bool:
        """End batches whose jobs are gone; return whether there were any, because their end may have put jobs."""
        ended = 0
        for queue_state in list(self._worker_state.queue_states):
            ended += await queue_state.bridge.call(batch_counts.end_lost, queue_state.queue)
        if ended:
            self._worker_state.changes += 1
        return ended > 0

    async def _stop_if_done(self, stop: Callable[[], None]) -> None:
        worker_state = self._worker_state

        def is_done() -> bool:
            # A job that ended since the last fetch may have put other jobs.
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
