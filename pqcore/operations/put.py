"""Putting a job."""

from __future__ import annotations

import base64
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pqcore import operations
from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.group_commit import ALONE, LARGE, Together
from pqcore.db.session import Session
from pqcore.errors import DuplicateJob, InvalidCall, NotStored, TransientError
from pqcore.events import PutEvent
from pqcore.hook_dispatch import call_hook, run_wrapped
from pqcore.job import Identity
from pqcore.operations.atomic import atomic
from pqcore.operations.put_refusals import find_causes, not_stored
from pqcore.plugins import plugins
from pqcore.put_options import Dedup, NewJob, PutOptions, put_options
from pqcore.serializers import json_encode
from pqcore.settings import Encoded, QueueSettings
from pqcore.sql.identifiers import channel
from pqcore.sql.statement import Query
from pqcore.times import TimeSpec, parse

if TYPE_CHECKING:
    from pqcore.operations.parents import Behind

Times: TypeAlias = dict[str, datetime | float | None]
T = TypeVar("T")
NO_TIMES: Times = {"schedule_at": None, "schedule_in": None, "expected_at": None, "expected_in": None}
ROUNDS = 20
"""How often a put under a dedup key is tried while other jobs take the key and release it."""
_CHECKED = ("headers", "group", "limits", "dedup", "own", "tenant", "priority", "after")
"""The options of a put, in the order of the parameters of `put_options`."""
_NO_OPTIONS = PutOptions(None, None, None)
_DROPPED = object()
"""The result of a put that shared a statement with others, and whose row a trigger dropped."""


def put(
    engine: Engine,
    queue: QueueSettings,
    data: Any,
    schedule_at: TimeSpec,
    expected_at: TimeSpec,
    connection: object,
    options: Mapping[str, Any] | None = None,
) -> Coroutine[Any, Any, int]:
    """Put one row, and return its id.

    Args:
        engine: The engine.
        queue: The queue.
        data: The job's data.
        schedule_at: See `Queue.put`.
        expected_at: See `Queue.put`.
        connection: See `Queue.put`.
        options: ``headers``, ``group``, ``limits``, ``dedup`` and ``after`` of `Queue.put`; also ``task``, and ``own``
            for headers that pqcore adds.
    """
    put_one = _put_and_tell if plugins.has_impl("pqcore_around_put", "pqcore_job_put") else _put
    return put_one(read_id, engine, queue, data, times_of(schedule_at, expected_at), connection, options)


def put_call(
    engine: Engine,
    queue: QueueSettings,
    data: Any,
    schedule_at: TimeSpec,
    expected_at: TimeSpec,
    connection: object,
    options: Mapping[str, Any],
) -> Coroutine[Any, Any, Identity]:
    """Put one row as `put` does; return the row's id and the time of the put."""
    put_one = _put_and_tell if plugins.has_impl("pqcore_around_put", "pqcore_job_put") else _put
    return put_one(read_identity, engine, queue, data, times_of(schedule_at, expected_at), connection, options)


read_id: Callable[[Row], int] = itemgetter(0)
"""Return the id of a row that a put returned."""


def read_identity(row: Row) -> Identity:
    """Return a job's id, and the time of its put, from the row that the put's statement returned."""
    number, put_at, *_ = row
    return number, put_at


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
    if isinstance(data, NewJob):  # refused here, because some serializers would encode it like any dataclass
        msg = f"put takes the data of one job, and was given {data!r}; give NewJob objects to put_many"
        raise InvalidCall(msg)
    encoded = queue.encode_row(data)
    if options is not None and options.get("after") is not None:
        row = {**_values(queue, encoded), **(times or {})}
        return await _put_after(read, engine, queue, row, connection, options)
    work, headers, travels = partial(_insert_plain, read, engine, queue, encoded, times), None, times is None
    if options is not None and (chosen := checked_options(options)) != _NO_OPTIONS:
        row = {**NO_TIMES, **_values(queue, encoded), **(times or {}), **chosen.values()}
        work, headers = partial(_insert_chosen, read, engine, row, chosen.dedup), chosen.headers
        travels = travels and chosen.dedup is None and chosen.group is None and chosen.lane is None
        travels = travels and len(headers or "") < LARGE
    line = None
    if travels and connection is None and len(encoded.data or encoded.payload or "") < LARGE:
        key = read if headers is None else (read, "headers")
        line = engine.line(queue.lines, key, _together, read, queue, headers is not None)
    if line is not None:
        if not line.since:
            return await engine.run_alone(work, line)
        element = encoded.data if queue.writes_json else as_element(encoded)
        answer = await line.join(element if headers is None else f"[{element},{headers}]")
        if answer is _DROPPED:
            raise await engine.run_alone(lambda s: not_stored(engine, s, "put"))
        return await engine.run_alone(work) if answer is ALONE else answer
    return await engine.run(work, connection=connection)


async def _insert_plain(
    read: Callable[[Row], T],
    engine: Engine,
    queue: QueueSettings,
    encoded: Encoded,
    times: Times | None,
    s: Session,
) -> T:
    """Insert a row without options."""
    if times is not None:
        query = s.sql.put_timed if read is read_id else s.sql.put_call_timed
        values = {**_values(queue, encoded), **times}
    elif queue.serializer is None and queue.serializer_name == "json":
        query = s.sql.put_json if read is read_id else s.sql.put_call_json
        values = {"q_name": queue.name, "data": encoded.data}
    else:
        query = s.sql.put if read is read_id else s.sql.put_call
        values = _values(queue, encoded)
    rows = await s.execute(query, query.bind(values))
    if not rows:
        raise await not_stored(engine, s, "put")
    return read(rows[0])


async def _insert_chosen(
    read: Callable[[Row], T], engine: Engine, row: dict[str, object], dedup: Dedup | None, s: Session
) -> T:
    """Insert a row with options."""
    return read(await insert(engine, s, row, dedup))


def _values(queue: QueueSettings, encoded: Encoded) -> dict[str, object]:
    text, payload = encoded
    return {"q_name": queue.name, "serializer": queue.serializer_name, "data": text, "payload": payload}


async def _put_after(
    read: Callable[[Row], T],
    engine: Engine,
    queue: QueueSettings,
    values: Mapping[str, object],
    connection: object,
    options: Mapping[str, Any],
) -> T:
    """Put a job that waits for other jobs, and store the list of these parents in the same transaction."""
    chosen = checked_options(options)
    behind = behind_of(engine, queue, chosen)
    row = {**NO_TIMES, **values, **chosen.values()}

    async def work(s: Session) -> T:
        if behind is None:
            return read(await insert(engine, s, row, chosen.dedup))
        async with atomic(s):
            subject = f"queue {queue.name!r}: the job"
            [blocked] = await operations.parents.await_parents(engine, s, [behind], lambda _: subject)
            if blocked is None:
                return read(await insert(engine, s, row, chosen.dedup))
            query = s.sql.dependencies.put_blocked
            return read(await insert(engine, s, {**row, **blocked}, chosen.dedup, query))

    return await engine.run(work, connection=connection)


def _together(read: Callable[[Row], T], queue: QueueSettings, headed: bool) -> Together:
    """Return the operation that puts rows of several callers; see `_put_together`."""
    return Together(partial(_put_together, read, queue, headed))


async def _put_together(
    read: Callable[[Row], T],
    queue: QueueSettings,
    headed: bool,
    s: Session,
    elements: list[str],
) -> Sequence[Any]:
    """Put rows of several callers; return what ``read`` returns for each row, or `_DROPPED` for a row not stored.

    Args:
        read: A function that reads from a row what the callers need.
        queue: The queue.
        headed: Whether the rows have headers; each element is then a pair of the data and the headers.
        s: The session.
        elements: The data of each row, in the form for `pqcore.operations.put_many.insert_many`.
    """
    binary, number = is_binary(queue), len(elements)
    if headed:
        query = s.sql.put_group_headed if binary is None else s.sql.put_group_encoded_headed
    else:
        query = s.sql.put_group if binary is None else s.sql.put_group_encoded
    values = {"q_name": queue.name, "serializer": queue.serializer_name, "binary": binary, "number": number}
    values["items"] = f"[{','.join(elements)}]"
    [[first, places, put_at, _]] = await s.execute(query, query.bind(values))
    ids: Sequence[int | None]
    if first is not None and places is None:
        ids = range(first, first + number)
        if read is read_id:
            return ids
    else:
        by_place = ids_by_place(places)
        ids = [by_place.get(place) for place in range(number)]
    began = round(put_at * 1_000_000)
    return [_DROPPED if each is None else read((each, (began + place) / 1_000_000)) for place, each in enumerate(ids)]


def ids_by_place(pairs: str | None) -> dict[int, int]:
    """Return the ids of the stored rows, by place; the text has a row's place, its id, the next place, and so on."""
    found = [int(each) for each in (pairs or "").split()]
    return dict(zip(found[::2], found[1::2], strict=True))


def is_binary(queue: QueueSettings) -> bool | None:
    """Return whether the queue's data is bytes; None if it is text that is known to be JSON.

    A statement of many rows includes text of pqcore's own encoder unchanged. Text of other encoders is parsed row by
    row, because it might hold two JSON values, or none.
    """
    return None if queue.writes_json else queue.serializer is not None and queue.serializer.binary


async def insert(
    engine: Engine, s: Session, row: Mapping[str, object], dedup: Dedup | None, query: Query | None = None
) -> Row:
    """Insert a row with all its options, under its dedup key.

    Args:
        engine: The engine.
        s: The session.
        row: The values of the statement, except the key.
        dedup: The key.
        query: The statement that inserts the row; None for the usual one.

    Returns:
        A row for `read_identity`, with the id and the time of the put. If another job has the key, the row describes
        the other job.

    Raises:
        DuplicateJob: Another job has the key, and ``on_conflict`` is ``"error"``.
        NotStored: The server dropped the row, or hides the job that has the key.
        TransientError: In each attempt, the key was taken and then released again.
    """
    usual = query or s.sql.tasks.put
    if dedup is None:
        rows = await s.execute(usual, usual.bind({**row, "dedup_key": None}))
        if not rows:
            raise await not_stored(engine, s, "put")
        return rows[0]
    tasks = s.sql.tasks
    values = {**row, "dedup_key": dedup.key, "channel": channel(str(row["q_name"]))}
    put = tasks.put_replacing if dedup.on_conflict == "replace" else usual
    find = tasks.find_duplicate if dedup.period is None else tasks.find_held
    for _ in range(ROUNDS):  # between the two statements, the job with the key may finish
        if dedup.period is not None:
            rows = await _put_for_a_time(engine, s, values, dedup.period, usual)
        else:
            rows = await s.execute(put, put.bind(values))
        if rows:
            return rows[0]
        if not (rows := await s.execute(find, find.bind(values))):
            continue
        holder, _ = read_identity(rows[0])
        if dedup.on_conflict == "error":
            raise duplicate_job(row["q_name"], dedup.key, holder)
        if dedup.on_conflict == "replace":  # the statement changes the job only if it still waits
            await s.execute(tasks.replace, tasks.replace.bind({**values, "id": holder}))
        return rows[0]
    raise await key_not_held(engine, s, dedup.key)


def duplicate_job(q_name: object, key: str, holder: int) -> DuplicateJob:
    """Return the error for a put whose dedup key belongs to another job."""
    msg = f"job {holder} of queue {q_name!r} has the dedup key {key!r}; nothing was put"
    return DuplicateJob(msg, holder)


async def key_not_held(engine: Engine, s: Session, key: str) -> NotStored | TransientError:
    """Return the error for a put that stored no job, although no other job has the key."""
    if found := await find_causes(engine, s):
        why = "; or ".join(found)
        return NotStored(f"put: no job was put with the dedup key {key!r}, and no job with this key is visible: {why}")
    msg = f"no job was put with the dedup key {key!r}: at each attempt, another job held the key, and then released it"
    return TransientError(f"{msg}; try again")


async def _put_for_a_time(
    engine: Engine, s: Session, values: Mapping[str, object], period: float, query: Query
) -> Sequence[Row]:
    """Put a row under a key that is held for a time, unless the key is taken."""
    tasks = s.sql.tasks
    async with atomic(s):
        if not await s.execute(tasks.claim_key, tasks.claim_key.bind({**values, "period": period})):
            return ()
        rows = await s.execute(query, query.bind({**values, "dedup_key": None}))
        if not rows:
            raise await not_stored(engine, s, "put")
        job, _ = read_identity(rows[0])
        await s.execute(tasks.set_key_holder, tasks.set_key_holder.bind({**values, "id": job}))
    return rows


def as_element(encoded: Encoded) -> str:
    """Return the data of a row as a JSON string; the statement that puts many rows takes an array of these strings."""
    if encoded.payload is not None:
        return f'"{base64.b64encode(encoded.payload).decode()}"'
    return json_encode(encoded.data)


def checked_options(options: Mapping[str, Any]) -> PutOptions:
    """Check the options of a put that a caller gave; see `put_options`."""
    return put_options(*map(options.get, _CHECKED))


def behind_of(engine: Engine, queue: QueueSettings, chosen: PutOptions) -> Behind | None:
    """Check and return the parents that a job waits for; None without parents; see `parents.check_parents`."""
    return operations.parents.check_parents(engine, queue, chosen.parents) if chosen.parents else None


def times_of(schedule_at: TimeSpec, expected_at: TimeSpec) -> Times | None:
    """Return the times as parameters of the statements, as points in time or seconds from now; None without times."""
    if schedule_at is None and expected_at is None:
        return None
    schedule, expected = parse(schedule_at), parse(expected_at)
    return {
        "schedule_at": schedule if isinstance(schedule, datetime) else None,
        "schedule_in": schedule.total_seconds() if isinstance(schedule, timedelta) else None,
        "expected_at": expected if isinstance(expected, datetime) else None,
        "expected_in": expected.total_seconds() if isinstance(expected, timedelta) else None,
    }
