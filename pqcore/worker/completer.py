"""Completer how jobs ended: all that have gathered since the last time, together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from pqcore.db.runtime import backoff
from pqcore.errors import OutcomeUnknown, PQError
from pqcore.locked_keys import PROBE
from pqcore.operations import complete, concurrency_limits
from pqcore.operations import lease as leasing
from pqcore.operations.complete import Endings
from pqcore.operations.job_outcome import Outcome, Refusals, ails_server, dead_letter_of
from pqcore.tasks.job_events import JobEvents
from pqcore.tasks.outcomes import warn_of_lost_lease
from pqcore.worker.state import QueueState, WorkerState

logger = logging.getLogger("pqcore.tasks")

BRISK, GATHER = 1_000.0, 0.005
"""Jobs a second from which on ends are gathered for so many seconds before they are stored: a commit costs more."""


class Completer:
    """Stores how the jobs of one queue ended.

    Args:
        worker_state: What the worker's parts share.
        queue_state: The queue.
        job_events: Who tells plugins.
        lease: Seconds for which jobs are leased.
    """

    def __init__(self, worker_state: WorkerState, queue_state: QueueState, job_events: JobEvents, lease: float) -> None:
        self._worker_state = worker_state
        self._queue_state = queue_state
        self._job_events = job_events
        self._lease = lease

    async def run(self) -> None:
        """Do so until cancelled; run again, it goes on with what was left."""
        queue_state = self._queue_state
        failures = 0
        queue_state.to_store.set()
        while True:
            await queue_state.to_store.wait()
            queue_state.to_store.clear()
            ailment = await self._give_back()
            ailment = await self._finish() or ailment
            if ailment is not None:
                failures += 1
                logger.warning("%r: cannot store how jobs ended: %s", queue_state.queue.name, ailment)
                await asyncio.sleep(backoff(failures))
                queue_state.to_store.set()
                continue
            failures = 0
            if queue_state.pace > BRISK:
                await asyncio.sleep(GATHER)

    async def _give_back(self) -> PQError | None:
        """Give back jobs that were not begun; the error, if that failed."""
        queue_state = self._queue_state
        ones, queue_state.unbegun = queue_state.unbegun, []
        if not ones:
            return None
        try:
            await queue_state.bridge.call(leasing.give_back, queue_state.queue, [held.key for held in ones])
        except BaseException as exc:  # a cancellation, too
            queue_state.unbegun = ones + queue_state.unbegun
            if not isinstance(exc, PQError):
                raise
            return exc
        for held in ones:
            queue_state.held.pop(held.key, None)
        self._worker_state.changes += 1
        self._worker_state.look_quiet()
        return None

    async def _finish(self) -> PQError | None:
        """Store all ends that have gathered; what ails the server, if anything."""
        queue_state = self._queue_state
        outcomes, queue_state.done = queue_state.done, []
        if not outcomes:
            return None
        try:
            endings = await queue_state.bridge.call(complete.finish_each, queue_state.queue, outcomes)
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
        if any(map(concurrency_limits.is_limited, headers)):
            queue_state.bridge.engine.wake_unlistened(queue_state.channel)  # places are free, and may be given to jobs
        if endings.busy:  # another transaction has their limits or groups locked; others do not wait for that
            outcomes = [outcome for outcome in outcomes if outcome not in endings.busy]
            queue_state.done += endings.busy
            asyncio.get_running_loop().call_later(PROBE, queue_state.to_store.set)
        return await self._stored(outcomes, endings) or ailment

    def _keep(self, outcomes: Sequence[Outcome]) -> None:
        """Have ends stored by the next try, which may have been stored."""
        for outcome in outcomes:
            if (held := self._queue_state.held.get((outcome.job.id, outcome.job.token))) is not None:
                held.doubtful = True
                self._queue_state.done.append(outcome)

    def _refused(self, outcome: Outcome, error: PQError) -> PQError | None:
        """Have an end stored later that was not stored now; returns the error if it is of the server."""
        queue_state, job = self._queue_state, outcome.job
        held = queue_state.held.get((job.id, job.token))
        if held is None:
            return None
        held.doubtful |= isinstance(error, OutcomeUnknown)
        if ails_server(error):
            queue_state.done.append(outcome)
            return error
        held.refusals = held.refusals or Refusals()
        verdict = held.refusals.judge(outcome, error)
        if verdict == "again":
            pause = backoff(held.refusals.number)
            logger.warning(
                "the end of job %d of %r is refused, next try in %.1f s: %s",
                job.id,
                queue_state.queue.name,
                pause,
                error,
            )
            asyncio.get_running_loop().call_later(pause, self._try_again, outcome)
        elif verdict == "bury":
            logger.error("job %d of %r cannot end as it did: %s", job.id, queue_state.queue.name, error)
            self._try_again(dead_letter_of(outcome, error))
        else:
            logger.error("job %d of %r cannot be a dead letter: %s", job.id, queue_state.queue.name, error)
            queue_state.held.pop(held.key)  # its lease runs out, which counts as a crash
            self._worker_state.look_quiet()
        return None

    def _try_again(self, outcome: Outcome) -> None:
        self._queue_state.done.append(outcome)
        self._queue_state.to_store.set()

    async def _stored(self, outcomes: Sequence[Outcome], endings: Endings) -> PQError | None:
        """Let go of jobs that ended, and tell plugins; what ails the server, if it cannot be known how some ended."""
        queue_state = self._queue_state
        ailment = None
        lost = {id(outcome) for outcome in endings.lost}
        if lost and (doubtful := self._doubtful(endings.lost)):
            try:
                found = await queue_state.bridge.call(complete.find_already_stored, queue_state.queue, doubtful)
            except PQError as exc:
                ailment, unknown = exc, {id(outcome) for outcome, _ in doubtful}
                outcomes = [outcome for outcome in outcomes if id(outcome) not in unknown]
                queue_state.done += [outcome for outcome, _ in doubtful]
            except BaseException:  # a cancellation: what was stored is found so by the next try
                self._keep(outcomes)
                raise
            else:
                lost -= {id(outcome) for outcome in found}
        queue_state.telling = True
        try:
            for outcome in outcomes:
                held = queue_state.held.pop((outcome.job.id, outcome.job.token), None)
                is_lost = id(outcome) in lost
                if is_lost:
                    warn_of_lost_lease(outcome)
                if held is not None and self._job_events.hooks:
                    end = endings.stored(outcome) if endings.buried else outcome
                    await self._job_events.call_for_outcome(held, end, lost=is_lost)
        finally:
            queue_state.telling = False
        self._worker_state.changes += 1
        self._worker_state.look_quiet()
        return ailment

    def _doubtful(self, lost: Sequence[Outcome]) -> list[tuple[Outcome, bool]]:
        """Return the outcomes that an earlier try may have stored, each with whether its lease has time left."""
        queue_state, now = self._queue_state, time.monotonic()
        found = []
        for outcome in lost:
            held = queue_state.held.get((outcome.job.id, outcome.job.token))
            if held is not None and held.doubtful:
                found.append((outcome, now < held.leased_at + self._lease))
        return found
