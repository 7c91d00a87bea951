"""Leasing a job of a tenant that came too late for the statement that gave all free slots away."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.lanes import lane_of
from pqcore.operations.admission import find_lanes, take
from pqcore.operations.lease import give_back
from pqcore.rows import JobRow, headers_of, job_rows
from pqcore.settings import QueueSettings


def share_of(row: Row) -> str:
    """Return the share of a leased job; an empty string for a job without a share."""
    headers = headers_of(row)
    lane = None if headers is None else lane_of(headers)
    return "" if lane is None else lane.share


async def take_newcomer(engine: Engine, queue: QueueSettings, lease: float, share: str) -> Sequence[JobRow]:
    """Lease one job if a share has new jobs that no take has considered, and it is the share's turn.

    Args:
        engine: The engine.
        queue: The queue, which has no rate limit.
        lease: The length of the lease, in seconds.
        share: The share of the job that would wait instead.

    Returns:
        The row of the job; none if there is no such share.
    """

    async def work(s: Session) -> Sequence[JobRow]:
        await find_lanes(queue, s)
        if not queue.lanes.has_newcomer(share, monotonic()):
            return ()
        rows, _ = await take(engine, queue, s, 1, lease, patient=True)
        return job_rows(rows)

    async def undo(rows: Sequence[JobRow]) -> None:
        await give_back(engine, queue, [(row.id, row.attempts) for row in rows])

    return await engine.run(work, protect=False, undo=undo)
