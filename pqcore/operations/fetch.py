"""Taking jobs: a look, a wait, another look."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

from pqcore import operations
from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.interrupts import let_through
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError, ConnectionLost, PQError
from pqcore.job import BaseJob
from pqcore.lanes import has_lane, lane_of
from pqcore.operations import admission
from pqcore.operations.atomic import atomic
from pqcore.operations.batch_counts import Membership, hold_open
from pqcore.operations.follow_ups import follow_up, is_continued, without_follow_ups
from pqcore.operations.job_outcome import done_by_hand
from pqcore.operations.lease import give_back
from pqcore.operations.rate_limit import draw, refund
from pqcore.operations.read_rules import read_current_rules
from pqcore.rows import headers_of, job_rows, place_of
from pqcore.settings import QueueSettings
from pqcore.sql.fetch_statements import Finish
from pqcore.times import seconds

if TYPE_CHECKING:
    import pqcore.operations.paused_tasks  # noqa: F401 - with this, the type checker knows the name in `operations`

logger = logging.getLogger("pqcore")

LOOKS = 3
"""How often one look takes from lanes, at most, while others find new ones."""


async def get(
    engine: Engine,
    queue: QueueSettings,
    n: int,
    *,
    block: bool,
    timeout: Any,
    lease: float | None = None,
    performed: bool = False,
    patient: bool = False,
) -> Sequence[Row]:
    """Take up to ``n`` rows, waiting for the first.

    It looks, and if there is nothing waits for the earliest of: a notification,
    the next time that a row comes due, the poll interval, its timeout; and looks again.

    Args:
        engine: Where.
        queue: From which queue.
        n: How many, at most.
        block: Whether to wait.
        timeout: How long; None for the queue's ``timeout``.
        lease: Seconds for which they are leased; None to take them for good.
        performed: Whether the caller does what follows from jobs that are taken for good. Else it is done here.
        patient: As for `look`.
    """
    _check_number(n)
    left = seconds(queue.timeout if timeout is None else timeout)
    look_once = look if lease is not None and queue.rate is not None else _take
    deadline = None
    topic = queue.channel
    rows: Sequence[Row] = ()
    while True:
        ticket = engine.snapshot(topic) if block else None  # before the look, so that what comes after it counts
        # The clock is asked here, so that a take on a queue whose rules are known costs no further coroutine.
        if time.monotonic() >= queue.rule_cache.expires_at and (await read_current_rules(engine, queue)).paused:
            rows, wake_in = (), queue.rule_cache.rules.seconds_paused(time.monotonic())
        else:
            rows, wake_in = await (
                _take_for_good(engine, queue, n)
                if lease is None
                else look_once(engine, queue, n, lease, patient=patient)
            )
        if rows:
            break
        if wake_in == 0.0:  # what was found may not run, and there may be others behind it
            continue
        if not block:
            return rows
        now = time.monotonic()
        if deadline is None:
            deadline = now + left
        left = deadline - now
        if left <= 0:
            return rows
        pause = left if wake_in is None else min(left, max(wake_in, 0.001))
        with let_through():
            await engine.wait_for_jobs(queue, ticket, pause, queue.poll_interval)
    if lease is None and _any_headers(is_continued, rows):
        await _follow(engine, queue, rows, performed=performed)
    return rows


async def look(
    engine: Engine, queue: QueueSettings, n: int, lease: float | None, *, patient: bool = False
) -> tuple[Sequence[Row], float | None]:
    """Take up to ``n`` rows; without one, the seconds until it is worth another look (None: unknown).

    Under a lease, within the queue's rate limit, and only those that limits and groups let run.

    Args:
        engine: Where.
        queue: From which queue.
        n: How many, at most.
        lease: Seconds for which they are leased; None to take them for good.
        patient: Whether jobs that cannot be admitted are no error, as the caller looks again.
    """
    if time.monotonic() >= queue.rule_cache.expires_at and (await read_current_rules(engine, queue)).paused:
        return (), queue.rule_cache.rules.seconds_paused(time.monotonic())
    if lease is None or queue.rate is None:
        return await _take(engine, queue, n, lease, patient=patient)
    granted, pause = await draw(engine, queue, n)
    if not granted:
        return (), pause
    rows: Sequence[Row] = ()
    try:
        rows, wake_in = await _take(engine, queue, granted, lease, patient=patient)
    finally:
        await refund(engine, queue, granted - len(rows))
    return rows, wake_in


def _take(
    engine: Engine, queue: QueueSettings, n: int, lease: float | None, *, patient: bool
) -> Awaitable[tuple[Sequence[Row], float | None]]:
    if lease is None:
        return _take_for_good(engine, queue, n)

    async def work(s: Session) -> tuple[Sequence[Row], float | None]:
        _refuse_hidden(engine, "lease")
        rows, wake_in = await _take_lease(engine, queue, s, n, lease, patient=patient)
        if rows and queue.rule_cache.rules.paused_tasks:
            rows = await operations.paused_tasks.set_aside(queue, s, rows)
            wake_in = None if rows else 0.0
        return rows, wake_in

    async def undo(result: tuple[Sequence[Row], float | None]) -> None:
        await give_back(engine, queue, [(row.id, row.attempts) for row in job_rows(result[0])])

    return engine.run(work, protect=False, undo=undo)


async def next_due(engine: Engine, queue: QueueSettings) -> float | None:
    """Return in how many seconds a job comes due that is scheduled; None if there is none."""
    [[_, wake_in, _]] = await engine.execute("next_due_probe", {"q_name": queue.name}, protect=False)
    return None if wake_in is None else float(wake_in)


async def end_and_take(
    engine: Engine, queue: QueueSettings, jobs: Sequence[BaseJob], n: int, lease: float, times: int = 1
) -> tuple[list[BaseJob], admission.Taken]:
    """Finish leased jobs from which nothing follows, and lease up to ``n`` others in their places, in one statement.

    Args:
        engine: Where.
        queue: Whose jobs; it has no rate.
        jobs: The jobs that end.
        n: How many are leased, at most.
        lease: Seconds for which they are leased.
        times: How many jobs under one limit may be leased for a place; the caller runs them one after the other.

    Returns:
        The jobs whose lease was lost, and what was leased.
    """

    async def work(s: Session) -> tuple[set[tuple[int, int]], admission.Taken]:
        _refuse_hidden(engine, "lease")
        return await admission.end_and_take(queue, s, jobs, n, lease, times)

    async def undo(result: tuple[set[tuple[int, int]], admission.Taken]) -> None:
        await give_back(engine, queue, [(row.id, row.attempts) for row in result[1].rows])

    ended, taken = await engine.run(work, protect=False, undo=undo)
    return [job for job in jobs if (job.id, job.token) not in ended], taken


def _take_for_good(engine: Engine, queue: QueueSettings, n: int) -> Awaitable[tuple[Sequence[Row], float | None]]:
    finish = queue.retention

    def work(s: Session) -> Awaitable[tuple[Sequence[Row], float | None]]:  # no coroutine of its own
        if engine.security is not None:
            _refuse_hidden(engine, finish)
        return _take_plain(queue, s, n, finish, {"q_name": queue.name})

    async def undo(result: tuple[Sequence[Row], float | None]) -> None:
        await _restore(engine, queue, result[0])

    return engine.run(work, protect=False, undo=undo)


def _refuse_hidden(engine: Engine, finish: Finish) -> None:
    if engine.security is not None:
        engine.refuse_hidden("UPDATE", *(("DELETE",) if finish in ("delete", "archive") else ()))


async def _take_plain(
    queue: QueueSettings, s: Session, n: int, finish: Finish, values: dict[str, object]
) -> tuple[Sequence[Row], float | None]:
    """Take rows as they come; without one, the seconds until one is due (None: unknown)."""
    bound = queue.bound
    rows: Sequence[Row] = ()
    if bounded := bound.usable(time.monotonic()):
        query = s.sql.fetch("bounded", finish, n)
        values["bound"] = bound.value()
        rows = await s.execute(query, query.bind(values))
    if not rows:
        bounded = False
        query = s.sql.fetch("ordered", finish, n)
        rows = await s.execute(query, query.bind(values))
    if not rows:
        [[something_out, wake_in, waits]] = await s.execute(s.sql.next_due_probe, s.sql.next_due_probe.bind(values))
        if something_out or (waits and finish != "lease"):
            for query in (s.sql.fetch("merged", finish, n), s.sql.fetch("unguarded", finish, n)):
                rows = await s.execute(query, query.bind(values))
                if rows:
                    break
        if not rows:
            bound.advance((), time.monotonic(), full=True)
            return rows, wake_in
    rows = sorted(rows, key=place_of) if len(rows) > 1 else rows  # RETURNING promises no order
    if _any_headers(has_lane, rows):  # their places are not in the order of other jobs
        bound.advance((), time.monotonic(), full=not bounded)
        return sorted(rows, key=_urgency), None
    bound.advance(rows, time.monotonic(), full=not bounded)
    return rows, None


def _any_headers(tell: Callable[[str | None], bool], rows: Sequence[Row]) -> bool:
    """Whether a row has such headers; most have none, which is told without a call for each."""
    return any(map(headers_of, rows)) and any(map(tell, map(headers_of, rows)))


def _urgency(row: Row) -> int:
    lane = lane_of(headers_of(row))
    return 0 if lane is None else -lane.priority


async def _take_lease(
    engine: Engine, queue: QueueSettings, s: Session, n: int, lease: float, *, patient: bool
) -> tuple[Sequence[Row], float | None]:
    """Lease rows; where a take put jobs on their lanes that it came upon, further takes lease others as well."""
    lanes = queue.lanes
    adopted, in_transaction = lanes.adopted, s.in_transaction()
    rows, wake_in = await _take_lease_once(engine, queue, s, n, lease, patient=patient)
    for _ in range(LOOKS):
        if not rows or len(rows) == n or lanes.adopted == adopted:
            break
        adopted = lanes.adopted
        try:
            more, _ = await _take_lease_once(engine, queue, s, n - len(rows), lease, patient=True)
        except PQError as exc:
            if in_transaction:
                raise
            logger.warning("%r: fewer jobs are leased than are due: %s", queue.name, exc)  # those are the caller's
            break
        if more:
            rows = sorted((*rows, *more), key=_order)
    return rows, wake_in


def _order(row: Row) -> tuple[Any, ...]:
    return _urgency(row), *place_of(row)


async def _take_lease_once(
    engine: Engine, queue: QueueSettings, s: Session, n: int, lease: float, *, patient: bool
) -> tuple[Sequence[Row], float | None]:
    """Lease rows: plain ones as they come, others as they are admitted.

    While no job of the queue is known to wait for its admission, a lease is that of a plain job, and every `FIND`
    seconds a look for others.
    """
    values = {"q_name": queue.name, "lease": lease}
    lanes = queue.lanes
    if lanes.must_find(time.monotonic()):
        await admission.find_lanes(queue, s)
    for left in reversed(range(LOOKS)):
        if not lanes.lanes or lanes.aside_for(time.monotonic()):
            break
        rows, wake_in = await admission.take(engine, queue, s, n, lease, patient=patient)
        if rows or wake_in == 0.0:
            return rows, wake_in
        if not await admission.find_lanes(queue, s, idle=True) or not left:
            [[_, due_in, _]] = await s.execute(s.sql.next_due_probe, s.sql.next_due_probe.bind(values))
            return rows, min((wait for wait in (wake_in, due_in) if wait is not None), default=None)
    rows, wake_in = await _take_plain(queue, s, n, "lease", values)
    if _any_headers(has_lane, rows):
        rows, wake_in = await admission.adopt_among(queue, s, rows), 0.0
    elif not rows and await admission.find_lanes(queue, s, idle=True):
        wake_in = 0.0
    if not rows and (aside := lanes.aside_for(time.monotonic())):
        wake_in = aside
    return rows, None if rows else wake_in


async def _follow(engine: Engine, queue: QueueSettings, rows: Sequence[Row], *, performed: bool) -> None:
    """Do what follows from jobs that were taken for good; or have their batches wait for it, if the caller does it.

    If the caller is cancelled meanwhile, the jobs are put back, and what followed does not follow again. An error is
    logged: the jobs are taken, and the caller must have them.
    """
    jobs = [BaseJob(queue, row) for row in rows if is_continued(headers_of(row))]
    if performed:
        members = [member for job in jobs if (member := Membership.of(job.headers)) is not None]
        if members:
            await _try_to_follow(engine, queue, jobs, rows, lambda s, _: hold_open(s, members))
        return
    followed = {job.id: json.dumps(without_follow_ups(job.headers)) for job in jobs}
    left = [row._replace(headers=followed.get(row.id, row.headers)) for row in job_rows(rows)]
    await _try_to_follow(
        engine, queue, jobs, left, lambda s, ones: follow_up(engine, queue, s, [done_by_hand(job) for job in ones])
    )


async def _try_to_follow(
    engine: Engine,
    queue: QueueSettings,
    jobs: Sequence[BaseJob],
    left: Sequence[Row],
    operation: Callable[[Session, Sequence[BaseJob]], Awaitable[None]],
) -> None:
    """Do something about jobs in one transaction, or, if that fails, in one for each.

    Args:
        engine: Where.
        queue: Whose jobs.
        jobs: The jobs.
        left: The rows that are put back if the caller is cancelled.
        operation: What is done.
    """

    async def work(s: Session, ones: Sequence[BaseJob]) -> tuple[Sequence[Row], None]:
        async with atomic(s):
            await operation(s, ones)
        return left, None

    async def undo(result: tuple[Sequence[Row], None]) -> None:
        await _restore(engine, queue, result[0])

    try:
        await engine.run(partial(work, ones=jobs), undo=undo)
    except ConnectionLost:
        logger.exception("%r: what follows from jobs that were taken with get is not done", queue.name)
    except PQError:
        for job in jobs:  # of one of them it cannot be done, and the others do not suffer for it
            try:
                await engine.run(partial(work, ones=[job]), undo=undo)
            except PQError:
                logger.exception(
                    "%r: what follows from job %d, which was taken with get, cannot be done", queue.name, job.id
                )


async def _restore(engine: Engine, queue: QueueSettings, rows: Sequence[Row]) -> None:
    """Put rows back that were taken for somebody who is no longer there to take them."""

    async def work(s: Session) -> None:
        query = s.sql.restore[queue.retention]
        for row in job_rows(rows):
            values = {**row._asdict(), "q_name": queue.name, "channel": queue.channel, "attempts": row.attempts - 1}
            for name in ("enqueued_at", "schedule_at", "expected_at"):
                values[name] = _from_utc(values[name])
            await s.execute(query, query.bind(values))

    await engine.run(work)


def _from_utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=timezone.utc)


async def peek(engine: Engine, queue: QueueSettings, n: int) -> Sequence[Row]:
    """Read the next rows due."""
    _check_number(n)

    async def work(s: Session) -> Sequence[Row]:
        query = s.sql.peek(n)
        return await s.execute(query, query.bind({"q_name": queue.name}))

    return await engine.run(work, protect=False)


def _check_number(n: int) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= 100_000:
        msg = f"n is {n!r}; give a number of jobs from 1 to 100,000"
        raise ConfigurationError(msg)
