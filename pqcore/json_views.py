"""JSON views of jobs, queues and rules, for ``--json`` on the command line and for the MCP server.

Only JSON data is decoded; times stay datetimes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pqcore.dead_letters import DeadLetter
from pqcore.errors import SerializationError
from pqcore.job import BaseJob
from pqcore.operations.admin import QueueFigures
from pqcore.operations.attempts import PastAttempt
from pqcore.operations.explanation import Explanation
from pqcore.operations.limits import LimitUsage
from pqcore.operations.list_jobs import StoredJob, WholeJob
from pqcore.operations.rules import Rule
from pqcore.operations.worker_registry import RunningJob, WorkerInfo


def figures(queue: str, found: QueueFigures) -> dict[str, Any]:
    """Return the figures of a queue: its number of jobs by state, and other figures."""
    return {
        "queue": queue,
        "ready": found.ready,
        "scheduled": found.scheduled,
        "leased": found.leased,
        "parked": found.parked,
        "blocked": found.blocked,
        "dead": found.dead,
        "oldest": found.oldest,
        "stale": found.stale,
    }


def rule(found: Rule, queue: str) -> dict[str, Any]:
    """Return a rule that is in force."""
    return {
        "queue": queue,
        "kind": found.kind,
        "name": found.name,
        "number": found.number,
        "period": found.period,
        "until": found.until,
        "changed_at": found.changed_at,
    }


def limit(found: LimitUsage, queue: str) -> dict[str, Any]:
    """Return a limit or group in use."""
    return {"queue": queue, **asdict(found), "running": list(found.running)}


def taken(job: BaseJob, queue: str) -> dict[str, Any]:
    """Return a job that was taken or peeked at."""
    return {
        "id": job.id,
        "queue": queue,
        "attempts": job.attempts,
        "failures": job.failures,
        "enqueued_at": job.enqueued_at,
        "schedule_at": job.schedule_at,
        "expected_at": job.expected_at,
        "headers": job.headers,
        **data(job.raw, job.serializer),
    }


def stored(job: StoredJob) -> dict[str, Any]:
    """Return the stored record of a job, without its data and the traceback."""
    return {
        "id": job.id,
        "queue": job.queue,
        "state": job.state,
        "task": job.task,
        "attempts": job.attempts,
        "failures": job.failures,
        "reason": job.reason,
        "enqueued_at": job.enqueued_at,
        "schedule_at": job.schedule_at,
        "expected_at": job.expected_at,
        "leased_until": job.leased_until,
        "finished_at": job.finished_at,
        "parked_on": job.parked_on,
        "error": _summary(job.error),
    }


def whole(job: WholeJob) -> dict[str, Any]:
    """Return all stored values of a job."""
    return {
        **stored(job),
        "error": job.error or None,
        "place": job.place,
        "group": job.group,
        "dedup_key": job.dedup_key,
        "headers": job.headers,
        **data(job.raw, job.serializer),
    }


def letter(found: DeadLetter, queue: str) -> dict[str, Any]:
    """Return a dead letter, without its data and the traceback."""
    return {
        "id": found.id,
        "queue": queue,
        "task": task(found),
        "reason": found.reason,
        "died_at": found.died_at,
        "enqueued_at": found.enqueued_at,
        "attempts": found.attempts,
        "failures": found.failures,
        "error": _summary(found.error),
    }


def whole_letter(found: DeadLetter, queue: str) -> dict[str, Any]:
    """Return a whole dead letter."""
    return {
        **letter(found, queue),
        "error": found.error or None,
        "schedule_at": found.schedule_at,
        "expected_at": found.expected_at,
        "headers": found.headers,
        **data(found.raw, found.serializer),
    }


def worker(found: WorkerInfo) -> dict[str, Any]:
    """Return a worker of the list of workers."""
    fields = asdict(found)
    return {**fields, "queues": list(found.queues), "tasks": list(found.tasks), "running": list(fields["running"])}


def explanation(found: Explanation) -> dict[str, Any]:
    """Return why a job does not run, with its past attempts, without their tracebacks."""
    return {**asdict(found), "past_attempts": past_attempts(found.past_attempts)}


def past_attempts(found: Sequence[PastAttempt], *, with_tracebacks: bool = False) -> list[dict[str, Any]]:
    """Return attempts of a job."""
    return [
        {**asdict(each), "error": each.error or None if with_tracebacks else _summary(each.error)} for each in found
    ]


def runs(found: tuple[WorkerInfo, RunningJob] | None) -> dict[str, Any] | None:
    """Return which worker runs a job, and since when; None if no worker lists the job."""
    if found is None:
        return None
    worker, job = found
    return {"worker": worker.id, "host": worker.host, "pid": worker.pid, "since": job.since}


def data(raw: str | bytes, serializer: str | None) -> dict[str, Any]:
    """Return a job's data: decoded if it is JSON, in base64 if it is bytes."""
    return {
        "serializer": serializer or "json",
        "data": _parsed(raw),
        "payload": None if isinstance(raw, str) else base64.b64encode(raw).decode(),
    }


def task(found: DeadLetter) -> str | None:
    """Return the path of the function that a dead letter calls; None if the dead letter is not a call."""
    call = _parsed(found.raw)
    path = call.get("function") if isinstance(call, dict) else None
    return path if isinstance(path, str) else None


def read(text: str, what: str) -> Any:
    """Return the value of a JSON text that a user wrote for a put.

    Args:
        text: The JSON text.
        what: The name of the text, for the message.

    Raises:
        SerializationError: The text is not JSON; NaN and infinity are not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError) as exc:
        raise SerializationError(f"{what} is not JSON: {exc}") from None


def _refused(constant: str) -> Any:
    msg = f"{constant} is not JSON"
    raise ValueError(msg)


def _parsed(raw: str | bytes) -> Any:
    if not isinstance(raw, str):
        return None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):  # the text is truncated, or nested deeper than Python can follow
        return None


def _summary(error: Mapping[str, str]) -> dict[str, str | None] | None:
    return {"type": error.get("type"), "message": error.get("message")} if error else None
