"""The registration of a worker: rows in the table of workers, renewed while the worker runs."""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterable
from contextlib import suppress

import pqcore
from pqcore.errors import Closed, ConnectionLost, PoolTimeout, PQError
from pqcore.operations import worker_registry
from pqcore.operations.worker_registry import RunningWorker
from pqcore.worker.bridge import Bridge
from pqcore.worker.state import QueueState, WorkerState

logger = logging.getLogger("pqcore.tasks")

SWEEP_EVERY = 60
"""The number of renewals between two sweeps of rows that other workers left."""
MOST_RUNNING = 100
"""The largest number of jobs of one queue that a worker lists as running."""
WITHDRAWAL = 2.0
"""The largest number of seconds that a stopping worker waits for the deletion of its rows."""


def running_worker(concurrency: int) -> RunningWorker:
    """Return the values under which a worker of this process is listed, with a new id."""
    return RunningWorker(secrets.token_hex(6), socket.gethostname(), os.getpid(), pqcore.__version__, concurrency)


class Registration:
    """Lists a worker for its queues of one table while it runs. The worker runs even if it cannot be listed.

    Args:
        worker_state: The state that the worker's parts share.
        bridge: The bridge that runs operations on the table.
        worker: The entry of the worker.
    """

    def __init__(self, worker_state: WorkerState, bridge: Bridge, worker: RunningWorker) -> None:
        self._worker_state = worker_state
        self._bridge = bridge
        self._queue_states = [each for each in worker_state.queue_states if each.bridge is bridge]
        self._worker = worker
        self._started = time.monotonic()
        self._listed = False
        self._has_warned = False
        self._renewal: asyncio.Future[list[str]] | None = None

    async def run(self) -> None:
        """Write the rows, and renew them until cancelled."""
        renewals = 0
        while True:
            try:
                await self._renew()
                renewals += 1
                if renewals % SWEEP_EVERY == 2:  # not in the first renewal, so that a short-lived worker never sweeps
                    await self._bridge.call(worker_registry.sweep)
            except PQError as exc:
                self._listed = False
                self._report(exc)
            await asyncio.sleep(worker_registry.RENEWAL)

    async def withdraw(self) -> None:
        """Delete the rows, within `WITHDRAWAL` seconds; call this after `run` is cancelled."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._withdraw(), WITHDRAWAL)

    async def _renew(self) -> None:
        tasks = {each.queue.name: each.queue.known_tasks() for each in self._queue_states}
        running = {name: _running(each for each in self._queue_states if each.queue.name == name) for name in tasks}
        age = time.monotonic() - self._started
        renewal = self._bridge.call(worker_registry.announce, self._worker, tasks, running, age)
        self._renewal = asyncio.ensure_future(renewal)
        quiet = await asyncio.shield(self._renewal)  # a renewal after the withdrawal would list the worker again
        self._listed = True
        for each in self._queue_states:
            if self._worker_state.set_quiet(each, quiet=each.queue.name in quiet):
                what = "no more jobs" if each.quiet else "jobs again"
                logger.info("%r: an operator told this worker to take %s", each.queue.name, what)

    async def _withdraw(self) -> None:
        if self._renewal is not None:
            await asyncio.wait([self._renewal])
            self._listed |= not self._renewal.cancelled() and self._renewal.exception() is None
        if not self._listed:
            return
        try:
            names = sorted({each.queue.name for each in self._queue_states})
            await self._bridge.call(worker_registry.withdraw, self._worker, names)
        except PQError as exc:
            logger.debug("%s: cannot delete this worker from the list of workers: %s", self._names(), exc)

    def _report(self, error: PQError) -> None:
        """Log why the worker is not listed. Warn only once; never warn of a lost connection, because other parts do."""
        unreachable = isinstance(error, (ConnectionLost, PoolTimeout, Closed))
        level = logging.DEBUG if self._has_warned or unreachable else logging.WARNING
        self._has_warned |= not unreachable
        logger.log(level, "%s: this worker runs, but cannot write to the list of workers: %s", self._names(), error)

    def _names(self) -> str:
        return ", ".join(dict.fromkeys(repr(each.queue.name) for each in self._queue_states))


def _running(queue_states: Iterable[QueueState]) -> list[tuple[int, int, float]]:
    """Return the id, the token and the seconds since the start of each job that runs, the earliest start first."""
    now = time.perf_counter()
    running = [active for each in queue_states for active in each.active_jobs.values() if active.is_running]
    longest = heapq.nsmallest(MOST_RUNNING, running, key=lambda active: active.started_at)
    return [(active.job.id, active.job.token, round(max(now - active.started_at, 0.0), 3)) for active in longest]
