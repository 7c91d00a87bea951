"""Dead letters: making them from jobs that a consumer gives up, reading them, reviving them, and deleting them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

from pqcore.argument_checks import check_job_id, check_job_ids
from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError, DeserializationError, JobNotFound, Unreadable
from pqcore.job import BaseJob
from pqcore.operations.atomic import atomic, with_free_ids
from pqcore.operations.attempt_values import attempt_values
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
"""The largest numbers of dead letters that one statement handles; they match the limits in
`pqcore.sql.task_statements`."""
REASONS = ("failed", "crashed", "expired", "invalid", "unreadable", "parent")
"""The reasons of dead letters."""


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
        engine: The engine.
        queue: The queue.
        job: The job, as it was taken.
        error: The cause.
        connection: A connection whose open transaction is used; see `Queue.put`.
        owed: Whether the follow-ups of a job taken with `get` have yet to happen; None if they happened when the job
            was taken.

    Raises:
        ConfigurationError: ``error`` is neither an exception nor text.
        JobNotFound: The job was taken with `get`, and its row has changed since.
        LeaseLost: The lease ran out, and another consumer got the job.
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
        "error": error_text(outcome.stored_error),
        "reason": outcome.reason,
        **attempt_values(outcome),
    }
    retention = job.settings.retention  # the retention that applied when the job's row was finished
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
    """Return the reason to store in a dead letter whose job died of this error."""
    if isinstance(error, Unreadable):
        return "unreadable"
    return "invalid" if isinstance(error, DeserializationError) else "failed"


async def list_latest(engine: Engine, queue: QueueSettings, n: int) -> list[DeadLetterRow]:
    """Return the rows of the latest ``n`` dead letters."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        msg = f"n is {n!r}; give a number of dead letters, at least 1"
        raise ConfigurationError(msg)
    rows = await engine.execute("tasks.dead_letters", {"q_name": queue.name, "n": n}, protect=False)
    return list(map(DeadLetterRow.of, rows))


async def find(engine: Engine, queue: QueueSettings, job_id: int) -> DeadLetterRow:
    """Return the row of one dead letter."""
    values = {"q_name": queue.name, "id": check_job_id(job_id)}
    rows = await engine.execute("tasks.dead_letter", values, protect=False)
    if not rows:
        msg = f"queue {queue.name!r} has no dead letter {job_id}"
        raise JobNotFound(msg)
    return DeadLetterRow.of(rows[0])


async def count(engine: Engine, queue: QueueSettings, reason: str | None = None) -> int:
    """Return the number of dead letters with one reason, or of all dead letters."""
    values = {"q_name": queue.name, "reason": _check_reason(reason)}
    [[number]] = await engine.execute("tasks.count_dead", values, protect=False)
    return int(number)


def _check_reason(reason: str | None) -> str | None:
    if reason is not None and reason not in REASONS:
        msg = f"{reason!r} is not a reason of dead letters; choose one of {', '.join(REASONS)}"
        raise ConfigurationError(msg)
    return reason


async def revive(engine: Engine, queue: QueueSettings, ids: Sequence[int] | None, reason: str | None = None) -> int:
    """Turn dead letters into jobs again, due immediately and without failures; return their number.

    Args:
        engine: The engine.
        queue: The queue.
        ids: The ids of the dead letters; None for all.
        reason: Only dead letters with this reason.

    Raises:
        ConfigurationError: The reason is unknown.
        NotStored: A trigger left a job out; nothing was changed.
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
    """Delete dead letters; return their number."""
    values: dict[str, object] = {"q_name": queue.name, "age": seconds(older_than)}

    async def delete(some: Sequence[int] | None) -> int:
        return len(await engine.execute("tasks.purge_dead", {**values, "ids": some}, patient=True))

    return await _in_slices(delete, ids, MOST_PURGED)


async def _in_slices(
    change: Callable[[Sequence[int] | None], Awaitable[int]], ids: Sequence[int] | None, most: int
) -> int:
    """Change ``most`` dead letters at a time; change none twice, even if a revived job dies again meanwhile.

    Return the number of changed dead letters.

    Args:
        change: A function that changes the dead letters with the given ids; for None, it changes any ``most`` dead
            letters. It returns the number of dead letters that it changed.
        ids: The ids; None for all.
        most: The largest number of dead letters in one statement.
    """
    total = 0
    if ids is not None:
        chosen = check_job_ids(ids)
        for start in range(0, len(chosen), most):
            total += await change(chosen[start : start + most])
        return total
    while True:
        number = await change(None)
        total += number
        if number < most:
            return total
