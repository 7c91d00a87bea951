"""What a queue does, written once.

Each operation is a coroutine over an `Engine` and a queue's settings.  It does
no I/O of its own: the engine's session does.  The async face awaits it, the
blocking face steps it (`pqcore.runtime.drive`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from pqcore import schema
from pqcore.backend import Row
from pqcore.dialect import Finish
from pqcore.engine import Engine
from pqcore.errors import ConfigurationError, JobNotFound, LeaseLost
from pqcore.identifiers import channel
from pqcore.job import BaseJob
from pqcore.sessions import CoreSession
from pqcore.settings import QueueSettings
from pqcore.timespec import TimeSpec, parse, seconds

J = TypeVar("J", bound=BaseJob)

CHUNK_ROWS = 5_000
CHUNK_SIZE = 8 * 2**20
"""put_many sends a statement for so many rows, or characters, whichever comes first."""


@dataclass(frozen=True)
class QueueStats:
    """What waits in a queue.

    Attributes:
        ready: Jobs that a get would find.
        scheduled: Jobs that are not due yet.
        leased: Jobs held under a lease that has not run out.
        oldest: Seconds since the oldest ready job became due; None without one.
    """

    ready: int
    scheduled: int
    leased: int
    oldest: float | None


# Putting


async def put(
    engine: Engine, queue: QueueSettings, data: Any, schedule_at: TimeSpec, expected_at: TimeSpec, connection: object
) -> int:
    """Put one row; its id."""
    times = _times(schedule_at, expected_at)
    encoded = queue.encode_row(data)
    values: dict[str, object] = {
        "q_name": queue.name,
        "serializer": queue.serializer_name,
        "data": encoded.data,
        "payload": encoded.payload,
    }
    if times is not None:
        values.update(times)

    async def work(s: CoreSession) -> int:
        query = s.sql.put if times is None else s.sql.put_timed
        rows = await s.execute(query, query.bind(values))
        return int(rows[0][0])

    return await engine.run(work, connection=connection)


async def put_many(
    engine: Engine,
    queue: QueueSettings,
    items: Iterable[Any],
    schedule_at: TimeSpec,
    expected_at: TimeSpec,
    connection: object,
) -> list[int]:
    """Put many rows, all or none; their ids in order."""
    times = _times(schedule_at, expected_at) or _NO_TIMES
    common = {"q_name": queue.name, "serializer": queue.serializer_name, **times}

    async def send(s: CoreSession, chunk: _Chunk) -> list[int]:
        query = s.sql.put_many
        rows = await s.execute(query, query.bind({**common, "data": chunk[0], "payload": chunk[1]}))
        return sorted(row[0] for row in rows)  # drawn in order, whatever order they are returned in

    async def work(s: CoreSession) -> list[int]:
        ids: list[int] = []
        if connection is not None and not s.in_transaction():
            # The caller's connection is idle: whether its driver begins is its own
            # affair, so all goes into one statement, which is atomic either way.
            for everything in _chunks(queue, items, whole=True):
                ids = await send(s, everything)
            return ids
        chunks = _chunks(queue, items)
        first, second = next(chunks, None), next(chunks, None)
        if first is None:
            return ids
        begun = second is not None and not s.in_transaction()
        if begun:
            await s.begin()
        try:
            ids = await send(s, first)
            del first
            while second is not None:
                ids += await send(s, second)
                second = next(chunks, None)
        except BaseException:
            if begun and s.usable():
                await s.rollback()
            raise
        if begun:
            await s.commit()
        return ids

    return await engine.run(work, connection=connection)


_Chunk = tuple[list[str | None], list[bytes | None]]
_NO_TIMES: dict[str, datetime | float | None] = {
    "schedule_at": None,
    "schedule_in": None,
    "expected_at": None,
    "expected_in": None,
}


def _chunks(queue: QueueSettings, items: Iterable[Any], *, whole: bool = False) -> Iterator[_Chunk]:
    texts: list[str | None] = []
    payloads: list[bytes | None] = []
    size = 0
    for item in items:
        encoded = queue.encode_row(item)
        texts.append(encoded.data)
        payloads.append(encoded.payload)
        size += len(encoded.raw)
        if not whole and (len(texts) >= CHUNK_ROWS or size >= CHUNK_SIZE):
            yield texts, payloads
            texts, payloads, size = [], [], 0
    if texts:
        yield texts, payloads


def _times(schedule_at: TimeSpec, expected_at: TimeSpec) -> dict[str, datetime | float | None] | None:
    if schedule_at is None and expected_at is None:
        return None
    schedule, expected = parse(schedule_at), parse(expected_at)
    return {
        "schedule_at": schedule if isinstance(schedule, datetime) else None,
        "schedule_in": schedule.total_seconds() if isinstance(schedule, timedelta) else None,
        "expected_at": expected if isinstance(expected, datetime) else None,
        "expected_in": expected.total_seconds() if isinstance(expected, timedelta) else None,
    }


# Taking


async def get(
    engine: Engine, queue: QueueSettings, n: int, *, block: bool, timeout: Any, lease: float | None = None
) -> Sequence[Row]:
    """Take up to ``n`` rows, waiting for the first.

    It looks, and if there is nothing waits for the earliest of: a notification,
    the next time that a row comes due, the poll interval, its timeout; and looks again.
    """
    _check_number(n)
    left = seconds(queue.timeout if timeout is None else timeout)
    deadline = time.monotonic() + left
    topic = channel(queue.name)
    while True:
        ticket = engine.listener.ticket(topic)  # before the look, so that what comes after it counts
        rows, wake_in = await _take(engine, queue, n, lease)
        if rows or not block:
            return rows
        left = deadline - time.monotonic()
        if left <= 0:
            return rows
        pause = min(left, queue.poll_interval, left if wake_in is None else max(wake_in, 0.001))
        await engine.wait(topic, ticket, pause)


async def _take(
    engine: Engine, queue: QueueSettings, n: int, lease: float | None
) -> tuple[Sequence[Row], float | None]:
    """Take up to ``n`` rows; without one, the seconds until it is worth another look (None: unknown)."""
    finish: Finish = queue.retention if lease is None else "lease"
    values = {"q_name": queue.name, "lease": lease}

    async def work(s: CoreSession) -> tuple[Sequence[Row], float | None]:
        query = s.sql.take("ordered", finish, n)
        rows = await s.execute(query, query.bind(values))
        if rows:
            return rows, None
        [[something_out, wake_in]] = await s.execute(s.sql.why_empty, s.sql.why_empty.bind(values))
        if something_out:
            for query in (s.sql.take("merged", finish, n), s.sql.take("unguarded", finish, n)):
                rows = await s.execute(query, query.bind(values))
                if rows:
                    break
        return rows, wake_in

    async def undo(result: tuple[Sequence[Row], float | None]) -> None:
        if lease is None:
            await _restore(engine, queue, result[0])
        else:
            for row in result[0]:
                await _give_back(engine, queue, row[0], row[4], None)

    rows, wake_in = await engine.run(work, protect=False, undo=undo)
    return (_in_order(rows) if len(rows) > 1 else rows), wake_in


def _in_order(rows: Sequence[Row]) -> list[Row]:
    # RETURNING promises no order
    def key(row: Row) -> tuple[bool, datetime, datetime, int]:
        due = row[5] if row[6] is None else row[6]
        return row[7] is None, due if row[7] is None else row[7], due, row[0]

    return sorted(rows, key=key)


async def _restore(engine: Engine, queue: QueueSettings, rows: Sequence[Row]) -> None:
    """Put rows back that were taken for somebody who is no longer there to take them."""

    async def work(s: CoreSession) -> None:
        query = s.sql.restore[queue.retention]
        for row in rows:
            values = {"id": row[0], "q_name": queue.name, "data": row[1], "payload": row[2], "serializer": row[3]}
            values["channel"] = channel(queue.name)
            times = zip(("enqueued_at", "schedule_at", "expected_at"), map(_from_utc, row[5:8]), strict=True)
            await s.execute(query, query.bind({**values, "attempts": row[4] - 1, **dict(times)}))

    await engine.run(work)


def _from_utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=timezone.utc)


# Leases


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
    if not await _give_back(engine, queue, job.id, job.attempts, pause):
        raise lease_lost(queue, [job])


async def _give_back(engine: Engine, queue: QueueSettings, job: int, token: int, delay: float | None) -> bool:
    values = {"id": job, "token": token, "delay": delay, "channel": channel(queue.name)}
    return bool(await _execute(engine, "nack", values))


async def extend(engine: Engine, queue: QueueSettings, job: BaseJob, timeout: str | float | timedelta) -> None:
    """Let a lease end later."""
    values = {"id": job.id, "token": job.attempts, "lease": lease_time(timeout)}
    if not await _execute(engine, "extend", values):
        raise lease_lost(queue, [job])


def lease_lost(queue: QueueSettings, jobs: Sequence[BaseJob]) -> LeaseLost:
    """The error that says so."""
    ids = ", ".join(str(job.id) for job in jobs)
    msg = (
        f"queue {queue.name!r}: the lease of job {ids} was lost: it ran out and the job was given to another, "
        "or it was given back, cancelled or finished before; extend leases in time, or take longer ones"
    )
    return LeaseLost(msg)


# Single rows


async def update(engine: Engine, queue: QueueSettings, job_id: int, data: Any) -> int:
    """Replace a row's data; the size of what is stored."""
    encoded = queue.encode_row(data)
    values = {
        "id": job_id,
        "q_name": queue.name,
        "data": encoded.data,
        "payload": encoded.payload,
        "serializer": queue.serializer_name,
    }
    if not await _execute(engine, "update", values):
        msg = f"queue {queue.name!r} has no row {job_id} to update"
        if queue.retention != "keep":
            msg += f": with retention={queue.retention!r} a row leaves the table when it is taken"
        raise JobNotFound(msg)
    return len(encoded.raw)


async def cancel(engine: Engine, queue: QueueSettings, job_id: int) -> bool:
    """Delete a waiting row; whether there was one."""
    return bool(await _execute(engine, "cancel", {"id": job_id, "q_name": queue.name}))


async def _execute(
    engine: Engine, statement: str, values: Mapping[str, object], *, protect: bool = True
) -> Sequence[Row]:
    async def work(s: CoreSession) -> Sequence[Row]:
        query = getattr(s.sql, statement)
        return await s.execute(query, query.bind(values))

    return await engine.run(work, protect=protect)


# The whole queue


async def count(engine: Engine, queue: QueueSettings) -> int:
    """The number of rows due."""
    [[number]] = await _execute(engine, "count", {"q_name": queue.name}, protect=False)
    return int(number)


async def clear(engine: Engine, queue: QueueSettings) -> None:
    """Delete a queue's rows."""
    await _execute(engine, "clear", {"q_name": queue.name})


async def peek(engine: Engine, queue: QueueSettings, n: int) -> Sequence[Row]:
    """Read the next rows due."""
    _check_number(n)

    async def work(s: CoreSession) -> Sequence[Row]:
        query = s.sql.peek(n)
        return await s.execute(query, query.bind({"q_name": queue.name}))

    return await engine.run(work, protect=False)


async def stats(engine: Engine, name: str | None) -> dict[str, QueueStats]:
    """Count what waits, a queue; of one queue if it is named."""
    rows = await _execute(engine, "stats", {"q_name": name}, protect=False)
    return {row[0]: QueueStats(*row[1:5]) for row in rows}


async def purge(engine: Engine, queue: QueueSettings, older_than: str | float | timedelta) -> int:
    """Delete finished rows, a slice at a time; how many."""
    values: dict[str, object] = {"q_name": queue.name, "age": seconds(older_than)}
    removed, after = 0, 0
    while True:
        [[last, gone]] = await _execute(engine, "purge_kept", {**values, "after": after})
        removed += int(gone)
        if last is None:
            break
        after = last
    while True:
        [[_, gone]] = await _execute(engine, "purge_archive", values)
        removed += int(gone)
        if not gone:
            return removed


async def create(engine: Engine) -> None:
    """Make the table, or migrate it."""

    async def work(s: CoreSession) -> None:
        await schema.create(s, engine.names, engine.runtime.sleep)

    await engine.migrate(work)


def _check_number(n: int) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= 100_000:
        msg = f"n is {n!r}; give a number of jobs from 1 to 100,000"
        raise ConfigurationError(msg)
