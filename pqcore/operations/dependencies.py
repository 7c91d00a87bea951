"""Jobs that wait for other jobs: releasing those whose parents have ended.

The statement that ends a parent changes no waiting job: it only marks the parent as ended
(`pqcore/schema/0015_dependencies.sql`). So statements that end parents never wait for each other. The mark is committed
together with the end, so no end is lost. A later, short transaction finds the marks, and decides which jobs no longer
wait. A consumer that finds no job runs this transaction, and workers run it every few seconds. If a process dies
meanwhile, the next process finds the marks.
"""

from __future__ import annotations

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.job import BaseJob
from pqcore.operations.atomic import atomic
from pqcore.operations.attempt_values import attempt_values
from pqcore.operations.cancellation import delete_waiting
from pqcore.operations.error_details import error_text
from pqcore.operations.explanation import SHOWN
from pqcore.operations.follow_ups import dead_letter_headers, follow_up
from pqcore.operations.job_outcome import Outcome
from pqcore.rows import job_rows
from pqcore.settings import QueueSettings

REASON = "parent"
"""The reason of a dead letter whose parent failed."""
_ENDED = {
    "dead": "is a dead letter",
    "failed": "failed",
    "cancelled": "was cancelled",
    "discarded": "was discarded",
    "deleted": "was deleted before it was done",
}


async def settle(engine: Engine, queue: QueueSettings, s: Session) -> bool:
    """Release the jobs of a queue that wait for no parent any more; return whether it released or ended a job.

    If a parent failed, the waiting job becomes a dead letter or is cancelled, according to the options of its put. The
    follow-ups of all these jobs run together, because they must lock the rows of batches in one order. One call looks
    at a bounded number of jobs.

    Args:
        engine: The engine.
        queue: The queue of the jobs that wait.
        s: A session.
    """
    sql, name = s.sql.dependencies, queue.name
    async with atomic(s):
        await s.execute(sql.mark_polled, sql.mark_polled.bind({"q_name": name}))
        rows = await s.execute(sql.find_candidates, sql.find_candidates.bind({"q_name": name}))
        wanted = {"q_name": name, "ids": [job for (job,) in rows]}
        if not rows:
            return False
        locked = [job for (job,) in await s.execute(sql.lock_blocked, sql.lock_blocked.bind(wanted))]
        if len(locked) < len(rows):
            await s.execute(sql.forget_orphans, sql.forget_orphans.bind(wanted))
        if not locked:
            return False
        held = {"q_name": name, "ids": locked}
        failed = await s.execute(sql.find_failed_parents, sql.find_failed_parents.bind(held))
        ended: list[Outcome] = []
        for job, parent, outcome, on_failure in failed:
            message = f"job {parent}, which this job waited for, {_ENDED[outcome]}"
            ended += await _end(queue, s, job, message, on_failure)
        passed = set(locked).difference(job for job, *_ in failed)
        held = {"q_name": name, "ids": sorted(passed), "channel": queue.channel}
        released = await s.execute(sql.release_blocked, sql.release_blocked.bind(held))
        await follow_up(engine, queue, s, ended)  # this step may wait for the row of a batch, so it comes last
        return bool(released or ended)


async def release(engine: Engine, queue: QueueSettings) -> None:
    """Release the jobs of a queue that wait for no parent any more, in transactions of their own."""
    while await engine.run(lambda s: settle(engine, queue, s)):
        pass


async def find_open_parents(engine: Engine, job_id: int) -> str:
    """Return the jobs that a job waits for, as text: some ids, and how many more there are; empty if there are none."""
    rows = await engine.execute("dependencies.open_parents", {"id": job_id, "n": SHOWN}, protect=False)
    more = [f"and {number - len(rows):,} more" for _, number in rows[:1] if number > len(rows)]
    return " ".join([", ".join(f"job {parent}" for parent, _ in rows), *more])


async def _end(queue: QueueSettings, s: Session, job_id: int, message: str, on_failure: str) -> list[Outcome]:
    """End a job because one of its parents failed; return its outcome, whose follow-ups the caller must run.

    Args:
        queue: The queue of the job.
        s: A session whose transaction has locked the job.
        job_id: The job.
        message: What happened.
        on_failure: What happens to the job: ``dead`` or ``cancel``.
    """
    if on_failure == "cancel":
        return await delete_waiting(queue, s, job_id)
    ended = []
    sql = s.sql.dependencies
    found = await s.execute(sql.find_blocked, sql.find_blocked.bind({"id": job_id, "q_name": queue.name}))
    for row in job_rows(found):
        job = BaseJob(queue, row)
        error = {"type": "pqcore.ParentFailed", "message": message, "traceback": ""}
        outcome = Outcome(job, "dead", error=error, reason=REASON)
        values = {
            "id": job_id,
            "token": job.token,
            "error": error_text(error),
            "reason": REASON,
            "failed": 0,
            "headers": dead_letter_headers(job),
            "q_name": queue.name,
            **attempt_values(outcome),
        }
        if await s.execute(sql.bury_blocked, sql.bury_blocked.bind(values)):
            ended.append(outcome)
    return ended
