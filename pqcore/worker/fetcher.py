"""Fetching jobs: as many as there are free places, and some ahead if they go fast."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from pqcore.db.runtime import backoff
from pqcore.errors import ConfigurationError, PQError, SchemaError
from pqcore.operations import batch_counts, complete, fetch
from pqcore.tasks.declaring import logger
from pqcore.tasks.fetched_jobs import given_up_jobs
from pqcore.worker.executor import Execution
from pqcore.worker.state import Floor, Held, Station

BURST_LOOK = 0.05
"""Seconds between looks of a worker that is to stop when there is nothing to do, while jobs run that may put some."""


class Supply:
    """Fetches the jobs of one queue.

    Args:
        floor: What the worker's parts share.
        station: The queue.
        execution: Who runs them.
        lease: Seconds for which jobs are leased.
        poll_interval: Seconds after which it looks, woken or not.
        prefetch: Jobs fetched ahead, at most.
        stop: What to call when there is nothing to do; None to wait instead.
    """

    def __init__(
        self,
        floor: Floor,
        station: Station,
        execution: Execution,
        *,
        lease: float,
        poll_interval: float,
        prefetch: int,
        stop: Callable[[], None] | None,
    ) -> None:
        self._floor = floor
        self._station = station
        self._execution = execution
        self._lease = lease
        self._poll_interval = poll_interval
        self._prefetch = prefetch
        self._stop = stop

    async def run(self) -> None:
        """Do so until no more are to be fetched."""
        failures = 0
        await self._follow_given_up()
        while not self._floor.draining.is_set():
            n = await self._room()
            if n == 0:
                continue
            try:
                await self._look(n)
                if failures:
                    logger.info("%r: the server answers again", self._station.queue.name)
                failures = 0
            except (SchemaError, ConfigurationError):
                raise
            except PQError as exc:
                failures += 1
                pause = backoff(failures)
                logger.warning("%r: cannot take jobs, next try in %.1f s: %s", self._station.queue.name, pause, exc)
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._floor.draining.wait(), pause)

    async def _follow_given_up(self) -> None:
        """Do what follows from jobs that were taken from the queue with `get` before, and that nobody performed."""
        queue = self._station.queue
        if given_up := given_up_jobs(queue):
            await self._station.bridge.call(complete.follow_given_up, queue, given_up)

    async def _room(self) -> int:
        """How many to fetch; if none, it has waited until that may have changed."""
        floor, station = self._floor, self._station
        station.measure(time.monotonic())
        places = floor.open_to(station)
        n = station.wanted(places, self._prefetch)
        station.reserved = max(min(n, places), 0)
        if n == 0:
            station.asking = not station.buffer
            floor.room.clear()
            await floor.room.wait()
            station.asking = False
        return n

    async def _look(self, n: int) -> None:
        floor, station = self._floor, self._station
        engine = station.bridge.engine
        ticket = engine.ticket(station.channel)  # before the look, so that what comes after it counts
        seen, leased_at = floor.changes, time.monotonic()
        station.looking = True
        try:
            late = partial(self._accept_late, leased_at)
            look = partial(fetch.look, patient=True)
            rows, wake_in = await station.bridge.finish(late, look, station.queue, n, self._lease)
        except Exception:
            station.looking = False
            floor.look_quiet()  # else a worker that is stopping waits for it
            raise
        finally:
            station.reserved = 0
        station.looking = False
        self._accept(rows, leased_at)
        floor.look_quiet()
        if rows:
            return
        if self._stop is not None and wake_in != 0.0:
            station.looked = seen
            await self._stop_if_done(self._stop)
            return
        pause = math.inf if wake_in is None else max(wake_in, 0.001)
        await station.bridge.run(engine.wait_for_jobs, station.queue, ticket, pause, self._poll_interval)

    def _accept(self, rows: Sequence[Any], leased_at: float) -> None:
        station = self._station
        ones = [Held(station.job(row), leased_at) for row in rows]
        if ones:
            self._floor.changes += 1
            station.held.update((held.key, held) for held in ones)
            if self._floor.draining.is_set():
                station.hand_back(ones)
            else:
                station.buffer.extend(ones)
        self._execution.fill()

    def _accept_late(self, leased_at: float, found: tuple[Sequence[Any], float | None] | None) -> None:
        """Accept jobs that arrive when this was cancelled: they are given back."""
        self._station.looking = False
        if found is not None:
            self._accept(found[0], leased_at)
        self._floor.look_quiet()

    async def _end_lost_batches(self) -> bool:
        """End batches whose jobs are gone; whether there were some, so that there may be jobs again."""
        ended = 0
        for station in list(self._floor.stations):
            ended += await station.bridge.call(batch_counts.end_lost, station.queue)
        if ended:
            self._floor.changes += 1
        return ended > 0

    async def _stop_if_done(self, stop: Callable[[], None]) -> None:
        floor = self._floor

        def is_done() -> bool:
            # What ended since a look may have put jobs that it did not find.
            quiet = not any(each.queue.contention.pending() for each in floor.stations)
            return quiet and not floor.in_hand() and all(each.looked == floor.changes for each in floor.stations)

        if is_done():
            if not await self._end_lost_batches() and is_done():
                stop()
            return
        floor.quiet.clear()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(floor.quiet.wait(), BURST_LOOK)
