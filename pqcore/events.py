"""The events that hooks receive when jobs are put, start and end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from pqcore.job import BaseJob

JobHook: TypeAlias = Literal[
    "pqcore_job_started",
    "pqcore_job_succeeded",
    "pqcore_job_failed",
    "pqcore_job_retried",
    "pqcore_job_dead",
    "pqcore_job_dropped",
    "pqcore_job_lost",
]
JOB_HOOKS: tuple[JobHook, ...] = get_args(JobHook)
OUTCOME_HOOKS: dict[str, JobHook] = {
    "done": "pqcore_job_succeeded",
    "retry": "pqcore_job_retried",
    "snooze": "pqcore_job_retried",
    "crash": "pqcore_job_retried",
    "dead": "pqcore_job_dead",
    "drop": "pqcore_job_dropped",
}
"""The hook that is called after each kind of `Outcome`."""
FAILURES = ("retry", "crash", "dead")
"""The kinds of outcome that follow a failure."""
REASONS = {"retry": "failed", "snooze": "snoozed"}
"""The reason that an event gets if the outcome itself names no reason, by the kind of outcome."""


@dataclass
class PutEvent:
    """One or more jobs that are put together.

    Attributes:
        queue: The queue's name.
        data: The data of the job; for `put_many`, the iterable that the caller gave; for calls put together, their
            stored form.
        task: The path of the function, if the job is a single call of a function.
        headers: The headers of the jobs; headers that a plugin adds are also given to jobs that follow in a chain or
            batch.
        ids: The ids of the jobs after the put; within a transaction, the jobs may not be committed yet.
        many: Whether `put_many`, `put_calls` or `batch` put the jobs.
    """

    queue: str
    data: Any
    task: str | None
    headers: dict[str, Any]
    ids: list[int] = field(default_factory=list)
    many: bool = False


@dataclass
class JobEvent:
    """A job that a worker runs or has run; all hooks of one run receive the same object.

    Attributes:
        queue: The queue's name.
        job: The job.
        task: The path of the job's function; empty if the job is not a call.
        waited: Seconds from the time when the job was due until it was taken, by this machine's clock.
        duration: Seconds that the function took; 0 before it ends.
        error: The exception that the function raised, if any.
        delay: Seconds until a retried job runs again; None for immediately.
        reason: The reason of the outcome. A retry has ``failed``, ``crashed``, ``snoozed`` or ``shutdown``; or
            ``unknown`` or ``unreadable``, if this worker does not know the function or cannot read the data. A dead
            letter has a `DeadLetter.reason`. A dropped job has ``discarded``, ``cancelled`` or ``failed``.
        notes: A dict in which plugins keep values until the next hook of the run, each under its own name.
    """

    queue: str
    job: BaseJob
    task: str
    waited: float = 0.0
    duration: float = 0.0
    error: BaseException | None = None
    delay: float | None = None
    reason: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def attempt(self) -> int:
        """The number of the attempt: 1 for the job's first run, 2 for the second."""
        return self.job.attempts


@dataclass
class ServerEvent:
    """The result of a worker's check of its server, about every 30 s.

    Attributes:
        queue: The name of the queue for which the worker checked.
        notifications: How full the server's notification queue is, from 0 to 1. When the queue is full, statements that
            notify fail, such as puts.
    """

    queue: str
    notifications: float
