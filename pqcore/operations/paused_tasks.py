"""Setting aside the jobs of paused tasks: they wait on lanes that are closed while the task is paused.

Only the data of a job names its task, and no index covers the data. So a take finds jobs of a paused task among the
jobs that it leases. The take parks each of these jobs on a lane with one more key, ``task:`` and the path. The
take also parks further jobs of the task at the head of the queue, up to `pqcore.sql.rule_statements.SET_ASIDE` in a
statement. A paused key has no free place, so takes look at none of the jobs on such a lane, however many there are.
After the task is resumed, the key has places for all jobs, and takes admit them like jobs of other lanes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence

from pqcore.backend import Row
from pqcore.current_rules import CurrentRules
from pqcore.db.session import Session
from pqcore.errors import PQError
from pqcore.job import BaseJob
from pqcore.lanes import LONGEST, Lane, lane_of, write_lane
from pqcore.operations.list_jobs import call_pattern, path_in
from pqcore.rows import JobRow, job_rows
from pqcore.settings import QueueSettings

TASK = "task:"
UNBOUNDED = 2**31 - 1
"""The number of places of a task's key. It is larger than any number of jobs, so jobs wait only while the task is
paused."""


def paused_paths(rules: CurrentRules) -> set[str]:
    """Return the paths of the tasks that are paused now, according to the rules that were read last."""
    now = time.monotonic()
    return {path for path, until in rules.paused_tasks.items() if until > now}


def calls_one_of(queue: QueueSettings, job: BaseJob, paths: Collection[str]) -> bool:
    """Return whether a job calls a function that has one of these paths."""
    return path_of(queue, job.id, job.serializer, job.raw) in paths


def path_of(queue: QueueSettings, job_id: int, serializer: str | None, raw: str | bytes) -> str | None:
    """Return the path of the function that a job's data names; None if the data is no call, or not decodable here."""
    if isinstance(raw, str) and (path := path_in(raw)) is not None:
        return path
    try:
        data = queue.decode_row(job_id, serializer, raw)
    except PQError:
        return None
    path = data.get("function") if isinstance(data, dict) else None
    return path if isinstance(path, str) else None


def lane_of_task(headers: str | None, path: str) -> Lane | None:
    """Return the lane for a job of a paused task: the job's own lane, with the task as an additional key.

    Args:
        headers: The job's headers, as ``put`` wrote them.
        path: The path of the task.

    Returns:
        The lane; None if it is too long to be written out.
    """
    own = lane_of(headers) or Lane("", 0, "", (), None)
    needs = tuple(sorted((*own.needs, (TASK + path, UNBOUNDED))))
    text = write_lane(own.priority, own.share, needs)
    return None if len(text.encode()) > LONGEST else own._replace(text=text, needs=needs)


async def set_aside(queue: QueueSettings, s: Session, rows: Sequence[Row]) -> Sequence[Row]:
    """Set aside the leased jobs of paused tasks, and further due jobs of these tasks; return the other leased rows.

    Args:
        queue: The queue of the jobs.
        s: The session that leased the jobs.
        rows: The leased rows.
    """
    paths = paused_paths(queue.rule_cache.rules)
    left: list[JobRow] = []
    aside: list[dict[str, object]] = []
    met: set[str] = set()
    for row in job_rows(rows):
        path = path_of(queue, row.id, row.serializer, row.data if row.payload is None else bytes(row.payload))
        if path is None or path not in paths:
            left.append(row)
            continue
        lane = lane_of_task(row.headers, path)
        if lane is not None:
            queue.lanes.add(lane)
        aside.append({"id": row.id, "token": row.attempts, "lane": lane and lane.text})
        met.add(path)
    if not aside:
        return rows
    query = s.sql.rules.set_aside_leased
    await s.execute(query, query.bind({"q_name": queue.name, "jobs": json.dumps(aside)}))
    lanes = {path: lane.text for path in met if (lane := lane_of_task(None, path)) is not None}
    tasks = [{"pattern": call_pattern(path), "lane": text} for path, text in lanes.items()]
    query = s.sql.rules.set_aside_due
    await s.execute(query, query.bind({"q_name": queue.name, "tasks": json.dumps(tasks)}))
    return left
