"""The tables of a run: the queue, effects of jobs, and an audit that the server writes of each change of each job."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row

from pqcore import PQ

ROLE = "client"
"""Whom clients log in as: no superuser, so that limits hold for them."""
MAKE = f"""
CREATE TABLE effects (token text, job_id bigint, tallied boolean);
CREATE TABLE tallies (name text PRIMARY KEY, number bigint NOT NULL);
INSERT INTO tallies VALUES ('a', 0), ('b', 0);
CREATE TABLE audit (
  n bigserial PRIMARY KEY, at timestamptz NOT NULL, job bigint NOT NULL, queue text NOT NULL, token text, what text,
  dedup_key text, due timestamptz, distance float8, was_attempts int, attempts int,
  was_leased timestamptz, leased timestamptz, was_over boolean, over boolean
);
CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  was record; row record;
BEGIN
  was := CASE WHEN TG_OP = 'INSERT' THEN NEW ELSE OLD END;
  row := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
  INSERT INTO audit (at, job, queue, token, what, dedup_key, due, distance, was_attempts, attempts, was_leased, leased,
    was_over, over)
  VALUES (statement_timestamp(), row.id, row.q_name, coalesce(row.data #>> '{{args,0}}', row.data #>> '{{}}'), TG_OP,
    row.dedup_key, coalesce(was.schedule_at, was.enqueued_at),
    extract(epoch FROM row.schedule_at - row.enqueued_at), was.attempts, row.attempts, was.leased_until,
    row.leased_until, was.dequeued_at IS NOT NULL, row.dequeued_at IS NOT NULL);
  RETURN NULL;
END $$;
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON queue FOR EACH ROW EXECUTE FUNCTION audited();
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE};
GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public TO {ROLE};
"""


@dataclass
class Event:
    """One change of one job, as the server saw it.

    Attributes:
        n: Rises with each change of a job: it is drawn while the row is locked.
        at: The server's clock at the statement.
        job: The id.
        queue: The queue.
        token: The job's data, which no other job has.
        what: ``INSERT``, ``UPDATE`` or ``DELETE``.
        dedup_key: The key that the job holds until it is finished.
        due: When it was due, before.
        distance: Seconds between being put and being due, after; None if it was not scheduled.
        was_attempts: Attempts before.
        attempts: And after.
        was_leased: The end of its lease before.
        leased: And after.
        was_over: Whether it was finished before.
        over: And after.
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


@dataclass
class Row:
    """A job as it is in the queue's table in the end."""

    job: int
    queue: str
    token: str
    over: bool
    attempts: int


@dataclass
class Tables:
    """All that there is in the end.

    Attributes:
        rows: Of the queue.
        events: The audit, in order.
        effects: The token of each effect, and whether it was tallied.
        tallies: What was counted in the transactions of effects.
        stuck: Ids of jobs that nobody was given, when all that was left was asked for.
        dead: Dead letters, and why they are such.
    """

    rows: list[Row]
    events: list[Event]
    effects: list[tuple[str, bool]]
    tallies: dict[str, int]
    stuck: list[int]
    dead: list[str] = field(default_factory=list)

    def chains(self) -> dict[int, list[Event]]:
        """The changes of each job."""
        found: dict[int, list[Event]] = defaultdict(list)
        for event in self.events:
            found[event.job].append(event)
        return found


def make(dsn: str) -> None:
    """Make the tables.

    Args:
        dsn: The server, as a superuser.
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {ROLE} LOGIN")
    with PQ(dsn) as pq:
        pq.create()
    with psycopg.connect(dsn) as connection:
        connection.execute(MAKE)


def read(dsn: str) -> Tables:
    """Read them."""
    with psycopg.connect(dsn) as connection:
        rows = connection.cursor(row_factory=class_row(Row)).execute(
            "SELECT id AS job, q_name AS queue, coalesce(data #>> '{args,0}', data #>> '{}') AS token,"
            " dequeued_at IS NOT NULL AS over, attempts FROM queue ORDER BY id"
        )
        events = connection.cursor(row_factory=class_row(Event)).execute("SELECT * FROM audit ORDER BY n")
        effects: list[tuple[str, bool]] = [
            (token, tallied) for token, tallied in connection.execute("SELECT token, tallied FROM effects")
        ]
        tallies: dict[str, Any] = dict(connection.execute("SELECT name, number FROM tallies").fetchall())
        dead = [f"{job}: {why}" for job, why in connection.execute("SELECT id, error::text FROM queue_dead")]
        return Tables(rows.fetchall(), events.fetchall(), effects, tallies, [], dead)


def drain(dsn: str, queues: list[str], patience: float) -> list[int]:
    """Take all that is left, as anybody would; the ids of what cannot be had.

    Args:
        dsn: The server.
        queues: Of which queues.
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
        return [row[0] for row in connection.execute("SELECT id FROM queue WHERE dequeued_at IS NULL ORDER BY id")]
