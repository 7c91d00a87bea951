"""Jobs taken with `get`, whose follow-ups wait because `Queue.perform` may still perform the jobs.

`Queue.perform` knows what the function returned, so it runs the follow-ups. If the program does not perform a job, its
follow-ups run as soon as this is certain: when Python frees the job's object, when the block of the `get` ends, or when
`Queue.work` begins.
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
        row: The job's row.
        job: A reference to the object that the user has.
        in_block: Whether the transaction block that took the job is still open. If so, the follow-ups run at its end.
        performed: Whether the job is being performed.
        thread: The thread that took the job.
    """

    row: Row
    job: weakref.ref[BaseJob]
    in_block: bool
    performed: bool = False
    thread: int = field(default_factory=threading.get_ident)


class PoppedJobs:
    """The jobs that one queue object took, and whose follow-ups have not run yet."""

    def __init__(self) -> None:
        self._jobs: dict[int, _Popped] = {}

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, job: BaseJob, row: Row, *, in_block: bool) -> None:
        """Remember a job until its follow-ups are claimed."""
        self._jobs[job.id] = _Popped(row, weakref.ref(job), in_block)

    def claim(self, job_id: int) -> bool:
        """Claim the follow-ups of a job; return False if another caller has claimed them."""
        return self._jobs.pop(job_id, None) is not None

    @contextmanager
    def performing(self, job_id: int) -> Iterator[None]:
        """Make a job count as in use, and not as given up, during a ``with`` block."""
        popped = self._jobs.get(job_id)
        if popped is not None:
            popped.performed = True
        try:
            yield
        finally:
            if popped is not None:
                popped.performed = False

    def given_up(self, queue: QueueSettings, *, begins: bool = False) -> list[BaseJob]:
        """Claim the jobs that nobody will perform any more, and return them.

        Args:
            queue: The queue.
            begins: Whether the queue begins to work in this thread. If so, the jobs that the thread took before count
                as given up.
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
    """Return the fetched jobs that a queue gives up when `Queue.work` begins in this thread.

    The list is empty if the queue performs no jobs.
    """
    # `queue.popped` would create the container, and a `PQ` may forget only queues that were not changed.
    found: Any = vars(queue).get("popped")
    return found.given_up(queue, begins=True) if isinstance(found, PoppedJobs) else []


def popped_jobs(job: BaseJob) -> PoppedJobs | None:
    """Return the container that remembers a job, if the job was taken from a queue that performs jobs."""
    found: Any = vars(job.settings).get("popped")
    return found if isinstance(found, PoppedJobs) else None


def claim_owed(job: BaseJob) -> bool:
    """Claim the follow-ups of a job that was taken with `get`; return False if they have already happened."""
    if not is_continued(job.raw_headers):
        return True
    popped = popped_jobs(job)
    return popped is not None and popped.claim(job.id)
