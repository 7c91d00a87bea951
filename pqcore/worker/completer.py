"""Storing how jobs ended: all that have gathered since the last time, together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from pqcore.db.runtime import backoff
from pqcore.errors import OutcomeUnknown, PQError
from pqcore.events import ENDS
from pqcore.operations import complete, concurrency_limits
from pqcore.operations import lease as leasing
from pqcore.operations.complete import Endings, Outcome, Refusals
from pqcore.operations.locked_keys import PROBE
from pqcore.tasks.declaring import logger
from pqcore.worker.job_events import Teller
from pqcore.worker.state import Floor, Station

BRISK, GATHER = 1_000.0, 0.005
"""Jobs a second from which on ends are gathered for so many seconds before they are stored: a commit costs more."""


class Storing:
    """Stores how the jobs of one queue ended.

    Args:
        floor: What the worker's parts share.
        station: The queue.
        teller: Who tells plugins.
        lease: Seconds for which jobs are leased.
    """

    def __init__(self, floor: Floor, station: Station, teller: Teller, lease: float) -> None:
        self._floor = floor
        self._station = station
        self._teller = teller
        self._lease = lease

    async def run(self) -> None:
        """Do so until cancelled; run again, it goes on with what was left."""
        station = self._station
        failures = 0
        station.to_store.set()
        while True:
            await station.to_store.wait()
            station.to_store.clear()
            ailment = await self._give_back()
            ailment = await self._finish() or ailment
            if ailment is not None:
                failures += 1
                logger.warning("%r: cannot store how jobs ended: %s", station.queue.name, ailment)
                await asyncio.sleep(backoff(failures))
                station.to_store.set()
                continue
            failures = 0
            if station.pace > BRISK:
                await asyncio.sleep(GATHER)

    async def _give_back(self) -> PQError | None:
        """Give back jobs that were not begun; the error, if that failed."""
        station = self._station
        ones, station.unbegun = station.unbegun, []
        if not ones:
            return None
        try:
            await station.bridge.call(leasing.give_back, station.queue, [held.key for held in ones])
        except BaseException as exc:  # a cancellation, too
            station.unbegun = ones + station.unbegun
            if not isinstance(exc, PQError):
                raise
            return exc
        for held in ones:
            station.held.pop(held.key, None)
        self._floor.changes += 1
        self._floor.look_quiet()
        return None

    async def _finish(self) -> PQError | None:
        """Store all ends that have gathered; what ails the server, if anything."""
        station = self._station
        outcomes, station.done = station.done, []
        if not outcomes:
            return None
        try:
            endings = await station.bridge.call(complete.finish_each, station.queue, outcomes)
        except BaseException:  # a cancellation: they may have been stored, or not
            self._keep(outcomes)
            raise
        ailment = None
        if endings.refused:
            refused = {id(outcome) for outcome, _ in endings.refused}
            outcomes = [outcome for outcome in outcomes if id(outcome) not in refused]
            for outcome, error in endings.refused:
                ailment = self._refused(outcome, error) or ailment
        headers = [outcome.job.raw_headers for outcome in outcomes if outcome.job.raw_headers is not None]
        if any(map(concurrency_limits.is_gated, headers)):
            station.bridge.engine.nudge_blind(station.channel)  # places are free, and may be given to jobs
        if endings.busy:  # another transaction has their limits or groups locked; others do not wait for that
            outcomes = [outcome for outcome in outcomes if outcome not in endings.busy]
            station.done += endings.busy
            asyncio.get_running_loop().call_later(PROBE, station.to_store.set)
        return await self._stored(outcomes, endings) or ailment

    def _keep(self, outcomes: Sequence[Outcome]) -> None:
        """Have ends stored by the next try, which may have been stored."""
        for outcome in outcomes:
            if (held := self._station.held.get((outcome.job.id, outcome.job.attempts))) is not None:
                held.doubtful = True
                self._station.done.append(outcome)

    def _refused(self, outcome: Outcome, error: PQError) -> PQError | None:
        """Have an end stored later that was not stored now; returns the error if it is of the server."""
        station, job = self._station, outcome.job
        held = station.held.get((job.id, job.attempts))
        if held is None:
            return None
        held.doubtful |= isinstance(error, OutcomeUnknown)
        if complete.ails_server(error):
            station.done.append(outcome)
            return error
        held.refusals = held.refusals or Refusals()
        verdict = held.refusals.judge(outcome, error)
        if verdict == "again":
            pause = backoff(held.refusals.number)
            logger.warning(
                "the end of job %d of %r is refused, next try in %.1f s: %s", job.id, station.queue.name, pause, error
            )
            asyncio.get_running_loop().call_later(pause, self._try_again, outcome)
        elif verdict == "bury":
            logger.error("job %d of %r cannot end as it did: %s", job.id, station.queue.name, error)
            self._try_again(complete.dead_letter_of(outcome, error))
        else:
            logger.error("job %d of %r cannot be a dead letter: %s", job.id, station.queue.name, error)
            station.held.pop(held.key)  # its lease runs out, which counts as a crash
            self._floor.look_quiet()
        return None

    def _try_again(self, outcome: Outcome) -> None:
        self._station.done.append(outcome)
        self._station.to_store.set()

    async def _stored(self, outcomes: Sequence[Outcome], endings: Endings) -> PQError | None:
        """Let go of jobs that ended, and tell plugins; what ails the server, if it cannot be known how some ended."""
        station = self._station
        ailment = None
        lost = {id(outcome) for outcome in endings.lost}
        if lost and (doubtful := self._doubtful(endings.lost)):
            try:
                found = await station.bridge.call(complete.stored_before, station.queue, doubtful)
            except PQError as exc:
                ailment, unknown = exc, {id(outcome) for outcome, _ in doubtful}
                outcomes = [outcome for outcome in outcomes if id(outcome) not in unknown]
                station.done += [outcome for outcome, _ in doubtful]
            except BaseException:  # a cancellation: what was stored is found so by the next try
                self._keep(outcomes)
                raise
            else:
                lost -= {id(outcome) for outcome in found}
        station.telling = True
        try:
            for outcome in outcomes:
                job = outcome.job
                held = station.held.pop((job.id, job.attempts), None)
                end = endings.stored(outcome) if endings.buried else outcome
                hook = ENDS[end.end]
                if id(outcome) in lost:
                    hook = "pqcore_job_lost"
                    logger.warning(
                        "job %d of %r was given to another meanwhile, or its end was stored before an answer was lost",
                        job.id,
                        station.queue.name,
                    )
                if held is not None and (
                    held.run is not None or end.end in ("dead", "drop") or end.reason in complete.PUT_OFF
                ):
                    await self._teller.tell(hook, station, held, end)
        finally:
            station.telling = False
        self._floor.changes += 1
        self._floor.look_quiet()
        return ailment

    def _doubtful(self, lost: Sequence[Outcome]) -> list[tuple[Outcome, bool]]:
        """Return the outcomes that an earlier try may have stored, each with whether its lease has time left."""
        station, now = self._station, time.monotonic()
        found = []
        for outcome in lost:
            held = station.held.get((outcome.job.id, outcome.job.attempts))
            if held is not None and held.doubtful:
                found.append((outcome, now < held.leased_at + self._lease))
        return found
