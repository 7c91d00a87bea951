"""Re-encoding data after a key or a serializer has changed.

Data is read in slices (`pqcore.operations.encodings`). A few rows at a time are written in one transaction, while other
programs put and take jobs. A row is written only if it was not changed since it was read. A locked row is skipped, and
looked at again later. Calls in the headers of a leased job are not re-encoded before the lease ends: the worker has
already read the headers, and will put the next call in its old form. The progress is in the tables alone, so the
operation can be interrupted, and run again.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError, DeserializationError, InvalidData, PQError, TransientError
from pqcore.operations.atomic import atomic
from pqcore.operations.encodings import (
    FIRST,
    Counts,
    Encoding,
    Piece,
    Slice,
    ask_alone,
    count_all,
    find_statement,
    load_json,
    pieces_of,
    pieces_of_link,
    read_calls,
    read_key_ids,
    read_slice,
)
from pqcore.serializers import authenticates, held_keys, written_under
from pqcore.serializers.keys import read_marks
from pqcore.settings import REENCODE_STEP, REENCODE_WAIT, Encoded, QueueSettings
from pqcore.sql.encoding_statements import ROWS
from pqcore.times import seconds

MOST_STEP = 1_000
STEP_SIZE = 8 * 2**20
"""About how many bytes are written in one transaction; larger rows make the transaction cover fewer rows."""
PAUSES = (0.1, 0.2, 0.5)
"""Seconds between looks at rows in use; the last value repeats."""
MOST_ERRORS = 10
"""The largest number of messages in a report."""
_NAMES = {
    "table": "job",
    "dead": "dead letter",
    "archive": "archived job",
    "results": "result of job",
    "batches": "call that follows batch",
    "schedules": "call of schedule",
}
"""The word for a row of each place, in messages."""


@dataclass(frozen=True)
class Reencoded:
    """The result of re-encoding data.

    Attributes:
        rewritten: The number of rows written.
        before: How all data of the table was encoded before.
        after: How all data of the table is encoded now.
        left: The data that is still not as its queue writes it. For queues that were not named, this includes only data
            under an old key of the named queues.
        in_use: The number of rows that were not written, because they are locked, or because a leased job continues a
            chain.
        failed: The number of rows that were not written, because they cannot be read or re-encoded.
        errors: The error messages for the first `MOST_ERRORS` failed rows.
    """

    rewritten: int
    before: list[Encoding]
    after: list[Encoding]
    left: list[Encoding]
    in_use: int
    failed: int
    errors: list[str]

    @property
    def complete(self) -> bool:
        """Return whether all data was re-encoded, so that no old key or serializer is needed any more."""
        return not (self.left or self.in_use or self.failed)


class _Writer:
    """An encoder of data in the form that a queue writes now.

    Args:
        queue: The queue.
        every: Whether to re-encode also data that already has this form.
    """

    def __init__(self, queue: QueueSettings, *, every: bool = False) -> None:
        self.queue = queue
        self.serializer = queue.serializer_name
        self.keys = written_under(queue.serializer)
        self.old_keys = held_keys(queue.serializer).union(*map(held_keys, queue.accept)) - set(self.keys)
        # If a serializer has keys, but no ``key_ids``, stored data does not show its key: then all data is re-encoded.
        self.every = every or (authenticates(queue.serializer) and not self.keys)

    def is_current(self, serializer: str | None, marks: Sequence[str]) -> bool:
        if serializer is None:  # pq wrote this row as JSON, the format of a queue without a serializer
            return self.queue.serializer is None
        return serializer == self.serializer and (not self.keys or tuple(marks) == self.keys)

    def renewed(self, job_id: int, serializer: str | None, raw: str | bytes) -> Encoded:
        """Return the data in the form that the queue writes.

        Raises:
            UnsafeSerializer: The queue does not accept the data's serializer.
            DeserializationError: The queue cannot decode the data.
            SerializationError: The queue cannot encode the data.
            PayloadTooLarge: The encoded data is too large.
        """
        rekey = getattr(self.queue.serializer, "rekey", None)
        if rekey is not None and serializer == self.serializer and self.keys and isinstance(raw, bytes):
            try:  # rekey changes only the key; the data itself is not decoded
                return Encoded(None, rekey(raw))
            except Exception as exc:
                msg = f"queue {self.queue.name!r}: job {job_id} is not valid {serializer}: {exc}"
                raise DeserializationError(msg) from exc
        return self.queue.encode_row(self.queue.decode_row(job_id, serializer, raw))


class _Row(NamedTuple):
    """A row that may need to be written.

    Attributes:
        id: The row's id.
        queue: The row's queue.
        linked: Whether the row's headers hold data.
        size: The approximate size of the row, in bytes.
    """

    id: int
    queue: str
    linked: bool
    size: int


class _Reencoding:
    """A re-encoding of data, which looks at the tables repeatedly.

    Args:
        engine: The engine.
        writers: The encoders, by the names of the queues.
        step: The largest number of rows in one transaction.
    """

    def __init__(self, engine: Engine, writers: Mapping[str, _Writer], step: int) -> None:
        self.engine = engine
        self.ask = ask_alone(engine)
        self.writers = writers
        self.step = step
        self.rewritten = 0
        self.every_done: set[tuple[str, str, int | str]] = set()
        self.seen: list[Encoding] = []
        self.in_use = self.failed = 0
        self.errors: list[str] = []

    def stale(self, queue: str, serializer: str | None, marks: Sequence[str]) -> bool:
        """Return whether data belongs to one of the given queues, and differs from the form that this queue writes."""
        writer = self.writers.get(queue)
        return writer is not None and (writer.every or not writer.is_current(serializer, marks))

    async def look(self) -> int:
        """Search all tables once, and re-encode the rows that need it; return the number of rows written."""
        before = self.rewritten
        self.in_use = self.failed = 0
        self.errors = []
        counts = Counts()
        for place in ROWS:
            after: int | None = FIRST
            while after is not None:
                found = await read_slice(self.ask, place, after)
                await counts.add(self.ask, place, found)
                if any(one.linked or self.stale(one.queue, one.serializer, one.marks) for one in found.groups):
                    await self._rewrite_slice(place, found)
                after = found.following
        await self._calls(counts)
        self.seen = counts.found()
        return self.rewritten - before

    async def _rewrite_slice(self, place: str, found: Slice) -> None:
        values = {"after": found.after, "last": found.last, "names": list(self.writers)}
        rows = await self.ask(f"list.{place}", values)
        wanted = [
            _Row(job_id, name, linked, size)
            for job_id, name, kind, marks, linked, size in rows
            if (linked or self.stale(name, kind, read_key_ids(marks))) and (place, name, job_id) not in self.every_done
        ]
        for queue in dict.fromkeys(row.queue for row in wanted):
            for some in self._steps([row for row in wanted if row.queue == queue]):
                await self._write(place, queue, some)

    def _steps(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        some: list[_Row] = []
        size = 0
        for row in rows:
            if some and (len(some) == self.step or size + row.size > STEP_SIZE):
                yield some
                some, size = [], 0
            some.append(row)
            size += row.size
        if some:
            yield some

    async def _write(self, place: str, queue: str, rows: Sequence[_Row]) -> None:
        """Read some rows of a queue, re-encode them outside a transaction, and write them in one transaction."""
        found = await self.ask(f"read.{place}", {"ids": [row.id for row in rows], "q_name": queue})
        changes = []
        for job_id, serializer, data, payload, headers, held in found:
            old = {
                "id": job_id,
                "q_name": queue,
                "old_serializer": serializer,
                "old_data": data,
                "old_payload": None if payload is None else bytes(payload),
                "old_headers": headers,
            }
            if (changed := self._changed(place, old, held=held)) is not None:
                changes.append(changed)
        await self._store(f"write.{place}", place, changes)

    def _changed(self, place: str, old: dict[str, Any], *, held: bool) -> dict[str, Any] | None:
        """Return the values of the statement that writes a row; None if the row can stay as it is."""
        job_id, queue, serializer = old["id"], old["q_name"], old["old_serializer"]
        data, payload, headers = old["old_data"], old["old_payload"], old["old_headers"]
        new = {"data": data, "payload": payload, "serializer": serializer, "headers": headers, "linked": False}
        raw = data if payload is None else payload
        marks = () if payload is None else read_marks(payload)
        if raw is not None and self.stale(queue, serializer, marks):
            writer = self.writers[queue]
            try:
                encoded = writer.renewed(job_id, serializer, raw)
                new |= {"data": encoded.data, "payload": encoded.payload, "serializer": writer.serializer}
            except PQError as exc:
                self._fail(place, job_id, exc)
        loaded = load_json(headers)
        if self._renew(place, job_id, pieces_of(loaded, queue), renew=not held):
            if held:
                self.in_use += 1
            else:
                new |= {"headers": json.dumps(loaded), "linked": True}
        same = all(new[name] == old[f"old_{name}"] for name in ("data", "payload", "serializer", "headers"))
        return None if same else {**old, **new}

    def _renew(self, place: str, row_id: int | str, pieces: Iterator[Piece], *, renew: bool = True) -> bool:
        """Return whether any encoded data in headers can be re-encoded; with ``renew``, re-encode it in place."""
        found = False
        for piece in pieces:
            held = piece.held
            if not self.stale(piece.queue, held["serializer"], piece.marks):
                continue
            writer = self.writers[piece.queue]
            try:
                encoded = writer.renewed(row_id if isinstance(row_id, int) else 0, held["serializer"], piece.raw)
            except PQError as exc:
                self._fail(place, row_id, exc)
                continue
            found = True
            if renew:
                payload = None if encoded.payload is None else base64.b64encode(encoded.payload).decode()
                held.update(serializer=writer.serializer, data=encoded.data, payload=payload)
        return found

    async def _calls(self, counts: Counts) -> None:
        async for place, calls in read_calls(self.ask):
            changes = []
            for call_id, queue, text in calls:
                if (call := load_json(text)) is None:
                    continue
                counts.add_pieces(place, list(pieces_of_link(call)))
                if (place, queue, call_id) in self.every_done:
                    continue
                if self._renew(place, call_id, pieces_of_link(call)):
                    changes.append({"id": call_id, "q_name": queue, "old_call": text, "call": json.dumps(call)})
            for start in range(0, len(changes), self.step):
                await self._store(f"write_call.{place}", place, changes[start : start + self.step])

    async def _store(self, statement: str, place: str, changes: Sequence[dict[str, Any]]) -> None:
        """Write rows in one transaction; if the server refuses one of them, write each in its own transaction."""

        async def work(s: Session) -> list[tuple[str, int | str]]:
            query = find_statement(s, statement)
            async with atomic(s):  # the rows may be written in any order: locked rows are skipped, so nothing deadlocks
                done = [values for values in changes if await s.execute(query, query.bind(values))]
            return [(values["q_name"], values["id"]) for values in done]

        if not changes:
            return
        try:
            written = await self.engine.run(work)
        except TransientError:
            written = []
        except InvalidData as exc:
            if len(changes) == 1:
                self._fail(place, changes[0]["id"], exc)
                return
            for values in changes:
                await self._store(statement, place, [values])
            return
        self.rewritten += len(written)
        self.in_use += len(changes) - len(written)
        if any(writer.every for writer in self.writers.values()):
            self.every_done |= {(place, *row) for row in written}

    def _fail(self, place: str, row_id: int | str, error: PQError) -> None:
        self.failed += 1
        if len(self.errors) < MOST_ERRORS:
            self.errors.append(f"{_NAMES[place]} {row_id}: {error}")


async def reencode(
    engine: Engine,
    queues: Sequence[QueueSettings],
    *,
    step: int = REENCODE_STEP,
    every: bool = False,
    wait: str | float | timedelta = REENCODE_WAIT,
) -> Reencoded:
    """Re-encode data with another key or serializer than its queue uses now, wherever it is stored.

    Args:
        engine: The engine.
        queues: The queues; each reads the serializers in its ``accept``, and writes with its own serializer, under the
            first key.
        step: The number of rows to write in one transaction.
        every: Whether to re-encode data that is already as the queue writes it.
        wait: How long to wait for rows in use: seconds, ``'5m'`` or a timedelta.

    Raises:
        ConfigurationError: No queue is named, one is named twice or is of another table, ``step`` is out of range, or a
            transaction is open.
    """
    writers = _writers(engine, queues, every=every)
    if not isinstance(step, int) or isinstance(step, bool) or not 1 <= step <= MOST_STEP:
        raise ConfigurationError(f"step is {step!r}; give a number of rows from 1 to {MOST_STEP:,}")
    if engine.in_block():
        raise ConfigurationError("reencode commits a few rows at a time; call it outside of a transaction block")
    patience = seconds(wait)
    await engine.run(_refuse_transaction)
    work = _Reencoding(engine, writers, step)
    written = await work.look()
    before = work.seen
    # without a deadline, this loop would not end while another program writes under the old key
    deadline = time.monotonic() + patience
    looks = 0
    while (written or work.in_use) and time.monotonic() < deadline:
        if work.in_use:
            await engine.runtime.sleep(PAUSES[min(looks, len(PAUSES) - 1)])
            looks += 1
        written = await work.look()
    after = work.seen if not written else await count_all(engine)
    old = frozenset[str]().union(*(writer.old_keys for writer in writers.values()))
    left = [one for one in after if _is_left(one, writers.get(one.queue), old)]
    return Reencoded(work.rewritten, before, after, left, work.in_use, work.failed, work.errors)


def _is_left(one: Encoding, writer: _Writer | None, old: frozenset[str]) -> bool:
    keys = tuple(one.key.split("+")) if one.key else ()
    if writer is None:
        return not old.isdisjoint(keys)
    return not writer.is_current(one.serializer or None, keys)


async def _refuse_transaction(s: Session) -> None:
    if s.in_transaction():
        raise ConfigurationError("the connection has a transaction open; commit it before you call reencode")


def _writers(engine: Engine, queues: Sequence[QueueSettings], *, every: bool) -> dict[str, _Writer]:
    writers: dict[str, _Writer] = {}
    for queue in queues:
        if queue.table != engine.names:
            msg = f"queue {queue.name!r} is in {queue.table}, not in {engine.names}; use the PQ of the queue's table"
            raise ConfigurationError(msg)
        if queue.name in writers:
            raise ConfigurationError(f"queue {queue.name!r} is named twice; name each queue once")
        writers[queue.name] = _Writer(queue, every=every)
    if not writers:
        raise ConfigurationError("no queue is named; name the queues whose data must be re-encoded")
    return writers
