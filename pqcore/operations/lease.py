"""Finishing, giving back and extending leased jobs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.group_commit import ALONE, Together
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError, LeaseLost
from pqcore.job import BaseJob
from pqcore.lanes import has_lane
from pqcore.settings import QueueSettings
from pqcore.sql.statement import Query
from pqcore.times import TimeSpec, seconds

J = TypeVar("J", bound=BaseJob)


LEASE_DURATION = float(60)
"""The default length of a lease, in seconds. `lease_terms` recognizes this object by its identity, to see whether the
caller gave a length."""


def lease_time(duration: str | float | timedelta) -> float:
    """Return the length of a lease, in seconds.

    Raises:
        InvalidTimeSpec: The value cannot be read as a duration.
        ConfigurationError: The duration is 0.
    """
    length = seconds(duration)
    if length <= 0:
        msg = f"lease duration is {duration!r}; give a time longer than 0"
        raise ConfigurationError(msg)
    return length


def lease_terms(
    duration: str | float | timedelta, timeout: float | None, wait: float | None
) -> tuple[float, float | None]:
    """Return the length of a lease and the time to wait for a job, both in seconds, from the arguments of a lease.

    Args:
        duration: The length of the lease; the object `LEASE_DURATION` if the caller gave none.
        timeout: How long the caller waits for a job; None for the queue's ``timeout``.
        wait: Another name of ``timeout``.

    Raises:
        InvalidTimeSpec: The duration cannot be read.
        ConfigurationError: The duration is 0, or ``timeout`` is given without a duration or together with ``wait``.
    """
    if timeout is not None:
        if wait is not None:
            msg = f"timeout is {timeout!r} and wait is {wait!r}; both are the time to wait for a job: give one of them"
            raise ConfigurationError(msg)
        if duration is LEASE_DURATION:
            msg = (
                f"the lease has timeout={timeout!r} and no duration: timeout is the time to wait for a job, duration"
                f" the length of the lease; give both, as in lease(60, timeout=5), or wait={timeout!r} alone"
            )
            raise ConfigurationError(msg)
        wait = timeout
    return lease_time(duration), wait


async def ack(
    engine: Engine, queue: QueueSettings, jobs: Sequence[J], connection: object, *, free: bool = False
) -> list[J]:
    """Finish leased jobs; return the jobs whose leases were lost.

    Args:
        engine: The engine.
        queue: The queue of the jobs.
        jobs: The jobs.
        connection: A connection whose open transaction is used; see `Queue.put`.
        free: Whether to leave out jobs whose rows other transactions have locked; such jobs are returned, too.
    """
    if not jobs:
        return []

    async def work(s: Session) -> Sequence[Row]:
        return await ack_rows(s, queue, jobs, free=free)

    if connection is None and not free and len(jobs) == 1 and not has_lane(jobs[0].raw_headers):
        [job], retention = jobs, queue.retention
        together = partial(_together, lambda s: s.sql.ack_group[retention], {"q_name": queue.name})
        return [] if await _go(engine, queue, ("ack", retention), together, job, work) else [job]
    done = _held(await engine.run(work, connection=connection, protect=False))
    return [job for job in jobs if (job.id, job.token) not in done]


def _held(rows: Sequence[Row]) -> set[tuple[int, int]]:
    """Return the ids and tokens in a statement's result, which has a row for each held lease."""
    return {(job, token) for job, token, *_ in rows}


async def _go(
    engine: Engine,
    queue: QueueSettings,
    key: Hashable,
    together: Callable[[], Together],
    job: BaseJob,
    alone: Callable[[Session], Awaitable[Sequence[Row]]],
) -> bool:
    """Change the row of a leased job, together with rows of concurrent callers; return whether the lease was held.

    Args:
        engine: The engine.
        queue: The queue of the job.
        key: The values that the calls have in common.
        together: A function that returns the operation for the rows of several callers.
        job: The job.
        alone: A function that changes the one row, and returns it if the lease was held.
    """
    line = engine.line(queue.lines, key, together)
    if line is None:
        return bool(await engine.run(alone, protect=False))
    if not line.since:
        return bool(await engine.run_alone(alone, line, protect=False))
    if await line.join((job.id, job.token)) is not ALONE:
        return True
    return bool(await engine.run_alone(alone, protect=False))


def _together(query_of: Callable[[Session], Query], values: Mapping[str, object]) -> Together:
    """Return the operation that changes the rows of several callers.

    The operation returns True for each held lease, and `ALONE` for each row that it did not find.

    If the operation does not find a row, another transaction may have locked the row. The row's caller then runs a
    statement for this row alone; the statement waits for the row, and shows whether the lease is held.

    Args:
        query_of: A function that returns the statement. The statement takes ids and tokens, and returns the ids and
            tokens of the changed rows.
        values: The other values of the statement.
    """

    async def run(s: Session, leases: list[tuple[int, int]]) -> Sequence[Any]:
        query = query_of(s)
        found = {"ids": [job for job, _ in leases], "tokens": [token for _, token in leases]}
        done = _held(await s.execute(query, query.bind({**values, **found})))
        answers: list[Any] = []
        for lease in leases:
            answers.append(True if lease in done else ALONE)
            done.discard(lease)  # a second caller with the same lease gets `ALONE`, and finds the lease ended
        return answers

    return Together(run)


async def find_held(engine: Engine, jobs: Sequence[BaseJob]) -> set[tuple[int, int]]:
    """Return the ids and tokens of the jobs whose leases are held, even if other transactions lock their rows."""
    return _held(await engine.execute("tasks.find_held_leases", ids_and_tokens(jobs), protect=False)) if jobs else set()


async def ack_rows(s: Session, queue: QueueSettings, jobs: Sequence[BaseJob], *, free: bool = False) -> Sequence[Row]:
    """Finish the rows of leased jobs, and do nothing else; return the ids and tokens of the held leases.

    Args:
        s: The session.
        queue: The queue of the jobs.
        jobs: The jobs.
        free: Whether to leave out rows that other transactions have locked.
    """
    if len(jobs) == 1 and not free and not has_lane(jobs[0].raw_headers):
        query = s.sql.ack_one[queue.retention]
        return await s.execute(query, query.bind({"id": jobs[0].id, "token": jobs[0].token, "q_name": queue.name}))
    values = {**ids_and_tokens(jobs), "q_name": queue.name}
    for job in jobs:
        if has_lane(job.raw_headers):  # the job's places are free now, and other jobs may wait for them
            query = (s.sql.ack_group_and_tell if free else s.sql.ack_and_tell)[queue.retention]
            return await s.execute(query, query.bind({**values, "channel": queue.channel}))
    query = (s.sql.ack_group if free else s.sql.ack)[queue.retention]
    return await s.execute(query, query.bind(values))


def ids_and_tokens(jobs: Sequence[BaseJob]) -> dict[str, object]:
    """Return the ids and tokens of jobs for the statements, in the common order of locking."""
    held = sorted((job.id, job.token) for job in jobs)
    return {"ids": [job for job, _ in held], "tokens": [token for _, token in held]}


async def nack(engine: Engine, queue: QueueSettings, job: BaseJob, delay: TimeSpec) -> None:
    """Give a leased row back to the queue."""
    pause = None if delay is None else seconds(delay)  # type: ignore[arg-type]
    values: dict[str, object] = {"id": job.id, "token": job.token, "delay": pause}
    values |= {"q_name": queue.name, "channel": queue.channel}

    async def alone(s: Session) -> Sequence[Row]:
        return await s.execute(s.sql.nack, s.sql.nack.bind(values))

    together = partial(_together, lambda s: s.sql.nack_group, values)
    if not await _go(engine, queue, ("nack", pause), together, job, alone):
        raise lease_lost(queue, [job])


async def give_back(engine: Engine, queue: QueueSettings, rows: Sequence[tuple[int, int]]) -> list[int]:
    """Give leased rows back immediately, without counting an attempt, because the jobs were not started.

    Return the ids of the held leases.

    Args:
        engine: The engine.
        queue: The queue.
        rows: The ids and tokens.
    """
    if not rows:
        return []
    held = sorted(rows)
    values: dict[str, object] = {"ids": [job for job, _ in held], "tokens": [token for _, token in held]}
    values |= {"q_name": queue.name, "channel": queue.channel}
    return [job for (job, *_) in await engine.execute("tasks.release", values)]


async def extend(engine: Engine, queue: QueueSettings, job: BaseJob, duration: str | float | timedelta) -> None:
    """Set the end of a lease to ``duration`` from now."""
    values: dict[str, object] = {"id": job.id, "token": job.token, "lease": lease_time(duration)}
    values["q_name"] = queue.name

    async def alone(s: Session) -> Sequence[Row]:
        return await s.execute(s.sql.extend, s.sql.extend.bind(values))

    together = partial(_together, lambda s: s.sql.extend_group, values)
    if not await _go(engine, queue, ("extend", values["lease"]), together, job, alone):
        raise lease_lost(queue, [job])


async def beat(
    engine: Engine, jobs: Sequence[BaseJob], length: float
) -> tuple[dict[tuple[int, int], bool], set[tuple[int, int]]]:
    """Set the end of leases to ``length`` seconds from now; skip rows that other transactions have locked.

    Returns:
        A dict and a set. The keys of the dict are the ids and tokens of the extended leases, and its values say whether
        the job was asked to stop. The set has the ids and tokens of the leases that are held but were not extended,
        because other transactions have locked the jobs' rows.
    """
    rows = await engine.execute("tasks.heartbeat", {**ids_and_tokens(jobs), "lease": length})
    kept = {(job, token): bool(stops) for job, token, stops in rows}
    return kept, await find_held(engine, [job for job in jobs if (job.id, job.token) not in kept])


async def last_leases(
    engine: Engine, queue: QueueSettings, jobs: Sequence[BaseJob]
) -> list[tuple[tuple[int, int], bool]]:
    """Return, for each job with a row, the id and token of its last lease, and whether the holder ended the lease."""
    values = {"ids": sorted({job.id for job in jobs}), "q_name": queue.name}
    rows = await engine.execute("tasks.find_leases", values, protect=False)
    return [((job, token), bool(is_over)) for job, token, is_over in rows]


def lease_lost(queue: QueueSettings, jobs: Sequence[BaseJob]) -> LeaseLost:
    """Return the error of a lost lease."""
    ids = ", ".join(str(job.id) for job in jobs)
    if not any(job.leased for job in jobs):
        msg = (
            f"queue {queue.name!r}: job {ids} has no lease: get completes the jobs that it takes;"
            " take jobs that may have to run again with lease()"
        )
        return LeaseLost(msg)
    msg = (
        f"queue {queue.name!r}: the lease of job {ids} was lost: it ran out and the job was given to another, "
        "or it was given back, cancelled or finished before; extend leases in time, or take longer ones"
    )
    return LeaseLost(msg)
