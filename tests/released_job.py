"""Jobs with earlier attempts, for tests of the views of a job."""

from __future__ import annotations

import psycopg

from pqcore import Job, Queue
from pqcore.db.runtime import run_sync
from pqcore.operations.complete import finish
from pqcore.operations.error_details import describe_error
from pqcore.operations.job_outcome import Outcome
from pqcore.operations.lease import give_back


def lease_after_release(queue: Queue) -> Job:
    """Return a job of ``queue`` that was leased, given back and leased again: its first attempt, with token 2."""
    queue.put(1)
    first = queue.lease()
    assert first is not None
    assert run_sync(give_back(queue.engine, queue, [(first.id, first.token)])) == [first.id]
    job = queue.lease()
    assert job is not None
    assert job.token == 2
    return job


def lease_after_failure(dsn: str, queue: Queue, message: str) -> Job:
    """Return a job of ``queue`` that failed once with a message, and that the worker ``w`` of the host ``h`` runs."""
    queue.put(1)
    first = queue.lease(60)
    assert first is not None
    run_sync(finish(queue.engine, queue, [Outcome(first, "retry", error=describe_error(ValueError(message)))]))
    job = queue.lease(60)
    assert job is not None
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "INSERT INTO queue_workers"
            " (q_name, id, host, pid, version, tasks, concurrency, started_at, seen_at, running)"
            " VALUES (%s, 'w', 'h', 7, '1', '[]', 1, now(), now(), %s::json)",
            [queue.name, f"[[{job.id}, {job.token}, 2.0]]"],
        )
    return job
