"""Finishing, giving back and holding on to leased jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError, LeaseLost
from pqcore.job import BaseJob
from pqcore.operations.atomic import atomic
from pqcore.operations.concurrency_limits import give_up, in_parts, limits_of, lock_gates
from pqcore.settings import QueueSettings
from pqcore.times import TimeSpec, seconds

J = TypeVar("J", bound=BaseJob)


def lease_time(timeout: str | float | timedelta) -> float:
    """The length of a lease, in seconds.

    Raises:
        InvalidTimeSpec: Not a duration, or of no length.
    """
    length = seconds(timeout)
    if length <= 0:
        msg = f"lease timeout is {timeout!r}; give a time longer than none"
        raise ConfigurationError(msg)
    return length


async def ack(engine: Engine, queue: QueueSettings, jobs: Sequence[J], connection: object) -> list[J]:
    """Finish leased jobs; returns those whose lease was lost."""
    if not jobs:
        return []
    gates = {
        job.id: gate for job in jobs if job.raw_headers is not None and (gate := limits_of(job.raw_headers)) is not None
    }

    async def work(s: Session) -> Sequence[Row]:
        if not gates:
            return await ack_rows(s, queue, jobs)
        plain = [job for job in jobs if job.id not in gates]
        rows = list(await ack_rows(s, queue, plain)) if plain else []
        for part in in_parts(gates):
            async with atomic(s):
                await lock_gates(engine, queue, s, part.values())
                ended = await ack_rows(s, queue, [job for job in jobs if job.id in part])
                done = {row[0] for row in ended}
                await give_up(engine, queue, s, {job: part[job] for job in done}, locked=True)
            rows += ended
        return rows

    done = {(row[0], row[1]) for row in await engine.run(work, connection=connection, protect=False)}
    return [job for job in jobs if (job.id, job.attempts) not in done]


async def ack_rows(s: Session, queue: QueueSettings, jobs: Sequence[BaseJob]) -> Sequence[Row]:
    """Finish the rows of leased jobs, and no more; the ids and tokens of those that were held."""
    query = s.sql.ack[queue.retention]
    return await s.execute(query, query.bind({**pairs(jobs), "q_name": queue.name}))


def pairs(jobs: Sequence[BaseJob]) -> dict[str, object]:
    """The ids and tokens of jobs as the statements take them: in one order of locking for all."""
    held = sorted((job.id, job.attempts) for job in jobs)
    return {"ids": [job for job, _ in held], "tokens": [token for _, token in held]}


async def nack(engine: Engine, queue: QueueSettings, job: BaseJob, delay: TimeSpec) -> None:
    """Give a leased row back."""
    pause = None if delay is None else seconds(delay)  # type: ignore[arg-type]
    values: dict[str, object] = {"id": job.id, "token": job.attempts, "delay": pause}
    values |= {"q_name": queue.name, "channel": queue.channel}
    gate = limits_of(job.raw_headers)

    async def work(s: Session) -> Sequence[Row]:
        query = s.sql.nack
        if gate is None:
            return await s.execute(query, query.bind(values))
        async with atomic(s):
            await lock_gates(engine, queue, s, [gate])
            if rows := await s.execute(query, query.bind(values)):
                await give_up(engine, queue, s, {job.id: gate}, locked=True)
        return rows

    if not await engine.run(work, protect=False):
        raise lease_lost(queue, [job])


async def give_back(engine: Engine, queue: QueueSettings, rows: Sequence[tuple[int, int]]) -> list[int]:
    """Give leased rows back at once, held against none of them: they were not begun.  The ids of those held.

    Args:
        engine: Where.
        queue: Whose.
        rows: Ids and tokens.  Places under limits are kept for whoever takes them next.
    """
    if not rows:
        return []
    held = sorted(rows)
    values: dict[str, object] = {"ids": [job for job, _ in held], "tokens": [token for _, token in held]}
    values |= {"q_name": queue.name, "channel": queue.channel}
    return [row[0] for row in await engine.execute("tasks.release", values)]


async def extend(engine: Engine, queue: QueueSettings, job: BaseJob, timeout: str | float | timedelta) -> None:
    """Let a lease end later."""
    values: dict[str, object] = {"id": job.id, "token": job.attempts, "lease": lease_time(timeout)}
    values["q_name"] = queue.name
    if not await engine.execute("extend", values, protect=False):
        raise lease_lost(queue, [job])


async def beat(engine: Engine, jobs: Sequence[BaseJob], length: float) -> dict[tuple[int, int], bool]:
    """Let leases end ``length`` seconds from now.

    Returns:
        Those that are held, by id and token: whether the job was asked to stop.
    """
    rows = await engine.execute("tasks.beat", {**pairs(jobs), "lease": length})
    return {(row[0], row[1]): bool(row[2]) for row in rows}


async def last_leases(
    engine: Engine, queue: QueueSettings, jobs: Sequence[BaseJob]
) -> list[tuple[tuple[int, int], bool]]:
    """Return the id and token of the last lease of each job whose row is there, and whether its holder ended it."""
    values = {"ids": sorted({job.id for job in jobs}), "q_name": queue.name}
    rows = await engine.execute("tasks.find_leases", values, protect=False)
    return [((row[0], row[1]), bool(row[2])) for row in rows]


def lease_lost(queue: QueueSettings, jobs: Sequence[BaseJob]) -> LeaseLost:
    """The error that says so."""
    ids = ", ".join(str(job.id) for job in jobs)
    msg = (
        f"queue {queue.name!r}: the lease of job {ids} was lost: it ran out and the job was given to another, "
        "or it was given back, cancelled or finished before; extend leases in time, or take longer ones"
    )
    return LeaseLost(msg)
