"""Taking available jobs, with or without a lease, for one caller or for several together."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

from pqcore import operations
from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.group_commit import Alone, Line, Together
from pqcore.db.session import Session
from pqcore.errors import PQError
from pqcore.lanes import has_lane, lane_of
from pqcore.operations import admission
from pqcore.operations.lease import give_back
from pqcore.rows import headers_of, job_rows, place_of
from pqcore.settings import QueueSettings
from pqcore.sql.fetch_statements import SIZES, Finish

if TYPE_CHECKING:
    import pqcore.operations.dependencies
    import pqcore.operations.paused_tasks  # noqa: F401 - with this, the type checker knows the name in `operations`

logger = logging.getLogger("pqcore")

Taken: TypeAlias = "tuple[Sequence[Row], float | None]"
"""Rows that were taken; if there are none, the seconds until the next look is worthwhile (None: unknown)."""
POLL = 1.0
"""Seconds between looks at parents that were running or locked when the job that waits for them was put."""
MOST_TOGETHER = 100
"""The largest number of jobs that concurrent callers take in one statement; a caller that wants this many jobs takes
alone."""
LOOKS = 3
"""The largest number of takes from lanes within one look; a look repeats the take if other callers found new lanes."""


def take_with_others(
    engine: Engine, queue: QueueSettings, n: int, lease: float | None, *, patient: bool
) -> Awaitable[Taken]:
    """Take rows as `take` does, if possible in one statement for several concurrent callers."""
    line = None
    if n < MOST_TOGETHER and not patient:
        line = engine.line(queue.lines, lease, _together, engine, queue, lease)
    if line is None:
        return take(engine, queue, n, lease, patient=patient)
    if line.since:
        return _join(engine, queue, n, lease, line)
    work = partial(_take_on, engine, queue, n, lease, False, False)
    if not engine.runtime.suspends:  # a blocking call cannot be cancelled, so it needs no undo
        return engine.run_alone(work, line, protect=False)
    return engine.run_settled(work, partial(_untake, engine, queue, lease), line, protect=False)


def _together(engine: Engine, queue: QueueSettings, lease: float | None) -> Together:
    """Return the operation that takes rows for several callers."""
    run, undo = partial(_take_together, engine, queue, lease), partial(_untake, engine, queue, lease)
    return Together(run, undo, MOST_TOGETHER)


async def _join(engine: Engine, queue: QueueSettings, n: int, lease: float | None, line: Line) -> Taken:
    answer: Taken | Alone = await line.join(range(n))
    return await take(engine, queue, n, lease, patient=False) if isinstance(answer, Alone) else answer


async def _take_together(
    engine: Engine, queue: QueueSettings, lease: float | None, s: Session, wanted: list[range]
) -> list[Taken]:
    """Take rows for several callers, and give the first rows to the first callers; return what `take` returns for each.

    Args:
        engine: The engine.
        queue: The queue.
        lease: The length of the lease, in seconds; None to take the jobs without a lease, as `get` does.
        s: The session.
        wanted: The largest number of rows for each caller.
    """
    n = sum(map(len, wanted))
    rows, wake_in = await _take_on(engine, queue, n, lease, False, True, s)
    given: list[Taken] = []
    start = 0
    for some in map(len, wanted):
        own = rows[start : start + some]
        # If this take found rows, the table may have more: callers without a row look again.
        given.append((own, None if own else 0.0 if rows else wake_in))
        start += some
    return given


async def _untake(engine: Engine, queue: QueueSettings, lease: float | None, *taken: Taken) -> None:
    """Put rows back into the queue, because the callers that took them were cancelled."""
    rows = [row for some, _ in taken for row in some]
    if lease is None:
        await restore(engine, queue, rows)
    else:
        await give_back(engine, queue, [(row.id, row.attempts) for row in job_rows(rows)])


def take(engine: Engine, queue: QueueSettings, n: int, lease: float | None, *, patient: bool) -> Awaitable[Taken]:
    """Take up to ``n`` rows; if there are none, return the seconds until the next look is worthwhile.

    `look` documents the arguments.
    """
    # `work` is a partial object: with an async function, each take would create one more coroutine.
    work = partial(_take_on, engine, queue, n, lease, patient, False)
    return engine.run(work, protect=False, undo=partial(_untake, engine, queue, lease))


async def take_woken(engine: Engine, queue: QueueSettings, n: int, lease: float | None) -> Sequence[Row]:
    """Take up to ``n`` rows after a notification, in one statement, without first asking for rules and lanes.

    If a queue or task is paused, or jobs wait for admission, the statement itself notices this and returns no row.
    Without a row, the caller must look in the usual way.
    """
    now, rules, lanes = monotonic(), queue.rule_cache, queue.lanes
    if rules.rules.paused or rules.rules.paused_tasks:
        return ()
    if queue.bound.spares_looks:
        return ()  # this statement would look from the head
    if now < rules.expires_at and (lease is None or not lanes.must_find(now)):
        return ()  # here the usual take needs only one statement, too
    if lease is not None and (queue.rate is not None or lanes.lanes or not lanes.left_none):
        return ()  # without a look for lanes, a job that came due behind many others might not be noticed
    work = partial(_take_idle, engine, queue, n, lease)
    taken: Taken = await engine.run(work, protect=False, undo=partial(_untake, engine, queue, lease))
    return taken[0]


async def _take_idle(engine: Engine, queue: QueueSettings, n: int, lease: float | None, s: Session) -> Taken:
    finish: Finish = queue.retention if lease is None else "lease"
    refuse_hidden(engine, finish)
    query, full_since = s.sql.fetch("idle", finish, n), monotonic()
    queue.lanes.left_none = False
    rows = await s.execute(query, query.bind({"q_name": queue.name, "lease": lease}))
    has_lanes = any_headers(has_lane, rows)
    queue.lanes.left_none = 0 < len(rows) < n and not has_lanes
    if rows:
        rows = _in_order(queue, rows, s.last_reply_at, full_since)
    if has_lanes and lease is not None:
        rows = await admission.adopt_among(queue, s, rows)
    return rows, None


def _take_on(
    engine: Engine,
    queue: QueueSettings,
    n: int,
    lease: float | None,
    patient: bool,
    together: bool,
    s: Session,
) -> Awaitable[Taken]:
    """Take rows on a session.

    This function is not a coroutine, because each coroutine adds to the cost of every take.
    """
    if lease is not None:
        return _take_leased(engine, queue, s, n, lease, patient=patient, together=together)
    finish = queue.retention
    if engine.security is not None:
        refuse_hidden(engine, finish)
    return _take_plain(engine, queue, s, n, finish, {"q_name": queue.name}, together=together)


async def _take_leased(
    engine: Engine, queue: QueueSettings, s: Session, n: int, lease: float, *, patient: bool, together: bool
) -> Taken:
    refuse_hidden(engine, "lease")
    rows, wake_in = await _take_lease(engine, queue, s, n, lease, patient=patient, together=together)
    if rows and queue.rule_cache.rules.paused_tasks:
        rows = await operations.paused_tasks.set_aside(queue, s, rows)
        wake_in = None if rows else 0.0
    return rows, wake_in


def refuse_hidden(engine: Engine, finish: Finish) -> None:
    """Raise if row-level security hides the rows from the role; see `Engine.refuse_hidden`."""
    if engine.security is not None:
        engine.refuse_hidden("UPDATE", *(("DELETE",) if finish in ("delete", "archive") else ()))


def poll_within(wake_in: float | None) -> float:
    """Return the seconds until the next look: at most `POLL`, because a parent may end without a notification."""
    return POLL if wake_in is None else min(float(wake_in), POLL)


async def _take_plain(
    engine: Engine,
    queue: QueueSettings,
    s: Session,
    n: int,
    finish: Finish,
    values: dict[str, object],
    *,
    patient: bool = False,
    together: bool = False,
) -> Taken:
    """Take rows without admission; if no row is taken, return the seconds until the next row is due (None: unknown).

    If ``patient`` is set and looks from the head are costly, a look from the position is enough, even if this look
    finds nothing.
    """
    bound = queue.bound
    rows: Sequence[Row] = ()
    fetch = s.sql.fetch
    if together:  # the same statement for every n, so that the server prepares it only once
        fetch, values, n = s.sql.fetch_most, {**values, "most": n}, MOST_TOGETHER
    full_since: float | None = None
    if bound.usable():
        query = fetch("bounded", finish, n)
        values["bound"] = bound.value()
        rows = await s.execute(query, query.bind(values))
        if not rows and patient and (pause := bound.note_miss()):
            return rows, pause
    if not rows:
        full_since = monotonic()
        query = fetch("ordered", finish, n)
        rows = await s.execute(query, query.bind(values))
    if not rows:
        if finish == "lease":
            [[others, wake_in, ended]] = await s.execute(s.sql.next_due_probe, s.sql.next_due_probe.bind(values))
        else:
            probe = s.sql.empty_get_probe
            [[something_out, wake_in, ended, waits]] = await s.execute(probe, probe.bind(values))
            others = something_out or waits
        if ended:  # a parent of waiting jobs has ended, or may have ended without a notification
            settled = await operations.dependencies.settle(engine, queue, s)
            others |= settled
            wake_in = 0.0 if settled else poll_within(wake_in)  # jobs may have waited for the jobs that it ended
        if others:
            for query in (fetch("merged", finish, n), fetch("unguarded", finish, n)):
                rows = await s.execute(query, query.bind(values))
                if rows:
                    break
        if not rows:
            bound.advance((), monotonic(), full_since=full_since)
            return rows, wake_in
    if len(rows) == 1 and headers_of(rows[0]) is None:  # the usual case, which needs no sorting
        bound.advance(rows, s.last_reply_at, full_since=full_since)
        return rows, None
    return _in_order(queue, rows, s.last_reply_at, full_since), None


def _in_order(queue: QueueSettings, rows: Sequence[Row], now: float, full_since: float | None) -> Sequence[Row]:
    """Sort rows in the order of their jobs, and record the last position, so that the next look begins there.

    Args:
        queue: The queue of the rows.
        rows: The rows that a statement returned in any order, because RETURNING guarantees none.
        now: When the statement ended, by the monotonic clock, in seconds.
        full_since: When the statement began, if it looked from the head; None otherwise.
    """
    if len(rows) > 1:
        rows = sorted(rows, key=place_of)
    if any_headers(has_lane, rows):
        # The position of a job on a lane does not show how far the jobs without lanes were taken.
        queue.bound.advance((), now, full_since=full_since)
        return sorted(rows, key=_urgency)
    queue.bound.advance(rows, now, full_since=full_since)
    return rows


def any_headers(tell: Callable[[str | None], bool], rows: Sequence[Row]) -> bool:
    """Return whether ``tell`` returns True for the headers of any row; rows without headers are skipped quickly."""
    if len(rows) == 1:
        return headers_of(rows[0]) is not None and tell(headers_of(rows[0]))
    return any(map(headers_of, rows)) and any(map(tell, map(headers_of, rows)))


def _urgency(row: Row) -> int:
    lane = lane_of(headers_of(row))
    return 0 if lane is None else -lane.priority


async def _take_lease(
    engine: Engine, queue: QueueSettings, s: Session, n: int, lease: float, *, patient: bool, together: bool = False
) -> Taken:
    """Lease rows; if a take moved jobs to their lanes, further takes lease other jobs."""
    lanes = queue.lanes
    adopted = lanes.adopted
    rows, wake_in = await _take_lease_once(engine, queue, s, n, lease, patient=patient, together=together)
    for _ in range(LOOKS) if rows and len(rows) < n else ():
        if len(rows) == n or lanes.adopted == adopted:
            break
        adopted, in_transaction = lanes.adopted, s.in_transaction()
        left = n - len(rows)
        try:
            more, _ = await _take_lease_once(engine, queue, s, left, lease, patient=True, together=together)
        except PQError as exc:
            if in_transaction:
                raise
            # The earlier takes have committed, so the caller gets the rows that those takes leased.
            logger.warning("%r: not all due jobs could be leased: %s", queue.name, exc)
            break
        if more:
            rows = sorted((*rows, *more), key=_order)
    return rows, wake_in


def _order(row: Row) -> tuple[Any, ...]:
    return _urgency(row), *place_of(row)


async def _take_lease_once(
    engine: Engine, queue: QueueSettings, s: Session, n: int, lease: float, *, patient: bool, together: bool = False
) -> Taken:
    """Lease rows: rows without a lane in order, other rows after admission.

    While no job of the queue is known to wait for admission, this function leases plain jobs, and looks for lanes every
    `FIND` seconds.
    """
    values = {"q_name": queue.name, "lease": lease}
    lanes = queue.lanes
    lanes.left_none = False
    if looked := lanes.must_find(monotonic()):
        await admission.find_lanes(queue, s)
    for left in reversed(range(LOOKS)) if lanes.lanes else ():
        if not lanes.lanes or lanes.aside_for(monotonic()):
            break
        # the largest number in SIZES that is at most n: the server prepares the statement for these numbers
        number = max(size for size in SIZES if size <= n) if together else n
        rows, wake_in = await admission.take(engine, queue, s, number, lease, patient=patient)
        if rows or wake_in == 0.0:
            return rows, wake_in
        if lanes.is_narrow:
            continue
        if not await admission.find_lanes(queue, s, idle=True) or not left:
            probe, now = s.sql.next_due_probe, monotonic()
            if rest := lanes.probes.due_in(now, missed=True):  # the probe steps over many dead entries
                return rows, rest if wake_in is None else min(wake_in, rest)
            [[_, due_in, ended]] = await s.execute(probe, probe.bind(values))
            lanes.probes.note(s.last_reply_at, s.last_reply_at - now)
            if ended:
                released = await operations.dependencies.settle(engine, queue, s)
                return rows, 0.0 if released else POLL
            return rows, min((wait for wait in (wake_in, due_in) if wait is not None), default=None)
    rows, wake_in = await _take_plain(engine, queue, s, n, "lease", values, patient=patient, together=together)
    if any_headers(has_lane, rows):
        rows, wake_in = await admission.adopt_among(queue, s, rows), 0.0
    elif not rows:
        if not (looked and not lanes.lanes) and await admission.find_lanes(queue, s, idle=True):
            wake_in = 0.0
        else:
            lanes.left_none = not lanes.lanes
    if not rows and (aside := lanes.aside_for(monotonic())):
        wake_in = aside
    return rows, None if rows else wake_in


async def restore(engine: Engine, queue: QueueSettings, rows: Sequence[Row]) -> None:
    """Put back the rows that a `get` took for a caller that was cancelled."""

    async def work(s: Session) -> None:
        query = s.sql.restore[queue.retention]
        for row in job_rows(rows):
            values = {
                **row._asdict(),
                "failures": row.failures,
                "excused": row.excused,
                "q_name": queue.name,
                "channel": queue.channel,
                "attempts": row.attempts - 1,
            }
            for name in ("enqueued_at", "schedule_at", "expected_at"):
                values[name] = _from_utc(values[name])
            await s.execute(query, query.bind(values))

    await engine.run(work)


def _from_utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=timezone.utc)
