"""Running a job again, immediately, whatever has become of it."""

from __future__ import annotations

from dataclasses import dataclass

from pqcore.db.engine import Engine
from pqcore.errors import JobNotFound
from pqcore.operations import dead_letters, list_jobs
from pqcore.operations.atomic import with_free_ids
from pqcore.operations.batch_counts import without_batch
from pqcore.settings import QueueSettings


@dataclass(frozen=True)
class Retried:
    """What became of a job that somebody asked to run again.

    Attributes:
        id: The job.
        state: Where it was; one of `pqcore.operations.list_jobs.STATES`, or ``none``.
        done: Whether it is due now.
    """

    id: int
    state: str
    done: bool


async def retry(engine: Engine, queue: QueueSettings, job_id: int) -> Retried:
    """Make a job due now, which then was dead, done, or scheduled for later.

    It keeps its id. One that was dead or done begins with a clean record; what followed from it follows once
    more, but for its batch, which has counted it. One that waits, is leased or parked is left as it is.
    """
    try:
        job = await list_jobs.get_full_job(engine, job_id, queue)
    except JobNotFound:
        return Retried(int(job_id), "none", done=False)
    values: dict[str, object] = {"id": job.id, "q_name": queue.name, "channel": queue.channel}
    if job.state == "dead":
        return Retried(job.id, job.state, done=bool(await dead_letters.revive(engine, queue, [job.id])))
    if job.state == "done":
        values["headers"] = without_batch(job.headers)
        statement = "admin.rerun_archived" if job.place == "archive" else "admin.rerun_finished"
    elif job.state == "scheduled":
        statement = "admin.run_now"
    else:
        return Retried(job.id, job.state, done=False)
    rows = await with_free_ids(lambda: engine.execute(statement, values))
    return Retried(job.id, job.state, done=bool(rows))
