"""Checks for jobs that do not move, and for what workers keep and delete."""

from __future__ import annotations

from dataclasses import asdict

from pqcore.doctor.context import CheckContext
from pqcore.doctor.findings import Finding
from pqcore.operations.expiry import list_expiry_of
from pqcore.operations.samples import REST
from pqcore.operations.worker_registry import list_workers_of
from pqcore.plurals import counted
from pqcore.sql.fragments import COMES_OUT, VISIBLE_AT

OLD_SAMPLE = 600.0
"""Seconds without a sample, after which a worker that runs should have kept one."""
OLD = 300.0
"""Seconds for which a job may be ready without being taken, before the doctor reports it."""
OVERDUE = 60.0
"""Seconds after the end of a lease within which a consumer should have taken the job again."""
COUNTED = 10_000
"""The largest number of expired leases that are counted."""


async def check_backlog(context: CheckContext) -> list[Finding]:
    """Check for jobs that have been ready for a long time, above all in queues without a living worker."""
    rows = await context.s.execute(context.s.sql.stats_all)
    old = [(queue, ready, age) for queue, ready, _, _, age, *_ in rows if queue is not None and (age or 0.0) > OLD]
    details = {"queues": [{"queue": queue, "ready": ready, "oldest": age} for queue, ready, age in old]}
    if not old:
        message = f"no job has been ready for {OLD:.0f} s"
        return [Finding("backlog", "ok", message, details=details)]
    workers = [worker for worker in await list_workers_of(context.s, None) if worker.alive]
    alive = {queue for worker in workers for queue in worker.queues}
    quiet = alive - {queue for worker in workers if not worker.quiet for queue in worker.queues}
    found = []
    for queue, ready, age in sorted(old, key=lambda one: -one[2]):
        verb = "is" if ready == 1 else "are"
        said = f"{counted(ready, 'job')} of queue {queue!r} {verb} ready, the first for {age:.0f} s"
        if queue in quiet:
            message = f"{said}, and all workers of the queue were told to take no more jobs"
            advice = "let one take jobs again (pqcore quiet --end), or start another"
        elif queue in alive:
            message, advice = (
                f"{said}, though workers of the queue are alive",
                "run more workers, or find out why they take no jobs (pqcore explain)",
            )
        else:
            message, advice = f"{said}, and no worker of the queue is alive", "start a worker of the queue"
        figures = {"queue": queue, "ready": ready, "oldest": age, "workers": queue in alive}
        found.append(Finding("backlog", "warning", message, advice, figures))
    return found


_EXPIRED = f"""
SELECT q_name, count(*), max(age) FROM (
  SELECT q_name, extract(epoch FROM statement_timestamp() - {VISIBLE_AT})::float8 AS age FROM {{table}}
  WHERE {COMES_OUT} AND leased_until IS NOT NULL
    AND {VISIBLE_AT} < statement_timestamp() - :overdue::float8 * interval '1 second'
  LIMIT {COUNTED}
) AS expired GROUP BY q_name ORDER BY 2 DESC, 1"""


async def check_leases(context: CheckContext) -> list[Finding]:
    """Check for jobs whose leases have expired, and which no consumer has taken again."""
    rows = await context.ask("expired_leases", _EXPIRED, overdue=OVERDUE)
    details = {"queues": [{"queue": queue, "leases": number, "seconds": age} for queue, number, age in rows]}
    if not rows:
        message = f"no lease ran out more than {OVERDUE:.0f} s ago"
        return [Finding("leases", "ok", message, details=details)]
    queue, number, age = rows[0]
    some = f"{number}" if number < COUNTED else f"at least {COUNTED}"
    message = (
        f"{some} leases of queue {queue!r} have run out, the first {age:.0f} s ago, and no worker took the jobs again"
    )
    return [Finding("leases", "warning", message, "start a worker of the queue, which runs these jobs again", details)]


async def check_expiry(context: CheckContext) -> list[Finding]:
    """Check how long finished rows and dead letters are kept, and whether a worker deletes expired ones."""
    found = await list_expiry_of(context.s)
    details = {"expiry": [asdict(one) for one in found]}
    if not any(one.seconds is not None for one in found):
        message = "finished rows and dead letters are never deleted"
        return [Finding("expiry", "ok", message, "to let workers delete them: pqcore expiry --finished 7d", details)]
    told = [
        f"{'finished rows' if one.kind == 'finished' else 'dead letters'} of"
        f" {'all queues' if one.queue is None else repr(one.queue)} are kept"
        f" {'without a limit' if one.seconds is None else f'for {one.seconds / 86400:g} days'},"
        f" {one.deleted} were deleted"
        for one in found
    ]
    return [Finding("expiry", "ok", "; ".join(told), details=details)]


async def check_samples(context: CheckContext) -> list[Finding]:
    """Check whether workers keep samples of the figures, which the web page shows as charts."""
    [[age, took]] = await context.s.execute(context.s.sql.samples.age_of_sample) or [(None, None)]
    details = {"age": age}
    if age is not None and age <= max(OLD_SAMPLE, 3 * REST * (took or 0.0)):
        return [
            Finding("samples", "ok", f"workers keep samples of the figures, the last {age:.0f} s ago", details=details)
        ]
    workers = [worker for worker in await list_workers_of(context.s, None) if worker.alive]
    since = max(((worker.seen_at - worker.started_at).total_seconds() for worker in workers), default=0.0)
    last = "there is none" if age is None else f"the last is {age:.0f} s old"
    if since <= OLD_SAMPLE:
        message = f"no worker has run long enough to keep samples of the figures; {last}"
        return [Finding("samples", "ok", message, details=details)]
    table = context.engine.names.related("_samples")
    message = f"workers run, but keep no samples of the figures: {last}; the charts of the web page lack this time"
    advice = (
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} to the role of the workers, and start them again; their logs"
        " say what they may not do; a role from which row-level security hides jobs keeps no samples"
    )
    return [Finding("samples", "warning", message, advice, details)]


async def check_dead_letters(context: CheckContext) -> list[Finding]:
    """Check for dead letters."""
    numbers = {queue: int(number) for queue, number in await context.s.execute(context.s.sql.admin.dead_by_queue)}
    details = {"queues": [{"queue": queue, "dead": number} for queue, number in numbers.items()]}
    if not numbers:
        return [Finding("dead_letters", "ok", "there are no dead letters", details=details)]
    queue = max(numbers, key=lambda name: numbers[name])
    message = f"{counted(sum(numbers.values()), 'job')} failed for good, {numbers[queue]} of them in queue {queue!r}"
    advice = "pqcore dead list shows them, pqcore dead retry runs them again, pqcore dead purge deletes them"
    return [Finding("dead_letters", "warning", message, advice, details)]
