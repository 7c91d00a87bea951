"""A job that was parked for a slot before it ran, for tests of what is shown of a job."""

from __future__ import annotations

from pqcore import Job, Queue


def lease_after_parking(queue: Queue) -> Job:
    """Return a job of ``queue`` that was parked once, and is leased now: its first run, under its second token."""
    queue.put_many([1, 2], limits={"one": 1})
    first = queue.lease()
    assert first is not None
    assert queue.lease(block=False) is None
    first.ack()
    job = queue.lease()
    assert job is not None
    assert job.token == 2
    return job
