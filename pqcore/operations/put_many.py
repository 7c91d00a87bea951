"""Putting many jobs, all or none, with several thousand rows in each statement."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, TypeAlias

from pqcore.argument_checks import check_items
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import InvalidCall, InvalidData, PayloadTooLarge
from pqcore.events import PutEvent
from pqcore.hook_dispatch import call_hook, run_wrapped
from pqcore.operations.atomic import atomic
from pqcore.operations.new_rows import chunks_of, rows_of_jobs
from pqcore.operations.put import NO_TIMES, Times, as_element, checked_options, is_binary, read_id, times_of
from pqcore.operations.put_each import put_rows
from pqcore.operations.put_refusals import not_stored, refused_rows
from pqcore.plugins import plugins
from pqcore.put_options import NewJob
from pqcore.serializers.plain_json import check_json
from pqcore.settings import QueueSettings
from pqcore.times import TimeSpec

_Chunk: TypeAlias = tuple[list[str], int]
"""Data in the form for `insert_many`, and the number of its rows."""
CHUNK_ROWS = 5_000
CHUNK_SIZE = 2**20
"""The largest number of rows, and of characters of data, in one statement of put_many.

Several copies of the text are in memory: the driver's, an adapted one, and the one being sent. With 8 MB, a row of 1 KB
took 20% longer.
"""
WHOLE_SIZE = 2**28
"""The largest number of characters in a single statement that cannot be split: the text is held in memory, and
PostgreSQL's own limit is 1 GB."""
# This encoder does not check for circular references: after any failure, the usual encoder encodes the data again and
# says what is wrong.
_encode_piece = json.JSONEncoder(allow_nan=False, check_circular=False).encode
PIECE_SIZE = 2**14
"""About how many characters are encoded at a time; only this much of the text is in memory twice."""


async def put_many(
    engine: Engine,
    queue: QueueSettings,
    items: Iterable[Any],
    schedule_at: TimeSpec,
    expected_at: TimeSpec,
    connection: object,
    options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Put many rows, all or none; return their ids in order.

    Args:
        engine: The engine.
        queue: The queue.
        items: The data of each row; or a `NewJob` for each row, whose options precede those of the call.
        schedule_at: See `Queue.put`.
        expected_at: See `Queue.put`.
        connection: See `Queue.put`.
        options: Those of `pqcore.operations.put.put`, without ``dedup``.
    """
    check_items(items)
    times = times_of(schedule_at, expected_at) or NO_TIMES
    if not plugins.has_impl("pqcore_around_put", "pqcore_job_put"):
        return await _put_many(engine, queue, items, times, connection, options or {})
    options = dict(options or {})
    event = PutEvent(queue.name, items, options.get("task"), dict(options.get("headers") or {}), many=True)
    with run_wrapped("pqcore_around_put", event):
        event.ids = await _put_many(engine, queue, items, times, connection, {**options, "headers": event.headers})
    await call_hook("pqcore_job_put", event, blocking=not engine.runtime.suspends)
    return event.ids


async def _put_many(
    engine: Engine,
    queue: QueueSettings,
    items: Iterable[Any],
    times: Times,
    connection: object,
    options: Mapping[str, Any],
) -> list[int]:
    chosen = checked_options(options)
    binary = is_binary(queue)
    common = {
        "q_name": queue.name,
        "serializer": queue.serializer_name,
        **chosen.values(),
        **times,
    }

    async def send(s: Session, chunk: _Chunk) -> list[int]:
        elements, number = chunk
        ids, _ = await insert_many(engine, s, common, elements, number, binary=binary)
        return list(ids)

    async def work(s: Session) -> list[int]:
        left = iter(items)
        head = list(islice(left, 1))
        if head and isinstance(head[0], NewJob):
            rows = rows_of_jobs(engine, queue, chain(head, left), times, options)
            return await put_rows(engine, s, chunks_of(rows, CHUNK_ROWS, CHUNK_SIZE), read_id, "put_many")
        ids: list[int] = []
        if connection is not None and not s.in_transaction():
            # The caller's connection is idle, and its driver may or may not begin a transaction. So all rows go into
            # one statement, which is atomic in either case.
            for everything in _chunks(queue, head, left, binary, whole=True):
                ids = await send(s, everything)
            return ids
        chunks = _chunks(queue, head, left, binary)
        first, second = next(chunks, None), next(chunks, None)
        if first is None:
            return ids
        if second is None:
            return await send(s, first)
        async with atomic(s):
            ids = await send(s, first)
            del first
            while second is not None:
                ids += await send(s, second)
                second = next(chunks, None)
        return ids

    return await engine.run(work, connection=connection)


def _chunks(
    queue: QueueSettings, piece: list[Any], left: Iterator[Any], binary: bool | None, *, whole: bool = False
) -> Iterator[_Chunk]:
    """Yield the encoded data in chunks; the first item comes from ``piece``, the other items from ``left``."""
    together = queue.encodes_as_is
    rows_in_all = size_in_all = 0
    chunk: list[str] = []
    rows = size = 0
    while piece:
        if together:
            text = _encode_together(queue, piece, rows_in_all)
            length = len(text)
        else:
            if isinstance(piece[0], NewJob):
                _refuse_new_jobs(piece, rows_in_all)
            encoded = queue.encode_row(piece[0])
            text = encoded.raw if binary is None else as_element(encoded)  # type: ignore[assignment]
            length = len(encoded.raw)
        chunk.append(text)
        rows, size = rows + len(piece), size + length
        rows_in_all, size_in_all = rows_in_all + len(piece), size_in_all + length
        if whole and size > WHOLE_SIZE:
            msg = (
                f"queue {queue.name!r}: outside a transaction of your connection put_many uses one statement, and the"
                f" first {rows} jobs have {size} characters, more than {WHOLE_SIZE}: begin a transaction, in which"
                " several statements put them, or put fewer jobs at a time"
            )
            raise PayloadTooLarge(msg)
        if not whole and (rows >= CHUNK_ROWS or size >= CHUNK_SIZE):
            yield chunk, rows
            chunk, rows, size = [], 0, 0
        most = min(PIECE_SIZE, CHUNK_SIZE // 64) * rows_in_all // size_in_all if together and size_in_all else 1
        piece = list(islice(left, max(min(most, CHUNK_ROWS - rows), 1)))
    if chunk:
        yield chunk, rows


def _refuse_new_jobs(piece: list[Any], before: int) -> None:
    """Raise if one of the items is a `NewJob`: the first item of the call was data, and a call cannot mix the two.

    Args:
        piece: The items.
        before: The number of items before them.

    Raises:
        InvalidCall: An item is a `NewJob`.
    """
    for place, item in enumerate(piece, before):
        if isinstance(item, NewJob):
            msg = f"item {place} of put_many is a NewJob, and item 0 is data; give either NewJob objects or data"
            raise InvalidCall(msg)


def _encode_together(queue: QueueSettings, piece: list[Any], before: int) -> str:
    """Return the data of several jobs as JSON, separated by commas; one call of the encoder saves a third of the time.

    Args:
        queue: The queue.
        piece: The data.
        before: The number of items before them.

    Raises:
        InvalidCall: An item is a `NewJob`.
        SerializationError, PayloadTooLarge: `QueueSettings.encode_row` raises this for the first faulty data.
    """
    try:
        text = _encode_piece(piece)[1:-1]
        check_json(piece, text)
        if len(text) <= queue.max_size:
            return text
    except Exception:  # noqa: BLE001, S110 - which of them it is, and why, is found out below
        pass
    _refuse_new_jobs(piece, before)
    return ",".join([str(queue.encode_row(item).data) for item in piece])


async def insert_many(
    engine: Engine,
    s: Session,
    common: Mapping[str, object],
    elements: Sequence[str],
    number: int,
    *,
    binary: bool | None,
) -> tuple[Sequence[int], float]:
    """Insert rows that have the same values except for their data.

    Args:
        engine: The engine.
        s: The session.
        common: The other values of the statement.
        elements: The JSON of the data; an element may hold several, separated by commas.
        number: The number of rows.
        binary: None if the elements are the data itself, known to be JSON; otherwise the elements are those of
            `as_element`, and this tells whether they hold bytes.

    Returns:
        The ids in order, and the time of the first row's put, as in `JobId`; the time of each later row is one
        microsecond after the time of the row before it.

    Raises:
        NotStored: A trigger dropped rows, or changed the values that distinguish the rows.
    """
    query = s.sql.put_many if binary is None else s.sql.put_many_encoded
    # pqcore can roll back only its own transaction; without one, the statement must fail if a trigger drops a row.
    fails = s.caller_owned or not s.in_transaction()
    pieces = [f"[{elements[0]}", *elements[1:]]  # a list, so that only join() copies the text
    pieces[-1] += "]"
    values = {**common, "items": ",".join(pieces), "binary": binary, "number": number, "fails": fails}
    try:
        [[first, put, ids, put_at]] = await s.execute(query, query.bind(values))
    except InvalidData as exc:
        if (refused := await refused_rows(engine, s, exc, "put_many")) is None:
            raise
        raise refused from exc
    if put < number:  # the error rolls these rows back, with the transaction or to a savepoint
        raise await not_stored(engine, s, "put_many")
    return range(first, first + number) if ids is None else list(map(int, ids)), put_at


def put_times(put_at: float, number: int) -> list[float]:
    """Return when each row was put, computed from the time that `insert_many` returned for the first row."""
    first = round(put_at * 1_000_000)
    return [(first + place) / 1_000_000 for place in range(number)]
