"""Checks of the content of the tables: lost batches, postponed jobs, pauses, ticks, and encoded data."""

from __future__ import annotations

from shlex import quote

from pqcore.doctor.context import CheckContext
from pqcore.doctor.findings import Finding
from pqcore.errors import PQError
from pqcore.operations.activity import ticks_of
from pqcore.operations.encodings import count_part
from pqcore.operations.job_outcome import PUT_OFF
from pqcore.operations.periodic import AHEAD
from pqcore.plugins import plugins
from pqcore.plurals import counted
from pqcore.serializers import held_keys, written_under
from pqcore.sql.fragments import IS_DEFERRED, IS_READY
from pqcore.tasks.periodic import NOTICED, seconds_late

EXAMINED = 1_000_000
"""About how many rows of each table are checked for their encoding; rows that were put first are chosen."""
MOST_LOST = 100
"""The largest number of jobs that a check for missing parents looks up."""
MOST_TICKS = 500
"""The largest number of periodic tasks that are checked."""
QUEUES_NAMED = 3
"""The largest number of queues that a finding names."""


async def check_batches(context: CheckContext) -> list[Finding]:
    """Check for open batches whose jobs were deleted in SQL, or taken by a process that died."""
    rows = await context.ask(
        "open_batches",
        "SELECT id, q_name, pending FROM {batches} WHERE pending > 0 AND coalesce(held_until < clock_timestamp(), true)"
        " ORDER BY id LIMIT 1000",
    )
    query = context.s.sql.tasks.live_batches
    ids = [batch for batch, _, _ in rows]
    alive = {batch for (batch,) in await context.s.execute(query, query.bind({"ids": ids}))}
    lost = [(batch, queue, pending) for batch, queue, pending in rows if batch not in alive]
    if not lost:
        return [
            Finding(
                "batches",
                "ok",
                f"{counted(len(rows), 'batch', ('is', 'are'))} open, and none has lost its jobs",
                details={"lost": []},
            )
        ]
    details = {"lost": [{"batch": batch, "queue": queue, "pending": pending} for batch, queue, pending in lost]}
    batch, queue, pending = lost[0]
    message = (
        f"{counted(len(lost), 'open batch', ('has', 'have'))} lost jobs, first batch {batch} of queue {queue!r}, which"
        f" still waits for {pending} of them"
    )
    advice = "run a worker of the queue: within two minutes it ends the batch, and counts the lost jobs as failed"
    return [Finding("batches", "warning", message, advice, details)]


async def check_dependencies(context: CheckContext) -> list[Finding]:
    """Check for jobs whose parents are gone, for example after a TRUNCATE, or while the trigger was disabled."""
    query = context.s.sql.dependencies.lost_parents
    lost = [(job, parent) for job, parent in await context.s.execute(query, query.bind({"n": MOST_LOST}))]
    query = context.s.sql.dependencies.count_blocked
    counts = {queue: int(number) for queue, number in await context.s.execute(query, query.bind({"q_name": None}))}
    details = {"waiting": counts, "lost": [{"job": job, "parent": parent} for job, parent in lost]}
    if not lost:
        waiting = counted(sum(counts.values()), "job", ("waits", "wait"))
        message = f"{waiting} for other jobs, and none of those is gone"
        return [Finding("dependencies", "ok", message, details=details)]
    job, parent = lost[0]
    waiting = counted(len({job for job, _ in lost}), "job", ("waits", "wait"))
    least = "at least " if len(lost) == MOST_LOST else ""
    message = (
        f"{least}{waiting} for jobs whose end was not recorded, or that are gone; the first is job {job}, which waits"
        f" for job {parent}"
    )
    return [Finding("dependencies", "warning", message, f"pqcore retry {job}, or pqcore cancel {job}", details)]


# The query reads at most 10,000 waiting rows of each class, and no finished rows.
_PUT_OFF = f"""
SELECT q_name, error->>'type', count(*), min(error->>'message') FROM (
  {
    " UNION ALL ".join(
        f"(SELECT q_name, error FROM {{table}} WHERE {kind} AND error IS NOT NULL AND schedule_at IS NOT NULL"
        " LIMIT 10000)"
        for kind in (IS_READY, IS_DEFERRED)
    )
} ) AS waiting
WHERE error->>'type' = ANY (:reasons::text[]) GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"""


async def check_put_off(context: CheckContext) -> list[Finding]:
    """Check for jobs that workers postpone, because they do not know the jobs' function or cannot read the data."""
    rows = await context.ask("put_off_jobs", _PUT_OFF, reasons=list(PUT_OFF))
    if not rows:
        return [Finding("put_off", "ok", "no job waits for another deployment of its workers", details={"jobs": []})]
    details = {"jobs": [dict(zip(("queue", "reason", "number", "message"), row, strict=True)) for row in rows]}
    queue, reason, number, message = rows[0]
    said = f"workers postpone {counted(number, 'job')} of queue {queue!r}, {reason} to them: {message}"
    advice = (
        "deploy workers that have the function, or the serializer, accept and keys, that these jobs need; each job is"
        " tried again within a minute"
    )
    return [Finding("put_off", "warning", said, advice, details)]


async def check_pauses(context: CheckContext) -> list[Finding]:
    """Check for pauses that are in force; an operator may have forgotten to end them."""
    rows = await context.ask(
        "pauses",
        "SELECT q_name, name, extract(epoch FROM statement_timestamp() - changed_at)::float8,"
        " extract(epoch FROM until - statement_timestamp())::float8 FROM {rules}"
        " WHERE kind = 'pause' AND coalesce(until > statement_timestamp(), true) ORDER BY changed_at LIMIT 1000",
    )
    if not rows:
        return [Finding("pauses", "ok", "nothing is paused", details={"pauses": []})]
    details = {"pauses": [dict(zip(("queue", "name", "age", "remaining"), row, strict=True)) for row in rows]}
    queue, name, age, remaining = rows[0]
    kind, _, part = name.partition(":")
    what = f"queue {queue!r}" if kind == "queue" else f"{kind} {part!r} of queue {queue!r}"
    end = "until it is resumed" if remaining is None else f"for {remaining:.0f} s more"
    number = counted(len(rows), "pause", ("is", "are"))
    message = f"{number} in force; the first began {age:.0f} s ago: no job of {what} starts {end}"
    option = "" if kind == "queue" else f" --{kind} {part}"
    advice = f"if it is no longer wanted: pqcore resume --queue {queue}{option}"
    return [Finding("pauses", "warning", message, advice, details)]


async def check_ticks(context: CheckContext) -> list[Finding]:
    """Check for ticks that are ahead of the server's clock; if there are none, check for late ticks.

    A tick is ahead of the clock if its job was put before the clock was set back.
    """
    rows = await context.ask(
        "ticks_ahead",
        "SELECT q_name, name, (extract(epoch FROM tick) - extract(epoch FROM clock_timestamp()))::float8 FROM {ticks}"
        " WHERE tick > clock_timestamp() + :ahead::float8 * interval '1 second' ORDER BY tick DESC",
        ahead=AHEAD.total_seconds(),
    )
    if not rows:
        return await _late_ticks(context)
    details = {"ahead": [{"queue": queue, "name": name, "seconds": seconds} for queue, name, seconds in rows]}
    queue, name, seconds = rows[0]
    message = (
        f"the last tick of {name!r} in queue {queue!r} is {seconds:.0f} seconds ahead of the server's clock,"
        " which was ahead when the tick was put"
    )
    advice = "set the server's clock; a worker that knows the task then puts ticks again, from the present time on"
    return [Finding("ticks", "warning", message, advice, details)]


async def _late_ticks(context: CheckContext) -> list[Finding]:
    """Check for ticks whose jobs no worker has put."""
    query = context.s.sql.admin.list_ticks
    rows = await context.s.execute(query, query.bind({"n": MOST_TICKS}))
    ages = [(tick, seconds_late(tick)) for tick in ticks_of(rows)]
    late = sorted(((age, tick) for tick, age in ages if age is not None and age > NOTICED), key=lambda one: -one[0])
    details = {
        "ahead": [],
        "late": [{"queue": tick.queue, "name": tick.name, "seconds": age} for age, tick in late],
    }
    if not late:
        message = "no periodic task is late, and no last tick is ahead of the server's clock"
        return [Finding("ticks", "ok", message, details=details)]
    age, tick = late[0]
    some = "1 periodic task is late:" if len(late) == 1 else f"{len(late)} periodic tasks are late; the latest is"
    message = f"{some} {tick.name!r} of queue {tick.queue!r}, by {age:.0f} s"
    advice = (
        "run a worker of the queue that knows the task; if the task is no longer wanted:"
        f" pqcore schedule remove --queue {quote(tick.queue)} {quote(tick.name)}"
    )
    return [Finding("ticks", "warning", message, advice, details)]


async def check_encodings(context: CheckContext) -> list[Finding]:
    """Check for data that this process cannot read, because it lacks the data's serializer or key."""
    counted = await count_part(context.s, EXAMINED)
    kinds = {(one.serializer, one.key) for one in counted}
    serializers = {name: _serializer(name) for name, _ in kinds if name}
    found = []
    for name, key in sorted(kinds):
        some = [one for one in counted if (one.serializer, one.key) == (name, key)]
        number, queues = sum(one.number for one in some), sorted({one.queue for one in some})
        details = {"serializer": name, "key": key, "number": number, "queues": queues}
        names = ", ".join(map(repr, queues[:QUEUES_NAMED])) + " and others" * (len(queues) > QUEUES_NAMED)
        where = f"{number} stored values of {names}"
        serializer = serializers.get(name)
        if isinstance(serializer, PQError):
            message = f"{where} are stored as {name!r}, which this process cannot read: {serializer}"
            advice = "give this process what workers have: the package, the key, or --import of the registering module"
            found.append(Finding("encodings", "warning", message, advice, details))
        elif key and not set(key.split("+")) <= (held := held_keys(serializer)):
            message = f"{where} are encoded with key {key}, and this process has {', '.join(sorted(held)) or 'none'}"
            advice = "add the key, then run pqcore reencode, which writes the data with the first key"
            found.append(Finding("encodings", "warning", message, advice, details))
        elif not key and written_under(serializer):
            message = f"{where} do not say which key they need: another program wrote them"
            advice = "run pqcore reencode, which writes them with the first key, and stores its id"
            found.append(Finding("encodings", "warning", message, advice, details))
    if found:
        return found
    names = ", ".join(sorted({name for name, _ in kinds if name})) or "nothing"
    return [
        Finding("encodings", "ok", f"this process can read all stored data: {names}", details={"number": len(counted)})
    ]


def _serializer(name: str) -> object:
    """Return the serializer for a stored name; if this process has none, return the error that says why."""
    try:
        return plugins.serializer(name)
    except PQError as exc:
        return exc
