"""What became of jobs: their state, their result, the progress they report."""

from __future__ import annotations

import json
import time
from typing import Any

from pqcore.engine import Engine
from pqcore.errors import JobFailed, JobNotFound, ResultTimeout
from pqcore.identifiers import results_channel
from pqcore.settings import QueueSettings
from pqcore.timespec import seconds

POLL = 1.0
"""Seconds after which one who waits for a result looks, woken or not."""


async def status(engine: Engine, queue: QueueSettings, job_id: int) -> str:
    """Where a job is: ``waiting``, ``scheduled``, ``parked``, ``running``, ``done``, ``failed`` or ``cancelled``...

    Raises:
        JobNotFound: Nothing is known of it: it never was, or is finished and nothing of it was kept.
    """
    rows = await engine.execute("tasks.find_job", {"id": job_id, "q_name": queue.name}, protect=False)
    if rows:
        return str(rows[0][0])
    rows = await engine.execute("tasks.find_result", {"id": job_id}, protect=False)
    if rows:
        return str(rows[0][0])
    msg = f"queue {queue.name!r} knows nothing of job {job_id}: it never was, or nothing of it was kept"
    raise JobNotFound(msg)


async def progress(engine: Engine, queue: QueueSettings, job_id: int) -> Any:
    """What a job reported last; None if nothing."""
    rows = await engine.execute("tasks.find_result", {"id": job_id}, protect=False)
    return None if not rows or rows[0][1] is None else json.loads(rows[0][1])


async def report(engine: Engine, queue: QueueSettings, job_id: int, value: str, keep: float) -> None:
    """Store the progress of a job that runs, as JSON text."""
    values = {"id": job_id, "q_name": queue.name, "progress": value, "keep": keep}
    await engine.execute("tasks.report_progress", {**values, "channel": results_channel(queue.name)})


async def wait_for(engine: Engine, queue: QueueSettings, job_id: int, timeout: Any) -> Any:
    """The result of a job, waited for.

    Raises:
        JobFailed: It is a dead letter, or was dropped.
        JobNotFound: Its result is not kept.
        ResultTimeout: It was not there in time.
    """
    limit = None if timeout is None else seconds(timeout)
    deadline = None if limit is None else time.monotonic() + limit
    topic = results_channel(queue.name)
    while True:
        ticket = engine.listener.ticket(topic)  # before the look, so that what comes after it counts
        found = await engine.execute("tasks.find_result", {"id": job_id}, protect=False)
        if found and found[0][0] != "running":
            return _read(queue, job_id, *found[0])
        rows = await engine.execute("tasks.find_job", {"id": job_id, "q_name": queue.name}, protect=False)
        # Between the two looks it may have ended: then there is a result, or none was to be kept.
        ended = not rows or rows[0][0] in ("done", "dead")
        if ended or '"keep"' not in (rows[0][3] or ""):
            found = await engine.execute("tasks.find_result", {"id": job_id}, protect=False)
            if found and found[0][0] != "running":
                return _read(queue, job_id, *found[0])
            if rows and rows[0][0] == "dead":
                raise _failed(job_id, "failed", rows[0][1])
            msg = f"job {job_id} of queue {queue.name!r} has no result: put it with keep_result, and ask in time"
            raise JobNotFound(msg)
        left = POLL if deadline is None else deadline - time.monotonic()
        if left <= 0:
            msg = f"job {job_id} of queue {queue.name!r} was {rows[0][0]} after {limit} seconds"
            raise ResultTimeout(msg)
        await engine.wait(topic, ticket, min(left, POLL))


def _read(
    queue: QueueSettings,
    job_id: int,
    state: str,
    _progress: str | None,
    data: str | None,
    payload: bytes | None,
    serializer: str | None,
    error: str | None,
) -> Any:
    if state != "done":
        raise _failed(job_id, state, error)
    raw = data if payload is None else bytes(payload)
    return queue.decode_row(job_id, serializer, "null" if raw is None else raw)


def _failed(job_id: int, state: str, error: str | None) -> JobFailed:
    details = {} if error is None else dict(json.loads(error))
    why = f": {details['type']}: {details['message']}" if details else ""
    return JobFailed(f"job {job_id} was not done; it is {state}{why}", details)
