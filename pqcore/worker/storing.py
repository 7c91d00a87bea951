"""Storing how jobs ended: all that have gathered since the last time, together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pqcore.errors import DatabaseError, InvalidData, PQError
from pqcore.events import ENDS
from pqcore.operations import finishing, gating, leasing
from pqcore.operations.contention import PROBE
from pqcore.operations.finishing import Outcome
from pqcore.runtime import backoff
from pqcore.tasks.declaring import logger
from pqcore.tasks.running import described
from pqcore.worker.station import Floor, Station
from pqcore.worker.telling import Teller

BRISK, GATHER = 1_000.0, 0.005
"""Jobs a second from which on ends are gathered for so many seconds before they are stored: a commit costs more."""

PASSING = ("25", "53", "55", "57", "58")
"""SQLSTATEs, by how they begin, of what ails the server and not the job: read only, a full disk, a limit, a device."""


class Storing:
    """Stores how the jobs of one queue ended.

    Args:
        floor: What the worker's parts share.
        station: The queue.
        teller: Who tells plugins.
    """

    def __init__(self, floor: Floor, station: Station, teller: Teller) -> None:
        self._floor = floor
        self._station = station
        self._teller = teller

    async def run(self) -> None:
        """Do so until cancelled; run again, it goes on with what was left."""
        station = self._station
        failures = 0
        station.to_store.set()
        while True:
            await station.to_store.wait()
            station.to_store.clear()
            try:
                await self._give_back()
                await self._finish()
            except PQError as exc:
                failures += 1
                logger.warning("%r: cannot store how jobs ended: %s", station.queue.name, exc)
                await asyncio.sleep(backoff(failures))
                station.to_store.set()
                continue
            failures = 0
            if station.pace > BRISK:
                await asyncio.sleep(GATHER)

    async def _give_back(self) -> None:
        station = self._station
        ones, station.unbegun = station.unbegun, []
        if not ones:
            return
        try:
            await station.bridge.call(leasing.give_back, station.queue, [held.key for held in ones])
        except BaseException:  # a cancellation, too
            station.unbegun = ones + station.unbegun
            raise
        for held in ones:
            station.held.pop(held.key, None)
        self._floor.changes += 1
        self._floor.look_quiet()

    async def _finish(self) -> None:
        station = self._station
        outcomes, station.done = station.done, []
        if not outcomes:
            return
        try:
            await self._finish_those(outcomes)
        except BaseException:  # a cancellation, too
            # They may have been stored, or not: done again, they are refused if they were.
            station.done = [
                outcome for outcome in outcomes if self._is_held(outcome) and outcome not in station.done
            ] + station.done
            raise

    async def _finish_those(self, outcomes: Sequence[Outcome]) -> None:
        station = self._station
        later: list[Outcome] = []
        try:
            lost = await station.bridge.call(finishing.finish, station.queue, outcomes, None, later)
        except DatabaseError as exc:
            if type(exc) not in (DatabaseError, InvalidData) or (exc.sqlstate or "").startswith(PASSING):
                raise
            # The server refuses one of them, and will so again.
            if len(outcomes) > 1:
                for outcome in outcomes:
                    await self._finish_those([outcome])
            else:
                await self._give_up(outcomes[0], exc)
        else:
            if any(gating.is_gated(outcome.job.raw_headers) for outcome in outcomes):
                station.bridge.engine.nudge_blind(station.channel)  # places are free, and may be given to jobs
            await self._stored([outcome for outcome in outcomes if outcome not in later], lost)
            if later:  # another transaction has their limits or groups locked; others do not wait for that
                station.done += later
                asyncio.get_running_loop().call_later(PROBE, station.to_store.set)

    async def _give_up(self, outcome: Outcome, error: DatabaseError) -> None:
        station, job = self._station, outcome.job
        if outcome.end != "dead":
            logger.error("job %d of %r cannot end as it did: %s", job.id, station.queue.name, error)
            await self._finish_those([Outcome(job, "dead", error=described(error), reason="failed")])
            return
        logger.error("job %d of %r cannot be a dead letter: %s", job.id, station.queue.name, error)
        station.held.pop((job.id, job.attempts), None)  # its lease runs out, which counts as a crash
        self._floor.look_quiet()

    def _is_held(self, outcome: Outcome) -> bool:
        return (outcome.job.id, outcome.job.attempts) in self._station.held

    async def _stored(self, outcomes: Sequence[Outcome], lost: Sequence[Outcome]) -> None:
        station = self._station
        refused = {id(outcome) for outcome in lost}
        station.telling = True
        try:
            for outcome in outcomes:
                job = outcome.job
                held = station.held.pop((job.id, job.attempts), None)
                hook = ENDS[outcome.end]
                if id(outcome) in refused:
                    hook = "pqcore_job_lost"
                    logger.warning(
                        "job %d of %r was given to another meanwhile, or its end was stored before an answer was lost",
                        job.id,
                        station.queue.name,
                    )
                if held is not None and (held.run is not None or outcome.end in ("dead", "drop")):
                    await self._teller.tell(hook, station, held, outcome)
        finally:
            station.telling = False
        self._floor.changes += 1
        self._floor.look_quiet()
