"""The registry of workers: each worker writes a row for each of its queues, and renews the rows while it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple, cast

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import AccessDenied
from pqcore.settings import QueueSettings
from pqcore.sql.identifiers import check_text
from pqcore.times import UtcDatetime

RENEWAL = 10.0
"""Seconds between two renewals of a worker's rows."""
ALIVE_FOR = 60.0
"""Seconds after its last renewal for which a worker counts as alive."""
KEPT_FOR = 3600.0
"""Seconds after its last renewal for which a worker is listed."""


@dataclass(frozen=True)
class RunningJob:
    """A job that a worker ran when it last renewed its rows.

    Attributes:
        id: The id of the job.
        queue: The name of the job's queue.
        token: The fencing token of the job's lease.
        since: When the job was started, by the server's clock.
    """

    id: int
    queue: str
    token: int
    since: UtcDatetime


@dataclass(frozen=True)
class WorkerInfo:
    """A worker that runs, or that stopped without notice within the last hour.

    Attributes:
        id: The worker's id; a worker that is restarted gets a new id.
        host: The name of its host.
        pid: The process id, on that host.
        version: The version of pqcore that the worker runs.
        queues: The names of the worker's queues, among the queues that were asked for.
        tasks: The paths of the functions that the worker can run; ``app.emails.*`` for all functions of a trusted
            module.
        concurrency: The largest number of jobs that the worker runs concurrently.
        started_at: When the worker started.
        seen_at: When the worker last renewed its rows; a worker does so every 10 s.
        alive: Whether the last renewal was less than 60 s ago, by the server's clock.
        running: The jobs that the worker ran at its last renewal, the earliest start first; at most 100 of each queue.
        quiet: Whether an operator told the worker to take no more jobs.
    """

    id: str
    host: str
    pid: int
    version: str
    queues: tuple[str, ...]
    tasks: tuple[str, ...]
    concurrency: int
    started_at: UtcDatetime
    seen_at: UtcDatetime
    alive: bool
    running: tuple[RunningJob, ...] = ()
    quiet: bool = False


@dataclass(frozen=True)
class RunningWorker:
    """The values under which a running worker is listed.

    Attributes:
        id: The worker's id.
        host: The name of the worker's host.
        pid: The worker's process id.
        version: The version of pqcore.
        concurrency: The largest number of jobs that the worker runs concurrently.
    """

    id: str
    host: str
    pid: int
    version: str
    concurrency: int


class _WorkerRow(NamedTuple):
    """The columns of the statement ``list_workers``."""

    queue: str
    id: str
    host: str
    pid: int
    version: str
    tasks: str
    concurrency: int
    started_at: datetime
    seen_at: datetime
    alive: bool
    running: str | None
    quiet: bool


async def announce(
    engine: Engine,
    worker: RunningWorker,
    tasks: Mapping[str, Sequence[str]],
    running: Mapping[str, Sequence[tuple[int, int, float]]],
    age: float,
) -> list[str]:
    """List a worker for each of its queues, or renew its rows; return the queues from which it must take no jobs.

    Args:
        engine: The engine.
        worker: The worker.
        tasks: The paths of the functions that the worker can run, by the name of each of its queues.
        running: The jobs that the worker runs, by the name of each of its queues: the id, the token, and the seconds
            since the job started.
        age: Seconds since the worker started.
    """
    values = {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "version": worker.version,
        "concurrency": worker.concurrency,
        "age": age,
        "names": list(tasks),
        "tasks": [json.dumps(paths) for paths in tasks.values()],
        "running": [json.dumps(running[name]) for name in tasks],
    }
    await engine.execute("workers.announce_worker", values)
    return [name for (name,) in await engine.execute("workers.find_quiet", {"id": worker.id, "names": list(tasks)})]


async def set_quiet(engine: Engine, worker_id: str, *, quiet: bool) -> bool:
    """Tell a worker to take no more jobs, or to take jobs again; return whether the worker is listed.

    Args:
        engine: The engine.
        worker_id: The id of the worker, as in `WorkerInfo`.
        quiet: Whether the worker must take no more jobs.
    """
    check_text(worker_id, "the id of a worker")
    return bool(await engine.execute("workers.set_quiet", {"id": worker_id, "quiet": quiet}))


async def withdraw(engine: Engine, worker: RunningWorker, queues: Sequence[str]) -> None:
    """Delete the rows of a worker that stops."""
    await engine.execute("workers.withdraw_worker", {"id": worker.id, "names": list(queues)})


async def sweep(engine: Engine) -> None:
    """Delete the rows of workers that have not renewed them for `KEPT_FOR` seconds."""
    await engine.execute("workers.sweep_workers", {"silence": KEPT_FOR})


async def list_workers(engine: Engine, queue: QueueSettings | None = None) -> list[WorkerInfo]:
    """List the workers in the order of their start.

    Args:
        engine: The engine.
        queue: List only workers of this queue; None for all.
    """
    return await engine.run(partial(list_workers_of, queue=None if queue is None else queue.name), protect=False)


async def list_workers_of(s: Session, queue: str | None) -> list[WorkerInfo]:
    """List the workers of a queue, by its name, or of all queues; see `list_workers`."""
    query = s.sql.workers.list_workers
    rows = await s.execute(query, query.bind({"q_name": queue, "alive": ALIVE_FOR}))
    by_id: dict[str, list[_WorkerRow]] = {}
    for row in map(_WorkerRow._make, rows):
        by_id.setdefault(row.id, []).append(row)
    return [_worker_of(each) for each in by_id.values()]


def _worker_of(rows: Sequence[_WorkerRow]) -> WorkerInfo:
    """Return the worker that wrote these rows: one row for each of its queues."""
    newest = max(rows, key=lambda row: row.seen_at)
    return WorkerInfo(
        newest.id,
        newest.host,
        newest.pid,
        newest.version,
        tuple(sorted(row.queue for row in rows)),
        tuple(sorted({path for row in rows for path in paths_of(row.tasks)})),
        newest.concurrency,
        cast(UtcDatetime, UtcDatetime.of(newest.started_at)),
        cast(UtcDatetime, UtcDatetime.of(newest.seen_at)),
        newest.alive,
        tuple(sorted((job for row in rows for job in _running_in(row)), key=lambda job: job.since)),
        newest.quiet,
    )


def _running_in(row: _WorkerRow) -> list[RunningJob]:
    """Return the jobs in a worker's row; empty if another program wrote the row in another form."""
    try:
        found = [(int(job), int(token), float(age)) for job, token, age in json.loads(row.running or "[]")]
        return [
            RunningJob(job, row.queue, token, cast(UtcDatetime, UtcDatetime.of(row.seen_at - timedelta(seconds=age))))
            for job, token, age in found
        ]
    except (TypeError, ValueError, OverflowError):
        return []


async def find_runner(engine: Engine, queue: QueueSettings, job_id: int) -> tuple[WorkerInfo, RunningJob] | None:
    """Return the worker that runs a job, as `find_running` does, if this worker is alive; otherwise return None.

    Also return None if the role may not read the list of workers.

    Args:
        engine: The engine.
        queue: The job's queue.
        job_id: The job.
    """
    with suppress(AccessDenied):
        workers = [worker for worker in await list_workers(engine, queue) if worker.alive]
        return find_running(workers, queue.name, job_id)
    return None


def find_running(workers: Sequence[WorkerInfo], queue: str, job_id: int) -> tuple[WorkerInfo, RunningJob] | None:
    """Return the worker that runs a job, and the job in its list; None if no worker lists the job.

    A worker lists a job at its next renewal, which comes up to 10 s after the start of the job.

    Args:
        workers: The workers that are listed.
        queue: The name of the job's queue.
        job_id: The job.
    """
    found = [(worker, job) for worker in workers for job in worker.running if (job.id, job.queue) == (job_id, queue)]
    return max(found, key=lambda each: each[1].token, default=None)


def paths_of(tasks: str) -> list[str]:
    """Return the paths of functions in a worker's row; empty if another program wrote the row in another form."""
    found = json.loads(tasks)
    return [path for path in found if isinstance(path, str)] if isinstance(found, list) else []


def knows(worker: WorkerInfo, task: str) -> bool:
    """Return whether a worker can run the function that has this path."""
    return any(task == path or (path.endswith(".*") and task.startswith(path[:-1])) for path in worker.tasks)
