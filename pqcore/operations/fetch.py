"""Taking jobs: a look, a wait, and another look."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.interrupts import let_through
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError, ConnectionLost, PQError
from pqcore.job import BaseJob
from pqcore.operations import admission
from pqcore.operations.atomic import atomic
from pqcore.operations.batch_counts import Membership, hold_open
from pqcore.operations.follow_ups import follow_up, is_continued, without_follow_ups
from pqcore.operations.job_outcome import done_by_hand
from pqcore.operations.lease import give_back
from pqcore.operations.rate_limit import draw, refund
from pqcore.operations.read_rules import read_current_rules
from pqcore.operations.take import any_headers, poll_within, refuse_hidden, restore, take, take_with_others, take_woken
from pqcore.rows import headers_of, job_rows
from pqcore.settings import QueueSettings
from pqcore.times import seconds

if TYPE_CHECKING:
    import pqcore.operations.paused_tasks  # noqa: F401 - with this, the type checker knows the name in `operations`

logger = logging.getLogger("pqcore")


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
    """Take up to ``n`` rows, and wait for the first row.

    The operation looks for jobs. If it finds none, it waits for a notification, but at most until the next job is due,
    the poll interval has passed, or the timeout has passed. Then it looks again.

    Args:
        engine: The engine.
        queue: The queue.
        n: The largest number of jobs.
        block: Whether to wait.
        timeout: How long to wait, in seconds; None for the queue's ``timeout``.
        lease: The length of the lease, in seconds; None to take the jobs without a lease, as `get` does.
        performed: Whether the caller runs the follow-ups of jobs that are taken without a lease. Otherwise this
            operation runs them.
        patient: Whether to look again, instead of raising, if the server refuses to admit jobs.
    """
    if n != 1 or type(n) is not int:  # most callers take one job, and need no further check
        _check_number(n)
    left = 0.0
    if block or timeout is not None:
        left = seconds(queue.timeout if timeout is None else timeout)
    look_once = look if lease is not None and queue.rate is not None else take_with_others
    deadline = None
    topic = queue.channel
    rows: Sequence[Row] = ()
    woken = False
    while True:
        ticket = engine.snapshot(topic) if block else None  # read before the look, so no later notification is missed
        if woken and (rows := await take_woken(engine, queue, n, lease)):
            break
        # While the queue's rules are cached, this comparison of times saves the coroutine that reads the rules.
        if monotonic() >= queue.rule_cache.expires_at and (await read_current_rules(engine, queue)).paused:
            rows, wake_in = (), queue.rule_cache.rules.seconds_paused(monotonic())
        else:
            rows, wake_in = await look_once(engine, queue, n, lease, patient=patient)
        if rows:
            break
        woken = False
        if wake_in == 0.0:  # the look found only jobs that cannot run yet; later jobs may be able to run
            continue
        if not block:
            return rows
        now = monotonic()
        if deadline is None:
            deadline = now + left
        left = deadline - now
        if left <= 0:
            return rows
        pause = left if wake_in is None else min(left, max(wake_in, 0.001))
        with let_through():
            await engine.wait_for_jobs(queue, ticket, pause, queue.poll_interval)
        woken = ticket is not None and engine.snapshot(topic) != ticket
    if lease is None and (headers_of(rows[0]) is not None or len(rows) > 1) and any_headers(is_continued, rows):
        await _follow(engine, queue, rows, performed=performed)
    return rows


async def look(
    engine: Engine,
    queue: QueueSettings,
    n: int,
    lease: float | None,
    *,
    patient: bool = False,
    woken: bool = False,
) -> tuple[Sequence[Row], float | None]:
    """Take up to ``n`` rows; if there are none, return the seconds until the next look is worthwhile (None: unknown).

    With a lease, take only jobs that limits and groups admit, and no more than the queue's rate allows.

    Args:
        engine: The engine.
        queue: The queue.
        n: The largest number of jobs.
        lease: The length of the lease, in seconds; None to take the jobs without a lease, as `get` does.
        patient: Whether to look again, instead of raising, if the server refuses to admit jobs.
        woken: Whether this is the first look after a notification.
    """
    if woken and (rows := await take_woken(engine, queue, n, lease)):
        return rows, None
    if monotonic() >= queue.rule_cache.expires_at and (await read_current_rules(engine, queue)).paused:
        return (), queue.rule_cache.rules.seconds_paused(monotonic())
    if lease is None or queue.rate is None:
        return await take(engine, queue, n, lease, patient=patient)
    granted, pause = await draw(engine, queue, n)
    if not granted:
        return (), pause
    rows = ()
    try:
        rows, wake_in = await take(engine, queue, granted, lease, patient=patient)
    finally:
        await refund(engine, queue, granted - len(rows))
    return rows, wake_in


def looks_fully_next(queue: QueueSettings) -> bool:
    """If the last look found no job, but was not complete, make the next look complete.

    A worker that stops when no job is left calls this function before it stops.

    Returns:
        Whether the last look was not complete, so that another look may find a job.
    """
    missed = queue.bound.missed or queue.lanes.missed
    if missed:
        queue.bound.look_fully()
        queue.lanes.look_fully()
    return missed


async def next_due(engine: Engine, queue: QueueSettings) -> float | None:
    """Return the seconds until the next scheduled job is due; None if no job is scheduled.

    If the last such query was slow, and was not long ago, send no query; return the seconds until the next one.
    """
    probes, now = queue.lanes.probes, monotonic()
    if pause := probes.due_in(now, missed=True):
        return pause
    [[_, wake_in, ended]] = await engine.execute("next_due_probe", {"q_name": queue.name}, protect=False)
    probes.note(monotonic(), monotonic() - now)
    if ended:  # a parent of waiting jobs has ended, or may have ended without a notification
        return poll_within(wake_in)
    return None if wake_in is None else float(wake_in)


async def end_and_take(
    engine: Engine,
    queue: QueueSettings,
    jobs: Sequence[BaseJob],
    n: int,
    lease: float,
    times: int = 1,
    ahead: Sequence[tuple[int, int]] = (),
) -> tuple[list[BaseJob], admission.Taken]:
    """Finish leased jobs without follow-ups, and lease up to ``n`` other jobs, in one statement.

    Args:
        engine: The engine.
        queue: The queue of the jobs, which must have no rate limit.
        jobs: The jobs that end.
        n: The largest number of jobs to lease.
        lease: The length of the lease, in seconds.
        times: How many jobs under one limit may be leased for each place; see `admission.end_and_take`.
        ahead: The ids and tokens of the jobs that were leased in this way before, and that do not end now.

    Returns:
        The jobs whose leases were lost, and the jobs that were leased.
    """

    async def work(s: Session) -> tuple[set[tuple[int, int]], admission.Taken]:
        refuse_hidden(engine, "lease")
        return await admission.end_and_take(engine, queue, s, jobs, n, lease, times, ahead)

    async def undo(result: tuple[set[tuple[int, int]], admission.Taken]) -> None:
        await give_back(engine, queue, [(row.id, row.attempts) for row in result[1].rows])

    ended, taken = await engine.run(work, protect=False, undo=undo)
    return [job for job in jobs if (job.id, job.token) not in ended], taken


async def _follow(engine: Engine, queue: QueueSettings, rows: Sequence[Row], *, performed: bool) -> None:
    """Run the follow-ups of jobs taken without a lease; if the caller will perform the jobs, only keep batches open.

    If the caller is cancelled meanwhile, the jobs are put back; follow-ups that have run do not run again. An
    error is only logged, because the jobs are taken, and the caller must receive them.
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
    """Run an operation on jobs in one transaction, or, if that fails, in one transaction for each job.

    Args:
        engine: The engine.
        queue: The queue of the jobs.
        jobs: The jobs.
        left: The rows to put back if the caller is cancelled.
        operation: The operation to run.
    """

    async def work(s: Session, ones: Sequence[BaseJob]) -> tuple[Sequence[Row], None]:
        async with atomic(s):
            await operation(s, ones)
        return left, None

    async def undo(result: tuple[Sequence[Row], None]) -> None:
        await restore(engine, queue, result[0])

    try:
        await engine.run(partial(work, ones=jobs), undo=undo)
    except ConnectionLost:
        logger.exception("%r: after get() took jobs, their follow-ups failed", queue.name)
    except PQError:
        for job in jobs:  # the operation failed for at least one job: run it for each job alone
            try:
                await engine.run(partial(work, ones=[job]), undo=undo)
            except PQError:
                logger.exception(
                    "%r: cannot run the follow-ups of job %d, which was taken with get",
                    queue.name,
                    job.id,
                )


async def peek(engine: Engine, queue: QueueSettings, n: int) -> Sequence[Row]:
    """Return the next due rows without taking them."""
    _check_number(n)

    async def work(s: Session) -> Sequence[Row]:
        query = s.sql.peek(n)
        return await s.execute(query, query.bind({"q_name": queue.name}))

    return await engine.run(work, protect=False)


def _check_number(n: int) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= 100_000:
        msg = f"n is {n!r}; give a number of jobs from 1 to 100,000"
        raise ConfigurationError(msg)
