"""The registration of a worker: rows in the table of workers, renewed while the worker runs."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import suppress

import pqcore
from pqcore.errors import Closed, ConnectionLost, PoolTimeout, PQError
from pqcore.operations import worker_registry
from pqcore.operations.worker_registry import RunningWorker
from pqcore.worker.bridge import Bridge
from pqcore.worker.state import QueueState

logger = logging.getLogger("pqcore.tasks")

SWEEP_EVERY = 60
"""Renewals between two sweeps of rows that other workers left."""
WITHDRAWAL = 2.0
"""Seconds that a worker which stops waits for its rows to be deleted, at most."""


def running_worker(concurrency: int) -> RunningWorker:
    """Return how a worker of this process is listed, under a new id."""
    return RunningWorker(secrets.token_hex(6), socket.gethostname(), os.getpid(), pqcore.__version__, concurrency)


class Registration:
    """Lists a worker for its queues of one table while it runs. The worker runs even if it cannot be listed.

    Args:
        bridge: The bridge that runs operations on the table.
        queue_states: The queues of the table.
        worker: The entry of the worker.
    """

    def __init__(self, bridge: Bridge, queue_states: Sequence[QueueState], worker: RunningWorker) -> None:
        self._bridge = bridge
        self._queues = {queue_state.queue.name: queue_state.queue for queue_state in queue_states}
        self._worker = worker
        self._started = time.monotonic()
        self._listed = False
        self._has_warned = False
        self._renewal: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Write the rows, and renew them until cancelled."""
        renewals = 0
        while True:
            try:
                await self._renew()
                renewals += 1
                if renewals % SWEEP_EVERY == 2:  # a worker that ends soon is not listed
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
        tasks = {name: queue.known_tasks() for name, queue in self._queues.items()}
        age = time.monotonic() - self._started
        renewal = self._bridge.call(worker_registry.announce, self._worker, tasks, age)
        self._renewal = asyncio.ensure_future(renewal)
        await asyncio.shield(self._renewal)  # a statement that arrives after the withdrawal would undo it
        self._listed = True

    async def _withdraw(self) -> None:
        if self._renewal is not None:
            await asyncio.wait([self._renewal])
            self._listed |= not self._renewal.cancelled() and self._renewal.exception() is None
        if not self._listed:
            return
        try:
            await self._bridge.call(worker_registry.withdraw, self._worker, list(self._queues))
        except PQError as exc:
            logger.debug("%s: cannot delete this worker from the list of workers: %s", self._names(), exc)

    def _report(self, error: PQError) -> None:
        """Log why the worker is not listed; warn once, but not of a lost connection, of which other parts warn."""
        unreachable = isinstance(error, (ConnectionLost, PoolTimeout, Closed))
        level = logging.DEBUG if self._has_warned or unreachable else logging.WARNING
        self._has_warned |= not unreachable
        logger.log(level, "%s: this worker runs, but cannot write to the list of workers: %s", self._names(), error)

    def _names(self) -> str:
        return ", ".join(map(repr, self._queues))
