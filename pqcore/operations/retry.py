"""Running a job again immediately, whatever its state."""

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
    """The result of a request to run a job again.

    Attributes:
        id: The id of the job.
        state: The former state of the job; one of `pqcore.operations.list_jobs.STATES`, or ``none``.
        done: Whether the job is due now.
    """

    id: int
    state: str
    done: bool


async def retry(engine: Engine, queue: QueueSettings, job_id: int) -> Retried:
    """Make a dead, done or scheduled job due now.

    The job keeps its id. A dead or done job starts again without attempts and failures. The job's follow-ups happen
    again, except that its batch does not count the job a second time. A job that waits for other jobs no longer waits
    for them. Jobs that are ready, leased or parked are not changed.
    """
    try:
        job = await list_jobs.get_full_job(engine, job_id, queue)
    except JobNotFound:
        return Retried(job_id, "none", done=False)
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
    if rows and job.state == "scheduled" and "depends_on" in job.headers:
        await engine.execute("dependencies.forget_orphans", {"q_name": queue.name, "ids": [job.id]})
    return Retried(job.id, job.state, done=bool(rows))
