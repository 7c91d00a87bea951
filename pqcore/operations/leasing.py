"""Finishing, giving back and holding on to leased jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

from pqcore.backend import Row
from pqcore.engine import Engine
from pqcore.errors import ConfigurationError, LeaseLost
from pqcore.identifiers import channel
from pqcore.job import BaseJob
from pqcore.sessions import CoreSession
from pqcore.settings import QueueSettings
from pqcore.timespec import TimeSpec, seconds

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
    held = sorted((job.id, job.attempts) for job in jobs)  # one order of locking for all
    values = {"ids": [job for job, _ in held], "tokens": [token for _, token in held]}

    async def work(s: CoreSession) -> Sequence[Row]:
        query = s.sql.ack[queue.retention]
        return await s.execute(query, query.bind(values))

    done = {(row[0], row[1]) for row in await engine.run(work, connection=connection)}
    return [job for job in jobs if (job.id, job.attempts) not in done]


async def nack(engine: Engine, queue: QueueSettings, job: BaseJob, delay: TimeSpec) -> None:
    """Give a leased row back."""
    pause = None if delay is None else seconds(delay)  # type: ignore[arg-type]
    if not await give_back(engine, queue, job.id, job.attempts, pause):
        raise lease_lost(queue, [job])


async def give_back(engine: Engine, queue: QueueSettings, job: int, token: int, delay: float | None) -> bool:
    """Give a leased row back; whether the lease held."""
    values = {"id": job, "token": token, "delay": delay, "channel": channel(queue.name)}
    return bool(await engine.execute("nack", values))


async def extend(engine: Engine, queue: QueueSettings, job: BaseJob, timeout: str | float | timedelta) -> None:
    """Let a lease end later."""
    values = {"id": job.id, "token": job.attempts, "lease": lease_time(timeout)}
    if not await engine.execute("extend", values):
        raise lease_lost(queue, [job])


def lease_lost(queue: QueueSettings, jobs: Sequence[BaseJob]) -> LeaseLost:
    """The error that says so."""
    ids = ", ".join(str(job.id) for job in jobs)
    msg = (
        f"queue {queue.name!r}: the lease of job {ids} was lost: it ran out and the job was given to another, "
        "or it was given back, cancelled or finished before; extend leases in time, or take longer ones"
    )
    return LeaseLost(msg)
