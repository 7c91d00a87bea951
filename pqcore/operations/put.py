"""Putting jobs."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, TypeAlias, TypeVar

from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import DuplicateJob, InvalidData, NotStored, PayloadTooLarge, TransientError
from pqcore.events import PutEvent
from pqcore.hook_dispatch import call_hook, run_wrapped
from pqcore.job import Identity
from pqcore.operations.atomic import atomic
from pqcore.operations.put_refusals import find_causes, not_stored
from pqcore.plugins import plugins
from pqcore.put_options import Dedup, PutOptions, put_options
from pqcore.serializers import json_encode
from pqcore.serializers.plain_json import check_json
from pqcore.settings import Encoded, QueueSettings
from pqcore.sql.identifiers import channel
from pqcore.times import TimeSpec, parse

Times: TypeAlias = dict[str, datetime | float | None]
T = TypeVar("T")
_Chunk: TypeAlias = tuple[list[str], int]
"""Data as `insert_many` takes it, and how many rows that is."""
NO_TIMES: Times = {"schedule_at": None, "schedule_in": None, "expected_at": None, "expected_in": None}
_DIVISION_BY_ZERO = "22012"
_NO_OPTIONS = PutOptions(None, None, None)

CHUNK_ROWS = 5_000
CHUNK_SIZE = 8 * 2**20
"""put_many sends a statement for so many rows, or characters, whichever comes first."""
WHOLE_SIZE = 2**28
"""Characters at most of what has to be a single statement: it is held in memory, and PostgreSQL's own limit is 1 GB."""
# Looks for no circular references: whatever it fails at is encoded again, by that which says what is wrong.
_encode_piece = json.JSONEncoder(allow_nan=False, check_circular=False).encode
PIECE_SIZE = 2**14
"""Characters, about, that are encoded at a time: of what is being sent, no more than this is held twice."""


def put(
    engine: Engine,
    queue: QueueSettings,
    data: Any,
    schedule_at: TimeSpec,
    expected_at: TimeSpec,
    connection: object,
    options: Mapping[str, Any] | None = None,
) -> Coroutine[Any, Any, int]:
    """Put one row; its id.

    Args:
        engine: Where.
        queue: Into which queue.
        data: What.
        schedule_at: As for `Queue.put`.
        expected_at: As for `Queue.put`.
        connection: As for `Queue.put`.
        options: ``headers``, ``group``, ``limits`` and ``dedup``, as for `Queue.put`, ``task``, and
            ``own``, headers of pqcore's.
    """
    return _start(_read_id, engine, queue, data, times_of(schedule_at, expected_at), connection, options)


def put_call(
    engine: Engine,
    queue: QueueSettings,
    data: Any,
    schedule_at: TimeSpec,
    expected_at: TimeSpec,
    connection: object,
    options: Mapping[str, Any],
) -> Coroutine[Any, Any, Identity]:
    """Put one row, as `put` does; its id, with the time of the put."""
    return _start(read_identity, engine, queue, data, times_of(schedule_at, expected_at), connection, options)


def _read_id(row: Row) -> int:
    number, *_ = row
    return int(number)


def read_identity(row: Row) -> Identity:
    """Return the id, and the time of the put, of a row that a put returned."""
    number, put_at, *_ = row
    return number, put_at


def _start(
    read: Callable[[Row], T],
    engine: Engine,
    queue: QueueSettings,
    data: Any,
    times: Times | None,
    connection: object,
    options: Mapping[str, Any] | None,
) -> Coroutine[Any, Any, T]:
    if plugins.has_impl("pqcore_around_put", "pqcore_job_put"):
        return _put_and_tell(read, engine, queue, data, times, connection, options)
    return _put(read, engine, queue, data, times, connection, options)


async def _put_and_tell(
    read: Callable[[Row], T],
    engine: Engine,
    queue: QueueSettings,
    data: Any,
    times: Times | None,
    connection: object,
    options: Mapping[str, Any] | None,
) -> T:
    options = dict(options or {})
    event = PutEvent(queue.name, data, options.get("task"), dict(options.get("headers") or {}))
    with run_wrapped("pqcore_around_put", event):
        options["headers"] = event.headers
        put = await _put(read_identity, engine, queue, data, times, connection, options)
        number, _ = put
        event.ids = [number]
    await call_hook("pqcore_job_put", event, blocking=not engine.runtime.suspends)
    return read(put)


async def _put(
    read: Callable[[Row], T],
    engine: Engine,
    queue: QueueSettings,
    data: Any,
    times: Times | None,
    connection: object,
    options: Mapping[str, Any] | None,
) -> T:
    encoded = queue.encode_row(data)
    values: dict[str, object] = {
        "q_name": queue.name,
        "serializer": queue.serializer_name,
        "data": encoded.data,
        "payload": encoded.payload,
    }
    chosen = None if options is None else _options(options)
    if times is not None:
        values.update(times)

    async def plain(s: Session) -> T:
        if read is _read_id:
            query = s.sql.put if times is None else s.sql.put_timed
        else:
            query = s.sql.put_call if times is None else s.sql.put_call_timed
        rows = await s.execute(query, query.bind(values))
        if not rows:
            raise await not_stored(engine, s, "put")
        return read(rows[0])

    if chosen is None or chosen == _NO_OPTIONS:
        return await engine.run(plain, connection=connection)
    row = {**NO_TIMES, **values, "headers": chosen.headers, "group_key": chosen.group}
    return read(await engine.run(lambda s: insert(engine, s, row, chosen.dedup), connection=connection))


async def insert(engine: Engine, s: Session, row: Mapping[str, object], dedup: Dedup | None) -> Row:
    """Insert a row with all that it may have, under its dedup key.

    Args:
        engine: Where.
        s: The session.
        row: The values of the statement, but for the key.
        dedup: The key.

    Returns:
        The id and the time of the put, for `read_identity`; those of the job that has the key, if it is taken.

    Raises:
        DuplicateJob: The key is taken, and the put was to be an error then.
        NotStored: The server left the row out, or hides the job that has the key.
        TransientError: The key was taken and given up again, time after time.
    """
    if dedup is None:
        rows = await s.execute(s.sql.tasks.put, s.sql.tasks.put.bind({**row, "dedup_key": None}))
        if not rows:
            raise await not_stored(engine, s, "put")
        return rows[0]
    tasks = s.sql.tasks
    values = {**row, "dedup_key": dedup.key, "channel": channel(str(row["q_name"]))}
    put = tasks.put_replacing if dedup.on_conflict == "replace" else tasks.put
    find = tasks.find_duplicate if dedup.period is None else tasks.find_held
    for _ in range(20):  # the job that has the key may be finished between the two statements
        if dedup.period is not None:
            rows = await _put_for_a_time(engine, s, values, dedup.period)
        else:
            rows = await s.execute(put, put.bind(values))
        if rows:
            return rows[0]
        if not (rows := await s.execute(find, find.bind(values))):
            continue
        holder, _ = read_identity(rows[0])
        if dedup.on_conflict == "error":
            msg = f"job {holder} of queue {row['q_name']!r} has the dedup key {dedup.key!r}; nothing was put"
            raise DuplicateJob(msg, holder)
        if dedup.on_conflict == "replace":  # only if it still waits
            await s.execute(tasks.replace, tasks.replace.bind({**values, "id": holder}))
        return rows[0]
    if found := await find_causes(engine, s):
        why = "; or ".join(found)
        msg = f"put: no job was put under the dedup key {dedup.key!r}, and none is seen that has it: {why}"
        raise NotStored(msg)
    msg = f"dedup key {dedup.key!r} is being taken and given up all the time: try again"
    raise TransientError(msg)


async def _put_for_a_time(engine: Engine, s: Session, values: Mapping[str, object], period: float) -> Sequence[Row]:
    """Put a row under a key that is held for a time, unless it is taken."""
    tasks = s.sql.tasks
    async with atomic(s):
        if not await s.execute(tasks.claim_key, tasks.claim_key.bind({**values, "period": period})):
            return ()
        rows = await s.execute(tasks.put, tasks.put.bind({**values, "dedup_key": None}))
        if not rows:
            raise await not_stored(engine, s, "put")
        job, _ = read_identity(rows[0])
        await s.execute(tasks.set_key_holder, tasks.set_key_holder.bind({**values, "id": job}))
    return rows


async def put_many(
    engine: Engine,
    queue: QueueSettings,
    items: Iterable[Any],
    schedule_at: TimeSpec,
    expected_at: TimeSpec,
    connection: object,
    options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Put many rows, all or none; their ids in order.  ``options`` as for `put`, but no ``dedup``."""
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
    chosen = _options(options)
    # Text of an encoder of ours goes into the statement as it is: others' might be two values, or none.
    binary = None if queue.writes_json else queue.serializer is not None and queue.serializer.binary
    common = {
        "q_name": queue.name,
        "serializer": queue.serializer_name,
        "headers": chosen.headers,
        "group_key": chosen.group,
        **times,
    }

    async def send(s: Session, chunk: _Chunk) -> list[int]:
        elements, number = chunk
        return (await insert_many(engine, s, common, elements, number, binary=binary))[0]

    async def work(s: Session) -> list[int]:
        ids: list[int] = []
        if connection is not None and not s.in_transaction():
            # The caller's connection is idle: whether its driver begins is its own
            # affair, so all goes into one statement, which is atomic either way.
            for everything in _chunks(queue, items, binary, whole=True):
                ids = await send(s, everything)
            return ids
        chunks = _chunks(queue, items, binary)
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


def _options(options: Mapping[str, Any]) -> PutOptions:
    chosen = (options.get(name) for name in ("headers", "group", "limits", "dedup", "own"))
    return put_options(*chosen)


def _chunks(
    queue: QueueSettings, items: Iterable[Any], binary: bool | None, *, whole: bool = False
) -> Iterator[_Chunk]:
    left = iter(items)
    together = queue.encodes_as_is
    rows_in_all = size_in_all = 0
    chunk: list[str] = []
    rows = size = 0
    while True:
        most = min(PIECE_SIZE, CHUNK_SIZE // 64) * rows_in_all // size_in_all if together and size_in_all else 1
        piece = list(islice(left, max(min(most, CHUNK_ROWS - rows), 1)))
        if not piece:
            break
        if together:
            text = _encode_together(queue, piece)
            length = len(text)
        else:
            encoded = queue.encode_row(piece[0])
            text = encoded.raw if binary is None else as_element(encoded)  # type: ignore[assignment]
            length = len(encoded.raw)
        chunk.append(text)
        rows, size = rows + len(piece), size + length
        rows_in_all, size_in_all = rows_in_all + len(piece), size_in_all + length
        if whole and size > WHOLE_SIZE:
            msg = (
                f"queue {queue.name!r}: on an idle connection of yours jobs are put with one statement, and the first"
                f" {rows} have {size} characters, more than {WHOLE_SIZE}: begin a transaction, in which they are put"
                " with many, or put fewer at a time"
            )
            raise PayloadTooLarge(msg)
        if not whole and (rows >= CHUNK_ROWS or size >= CHUNK_SIZE):
            yield chunk, rows
            chunk, rows, size = [], 0, 0
    if chunk:
        yield chunk, rows


def _encode_together(queue: QueueSettings, piece: list[Any]) -> str:
    """The data of some jobs in JSON, separated by commas: encoding them in one go takes a third of the time.

    Raises:
        SerializationError, PayloadTooLarge: As `QueueSettings.encode_row` does, for the first that is at fault.
    """
    try:
        text = _encode_piece(piece)[1:-1]
        check_json(piece, text)
        if len(text) <= queue.max_size:
            return text
    except Exception:  # noqa: BLE001, S110 - which of them it is, and why, is found out below
        pass
    return ",".join([str(queue.encode_row(item).data) for item in piece])


def as_element(encoded: Encoded) -> str:
    """What a row holds, as a string in JSON: an element of what `insert_many` takes."""
    if encoded.payload is not None:
        return f'"{base64.b64encode(encoded.payload).decode()}"'
    return json_encode(encoded.data)


async def insert_many(
    engine: Engine,
    s: Session,
    common: Mapping[str, object],
    elements: Sequence[str],
    number: int,
    *,
    binary: bool | None,
) -> tuple[list[int], float]:
    """Insert rows that have all but their data in common; their ids in order, and when they were put, as in `JobId`.

    Args:
        engine: Where.
        s: The session.
        common: The other values of the statement.
        elements: The data of each in JSON, or of several, separated by commas.
        number: How many rows that is.
        binary: None if the elements are the data themselves, known to be JSON; else they are those of
            `as_element`, and this says whether they hold bytes.
    """
    query = s.sql.put_many if binary is None else s.sql.put_many_encoded
    told = None if s.in_transaction() and not s.caller_owned else number  # the caller's has no savepoint
    values = {**common, "items": f"[{','.join(elements)}]", "binary": binary, "number": told}
    try:
        [[first, put, ids, put_at]] = await s.execute(query, query.bind(values))
    except InvalidData as exc:
        if exc.sqlstate == _DIVISION_BY_ZERO:
            raise await not_stored(engine, s, "put_many") from exc
        raise
    if put < number:  # which is undone with the transaction, or to a savepoint
        raise await not_stored(engine, s, "put_many")
    # Drawn in order, whatever order they are returned in; by nobody else in between, mostly.
    return [*range(first, first + number)] if ids is None else sorted(map(int, ids)), put_at


def times_of(schedule_at: TimeSpec, expected_at: TimeSpec) -> Times | None:
    """The times as the statements take them: points in time, or seconds from now; None for neither."""
    if schedule_at is None and expected_at is None:
        return None
    schedule, expected = parse(schedule_at), parse(expected_at)
    return {
        "schedule_at": schedule if isinstance(schedule, datetime) else None,
        "schedule_in": schedule.total_seconds() if isinstance(schedule, timedelta) else None,
        "expected_at": expected if isinstance(expected, datetime) else None,
        "expected_in": expected.total_seconds() if isinstance(expected, timedelta) else None,
    }
