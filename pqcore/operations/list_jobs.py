"""Looking at jobs in any state: many jobs by state, or everything about one job."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pqcore.argument_checks import check_job_id
from pqcore.db.engine import Engine
from pqcore.errors import ConfigurationError, JobNotFound
from pqcore.headers import read_headers
from pqcore.lanes import read_lane
from pqcore.operations.error_details import read_error
from pqcore.operations.results import put_time
from pqcore.rows import StoredJobRow
from pqcore.settings import QueueSettings
from pqcore.sql.fragments import UNNAMED
from pqcore.times import UtcDatetime, seconds

UNFINISHED = ("leased", "ready", "scheduled", "parked")
STATES = (*UNFINISHED, "done", "dead")
"""The states of a job. Done jobs are listed only if their rows are kept or archived."""
MOST = 100_000
_LAST = 2**63 - 1
_CALL = re.compile(r'\s*\{\s*"function"\s*:\s*"([^"\\]*)"\s*[,}]')


@dataclass(frozen=True)
class StoredJob:
    """The stored values of a job, without its data.

    Attributes:
        id: The job's id.
        queue: The name of the job's queue.
        state: One of `STATES`.
        serializer: The serializer that wrote the data; None for a row that pq wrote.
        attempts: How often the job was run, including a present run; see `pqcore.Job.attempts`.
        failures: How often the job failed with an exception.
        error: The last exception, as ``type``, ``message`` and ``traceback``; empty if there was none.
        reason: Why the job is dead; None if it is not dead.
        enqueued_at: The time of the job's put.
        schedule_at: The earliest time at which the job may be taken.
        expected_at: The time by which the job is wanted.
        finished_at: When the job was finished, or died.
        leased_until: When the job's lease ends, or ended.
        parked_on: The keys that the job waits for: ``limit:`` or ``group:`` and a name; several are separated by
            commas.
        task: The path of the job's function, if the job is a call of one.
    """

    id: int
    queue: str
    state: str
    serializer: str | None
    attempts: int
    failures: int
    error: dict[str, str]
    reason: str | None
    enqueued_at: UtcDatetime | None
    schedule_at: UtcDatetime | None
    expected_at: UtcDatetime | None
    finished_at: UtcDatetime | None
    leased_until: UtcDatetime | None
    parked_on: str | None
    task: str | None


@dataclass(frozen=True)
class WholeJob(StoredJob):
    """All stored values of a job, with its data or the beginning of its data.

    Attributes:
        raw: The stored data, or the beginning of it: JSON text, or bytes.
        size: The size of the whole data, in bytes.
        headers: The values stored with the data.
        group: The group of the job.
        dedup_key: The dedup key that the job holds.
        place: The table that has the job's row: ``table``, ``dead`` or ``archive``.
    """

    raw: str | bytes = ""
    size: int = 0
    headers: dict[str, Any] = field(default_factory=dict)
    group: str | None = None
    dedup_key: str | None = None
    place: str = "table"


_TIMES = ("enqueued_at", "schedule_at", "expected_at", "finished_at", "leased_until")


def _fields(row: StoredJobRow) -> dict[str, Any]:
    """Return the attributes of a `StoredJob` from a row."""
    fields = {**row._asdict(), "parked_on": _waited_for(row.parked_on)}
    head = fields.pop("head")
    times = {name: UtcDatetime.of(fields[name]) for name in _TIMES}
    return {**fields, **times, "error": read_error(row.error), "task": path_in(head)}


def _waited_for(lane: str | None) -> str | None:
    """Return the keys that a lane names, in the form that users write; None if the lane is not written out."""
    if lane is None or lane[:1] != "[":
        return None if lane == UNNAMED else lane
    found = read_lane(lane)
    return None if found is None else ", ".join(key for key, _ in found.needs) or None


def path_in(head: str | None) -> str | None:
    """Return the path of the function that a job's data names; None if the data is not a call.

    Args:
        head: The beginning of the data, as JSON text.
    """
    call = None if head is None else _CALL.match(head)
    return None if call is None else call[1]


def call_pattern(task: str) -> str:
    """Return a regular expression for PostgreSQL that matches the JSON of calls of a function."""
    path = "".join(letter if letter.isalnum() or letter == "_" else rf"\{letter}" for letter in task)
    return rf'^\s*\{{\s*"function"\s*:\s*"{path}"\s*[,}}]'


async def list_by_state(
    engine: Engine,
    queue: QueueSettings,
    states: Sequence[str] = UNFINISHED,
    n: int = 100,
    *,
    task: str | None = None,
    older_than: Any = None,
    failed: bool = False,
    search: str | None = None,
    skip: int = 0,
) -> list[StoredJob]:
    """Return up to ``n`` jobs of a queue, grouped by state.

    Waiting jobs come in the order in which they are taken; scheduled jobs come in the order in which they become due,
    and leased jobs in the order in which their leases end. Of done and dead jobs, those that ended last come first. Of
    done jobs whose rows stay in the table, those that were put last come first. A filter that matches few jobs makes
    the server read many rows.

    Args:
        engine: The engine.
        queue: The queue.
        states: Some of `STATES`.
        n: The largest number of jobs.
        task: Return only calls of this function.
        older_than: Return only jobs that were put at least this long ago: seconds, ``'5m'`` or a timedelta.
        failed: Return only jobs that failed with an exception.
        search: Return only jobs with this text in their data, headers, dedup key or group; the search is
            case-sensitive. Only JSON data is searched.
        skip: How many jobs of the first state to leave out, because earlier pages have them.

    Raises:
        ConfigurationError: A state is unknown, or ``n`` is not a number from 1 to 100,000.
        InvalidTimeSpec: ``older_than`` cannot be read.
    """
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MOST:
        raise ConfigurationError(f"n is {n!r}; give a number of jobs from 1 to {MOST:,}")
    for state in states:
        if state not in STATES:
            raise ConfigurationError(f"{state!r} is not a state of jobs; choose one of {', '.join(STATES)}")
    values: dict[str, object] = {
        "q_name": queue.name,
        "task": None if task is None else call_pattern(task),
        "age": None if older_than is None else seconds(older_than),
        "failed": int(failed),
        "search": search,
        "written": None if search is None else json.dumps(search)[1:-1],
        "skip": skip,
    }
    found: list[StoredJob] = []
    for place, state in enumerate(dict.fromkeys(states)):
        values["n"] = n - len(found)
        if not values["n"]:
            break
        if place:
            values["skip"] = 0
        if state == "done":
            most = n - len(found) + (0 if place else skip)
            found += (await _finished(engine, {**values, "n": most}, most))[0 if place else skip :]
        else:
            rows = await engine.execute(f"admin.list_{state}", values, protect=False, patient=True)
            found += [StoredJob(**_fields(StoredJobRow._make(row))) for row in rows]
    return found


async def _finished(engine: Engine, values: dict[str, object], n: int) -> list[StoredJob]:
    """Return archived rows, and kept rows, which the operation finds by a scan from the highest ids downwards."""
    archived = await engine.execute("admin.list_archived", values, protect=False, patient=True)
    kept: list[StoredJobRow] = []
    before = _LAST
    while len(kept) < n:
        slice_ = await engine.execute(
            "admin.list_finished", {**values, "n": n - len(kept), "before": before}, protect=False, patient=True
        )
        edge = next(edge for edge, *_ in slice_)
        if edge is None:
            break
        kept += [StoredJobRow(job, *others) for _, job, *others in slice_ if job is not None]
        before = edge
    rows = [*map(StoredJobRow._make, archived), *kept]
    rows.sort(key=lambda row: (row.finished_at, row.id), reverse=True)
    return [StoredJob(**_fields(row)) for row in rows[:n]]


async def get_full_job(
    engine: Engine, job_id: int, queue: QueueSettings | None = None, most: int | None = None
) -> WholeJob:
    """Return all that is stored of a job.

    Args:
        engine: The engine.
        job_id: The job's id.
        queue: The queue that must have the job; None for any queue.
        most: The largest number of characters of JSON text, or of bytes, to read of the data; None for all.

    Raises:
        JobNotFound: The queue has no such row.
    """
    name = None if queue is None else queue.name
    values = {"id": check_job_id(job_id), "q_name": name, "most": most, "put_at": put_time(engine, job_id)}
    rows = await engine.execute("admin.find_row", values, protect=False, patient=True)
    if not rows:
        where = f"table {engine.names}" if queue is None else f"queue {queue.name!r}"
        raise JobNotFound(f"{where} has no job {job_id}: it was never put, or its row was deleted")
    [[*columns, data, payload, headers, group, key, size, place]] = rows
    return WholeJob(
        **_fields(StoredJobRow._make(columns)),
        raw=data if payload is None else bytes(payload),
        size=int(size),
        headers=read_headers(headers)[0],
        group=group,
        dedup_key=key,
        place=place,
    )


async def count_dead_by_queue(engine: Engine) -> dict[str, int]:
    """Count the dead letters of each queue that has dead letters."""
    rows = await engine.execute("admin.dead_by_queue", {}, protect=False, patient=True)
    return {queue: int(number) for queue, number in rows}
