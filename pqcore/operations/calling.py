"""Putting several calls together: all, or none; and what follows when they are done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import Any

from pqcore.engine import Engine
from pqcore.errors import ConfigurationError
from pqcore.events import PutEvent, around, heard, tell
from pqcore.operations.putting import NO_TIMES, insert
from pqcore.operations.stored import StoredPut
from pqcore.operations.transactions import atomic
from pqcore.sessions import CoreSession
from pqcore.settings import QueueSettings


async def put_all(engine: Engine, calls: Sequence[StoredPut], connection: object) -> list[int]:
    """Put calls, all or none; the jobs' ids in order."""
    if not heard("pqcore_around_put", "pqcore_job_put"):
        return await _put_all(engine, calls, connection)
    events = _events(calls)
    with _around(events):
        marked = [call.with_headers(events[call.queue].headers) for call in calls]
        ids = await _put_all(engine, marked, connection)
        _tell_ids(events, calls, ids)
    for event in events.values():
        await tell("pqcore_job_put", event, blocking=not engine.runtime.suspends)
    return ids


async def _put_all(engine: Engine, calls: Sequence[StoredPut], connection: object) -> list[int]:
    async def work(s: CoreSession) -> list[int]:
        async with atomic(s):
            return await _insert_all(engine, s, calls)

    return await engine.run(work, connection=connection)


def _events(calls: Sequence[StoredPut]) -> dict[str, PutEvent]:
    """What plugins are told of calls put together, by queue."""
    events: dict[str, PutEvent] = {}
    for call in calls:
        event = events.setdefault(call.queue, PutEvent(call.queue, [], None, {}, many=len(calls) > 1))
        event.data.append(call)
    return events


@contextmanager
def _around(events: dict[str, PutEvent]) -> Iterator[None]:
    with ExitStack() as stack:
        for event in events.values():
            stack.enter_context(around("pqcore_around_put", event))
        yield


def _tell_ids(events: dict[str, PutEvent], calls: Sequence[StoredPut], ids: Sequence[int]) -> None:
    for call, job_id in zip(calls, ids, strict=True):
        events[call.queue].ids.append(job_id)


async def put_batch(
    engine: Engine, queue: QueueSettings, calls: Sequence[StoredPut], callback: StoredPut | None, connection: object
) -> tuple[int, list[int]]:
    """Put calls, and another once all of them have ended; the batch's id, and the jobs' in order."""
    if not calls:
        msg = "a batch needs at least one call"
        raise ConfigurationError(msg)
    if not heard("pqcore_around_put", "pqcore_job_put"):
        return await _put_batch(engine, queue, calls, callback, connection)
    events = _events(calls)
    with _around(events):
        marked = [call.with_headers(events[call.queue].headers) for call in calls]
        after = None if callback is None else callback.with_headers(next(iter(events.values())).headers)
        batch, ids = await _put_batch(engine, queue, marked, after, connection)
        _tell_ids(events, calls, ids)
    for event in events.values():
        await tell("pqcore_job_put", event, blocking=not engine.runtime.suspends)
    return batch, ids


async def _put_batch(
    engine: Engine, queue: QueueSettings, calls: Sequence[StoredPut], callback: StoredPut | None, connection: object
) -> tuple[int, list[int]]:
    async def work(s: CoreSession) -> tuple[int, list[int]]:
        after = None if callback is None else json.dumps(callback.to_json())
        values = {"q_name": queue.name, "total": len(calls), "callback": after}
        async with atomic(s):
            [[batch]] = await s.execute(s.sql.tasks.open_batch, s.sql.tasks.open_batch.bind(values))
            ids = await _insert_all(engine, s, [_of_batch(call, int(batch)) for call in calls])
        return int(batch), ids

    return await engine.run(work, connection=connection)


def _of_batch(call: StoredPut, batch: int) -> StoredPut:
    # In a chain each is told of the batch, so that the last, or one that fails, counts.
    headers = {**call.headers, "batch": batch}
    if "then" in headers:
        headers["then"] = [_of_batch(StoredPut.from_json(link), batch).to_json() for link in headers["then"]]
    return StoredPut(call.queue, call.serializer, call.data, call.payload, headers, call.delay)


async def _insert_all(engine: Engine, s: CoreSession, calls: Sequence[StoredPut]) -> list[int]:
    ids: list[int] = []
    rows = [call.values() for call in calls]

    def common(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["q_name"], row["serializer"], row["headers"], row["group_key"], row["schedule_in"]

    for _, alike in groupby(rows, common):
        same = list(alike)
        if len(same) == 1:
            ids.append(await insert(s, same[0], None, str(engine.names)))
            continue
        values = {
            **NO_TIMES,
            **same[0],
            "data": [row["data"] for row in same],
            "payload": [row["payload"] for row in same],
        }
        found = await s.execute(s.sql.put_many, s.sql.put_many.bind(values))
        ids += sorted(row[0] for row in found)  # drawn in order, whatever order they are returned in
    return ids


def chained(calls: Sequence[StoredPut]) -> StoredPut:
    """The first of a chain, which carries the others."""
    if not calls:
        msg = "a chain needs at least one call"
        raise ConfigurationError(msg)
    first, *others = calls
    if not others:
        return first
    headers = {**first.headers, "then": [call.to_json() for call in others]}
    return StoredPut(first.queue, first.serializer, first.data, first.payload, headers, first.delay)
