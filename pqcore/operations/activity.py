"""The activity of a table: finished jobs, working sessions, last ticks, and the server's statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pqcore.backend import Capability, Row
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.operations.periodic import BEFORE
from pqcore.operations.schema_info import ask
from pqcore.sql.identifiers import channel, control_channel
from pqcore.times import UtcDatetime

MOST_SESSIONS = 500
"""The largest number of sessions that are listed."""


@dataclass(frozen=True)
class Finished:
    """The recently finished jobs of a queue, counted among the jobs that were put last; deleted rows are not counted.

    Attributes:
        minute: The number of jobs finished within the last minute.
        hour: The number of jobs finished within the last hour.
        median: The median time in seconds from due to finished, for jobs of the last minute; None without such jobs.
        slow: The 95th percentile of that time, in seconds; None without such jobs.
    """

    minute: int
    hour: int
    median: float | None
    slow: float | None


@dataclass(frozen=True)
class SessionInfo:
    """A session on the server.

    Attributes:
        pid: The process id of the session on the server.
        application: The session's ``application_name``.
        role: The session's role; None if the caller may not see it.
        address: The client's address; None for a local socket, or if the caller may not see it.
        state: The session's state, in the server's words; None if the caller may not see it.
        age: Seconds since the session began; None if the caller may not see it.
        waits: The queues on whose jobs the session waits now.
        works: The queues for which the session runs a worker.
    """

    pid: int
    application: str
    role: str | None
    address: str | None
    state: str | None
    age: float | None
    waits: tuple[str, ...]
    works: tuple[str, ...]


@dataclass(frozen=True)
class TickJob:
    """The job of the last tick of a periodic task.

    Attributes:
        id: The job's id.
        state: ``done``, ``dead``, ``leased`` or ``waiting``.
        failures: How often the job failed with an exception.
        ended_at: When the job was finished, or died; None if it is neither.
    """

    id: int
    state: str
    failures: int
    ended_at: UtcDatetime | None


@dataclass(frozen=True)
class Tick:
    """The last tick of a periodic task.

    Attributes:
        queue: The name of the task's queue.
        name: The name of the periodic task.
        last: The tick for which a worker last put a job; None if no worker has put a job since `noted`.
        noted: The same time as `last`; for a task without a put yet, the time from which its ticks count.
        read_at: When the tick was read, by the server's clock.
        cron: The cron expression; None in a row of older code.
        tz: The time zone of the expression; None in a row of older code.
        job: The job of the last tick; None if it was deleted, or is not among the jobs that were put last.
        is_asked_for: Whether somebody asked for the job of a past tick, and no worker has put this job yet.
        is_schedule: Whether the periodic task is a schedule, which is a row, rather than a task declared in code.
        paused: Whether the periodic task is a paused schedule, so that no tick comes.
    """

    queue: str
    name: str
    last: UtcDatetime | None
    noted: UtcDatetime
    read_at: UtcDatetime
    cron: str | None = None
    tz: str | None = None
    job: TickJob | None = None
    is_asked_for: bool = False
    is_schedule: bool = False
    paused: bool = False


async def recent_completions(engine: Engine) -> dict[str, Finished]:
    """Count recently finished jobs by queue, among the 10,000 jobs put last and the 10,000 jobs archived last."""
    rows = await engine.execute("admin.recent_completions", {}, protect=False, patient=True)
    return {queue: Finished(int(minute), int(hour), median, slow) for queue, minute, hour, median, slow in rows}


async def list_ticks(engine: Engine, n: int = 500, *, with_jobs: bool = True) -> list[Tick]:
    """List the last tick of each periodic task, with the state of its job.

    Args:
        engine: The engine.
        n: The largest number of tasks to return.
        with_jobs: Whether to look for the jobs, among those that were put last.
    """
    rows = await engine.execute("admin.list_ticks", {"n": n}, protect=False)
    wanted = rows and with_jobs
    jobs = await engine.execute("admin.find_tick_jobs", {}, protect=False, patient=True) if wanted else ()
    found = {
        (queue, name): TickJob(int(number), state, int(failures), UtcDatetime.of(ended))
        for queue, name, number, state, failures, ended in jobs
    }
    return ticks_of(rows, found)


def ticks_of(rows: Iterable[Row], jobs: Mapping[tuple[str, str], TickJob] = MappingProxyType({})) -> list[Tick]:
    """Return the ticks in the rows of the statement ``list_ticks``.

    Args:
        rows: The rows.
        jobs: The job of each periodic task, by the names of its queue and of the task.
    """
    ticks = []
    for queue, name, tick, cron, tz, is_schedule, paused, clock in rows:
        noted, now = UtcDatetime.of(tick), UtcDatetime.of(clock)
        if noted is not None and now is not None:
            # A tick is a whole second. A time with a fraction of a second is not a tick: for example, a worker stored
            # it with a new task or a new expression, as the time from which ticks count.
            last = None if noted.microsecond else noted
            job = jobs.get((queue, name)) if last is not None else None
            asked = noted.microsecond == 1_000_000 - BEFORE.microseconds
            ticks.append(Tick(queue, name, last, noted, now, cron, tz, job, asked, is_schedule, paused))
    return ticks


# A listener holds a shared lock on the channel (see pqcore.db.listener). pg_locks shows its 64-bit key in two halves.
_SESSIONS = f"""
WITH place AS (
  SELECT name, of_worker, hashtextextended(channel, 7071) AS key
  FROM unnest(:names::text[], :kinds::bool[], :channels::text[]) AS place (name, of_worker, channel)
), held AS (
  SELECT pid, array_agg(name) FILTER (WHERE NOT of_worker) AS waits, array_agg(name) FILTER (WHERE of_worker) AS works
  FROM pg_locks JOIN place ON (classid::bigint << 32 | objid::bigint) = key
  WHERE locktype = 'advisory' AND objsubid = 1 AND mode = 'ShareLock' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  GROUP BY pid
)
SELECT pid, coalesce(application_name, ''), usename::text, host(client_addr), state,
  extract(epoch FROM clock_timestamp() - backend_start)::float8,
  coalesce(waits, ARRAY[]::text[]), coalesce(works, ARRAY[]::text[])
FROM pg_stat_activity LEFT JOIN held USING (pid)
WHERE datname = current_database() AND pid <> pg_backend_pid() AND coalesce(backend_type, '') IN ('', 'client backend')
ORDER BY works IS NULL, waits IS NULL, pid LIMIT {MOST_SESSIONS}"""


async def list_sessions(engine: Engine, queues: Iterable[str]) -> list[SessionInfo]:
    """List the sessions of the database: sessions that run workers first, then sessions that wait for jobs.

    Args:
        engine: The engine.
        queues: The names of the queues to look for.
    """
    names = list(queues)
    values: dict[str, Any] = {
        "names": [*names, *names],
        "kinds": [False] * len(names) + [True] * len(names),
        "channels": [*map(channel, names), *map(control_channel, names)],
    }

    async def work(s: Session) -> list[SessionInfo]:
        rows = await ask(engine, s, "sessions", _SESSIONS, **values)
        return [
            SessionInfo(pid, application, role, address, state, age, tuple(sorted(waits)), tuple(sorted(works)))
            for pid, application, role, address, state, age, waits, works in rows
        ]

    return await engine.run(work, protect=False)


# Statistics of the server


@dataclass(frozen=True)
class Activity:
    """The server's statistics about a table.

    Attributes:
        inserted: The number of rows that were ever put.
        dead_rows: The number of deleted rows that VACUUM has not removed yet.
        connections: The number of sessions in all databases.
        oldest: How long the oldest visible transaction has been open, in seconds; None if no transaction is open.
        notifications: How full the server's notification queue is, from 0 to 1; None if the server has no such queue.
    """

    inserted: int
    dead_rows: int
    connections: int
    oldest: float | None
    notifications: float | None = None


# The relations that store the rows: the partitions, or the table itself.
STORED = """(
  SELECT relid FROM pg_partition_tree(to_regclass(:table_name::text)) WHERE isleaf
  UNION ALL
  SELECT to_regclass(:table_name::text) WHERE NOT EXISTS (
    SELECT FROM pg_partition_tree(to_regclass(:table_name::text)))
)"""


_ACTIVITY = f"""
SELECT coalesce((SELECT sum(n_tup_ins)::bigint FROM pg_stat_all_tables WHERE relid IN {STORED}), 0),
  coalesce((SELECT sum(n_dead_tup)::bigint FROM pg_stat_all_tables WHERE relid IN {STORED}), 0),
  (SELECT sum(numbackends)::int FROM pg_stat_database WHERE datname IS NOT NULL),
  (SELECT extract(epoch FROM clock_timestamp() - min(xact_start))::float8 FROM pg_stat_activity
   WHERE datname = current_database() AND pid <> pg_backend_pid()
     AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL))"""


async def read_activity(engine: Engine) -> Activity:
    """Read the server's statistics, which are up to one second old."""

    async def work(s: Session) -> Activity:
        [[inserted, dead, connections, oldest]] = await ask(engine, s, "activity", _ACTIVITY)
        usage = None
        if engine.offers(Capability.LISTEN):
            [[usage]] = await s.execute(s.sql.notification_usage)
        return Activity(int(inserted), int(dead), int(connections), oldest, usage)

    return await engine.run(work, protect=False)
