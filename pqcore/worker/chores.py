"""What has to be done now and then, by any worker: ticks of periodic tasks, and the sweep."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import datetime

from pqcore.errors import PQError
from pqcore.events import PutEvent, heard, tell
from pqcore.operations import gating, ticking
from pqcore.sessions import CoreSession
from pqcore.tasks.declaring import logger
from pqcore.tasks.periodic import Periodic
from pqcore.worker.station import Station

SWEEP = 30.0
"""Seconds between sweeps, more or less: so long may a job wait for a place that nobody said was free."""
LONGEST_SLEEP = 60.0
"""Seconds: the server's clock is looked at again at least so often while ticks are waited for."""


class Chores:
    """The chores of one queue."""

    def __init__(self, station: Station) -> None:
        self._station = station

    async def run(self) -> None:
        """Do them until cancelled."""
        periodics = [self._tick(periodic) for periodic in self._station.queue.periodics]
        await asyncio.gather(self._sweep(), *periodics)

    async def _sweep(self) -> None:
        turn = 0
        while True:
            await asyncio.sleep(SWEEP * (0.5 + random.random()))  # noqa: S311 - workers are not to sweep together
            try:
                await self._station.bridge.run(self._sweep_once, turn % 10 == 0)
            except PQError as exc:
                logger.warning("%r: cannot sweep: %s", self._station.queue.name, exc)
            turn += 1

    async def _sweep_once(self, old: bool) -> None:
        queue, engine = self._station.queue, self._station.bridge.engine

        async def work(s: CoreSession) -> None:
            await gating.sweep(engine, queue, s)
            if old:
                await s.execute(s.sql.tasks.sweep_results)
                await s.execute(s.sql.tasks.sweep_dedup, s.sql.tasks.sweep_dedup.bind({"q_name": queue.name}))

        await engine.run(work)

    async def _tick(self, periodic: Periodic) -> None:
        """Put a periodic task's job at each tick; which worker does is settled in the database."""
        bridge, queue = self._station.bridge, self._station.queue
        row = periodic.call.stored().values()
        last: datetime | None = None
        failures = 0
        while True:
            try:
                last, now = await bridge.call(ticking.last_tick, queue, periodic.name)
                if last is None:
                    last = now
                    await bridge.call(ticking.begin, queue, periodic.name, now)
                asked = time.monotonic()
                for tick in periodic.due(last, now):
                    job_id = await bridge.call(ticking.put, queue, periodic.name, tick, row)
                    if job_id is not None and heard("pqcore_job_put"):
                        call = periodic.call
                        put = PutEvent(
                            queue.name, call.data(), call.task.path, dict(call.options.headers or {}), [job_id]
                        )
                        await tell("pqcore_job_put", put)
                failures = 0
            except PQError as exc:
                failures += 1
                logger.warning("%r: cannot put the job of %s: %s", queue.name, periodic.name, exc)
                await asyncio.sleep(min(0.1 * 2 ** min(failures, 7), 5.0) * (0.5 + random.random()))  # noqa: S311
                continue
            coming = periodic.next_after(now)
            if coming is None:
                return
            pause = (coming - now).total_seconds() - (time.monotonic() - asked)
            await asyncio.sleep(min(max(pause, 0.0) + 0.001, LONGEST_SLEEP))
