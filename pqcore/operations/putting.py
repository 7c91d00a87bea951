"""Putting jobs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from pqcore.engine import Engine
from pqcore.sessions import CoreSession
from pqcore.settings import QueueSettings
from pqcore.timespec import TimeSpec, parse

CHUNK_ROWS = 5_000
CHUNK_SIZE = 8 * 2**20
"""put_many sends a statement for so many rows, or characters, whichever comes first."""


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
