"""Putting many jobs, each with its own options, all or none; each chunk takes a fixed number of statements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from pqcore import operations
from pqcore.db.engine import Engine
from pqcore.db.savepoints import in_savepoint
from pqcore.db.session import Session
from pqcore.errors import DuplicateJob, InvalidData, TransientError
from pqcore.job import Identity
from pqcore.operations.atomic import atomic
from pqcore.operations.new_rows import Chunk, NewRow, encode_columns
from pqcore.operations.put import ROUNDS, duplicate_job, ids_by_place, key_not_held
from pqcore.operations.put_refusals import not_stored, refused_rows
from pqcore.sql.identifiers import channel

if TYPE_CHECKING:
    import pqcore.operations.parents  # noqa: F401 - with this, the type checker knows the name in `operations`

T = TypeVar("T")
DEADLOCK = "40P01"
DEADLOCKS = 10
"""The largest number of attempts to put rows under dedup keys, if deadlocks end the statement."""
_Key: TypeAlias = tuple[str, bool, str]
"""A queue, whether a key is held for a time, and the key."""


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
        For each row, what ``read`` returns for the row's job, or for the other job that has the row's key.

    Raises:
        DuplicateJob: Another job, or an earlier row, has the key of a row whose ``on_conflict`` is ``"error"``.
        JobNotFound: The table has no job that a row waits for.
        NotStored: The server dropped a row, or hides the job that has a key.
        TransientError: Keys were taken and released, or deadlocks happened, in each attempt; or a deadlock happened in
            a transaction that the caller began.
    """
    if s.caller_owned and not s.in_transaction():
        chunks = iter(list(chunks))  # an invalid item then raises before the driver begins a transaction
    first, second = next(chunks, None), next(chunks, None)
    if first is None:
        return []
    putting = _Putting(engine, s, read, doing)
    if second is None and all(row.dedup is None and row.behind is None for row in first):
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
        """Put chunks; after a deadlock, roll back to a savepoint, and put them again.

        Two calls that put the same keys in different orders wait for each other's rows, which is a deadlock. Sorting
        the rows by key would prevent this, but ids must have the order of the items. Rolling back to the savepoint
        releases the locks on keys.
        """
        sent: list[Chunk] = []
        reading = False  # whether the caller's iterator is being read; an iterator that raised cannot be read again

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
        """Put a chunk of rows; return for each row what the caller needs to know about the row's job."""
        rows, places = self._merge(await self._await_parents(chunk))
        found: dict[int, Identity] = {}
        left = list(range(len(rows)))
        for _ in range(ROUNDS):  # the job that holds a dedup key may finish between two statements
            left = await self._put(rows, left, found)
            if not left:
                return [self.read(found[place]) for place in places]
        raise await key_not_held(self.engine, self.s, rows[left[0]].key)

    async def _await_parents(self, chunk: Chunk) -> Chunk:
        """Mark the parents of the rows' jobs as awaited; return the rows, changed for the jobs that must wait."""
        behind = {place: row.behind for place, row in enumerate(chunk) if row.behind is not None}
        if not behind:
            return chunk
        places = list(behind)

        def subject(number: int) -> str:
            return f"{self.doing}: item {chunk[places[number]].place}"

        found = await operations.parents.await_parents(self.engine, self.s, list(behind.values()), subject)
        blocked = dict(zip(places, found, strict=True))
        return [row.waiting(blocked.get(place)) for place, row in enumerate(chunk)]

    def _merge(self, chunk: Chunk) -> tuple[list[NewRow], list[int]]:
        """Merge rows with the same key; return the rows that are left, and each row's place among them."""
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
        """Put rows; for a row whose dedup key is taken, find the job that holds the key.

        Args:
            rows: The rows of a chunk.
            left: The places of those that are still to be put.
            found: The jobs by place; those that were put or found are added.

        Returns:
            The places of the rows to try again: their keys were taken when the rows were put, but are free now.
        """
        claimed = await self._claim(rows, left)
        tried = [place for place in left if place in claimed or not rows[place].timed]
        new = {tried[number]: job for number, job in (await self._insert([rows[place] for place in tried])).items()}
        found.update(new)
        await self._set_holders(rows, {place: new[place] for place in claimed})
        await self._block(rows, new)
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
        """Insert rows, except those whose key is taken; return the id and time of each new job, by its row's number."""
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
            values = {"q_name": q_name, "items": encode_columns(items)}
            claimed.update(by_key[key] for (key,) in await self.s.execute(claim, claim.bind(values)))
        return claimed

    async def _set_holders(self, rows: Sequence[NewRow], jobs: Mapping[int, Identity]) -> None:
        """Store, for each claimed key, which job holds the key."""
        query = self.s.sql.tasks.set_key_holders
        for (q_name, _), places in _by_kind(rows, jobs).items():
            items = [{"dedup_key": rows[place].key, "id": job} for place in places for job, _ in [jobs[place]]]
            await self.s.execute(query, query.bind({"q_name": q_name, "items": encode_columns(items)}))

    async def _block(self, rows: Sequence[NewRow], jobs: Mapping[int, Identity]) -> None:
        """Store the parents of new jobs that must wait; ``jobs`` has the new jobs by the places of their rows."""
        by_queue: dict[str, list[dict[str, Any]]] = {}
        for place, (job, _) in jobs.items():
            row = rows[place]
            if row.blocked is not None:
                times = {name: row.columns.get(name) for name in ("schedule_at", "schedule_in")}
                by_queue.setdefault(row.q_name, []).append({"id": job, **times, **row.blocked})
        for q_name, blocked in sorted(by_queue.items()):
            await operations.parents.block(self.s, q_name, blocked)

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
    """Group the indexes of rows by queue, and by whether the rows' keys are held for a time; sort the groups."""
    found: dict[tuple[str, bool], list[int]] = {}
    for place in places:
        found.setdefault((rows[place].q_name, rows[place].timed), []).append(place)
    return dict(sorted(found.items()))
