"""Running one job, from its row to its outcome: `run_job`, for all programs that run jobs.

A worker, `Queue.perform` and the test kit each have a `Runner`. The runner decides where functions are called and how
outcomes are stored. Only this module defines the order of plugins' hooks and the handling of exceptions.
"""

from __future__ import annotations

import inspect
import logging
import time
from typing import Any, Generic, TypeVar

from pqcore.errors import PQError
from pqcore.events import FAILURES
from pqcore.operations import complete
from pqcore.operations.error_details import KeepErrors
from pqcore.operations.job_outcome import Outcome, crashed
from pqcore.tasks.context import JobCancelled, JobContext, enter_job, leave_job
from pqcore.tasks.job_events import Attempt, JobEvents
from pqcore.tasks.outcomes import (
    Run,
    as_failure,
    bound_call,
    is_cancellation,
    job_logger,
    kept_errors,
    outcome_of_failure,
    outcome_of_result,
    outcome_without_result,
    prepare,
    snooze_unrunnable,
    stores_result,
    warn_of_lost_lease,
    warn_of_unkept_crash,
)

logger = logging.getLogger("pqcore.tasks")

CRASH_PAUSE = 1.0
"""Seconds until a job whose process died is retried; the pause doubles each time."""


class WorkerProcessDied(Exception):
    """The process that ran the function died: it was killed, ran out of memory, or exited itself."""


class ResultNotSent(Exception):
    """The function returned, but its result cannot be pickled in its process, or cannot be unpickled in the worker."""


A = TypeVar("A", bound=Attempt)


class Runner(Generic[A]):
    """The place where a job's function is called, and the way in which its outcome is stored.

    This class calls the function where `run_job` is awaited, and stores the outcome before it continues.

    Args:
        events: The caller of plugins' hooks.
        suspends: Whether `run_job` is awaited in an event loop; otherwise it must not suspend.

    Attributes:
        events: The caller of plugins' hooks.
        keep_errors: What is stored of exceptions, for tasks without an option of their own.
    """

    keep_errors: KeepErrors = "all"

    def __init__(self, events: JobEvents, *, suspends: bool = False) -> None:
        self.events = events
        self._suspends = suspends

    async def decode(self, attempt: A) -> Run | Outcome:
        """Decode a job; return the call of its function, or the outcome of a job that cannot run."""
        run = prepare(attempt.queue, attempt.queue, attempt.job)
        if not isinstance(run, Outcome):
            attempt.run = run
        return run

    async def keep_crash(self, attempt: A) -> None:
        """Record a crash, because an earlier lease ended without an outcome; the job runs even if recording fails."""
        from pqcore.operations import attempts  # few jobs crash

        try:
            await attempts.keep_crash(attempt.queue.engine, attempt.queue, attempt.job)
        except PQError as exc:
            warn_of_unkept_crash(attempt.job, exc)

    async def start(self, attempt: A) -> None:
        """Call the hook of a job that is about to run; skipped if no plugin has the hook."""
        await self.events.call("pqcore_job_started", attempt)

    async def call(self, attempt: A, run: Run) -> Any:
        """Call the function inside `JobEvents.around`, and return its result."""
        attempt.started_at = time.perf_counter()
        with self.events.around(attempt):
            result = bound_call(run)()
            if not inspect.isawaitable(result):
                return result
            if self._suspends:
                return await result
            from asyncio import run as run_loop  # importing asyncio takes long, and only coroutine functions need it

            return run_loop(_await(result))

    async def complete(self, attempt: A, result: Any, *, finished: bool) -> Outcome:
        """Return the outcome of a job with headers whose function returned."""
        return outcome_of_result(attempt.queue, attempt.job, result, finished=finished)

    async def notice_shutdown(self, attempt: A, context: JobContext) -> None:
        """Stop the context if the function was cancelled together with the task that runs jobs here."""

    def release(self, attempt: A) -> bool:
        """Record that the function has ended; return False if the outcome is decided already."""
        return True

    async def end(self, attempt: A, outcome: Outcome | None) -> None:
        """Store the outcome, and call its hook.

        Args:
            attempt: The attempt.
            outcome: The outcome; None if the lease is known to be lost.

        Raises:
            PQError: The outcome cannot be stored.
        """
        if outcome is not None:
            stored = await complete.finish_one(attempt.queue.engine, attempt.queue, outcome)
            if stored is None:
                warn_of_lost_lease(outcome)
            await self.events.call_for_outcome(attempt, stored or outcome, lost=stored is None)

    def leave(self, error: BaseException) -> None:
        """End the program, or the task that runs jobs, after the interrupted job was given back."""
        raise error


async def run_job(runner: Runner[A], attempt: A, context: JobContext) -> Outcome | None:
    """Run a job, and store its outcome.

    The order is the same wherever a job runs: decode the job; call ``pqcore_job_started``; run the function within
    ``pqcore_around_run``; if the function failed, call ``pqcore_job_failed``; store the outcome; call the hook of the
    outcome.

    An exception of the function is a failure of the job, unless `JobContext.leaves` says that the exception ends the
    program. If the exception ends the program, the job returns to the queue, the attempt does not count, and this
    coroutine raises the exception.

    Args:
        runner: The runner that calls the function and stores the outcome.
        attempt: The attempt; its ``run`` is set if the job was decoded already.
        context: The context that the function sees.

    Returns:
        The outcome; None if the lease was lost, or if the outcome was decided while the function ran.

    Raises:
        BaseException: The exception that ends the program, from `Runner.leave`.
        PQError: The outcome cannot be stored; raised by `Runner.end`.
    """
    attempt.context = context
    before = enter_job(context)
    leaving: BaseException | None = None
    outcome: Outcome | None
    try:
        run: Run | Outcome | None = attempt.run
        if run is None:
            if attempt.job.leased and attempt.job.crashes > 0:  # record the crash before the job can crash this process
                await runner.keep_crash(attempt)
            run = await runner.decode(attempt)
        if attempt.run is not None and "pqcore_job_started" in runner.events.hooks:
            await runner.start(attempt)
        context.check()  # a stop request may have come before the function could be stopped
        if isinstance(run, Outcome):
            outcome = run
        else:
            result = await runner.call(attempt, run)
            attempt.duration = time.perf_counter() - attempt.started_at
            if attempt.job.raw_headers is None:
                outcome = outcome_of_result(attempt.queue, attempt.job, result, finished=context.finished)
            else:
                outcome = await runner.complete(attempt, result, finished=context.finished)
    except BaseException as exc:  # noqa: BLE001 - whatever the function raises is judged
        attempt.error = exc
        if attempt.run is not None and attempt.started_at and not attempt.duration:
            attempt.duration = time.perf_counter() - attempt.started_at
        try:
            outcome = await _outcome_of_error(runner, attempt, context, exc)
        except BaseException as left:  # noqa: BLE001 - it is raised again, once the job was given back
            leaving = left
            outcome = Outcome(attempt.job, "snooze", reason="shutdown", finished=context.finished)
    leave_job(before)
    if outcome is not None and (outcome.kind != "done" or attempt.job.raw_headers is not None):
        outcome.keep_errors = kept_errors(attempt.run, runner.keep_errors)
    if not runner.release(attempt):
        return None
    if outcome is not None and outcome.kind in FAILURES and attempt.run is not None:
        await runner.events.call("pqcore_job_failed", attempt, outcome)
    if leaving is None:
        await runner.end(attempt, outcome)
        return outcome
    try:
        await runner.end(attempt, outcome)
    except PQError as exc:  # the error must not replace the exception that ends the program
        logger.warning("%r: cannot return %r to the queue: %s", attempt.queue.name, attempt.job, exc)
    runner.leave(leaving)
    return outcome


async def _outcome_of_error(runner: Runner[A], attempt: A, context: JobContext, error: BaseException) -> Outcome | None:
    """Return the outcome after an exception of the function, or of a step before it; None if the lease was lost.

    Raises:
        BaseException: The exception that ends the program.
    """
    queue, job, run = attempt.queue, attempt.job, attempt.run
    if context.leaves(error):
        raise error
    if isinstance(error, JobCancelled) or is_cancellation(error):
        if not context.stop_reason:
            await runner.notice_shutdown(attempt, context)
        return _outcome_of_stop(attempt, context.stop_reason, error)
    if isinstance(error, ResultNotSent):
        attempt.error = None  # the function returned
        if context.finished or not stores_result(job):
            return Outcome(job, "done", finished=context.finished)
        return outcome_without_result(queue, job, error)
    if isinstance(error, WorkerProcessDied):
        job_logger.error("job %d of %r: %s", job.id, queue.name, error)
        return crashed(job, CRASH_PAUSE, str(error))
    if run is None:
        return snooze_unrunnable(queue, job, error, "unreadable")
    return outcome_of_failure(queue, run, error)


def _outcome_of_stop(attempt: Attempt, reason: str, error: BaseException) -> Outcome | None:
    """Return the outcome of a job whose function was stopped, or cancelled itself; None if the lease was lost."""
    queue, job, run = attempt.queue, attempt.job, attempt.run
    if reason == "lost":
        return None
    if reason == "cancelled":
        path = "not decoded yet" if run is None else run.task.path
        logger.info("job %d of %r (%s) was cancelled", job.id, queue.name, path)
        return Outcome(job, "drop", reason="cancelled")
    if reason == "shutdown":
        return Outcome(job, "snooze", reason="shutdown")
    if run is None:  # the decoder raised CancelledError itself
        return snooze_unrunnable(queue, job, error, "unreadable")
    failure = attempt.error = as_failure(error, late=job if reason == "timeout" else None)
    return outcome_of_failure(queue, run, failure)


async def _await(awaitable: Any) -> Any:
    return await awaitable
