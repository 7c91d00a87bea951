"""Running jobs inside the test, one at a time, as a worker would; for `pqcore.testing.jobs`."""

from __future__ import annotations

import asyncio
import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pqcore import queue as core
from pqcore.db.interrupts import leaves
from pqcore.errors import ConfigurationError, PQError, ResultNotStored, UnknownTask
from pqcore.events import FAILURES
from pqcore.job import AsyncJob, BaseJob, Job
from pqcore.operations import batch_counts, complete, fetch, follow_ups, results
from pqcore.operations.job_outcome import Outcome, OutcomeKind
from pqcore.tasks import Retry
from pqcore.tasks.context import JobContext
from pqcore.tasks.fetched_jobs import given_up_jobs
from pqcore.tasks.job_events import Attempt, find_job_events
from pqcore.tasks.outcomes import Run, path_of
from pqcore.tasks.registry import TaskDeclarations
from pqcore.tasks.run_job import Runner, run_job
from pqcore.testing.matching import is_call

LEASE = 86_400.0
"""Seconds for which a job is leased: long enough for debugging."""
MOST_RUN = 1_000
"""The default for the largest number of jobs to run. Without it, a job that puts itself again would run without end."""


@dataclass(frozen=True)
class Ran:
    """A job that was run.

    Attributes:
        id: The job's id.
        queue: The name of the job's queue.
        task: The path of the function.
        args: The positional arguments of the call, without the job's id.
        kwargs: The keyword arguments of the call.
        result: The value that the function returned.
        outcome: How the job ended: ``done``, ``retry``, ``snooze``, ``dead`` or ``drop``.
        error: The exception of the function.
        reason: Why the job is dead or was dropped; see `pqcore.dead_letters.DeadLetter`.
        attempt: The number of the run: 1 for the first run, 2 for the second.
    """

    id: int
    queue: str
    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = None
    outcome: OutcomeKind = "done"
    error: BaseException | None = None
    reason: str = ""
    attempt: int = 1


async def drain(queues: Sequence[Any], *, raise_errors: bool, at_most: int, suspends: bool) -> list[Ran]:
    """Run the due jobs; see `Jobs.drain`.

    Args:
        queues: The queues.
        raise_errors: See `Jobs.drain`.
        at_most: See `Jobs.drain`.
        suspends: Whether this is awaited in an event loop, so that functions may be awaited, too.
    """
    for queue in queues:
        if not isinstance(queue, TaskDeclarations):
            msg = f"{queue!r} is not a queue; give a queue of a PQ or AsyncPQ"
            raise ConfigurationError(msg)
    ran: list[Ran] = []
    for queue in queues:
        await follow_ups.complete_given_up(queue.engine, queue, given_up_jobs(queue))
    while True:
        for queue in queues:
            job = await _next(queue)
            if job is not None:
                break
        else:
            if sum([await batch_counts.end_lost(queue.engine, queue) for queue in queues]):
                continue
            return ran
        if len(ran) >= at_most:
            await complete.finish(queue.engine, queue, [Outcome(job, "snooze", reason="shutdown")])
            msg = f"{at_most} jobs were run, and more are due, such as {path_of(job)}: does a job put itself again?"
            raise PQError(msg)
        ran.append(await _Drainer(queue, job, suspends=suspends).run(raise_errors=raise_errors))


async def _next(queue: Any) -> BaseJob | None:
    """Lease the next due job, ignoring the queue's rate limit."""
    settings = queue
    if queue.rate is not None:
        settings = copy.copy(queue)
        settings.rate = None
    while True:
        rows, wake_in = await fetch.look(queue.engine, settings, 1, LEASE)
        if rows:
            kind: type[BaseJob] = Job if isinstance(queue, core.Queue) else AsyncJob
            return kind(queue, rows[0], leased=True)
        if wake_in != 0.0:  # 0 means that the look parked a job, and other jobs may be behind this job
            return None


class _Drainer(Runner[Attempt]):
    """A runner of one job inside the test, which stores the outcome before it continues.

    Args:
        queue: The job's queue.
        job: The job.
        suspends: Whether functions are awaited in the test's event loop.
    """

    def __init__(self, queue: Any, job: BaseJob, *, suspends: bool) -> None:
        super().__init__(find_job_events(blocking=not suspends), suspends=suspends)
        self._attempt = Attempt(queue, job)
        self._misuse: ConfigurationError | None = None

    async def run(self, *, raise_errors: bool) -> Ran:
        """Run the job; see `drain`."""
        attempt = self._attempt
        outcome = await run_job(self, attempt, JobContext(attempt.queue, attempt.job, self._leaves))
        assert outcome is not None
        if raise_errors:
            self._raise(outcome)
        event = self.events.event(attempt)
        args, kwargs = ((), {}) if attempt.run is None else (tuple(attempt.run.args), dict(attempt.run.kwargs))
        return Ran(
            id=attempt.job.id,
            queue=event.queue,
            task=event.task,
            args=args,
            kwargs=kwargs,
            result=outcome.result,
            outcome=outcome.kind,
            error=attempt.error,
            reason=outcome.reason,
            attempt=event.attempt,
        )

    async def decode(self, attempt: Attempt) -> Run | Outcome:
        """Decode the job; refuse a coroutine function that this runner cannot await."""
        run = await super().decode(attempt)
        if not isinstance(run, Outcome) and run.task.is_coroutine and not self._suspends and in_loop():
            attempt.run = None  # without the run, no plugin gets an event of this attempt
            msg = f"{run.task.path} must be awaited, within an event loop: await jobs.adrain(queue)"
            self._misuse = ConfigurationError(msg)
            raise self._misuse
        return run

    async def end(self, attempt: Attempt, outcome: Outcome | None) -> None:
        """Store the progress that the function reported, and then the outcome."""
        if attempt.context is not None and (progress := attempt.context.take_progress()) is not None:
            await results.report_progress(attempt.queue.engine, attempt.queue, attempt.job, progress)
        await super().end(attempt, outcome)

    def _leaves(self, error: BaseException) -> bool:
        """Return whether an exception ends the drain, rather than being a failure of the job."""
        return error is self._misuse or leaves(error) or _is_the_tests(error, suspends=self._suspends)

    def _raise(self, outcome: Outcome) -> None:
        """Raise the error that made the job fail, or that kept the job from running; ignore an intended `Retry`."""
        attempt, error = self._attempt, self._attempt.error
        if attempt.run is None:
            self._raise_why_not_run(outcome)
        if outcome.result_error is not None:
            message = f"the result cannot be stored: {outcome.result_error['message']}"
            raise ResultNotStored(message, outcome.result_error)
        meant = isinstance(error, Retry) and outcome.kind == "retry"
        if error is not None and outcome.kind in FAILURES and not meant:
            raise error

    def _raise_why_not_run(self, outcome: Outcome) -> None:
        queue, job = self._attempt.queue, self._attempt.job
        if outcome.reason == "unknown":
            queue.find_task(path_of(job))
        elif outcome.reason == "unreadable":
            job.decode()
        elif outcome.reason == "invalid":
            data = job.decode()
            if not is_call(data):
                msg = f"job {job.id} of queue {queue.name!r} is not a call of a function: {data!r}"
                raise UnknownTask(msg)


def _is_the_tests(error: BaseException, *, suspends: bool) -> bool:
    """Return whether an exception is meant for the test: `pytest.fail`, or a cancellation of the test's own task."""
    if suspends and isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return sys.version_info < (3, 11) or (task is not None and task.cancelling() > 0)
    return any(kind.__module__ == "_pytest.outcomes" for kind in type(error).__mro__)


def in_loop() -> bool:
    """Return whether an event loop runs in this thread."""
    return asyncio._get_running_loop() is not None
