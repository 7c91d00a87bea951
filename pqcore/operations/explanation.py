"""Why a job does not run: what `Queue.explain` returns; `pqcore.operations.causes` has the words of each cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pqcore.times import UtcDatetime

SHOWN = 10
"""Jobs that a cause names, at most."""


@dataclass(frozen=True)
class Cause:
    """One thing that keeps a job from running.

    Attributes:
        code: A stable name, for programs.
        text: What it is, in a sentence.
        action: What frees the job of it, in a sentence.
        key: The limit or group that it is about, as in ``limit:reports``; None if it is about none.
        jobs: The ids of jobs that it is about, at most `SHOWN`.
        workers: The ids of workers that it is about; see `pqcore.WorkerInfo`.
        until: When it ends without any action; None if that is not known.
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
        queue: The name of its queue; None if the job is not found, and no queue was named.
        state: Where it is: one of ``ready``, ``scheduled``, ``parked``, ``leased``, ``done`` and ``dead``; ``none`` if
            the job is not found.
        causes: What keeps it from running, the most important first. Empty if nothing does: the next free worker
            takes it.
        position: How many jobs are before it, up to 1,000; None of a job that is not due.
        next_at: When it is due; None of a job that is due, or that is not waiting.
        notes: What does not keep the job from running, and may slow the queue down.
    """

    id: int
    queue: str | None
    state: str
    causes: tuple[Cause, ...] = ()
    position: int | None = None
    next_at: UtcDatetime | None = None
    notes: tuple[Cause, ...] = ()

    @property
    def text(self) -> str:
        """The most important cause in a sentence, with the action that frees the job of it."""
        if not self.causes:
            return "Nothing keeps the job from running: the next free worker takes it."
        return f"{self.causes[0].text} {self.causes[0].action}"


def shown_time(moment: datetime) -> str:
    """Return a time as causes write it: in UTC, to the second."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def named(jobs: Sequence[int]) -> str:
    """Return the ids of some jobs, as causes name them."""
    ids = ", ".join(map(str, jobs[:SHOWN]))
    more = f" and {len(jobs) - SHOWN} more" if len(jobs) > SHOWN else ""
    return f"job{'' if len(jobs) == 1 else 's'} {ids}{more}"
