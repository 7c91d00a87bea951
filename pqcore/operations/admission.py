"""Leasing jobs that name keys, shares or priorities: the statement that takes a job also admits it.

`pqcore.lanes` explains lanes, and `pqcore.sql.admission_statements` explains how keys are locked and counted. Taking
jobs never waits for another transaction: a locked key is skipped, and tried again after a few milliseconds.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.isolation import is_above
from pqcore.db.session import Session
from pqcore.errors import NotSupported, PQError
from pqcore.job import BaseJob
from pqcore.lane_book import LaneBook
from pqcore.lane_choice import Choice
from pqcore.lanes import has_lane, lane_of, lane_values, read_lane
from pqcore.operations.atomic import atomic
from pqcore.operations.lease import ids_and_tokens
from pqcore.rows import JobRow, job_rows, place_of
from pqcore.settings import QueueSettings
from pqcore.sql.admission_statements import ADOPT, MOST_LANES
from pqcore.sql.fragments import UNNAMED

logger = logging.getLogger("pqcore")

WAITS = (0.002, 0.01, 0.04)
"""Approximate seconds between tries while other transactions lock keys, which a take does only for milliseconds."""
REFUSED = 0.25
"""Seconds after which a patient caller looks again if the server refuses to admit jobs."""
SPARE = 20
"""If the first rows of a lane are locked, a take looks at this number of rows behind them."""
_BUSY, _PLAIN, _SUMMARIES, _ENDED, _PLACES = (-2, -4), (-3, -4), (-1, -2, -3, -4), -5, -7
_NO_ARRIVALS = 2**63 - 1
_MOST_PARTS = 20
"""The largest number of statements with which a sweep writes the lanes of jobs, for `ADOPT` jobs in each statement."""


class Taken(NamedTuple):
    """The jobs that a statement leased under the places that became free when it ended other jobs.

    Attributes:
        rows: The rows, in order.
        keys: The key of each job that was leased ahead. The places of this key limit how many of these jobs may run.
        places: How many of the jobs that were leased ahead, now or before, may run under each key.
        left_none: Whether no other job could be leased, neither from a lane nor without a lane.
    """

    rows: Sequence[JobRow]
    keys: Mapping[int, str]
    places: Mapping[str, int]
    left_none: bool


async def find_lanes(queue: QueueSettings, s: Session, *, idle: bool = False) -> bool:
    """Look for lanes with waiting jobs, and record the lanes in the queue object (`LaneBook`).

    Args:
        queue: The queue.
        s: The session.
        idle: Whether a take has just found nothing.

    Returns:
        Whether the look found a lane or job that no take has considered.
    """
    book: LaneBook = queue.lanes
    now, query = time.monotonic(), s.sql.tasks.find_lanes
    asked = book.question(now, idle=idle)
    rows = await s.execute(query, query.bind({**asked, "q_name": queue.name}))
    news, unknown = book.learn(asked, rows, now, MOST_LANES, s.last_reply_at)
    in_transaction = s.in_transaction()
    for text in unknown:
        try:
            await name_lanes(queue, s, text)
            if text == UNNAMED:
                await _adopt_due(queue, s)
            news = True
        except PQError as exc:
            if in_transaction or not s.usable():
                raise
            # the statement failed only for these jobs: the loop still writes the lanes of other jobs
            logger.warning("%r: cannot assign jobs of %r to their lanes yet: %s", queue.name, text, exc)
    return news


async def _adopt_due(queue: QueueSettings, s: Session) -> None:
    """Assign lanes to due jobs that should wait on a lane, but do not yet."""
    find = s.sql.tasks.find_unadopted
    async with atomic(s):
        await adopt(queue, s, await s.execute(find, find.bind({"q_name": queue.name})))


async def name_lanes(queue: QueueSettings, s: Session, text: str, parts: int = 1) -> None:
    """Find waiting jobs whose rows have ``text`` instead of a lane, and write the lanes that their headers name.

    If a lane is too long to be written out, record the lane in the queue object (`LaneBook`).

    Args:
        queue: The queue.
        s: The session.
        text: The text that the rows of the jobs have in place of their lanes.
        parts: The largest number of statements, each of which writes the lanes of `ADOPT` jobs.
    """
    find = s.sql.tasks.find_unnamed
    for _ in range(parts):
        async with atomic(s):
            rows = await s.execute(find, find.bind({"q_name": queue.name, "lane": text}))
            if await adopt(queue, s, rows, but=text) or len(rows) < ADOPT:
                return


async def adopt(queue: QueueSettings, s: Session, rows: Iterable[Sequence[Any]], but: str | None = None) -> bool:
    """Write the lanes of jobs that had no lane when a take found and parked them.

    Args:
        queue: The queue.
        s: The session.
        rows: The id and the headers of each job.
        but: The text of the lane that the jobs are on.

    Returns:
        Whether the jobs are already on the right lane, which is too long to be written out.
    """
    lanes: list[dict[str, object]] = []
    for job, headers in rows:
        lane = lane_of(headers)
        if lane is not None and lane.text == but:
            queue.lanes.add(lane)
            return True
        lanes.append({"id": job, **lane_values(lane)})
        if lane is not None:
            queue.lanes.add(lane).taken = 0  # the job may come earlier on the lane than the job that was taken last
    if lanes:
        queue.lanes.adopted += len(lanes)
        query = s.sql.tasks.set_lanes
        await s.execute(query, query.bind({"q_name": queue.name, "lanes": json.dumps(lanes)}))
    return False


async def take(
    engine: Engine, queue: QueueSettings, s: Session, n: int, lease: float, *, patient: bool = False
) -> tuple[Sequence[Row], float | None]:
    """Lease up to ``n`` jobs from the queue's lanes and from the jobs without a lane, in their common order.

    Args:
        engine: The engine.
        queue: The queue.
        s: The session.
        n: The largest number of jobs.
        lease: The length of the lease, in seconds.
        patient: Whether to look again later, instead of raising, if the server refuses to admit jobs.

    Returns:
        The rows; if there are none, the seconds until the next look is worthwhile: 0 for immediately, None if unknown.

    Raises:
        NotSupported: The transaction is the caller's, and its isolation level is above READ COMMITTED.
    """
    if (isolation := await _isolation_above(s)) is not None:
        if not (plain := await _take_plain_only(queue, s, n, lease)):
            msg = (
                f"queue {queue.name!r}: jobs under a limit or in a group cannot be leased in a transaction that is"
                f" {isolation.upper()}: lease them outside of it, or in one that is READ COMMITTED"
            )
            raise NotSupported(msg)
        return plain, None
    book = queue.lanes
    wait: float | None = None
    spare = 0
    now = time.monotonic()
    choice = book.choose(n, now)
    query = s.sql.take_lanes(n)
    for pause in (*WAITS, None):
        values = {**choice.values(), "q_name": queue.name, "lease": lease, "spare": spare}
        values["out_within"] = out_within = book.out_within(now)
        try:
            *found, told = await s.execute(query, query.bind(values))
        except PQError as exc:
            if not s.usable():
                book.set_aside(now)
            if s.in_transaction() or not s.usable():
                raise
            plain = await _take_plain_only(queue, s, n, lease)
            if not plain and not patient:
                raise
            logger.warning("%r: jobs under a limit or in a group cannot be leased: %s", queue.name, exc)
            return plain, None if plain else REFUSED
        *_, state, wait, missing = told
        book.looked_for_hidden(out_within, now, s.last_reply_at, found=state in _PLAIN)
        rows = [(JobRow._make(job), place) for *job, place, _, _ in found]
        taken = await _settle(queue, s, choice, rows)
        await _reserve(queue, s, choice, now)
        if taken:
            return taken, None
        if rows:  # the take has parked all these jobs
            return (), 0.0
        if missing is not None:
            choice = choice.without(await _create_keys(queue, s, choice, json.loads(missing)))
        elif state not in _BUSY:
            if out_within is not None or not all(known.is_full for known in choice.lanes):
                book.note_miss()
            if out_within is not None:  # a later take considers the hidden jobs that this take left out
                pause = book.hidden_look_in(s.last_reply_at)
                wait = pause if wait is None else min(float(wait), pause)
            return (), None if wait is None else float(wait)
        else:
            spare = SPARE
            # the pause is random, so that two takes that need the same two keys do not fail together again
            if pause is not None:
                await engine.runtime.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
    return (), WAITS[-1]


async def end_and_take(
    engine: Engine,
    queue: QueueSettings,
    s: Session,
    jobs: Sequence[BaseJob],
    n: int,
    lease: float,
    times: int,
    ahead: Sequence[tuple[int, int]],
) -> tuple[set[tuple[int, int]], Taken]:
    """Finish leased jobs without follow-ups, and lease jobs under the places that become free, in one statement.

    If a key has no row yet, further statements insert the row and lease the jobs.

    Args:
        engine: The engine.
        queue: The queue.
        s: The session, which has no open transaction.
        jobs: The jobs that end.
        n: The largest number of jobs to lease.
        lease: The length of the lease, in seconds.
        times: How many jobs under one limit may be leased for each place; the caller runs no more than
            `Taken.places` says.
        ahead: The ids and tokens of the jobs that the caller leased in this way before, and that do not end now.

    Returns:
        The ids and tokens of the jobs that ended, and the jobs that were leased. More jobs may be ready.
    """
    book = queue.lanes
    if looked := book.must_find(time.monotonic(), ends=True):  # while all slots are busy, no other take looks for lanes
        await find_lanes(queue, s)
    now = time.monotonic()
    choice, out_within = book.choose(n, now), book.out_within(now)
    query = s.sql.end_and_take(queue.retention, n)
    values = {
        **choice.values(times),
        **ids_and_tokens(jobs),
        "own": [job for job, _ in ahead],
        "own_tokens": [token for _, token in ahead],
        "q_name": queue.name,
        "lease": lease,
        "spare": 0,
        "channel": queue.channel,
        "out_within": out_within,
    }
    found = await s.execute(query, query.bind(values))
    states = {place for *_, place, _, _ in found}
    book.looked_for_hidden(out_within, now, s.last_reply_at, found=not states.isdisjoint(_PLAIN))
    ended = {(job, token) for job, _, _, _, token, *_, place, _, _ in found if place == _ENDED}
    rows = [(JobRow._make(job), place) for *job, place, _, _ in found if place >= 0]
    [places] = [json.loads(text or "{}") for *_, place, _, text in found if place == _PLACES]
    taken = await _settle(queue, s, choice, rows)
    await _reserve(queue, s, choice, now)
    of_lanes = [(row.id, choice.lanes[place - 1].lane.limit) for row, place in rows if place]
    keys = {job: key for job, key in of_lanes if key in places}
    for missing in [text for *_, place, _, text in found if place in _SUMMARIES and text is not None]:
        await _create_keys(queue, s, choice, json.loads(missing))
        more, _ = await take(engine, queue, s, n, lease, patient=True)
        taken += job_rows(more)
    left_none = looked and len(rows) < n and not book.is_narrow and states.isdisjoint(_BUSY)
    return ended, Taken(taken, keys, places, left_none)


async def _settle(queue: QueueSettings, s: Session, choice: Choice, rows: list[tuple[JobRow, int]]) -> list[JobRow]:
    """Record the rows that a take returned, and return the leased ones in order; write the lanes of parked jobs."""
    adopted = [row for row, place in rows if not place and has_lane(row.headers)]
    if adopted:
        rows = [(row, place) for row, place in rows if place or not has_lane(row.headers)]
    queue.lanes.took(choice, rows, s.last_reply_at)
    await _adopt_with_others(queue, s, adopted)
    priorities = {row.id: choice.lanes[place - 1].lane.priority if place else 0 for row, place in rows}
    return sorted((row for row, _ in rows), key=lambda row: (-priorities[row.id], *place_of(row)))


async def adopt_among(queue: QueueSettings, s: Session, rows: Sequence[Row]) -> list[JobRow]:
    """Return the rows that a plain take leased, and write the lanes of the jobs that the take parked."""
    named = job_rows(rows)
    await _adopt_with_others(queue, s, [row for row in named if has_lane(row.headers)])
    return [row for row in named if not has_lane(row.headers)]


async def _adopt_with_others(queue: QueueSettings, s: Session, rows: Sequence[JobRow]) -> None:
    """Write the lanes of jobs that a take parked, and of other due jobs that have no lane yet.

    Outside a transaction, an error is only logged: the take is already committed, so the caller gets the leased jobs,
    and a later look writes the lanes.
    """
    if not rows:
        return
    in_transaction = s.in_transaction()
    try:
        await adopt(queue, s, [(row.id, row.headers) for row in rows])
        await _adopt_due(queue, s)
    except PQError as exc:
        if in_transaction:
            raise
        logger.warning("%r: cannot assign due jobs to their lanes yet: %s", queue.name, exc)


async def _take_plain_only(queue: QueueSettings, s: Session, n: int, lease: float) -> list[JobRow]:
    """Lease only jobs without a lane."""
    query = s.sql.fetch("unguarded", "lease", n)
    return await adopt_among(queue, s, await s.execute(query, query.bind({"q_name": queue.name, "lease": lease})))


async def _isolation_above(s: Session) -> str | None:
    """Return the isolation level of a caller's transaction if it is above READ COMMITTED; otherwise return None.

    Above READ COMMITTED, new lanes are not visible in the transaction.
    """
    if s.own or not s.in_transaction():
        return None
    [[isolation]] = await s.execute(s.sql.tasks.transaction_isolation)
    return str(isolation) if is_above(isolation) else None


async def _create_keys(queue: QueueSettings, s: Session, choice: Choice, keys: Iterable[str]) -> set[str]:
    """Insert rows for keys that have no row; return the keys that another transaction is inserting now.

    Outside a transaction, also insert rows for the other keys of ``choice``, because the next statements that take jobs
    may need these rows. In a transaction, other sessions could not insert these rows until it ends.
    """
    missing, some = set(keys), s.in_transaction()
    needs = {str(need["key"]): need for need in choice.needs() if not some or need["key"] in missing}
    query = s.sql.tasks.create_keys
    values = {"q_name": queue.name, "table": str(queue.table), "needs": json.dumps(list(needs.values()))}
    return missing - {key for (key,) in await s.execute(query, query.bind(values))}


async def _reserve(queue: QueueSettings, s: Session, choice: Choice, now: float) -> None:
    """Reserve keys for jobs that need several keys and have waited long, so that these jobs get a turn."""
    for known in choice.patient(now):
        known.blocked_since = now
        needs = [{"key": key, "number": number, "newest": known.newest} for key, number in known.lane.needs]
        query = s.sql.tasks.reserve
        values = {"q_name": queue.name, "lane": known.lane.text, "needs": json.dumps(needs)}
        in_transaction = s.in_transaction()
        try:
            await s.execute(query, query.bind(values))
        except PQError as exc:
            if in_transaction:
                raise
            logger.warning("%r: cannot reserve places for a job under several limits: %s", queue.name, exc)
            return  # the take is committed, so the caller gets the leased jobs


async def sweep(queue: QueueSettings, s: Session) -> None:
    """Correct the lanes of jobs, and the rows of keys, after other programs or older versions have changed jobs.

    pq, older versions of pqcore and SQL statements finish and lease waiting jobs, but do not remove the jobs from
    their lanes. Older versions also park jobs.
    """
    tasks = s.sql.tasks
    await s.execute(tasks.leave_lanes, tasks.leave_lanes.bind({"q_name": queue.name}))
    after: Any = ""
    unknown: list[str] = []
    while after is not None:
        asked = {"q_name": queue.name, "after": after, "newest": _NO_ARRIVALS, "since": 0.0}
        found = await s.execute(tasks.find_lanes, tasks.find_lanes.bind(asked))
        texts = sorted(text for text, _, _ in found)
        unknown += [text for text in texts if read_lane(text) is None]
        after = texts[-1] if len(texts) >= MOST_LANES else None
    for text in unknown:
        await name_lanes(queue, s, text, _MOST_PARTS)
    rows = await s.execute(tasks.admitted_headers, tasks.admitted_headers.bind({"q_name": queue.name}))
    jobs: dict[str, list[int]] = {}
    numbers: dict[str, int] = {}
    for job, headers in rows:
        lane = lane_of(headers)
        for key, number in () if lane is None else lane.needs:
            jobs.setdefault(key, []).append(job)
            numbers[key] = number
    if jobs:
        held = [{"key": key, "number": numbers[key], "newest": -1, "ids": ids} for key, ids in sorted(jobs.items())]
        for start in range(0, len(held), MOST_LANES):
            needs = json.dumps(held[start : start + MOST_LANES])
            part = {"q_name": queue.name, "table": str(queue.table), "needs": needs}
            await s.execute(tasks.create_keys, tasks.create_keys.bind(part))
            await s.execute(tasks.add_running, tasks.add_running.bind(part))
    await s.execute(tasks.sweep_keys, tasks.sweep_keys.bind({"q_name": queue.name}))
