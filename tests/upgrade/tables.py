"""The large tables that an upgrade begins with, and what is left of their rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

CHUNK = 500_000
"""Rows that are inserted in one transaction."""
PUBLIC_QUEUES = ("jobs", "leases", "calls", "backlog")
BACKLOG = "backlog"
"""The queue of all rows that are not finished: other queues have only the jobs of the run, so that delays can be
measured."""

# Of a thousand rows: 960 finished, 20 waiting, 10 scheduled, 4 leased, 2 leased until later, 4 dead.
_ROW = """
SELECT n, CASE WHEN n %% 1000 < 960 THEN (ARRAY['jobs', 'leases', 'calls', 'backlog'])[1 + n %% 4] ELSE 'backlog' END,
  now() - interval '60 days' + n * interval '10 ms',
  CASE WHEN n %% 1000 < 960 THEN now() - interval '60 days' + n * interval '10 ms' + interval '1 s' END,
  CASE WHEN n %% 1000 BETWEEN 980 AND 984 THEN now() + n %% 100 * interval '1 s'
    WHEN n %% 1000 BETWEEN 985 AND 989 THEN now() + interval '30 days' END,
  to_json('row-' || n)
"""
_FILL_PQ = f"""
INSERT INTO queue (id, q_name, enqueued_at, dequeued_at, schedule_at, data)
{_ROW} FROM generate_series(%s::bigint, %s::bigint) AS n
"""
_FILL = f"""
INSERT INTO queue (id, q_name, enqueued_at, dequeued_at, schedule_at, data, serializer, attempts, leased_until)
SELECT made.*, 'json', CASE WHEN made.finished IS NOT NULL OR made.n %% 1000 BETWEEN 990 AND 995 THEN 1 ELSE 0 END,
  CASE WHEN made.n %% 1000 BETWEEN 990 AND 993 THEN now() + made.n %% 60 * interval '1 s'
    WHEN made.n %% 1000 BETWEEN 994 AND 995 THEN now() + interval '30 days' END
FROM ({_ROW} FROM generate_series(%s::bigint, %s::bigint) AS n) AS made (n, q, put, finished, due, data)
WHERE made.n %% 1000 < 996
"""
_FILL_DEAD = f"""
INSERT INTO queue_dead (id, q_name, enqueued_at, data, serializer, attempts, failures, reason)
SELECT made.n, made.q, made.put, made.data, 'json', 1, 1, 'failed'
FROM ({_ROW} FROM generate_series(%s::bigint, %s::bigint) AS n) AS made (n, q, put, finished, due, data)
WHERE made.n %% 1000 >= 996
"""
_LOGINS = ("CREATE ROLE owner LOGIN CREATEROLE", "CREATE ROLE shop LOGIN", "CREATE ROLE mailer LOGIN")
_OF_PQ = (
    "GRANT INSERT, SELECT ON queue TO shop",
    "GRANT SELECT, UPDATE ON queue TO mailer",
    "GRANT USAGE ON SEQUENCE queue_id_seq TO shop",
)
_OF_PQCORE = ("GRANT queue_producer TO shop", "GRANT queue_consumer TO mailer")


@dataclass(frozen=True)
class Filled:
    """The rows that the table began with.

    Attributes:
        rows: Their number.
        by_state: Their number in each state.
        digest: A sum over their ids and data, which does not change unless a row is lost or changed.
    """

    rows: int
    by_state: dict[str, int]
    digest: str


def make_logins(superuser: str, database: str) -> None:
    """Make the roles of the owner and of the programs, and a database of the owner's."""
    with psycopg.connect(superuser, autocommit=True) as connection:
        for statement in _LOGINS:
            connection.execute(statement.encode())
        connection.execute(f"CREATE DATABASE {database} OWNER owner".encode())


def drop_logins(superuser: str, database: str) -> None:
    """Drop what `make_logins` made, and the roles of the table."""
    with psycopg.connect(superuser, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)".encode())
        for role in ("queue_producer", "queue_consumer", "queue_admin", "shop", "mailer", "owner"):
            connection.execute(f"DROP ROLE IF EXISTS {role}".encode())


def grant_pq(owner: str) -> None:
    """Let the programs put and take over pq, by grants that were made by hand."""
    with psycopg.connect(owner, autocommit=True) as connection:
        for statement in _OF_PQ:
            connection.execute(statement.encode())


def grant_roles(owner: str) -> None:
    """Make the programs members of the table's roles, which exist."""
    with psycopg.connect(owner, autocommit=True) as connection:
        for statement in _OF_PQCORE:
            connection.execute(statement.encode())


def fill(owner: str, rows: int, *, of_pq: bool, tell: Callable[[str], object]) -> None:
    """Fill the table.

    Args:
        owner: The DSN of its owner.
        rows: The number of rows.
        of_pq: Whether the table is pq's, which knows no leases and no dead letters.
        tell: Called with the progress.
    """
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute("SELECT set_config('pqcore.notify', 'off', false)")
        for first in range(1, rows + 1, CHUNK):
            last = min(first + CHUNK - 1, rows)
            for statement in (_FILL_PQ,) if of_pq else (_FILL, _FILL_DEAD):
                connection.execute(statement.encode(), [first, last])
            tell(f"{last:,} of {rows:,} rows are inserted")
        connection.execute("SELECT setval('queue_id_seq', %s)", [rows])
        connection.execute("VACUUM (ANALYZE) queue")


def look(owner: str, rows: int, *, dead: bool) -> Filled:
    """Read what there is of the rows that `fill` made.

    Args:
        owner: The DSN of the table's owner.
        rows: The number of rows that were made.
        dead: Whether there is a table of dead letters.
    """
    letters = "UNION ALL SELECT id, data, 'dead' FROM queue_dead" if dead else ""
    query = f"""
    SELECT state, count(*), sum(hashtextextended(id || data::text, 0)::numeric)
    FROM (SELECT id, data, CASE WHEN dequeued_at IS NULL THEN 'unfinished' ELSE 'finished' END AS state FROM queue
      {letters}) AS found
    WHERE id BETWEEN 1 AND %s GROUP BY 1 ORDER BY 1
    """
    with psycopg.connect(owner) as connection:
        found = connection.execute(query.encode(), [rows]).fetchall()
    counts = {str(state): int(number) for state, number, _ in found}
    return Filled(sum(counts.values()), counts, str(sum(digest for *_, digest in found)))


def jobs_of_run(owner: str, rows: int, *, dead: bool) -> dict[str, list[str]]:
    """Return the states of all jobs that the processes put, by name; a name that is there twice has two states."""
    letters = "UNION ALL SELECT id, data::jsonb, 'dead' FROM queue_dead" if dead else ""
    query = f"""
    SELECT CASE jsonb_typeof(data) WHEN 'string' THEN data #>> '{{}}' ELSE data #>> '{{args,0}}' END, state
    FROM (SELECT id, data::jsonb, CASE WHEN dequeued_at IS NULL THEN 'unfinished' ELSE 'finished' END AS state
      FROM queue {letters}) AS found WHERE id > %s
    """
    states: dict[str, list[str]] = {}
    with psycopg.connect(owner) as connection:
        for name, state in connection.execute(query.encode(), [rows]):
            states.setdefault(str(name), []).append(str(state))
    return states


def finished_rows(owner: str, rows: int) -> set[str]:
    """Return the names of the rows of `fill` that were not finished at the start, and are now."""
    query = """SELECT data #>> '{}' FROM queue WHERE id BETWEEN 1 AND %s AND id %% 1000 >= 960
    AND dequeued_at IS NOT NULL"""
    with psycopg.connect(owner) as connection:
        return {str(name) for (name,) in connection.execute(query.encode(), [rows])}


def dead_letters(owner: str, ids: tuple[int, ...]) -> list[int]:
    """Return which of some ids are dead letters."""
    with psycopg.connect(owner) as connection:
        found = connection.execute("SELECT id FROM queue_dead WHERE id = ANY (%s) ORDER BY 1", [list(ids)])
        return [int(number) for (number,) in found]


def unfinished(owner: str, rows: int, queues: tuple[str, ...]) -> int:
    """Return the number of jobs of the run that are not finished."""
    query = "SELECT count(*) FROM queue WHERE id > %s AND q_name = ANY (%s) AND dequeued_at IS NULL"
    with psycopg.connect(owner) as connection:
        [number] = connection.execute(query, [rows, list(queues)]).fetchone() or (0,)
    return int(number)


def release_parked(owner: str) -> int:
    """Let jobs that wait for admission wait in the way that builds before schema version 8 understand.

    The statement is that of the page on upgrades.
    """
    with psycopg.connect(owner, autocommit=True) as connection:
        return connection.execute(
            "UPDATE queue SET parked_on = NULL, leased_until = NULL"
            " WHERE parked_on IS NOT NULL AND leased_until = 'infinity' AND dequeued_at IS NULL"
        ).rowcount


def facts(owner: str) -> dict[str, Any]:
    """Return the size of the table, and the server's version."""
    with psycopg.connect(owner) as connection:
        row: Any = connection.execute(
            "SELECT pg_total_relation_size('queue'), split_part(current_setting('server_version'), ' ', 1)"
        ).fetchone()
    return {"bytes": int(row[0]), "server": str(row[1])}
