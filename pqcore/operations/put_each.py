"""Putting many jobs, each with its own options: all or none, and a fixed number of statements for some thousands."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from pqcore.db.engine import Engine
from pqcore.db.savepoints import in_savepoint
from pqcore.db.session import Session
from pqcore.errors import DuplicateJob, InvalidCall, InvalidData, TransientError
from pqcore.job import Identity
from pqcore.operations.atomic import atomic
from pqcore.operations.put import ROUNDS, Times, checked_options, duplicate_job, ids_by_place, key_not_held, times_of
from pqcore.operations.put_refusals import not_stored, refused_rows
from pqcore.put_options import Dedup, NewJob, PutOptions
from pqcore.settings import QueueSettings
from pqcore.sql.identifiers import channel

T = TypeVar("T")
DEADLOCK = "40P01"
DEADLOCKS = 10
"""The largest number of attempts to put rows under dedup keys, if deadlocks end the statement."""
_OWN = ("group", "limits", "headers", "tenant", "priority")
_encode = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, separators=(",", ":"), default=datetime.isoformat
).encode


class NewRow(NamedTuple):
    """A row to put.

    Attributes:
        place: The number of the item in its call, from 0.
        q_name: The queue.
        dedup: The dedup key, or None.
        text: The row's columns as a JSON object, in the form for the statements.
    """

    place: int
    q_name: str
    dedup: Dedup | None
    text: str

    @classmethod
    def of(cls, place: int, values: Mapping[str, Any], dedup: Dedup | None) -> NewRow:
        """Return the row of the values for a statement of one row, with the payload in base64."""
        columns = {name: value for name, value in values.items() if value is not None}
        if dedup is not None and dedup.period is None:
            columns["dedup_key"] = dedup.key
        return cls(place, columns["q_name"], dedup, _encode(columns))

    @property
    def period(self) -> float | None:
        """For how many seconds the row's key is held; None without a key, or if the job's state decides."""
        return None if self.dedup is None else self.dedup.period

    @property
    def timed(self) -> bool:
        """Whether the row's key is held for a time; such keys are in a table of their own."""
        return self.period is not None

    @property
    def key(self) -> str:
        """The text of the dedup key; empty for none."""
        return "" if self.dedup is None else self.dedup.key

    @property
    def on_conflict(self) -> str:
        """What happens if another job has the key; empty without a key."""
        return "" if self.dedup is None else self.dedup.on_conflict

    def merged(self, later: NewRow) -> NewRow:
        """Return one row for this row and a later row of the same call that has the same key and replaces this row."""
        if self.dedup is None or self.on_conflict == "error":
            return self._replace(text=later.text)
        return self._replace(text=later.text, dedup=replace(self.dedup, on_conflict="replace"))


Chunk: TypeAlias = Sequence[NewRow]
"""Rows that one statement puts."""
_Key: TypeAlias = tuple[str, bool, str]
"""A queue, whether a key is held for a time, and the key."""


def rows_of_jobs(
    queue: QueueSettings, jobs: Iterable[object], times: Times, options: Mapping[str, Any]
) -> Iterator[NewRow]:
    """Return the rows of jobs that were given to `put_many`, encoded one by one.

    Args:
        queue: The queue.
        jobs: The jobs.
        times: The times of jobs that give none.
        options: The options of jobs that give none; see `pqcore.operations.put.put`.

    Raises:
        InvalidCall: An item is no `NewJob`.
        PQError: An option is invalid, or the data of a job cannot be encoded.
    """
    common = checked_options(options)
    fixed = {"q_name": queue.name, "serializer": queue.serializer_name}
    for place, job in enumerate(jobs):
        if not isinstance(job, NewJob):
            kind = f"{type(job).__module__}.{type(job).__qualname__}"
            msg = f"item {place} of put_many is a {kind}, and item 0 is a NewJob; give either NewJob objects or data"
            raise InvalidCall(msg)
        chosen = _options_of(job, options, common)
        data, raw = queue.encode_row(job.data)
        payload = None if raw is None else base64.b64encode(raw).decode()
        values = {**fixed, "data": data, "payload": payload, **chosen.values(), **_times_of(job, times)}
        yield NewRow.of(place, values, chosen.dedup)


def _options_of(job: NewJob, options: Mapping[str, Any], common: PutOptions) -> PutOptions:
    """Return the options of a job: its own ones, and those of the call for the others."""
    dedup = job.dedup if job.dedup is None or isinstance(job.dedup, Dedup) else Dedup(job.dedup)
    own = {name: value for name in _OWN if (value := getattr(job, name)) is not None}
    if not own and (dedup is None or dedup.until != "started"):
        return replace(common, dedup=dedup)
    if "headers" in own:
        own["headers"] = {**(options.get("headers") or {}), **own["headers"]}
    return checked_options({**options, **own, "dedup": dedup})


def _times_of(job: NewJob, times: Times) -> Times:
    own = times_of(job.schedule_at, job.expected_at)
    if own is None:
        return times
    given = {"schedule": job.schedule_at, "expected": job.expected_at}
    return {name: times[name] if given[name[:8]] is None else value for name, value in own.items()}


def chunks_of(rows: Iterable[NewRow], most_rows: int, most_size: int) -> Iterator[Chunk]:
    """Return rows in chunks; a chunk is full with ``most_rows`` rows, or with ``most_size`` characters."""
    chunk: list[NewRow] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row.text)
        if len(chunk) >= most_rows or size >= most_size:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


async def put_rows(
    engine: Engine, s: Session, chunks: Iterator[Chunk], read: Callable[[Identity], T], doing: str
) -> list[T]:
    """Put rows, all or none.

    Args:
        engine: The engine.
        s: The session.
        chunks: The rows, in chunks; later chunks are made while earlier ones are sent.
        read: A function that reads from an identity what the caller needs of each job.
        doing: The name of the method that puts them, for errors.

    Returns:
        For each row, the id and time of its job; if another job has the row's key, those of that job.

    Raises:
        DuplicateJob: Another job, or an earlier row, has the key of a row whose ``on_conflict`` is ``"error"``.
        NotStored: The server dropped a row, or hides the job that has a key.
        TransientError: Keys were taken and released, or deadlocks happened, in each attempt; or a deadlock happened in
            a transaction that the caller began.
    """
    if s.caller_owned and not s.in_transaction():
        chunks = iter(list(chunks))  # a bad item fails before the driver begins a transaction
    first, second = next(chunks, None), next(chunks, None)
    if first is None:
        return []
    putting = _Putting(engine, s, read, doing)
    if second is None and all(row.dedup is None for row in first):
        return await putting.store(first)
    left = chain([first], [] if second is None else [second], chunks)
    async with atomic(s):
        if s.caller_owned and not s.own:
            return await in_savepoint(s, lambda _: putting.store_all(left), again=False)
        return await putting.store_all(left)


@dataclass
class _Putting(Generic[T]):
    """A call that puts rows.

    Attributes:
        engine: The engine.
        s: The session.
        read: See `put_rows`.
        doing: See `put_rows`.
        keys: The place of the first item with each key.
    """

    engine: Engine
    s: Session
    read: Callable[[Identity], T]
    doing: str
    keys: dict[_Key, int] = field(default_factory=dict)

    async def store_all(self, chunks: Iterator[Chunk]) -> list[T]:
        """Put chunks in the open transaction."""
        found: list[T] = []
        for chunk in chunks:
            if self.s.own and any(row.dedup is not None for row in chunk):
                return found + await self._store_again(chain([chunk], chunks))
            found += await self.store(chunk)
        return found

    async def _store_again(self, chunks: Iterator[Chunk]) -> list[T]:
        """Put chunks, and put them again after a deadlock, which is undone to a savepoint.

        Two calls that put the same keys in different orders wait for each other's rows. Rows cannot be inserted in the
        order of their keys, because ids must have the order of the items. Rolling back to the savepoint releases the
        locks on keys.
        """
        sent: list[Chunk] = []
        reading = False  # whether an error comes from the caller's iterator, which then cannot be read again

        async def attempt(_: Session) -> list[T]:
            nonlocal reading
            self.keys.clear()
            found: list[T] = []
            for chunk in sent:
                found += await self.store(chunk)
            reading = True
            for chunk in chunks:
                reading = False
                sent.append(chunk)
                found += await self.store(chunk)
                reading = True
            return found

        left = DEADLOCKS
        while True:
            left -= 1
            try:
                return await in_savepoint(self.s, attempt, again=False)
            except TransientError as exc:
                if reading or exc.sqlstate != DEADLOCK or not left:
                    raise

    async def store(self, chunk: Chunk) -> list[T]:
        """Put a chunk; return what the caller needs of each row's job."""
        rows, places = self._merge(chunk)
        found: dict[int, Identity] = {}
        left = list(range(len(rows)))
        for _ in range(ROUNDS):  # jobs that have keys may be finished between two statements
            left = await self._put(rows, left, found)
            if not left:
                return [self.read(found[place]) for place in places]
        raise await key_not_held(self.engine, self.s, rows[left[0]].key)

    def _merge(self, chunk: Chunk) -> tuple[list[NewRow], list[int]]:
        """Return rows of which no two have the same key, and for each row of the chunk its place among them."""
        rows: list[NewRow] = []
        places: list[int] = []
        found: dict[_Key, int] = {}
        for row in chunk:
            place = len(rows)
            if row.dedup is not None:
                key = (row.q_name, row.timed, row.key)
                before = self.keys.setdefault(key, row.place)
                if before != row.place and row.on_conflict == "error":
                    msg = (
                        f"{self.doing}: item {row.place} has the dedup key {row.key!r}, as item {before} has;"
                        " nothing was put"
                    )
                    raise DuplicateJob(msg, item=before)
                place = found.setdefault(key, place)
            if place == len(rows):
                rows.append(row)
            elif row.on_conflict == "replace":
                rows[place] = rows[place].merged(row)
            places.append(place)
        return rows, places

    async def _put(self, rows: Sequence[NewRow], left: Sequence[int], found: dict[int, Identity]) -> list[int]:
        """Put rows, or find the jobs that have their keys.

        Args:
            rows: The rows of a chunk.
            left: The places of those that are still to be put.
            found: The jobs by place; those that were put or found are added.

        Returns:
            The places of rows that were not put, because a key was taken, and whose key is free again.
        """
        claimed = await self._claim(rows, left)
        tried = [place for place in left if place in claimed or not rows[place].timed]
        new = {tried[number]: job for number, job in (await self._insert([rows[place] for place in tried])).items()}
        found.update(new)
        await self._set_holders(rows, {place: new[place] for place in claimed})
        taken = [place for place in left if place not in found]
        holders = await self._find(rows, taken)
        for place in taken:
            if place in holders and rows[place].on_conflict == "error":
                holder, _ = holders[place]
                raise duplicate_job(rows[place].q_name, rows[place].key, holder)
        await self._replace(rows, holders)
        found.update(holders)
        return [place for place in taken if place not in holders]

    async def _insert(self, rows: Sequence[NewRow]) -> dict[int, Identity]:
        """Insert rows, except those whose key is taken; return the jobs by the numbers of their rows."""
        if not rows:
            return {}
        unkeyed = [number for number, row in enumerate(rows) if row.dedup is None or row.timed]
        values = {
            "items": f"[{','.join([row.text for row in rows])}]",
            "number": len(rows),
            "unkeyed": len(unkeyed),
            "fails": self.s.caller_owned or not self.s.in_transaction(),  # see `insert_many`
        }
        query = self.s.sql.tasks.put_each
        try:
            [[first, places, lowest, put_at, *_]] = await self.s.execute(query, query.bind(values))
        except InvalidData as exc:
            if (refused := await refused_rows(self.engine, self.s, exc, self.doing)) is None:
                raise
            raise refused from exc
        if first is not None and places is None:
            by_place = dict(zip(range(lowest, lowest + len(rows)), range(first, first + len(rows)), strict=True))
        else:
            by_place = ids_by_place(places)
        start = lowest if len(by_place) == len(rows) else 0
        began = 0 if first is None else round(put_at * 1_000_000) - lowest
        put = {place - start: (job, (began + place) / 1_000_000) for place, job in by_place.items()}
        if not put.keys() >= set(unkeyed):
            raise await not_stored(self.engine, self.s, self.doing)
        return put

    async def _claim(self, rows: Sequence[NewRow], left: Iterable[int]) -> set[int]:
        """Claim the keys that are held for a time; return the places of rows whose key was free."""
        claim = self.s.sql.tasks.claim_keys
        claimed: set[int] = set()
        for (q_name, _), places in _by_kind(rows, (place for place in left if rows[place].timed)).items():
            by_key = {rows[place].key: place for place in places}
            items = [{"dedup_key": key, "period": rows[place].period} for key, place in by_key.items()]
            values = {"q_name": q_name, "items": _encode(items)}
            claimed.update(by_key[key] for (key,) in await self.s.execute(claim, claim.bind(values)))
        return claimed

    async def _set_holders(self, rows: Sequence[NewRow], jobs: Mapping[int, Identity]) -> None:
        """Store which jobs hold the keys that were claimed for them."""
        query = self.s.sql.tasks.set_key_holders
        for (q_name, _), places in _by_kind(rows, jobs).items():
            items = [{"dedup_key": rows[place].key, "id": job} for place in places for job, _ in [jobs[place]]]
            await self.s.execute(query, query.bind({"q_name": q_name, "items": _encode(items)}))

    async def _find(self, rows: Sequence[NewRow], places: Iterable[int]) -> dict[int, Identity]:
        """Return the jobs that have the keys of rows, by the places of the rows."""
        tasks = self.s.sql.tasks
        found: dict[int, Identity] = {}
        for (q_name, timed), alike in _by_kind(rows, places).items():
            query = tasks.find_all_held if timed else tasks.find_duplicates
            by_key = {rows[place].key: place for place in alike}
            values = {"q_name": q_name, "dedup_keys": list(by_key)}
            for key, job, put_at in await self.s.execute(query, query.bind(values)):
                found[by_key[key]] = (job, put_at)
        return found

    async def _replace(self, rows: Sequence[NewRow], holders: Mapping[int, Identity]) -> None:
        """Give waiting jobs the content of the rows that replace them; see `Dedup`."""
        query = self.s.sql.tasks.replace_each
        by_queue: dict[str, list[tuple[int, str]]] = {}
        for place, (job, _) in holders.items():
            if rows[place].on_conflict == "replace":
                by_queue.setdefault(rows[place].q_name, []).append((job, rows[place].text))
        for q_name, jobs in sorted(by_queue.items()):
            items = ",".join([f'{{"id":{job},{text[1:]}' for job, text in jobs])
            values = {"q_name": q_name, "items": f"[{items}]", "ids": [job for job, _ in jobs]}
            await self.s.execute(query, query.bind({**values, "channel": channel(q_name)}))


def _by_kind(rows: Sequence[NewRow], places: Iterable[int]) -> dict[tuple[str, bool], list[int]]:
    """Return places by the queue, and by whether the key is held for a time, in an order that all calls use."""
    found: dict[tuple[str, bool], list[int]] = {}
    for place in places:
        found.setdefault((rows[place].q_name, rows[place].timed), []).append(place)
    return dict(sorted(found.items()))
