"""Concurrency limits and FIFO groups: which leased jobs may run, and which wait their turn.

A job that was put under a limit or in a group is *gated*.  Whoever leases it
asks for its places here; without one the job is parked: leased for ever, to
nobody.  When a place is given up, the next parked job gets it, and is due again.
A job's place outlasts its worker: whoever takes the job over finds it held.

All is decided under an advisory lock of each key, so it is exact however many
workers there are.  Jobs that are not gated cost nothing of this.

A job under several keys takes all of its places at once.  One that waits may hold those
that were given to it, but only of keys that come before the one it waits for, the scarcest
first: so jobs do not wait for one another in a circle, and none holds a place that
others could use while it waits for one that is harder to get.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from pqcore.backend import Row
from pqcore.engine import Engine
from pqcore.headers import read_headers
from pqcore.operations.transactions import atomic
from pqcore.sessions import CoreSession
from pqcore.settings import QueueSettings

_GROUP = "group:"
_LIMIT = "limit:"


def gate_of(headers: str | None) -> dict[str, Any] | None:
    """The gate of a row with these headers, if it has one."""
    if headers is None or '"gate"' not in headers:
        return None
    return read_headers(headers)[0].get("gate")


def _keys(gate: dict[str, Any]) -> dict[str, int]:
    """The keys that a job needs a place under, and how many places each has; in the order they are waited for."""
    keys = [(int(places), _LIMIT + key) for key, places in gate.get("limits", {}).items()]
    if "group" in gate:
        keys.append((1, _GROUP + gate["group"]))
    return {key: places for places, key in sorted(keys)}


async def _lock(engine: Engine, queue: QueueSettings, s: CoreSession, keys: Iterable[str]) -> None:
    """Lock the keys until the transaction ends, in one order for all."""
    locks = sorted(
        int.from_bytes(sha256(f"{engine.names}\0{queue.name}\0{key}".encode()).digest()[:8], "big", signed=True)
        for key in keys
    )
    if locks:
        await s.execute(s.sql.tasks.lock_keys, s.sql.tasks.lock_keys.bind({"locks": locks}))


async def admit(engine: Engine, queue: QueueSettings, s: CoreSession, rows: Sequence[Row]) -> Sequence[Row]:
    """Of rows just leased, those that may run; the others are parked.

    Where nothing is gated this is a look at each row's headers.
    """
    gates = {row[0]: gate for row in rows if (gate := gate_of(row[8])) is not None}
    if not gates:
        return rows
    wanted = {job: _keys(gate) for job, gate in gates.items()}
    places = {key: number for keys in wanted.values() for key, number in keys.items()}
    groups = sorted({gate["group"] for gate in gates.values() if "group" in gate})
    tasks = s.sql.tasks
    async with atomic(s):
        await _lock(engine, queue, s, places)
        used: dict[str, int] = {}
        holders: set[tuple[str, int]] = set()
        heads: dict[str, int] = {}
        if places:
            values: dict[str, object] = {"q_name": queue.name, "keys": list(places), "ids": list(gates)}
            used = {row[0]: row[1] for row in await s.execute(tasks.count_slots, tasks.count_slots.bind(values))}
            holders = {(row[0], row[1]) for row in await s.execute(tasks.slots_of, tasks.slots_of.bind(values))}
        if groups:
            values = {"q_name": queue.name, "groups": groups}
            heads = {
                _GROUP + row[0]: row[1] for row in await s.execute(tasks.group_heads, tasks.group_heads.bind(values))
            }
        taken: list[tuple[str, int]] = []
        given_up: list[tuple[str, int]] = []
        parked: dict[str, list[tuple[int, int]]] = {}
        for row in rows:
            job = row[0]
            missing = [key for key in wanted.get(job, ()) if (key, job) not in holders]
            full = next(
                (key for key in missing if used.get(key, 0) >= wanted[job][key] or heads.get(key, job) != job), None
            )
            if full is not None:
                parked.setdefault(full, []).append((job, row[4]))
                keys = list(wanted[job])
                given_up += [(key, job) for key in keys[keys.index(full) :] if (key, job) in holders]
                continue
            for key in missing:
                used[key] = used.get(key, 0) + 1
                taken.append((key, job))
        if taken:
            values = {"q_name": queue.name, "keys": [key for key, _ in taken], "ids": [job for _, job in taken]}
            await s.execute(tasks.take_slots, tasks.take_slots.bind(values))
        for key, ones in sorted(parked.items()):
            held = sorted(ones)
            values = {"ids": [job for job, _ in held], "tokens": [token for _, token in held]}
            values |= {"q_name": queue.name, "key": key}
            await s.execute(tasks.park, tasks.park.bind(values))
        if given_up:
            await _free_places(queue, s, given_up)
            await _let_in(queue, s, {key: places[key] for key, _ in given_up})
        waiting = {job for ones in parked.values() for job, _ in ones}
        started = [job for job, gate in gates.items() if "dedup" in gate and job not in waiting]
        if started:
            await s.execute(tasks.drop_dedup, tasks.drop_dedup.bind({"q_name": queue.name, "ids": sorted(started)}))
    return [row for row in rows if row[0] not in waiting]


async def lock_gates(engine: Engine, queue: QueueSettings, s: CoreSession, gates: Iterable[dict[str, Any]]) -> None:
    """Lock all keys of gated jobs that are about to give up their places, before their rows are."""
    await _lock(engine, queue, s, {key for gate in gates for key in _keys(gate)})


async def give_up(
    engine: Engine, queue: QueueSettings, s: CoreSession, gates: dict[int, dict[str, Any]], *, locked: bool = False
) -> None:
    """Free the places of jobs, and let those run that waited for them.

    Args:
        engine: Where.
        queue: Whose jobs.
        s: A session with a transaction open.
        gates: The gates, by job.
        locked: Whether `lock_gates` was called before.
    """
    keys = {key: places for gate in gates.values() for key, places in _keys(gate).items()}
    if not keys:
        return
    if not locked:
        await _lock(engine, queue, s, keys)
    tasks = s.sql.tasks
    await s.execute(tasks.free_slots, tasks.free_slots.bind({"q_name": queue.name, "ids": sorted(gates)}))
    await _let_in(queue, s, keys)


async def _free_places(queue: QueueSettings, s: CoreSession, places: Sequence[tuple[str, int]]) -> None:
    """Free single places of jobs that are parked; their keys are locked."""
    values = {"q_name": queue.name, "keys": [key for key, _ in places], "ids": [job for _, job in places]}
    await s.execute(s.sql.tasks.free_places, s.sql.tasks.free_places.bind(values))


async def _let_in(queue: QueueSettings, s: CoreSession, keys: dict[str, int]) -> None:
    tasks = s.sql.tasks
    for key, places in sorted(keys.items()):
        values: dict[str, object] = {"q_name": queue.name, "key": key, "channel": queue.channel}
        if key.startswith(_GROUP):
            query = tasks.unpark_head
            values["group"] = key.removeprefix(_GROUP)
        else:
            query = tasks.unpark
            values["places"] = places
        await s.execute(query, query.bind(values))


async def sweep(engine: Engine, queue: QueueSettings, s: CoreSession) -> None:
    """Free places of jobs that are gone, and let in who can go on.

    For what was deleted, finished or taken by other ways than a worker's: nobody told those that wait.
    """
    tasks = s.sql.tasks
    await s.execute(tasks.sweep_slots, tasks.sweep_slots.bind({"q_name": queue.name}))
    circle = _circle(await s.execute(tasks.held_in_vain, tasks.held_in_vain.bind({"q_name": queue.name})))
    rows = await s.execute(tasks.parked_keys, tasks.parked_keys.bind({"q_name": queue.name}))
    for key, headers in rows:
        places = _keys(gate_of(headers) or {}).get(key, 1)
        async with atomic(s):
            await _lock(engine, queue, s, [key])
            if surplus := [place for place in circle if place[0] == key]:
                await _free_places(queue, s, surplus)
            await _let_in(queue, s, {key: places})


def _circle(held: Iterable[Row]) -> list[tuple[str, int]]:
    """The places of jobs that wait for one another: so they do if they were put with other limits for the same keys.

    Args:
        held: Of each place of a job that is parked: its key, the job, the key that the job waits for.
    """
    places = list(held)
    while True:
        keys = {key for key, _, _ in places}
        left = [place for place in places if place[2] in keys]
        if len(left) == len(places):
            return [(key, job) for key, job, _ in left]
        places = left
