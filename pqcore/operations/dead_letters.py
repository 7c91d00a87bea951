"""Dead letters: made of jobs that their consumer gives up, looked at, made jobs again, and purged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError, DeserializationError, JobNotFound, Unreadable
from pqcore.job import BaseJob
from pqcore.operations.atomic import atomic, with_free_ids
from pqcore.operations.complete import finish
from pqcore.operations.error_details import describe_error, error_text
from pqcore.operations.follow_ups import dead_letter_headers, follow_up, is_continued
from pqcore.operations.job_outcome import Outcome
from pqcore.operations.lease import lease_lost
from pqcore.operations.put_refusals import not_stored
from pqcore.rows import DeadLetterRow
from pqcore.settings import QueueSettings
from pqcore.times import seconds

MOST_REVIVED, MOST_PURGED = 1_000, 10_000
"""Dead letters: the most that one statement deals with; the limits in `pqcore.sql.task_statements`."""
REASONS = ("failed", "crashed", "expired", "invalid", "unreadable")
"""Why jobs are dead letters."""


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
        "token": job.token,
        "q_name": queue.name,
        "headers": dead_letter_headers(job, owed=owed),
        "failed": int(outcome.reason == "failed"),
        "error": error_text(outcome.error),
        "reason": outcome.reason,
    }
    retention = job.settings.retention  # by which its row was finished
    if retention == "delete":
        binary = isinstance(job.raw, bytes)
        values |= {"data": None if binary else job.raw, "payload": job.raw if binary else None}
        values |= {"serializer": job.serializer, "stored_headers": job.raw_headers}
        values |= {"failures": job.failures, "excused": job.not_counted_attempts, "enqueued_at": job.enqueued_at}
        values |= {"schedule_at": job.schedule_at, "expected_at": job.expected_at}

    async def work(s: Session) -> Sequence[Row]:
        query = s.sql.tasks.bury_taken[retention]
        async with atomic(s):
            rows = await s.execute(query, query.bind(values))
            if rows and owed:
                await follow_up(engine, queue, s, [outcome])
        return rows

    if not await engine.run(work, connection=connection):
        msg = (
            f"queue {queue.name!r}: job {job.id} cannot be buried: it was not taken with get, or its row has changed "
            "since; give the job as get, get_many or lease returned it"
        )
        raise JobNotFound(msg)


def _dead(job: BaseJob, error: BaseException | str | None) -> Outcome:
    if isinstance(error, BaseException):
        details = describe_error(error)
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


async def list_latest(engine: Engine, queue: QueueSettings, n: int) -> list[DeadLetterRow]:
    """The rows of the latest ``n``."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        msg = f"n is {n!r}; give a number of dead letters, at least 1"
        raise ConfigurationError(msg)
    rows = await engine.execute("tasks.dead_letters", {"q_name": queue.name, "n": n}, protect=False)
    return list(map(DeadLetterRow.of, rows))


async def find(engine: Engine, queue: QueueSettings, job_id: int) -> DeadLetterRow:
    """The row of one."""
    rows = await engine.execute("tasks.dead_letter", {"q_name": queue.name, "id": job_id}, protect=False)
    if not rows:
        msg = f"queue {queue.name!r} has no dead letter {job_id}"
        raise JobNotFound(msg)
    return DeadLetterRow.of(rows[0])


async def count(engine: Engine, queue: QueueSettings, reason: str | None = None) -> int:
    """Return how many there are, of one reason or of all."""
    values = {"q_name": queue.name, "reason": _check_reason(reason)}
    [[number]] = await engine.execute("tasks.count_dead", values, protect=False)
    return int(number)


def _check_reason(reason: str | None) -> str | None:
    if reason is not None and reason not in REASONS:
        msg = f"{reason!r} is no reason of a dead letter; choose of {', '.join(REASONS)}"
        raise ConfigurationError(msg)
    return reason


async def revive(engine: Engine, queue: QueueSettings, ids: Sequence[int] | None, reason: str | None = None) -> int:
    """Make jobs of them again, due immediately, with a clean record; return how many.

    Args:
        engine: Where.
        queue: Whose.
        ids: Which; None for all.
        reason: Only those that died for this reason.

    Raises:
        ConfigurationError: There is no such reason.
        NotStored: A trigger left a job out; nothing is changed.
    """
    _check_reason(reason)

    async def rise(some: Sequence[int] | None) -> int:
        async def work(s: Session) -> int:
            query = s.sql.tasks.revive
            async with atomic(s):
                [[risen, put]] = await s.execute(
                    query, query.bind({"q_name": queue.name, "ids": some, "reason": reason})
                )
                if put < risen:
                    raise await not_stored(engine, s, "revive")
            return int(risen)

        return await with_free_ids(lambda: engine.run(work, patient=True))

    return await _in_slices(rise, ids, MOST_REVIVED)


async def purge(
    engine: Engine, queue: QueueSettings, ids: Sequence[int] | None, older_than: str | float | timedelta
) -> int:
    """Delete them; how many."""
    values: dict[str, object] = {"q_name": queue.name, "age": seconds(older_than)}

    async def delete(some: Sequence[int] | None) -> int:
        return len(await engine.execute("tasks.purge_dead", {**values, "ids": some}, patient=True))

    return await _in_slices(delete, ids, MOST_PURGED)


async def _in_slices(
    change: Callable[[Sequence[int] | None], Awaitable[int]], ids: Sequence[int] | None, most: int
) -> int:
    """Change ``most`` at a time, and none twice, though a job that is revived may soon be dead again; how many.

    Args:
        change: Changes those of these ids, or any ``most`` if it is given None; returns how many.
        ids: Which; None for all.
        most: How many at a time.
    """
    total = 0
    if ids is not None:
        chosen = list(dict.fromkeys(ids))
        for start in range(0, len(chosen), most):
            total += await change(chosen[start : start + most])
        return total
    while True:
        number = await change(None)
        total += number
        if number < most:
            return total
