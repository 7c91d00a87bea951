"""A job that a worker gave back before it ran, for tests of the views of a job."""

from __future__ import annotations

from pqcore import Job, Queue
from pqcore.db.runtime import run_sync
from pqcore.operations.lease import give_back


def lease_after_release(queue: Queue) -> Job:
    """Return a job of ``queue`` that was given back once, and is leased now: its first run, under its second token."""
    queue.put(1)
    first = queue.lease()
    assert first is not None
    assert run_sync(give_back(queue.engine, queue, [(first.id, first.token)])) == [first.id]
    job = queue.lease()
    assert job is not None
    assert job.token == 2
    return job
