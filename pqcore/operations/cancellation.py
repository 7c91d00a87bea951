"""Cancelling jobs that wait."""

from __future__ import annotations

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.job import BaseJob
from pqcore.lanes import has_lane
from pqcore.operations.atomic import atomic
from pqcore.operations.complete import tell
from pqcore.operations.follow_ups import follow_up, mark_deleted
from pqcore.operations.job_outcome import Outcome
from pqcore.rows import JobRow
from pqcore.settings import QueueSettings


async def cancel(engine: Engine, queue: QueueSettings, s: Session, job_id: int) -> bool:
    """Delete a waiting job, and run its follow-ups; return whether the job was waiting."""
    async with atomic(s):
        ended = await delete_waiting(queue, s, job_id)
        await follow_up(engine, queue, s, ended)
    return bool(ended)


async def delete_waiting(queue: QueueSettings, s: Session, job_id: int) -> list[Outcome]:
    """Delete a waiting job; return its outcome, whose follow-ups the caller must run; empty if the job did not wait.

    Args:
        queue: The queue of the job.
        s: A session with an open transaction.
        job_id: The job.
    """
    ended = []
    for _, found, put_at, awaited in await s.execute(
        s.sql.cancel, s.sql.cancel.bind({"id": job_id, "q_name": queue.name})
    ):
        if awaited:
            await mark_deleted(s, job_id, "cancelled")
        row = JobRow(job_id, None, b"", None, attempts=0, enqueued_at=put_at, headers=found)
        ended.append(Outcome(BaseJob(queue, row), "drop", reason="cancelled"))
        if has_lane(found):  # other jobs of its group may have waited for the cancelled job
            await tell(queue, s)
    return ended
