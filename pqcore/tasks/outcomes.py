"""The steps from a row to the call of a function, and from its result to the outcome of the job.

This module does no I/O and starts no threads; `pqcore.tasks.run_job` combines the steps.
"""

from __future__ import annotations

import inspect
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from logging import getLogger
from typing import Any, Literal

from pqcore.db.interrupts import is_from_outside
from pqcore.errors import (
    ConfigurationError,
    DeserializationError,
    InvalidCall,
    PayloadTooLarge,
    PQError,
    SerializationError,
    UnknownTask,
    Unreadable,
)
from pqcore.job import BaseJob
from pqcore.operations.error_details import KeepErrors, describe_error, remove_outer_frames
from pqcore.operations.job_outcome import Outcome, OutcomeKind, crashed, dead_letter_of
from pqcore.settings import QueueSettings
from pqcore.tasks.context import JobCancelled, JobContext, JobTimeout
from pqcore.tasks.declaring import Task, TaskOptions
from pqcore.tasks.registry import TaskDeclarations
from pqcore.tasks.retry import Discard, Retry, RetryPolicy, Snooze, policy_from_json
from pqcore.times import seconds

logger = logging.getLogger("pqcore.tasks")

UNKNOWN_PAUSE = 60.0
"""Seconds for which a job is snoozed if this worker does not know its function or cannot read its data, so that another
worker can take the job."""
SLOW_SERIALIZER = 2.0
"""Seconds of decoding or encoding after which the log names the serializer."""
MEMORY_PAUSE = 1.0
"""Seconds until a job that ran out of memory is retried; the pause doubles each time."""


@dataclass(eq=False, slots=True)
class Run:
    """A decoded call of a job's function, ready to run.

    Attributes:
        job: The job.
        task: The task, which has the function.
        args: The positional arguments, without the job or its id.
        kwargs: The keyword arguments.
        failures: How often the job failed before.
        max_retries: The largest number of failures that are followed by a retry.
        retry: The policy that determines the pause before a retry.
        timeout: Seconds that the function may take; None for no limit.
    """

    job: BaseJob
    task: Task
    args: Any
    kwargs: Any
    failures: int
    max_retries: int
    retry: RetryPolicy
    timeout: float | None


def prepare(queue: QueueSettings, declarations: TaskDeclarations, job: BaseJob) -> Run | Outcome:
    """Decode a job; return the call of its function, or the outcome of a job that cannot run.

    Args:
        queue: The job's queue.
        declarations: The declared tasks.
        job: The job.
    """
    crashes = job.crashes
    if crashes > 0 and crashes >= declarations.most_crashes():  # decoding the job may kill the worker
        return _crashed(queue, job)
    try:
        data = job.decode()
        path, args, kwargs = _path_in(data), data["args"], data["kwargs"]
        failures, max_retries = job.failures + int(data.get("retried", 0)), data.get("max_retries")
        max_retries = None if max_retries is None else int(max_retries)
        headers = _run_headers(job) if job.raw_headers is not None else _NOTHING
        own_retry = policy_from_json(headers["retry"]) if "retry" in headers else None
        deadline, timeout = headers.get("deadline"), headers.get("timeout")
        late = deadline is not None and time.time() > deadline
    except Unreadable as exc:
        return _expired(job) if _is_late(job) else snooze_unrunnable(queue, job, exc, "unreadable")
    except Exception as exc:  # the row may hold anything, because a producer can write it in SQL
        if isinstance(exc.__cause__, MemoryError):  # later, this or another worker may have enough memory
            job_logger.exception("job %d of %r does not fit into memory", job.id, queue.name)
            return crashed(job, MEMORY_PAUSE, "the job's data does not fit into memory")
        fault = InvalidCall(f"the data has no {exc}, so it is not a call") if isinstance(exc, KeyError) else exc
        job_logger.error("job %d of %r is not a call of a function: %s", job.id, queue.name, fault)  # noqa: TRY400
        return Outcome(job, "dead", error=describe_error(fault), reason="invalid")
    try:
        task = declarations.find_task(path)
    except BaseException as exc:
        if is_from_outside(exc):
            raise
        return snooze_unrunnable(queue, job, exc, "unknown")  # importing a trusted module may raise anything
    if crashes > 0 and crashes >= task.options.max_crashes:
        return _crashed(queue, job)
    if late:
        return _expired(job)
    if max_retries is None:  # the call was put in SQL, which does not know the declaration
        max_retries = task.options.max_retries
    retry = own_retry or task.options.retry or _PqsRetry(data.get("retry_in", task.options.retry_in))
    return Run(job, task, args, kwargs, failures, max_retries, retry, timeout)


def _path_in(data: Any) -> str:
    if not hasattr(data, "get"):
        raise InvalidCall(f"the data is a {type(data).__name__}, not a call")
    path = data["function"]
    if not isinstance(path, str):
        raise TypeError(f"the function of the job is {repr(path)[:80]}; a job names its function as 'module.name'")
    return path


def _run_headers(job: BaseJob) -> dict[str, Any]:
    if job.header_faults:
        raise DeserializationError(job.header_faults)
    found: dict[str, Any] = job.headers.get("run", _NOTHING)
    return found


job_logger = getLogger("pqcore.tasks.jobs")
"""The logger for failures of jobs, which a plugin that reports failures may silence."""
_NOTHING: dict[str, Any] = {}


@dataclass(frozen=True)
class _PqsRetry:
    retry_in: Any

    def __call__(self, failures: int, error: BaseException) -> float | None:
        return None if self.retry_in is None else seconds(self.retry_in)


def _is_late(job: BaseJob) -> bool:
    """Return whether a job's deadline has passed, according to its headers."""
    deadline = job.headers.get("run", _NOTHING).get("deadline")
    return deadline is not None and time.time() > float(deadline)


def _expired(job: BaseJob) -> Outcome:
    error = {"type": "deadline", "message": "the deadline passed before a worker started the job", "traceback": ""}
    return Outcome(job, "dead", error=error, reason="expired")


def _crashed(queue: QueueSettings, job: BaseJob) -> Outcome:
    error = {"type": "crash", "message": f"its worker died or lost the lease {job.crashes} times", "traceback": ""}
    job_logger.error("job %d of %r is now a dead letter: %s", job.id, queue.name, error["message"])
    return Outcome(job, "dead", error=error, reason="crashed")


def snooze_unrunnable(
    queue: QueueSettings, job: BaseJob, error: BaseException, reason: Literal["unknown", "unreadable"]
) -> Outcome:
    """Return a snooze for a job whose function or data this worker does not know, so that another worker gets it."""
    surprising = error if not isinstance(error, (UnknownTask, Unreadable)) else None
    again = f"the job is postponed for {UNKNOWN_PAUSE:.0f} seconds"
    logger.error("job %d of %r: %s; %s", job.id, queue.name, error, again, exc_info=surprising)
    details = {"type": reason, "message": describe_error(error)["message"], "traceback": ""}
    return Outcome(job, "snooze", error=details, delay=UNKNOWN_PAUSE, reason=reason)


def is_cancellation(error: BaseException) -> bool:
    """Return whether an exception is asyncio's CancelledError."""
    from asyncio import CancelledError  # importing asyncio takes long, and few jobs fail

    return isinstance(error, CancelledError)


def as_failure(error: BaseException, late: BaseJob | None = None) -> BaseException:
    """Return the failure of a job for the exception of its function: `JobCancelled` if the function cancelled itself.

    Args:
        error: The exception.
        late: The job, if the function was stopped at its timeout.
    """
    remove_outer_frames(error)
    if late is not None:
        timeout = JobTimeout(f"{path_of(late)} did not end within {late.headers['run']['timeout']} seconds")
        timeout.__cause__ = error
        return timeout
    if not is_cancellation(error):
        return error
    failure = JobCancelled("the function was cancelled from within")
    failure.__cause__ = error
    return failure


def failure_of(context: JobContext, error: BaseException) -> BaseException | None:
    """Return the failure of a job whose function raised; None if it was given back, was cancelled or lost its lease.

    Args:
        context: The context of the running function.
        error: The exception of the function.
    """
    if context.leaves(error):
        return None
    if not (isinstance(error, JobCancelled) or is_cancellation(error)):
        return error
    if context.stop_reason:
        return as_failure(error, late=context.job) if context.stop_reason == "timeout" else None
    if is_cancellation(error) and _is_cancelled():
        return None
    return as_failure(error)


def _is_cancelled() -> bool:
    """Return whether the running asyncio task was cancelled from outside; before Python 3.11, return True in any task.

    A function that cancels itself raises CancelledError without cancelling a task.
    """
    from asyncio import current_task

    try:
        task = current_task()
    except RuntimeError:  # no event loop runs in this thread
        return False
    return task is not None and (sys.version_info < (3, 11) or task.cancelling() > 0)


def kind_after(options: TaskOptions, failures: int, max_retries: int, error: BaseException) -> OutcomeKind:
    """Return the kind of outcome after a failure; for ``retry``, the retry policy may still discard the job.

    Args:
        options: The options of the task.
        failures: How often the job failed before.
        max_retries: The largest number of failures that are followed by a retry.
        error: The failure.
    """
    if isinstance(error, Snooze):
        return "snooze"
    if isinstance(error, (Discard, *options.discard_on)):
        return "drop"
    may_retry = isinstance(error, (Retry, JobTimeout, JobCancelled, *options.retry_on))
    return "retry" if may_retry and failures < max_retries else "dead"


def outcome_of_failure(queue: QueueSettings, run: Run, error: BaseException) -> Outcome:
    """Return and log the outcome of a job whose function raised."""
    job, kind = run.job, kind_after(run.task.options, run.failures, run.max_retries, error)
    remove_outer_frames(error)
    if isinstance(error, Snooze):
        return Outcome(job, "snooze", delay=error.delay)
    if kind == "drop":
        job_logger.info("job %d of %r (%s) is discarded: %s", job.id, queue.name, run.task.path, error)
        return Outcome(job, "drop", error=describe_error(error), reason="discarded")
    details = describe_error(error)
    if kind == "dead":
        job_logger.error("job %d of %r (%s) failed for good", job.id, queue.name, run.task.path, exc_info=error)
        return Outcome(job, "dead", error=details, reason="failed")
    try:
        delay = error.delay if isinstance(error, Retry) else run.retry(run.failures + 1, error)
        pause = None if delay is None else seconds(delay)
    except Discard as exc:
        return Outcome(job, "drop", error=describe_error(exc), reason="discarded")
    except BaseException as exc:  # the retry policy is users' code
        if is_from_outside(exc):
            raise
        logger.exception("the retry policy of %s raised an error, so the job is retried in a minute", run.task.path)
        pause = 60.0
    again = "job %d of %r (%s) failed; next attempt in %.1f s"
    job_logger.warning(again, job.id, queue.name, run.task.path, pause or 0.0, exc_info=error)
    return Outcome(job, "retry", error=details, delay=pause)


def path_of(job: BaseJob, *, quickly: bool = False) -> str:
    """Return the path that a job names, even if no such function is known.

    Return an empty path if the job is not a call of a function.

    Args:
        job: The job.
        quickly: Whether to return an empty path instead of decoding data that may take long.
    """
    settings = job.settings
    if quickly and not job.is_decoded and not settings.reads_quickly(job.serializer, job.raw):
        return ""
    try:
        path = job.decode()["function"]
    except (DeserializationError, TypeError, KeyError, IndexError):
        return ""
    return path if isinstance(path, str) else ""


def seconds_waited(job: BaseJob, ago: float = 0.0) -> float:
    """Return for how many seconds a job had been due ``ago`` seconds ago, by this machine's clock."""
    due = job.schedule_at or job.enqueued_at
    return max(time.time() - ago - due.timestamp(), 0.0)


def warn_of_lost_lease(outcome: Outcome) -> None:
    """Log that a job may run twice, because the statement that stores its outcome found no lease of this worker."""
    job = outcome.job
    logger.warning(
        "cannot store the outcome of job %d of %r, because this worker has lost the lease: the job may run twice,"
        " unless the outcome was stored earlier and only the server's answer was lost",
        job.id,
        job.settings.name,
    )


def warn_of_unkept_crash(job: BaseJob, error: PQError) -> None:
    """Log that a crash could not be added to the stored attempts of a job."""
    logger.warning("cannot add a crash to the stored attempts of job %d of %r: %s", job.id, job.settings.name, error)


def kept_errors(run: Run | None, otherwise: KeepErrors) -> KeepErrors:
    """Return the option ``keep_errors`` of a run's task or, if the task has none, the caller's value."""
    return otherwise if run is None else run.task.options.keep_errors or otherwise


_RUN = frozenset({type(None), bool, int, float, str, bytes, dict, list, tuple})
"""The types of most results. No value of these types is awaitable, and the check of a value takes relatively long."""


def refuse_unrun(result: Any) -> None:
    """Raise an error if a result shows that the function's body has not run.

    Raises:
        ConfigurationError: The result is a generator, an asynchronous generator, or an awaitable.
    """
    if type(result) in _RUN:
        return
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        what, remedy = "a generator", "iterate over it in the function"
    elif inspect.isawaitable(result):
        what, remedy = "something to await", "await it in the function"
    else:
        return
    msg = f"the function returned {what}, a {type(result).__qualname__}, which was never run: {remedy}"
    if inspect.isgenerator(result) or inspect.iscoroutine(result):
        result.close()  # otherwise Python warns that the coroutine was never awaited
    raise ConfigurationError(msg)


def stores_result(job: BaseJob) -> bool:
    """Return whether a job's result is stored, for `result` or for the next job of a chain."""
    return job.raw_headers is not None and ("keep" in job.headers or bool(job.headers.get("then")))


def outcome_of_result(queue: QueueSettings, job: BaseJob, result: Any, *, finished: bool = False) -> Outcome:
    """Return the outcome of a job whose function returned; the function is not called again, whatever it returned.

    If the result cannot be stored, the job is done, and a call for its result raises the cause. If a chain needs the
    result, the job becomes a dead letter with the rest of the chain.

    Args:
        queue: The job's queue.
        job: The job.
        result: The value that the function returned.
        finished: See `Outcome.finished`; `JobContext.finish` has then taken the result, if there is one.

    Raises:
        ConfigurationError: The result is a generator, an asynchronous generator, or an awaitable, so the body has not
            run.
    """
    refuse_unrun(result)
    if finished or not stores_result(job):
        return Outcome(job, "done", result, finished=finished)
    try:
        return Outcome(job, "done", result, encoded=queue.encode_row(result))
    except (SerializationError, PayloadTooLarge) as exc:
        return outcome_without_result(queue, job, exc, result)


def outcome_without_result(queue: QueueSettings, job: BaseJob, error: BaseException, result: Any = None) -> Outcome:
    """Return the outcome of a done job whose result cannot be stored.

    Args:
        queue: The job's queue.
        job: The job.
        error: Why the result cannot be stored.
        result: The value that the function returned.
    """
    job_logger.error("job %d of %r was done, but its result cannot be stored: %s", job.id, queue.name, error)
    outcome = Outcome(job, "done", result, result_error=describe_error(error))
    return dead_letter_of(outcome, error) if job.headers.get("then") else outcome


def bound_call(run: Run) -> Callable[[], Any]:
    """Return a function without arguments that makes the call."""
    return lambda: run.task.call(run.job, run.args, run.kwargs)
