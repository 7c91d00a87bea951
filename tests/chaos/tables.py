"""The tables of a run: the queue, the effects of jobs, and an audit of each change of each job by the server."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import class_row

from pqcore import PQ

from .clock import UPTIME
from .worker_tasks import GATED, OTHERS, TICK

if TYPE_CHECKING:
    from typing_extensions import LiteralString

PATIENCE = 60.0
"""Seconds to wait for a broken server."""
WAITING = datetime(9999, 1, 1, tzinfo=timezone.utc)
"""The end of the lease of a job that waits for admission: infinity, in the audit's form."""
ROLE = "client"
"""The role of clients: not a superuser, so that the server's limits apply to them."""
MAKE = f"""
CREATE TABLE effects (token text, job_id bigint, tallied boolean);
CREATE TABLE tallies (name text PRIMARY KEY, number bigint NOT NULL);
INSERT INTO tallies VALUES ('a', 0), ('b', 0);
CREATE TABLE audit (
  n bigserial PRIMARY KEY, at timestamptz NOT NULL, job bigint NOT NULL, queue text NOT NULL, token text, what text,
  dedup_key text, due timestamptz, distance float8, was_attempts int, attempts int,
  was_leased timestamptz, leased timestamptz, was_over boolean, over boolean, uptime float8
);
CREATE TABLE runs (
  n bigint DEFAULT nextval('audit_n_seq'), at timestamptz NOT NULL DEFAULT clock_timestamp(), job bigint NOT NULL,
  attempt int NOT NULL, over boolean NOT NULL
);
CREATE FUNCTION finite(timestamptz) RETURNS timestamptz IMMUTABLE LANGUAGE sql AS -- Python has no infinite times
  $$ SELECT least(greatest($1, '1000-01-01 00:00+00'), '9999-01-01 00:00+00') WHERE $1 IS NOT NULL $$;
CREATE FUNCTION uptime() RETURNS float8 SECURITY DEFINER LANGUAGE sql AS -- which libfaketime does not change
  $$ SELECT split_part(pg_read_file('{UPTIME}', 0, 100, true), ' ', 1)::float8 $$;
CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  was record; row record; token text;
BEGIN
  was := CASE WHEN TG_OP = 'INSERT' THEN NEW ELSE OLD END;
  row := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
  token := coalesce(row.data #>> '{{args,0}}', row.data #>> '{{}}');
  IF token = '{TICK}' THEN
    token := token || '-' || row.id;
  END IF;
  INSERT INTO audit (at, job, queue, token, what, dedup_key, due, distance, was_attempts, attempts, was_leased, leased,
    was_over, over, uptime)
  VALUES (statement_timestamp(), row.id, row.q_name, token, TG_OP,
    row.dedup_key, coalesce(was.schedule_at, was.enqueued_at),
    extract(epoch FROM row.schedule_at - row.enqueued_at), was.attempts, row.attempts, finite(was.leased_until),
    finite(row.leased_until), was.dequeued_at IS NOT NULL, row.dequeued_at IS NOT NULL, uptime());
  RETURN NULL;
END $$;
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON queue FOR EACH ROW EXECUTE FUNCTION audited();
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE};
GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public TO {ROLE};
"""


LEFT: LiteralString = (
    "FROM queue WHERE dequeued_at IS NULL AND q_name IN (%s, %s) AND data #>> '{args,0}' IS DISTINCT FROM %s"
)
"""A query of the jobs that are left for workers, without jobs of ticks, which never end."""


@dataclass
class Event:
    """One change of one job, as the server saw it.

    Attributes:
        n: A number that rises with each change of a job, because it is drawn while the row is locked.
        at: The time of the statement, by the server's clock.
        job: The job's id.
        queue: The queue.
        token: The job's data, which is unique.
        what: ``INSERT``, ``UPDATE`` or ``DELETE``.
        dedup_key: The key that the job holds until it is finished.
        due: When the job was due, before the change.
        distance: Seconds from the put to the due time, after the change; None if it was not scheduled.
        was_attempts: The attempts before the change.
        attempts: The attempts after the change.
        was_leased: The end of the lease before the change.
        leased: The end of the lease after the change.
        was_over: Whether the job was finished before the change.
        over: Whether the job was finished after the change.
        uptime: The machine's uptime in seconds, which is right even while the server's clock is wrong; None without
            /proc.
    """

    n: int
    at: datetime
    job: int
    queue: str
    token: str
    what: str
    dedup_key: str | None
    due: datetime
    distance: float | None
    was_attempts: int
    attempts: int
    was_leased: datetime | None
    leased: datetime | None
    was_over: bool
    over: bool
    uptime: float | None


@dataclass
class Row:
    """A job in the queue's table at the end of a run."""

    job: int
    queue: str
    token: str
    over: bool
    attempts: int


@dataclass
class Record:
    """A record that a job under limits, or in a group, wrote at its beginning or end.

    Attributes:
        n: A number from the sequence of the events: a run that began before another ended has the lower number.
        at: The time by the server's clock.
        job: The job's id.
        attempt: The fencing token of the run's lease.
        over: Whether the run ended.
    """

    n: int
    at: datetime
    job: int
    attempt: int
    over: bool


@dataclass
class Tables:
    """The content of all tables at the end of a run.

    Attributes:
        rows: The rows of the queue.
        events: The audit, in order.
        effects: The token of each effect, and whether it was tallied.
        tallies: The counts that the transactions of effects wrote.
        stuck: The jobs that no client got when it asked for all remaining jobs: each row's id and the state of its row.
        dead: The dead letters, with their reasons.
        records: The records of jobs under limits and in groups, in order.
        ticking: Whether ticks went on after the last fault.
        missed: Which missed ticks are put later.
        unsteady: The uptimes between which the server's sessions could see different times.
    """

    rows: list[Row]
    events: list[Event]
    effects: list[tuple[str, bool]]
    tallies: dict[str, int]
    stuck: list[str]
    dead: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    ticking: bool = True
    missed: str = "latest"
    unsteady: list[tuple[float, float]] = field(default_factory=list)

    def is_steady(self, event: Event) -> bool:
        """Return whether all sessions of the server saw the same time at an event."""
        return not any(event.uptime is None or start <= event.uptime <= end for start, end in self.unsteady)

    def chains(self) -> dict[int, list[Event]]:
        """Return the changes of each job."""
        found: dict[int, list[Event]] = defaultdict(list)
        for event in self.events:
            found[event.job].append(event)
        return found


def make(dsn: str) -> None:
    """Make the tables.

    Args:
        dsn: The address of the server, for a superuser.
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {ROLE} LOGIN")
    with PQ(dsn) as pq:
        pq.create()
    with psycopg.connect(dsn) as connection:
        connection.execute(MAKE)


def read(dsn: str) -> Tables:
    """Read the tables."""
    with psycopg.connect(dsn) as connection:
        rows = connection.cursor(row_factory=class_row(Row)).execute(
            "SELECT id AS job, q_name AS queue, CASE WHEN data #>> '{args,0}' = %s THEN %s || '-' || id"
            " ELSE coalesce(data #>> '{args,0}', data #>> '{}') END AS token,"
            " dequeued_at IS NOT NULL AS over, attempts FROM queue ORDER BY id",
            [TICK, TICK],
        )
        events = connection.cursor(row_factory=class_row(Event)).execute("SELECT * FROM audit ORDER BY n")
        effects: list[tuple[str, bool]] = [
            (token, tallied) for token, tallied in connection.execute("SELECT token, tallied FROM effects")
        ]
        tallies: dict[str, Any] = dict(connection.execute("SELECT name, number FROM tallies").fetchall())
        letters = "SELECT id, reason, error->>'type', left(error->>'message', 200) FROM queue_dead"
        dead = [" ".join(map(str, letter)) for letter in connection.execute(letters)]
        records = connection.cursor(row_factory=class_row(Record)).execute("SELECT * FROM runs ORDER BY n")
        return Tables(rows.fetchall(), events.fetchall(), effects, tallies, [], dead, records.fetchall())


def ticks_go_on(dsn: str, patience: float) -> bool:
    """Wait for the next tick's job; return whether it came.

    Args:
        dsn: The address of the server.
        patience: Seconds to wait.
    """
    count = "SELECT count(*) FROM audit WHERE what = 'INSERT' AND token LIKE %s"
    until, first = time.monotonic() + patience, _count(dsn, count, [f"{TICK}-%"])
    while _count(dsn, count, [f"{TICK}-%"]) == first:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def workers_are_done(dsn: str, patience: float, at_work: Callable[[], bool]) -> None:
    """Wait until workers have done all jobs that are left to them.

    Args:
        dsn: The address of the server.
        patience: Seconds to wait for the next job to be done.
        at_work: A function that returns whether a worker runs.
    """
    least, until = None, time.monotonic() + patience
    while (left := _count(dsn, f"SELECT count(*) {LEFT}", [GATED, OTHERS, TICK])) and at_work():
        if least is None or left < least:
            least, until = left, time.monotonic() + patience
        elif time.monotonic() > until:
            return
        time.sleep(0.1)


def _count(dsn: str, statement: LiteralString, values: list[str]) -> int:
    """Return the number that a query counts, as soon as the server answers."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            with psycopg.connect(dsn) as connection:
                [number] = connection.execute(statement, values).fetchone() or [0]
                return int(number)
        except psycopg.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def drain(dsn: str, queues: list[str], patience: float) -> list[str]:
    """Take all remaining jobs as a client would; return the jobs that cannot be taken.

    Args:
        dsn: The address of the server.
        queues: The names of the queues.
        patience: Seconds to wait for jobs that are leased, or scheduled for later.
    """
    with PQ(dsn) as pq:
        for name in queues:
            while pq[name].get_many(500, timeout=0):
                pass
        for name in queues:
            while pq[name].stats().scheduled + pq[name].stats().leased and pq[name].get_many(500, timeout=patience):
                pass
            while pq[name].get_many(500, timeout=0):
                pass
    with psycopg.connect(dsn) as connection:
        undone: LiteralString = f"""
          SELECT concat_ws(' ', id, 'of', q_name, 'attempts', attempts, 'due', schedule_at, 'leased until',
            leased_until, 'at', clock_timestamp(), 'xmax', xmax, data)
          FROM queue WHERE id IN (
            SELECT id FROM queue WHERE dequeued_at IS NULL AND q_name NOT IN (%s, %s) UNION ALL SELECT id {LEFT})
          ORDER BY id
        """
        return [row[0] for row in connection.execute(undone, [GATED, OTHERS, GATED, OTHERS, TICK])]
