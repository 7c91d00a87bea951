"""Putting several calls in one transaction, and a call that follows when their jobs have ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError
from pqcore.events import PutEvent
from pqcore.hook_dispatch import call_hook, run_wrapped
from pqcore.job import Identity
from pqcore.operations.atomic import atomic
from pqcore.operations.batch_counts import open_batch
from pqcore.operations.deferred_put import DirectPut, StoredPut
from pqcore.operations.new_rows import NewRow, chunks_of
from pqcore.operations.put import insert, read_identity
from pqcore.operations.put_each import put_rows
from pqcore.operations.put_many import CHUNK_ROWS, CHUNK_SIZE, insert_many, put_times
from pqcore.plugins import plugins
from pqcore.serializers import json_encode
from pqcore.settings import QueueSettings


async def put_all(
    engine: Engine, calls: Sequence[StoredPut], connection: object, doing: str = "put_calls"
) -> list[Identity]:
    """Put calls, all or none; return the ids of the jobs in order.

    Args:
        engine: The engine.
        calls: The calls.
        connection: See `Queue.put`.
        doing: The name of the method that puts them, for errors.
    """

    async def work(s: Session, marked: Sequence[StoredPut], _added: dict[str, Any]) -> list[Identity]:
        return await _insert_all(engine, s, marked, doing)

    return await _put_together(engine, calls, work, connection)


async def put_batch(
    engine: Engine, queue: QueueSettings, calls: Sequence[StoredPut], callback: StoredPut | None, connection: object
) -> tuple[int, list[Identity]]:
    """Put calls, and another call after all of them have ended.

    Return the id of the batch, and the ids of the jobs in order.
    """
    if not calls:
        msg = "a batch needs at least one call"
        raise ConfigurationError(msg)
    batch = 0

    async def work(s: Session, marked: Sequence[StoredPut], added: dict[str, Any]) -> list[Identity]:
        nonlocal batch
        after = None if callback is None else callback.with_headers(added)
        membership = await open_batch(engine, s, queue, len(marked), after)
        batch = membership.batch
        return await _insert_all(engine, s, [membership.mark(call) for call in marked], "batch")

    ids = await _put_together(engine, calls, work, connection)
    return batch, ids


async def _put_together(
    engine: Engine,
    calls: Sequence[StoredPut],
    work: Callable[[Session, Sequence[StoredPut], dict[str, Any]], Awaitable[list[Identity]]],
    connection: object,
) -> list[Identity]:
    """Put calls in one transaction, and report them to plugins.

    Args:
        engine: The engine.
        calls: The calls.
        work: The function that puts the calls. Its arguments are the session, the calls with the headers that plugins
            added, and the headers that plugins added for the first queue.
        connection: A connection whose open transaction is used; see `Queue.put`.
    """

    async def put(marked: Sequence[StoredPut], added: dict[str, Any]) -> list[Identity]:
        async def together(s: Session) -> list[Identity]:
            async with atomic(s):
                return await work(s, marked, added)

        return await engine.run(together, connection=connection)

    if not plugins.has_impl("pqcore_around_put", "pqcore_job_put"):
        return await put(calls, {})
    events = _events(calls)
    with _around(events):
        marked = [call.with_headers(events[call.queue].headers) for call in calls]
        ids = await put(marked, next((event.headers for event in events.values()), {}))
        for call, (job_id, _) in zip(calls, ids, strict=True):
            events[call.queue].ids.append(job_id)
    for event in events.values():
        await call_hook("pqcore_job_put", event, blocking=not engine.runtime.suspends)
    return ids


def _events(calls: Sequence[StoredPut]) -> dict[str, PutEvent]:
    """Return one event for each queue of the calls; plugins receive these events."""
    events: dict[str, PutEvent] = {}
    for call in calls:
        event = events.setdefault(call.queue, PutEvent(call.queue, [], None, {}, many=len(calls) > 1))
        event.data.append(call)
    return events


@contextmanager
def _around(events: dict[str, PutEvent]) -> Iterator[None]:
    with ExitStack() as stack:
        for event in events.values():
            stack.enter_context(run_wrapped("pqcore_around_put", event))
        yield


async def _insert_all(engine: Engine, s: Session, calls: Sequence[StoredPut], doing: str) -> list[Identity]:
    if not calls:
        return []
    rows: list[dict[str, Any]] = [call.columns() for call in calls]
    keys = [call.dedup if isinstance(call, DirectPut) else None for call in calls]
    behind = [call.behind if isinstance(call, DirectPut) else None for call in calls]
    if len(rows) == 1 and behind == [None]:
        return [read_identity(await insert(engine, s, calls[0].values(), keys[0]))]
    common = _common(rows[0])
    if any(keys) or any(behind) or any(_common(row) != common for row in rows):
        new = map(NewRow.of, count(), rows, keys, behind)
        return await put_rows(engine, s, chunks_of(new, CHUNK_ROWS, CHUNK_SIZE), read_identity, doing)
    elements = [json_encode(row["data"]) if row["payload"] is None else f'"{row["payload"]}"' for row in rows]
    binary = rows[0]["payload"] is not None
    numbers, put_at = await insert_many(engine, s, rows[0], elements, len(rows), binary=binary)
    return list(zip(numbers, put_times(put_at, len(rows)), strict=True))


def _common(row: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a row without its data; one `insert_many` can put only rows that agree in these values."""
    return {**row, "data": None, "payload": row["payload"] is None}


def chain_calls(first: DirectPut, others: Sequence[StoredPut]) -> DirectPut:
    """Return the first call of a chain, with the other calls in its headers."""
    if not others:
        return first
    return replace(first, headers={**first.headers, "then": [call.to_json() for call in others]})
