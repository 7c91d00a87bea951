"""The explanation that `Queue.explain` returns; `pqcore.operations.causes` has the words for each cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pqcore.operations.attempts import PastAttempt
from pqcore.times import UtcDatetime

SHOWN = 10
"""The largest number of jobs that a cause names."""


@dataclass(frozen=True)
class Cause:
    """One thing that keeps a job from running.

    Attributes:
        code: A stable name of the cause, for programs.
        text: A sentence that describes the cause.
        action: A sentence that says how to remove the cause.
        key: The limit or group in question, such as ``limit:reports``; None if there is none.
        jobs: The ids of the jobs in question, at most `SHOWN`.
        workers: The ids of the workers in question; see `pqcore.WorkerInfo`.
        until: When the cause ends without any action; None if unknown.
    """

    code: str
    text: str
    action: str
    key: str | None = None
    jobs: tuple[int, ...] = ()
    workers: tuple[str, ...] = ()
    until: UtcDatetime | None = None


@dataclass(frozen=True)
class Explanation:
    """Why a job does not run.

    Attributes:
        id: The id of the job.
        queue: The name of the job's queue; None if the job is not found, and the caller named no queue.
        state: The job's state: one of ``ready``, ``scheduled``, ``parked``, ``leased``, ``done`` and ``dead``; ``none``
            if the job is not found.
        causes: The causes that keep the job from running, the most important first. If the list is empty, the next free
            worker takes the job.
        position: How many jobs are before the job, up to 1,000; None for a job that is not due.
        next_at: When the job becomes due; None for a job that is due now, or does not wait.
        notes: Conditions that do not keep the job from running, but may slow the queue down.
        past_attempts: The attempts that failed, crashed or were snoozed, as in `pqcore.Queue.attempts`; empty if the
            role may not read them.
    """

    id: int
    queue: str | None
    state: str
    causes: tuple[Cause, ...] = ()
    position: int | None = None
    next_at: UtcDatetime | None = None
    notes: tuple[Cause, ...] = ()
    past_attempts: tuple[PastAttempt, ...] = ()

    @property
    def text(self) -> str:
        """Return the most important cause, with the action that removes it."""
        if not self.causes:
            return "Nothing keeps the job from running: the next free worker takes it."
        return f"{self.causes[0].text} {self.causes[0].action}"


def shown_time(moment: datetime) -> str:
    """Return a time for the text of a cause, in UTC, without fractions of a second."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def named(jobs: Sequence[int]) -> str:
    """Return the ids of some jobs for the text of a cause."""
    ids = ", ".join(map(str, jobs[:SHOWN]))
    more = f" and {len(jobs) - SHOWN} more" if len(jobs) > SHOWN else ""
    return f"job{'' if len(jobs) == 1 else 's'} {ids}{more}"
