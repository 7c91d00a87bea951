"""Finding the jobs that new jobs wait for, at the time when the new jobs are put."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError, JobNotFound, NotSupported
from pqcore.job import JobId
from pqcore.operations.results import put_time
from pqcore.put_options import After
from pqcore.settings import QueueSettings

_SHOWN = 5
"""The number of ids that a message shows."""


class Behind(NamedTuple):
    """What a new job waits for.

    Attributes:
        parents: The jobs, by id.
        gone: The outcome of a parent that cannot be marked as awaited, and later has no row.
    """

    parents: Mapping[int, After]
    gone: str


def check_parents(engine: Engine, queue: QueueSettings, parents: Mapping[int, After]) -> Behind:
    """Return what a new job waits for.

    Args:
        engine: The engine.
        queue: The queue of the put.
        parents: The jobs, by id; at least one.

    Raises:
        ConfigurationError: A job is in another table.
        NotSupported: The server's dialect has no such jobs.
    """
    if reason := engine.dialect.unsupported.get("after"):
        raise NotSupported(f"{engine.dialect.name} has no jobs that wait for other jobs: {reason}")
    for number, parent in parents.items():
        table = getattr(getattr(parent.job_id, "queue", None), "table", None)
        if table is not None and str(table) != str(queue.table):
            msg = f"job {number} is in {table}, and a job in {queue.table} cannot wait for it; put both into one table"
            raise ConfigurationError(msg)
    return Behind(parents, "done" if queue.retention == "delete" else "deleted")


async def await_parents(
    engine: Engine, s: Session, jobs: Sequence[Behind], subject: Callable[[int], str]
) -> list[dict[str, str] | None]:
    """Mark the parents of new jobs as awaited.

    Args:
        engine: The engine.
        s: A session with an open transaction, which then puts the new jobs.
        jobs: What each new job waits for.
        subject: A function that returns, for the number of a new job, how an error names it.

    Returns:
        For each new job, the values for the statement that stores its parents; None if the job need not wait, because
        all its parents have ended as the job requires.

    Raises:
        JobNotFound: A parent has no row.
    """
    sql = s.sql.dependencies
    given = [{number: _epoch(engine, parent) for number, parent in job.parents.items()} for job in jobs]
    found: defaultdict[int, list[tuple[str | None, float | None]]] = defaultdict(list)

    def state_of(number: int, epoch: float | None) -> str | None:
        return next((state for state, put_at in found[number] if _is_same(epoch, put_at)), None)

    ids = sorted({number for epochs in given for number in epochs})
    for number, put_at in await s.execute(sql.await_parents, sql.await_parents.bind({"ids": ids})):
        found[number].append(("awaited", put_at))
    left = sorted({number for epochs in given for number, epoch in epochs.items() if state_of(number, epoch) is None})
    if left:
        for number, state, put_at in await s.execute(sql.find_parents, sql.find_parents.bind({"ids": left})):
            found[number].append((state, put_at))
    states = [{number: state_of(number, epoch) for number, epoch in epochs.items()} for epochs in given]
    missing = {
        place: absent
        for place, job in enumerate(jobs)
        if (absent := [n for n, parent in job.parents.items() if not states[place][n] and parent.on_failure != "run"])
    }
    if missing:
        raise _missing(engine, missing, subject)
    return list(map(_blocked, jobs, states))


async def block(s: Session, q_name: str, jobs: Sequence[Mapping[str, Any]]) -> None:
    """Store the parents of jobs that the same transaction has put; these jobs are scheduled for infinity.

    Args:
        s: The session.
        q_name: The queue of the jobs.
        jobs: For each job, its ``id``, the values that `await_parents` returned, and ``schedule_at`` or
            ``schedule_in`` of its put.
    """
    query = s.sql.dependencies.block
    await s.execute(query, query.bind({"q_name": q_name, "items": json.dumps(jobs, default=datetime.isoformat)}))


def _blocked(job: Behind, states: Mapping[int, str | None]) -> dict[str, str] | None:
    """Return the values to store about a job's parents; None if the job need not wait for any of them.

    Args:
        job: What the job waits for.
        states: Where each parent is: ``awaited``, ``open``, or how it ended; None if it has no row.
    """
    edges = [
        {
            "id": number,
            "on_failure": parent.on_failure,
            "polled": states[number] == "open",
            "outcome": None if states[number] in ("awaited", "open") else states[number] or "deleted",
        }
        for number, parent in job.parents.items()
    ]
    if all(edge["outcome"] == "done" or (edge["outcome"] and edge["on_failure"] == "run") for edge in edges):
        return None
    return {"parents": json.dumps(edges), "gone": job.gone}


def _epoch(engine: Engine, parent: After) -> float | None:
    """Return when a job was put, if its id is a `JobId`, which contains this time; otherwise return None."""
    put_at = put_time(engine, parent.job_id) if isinstance(parent.job_id, JobId) else None
    return None if put_at is None else put_at.timestamp()


def _is_same(given: float | None, found: float | None) -> bool:
    """Return whether two times may be of the same put; jobs that have the same id were put at different times."""
    return given is None or found is None or abs(given - found) < 1e-5


def _missing(engine: Engine, missing: Mapping[int, Sequence[int]], subject: Callable[[int], str]) -> JobNotFound:
    """Return the error for new jobs whose parents have no rows.

    Args:
        engine: The engine.
        missing: The ids of those parents, by the number of the new job.
        subject: See `await_parents`.
    """
    ids = list(dict.fromkeys(chain.from_iterable(missing.values())))
    some = ", ".join(map(str, ids[:_SHOWN])) + (f" and {len(ids) - _SHOWN:,} more" if len(ids) > _SHOWN else "")
    who = subject(next(iter(missing))) + (f" and {len(missing) - 1:,} more" if len(missing) > 1 else "")
    where = f"{'job' if len(ids) == 1 else 'jobs'} {some}, which {engine.names} does not have"
    why = "such a job never existed, was deleted, or was finished with retention='delete'"
    advice = "put both in one transaction, or use After(id, on_failure='run')"
    return JobNotFound(f"{who} would wait for {where}; nothing was put: {why}; {advice}")
