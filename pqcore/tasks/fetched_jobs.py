"""Jobs that were taken with `get`, and that `Queue.perform` may still perform: what follows from them waits for that.

`Queue.perform` knows what the function returned, so it does what follows. Of a job that nobody performs, what follows
is done as soon as that is known: the job's object is gone, its block ends, or the queue begins to work.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pqcore.job import BaseJob
from pqcore.operations.follow_ups import is_continued

if TYPE_CHECKING:
    from pqcore.backend import Row
    from pqcore.settings import QueueSettings


@dataclass(eq=False)
class _Popped:
    """A job that was taken, and may be performed.

    Attributes:
        row: Its row.
        job: The object that the user has.
        in_block: Whether a transaction block is open that took it: that settles it.
        performed: Whether it is being performed.
        thread: The thread that took it.
    """

    row: Row
    job: weakref.ref[BaseJob]
    in_block: bool
    performed: bool = False
    thread: int = field(default_factory=threading.get_ident)


class PoppedJobs:
    """The jobs of one queue object that were taken, and from which something follows that was not done yet."""

    def __init__(self) -> None:
        self._jobs: dict[int, _Popped] = {}

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, job: BaseJob, row: Row, *, in_block: bool) -> None:
        """Remember a job until what follows from it is claimed."""
        self._jobs[job.id] = _Popped(row, weakref.ref(job), in_block)

    def claim(self, job_id: int) -> bool:
        """Claim what follows from a job; False if another caller has claimed it."""
        return self._jobs.pop(job_id, None) is not None

    @contextmanager
    def performing(self, job_id: int) -> Iterator[None]:
        """Keep a job from being given up while the block lasts."""
        popped = self._jobs.get(job_id)
        if popped is not None:
            popped.performed = True
        try:
            yield
        finally:
            if popped is not None:
                popped.performed = False

    def given_up(self, queue: QueueSettings, *, begins: bool = False) -> list[BaseJob]:
        """Claim the jobs that nobody performs any more, and return them.

        Args:
            queue: The queue.
            begins: Whether the queue begins to work in this thread: then what the thread took before is given up.
        """
        here = threading.get_ident()
        found = [
            (job_id, popped.row)
            for job_id, popped in list(self._jobs.items())
            if not popped.in_block
            and not popped.performed
            and (popped.job() is None or (begins and popped.thread == here))
        ]
        return [BaseJob(queue, row) for job_id, row in found if self.claim(job_id)]


def given_up_jobs(queue: QueueSettings) -> list[BaseJob]:
    """Return the jobs of a queue that are given up as it begins to work in this thread; none if it performs no jobs."""
    found: Any = vars(queue).get("popped")  # not made for this: a queue that is as new may be forgotten
    return found.given_up(queue, begins=True) if isinstance(found, PoppedJobs) else []


def popped_jobs(job: BaseJob) -> PoppedJobs | None:
    """Return where a job is remembered, if it was taken from a queue that performs jobs."""
    found: Any = vars(job.settings).get("popped")
    return found if isinstance(found, PoppedJobs) else None


def claim_owed(job: BaseJob) -> bool:
    """Claim what follows from a job that was taken with `get`; False if it has followed already."""
    if not is_continued(job.raw_headers):
        return True
    popped = popped_jobs(job)
    return popped is not None and popped.claim(job.id)
