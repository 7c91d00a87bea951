"""What has to be done now and then, by any worker: ticks of periodic tasks, and the sweep."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from datetime import datetime, timedelta

from pqcore.backend import Capability
from pqcore.db.interrupts import is_from_outside
from pqcore.db.runtime import backoff
from pqcore.db.session import Session
from pqcore.errors import PQError
from pqcore.events import PutEvent, ServerEvent
from pqcore.hook_dispatch import call_hook
from pqcore.operations import batch_counts, concurrency_limits
from pqcore.operations import periodic as ticking
from pqcore.plugins import plugins
from pqcore.schema import security
from pqcore.tasks.periodic import Periodic
from pqcore.worker.state import QueueState

logger = logging.getLogger("pqcore.tasks")

SWEEP = 30.0
"""Seconds between sweeps, more or less: so long may a job wait for a place that nobody said was free."""
LONG = timedelta(hours=1)
"""So long without a tick, and those that were missed are reckoned beside the event loop."""
LONGEST_SLEEP = 60.0
"""Seconds: the server's clock is looked at again at least so often while ticks are waited for."""
NEARLY_FULL = 0.5
"""Of the server's queue of notifications: the part in use from which on a worker warns."""


class Maintenance:
    """The chores of one queue."""

    def __init__(self, queue_state: QueueState) -> None:
        self._queue_state = queue_state
        self._watch = batch_counts.Watch()

    async def run(self) -> None:
        """Do them until cancelled."""
        periodics = [self._tick(periodic) for periodic in self._queue_state.queue.periodics]
        await asyncio.gather(self._sweep(), *periodics)

    async def _sweep(self) -> None:
        turn = 0
        while True:
            await asyncio.sleep(SWEEP * (0.5 + random.random()))  # noqa: S311 - workers are not to sweep together
            try:
                await self._queue_state.bridge.run(self._sweep_once, turn % 10 == 0)
                await self._queue_state.bridge.call(self._watch.look, self._queue_state.queue)
                await self._look_at_server()
            except PQError as exc:
                logger.warning("%r: cannot sweep: %s", self._queue_state.queue.name, exc)
            turn += 1

    async def _sweep_once(self, old: bool) -> None:
        queue, engine = self._queue_state.queue, self._queue_state.bridge.engine

        async def work(s: Session) -> None:
            await concurrency_limits.sweep(engine, queue, s)
            if old:
                await s.execute(s.sql.tasks.sweep_results)
                await s.execute(s.sql.tasks.sweep_dedup, s.sql.tasks.sweep_dedup.bind({"q_name": queue.name}))

        await engine.run(work)

    async def _look_at_security(self, s: Session) -> None:
        """Look whether row-level security hides rows by now: then a take finds nothing, without an error."""
        engine = self._queue_state.bridge.engine
        engine.security = await security.look(s, str(engine.names))

    async def _look_at_server(self) -> None:
        """Look how full the queue of notifications is, which also empties it of what everybody has read."""
        bridge, name = self._queue_state.bridge, self._queue_state.queue.name
        if not bridge.engine.offers(Capability.LISTEN):
            return
        await bridge.run(bridge.engine.run, self._look_at_security)
        [[usage]] = await bridge.run(bridge.engine.execute, "notification_usage", {})
        if usage >= NEARLY_FULL:
            logger.warning(
                "%r: the server's queue of notifications is %.0f %% full: a session that listens has been in a"
                " transaction for long; pqcore doctor shows it",
                name,
                100 * usage,
            )
        if plugins.has_impl("pqcore_server_seen"):
            await call_hook("pqcore_server_seen", ServerEvent(name, float(usage)))

    async def _tick(self, periodic: Periodic) -> None:
        """Put a periodic task's job at each tick; which worker does is settled in the database."""
        bridge, queue = self._queue_state.bridge, self._queue_state.queue
        before: datetime | None = None
        failures = 0
        while True:
            try:
                last, now = await bridge.call(ticking.tick_window, queue, periodic.line, before)
                before, asked = now, time.monotonic()
                for tick in await _due(periodic, last, now):
                    row = await self._row(periodic)  # made each time: it may say until when it must be started
                    job_id = await bridge.call(ticking.put, queue, periodic.name, tick, row)
                    if job_id is not None and plugins.has_impl("pqcore_job_put"):
                        call = periodic.call
                        put = PutEvent(
                            queue.name, call.data(), call.task.path, dict(call.options.headers or {}), [job_id]
                        )
                        await call_hook("pqcore_job_put", put)
                failures = 0
            except asyncio.CancelledError:
                raise
            except BaseException as exc:  # options of the call are functions of users, and so is a serializer
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

    async def _row(self, periodic: Periodic) -> dict[str, object]:
        """The values of the statement that puts a periodic task's job."""
        call = periodic.call
        if self._queue_state.queue.writes_quickly(call.data()):
            return call.stored().values()
        return (await asyncio.to_thread(call.stored)).values()


async def _due(periodic: Periodic, last: datetime, now: datetime) -> list[datetime]:
    if now - last < LONG:
        return periodic.due(last, now)
    return await asyncio.to_thread(periodic.due, last, now)  # there may be millions to be gone through
