"""Finding the jobs that a new job waits for, at the time when the new job is put."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError, JobNotFound, NotSupported
from pqcore.job import JobId
from pqcore.operations.results import put_time
from pqcore.put_options import After, Dedup, parents_of
from pqcore.settings import QueueSettings

_SHOWN = 5
"""The number of ids that a message shows."""


def check_parents(engine: Engine, queue: QueueSettings, after: object, dedup: Dedup | None) -> dict[int, After]:
    """Return the jobs that a put waits for, by id.

    Args:
        engine: The engine.
        queue: The queue of the put.
        after: The option of the put; see `pqcore.put_options.Parents`.
        dedup: The dedup key of the put.

    Raises:
        ConfigurationError: The value is invalid, names a job of another table, or cannot be used with the dedup key.
        NotSupported: The server's dialect has no such jobs.
    """
    parents = parents_of(after)
    if not parents:
        return parents
    if reason := engine.dialect.unsupported.get("after"):
        raise NotSupported(f"{engine.dialect.name} has no jobs that wait for other jobs: {reason}")
    if dedup is not None and dedup.on_conflict == "replace":
        msg = "after cannot be used with on_conflict='replace': jobs that the replaced job waits for could wait for it"
        raise ConfigurationError(f"{msg}; use 'keep' or 'error'")
    for number, parent in parents.items():
        table = getattr(getattr(parent.job_id, "queue", None), "table", None)
        if table is not None and str(table) != str(queue.table):
            raise ConfigurationError(f"job {number} is in {table}, and a job in {queue.table} cannot wait for it")
    return parents


async def await_parents(
    engine: Engine, queue: QueueSettings, s: Session, parents: Mapping[int, After]
) -> dict[str, Any] | None:
    """Mark the jobs that a put waits for as awaited, and return the values for the statement that puts the job.

    Return None if all of them are done, so that the job need not wait.

    Args:
        engine: The engine.
        queue: The queue of the put.
        s: A session with an open transaction.
        parents: The jobs, by id.

    Raises:
        JobNotFound: A job has no row.
    """
    sql = s.sql.dependencies
    given = {number: _epoch(engine, parent) for number, parent in parents.items()}
    found: dict[int, str | None] = {}
    for number, epoch in await s.execute(sql.await_parents, sql.await_parents.bind({"ids": sorted(given)})):
        if _is_same(given[number], epoch):
            found[number] = "awaited"
    if left := sorted(given.keys() - found.keys()):
        for number, state, epoch in await s.execute(sql.find_parents, sql.find_parents.bind({"ids": left})):
            found[number] = state if _is_same(given[number], epoch) else None
    missing = [number for number, parent in parents.items() if found[number] is None and parent.on_failure != "run"]
    if missing:
        raise _missing(queue, missing)
    rows = [
        {
            "id": number,
            "on_failure": parent.on_failure,
            "polled": found[number] == "open",
            "outcome": None if found[number] in ("awaited", "open") else found[number] or "deleted",
        }
        for number, parent in parents.items()
    ]
    if all(row["outcome"] == "done" or (row["outcome"] and row["on_failure"] == "run") for row in rows):
        return None
    return {"parents": json.dumps(rows), "gone": "done" if queue.retention == "delete" else "deleted"}


def _epoch(engine: Engine, parent: After) -> float | None:
    """Return when a job was put, if its id tells; see `JobId`."""
    put_at = put_time(engine, parent.job_id) if isinstance(parent.job_id, JobId) else None
    return None if put_at is None else put_at.timestamp()


def _is_same(given: float | None, found: float | None) -> bool:
    """Return whether a row can be that of the job that the caller means, by the time of the put, because ids repeat."""
    return given is None or found is None or abs(given - found) < 1e-5


def _missing(queue: QueueSettings, ids: list[int]) -> JobNotFound:
    some = ", ".join(map(str, ids[:_SHOWN])) + (f" and {len(ids) - _SHOWN:,} more" if len(ids) > _SHOWN else "")
    msg = f"queue {queue.name!r}: the job would wait for job {some}, which {queue.table} does not have; nothing was put"
    why = "such a job never existed, was deleted, or was finished with retention='delete'"
    return JobNotFound(f"{msg}: {why}; put both in one transaction, or use After(id, on_failure='run')")
