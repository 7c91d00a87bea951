"""The state of jobs, their results, and the progress that they report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pqcore.argument_checks import check_job_id
from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.errors import JobFailed, JobNotFound, ResultNotStored, ResultTimeout
from pqcore.headers import read_headers
from pqcore.job import BaseJob, JobId
from pqcore.operations.error_details import read_error
from pqcore.operations.serialize import decode
from pqcore.settings import QueueSettings
from pqcore.sql.identifiers import results_channel
from pqcore.times import UtcDatetime, seconds

POLL = 1.0
"""Seconds after which a waiter for a result looks for it again, even without a notification."""


KEEP_PROGRESS = 3600.0
"""Seconds for which the progress of a job is kept, if its result is not."""


@dataclass(frozen=True)
class JobInfo:
    """The known state of a job.

    Attributes:
        id: The job's id.
        state: ``ready``, ``scheduled``, ``parked`` (for a limit or group), ``leased``, ``done`` or ``dead``; for a
            deleted job with a kept result, also ``failed``, ``cancelled`` or ``discarded``.
        attempts: How often the job was run, including a present run; see `pqcore.Job.attempts`.
        failures: How often the job failed with an exception.
        error: The last exception, as ``type``, ``message`` and ``traceback``; empty if there was none.
        progress: The last progress that the job reported; None if it reported nothing.
        headers: The values stored with the job's data.
        enqueued_at: The time of the job's put; like the other times, None if only the job's result is left.
        schedule_at: The earliest time at which the job may be taken.
        expected_at: The time by which the job is wanted.
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


class _ResultRow(NamedTuple):
    """The columns of the statement ``find_result``: the data of a job that is kept outside its row."""

    state: str
    progress: str | None
    data: str | None
    payload: bytes | None
    serializer: str | None
    error: str | None


class _StateRow(NamedTuple):
    """The columns of the statement ``find_job``: a job's state and record."""

    state: str
    error: str | None
    attempts: int
    headers: str | None
    failures: int
    enqueued_at: datetime | None
    schedule_at: datetime | None
    expected_at: datetime | None


def put_time(engine: Engine, job_id: int) -> datetime | None:
    """Return when a job was put, according to its `JobId`; None for a plain number, which means any job with the id."""
    put_at = job_id.put_at if isinstance(job_id, JobId) else None
    if put_at is None or not engine.set_back:
        return put_at
    return put_at - sum((distance for when, distance in engine.set_back if when > put_at), timedelta())


async def inspect(engine: Engine, queue: QueueSettings, job_id: int) -> JobInfo:
    """Return the stored state of a job.

    Raises:
        JobNotFound: No job has this id, nothing of the finished job was kept, or another job has its id now.
    """
    job = await _find_job(engine, queue, job_id)
    kept = await _find_result(engine, queue, job_id)
    progress = None if kept is None or kept.progress is None else json.loads(kept.progress)
    if job is not None:
        error = job.error
        if error is None and job.state == "done" and kept is not None:
            error = kept.error  # this error says why the job's result could not be stored
        return JobInfo(
            int(job_id),
            job.state,
            job.attempts,
            job.failures,
            read_error(error),
            progress,
            read_headers(job.headers)[0],
            UtcDatetime.of(job.enqueued_at),
            UtcDatetime.of(job.schedule_at),
            UtcDatetime.of(job.expected_at),
        )
    if kept is not None and kept.state != "running":  # a row that is still "running" holds only progress
        return JobInfo(int(job_id), kept.state, error=read_error(kept.error), progress=progress)
    if kept is None:
        await _refuse_another(engine, queue, job_id)
    msg = f"queue {queue.name!r} has no record of job {job_id}: it was never put, or its row was deleted"
    raise JobNotFound(msg)


async def _find(engine: Engine, queue: QueueSettings, statement: str, job_id: int) -> Sequence[Row]:
    values = {"id": check_job_id(job_id), "q_name": queue.name, "put_at": put_time(engine, job_id)}
    return await engine.execute(statement, values, protect=False)


async def _find_job(engine: Engine, queue: QueueSettings, job_id: int) -> _StateRow | None:
    rows = await _find(engine, queue, "tasks.find_job", job_id)
    return _StateRow._make(rows[0]) if rows else None


async def _find_result(engine: Engine, queue: QueueSettings, job_id: int) -> _ResultRow | None:
    rows = await _find(engine, queue, "tasks.find_result", job_id)
    return _ResultRow._make(rows[0]) if rows else None


async def _refuse_another(engine: Engine, queue: QueueSettings, job_id: int) -> None:
    """Raise an error if a later job has the id of a job that is gone."""
    if put_time(engine, job_id) is None:
        return
    for statement in ("tasks.find_job", "tasks.find_result"):
        if await _find(engine, queue, statement, int(job_id)):
            msg = (
                f"job {job_id} of queue {queue.name!r} is gone, and a newer job has its id, because the sequence of ids"
                " was set back; run pqcore create --set-sequences"
            )
            raise JobNotFound(msg)


async def list_progress(engine: Engine, queue: str, ids: Sequence[int]) -> dict[int, Any]:
    """Return the last progress that each unfinished job reported, by id; jobs that reported nothing are left out.

    Args:
        engine: The engine.
        queue: The name of the jobs' queue.
        ids: The jobs.
    """
    if not ids:
        return {}
    rows = await engine.execute("tasks.find_progress", {"ids": list(ids), "q_name": queue}, protect=False)
    return {int(job_id): json.loads(progress) for job_id, progress in rows}


async def report_progress(engine: Engine, queue: QueueSettings, job: BaseJob, value: str) -> None:
    """Store the progress of a running job, as JSON text; it is kept for as long as the job's result would be."""
    keep = float(job.headers.get("keep", KEEP_PROGRESS))
    values = {"id": job.id, "q_name": queue.name, "progress": value, "keep": keep, "put_at": job.enqueued_at}
    await engine.execute("tasks.report_progress", {**values, "channel": results_channel(queue.name)})


async def wait_for(engine: Engine, queue: QueueSettings, job_id: int, timeout: Any) -> Any:
    """Wait for the result of a job, and return the result.

    Raises:
        JobFailed: The job is a dead letter, or was dropped.
        JobNotFound: The job's result is not kept, or another job has its id.
        ResultNotStored: The job is done, but its result could not be stored.
        ResultTimeout: The result did not arrive in time.
    """
    limit = None if timeout is None else seconds(timeout)
    deadline = None if limit is None else time.monotonic() + limit
    topic = results_channel(queue.name)
    while True:
        ticket = engine.snapshot(topic)  # read before the look, so no later notification is missed
        kept = await _find_result(engine, queue, job_id)
        if kept is not None and kept.state != "running":
            return await _read(engine, queue, job_id, kept)
        job = await _find_job(engine, queue, job_id)
        # The job may have ended between the two looks. Then its result exists now, unless the job keeps none.
        if job is None or job.state in ("done", "dead") or '"keep"' not in (job.headers or ""):
            kept = await _find_result(engine, queue, job_id)
            if kept is not None and kept.state != "running":
                return await _read(engine, queue, job_id, kept)
            if job is not None and job.state == "dead":
                raise _failed(job_id, "failed", job.error)
            if job is None and kept is None:
                await _refuse_another(engine, queue, job_id)
            msg = (
                f"job {job_id} of queue {queue.name!r} has no result: give the task or the call keep_result, and ask"
                " before that time is over"
            )
            raise JobNotFound(msg)
        left = POLL if deadline is None else deadline - time.monotonic()
        if left <= 0:
            msg = f"job {job_id} of queue {queue.name!r} was still {job.state} after {limit} seconds"
            raise ResultTimeout(msg)
        await engine.wait(topic, ticket, min(left, POLL))


async def _read(engine: Engine, queue: QueueSettings, job_id: int, kept: _ResultRow) -> Any:
    if kept.state != "done":
        raise _failed(job_id, kept.state, kept.error)
    if kept.error is not None:
        details = read_error(kept.error)
        msg = f"job {job_id} was done, but its result could not be stored: {_short(details)}"
        raise ResultNotStored(msg, details)
    raw = kept.data if kept.payload is None else bytes(kept.payload)
    return await decode(engine, queue, job_id, kept.serializer, "null" if raw is None else raw)


def _failed(job_id: int, state: str, error: str | None) -> JobFailed:
    details = read_error(error)
    why = f": {_short(details)}" if details else ""
    return JobFailed(f"job {job_id} was not done ({state}){why}", details)


def _short(details: dict[str, str]) -> str:
    return ": ".join(filter(None, (details["type"], details["message"])))
