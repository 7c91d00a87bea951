"""What became of jobs: their state, their result, the progress they report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.errors import JobFailed, JobNotFound, ResultNotStored, ResultTimeout
from pqcore.headers import read_headers
from pqcore.job import BaseJob, JobId
from pqcore.operations.serialize import decode
from pqcore.settings import QueueSettings
from pqcore.sql.identifiers import results_channel
from pqcore.times import UtcDatetime, seconds

POLL = 1.0
"""Seconds after which one who waits for a result looks, woken or not."""


KEEP_PROGRESS = 3600.0
"""Seconds for which the progress of a job is kept whose result is not."""


@dataclass(frozen=True)
class JobInfo:
    """What is known of a job.

    Attributes:
        id: Its id.
        state: ``waiting``, ``scheduled``, ``parked`` (for a limit or group), ``running`` (or
            leased), ``done``, ``dead``; of a job that is gone and whose result is kept, also
            ``failed``, ``cancelled`` or ``discarded``.
        attempts: How often it was taken.
        failures: How often it failed with an exception.
        error: The last exception: ``type``, ``message`` and ``traceback``; empty without one.
        progress: What it reported last; None if nothing.
        headers: What travels beside its data.
        enqueued_at: When it was put; None, as the other times, once only its result is left.
        schedule_at: Before when it was not to be taken.
        expected_at: By when it is wanted.
    """

    id: int
    state: str
    attempts: int = 0
    failures: int = 0
    error: dict[str, str] = field(default_factory=dict)
    progress: Any = None
    headers: dict[str, Any] = field(default_factory=dict)
    enqueued_at: UtcDatetime | None = None
    schedule_at: UtcDatetime | None = None
    expected_at: UtcDatetime | None = None


def put_time(engine: Engine, job_id: int) -> datetime | None:
    """When a job was put, as its row has it; None of a bare number, which is of any job with the id."""
    put_at = job_id.put_at if isinstance(job_id, JobId) else None
    if put_at is None or not engine.set_back:
        return put_at
    return put_at - sum((distance for when, distance in engine.set_back if when > put_at), timedelta())


async def inspect(engine: Engine, queue: QueueSettings, job_id: int) -> JobInfo:
    """What is known of a job.

    Raises:
        JobNotFound: Nothing: it never was, or is finished and nothing of it was kept; or another job has its id.
    """
    rows = await _find(engine, queue, "tasks.find_job", job_id)
    kept = await _find(engine, queue, "tasks.find_result", job_id)
    progress = None if not kept or kept[0][1] is None else json.loads(kept[0][1])
    if rows:
        state, error, attempts, headers, failures, *times = rows[0]
        moments = [UtcDatetime.of(moment) for moment in times]
        if error is None and state == "done" and kept:
            error = kept[0][5]  # why its result could not be stored
        return JobInfo(
            int(job_id), state, attempts, failures, _loaded(error), progress, read_headers(headers)[0], *moments
        )
    if kept and kept[0][0] != "running":  # of one that has ended without a result, only its progress is left
        return JobInfo(int(job_id), kept[0][0], error=_loaded(kept[0][5]), progress=progress)
    if not kept:
        await _refuse_another(engine, queue, job_id)
    msg = f"queue {queue.name!r} knows nothing of job {job_id}: it never was, or nothing of it was kept"
    raise JobNotFound(msg)


async def _find(engine: Engine, queue: QueueSettings, statement: str, job_id: int) -> Sequence[Row]:
    values = {"id": int(job_id), "q_name": queue.name, "put_at": put_time(engine, job_id)}
    return await engine.execute(statement, values, protect=False)


async def _refuse_another(engine: Engine, queue: QueueSettings, job_id: int) -> None:
    """Say that another job has the id of a job that is gone, if one has."""
    if put_time(engine, job_id) is None:
        return
    for statement in ("tasks.find_job", "tasks.find_result"):
        if await _find(engine, queue, statement, int(job_id)):
            msg = (
                f"the job {job_id} of queue {queue.name!r} that this handle is of is gone, and another job has its id:"
                " the sequence of ids was set back; pqcore doctor tells, and pqcore create --set-sequences mends it"
            )
            raise JobNotFound(msg)


def _loaded(text: str | None) -> dict[str, Any]:
    return {} if text is None else dict(json.loads(text))


async def report(engine: Engine, queue: QueueSettings, job: BaseJob, value: str) -> None:
    """Store the progress of a job that runs, as JSON text; for as long as its result is to be kept."""
    keep = float(job.headers.get("keep", KEEP_PROGRESS))
    values = {"id": job.id, "q_name": queue.name, "progress": value, "keep": keep, "put_at": job.enqueued_at}
    await engine.execute("tasks.report_progress", {**values, "channel": results_channel(queue.name)})


async def wait_for(engine: Engine, queue: QueueSettings, job_id: int, timeout: Any) -> Any:
    """The result of a job, waited for.

    Raises:
        JobFailed: It is a dead letter, or was dropped.
        JobNotFound: Its result is not kept, or another job has its id.
        ResultNotStored: It was done, and its result could not be stored.
        ResultTimeout: It was not there in time.
    """
    limit = None if timeout is None else seconds(timeout)
    deadline = None if limit is None else time.monotonic() + limit
    topic = results_channel(queue.name)
    while True:
        ticket = engine.snapshot(topic)  # before the look, so that what comes after it counts
        found = await _find(engine, queue, "tasks.find_result", job_id)
        if found and found[0][0] != "running":
            return await _read(engine, queue, job_id, *found[0])
        rows = await _find(engine, queue, "tasks.find_job", job_id)
        # Between the two looks it may have ended: then there is a result, or none was to be kept.
        ended = not rows or rows[0][0] in ("done", "dead")
        if ended or '"keep"' not in (rows[0][3] or ""):
            found = await _find(engine, queue, "tasks.find_result", job_id)
            if found and found[0][0] != "running":
                return await _read(engine, queue, job_id, *found[0])
            if rows and rows[0][0] == "dead":
                raise _failed(job_id, "failed", rows[0][1])
            if not rows and not found:
                await _refuse_another(engine, queue, job_id)
            msg = f"job {job_id} of queue {queue.name!r} has no result: put it with keep_result, and ask in time"
            raise JobNotFound(msg)
        left = POLL if deadline is None else deadline - time.monotonic()
        if left <= 0:
            msg = f"job {job_id} of queue {queue.name!r} was {rows[0][0]} after {limit} seconds"
            raise ResultTimeout(msg)
        await engine.wait(topic, ticket, min(left, POLL))


async def _read(
    engine: Engine,
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
    if error is not None:
        details = _loaded(error)
        msg = f"job {job_id} was done, and its result could not be stored: {details['type']}: {details['message']}"
        raise ResultNotStored(msg, details)
    raw = data if payload is None else bytes(payload)
    return await decode(engine, queue, job_id, serializer, "null" if raw is None else raw)


def _failed(job_id: int, state: str, error: str | None) -> JobFailed:
    details = _loaded(error)
    why = f": {details['type']}: {details['message']}" if details else ""
    return JobFailed(f"job {job_id} was not done; it is {state}{why}", details)
