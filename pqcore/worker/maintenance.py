"""Maintenance: the work that any worker does from time to time for its queues, such as the ticks of periodic tasks."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any

from pqcore.backend import Capability
from pqcore.db.interrupts import is_from_outside
from pqcore.db.runtime import backoff
from pqcore.db.session import Session
from pqcore.errors import AccessDenied, PQError
from pqcore.events import PutEvent, ServerEvent
from pqcore.hook_dispatch import call_hook
from pqcore.operations import admission, batch_counts
from pqcore.operations.attempts import AttemptSweep
from pqcore.operations.deferred_put import StoredPut
from pqcore.operations.dependencies import release
from pqcore.operations.expiry import Sweep
from pqcore.operations.periodic import tick_window
from pqcore.operations.samples import Sampling
from pqcore.plugins import plugins
from pqcore.schema import security
from pqcore.tasks.periodic import Periodic
from pqcore.worker.schedules import Schedules
from pqcore.worker.state import QueueState
from pqcore.worker.ticks import due_ticks, put_ticks

logger = logging.getLogger("pqcore.tasks")

SWEEP_INTERVAL = 30.0
"""Seconds between sweeps, on average. If a place becomes free without a notification, the next sweep finds the
place."""
RELEASE_INTERVAL = 5.0
"""Seconds between looks for jobs that wait for no other job any more, on average. A take that finds no job looks, too.
"""
LONGEST_SLEEP = 60.0
"""The largest number of seconds between two looks at the server's clock while this process waits for a tick."""
NEARLY_FULL = 0.5
"""The fill level of the server's notification queue, from 0 to 1, from which a worker warns."""


class Maintenance:
    """The maintenance of one queue: sweeps, checks of the server, and ticks of periodic tasks and schedules.

    Args:
        queue_state: The queue.
        queue_states: All queues of the worker. For each table, the maintenance of the first queue also does the work
            that concerns the whole table: sweeps of its rows, and samples.
    """

    def __init__(self, queue_state: QueueState, queue_states: Sequence[QueueState]) -> None:
        self._queue_state = queue_state
        self._watch = batch_counts.Watch()
        name = queue_state.queue.name
        self._chores: list[Sweep | AttemptSweep | Sampling] = [Sweep(name)]
        first = next(each for each in queue_states if each.bridge is queue_state.bridge)
        if first is queue_state or "shared looks" in queue_state.bridge.engine.dialect.unsupported:
            self._chores.append(AttemptSweep(name))
        self._released: dict[str, QueueState] = {}
        if first is queue_state:
            self._chores.append(Sampling())
            if "after" not in queue_state.bridge.engine.dialect.unsupported:
                same = [each for each in queue_states if each.bridge is queue_state.bridge]
                self._released = {each.queue.name: each for each in same}

    async def run(self) -> None:
        """Do the maintenance until cancelled."""
        periodics = [self._tick(periodic) for periodic in self._queue_state.queue.periodics]
        await asyncio.gather(self._sweep(), self._release(), Schedules(self._queue_state).run(), *periodics)

    async def _sweep(self) -> None:
        turn = 0
        while True:
            await asyncio.sleep(SWEEP_INTERVAL * (0.5 + random.random()))  # noqa: S311 - so that workers do not sweep together
            try:
                await self._queue_state.bridge.run(self._sweep_once, turn % 10 == 0)
                await self._queue_state.bridge.call(self._watch.look, self._queue_state.queue)
                await self._check_server()
                await self._run_chores()
            except PQError as exc:
                logger.warning("%r: cannot run maintenance: %s", self._queue_state.queue.name, exc)
            turn += 1

    async def _release(self) -> None:
        """Release jobs whose parents have all ended, even on queues whose workers never become idle."""
        bridge = self._queue_state.bridge
        while self._released:
            await asyncio.sleep(RELEASE_INTERVAL * (0.5 + random.random()))  # noqa: S311 - see `_sweep`
            try:
                values = {"names": list(self._released)}
                for (name,) in await bridge.run(
                    bridge.engine.execute, "dependencies.queues_with_ended_parents", values
                ):
                    await bridge.call(release, self._released[name].queue)
            except PQError as exc:
                logger.warning("%r: cannot release jobs: %s", self._queue_state.queue.name, exc)

    async def _sweep_once(self, old: bool) -> None:
        queue, engine = self._queue_state.queue, self._queue_state.bridge.engine

        async def work(s: Session) -> None:
            await admission.sweep(queue, s)
            if old:
                await s.execute(s.sql.tasks.sweep_results)
                await s.execute(s.sql.tasks.sweep_dedup, s.sql.tasks.sweep_dedup.bind({"q_name": queue.name}))

        await engine.run(work)

    async def _run_chores(self) -> None:
        """Delete expired rows and attempts of deleted jobs, and store samples of figures, as far as the role may."""
        for chore in list(self._chores):
            try:
                await self._queue_state.bridge.run(chore.run, self._queue_state.bridge.engine)
            except AccessDenied as exc:
                self._chores.remove(chore)
                logger.warning("%r: cannot %s: %s", self._queue_state.queue.name, chore.task, exc)

    async def _check_security(self, s: Session) -> None:
        """Check whether row-level security has begun to hide rows: then fetches find nothing, without an error."""
        engine = self._queue_state.bridge.engine
        engine.security = await security.look(s, str(engine.names))

    async def _check_server(self) -> None:
        """Check how full the notification queue is; this also removes notifications that all sessions have read."""
        bridge, name = self._queue_state.bridge, self._queue_state.queue.name
        if not bridge.engine.offers(Capability.LISTEN):
            return
        await bridge.run(bridge.engine.run, self._check_security)
        [[usage]] = await bridge.run(bridge.engine.execute, "notification_usage", {})
        if usage >= NEARLY_FULL:
            logger.warning(
                "%r: the server's queue of notifications is %.0f %% full, because a listening session has had a"
                " transaction open for a long time; pqcore doctor shows the session",
                name,
                100 * usage,
            )
        if plugins.has_impl("pqcore_server_seen"):
            await call_hook("pqcore_server_seen", ServerEvent(name, float(usage)))

    async def _tick(self, periodic: Periodic) -> None:
        """Put a periodic task's job at each tick; a row in the database decides which worker does."""
        bridge, queue = self._queue_state.bridge, self._queue_state.queue
        before: datetime | None = None
        failures = 0
        job = partial(self._job, periodic)
        while True:
            try:
                last, now = await bridge.call(tick_window, queue, periodic.line, before)
                before, asked = now, time.monotonic()
                ticks = await due_ticks(periodic, last, now)
                await put_ticks(self._queue_state, periodic.name, ticks, job, lambda _: _event(queue, periodic))
                failures = 0
            except asyncio.CancelledError:
                raise
            except BaseException as exc:  # a user's function, such as a serializer, may raise anything
                if is_from_outside(exc):
                    raise
                failures += 1
                known = isinstance(exc, PQError)
                logger.warning("%r: cannot put the job of %s: %s", queue.name, periodic.name, exc, exc_info=not known)
                await asyncio.sleep(backoff(failures))
                continue
            coming = periodic.next_after(now)
            if coming is None:
                return
            pause = (coming - now).total_seconds() - (time.monotonic() - asked)
            await asyncio.sleep(min(max(pause, 0.0) + 0.001, LONGEST_SLEEP))

    async def _job(self, periodic: Periodic) -> StoredPut:
        """Return the job that a tick of a periodic task puts."""
        call = periodic.call
        if self._queue_state.queue.writes_quickly(call.data()):
            return call.stored()
        return await asyncio.to_thread(call.stored)


def _event(queue: Any, periodic: Periodic) -> PutEvent:
    """Return the event that plugins receive for a job that a tick puts."""
    call = periodic.call
    return PutEvent(queue.name, call.data(), call.task.path, dict(call.options.headers or {}))
