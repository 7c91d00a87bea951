"""The completer stores outcomes of jobs: a statement stores the outcomes that came during the previous statement."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from pqcore.db.runtime import backoff
from pqcore.errors import OutcomeUnknown, PQError
from pqcore.lanes import has_lane
from pqcore.operations import complete, fetch
from pqcore.operations.admission import Taken
from pqcore.operations.complete import Endings
from pqcore.operations.job_outcome import Outcome, Refusals, ails_server, dead_letter_of
from pqcore.operations.lease import give_back
from pqcore.operations.read_rules import read_current_rules
from pqcore.sql.fetch_statements import SIZES
from pqcore.tasks.job_events import JobEvents
from pqcore.tasks.outcomes import warn_of_lost_lease
from pqcore.worker.executor import Executor
from pqcore.worker.job_log import log_end
from pqcore.worker.newcomers import accept_fairly
from pqcore.worker.state import PLACE_SECONDS, Places, Prefetch, QueueState, WorkerState

logger = logging.getLogger("pqcore.tasks")

GATHER_ABOVE, GATHER_SECONDS = 1_000.0, 0.01
"""Above this many jobs per second, outcomes are gathered for this many seconds: a commit costs more than the delay."""
QUICK_SECONDS = 0.005
"""Jobs that take less time than this number of seconds, and that share places under a limit, end in groups."""
FETCH_SECONDS = 0.05
"""The largest number of seconds for which outcomes wait for the end of a fetch."""
MOST_TOGETHER = 100
"""The largest number of jobs leased together, when several are leased for one slot because they run very fast."""


class Completer:
    """Stores the outcomes of one queue's jobs, and calls plugins' hooks for them.

    Args:
        worker_state: The state that the worker's parts share.
        queue_state: The queue.
        executor: Runs the jobs that get the places of ended jobs.
        job_events: Calls the hooks of plugins.
        lease: Seconds for which jobs are leased.
        prefetch: The limits of fetching ahead.
    """

    def __init__(
        self,
        worker_state: WorkerState,
        queue_state: QueueState,
        executor: Executor,
        job_events: JobEvents,
        lease: float,
        prefetch: Prefetch,
    ) -> None:
        self._worker_state = worker_state
        self._queue_state = queue_state
        self._executor = executor
        self._job_events = job_events
        self._lease = lease
        self._prefetch = prefetch
        self._awaits_until: float | None = None
        self._is_limited = False  # whether the last statement that ended and leased jobs leased fewer than requested

    async def run(self) -> None:
        """Store outcomes until cancelled; if called again, continue with the outcomes that are left."""
        queue_state = self._queue_state
        failures = 0
        queue_state.wake_completer.set()
        while True:
            await queue_state.wake_completer.wait()
            queue_state.wake_completer.clear()
            if self._awaits_fetch():
                continue
            if queue_state.shares_places and queue_state.longest < QUICK_SECONDS:
                # Other jobs that hold the same places end soon.
                await asyncio.sleep(QUICK_SECONDS)
            server_error = await self._give_back_unstarted()
            server_error = await self._complete() or server_error
            if server_error is not None:
                failures += 1
                logger.warning("%r: cannot store the outcomes of jobs: %s", queue_state.queue.name, server_error)
                await asyncio.sleep(backoff(failures))
                queue_state.wake_completer.set()
                continue
            failures = 0
            # This bound keeps one slow statement from delaying the outcomes of longer jobs.
            longest_pause = min(queue_state.turnaround, PLACE_SECONDS)
            if queue_state.throughput > GATHER_ABOVE and not self._is_limited:
                await asyncio.sleep(GATHER_SECONDS)
            elif queue_state.ends_take and not self._is_limited and queue_state.longest < longest_pause:
                # More jobs end during this pause, and the next statement ends them together.
                await asyncio.sleep(queue_state.longest)

    def _awaits_fetch(self) -> bool:
        """Return whether to wait until a fetch has ended, so that the statement that ends jobs can lease other jobs."""
        queue_state, now = self._queue_state, time.monotonic()
        if queue_state.unstarted or not (queue_state.fetching and queue_state.ends_take and queue_state.outcomes):
            self._awaits_until = None
            return False
        if self._awaits_until is None:
            self._awaits_until = now + FETCH_SECONDS
            asyncio.get_running_loop().call_later(FETCH_SECONDS, queue_state.wake_completer.set)
        if now < self._awaits_until:
            return True
        self._awaits_until = None
        return False

    async def _give_back_unstarted(self) -> PQError | None:
        """Give back jobs that were not started; if the statement fails, return its error."""
        queue_state = self._queue_state
        jobs, queue_state.unstarted = queue_state.unstarted, []
        if not jobs:
            return None
        try:
            await queue_state.bridge.call(give_back, queue_state.queue, [active.key for active in jobs])
        except BaseException as exc:  # even a cancellation must not lose the jobs
            queue_state.unstarted = jobs + queue_state.unstarted
            if not isinstance(exc, PQError):
                raise
            return exc
        for active in jobs:
            queue_state.active_jobs.pop(active.key, None)
        self._worker_state.changes += 1
        self._worker_state.notify_if_idle()
        return None

    async def _complete(self) -> PQError | None:
        """Store all outcomes that have gathered; return the error if the server is at fault."""
        queue_state = self._queue_state
        outcomes, queue_state.outcomes = queue_state.outcomes, []
        if not outcomes:
            return None
        queue_state.is_ending = True
        try:
            endings = await self._end_and_take(outcomes)
            queue_state.is_ending = False
            if endings is None:
                self._worker_state.wake_fetchers.set()
                endings = await queue_state.bridge.call(complete.finish_each, queue_state.queue, outcomes)
                if any(has_lane(outcome.job.raw_headers) for outcome in outcomes):
                    # Waiting jobs may now get the places of the ended jobs.
                    queue_state.bridge.engine.wake_unlistened(queue_state.channel)
        except BaseException:
            # After a cancellation, it is unknown whether the outcomes are stored.
            queue_state.is_ending = False
            self._store_again(outcomes)
            raise
        server_error = None
        if endings.refused:
            refused = {id(outcome) for outcome, _ in endings.refused}
            outcomes = [outcome for outcome in outcomes if id(outcome) not in refused]
            for outcome, error in endings.refused:
                server_error = self._refused(outcome, error) or server_error
        return await self._end_jobs(outcomes, endings) or server_error

    async def _end_and_take(self, outcomes: Sequence[Outcome]) -> Endings | None:
        """End jobs that have places under keys, and lease other jobs for these places in the same statement.

        Returns:
            The results; None if one statement cannot do both now, so the caller must store the outcomes.
        """
        queue_state, worker_state, leased_ahead = self._queue_state, self._worker_state, self._queue_state.jobs_ahead()
        queue, self._is_limited, queue_state.ends_take = queue_state.queue, False, False
        if "end and take" in queue_state.bridge.engine.dialect.unsupported:
            return None
        if not all(complete.is_plain(outcome) for outcome in outcomes):
            return None
        if not any(has_lane(outcome.job.raw_headers) for outcome in outcomes):
            return None
        if time.monotonic() >= queue.rule_cache.expires_at:
            try:
                await queue_state.bridge.call(read_current_rules, queue)
            except PQError:
                return None  # the caller then stores the outcomes, and finds out whether the server is at fault
        if queue.rule_cache.rules.paused or queue.rule_cache.rules.paused_tasks:
            return None  # the fetcher then leases the next jobs, because it obeys the pauses
        queue_state.ends_take = queue.rate is None and not queue_state.quiet
        free = worker_state.slots_for(queue_state)
        n = queue_state.fetch_size(free, self._prefetch)
        if queue_state.fetching or not queue_state.ends_take or worker_state.draining.is_set():
            return None
        ended = {(outcome.job.id, outcome.job.token) for outcome in outcomes}
        own = [active.key for active in leased_ahead if active.key not in ended]
        n, times = self._leases_ahead(n, free, len(own))
        if not n:
            return None
        leased_at, snapshot = time.monotonic(), queue_state.bridge.engine.snapshot(queue_state.channel)
        queue_state.fetching, queue_state.reserved_slots = True, max(min(n, free), 0)

        def accept(found: tuple[Any, Taken] | None) -> None:
            queue_state.fetching, queue_state.reserved_slots = False, 0
            rows, keys, numbers, left_none = ((), {}, {}, False) if found is None else found[1]
            queue_state.left_none_since = snapshot if left_none else None
            for key, number in numbers.items():
                queue_state.places.setdefault(key, Places()).number = number
            places = {job: queue_state.places[key] for job, key in keys.items()}
            for each in places.values():
                each.since = leased_at
            self._executor.accept(queue_state, rows, leased_at, places)

        try:
            jobs = [outcome.job for outcome in outcomes]
            lost, taken = await queue_state.bridge.finish(
                accept, fetch.end_and_take, queue, jobs, n, self._lease, times, own
            )
        except PQError:
            accept(None)
            queue_state.ends_take = False
            for outcome in outcomes:  # the statement may be committed although a later step failed
                if (active := queue_state.active_jobs.get((outcome.job.id, outcome.job.token))) is not None:
                    active.may_be_stored = True
            return None  # the caller then stores the outcomes, leases no jobs, and finds out which outcomes fail
        self._is_limited = len(taken.rows) < n
        queue_state.note_turnaround(time.monotonic() - leased_at)
        await accept_fairly(
            queue_state,
            self._executor,
            self._lease,
            n,
            taken.rows,
            leased_at,
            lambda rows: accept((lost, taken._replace(rows=rows))),
        )
        gone = {id(job) for job in lost}
        return Endings(lost=[outcome for outcome in outcomes if id(outcome.job) in gone and not outcome.finished])

    def _leases_ahead(self, n: int, free: int, own: int) -> tuple[int, int]:
        """Return how many jobs to lease in all, and the largest number to lease for each place under a limit.

        Args:
            n: The number of jobs to lease without regard to limits.
            free: The number of free slots.
            own: The number of jobs that were leased ahead for places, and have not ended.
        """
        queue_state = self._queue_state
        ahead = queue_state.most_ahead(self._prefetch)
        times = queue_state.jobs_for_place() if ahead and not queue_state.queue.lanes.has_shares else 1
        if times == 1:
            return n, times
        missing = max(times * sum(places.number for places in queue_state.places.values()) - own, 0)
        # Several very fast jobs are leased for each free slot; slower jobs could hold up jobs under other keys.
        wanted = free * times if queue_state.longest < QUICK_SECONDS else free + missing
        most = min(wanted, free + ahead, MOST_TOGETHER)
        return max(n, *(size for size in SIZES if size <= most), 0), times

    def _store_again(self, outcomes: Sequence[Outcome]) -> None:
        """Let the next try store these outcomes, and record that they may be stored already."""
        for outcome in outcomes:
            if (active := self._queue_state.active_jobs.get((outcome.job.id, outcome.job.token))) is not None:
                active.may_be_stored = True
                self._queue_state.outcomes.append(outcome)

    def _refused(self, outcome: Outcome, error: PQError) -> PQError | None:
        """Keep an outcome that the server refused, to store it later; return the error if the server is at fault."""
        queue_state, job = self._queue_state, outcome.job
        active = queue_state.active_jobs.get((job.id, job.token))
        if active is None:
            return None
        active.may_be_stored |= isinstance(error, OutcomeUnknown)
        if ails_server(error):
            queue_state.outcomes.append(outcome)
            return error
        active.refusals = active.refusals or Refusals()
        verdict = active.refusals.judge(outcome, error)
        if verdict == "again":
            pause = backoff(active.refusals.number)
            logger.warning(
                "the server refused the outcome of job %d of %r, next try in %.1f s: %s",
                job.id,
                queue_state.queue.name,
                pause,
                error,
            )
            asyncio.get_running_loop().call_later(pause, self._queue_again, outcome)
        elif verdict == "bury":
            logger.error(
                "the outcome of job %d of %r cannot be stored, so the job becomes a dead letter: %s",
                job.id,
                queue_state.queue.name,
                error,
            )
            self._queue_again(dead_letter_of(outcome, error))
        else:
            logger.error("job %d of %r cannot become a dead letter: %s", job.id, queue_state.queue.name, error)
            queue_state.active_jobs.pop(active.key)  # the job's lease runs out, which counts as a crash
            self._worker_state.notify_if_idle()
        return None

    def _queue_again(self, outcome: Outcome) -> None:
        self._queue_state.outcomes.append(outcome)
        self._queue_state.wake_completer.set()

    async def _end_jobs(self, outcomes: Sequence[Outcome], endings: Endings) -> PQError | None:
        """Release jobs whose outcomes are stored, and call the hooks.

        Returns:
            The server's error, if it is unknown which outcomes an earlier try stored.
        """
        queue_state = self._queue_state
        server_error = None
        lost = {id(outcome) for outcome in endings.lost}
        if lost and (uncertain := self._maybe_stored(endings.lost)):
            try:
                found = await queue_state.bridge.call(complete.find_already_stored, queue_state.queue, uncertain)
            except PQError as exc:
                server_error, unknown = exc, {id(outcome) for outcome, _ in uncertain}
                outcomes = [outcome for outcome in outcomes if id(outcome) not in unknown]
                queue_state.outcomes += [outcome for outcome, _ in uncertain]
            except BaseException:  # after a cancellation, the next try finds out which outcomes are stored
                self._store_again(outcomes)
                raise
            else:
                lost -= {id(outcome) for outcome in found}
        queue_state.calling_hooks = True
        try:
            for outcome in outcomes:
                active = queue_state.active_jobs.pop((outcome.job.id, outcome.job.token), None)
                is_lost = id(outcome) in lost
                if is_lost:
                    warn_of_lost_lease(outcome)
                if active is None or not self._job_events.needs_ends:
                    continue
                end = endings.stored(outcome) if endings.buried else outcome
                if self._job_events.logs_ends:
                    log_end(self._job_events, active, None if is_lost else end)
                await self._job_events.call_for_outcome(active, end, lost=is_lost)
        finally:
            queue_state.calling_hooks = False
        self._worker_state.changes += 1
        self._worker_state.notify_if_idle()
        return server_error

    def _maybe_stored(self, lost: Sequence[Outcome]) -> list[tuple[Outcome, bool]]:
        """Return the outcomes that an earlier try may have stored, and for each whether its lease has time left."""
        queue_state, now = self._queue_state, time.monotonic()
        found = []
        for outcome in lost:
            active = queue_state.active_jobs.get((outcome.job.id, outcome.job.token))
            if active is not None and active.may_be_stored:
                found.append((outcome, now < active.leased_at + self._lease))
        return found
