"""Operations that change single rows, count rows and delete rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from pqcore import schema
from pqcore.argument_checks import check_job_id
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import JobNotFound
from pqcore.headers import read_headers
from pqcore.lanes import has_lane
from pqcore.operations import cancellation, list_jobs
from pqcore.operations.atomic import atomic
from pqcore.operations.batch_counts import Membership, count_down
from pqcore.operations.expiry import Time, set_first_expiry
from pqcore.operations.follow_ups import has_follow_ups
from pqcore.operations.results import put_time
from pqcore.schema import sequences
from pqcore.settings import KEEP_DEAD, KEEP_FINISHED, QueueSettings
from pqcore.sql.identifiers import control_channel
from pqcore.times import seconds


@dataclass(frozen=True)
class QueueStats:
    """The number of waiting jobs in a queue, by state.

    Attributes:
        ready: The number of jobs that a get would find.
        scheduled: The number of jobs that are not due yet.
        leased: The number of jobs under a lease that has not run out.
        oldest: Seconds since the oldest ready job became due; None if no job is ready.
        parked: The number of jobs that wait for a place under a concurrency limit, or for their turn in a group.
        stale: On a standby, how many seconds these numbers may be behind the primary: the time since the last replayed
            commit, which also grows while nothing is committed. None on a primary.
        blocked: The number of scheduled jobs that wait for other jobs, or are scheduled for infinity.
    """

    ready: int
    scheduled: int
    leased: int
    oldest: float | None
    parked: int = 0
    stale: float | None = None
    blocked: int = 0


@dataclass(frozen=True)
class QueueFigures(QueueStats):
    """The number of waiting jobs and of dead letters in a queue.

    Attributes:
        dead: The number of dead letters.
    """

    dead: int = 0


async def update(engine: Engine, queue: QueueSettings, job_id: int, data: Any) -> int:
    """Replace a row's data, and return the size of the stored data."""
    encoded = queue.encode_row(data)
    values = {
        "id": check_job_id(job_id),
        "q_name": queue.name,
        "data": encoded.data,
        "payload": encoded.payload,
        "serializer": queue.serializer_name,
    }
    if not await engine.execute("update", values):
        msg = f"queue {queue.name!r} has no row {job_id} to update"
        if queue.retention != "keep":
            msg += f": with retention={queue.retention!r} a row leaves the table when it is taken"
        raise JobNotFound(msg)
    return len(encoded.raw)


async def cancel(engine: Engine, queue: QueueSettings, job_id: int, *, running: bool) -> bool:
    """Delete a waiting row or, with ``running``, ask a running job to stop; return False if neither was possible."""
    number, put_at = check_job_id(job_id), put_time(engine, job_id)

    async def work(s: Session) -> bool:
        values = {"id": number, "q_name": queue.name, "channel": control_channel(queue.name), "put_at": put_at}
        find, stop = s.sql.tasks.find_headers, s.sql.tasks.request_stop
        found = await s.execute(find, find.bind(values))
        if not found:
            return False
        [[headers, awaited]] = found
        if awaited or has_follow_ups(headers) or has_lane(headers):
            cancelled = await cancellation.cancel(engine, queue, s, number)
        else:
            cancelled = bool(await s.execute(s.sql.cancel, s.sql.cancel.bind(values)))
        return cancelled or (running and bool(await s.execute(stop, stop.bind(values))))

    return await engine.run(work)


async def count(engine: Engine, queue: QueueSettings) -> int:
    """Return the number of due rows."""
    [[number]] = await engine.execute("count", {"q_name": queue.name}, protect=False, patient=True)
    return int(number)


async def clear(engine: Engine, queue: QueueSettings) -> None:
    """Delete a queue's rows. If an unfinished job belongs to a batch, the batch counts the job as failed."""

    async def work(s: Session) -> None:
        async with atomic(s):
            rows = await s.execute(s.sql.clear, s.sql.clear.bind({"q_name": queue.name}))
            members = (Membership.of(read_headers(headers)[0]) for (headers,) in rows)
            await count_down(engine, queue, s, [(member, False) for member in members if member is not None])

    await engine.run(work, patient=True)


async def stats(engine: Engine, name: str | None) -> dict[str, QueueStats]:
    """Count the waiting jobs of each queue, or of one named queue."""
    found, nothing = await count_waiting(engine, name)
    return found if name is None else {name: found.get(name, nothing)}


async def count_waiting(engine: Engine, name: str | None) -> tuple[dict[str, QueueStats], QueueStats]:
    """Count the waiting jobs by queue, including queues in which no job waits."""
    statement = "stats_all" if name is None else "stats"
    rows = await engine.execute(statement, {"q_name": name}, protect=False, patient=True)
    stale = next((age for name, _, _, _, age, *_ in rows if name is None), None)
    nothing = QueueStats(0, 0, 0, None, stale=stale)
    found = {
        name: QueueStats(ready, scheduled, leased, oldest, parked, stale, blocked)
        for name, ready, scheduled, leased, oldest, parked, blocked in rows
        if name is not None
    }
    return found, nothing


async def count_queues(engine: Engine, queue: QueueSettings | None = None) -> dict[str, QueueFigures]:
    """Count the waiting jobs and dead letters of each queue that has such jobs, sorted by the queue's name.

    Args:
        engine: The engine.
        queue: Count only this queue, and return it even if it is empty; None for all queues.
    """
    name = None if queue is None else queue.name
    waiting, nothing = await count_waiting(engine, name)
    dead = await list_jobs.count_dead_by_queue(engine)
    names = sorted(waiting.keys() | dead.keys()) if name is None else [name]
    return {each: QueueFigures(**asdict(waiting.get(each, nothing)), dead=dead.get(each, 0)) for each in names}


async def purge(engine: Engine, queue: QueueSettings, older_than: str | float | timedelta) -> int:
    """Delete finished rows, a slice at a time; return their number."""
    values: dict[str, object] = {"q_name": queue.name, "age": seconds(older_than)}
    removed = await run_in_slices(engine, "purge_kept", values)
    while True:
        [[_, gone]] = await engine.execute("purge_archive", values, patient=True)
        removed += int(gone)
        if not gone:
            return removed


async def run_in_slices(engine: Engine, statement: str, values: Mapping[str, object]) -> int:
    """Run a statement slice by slice; each slice begins after the previous one. Return how many rows changed."""
    changed, after = 0, 0
    while True:
        [[last, number]] = await engine.execute(statement, {**values, "after": after}, patient=True)
        changed += int(number)
        if last is None:
            return changed
        after = last


async def create(
    engine: Engine,
    partitions: int | None = None,
    *,
    set_sequences: bool = False,
    keep_finished: Time = KEEP_FINISHED,
    keep_dead: Time = KEEP_DEAD,
) -> Sequence[sequences.IdSequence]:
    """Make the table, or migrate it.

    Args:
        engine: The engine.
        partitions: The number of partitions of a new table.
        set_sequences: Whether to advance a sequence beyond the highest existing id, if the sequence is behind this id.
        keep_finished: How long finished rows are kept, if the table is new.
        keep_dead: How long dead letters are kept, if the table is new.

    Returns:
        The sequences whose values were below existing ids. Each sequence is described as before the call.
    """
    for period in (keep_finished, keep_dead):
        if period is not None:
            seconds(period)

    async def work(s: Session) -> Sequence[sequences.IdSequence]:
        if await schema.create(s, engine.names, engine.runtime.sleep, partitions) is None:
            await set_first_expiry(s, keep_finished, keep_dead)
        return await sequences.advance(s, engine.names, engine.runtime.sleep) if set_sequences else ()

    return await engine.migrate(work, unlimited=True)
