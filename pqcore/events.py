"""The events that hooks receive: jobs put, started, and how they ended."""

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
"""The ends that follow a failure."""
REASONS = {"retry": "failed", "snooze": "snoozed"}
"""The reasons of ends that have none else."""


@dataclass
class PutEvent:
    """Jobs that are put, together.

    Attributes:
        queue: The queue's name.
        data: The data of the job; of `put_many`, the iterable that it was given; of calls put
            together, what is stored of them.
        task: The path of the function, if the job is a call of one, put by itself.
        headers: The headers of the jobs; what a plugin adds travels with them, and with what
            follows them in a chain or batch.
        ids: Their ids, once they are put; maybe not yet committed, if within a transaction.
        many: Whether they were put together, by `put_many`, `put_calls` or `batch`.
    """

    queue: str
    data: Any
    task: str | None
    headers: dict[str, Any]
    ids: list[int] = field(default_factory=list)
    many: bool = False


@dataclass
class JobEvent:
    """A job that a worker runs, or has run: one object for all that is told of one run.

    Attributes:
        queue: The queue's name.
        job: The job.
        task: The path of its function; empty if the job is not a call.
        waited: Seconds from when it was due until it was taken, by this machine's clock.
        duration: Seconds that the function took; 0 before.
        error: What it raised, if it did.
        delay: Seconds until it is run again, if it was retried; None for at once.
        reason: Why it is retried (``failed``, ``crashed``, ``snoozed``, ``shutdown``; ``unknown`` or
            ``unreadable`` if this worker does not know its function or cannot read its data), a dead
            letter (`DeadLetter.reason`), or was dropped (``discarded``, ``cancelled``, ``failed``).
        notes: What plugins keep for themselves until the run's next hook, each under its own name.
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
        """1 for the first time that the job is run, 2 for the second..."""
        return self.job.attempts


@dataclass
class ServerEvent:
    """What a worker found when it looked at its server, as it does every half minute, more or less.

    Attributes:
        queue: The name of the queue for which it looked.
        notifications: How full the server's queue of notifications is, from 0 to 1. When it is full, puts and ends
            that notify fail.
    """

    queue: str
    notifications: float
