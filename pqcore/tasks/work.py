"""Running jobs in the caller's thread, one at a time: `Queue.work` and `Queue.perform`."""

from __future__ import annotations

import copy
import functools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from pqcore.db.interrupts import handle_kept, let_through, put_off
from pqcore.db.runtime import backoff, run_sync
from pqcore.db.sources import AdoptedConnection
from pqcore.errors import (
    ConnectionLost,
    DatabaseError,
    LeaseLost,
    OutcomeUnknown,
    PoolTimeout,
    PQError,
    TransactionAborted,
)
from pqcore.events import JobHook
from pqcore.job import BaseJob, Job
from pqcore.operations import batch_counts, complete, fetch, follow_ups, lease
from pqcore.operations.job_outcome import Outcome, Refusals, dead_letter_of, done_by_hand
from pqcore.operations.put import put as put_job
from pqcore.put_options import put_options_of
from pqcore.settings import Encoded, QueueSettings
from pqcore.tasks.context import JobContext
from pqcore.tasks.fetched_jobs import PoppedJobs, claim_owed, popped_jobs
from pqcore.tasks.job_events import NO_EVENTS, Attempt, JobEvents, find_job_events
from pqcore.tasks.outcomes import (
    SLOW_SERIALIZER,
    Run,
    kept_errors,
    outcome_of_failure,
    prepare,
    warn_of_lost_lease,
)
from pqcore.tasks.registry import TaskDeclarations
from pqcore.tasks.run_job import Runner, run_job

if TYPE_CHECKING:
    from pqcore.db.engine import Engine
    from pqcore.db.session import Session

LOOK_FOR_LOST = 30.0
"""Seconds between looks of `Queue.work` for batches whose jobs are gone."""
WORK_LEASE = 60.0
"""Seconds for which `Queue.work` leases the job that it performs; the lease is extended while the job runs."""
GIVE_BACK_TRIES = 3
"""Attempts of `Queue.work` to give a job back when it is interrupted; after that, the job's lease runs out."""


class WorkingQueue(TaskDeclarations, QueueSettings):
    """The part of a blocking queue that runs jobs in the caller's thread.

    Attributes:
        engine: The engine that runs operations on the table.
    """

    engine: Engine

    @functools.cached_property
    def popped(self) -> PoppedJobs:
        """Return the jobs that were taken with `get` and may still be performed."""
        return PoppedJobs()

    def _take_to_perform(self, n: int, *, block: bool, timeout: float | None) -> list[Job]:
        """Take up to ``n`` jobs with `get`; their follow-ups run after `perform`, or when the jobs are given up."""
        if self.popped:
            self._follow_given_up()
        rows = run_sync(fetch.get(self.engine, self, n, block=block, timeout=timeout, performed=True))
        jobs = [Job(self, row) for row in rows]
        for job, row in zip(jobs, rows, strict=True):
            if job.raw_headers is not None and follow_ups.is_continued(job.raw_headers):
                within = self.engine.block()
                self.popped.add(job, row, in_block=within is not None)
                if within is not None:
                    within.at_end.append(functools.partial(self._follow_with_block, job))
        return jobs

    async def _follow_with_block(self, job: Job, session: Session | None) -> None:
        """Run the follow-ups of a job that was taken in a block, and not performed in the block."""
        if self.popped.claim(job.id) and session is not None:
            await follow_ups.follow_up(self.engine, self, session, [done_by_hand(job)])

    def _follow_given_up(self, *, begins: bool = False) -> None:
        if self.engine.block() is None:  # otherwise the block's rollback could undo the follow-ups
            run_sync(follow_ups.complete_given_up(self.engine, self, self.popped.given_up(self, begins=begins)))

    def work(self, burst: bool = False) -> None:
        """Perform jobs as they come, one at a time, in this thread; with ``burst``, return when no job is left.

        Each job is leased while this method performs it: if the process dies, another process performs the job.
        `Worker` runs jobs concurrently.

        If the server fails, this method waits, and tries again. In the main thread, KeyboardInterrupt and SystemExit
        end this method: the running job is given back, and the attempt does not count. A signal that arrives while this
        method takes a job or stores an outcome is deferred until this step has ended; a second signal is not deferred.

        Raises:
            TableMissing, SchemaOutdated, SchemaTooNew: The table does not exist, or has another version.
            ConnectionLost: The connection given to `PQ`, or that of ``with queue``, is lost.
            Closed: The `PQ` is closed.
        """
        self.logger.info("%r: starting to run jobs", self.name)
        token = _working.set(True)
        try:
            with put_off():
                self._work(burst=burst)
        finally:
            _working.reset(token)

    def _work(self, *, burst: bool) -> None:
        failures = 0
        self._follow_given_up(begins=True)
        watch, looked = batch_counts.Watch(), time.monotonic()
        while True:
            handle_kept()  # a signal that arrived while a job was being finished
            try:
                rows = run_sync(
                    fetch.get(self.engine, self, 1, block=True, timeout=None, lease=WORK_LEASE, patient=True)
                )
                job = Job(self, rows[0], leased=True) if rows else None
                if job is None and burst and not fetch.looks_fully_next(self) and self._is_done():
                    return
                if job is None and time.monotonic() - looked > LOOK_FOR_LOST:
                    looked = time.monotonic()
                    run_sync(watch.look(self.engine, self))
            except PQError as exc:
                failures += 1
                _pause_after(self, exc, failures, "cannot take jobs")
                continue
            failures = 0
            if job is not None:
                with self._extending_lease(job):
                    self.perform(job)

    def _is_done(self) -> bool:
        """Return whether `work` has no job left to perform; end batches whose jobs are gone."""
        return not self.lanes.aside_for(time.monotonic()) and not run_sync(batch_counts.end_lost(self.engine, self))

    @contextmanager
    def _extending_lease(self, job: Job) -> Iterator[None]:
        """Extend a lease from a separate thread while the block lasts."""
        over = threading.Event()

        def extend() -> None:
            while not over.wait(WORK_LEASE / 3):
                try:
                    run_sync(lease.extend(self.engine, self, job, WORK_LEASE))
                except LeaseLost:
                    return  # storing the job's outcome reports the error
                except PQError as exc:
                    self.logger.warning("cannot extend the lease of %r: %s", job, exc)

        thread = threading.Thread(target=extend, name="pqcore-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def perform(self, job: Job) -> bool:
        """Call the function that a job names; return True if the function returned.

        A leased job is finished, or given back. A job taken with `get` is already finished, and never becomes a dead
        letter: if it fails and has retries left, its data is put again as a new job. When this method ends, the job's
        chain continues, and its batch counts the job. A job that was taken in a ``with`` block must be performed in the
        block: a job that was not performed counts as done at the end of the block.

        Raises:
            KeyboardInterrupt, SystemExit: The function, or a signal in the main thread, raised this
                exception. The job was given back, and the attempt does not count.
        """
        popped = None if job.leased else popped_jobs(job)
        with put_off(), popped.performing(job.id) if popped else nullcontext():
            runner = _Performer(self, job, find_job_events(blocking=True))
            token = _performing.set(runner)
            try:
                run_sync(run_job(runner, runner.attempt, JobContext(self, job)))
            finally:
                _performing.reset(token)
            return runner.returned

    def fail(self, job: Job, data: dict[str, Any], e: BaseException | None = None) -> bool:
        """Retry a failed job if it has retries left, and otherwise make a dead letter of it; always return False.

        `perform` calls this method with the function's exception.

        Args:
            job: The job.
            data: The job's data. If this is not the object that the job decoded, it replaces the stored data.
            e: The function's exception.
        """
        runner = _performing.get()
        if runner is None or runner.attempt.job is not job:
            runner = _Performer(self, job, NO_EVENTS)
        run_sync(runner.fail(data, e))
        return False


class _Performer(Runner[Attempt]):
    """A runner of one job in the caller's thread, which stores the outcome before it continues.

    Attributes:
        attempt: The attempt.
        returned: Whether the function returned; otherwise the result of `Queue.fail`.
    """

    def __init__(self, queue: WorkingQueue, job: Job, events: JobEvents) -> None:
        super().__init__(events)
        self._queue = queue
        self.engine = queue.engine
        self._job = job
        self._outcome: Outcome | None = None
        self.attempt = Attempt(queue, job)
        self.returned = False

    async def decode(self, attempt: Attempt) -> Run | Outcome:
        """Decode the job; if that takes long, log the serializer's name."""
        began = time.monotonic()
        run = await super().decode(attempt)
        if (took := time.monotonic() - began) > SLOW_SERIALIZER:
            name = self._job.serializer or self._queue.serializer_name
            message = "serializer %r took %.1f seconds to decode %r of %r"
            self._queue.logger.warning(message, name, took, self._job, self._queue.name)
        return run

    async def start(self, attempt: Attempt) -> None:
        """Call the hook of a job that is about to run; signals may interrupt it."""
        with let_through():
            await super().start(attempt)

    async def call(self, attempt: Attempt, run: Run) -> Any:
        """Call the function; signals may interrupt it."""
        with let_through():
            return await super().call(attempt, run)

    async def end(self, attempt: Attempt, outcome: Outcome | None) -> None:
        """Store the outcome; after a failure, call `Queue.fail`, which users may override."""
        if outcome is None:
            return
        if attempt.run is None or attempt.error is None or outcome.reason == "shutdown":
            self.returned = attempt.run is not None and attempt.error is None
            await self._end(outcome)
            return
        self._outcome = outcome
        self.returned = self._queue.fail(self._job, self._job.data, attempt.error)

    async def fail(self, data: Any, error: BaseException | None) -> None:
        """Store the outcome of a failure; see `Queue.fail`."""
        outcome = self._outcome if error is self.attempt.error else None
        if outcome is None:
            run = prepare(self._queue, self._queue, self._job)
            failure = PQError("failed") if error is None else error
            if isinstance(run, Outcome):
                outcome = run
            else:
                outcome = outcome_of_failure(self._queue, run, failure)
                outcome.keep_errors = kept_errors(run, self.keep_errors)
        # The function may have changed the data that the job holds, but the retry gets the stored data.
        await self._end(outcome, None if data is self._job.decoded_data else data)

    async def _end(self, outcome: Outcome, data: Any = None) -> None:
        """Store an outcome, and call its hook.

        Args:
            outcome: The outcome.
            data: The job's data, if it was changed on purpose.
        """
        hook: JobHook | None = None
        lost = False
        if not self._job.leased:
            hook = await self._end_popped(outcome, data)
        elif not _working.get():
            await super().end(self.attempt, outcome)
            return
        elif (stored := await self._store(outcome)) is None:
            return
        else:
            outcome, lost = stored
        await self.events.call_for_outcome(self.attempt, outcome, lost=lost, hook=hook)

    async def _end_popped(self, outcome: Outcome, data: Any) -> JobHook | None:
        """End a job that was taken with `get`; return a hook to call in place of the outcome's own hook, or None."""
        owed = claim_owed(self._job)
        if outcome.kind in ("retry", "snooze", "crash"):
            again = await self._put_again(outcome, data, owed=owed)
            self._queue.logger.info("%r has not completed, so its data was put again, as job %d", self._job, again)
            return None
        if owed:
            await follow_ups.run_follow_ups(self.engine, self._queue, outcome)
        return None if outcome.kind == "done" else "pqcore_job_dropped"

    async def _put_again(self, outcome: Outcome, data: Any, *, owed: bool) -> int:
        """Put again a job that `get` took, without its dedup key, and without the follow-ups that were already put.

        Args:
            outcome: The outcome of the job.
            data: The job's data, if it was changed on purpose; otherwise the stored data is put.
            owed: Whether the follow-ups of the job have not happened yet.
        """
        job, queue = self._job, cast("QueueSettings", self._queue)
        if outcome.kind == "retry":
            data = queue.decode_row(job.id, job.serializer, job.raw) if data is None else data
            data = {**data, "retried": data.get("retried", 0) + 1}
        elif data is None:
            data = job.decoded_data  # the data for plugins; None if it cannot be decoded
            queue = _as_stored(queue, job)
        due = None if outcome.delay is None else timedelta(seconds=outcome.delay)
        headers = job.headers if owed else follow_ups.without_follow_ups(job.headers)
        return await put_job(self.engine, queue, data, due, job.expected_at, None, put_options_of(headers))

    async def _store(self, outcome: Outcome) -> tuple[Outcome, bool] | None:
        """Store an outcome for `work`, and repeat until it is stored.

        Returns:
            The outcome in its stored form, and whether the lease was lost; None if the outcome cannot be stored.
        """
        refusals = Refusals()
        unknown_at: float | None = None  # when an answer was first lost; since then, the outcome may be stored
        while True:
            try:
                ended = await complete.finish_one(self.engine, self._queue, outcome)
                if ended is None and unknown_at is not None and await self._was_stored(outcome, unknown_at):
                    ended = outcome
            except PQError as exc:
                refusal = exc
            else:
                if ended is None:
                    warn_of_lost_lease(outcome)
                return ended or outcome, ended is None
            if unknown_at is None and isinstance(refusal, OutcomeUnknown):
                unknown_at = time.monotonic()
            verdict = refusals.judge(outcome, refusal)
            if outcome.reason == "shutdown" and (verdict != "again" or refusals.number == GIVE_BACK_TRIES):
                raise refusal
            if verdict == "again":
                _pause_after(self._queue, refusal, refusals.number, f"cannot store the outcome of {self._job!r}")
            elif verdict == "bury":
                self._queue.logger.error(
                    "the outcome of %r cannot be stored, so the job becomes a dead letter: %s", self._job, refusal
                )
                outcome = dead_letter_of(outcome, refusal)
            else:
                self._queue.logger.error("%r cannot become a dead letter: %s", self._job, refusal)
                return None  # the job's lease runs out, which counts as a crash

    async def _was_stored(self, outcome: Outcome, since: float) -> bool:
        """Return whether an earlier try, whose answer was lost, stored the outcome."""
        in_time = time.monotonic() - since < WORK_LEASE / 2
        return bool(await complete.find_already_stored(self.engine, self._queue, [(outcome, in_time)]))


def _pause_after(queue: WorkingQueue, error: PQError, failures: int, what: str) -> None:
    """Wait until the next attempt after a failure; raise the error if waiting cannot help."""
    engine = queue.engine
    sole = isinstance(engine.source, AdoptedConnection) or engine.in_block()
    passing = isinstance(error, (DatabaseError, PoolTimeout)) and not isinstance(error, TransactionAborted)
    if not passing or (sole and isinstance(error, ConnectionLost)):
        raise error
    pause = backoff(failures)
    queue.logger.warning("%r: %s, next try in %.1f s: %s", queue.name, what, pause, error)
    with let_through():
        time.sleep(pause)


def _as_stored(queue: QueueSettings, job: BaseJob) -> QueueSettings:
    """Return a queue that puts a job's data in its stored form, because the data may be unreadable here."""
    like: Any = copy.copy(queue)
    encoded = Encoded(job.raw, None) if isinstance(job.raw, str) else Encoded(None, job.raw)
    like.serializer_name = job.serializer
    like.encode_row = lambda _: encoded
    return cast("QueueSettings", like)


_working: ContextVar[bool] = ContextVar("pqcore_working", default=False)
"""Whether a call of `Queue.work`, which goes on when the server fails, is running in this thread."""
_performing: ContextVar[_Performer | None] = ContextVar("pqcore_performing", default=None)
"""The runner of the job that this thread performs."""
