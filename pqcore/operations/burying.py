"""Making dead letters of jobs that their consumer gives up: leased ones, and those that a get took for good."""

from __future__ import annotations

from collections.abc import Sequence

from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError, DeserializationError, JobNotFound, Unreadable
from pqcore.job import BaseJob
from pqcore.operations.atomic import atomic
from pqcore.operations.complete import (
    Outcome,
    error_text,
    finish,
    go_on,
    headers_of_the_dead,
    is_continued,
    without_followers_text,
)
from pqcore.operations.dead_letters import described
from pqcore.operations.lease import lease_lost
from pqcore.settings import QueueSettings


async def bury(
    engine: Engine,
    queue: QueueSettings,
    job: BaseJob,
    error: BaseException | str | None,
    connection: object = None,
    *,
    owed: bool | None = None,
) -> None:
    """Make a dead letter of a job.

    Args:
        engine: Where.
        queue: Whose.
        job: The job, as it was taken.
        error: Why.
        connection: In whose transaction; as for `Queue.put`.
        owed: Whether what follows from the end of a job that was taken for good did not follow yet; None if it
            followed as the job was taken.

    Raises:
        ConfigurationError: ``error`` is neither an exception nor text.
        JobNotFound: The job was taken for good, and its row is no longer as it was.
        LeaseLost: The lease ran out, and the job was given to another.
    """
    outcome = _dead(job, error)
    if job.leased:
        if await finish(engine, queue, [outcome], connection):
            raise lease_lost(queue, [job])
        return
    owed = not is_continued(job.raw_headers) if owed is None else owed
    values: dict[str, object] = {
        "id": job.id,
        "token": job.attempts,
        "q_name": queue.name,
        "headers": headers_of_the_dead(job) if owed else without_followers_text(job),
        "failed": int(outcome.reason == "failed"),
        "error": error_text(outcome),
        "reason": outcome.reason,
    }
    retention = job.settings.retention  # by which its row was finished
    if retention == "delete":
        binary = isinstance(job.raw, bytes)
        values |= {"data": None if binary else job.raw, "payload": job.raw if binary else None}
        values |= {"serializer": job.serializer, "stored_headers": job.raw_headers}
        values |= {"failures": job.failures, "excused": job.excused, "enqueued_at": job.enqueued_at}
        values |= {"schedule_at": job.schedule_at, "expected_at": job.expected_at}

    async def work(s: Session) -> Sequence[Row]:
        query = s.sql.tasks.bury_taken[retention]
        async with atomic(s):
            rows = await s.execute(query, query.bind(values))
            if rows and owed:
                await go_on(engine, queue, s, [outcome])
        return rows

    if not await engine.run(work, connection=connection):
        msg = (
            f"queue {queue.name!r}: job {job.id} cannot be buried: it was not taken with get, or its row has changed "
            "since; give the job as get, get_many or lease returned it"
        )
        raise JobNotFound(msg)


def _dead(job: BaseJob, error: BaseException | str | None) -> Outcome:
    if isinstance(error, BaseException):
        details = described(error)
    elif error is None or isinstance(error, str):
        details = {"type": "buried", "message": error or "its consumer gave it up", "traceback": ""}
    else:
        msg = f"error is {error!r}; give an exception, a text, or nothing"
        raise ConfigurationError(msg)
    return Outcome(job, "dead", error=details, reason=_reason_of(error))


def _reason_of(error: object) -> str:
    """The reason of the dead letter of a job that met this error before or while it was worked on."""
    if isinstance(error, Unreadable):
        return "unreadable"
    return "invalid" if isinstance(error, DeserializationError) else "failed"
