"""Leasing a job of a tenant that came too late for the statement that gave all free slots away."""

from __future__ import annotations

from collections.abc import Sequence

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.operations.admission import find_lanes, take
from pqcore.operations.lease import give_back
from pqcore.rows import JobRow, job_rows
from pqcore.settings import QueueSettings


async def take_newcomer(engine: Engine, queue: QueueSettings, lease: float) -> Sequence[JobRow]:
    """Lease one job if a share has new jobs that no take has considered, and got no job from the last take.

    Args:
        engine: The engine.
        queue: The queue, which has no rate limit.
        lease: The length of the lease, in seconds.

    Returns:
        The row of the job, which may be of another share; none if there is no such share.
    """

    async def work(s: Session) -> Sequence[JobRow]:
        await find_lanes(queue, s)
        if not queue.lanes.has_newcomer():
            return ()
        rows, _ = await take(engine, queue, s, 1, lease, patient=True)
        return job_rows(rows)

    async def undo(rows: Sequence[JobRow]) -> None:
        await give_back(engine, queue, [(row.id, row.attempts) for row in rows])

    return await engine.run(work, protect=False, undo=undo)
