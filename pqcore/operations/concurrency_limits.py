"""Concurrency limits and FIFO groups: which leased jobs may run, and which wait their turn.

A job that was put under a limit or in a group is *limited*.  The take that leases it holds nothing against it
yet: the lease is short, and the attempt is excused.  Then the job is *admitted* here: it gets its places, the lease
its full length, and the attempt counts.  Without a place the job is parked: leased without an end, to nobody.  When a
place is given up, the next parked job gets it, and is due again.
A job's place outlasts its worker: the next worker that leases the job finds its place held.

All is decided under an advisory lock of each key, so it is exact however many
workers there are.  Jobs that are not limited cost nothing of this.

If the server refuses an admission, its jobs are put back.  If it refuses the next one too, they are set aside for
some time, and takes go on behind them: jobs that are not limited do not wait for those that cannot be admitted.

Admission waits for nobody.  While another transaction holds the lock of a key, the first job of that key is
postponed for `PROBE` seconds, and the others are parked.  The job that was postponed finds the lock free
later, and lets in those that could go on.

A job under several keys takes all of its places together.  One that waits may hold those
that were given to it, but only of keys that come before the one it waits for, the scarcest
first: so jobs do not wait for one another in a circle, and none holds a place that
others could use while it waits for one that is harder to get.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any, TypeAlias

from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.isolation import is_above
from pqcore.db.session import Session
from pqcore.errors import NotSupported, PQError
from pqcore.headers import read_headers
from pqcore.locked_keys import PROBE, WAITS
from pqcore.operations.atomic import atomic
from pqcore.rows import JobRow, headers_of, job_rows
from pqcore.settings import QueueSettings
from pqcore.sql.statement import Query

_GROUP = "group:"
_LIMIT = "limit:"
_MARK = '"gate"'

MOST_KEYS = 200
"""Keys that one transaction of pqcore's locks, at most: a server has room for some 6,400 locks by default."""

Keys: TypeAlias = dict[str, int]
"""Keys, and how many places each has; in the order in which a job waits for them."""


class NotAdmittedError(Exception):
    """Leased jobs could not be admitted: ``__cause__`` says why.

    Attributes:
        allowed: The rows that may run all the same.
        left: The rows that have to be put back.
    """

    def __init__(self, allowed: Sequence[JobRow], left: Sequence[JobRow]) -> None:
        self.allowed = allowed
        self.left = left


def is_limited(headers: str | None) -> bool:
    """Return whether a job with these headers may be limited: takes tell so by the same text."""
    return headers is not None and _MARK in headers


def limits_of(headers: str | None) -> dict[str, Any] | None:
    """Return the limits and the group of a job with these headers, as ``put`` wrote them; None without any."""
    if not is_limited(headers):
        return None
    return read_headers(headers)[0].get("gate")


def _keys(limits: dict[str, Any]) -> Keys:
    """The keys that a job needs a place under, and how many places each has; in the order they are waited for."""
    keys = [(int(places), _LIMIT + key) for key, places in limits.get("limits", {}).items()]
    if "group" in limits:
        keys.append((1, _GROUP + limits["group"]))
    return {key: places for places, key in sorted(keys)}


def _most_places(wanted: Iterable[Keys]) -> Keys:
    """Every key of some jobs, with the highest number of places that one of them gives."""
    most: Keys = {}
    for keys in wanted:
        for key, places in keys.items():
            most[key] = max(places, most.get(key, 0))
    return most


def _places_of(headers: str | None, key: str) -> int:
    """The number of places of a key that a job with these headers was put with."""
    return _keys(limits_of(headers) or {}).get(key, 1)


def _locks(engine: Engine, queue: QueueSettings, keys: Iterable[str]) -> dict[int, str]:
    """The advisory locks of keys, in one order for all."""
    locks = {
        int.from_bytes(sha256(f"{engine.names}\0{queue.name}\0{key}".encode()).digest()[:8], "big", signed=True): key
        for key in keys
    }
    return dict(sorted(locks.items()))


async def _lock(engine: Engine, queue: QueueSettings, s: Session, keys: Iterable[str]) -> bool:
    """Lock the keys until the transaction ends, in one order for all.

    Returns:
        Whether the next statements see what the last holders of the locks did: not above READ COMMITTED.
    """
    locks = list(_locks(engine, queue, keys))
    if not locks:
        return True
    query = s.sql.tasks.lock_keys
    rows = await s.execute(query, query.bind({"locks": locks}))
    isolation, *_ = rows[0]
    return s.own or not is_above(isolation)


async def _try_lock(engine: Engine, queue: QueueSettings, s: Session, keys: Iterable[str]) -> set[str]:
    """Lock those keys that no other transaction has locked, until the transaction ends.

    Raises:
        NotSupported: The transaction is the caller's, and above READ COMMITTED.
    """
    locks = _locks(engine, queue, keys)
    if not locks:
        return set()
    query = s.sql.tasks.try_keys
    rows = await s.execute(query, query.bind({"locks": list(locks)}))
    *_, isolation = rows[0]
    if not s.own and is_above(isolation):
        msg = (
            f"queue {queue.name!r}: jobs under a limit or in a group cannot be leased in a transaction that is"
            f" {isolation.upper()}: lease them outside of it, or in one that is READ COMMITTED"
        )
        raise NotSupported(msg)
    return {locks[lock] for lock, locked, _ in rows if locked}


async def acquire_slots(
    engine: Engine, queue: QueueSettings, s: Session, rows: Sequence[Row], lease: float
) -> Sequence[Row]:
    """Of rows just leased, those that may run; the others are parked, or come again later.

    Where nothing is limited this is a look at each row's headers.

    Args:
        engine: Where.
        queue: Whose jobs.
        s: The session that leased them.
        rows: The rows.
        lease: The length of their lease, in seconds.

    Raises:
        NotAdmittedError: The server refused it; some rows have to be put back.
        NotSupported: The transaction is the caller's, and above READ COMMITTED; no row that may run was leased.
    """
    if not any(map(is_limited, map(headers_of, rows))):
        return rows
    named = job_rows(rows)
    limited = [row for row in named if is_limited(row.headers)]
    admission = _Admission(engine, queue, s, limited, lease)
    if s.in_transaction():
        await admission.join(only=len(limited) == len(named))
    else:
        try:
            await admission.run(others=len(limited) < len(named))
        except PQError as exc:
            raise NotAdmittedError(admission.allowed(named), list(admission.undecided.values())) from exc
        queue.contention.admitted()
    return admission.allowed(named)


async def put_back(s: Session, queue: QueueSettings, rows: Sequence[JobRow], delay: float | None = None) -> None:
    """Put leased rows back that were not admitted, as if they had never been taken.

    Args:
        s: The session.
        queue: Their queue.
        rows: The rows.
        delay: Seconds for which no take finds them; None for none.
    """
    ones = sorted((row.id, row.attempts, row.excused) for row in rows)
    values: dict[str, object] = {
        "ids": [job for job, _, _ in ones],
        "tokens": [token for _, token, _ in ones],
        "excuses": [excused for _, _, excused in ones],
    }
    query = s.sql.tasks.put_back if delay is None else s.sql.tasks.put_back_later
    await s.execute(query, query.bind({**values, "q_name": queue.name, "channel": queue.channel, "delay": delay}))


class _Admission:
    """Admits the limited jobs of one take.

    Attributes:
        undecided: The rows of which it is not settled what becomes of them, by job.
    """

    def __init__(self, engine: Engine, queue: QueueSettings, s: Session, rows: Sequence[JobRow], lease: float) -> None:
        self._engine = engine
        self._queue = queue
        self._s = s
        self._lease = lease
        self._limits_by_job = {row.id: limits_of(row.headers) or {} for row in rows}
        self._wanted = {job: _keys(limits) for job, limits in self._limits_by_job.items()}
        self._admitted: set[int] = set()
        self._passed_over: Sequence[JobRow] = ()  # locked by another transaction as they were to be changed
        self.undecided = {row.id: row for row in rows}

    def allowed(self, rows: Sequence[JobRow]) -> list[JobRow]:
        """Of all rows of the take, those that may run."""
        return [
            # The attempt counts from now on.
            row._replace(excused=(row.excused or 0) - 1) if row.id in self._admitted else row
            for row in rows
            if row.id in self._admitted or row.id not in self._wanted
        ]

    async def join(self, *, only: bool) -> None:
        """Admit jobs in the transaction that is open; those that would lock too many keys are put back."""
        part = next(self._parts())
        refusal = None
        try:
            await self._admit(part, last=True)
        except NotSupported as exc:
            refusal = exc
        if self.undecided:
            await put_back(self._s, self._queue, list(self.undecided.values()))
        if refusal is not None and only:
            raise refusal

    async def run(self, *, others: bool) -> None:
        """Admit jobs in transactions of pqcore's own.

        While nothing else of the take may run, jobs whose keys are locked are tried again, for some milliseconds.
        """
        contention = self._queue.contention
        for part in list(self._parts()):
            busy: Sequence[JobRow] = part
            waits = not others and contention.may_wait()
            if waits:
                for pause in WAITS:
                    busy = await self._admit(busy, last=False)
                    if not busy or self._admitted:
                        break
                    await self._engine.runtime.sleep(pause)
            if busy:
                busy = await self._admit(busy, last=True)
            if not busy:
                contention.found_free()
            elif waits and not self._admitted:
                contention.waited_in_vain()
            await self._try_again()

    async def _try_again(self) -> None:
        """Decide about rows that were passed over: a concurrent take locks rows for a moment that it does not get.

        A row that stays locked comes again when its short lease has run out.
        """
        for pause in WAITS:
            if not self._passed_over:
                return
            await self._engine.runtime.sleep(pause)
            await self._admit(self._passed_over, last=True)
        for row in self._passed_over:
            del self.undecided[row.id]
        self._passed_over = ()

    def _parts(self) -> Iterator[Sequence[JobRow]]:
        """The rows, in parts that need no more than `MOST_KEYS` keys."""
        part: list[JobRow] = []
        keys: set[str] = set()
        for row in self.undecided.values():
            more = keys | self._wanted[row.id].keys()
            if len(more) > MOST_KEYS and part:
                yield part
                part, more = [], set(self._wanted[row.id])
            part.append(row)
            keys = more
        yield part

    async def _admit(self, rows: Sequence[JobRow], *, last: bool) -> Sequence[JobRow]:
        """Decide what becomes of rows; those of which a key is locked by another transaction.

        Args:
            rows: The rows.
            last: Whether those are postponed, or parked, and not left to be tried again. Rows that are locked
                themselves are passed over then.
        """
        s = self._s
        jobs = [row.id for row in rows]
        places = _most_places(self._wanted[job] for job in jobs)
        async with atomic(s):
            locked = await _try_lock(self._engine, self._queue, s, places)
            state = await self._look(jobs, places, locked)
            decided = self._decide(jobs, state, last=last)
            stored = await self._store(decided, {row.id: row.attempts for row in rows})
            opened = {key for key in state.awaited if state.used[key] < places[key]}
            opened |= {key for key, _ in decided.given_up} & locked
            await _unpark_next(self._queue, s, {key: places[key] for key in opened})
        self._admitted |= stored.intersection(decided.admitted)
        left = set(jobs) - stored  # of those that are busy, only what was postponed or parked is stored
        for job in stored:
            del self.undecided[job]
        if not last:
            return [row for row in rows if row.id in left]
        self._passed_over = [row for row in rows if row.id in left]
        return [row for row in rows if row.id in decided.busy]

    async def _look(self, jobs: Sequence[int], places: Keys, locked: set[str]) -> _State:
        """Look at places and groups; what is found of keys that are locked is exact."""
        s, tasks = self._s, self._s.sql.tasks
        state = _State(locked)
        if places:
            values: dict[str, object] = {"q_name": self._queue.name, "keys": list(places), "ids": list(jobs)}
            for key, number, awaited in await s.execute(tasks.count_slots, tasks.count_slots.bind(values)):
                state.used[key] = number
                if awaited and key in locked:
                    state.awaited.add(key)
            slots = await s.execute(tasks.slots_of, tasks.slots_of.bind(values))
            state.holders = {(key, job) for key, job in slots}
        groups = sorted(key.removeprefix(_GROUP) for key in locked if key.startswith(_GROUP))
        if groups:
            values = {"q_name": self._queue.name, "groups": groups}
            heads = await s.execute(tasks.group_heads, tasks.group_heads.bind(values))
            state.heads = {_GROUP + group: job for group, job in heads}
        return state

    def _decide(self, jobs: Sequence[int], state: _State, *, last: bool) -> _Decided:
        decided = _Decided()
        for job in jobs:
            wanted = self._wanted[job]
            missing = [key for key in wanted if (key, job) not in state.holders]
            stop = next((key for key in missing if not state.has_room(key, job, wanted[key])), None)
            if stop is None:
                decided.admitted.append(job)
                decided.taken += [(key, job) for key in missing]
                for key in missing:
                    state.used[key] += 1
            elif stop in state.locked:
                keys = list(wanted)
                decided.parked.setdefault(stop, []).append(job)
                decided.given_up += [(key, job) for key in keys[keys.index(stop) :] if (key, job) in state.holders]
            else:
                decided.busy.add(job)
                if last and (len(missing) < len(wanted) or self._queue.contention.probes(stop)):
                    decided.postponed.append(job)
                elif last:
                    decided.parked.setdefault(stop, []).append(job)
        return decided

    async def _store(self, decided: _Decided, tokens: dict[int, int]) -> set[int]:
        """Store what was decided; the jobs of which that was stored: they are held, and nobody else has them locked."""
        s, queue, tasks = self._s, self._queue, self._s.sql.tasks
        stored: set[int] = set()

        async def change(query: Query, jobs: Sequence[int], **values: object) -> None:
            ids = sorted(jobs)
            values |= {"q_name": queue.name, "ids": ids, "tokens": [tokens[job] for job in ids]}
            stored.update(job for (job, *_) in await s.execute(query, query.bind(values)))

        if decided.admitted:
            started = [job for job in decided.admitted if "dedup" in self._limits_by_job[job]]
            await change(tasks.admit, decided.admitted, lease=self._lease, started=started)
        if taken := [(key, job) for key, job in decided.taken if job in stored]:
            values = {"q_name": queue.name, "keys": [key for key, _ in taken], "ids": [job for _, job in taken]}
            await s.execute(tasks.take_slots, tasks.take_slots.bind(values))
        for key, jobs in sorted(decided.parked.items()):
            await change(tasks.park, jobs, key=key)
        if decided.postponed:
            await change(tasks.postpone, decided.postponed, delay=PROBE)
            queue.contention.postponed()
        if decided.given_up:
            await _free_places(queue, s, decided.given_up)
        return stored


@dataclass
class _State:
    """How the keys of some jobs are used.

    Attributes:
        locked: Those that the transaction has locked.
        used: How many places are taken.
        awaited: Those of the locked ones on which jobs are parked.
        holders: The places of the jobs: keys, and jobs.
        heads: The jobs that are the first of their groups.
    """

    locked: set[str]
    used: Keys = field(default_factory=dict)
    awaited: set[str] = field(default_factory=set)
    holders: set[tuple[str, int]] = field(default_factory=set)
    heads: dict[str, int] = field(default_factory=dict)

    def has_room(self, key: str, job: int, places: int) -> bool:
        """Return whether the key is locked, and the job may have one of its places."""
        return key in self.locked and self.used[key] < places and self.heads.get(key, job) == job


@dataclass
class _Decided:
    """What becomes of jobs.

    Attributes:
        admitted: May run.
        taken: Places that they get: keys, and jobs.
        parked: Wait for a place, by key.
        given_up: Places that those give up meanwhile.
        busy: Jobs of which a key is locked by another transaction.
        postponed: Those of them that are tried again by themselves.
    """

    admitted: list[int] = field(default_factory=list)
    taken: list[tuple[str, int]] = field(default_factory=list)
    parked: dict[str, list[int]] = field(default_factory=dict)
    given_up: list[tuple[str, int]] = field(default_factory=list)
    busy: set[int] = field(default_factory=set)
    postponed: list[int] = field(default_factory=list)


async def lock_limits(engine: Engine, queue: QueueSettings, s: Session, limits: Iterable[dict[str, Any]]) -> None:
    """Lock all keys of limited jobs that are about to give up their places, before their rows are.

    Raises:
        NotSupported: The transaction is the caller's, and above READ COMMITTED.
    """
    s.late = not await _lock(engine, queue, s, {key for each in limits for key in _keys(each)})
    if s.late and s.owed is None:
        msg = (
            f"queue {queue.name!r}: the places of jobs under a limit or in a group cannot be given up in a transaction"
            " of yours that is above READ COMMITTED: begin it as READ COMMITTED, or use `with queue`"
        )
        raise NotSupported(msg)


async def try_lock_limits(
    engine: Engine, queue: QueueSettings, s: Session, limits_by_job: dict[int, dict[str, Any]]
) -> set[int]:
    """Lock keys of limited jobs as `lock_limits` does, but wait for no lock; return the jobs with all locked."""
    wanted = {job: _keys(limits).keys() for job, limits in limits_by_job.items()}
    locked = await _try_lock(engine, queue, s, {key for keys in wanted.values() for key in keys})
    s.late = False
    return {job for job, keys in wanted.items() if keys <= locked}


def split_limits(limits_by_job: dict[int, dict[str, Any]]) -> Iterator[dict[int, dict[str, Any]]]:
    """Split limits by job into parts that lock no more than `MOST_KEYS` keys."""
    part: dict[int, dict[str, Any]] = {}
    keys: set[str] = set()
    for job, limits in limits_by_job.items():
        own = _keys(limits).keys()
        if part and len(keys | own) > MOST_KEYS:
            yield part
            part, keys = {}, set()
        part[job] = limits
        keys |= own
    if part:
        yield part


async def release_slots(
    engine: Engine, queue: QueueSettings, s: Session, limits_by_job: dict[int, dict[str, Any]], *, locked: bool = False
) -> None:
    """Free the places of jobs, and let those run that waited for them.

    In a block above READ COMMITTED, which does not see all that wait, those are let in after its commit.

    Args:
        engine: Where.
        queue: Whose jobs.
        s: A session with a transaction open.
        limits_by_job: What `limits_of` gave, by job.
        locked: Whether `lock_limits` was called before.
    """
    keys = _most_places(_keys(limits) for limits in limits_by_job.values())
    if not keys:
        return
    if not locked:
        await lock_limits(engine, queue, s, limits_by_job.values())
    tasks = s.sql.tasks
    await s.execute(tasks.free_slots, tasks.free_slots.bind({"q_name": queue.name, "ids": sorted(limits_by_job)}))
    if s.late and s.owed is not None:
        s.owed.append(partial(_unpark_later, engine, queue, keys))
    else:
        await _unpark_next(queue, s, keys)


async def _unpark_later(engine: Engine, queue: QueueSettings, keys: Keys, s: Session) -> None:
    """Let those in that waited for places which a block has given up, and committed.

    A key that stays locked by another transaction is left to the next admission under it, or to the sweep.
    """
    left = dict(keys)
    for pause in WAITS:
        async with atomic(s):
            locked = await _try_lock(engine, queue, s, left)
            await _unpark_next(queue, s, {key: left[key] for key in locked})
        left = {key: places for key, places in left.items() if key not in locked}
        if not left:
            return
        await engine.runtime.sleep(pause)


async def _free_places(queue: QueueSettings, s: Session, places: Sequence[tuple[str, int]]) -> None:
    """Free single places of jobs that are parked; their keys are locked."""
    values = {"q_name": queue.name, "keys": [key for key, _ in places], "ids": [job for _, job in places]}
    await s.execute(s.sql.tasks.free_places, s.sql.tasks.free_places.bind(values))


async def _unpark_next(queue: QueueSettings, s: Session, keys: Keys) -> None:
    """Let parked jobs go on, as far as a key has places; no job past the number that it was put with.

    Args:
        queue: Whose jobs.
        s: A session with a transaction open, in which the keys are locked.
        keys: How many places each key has, as another job says: one that is forged may say too many.
    """
    tasks = s.sql.tasks
    for key, places in sorted(keys.items()):
        values: dict[str, object] = {"q_name": queue.name, "key": key}
        told = {**values, "channel": queue.channel}
        if key.startswith(_GROUP):
            query = tasks.unpark_head
            await s.execute(query, query.bind({**told, "group": key.removeprefix(_GROUP)}))
            continue
        past = []
        rows = await s.execute(tasks.unpark, tasks.unpark.bind({**told, "places": places}))
        used = next((number for _, _, number, *_ in rows), 0)
        for job, headers, *_ in rows:
            if used < _places_of(headers, key):
                used += 1
            else:
                past.append(job)
        if past:
            await s.execute(tasks.park_again, tasks.park_again.bind({**values, "ids": sorted(past)}))


async def sweep(engine: Engine, queue: QueueSettings, s: Session) -> None:
    """Free places of jobs that are gone, and let in jobs that can go on; the next sweep does what is locked now.

    For what was deleted, finished or taken by other ways than a worker's: nobody told those that wait.
    """
    tasks = s.sql.tasks
    await s.execute(tasks.sweep_slots, tasks.sweep_slots.bind({"q_name": queue.name}))
    circle = _deadlocked_slots(
        await s.execute(tasks.slots_of_parked, tasks.slots_of_parked.bind({"q_name": queue.name}))
    )
    rows = await s.execute(tasks.parked_keys, tasks.parked_keys.bind({"q_name": queue.name}))
    for key, headers in rows:
        places = _places_of(headers, key)
        async with atomic(s):
            if not await _try_lock(engine, queue, s, [key]):
                continue
            if surplus := [(held, job) for held, job in circle if held == key]:
                await _free_places(queue, s, surplus)
            await _unpark_next(queue, s, {key: places})


def _deadlocked_slots(held: Iterable[Row]) -> list[tuple[str, int]]:
    """The places of jobs that wait for one another: so they do if they were put with other limits for the same keys.

    Args:
        held: Of each place of a job that is parked: its key, the job, the key that the job waits for.
    """
    places: list[Row] = list(held)
    while True:
        keys = {key for key, _, _ in places}
        left: list[Row] = [(key, job, awaited) for key, job, awaited in places if awaited in keys]
        if len(left) == len(places):
            return [(key, job) for key, job, _ in left]
        places = left
