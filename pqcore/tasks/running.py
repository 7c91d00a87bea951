"""From a row to a call, and from how the call ended to what becomes of the job.

No I/O and no threads: the worker and `Queue.perform` share it.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from logging import getLogger
from types import TracebackType
from typing import Any

from pqcore.errors import ConfigurationError, DeserializationError, PayloadTooLarge, SerializationError, UnknownTask
from pqcore.job import BaseJob
from pqcore.operations.finishing import End, Outcome
from pqcore.settings import QueueSettings
from pqcore.tasks.context import JobCancelled, JobContext, JobTimeout
from pqcore.tasks.declaring import Task, TaskDeclarations, TaskOptions, logger
from pqcore.tasks.policies import Discard, Retry, RetryPolicy, Snooze, policy_from_json
from pqcore.timespec import seconds

UNKNOWN_PAUSE = 60.0
"""Seconds for which a job is put off that names a function unknown here: another worker may know it."""
_LEADING = ("pqcore.", "concurrent.futures.", "asyncio.")
MAX_TRACEBACK = 20_000
"""Characters of a traceback that are kept: its end."""


@dataclass(eq=False)
class Run:
    """A call that is about to be made.

    Attributes:
        job: Its job.
        task: What is called.
        args: With what, after the job's id.
        kwargs: And with what.
        failures: How often it failed before.
        max_retries: How many failures are forgiven.
        retry: The pause after a failure.
        timeout: Seconds that it may take; None for as long as it does.
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
    """Read a job; a run of it, or how it ends without one.

    Args:
        queue: Its queue.
        declarations: Where functions are found.
        job: The job.
    """
    try:
        data = job._get_data()  # noqa: SLF001 - what both faces' jobs have in common
        path, args, kwargs = _path_in(data), data["args"], data["kwargs"]
        failures, max_retries = job.failures + int(data.get("retried", 0)), int(data.get("max_retries", 0))
        headers = _run_headers(job) if job.raw_headers is not None else _NOTHING
        own_retry = policy_from_json(headers["retry"]) if "retry" in headers else None
        deadline, timeout = headers.get("deadline"), headers.get("timeout")
        late = deadline is not None and time.time() > deadline
    except Exception as exc:  # it may hold anything: who may put can write the row in SQL
        job_logger.exception("job %d of %r is no call of a function", job.id, queue.name)
        return Outcome(job, "dead", error=described(exc), reason="invalid")
    try:
        task = declarations.find_task(path)
    except Exception as exc:  # noqa: BLE001 - importing a trusted module may raise anything
        return unknown(queue, job, exc)
    if job.crashes > 0 and job.crashes >= task.options.max_crashes:
        error = {"type": "crash", "message": f"its worker died {job.crashes} times, or lost its lease", "traceback": ""}
        job_logger.error("job %d of %r is given up: %s", job.id, queue.name, error["message"])
        return Outcome(job, "dead", error=error, reason="crashed")
    if late:
        error = {"type": "deadline", "message": "its deadline passed before it was started", "traceback": ""}
        return Outcome(job, "dead", error=error, reason="expired")
    retry = own_retry or task.options.retry or _PqsRetry(data.get("retry_in"))
    return Run(job, task, args, kwargs, failures, max_retries, retry, timeout)


def _path_in(data: Any) -> str:
    path = data["function"]
    if not isinstance(path, str):
        raise TypeError(f"its function is {repr(path)[:80]}, and no path")
    return path


def _run_headers(job: BaseJob) -> dict[str, Any]:
    if job.header_faults:
        raise DeserializationError(job.header_faults)
    found: dict[str, Any] = job.headers.get("run", _NOTHING)
    return found


job_logger = getLogger("pqcore.tasks.jobs")
"""Says how jobs fail: what a plugin that listens may say instead."""
_NOTHING: dict[str, Any] = {}


@dataclass(frozen=True)
class _PqsRetry:
    retry_in: Any

    def __call__(self, failures: int, error: BaseException) -> float | None:
        return None if self.retry_in is None else seconds(self.retry_in)


def unknown(queue: QueueSettings, job: BaseJob, error: BaseException) -> Outcome:
    """What becomes of a job that names a function that is not known here: it is kept."""
    advice = f"it is put off for {UNKNOWN_PAUSE:.0f} seconds"
    known = error if not isinstance(error, UnknownTask) else None
    logger.error("job %d of %r: %s; %s", job.id, queue.name, error, advice, exc_info=known)
    return Outcome(job, "snooze", delay=UNKNOWN_PAUSE, reason="unknown")


def as_failure(error: BaseException, late: BaseJob | None = None) -> BaseException:
    """What a function raised, as the failure of its job: that it cancelled itself is one.

    Args:
        error: What it raised.
        late: Its job, if the function was stopped as its time was up.
    """
    if late is not None:
        timeout = JobTimeout(f"{path_of(late)} did not end in {late.headers['run']['timeout']} seconds")
        timeout.__cause__ = error
        return timeout
    if not isinstance(error, asyncio.CancelledError):
        return error
    failure = JobCancelled("the function was cancelled from within")
    failure.__cause__ = error
    return failure


def failure_of(context: JobContext, error: BaseException) -> BaseException | None:
    """The failure of a job, for its function as it raises; None if the job is given back, cancelled or lost.

    Args:
        context: Of the running function.
        error: What the function raises.
    """
    if context.leaves(error):
        return None
    if not isinstance(error, (asyncio.CancelledError, JobCancelled)):
        return error
    if context.stop_reason:
        return as_failure(error, late=context.job) if context.stop_reason == "timeout" else None
    if isinstance(error, asyncio.CancelledError) and _is_cancelled():
        return None
    return as_failure(error)


def _is_cancelled() -> bool:
    """Whether the running asyncio task is cancelled from outside, with all of a worker; before Python 3.11: it may be.

    A function that cancels itself raises CancelledError, and cancels no task.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return False
    return task is not None and (sys.version_info < (3, 11) or task.cancelling() > 0)


def end_of(options: TaskOptions, failures: int, max_retries: int, error: BaseException) -> End:
    """How a job ends whose function raised, unless its retry policy has it dropped.

    Args:
        options: Of its task.
        failures: How often it failed before.
        max_retries: How many failures are forgiven.
        error: The failure.
    """
    if isinstance(error, Snooze):
        return "snooze"
    if isinstance(error, (Discard, *options.discard_on)):
        return "drop"
    may_retry = isinstance(error, (Retry, JobTimeout, JobCancelled, *options.retry_on))
    return "retry" if may_retry and failures < max_retries else "dead"


def conclude(queue: QueueSettings, run: Run, error: BaseException) -> Outcome:
    """What becomes of a job whose function raised."""
    job, end = run.job, end_of(run.task.options, run.failures, run.max_retries, error)
    if isinstance(error, Snooze):
        return Outcome(job, "snooze", delay=error.delay)
    if end == "drop":
        job_logger.info("job %d of %r (%s) is discarded: %s", job.id, queue.name, run.task.path, error)
        return Outcome(job, "drop", error=described(error), reason="discarded")
    details = described(error)
    if end == "dead":
        job_logger.error("job %d of %r (%s) failed for good", job.id, queue.name, run.task.path, exc_info=error)
        return Outcome(job, "dead", error=details, reason="failed")
    try:
        delay = error.delay if isinstance(error, Retry) else run.retry(run.failures + 1, error)
        pause = None if delay is None else seconds(delay)
    except Discard as exc:
        return Outcome(job, "drop", error=described(exc), reason="discarded")
    except Exception:  # noqa: BLE001 - a policy is users' code
        logger.exception("the retry policy of %s failed; its jobs are tried again in a minute", run.task.path)
        pause = 60.0
    again = "job %d of %r (%s) failed; again in %.1f s"
    job_logger.warning(again, job.id, queue.name, run.task.path, pause or 0.0, exc_info=error)
    return Outcome(job, "retry", error=details, delay=pause)


def path_of(job: BaseJob) -> str:
    """The path that a job names, known or not; empty if it is no call."""
    try:
        path = job._get_data()["function"]  # noqa: SLF001 - likewise
    except (DeserializationError, TypeError, KeyError):
        return ""
    return path if isinstance(path, str) else ""


def waited(job: BaseJob, ago: float = 0.0) -> float:
    """Seconds from when a job was due until ``ago`` seconds ago, by this machine's clock."""
    due = job.schedule_at or job.enqueued_at
    return max(time.time() - ago - due.timestamp(), 0.0)


def described(error: BaseException) -> dict[str, str]:
    """An exception as it is kept with the job: ``type``, ``message``, ``traceback``."""
    kind = type(error)
    text = "".join(traceback.format_exception(kind, error, _from_the_function(error.__traceback__)))
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - an exception is users' code too
        message = f"<a {kind.__qualname__} that cannot be shown>"
    return {
        "type": f"{kind.__module__}.{kind.__qualname__}",
        "message": _storable(message[:MAX_TRACEBACK]),
        "traceback": _storable(text[-MAX_TRACEBACK:]),
    }


def _from_the_function(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames that led to the function: those of the worker, of its threads and pools."""
    start = trace
    while start is not None and start.tb_frame.f_globals.get("__name__", "").startswith(_LEADING):
        start = start.tb_next
    return trace if start is None else start


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def refuse_unrun(result: Any) -> None:
    """Refuse what a function returned without having run it.

    Raises:
        ConfigurationError: It is a generator, an asynchronous one, or something to await.
    """
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        what, remedy = "a generator", "iterate over it in the function"
    elif inspect.isawaitable(result):
        what, remedy = "something to await", "await it in the function"
    else:
        return
    msg = f"the function returned {what}, a {type(result).__qualname__}, which nobody has run: {remedy}"
    if inspect.isgenerator(result) or inspect.iscoroutine(result):
        result.close()  # else Python warns that it was never awaited
    raise ConfigurationError(msg)


def check_result(queue: QueueSettings, job: BaseJob, result: Any) -> None:
    """Refuse a result of which nothing has run yet, or that has to be kept and cannot be: the job has failed then.

    Raises:
        ConfigurationError: It is a generator, an asynchronous one, or something to await.
        SerializationError: It cannot be kept.
    """
    refuse_unrun(result)
    if job.raw_headers is not None and ("keep" in job.headers or "then" in job.headers):
        try:
            queue.encode_row(result)
        except (SerializationError, PayloadTooLarge) as exc:
            msg = f"the function's result cannot be kept: {exc}"
            raise SerializationError(msg) from exc


def caller(run: Run) -> Callable[[], Any]:
    """What makes the call."""
    return lambda: run.task.function(run.job.id, *run.args, **run.kwargs)
