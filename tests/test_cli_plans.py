"""The statements for operators read a bounded number of pages, whatever the table contains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pqcore import PQ
from pqcore.sql.dialect import Dialect
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import Query

ROWS = 20_000
N = 100
SQL = Dialect(TableName("queue"), "numeric_dollar").admin
KINDS = (
    ("enqueued_at, dequeued_at", "now() - interval '1 hour', now()"),
    ("enqueued_at", "now() - interval '1 hour'"),
    ("schedule_at", "now() + interval '1 day'"),
    ("schedule_at, expected_at", "now() + interval '1 day', now() + interval '2 days'"),
    ("enqueued_at, expected_at", "now() - interval '1 hour', now() + interval '1 hour'"),
    ("leased_until, attempts", "now() + interval '2 days', 1"),
    ("leased_until, attempts, parked_on, group_key", "'infinity', 1, 'group:' || n % 10, n % 10"),
    (
        "leased_until, parked_on, group_key",
        (
            "'infinity', CASE n % 2 WHEN 0 THEN '[0,\"\",\"limit:x=2\"]' ELSE '[0,\"\",\"group:' || n % 10 || '=1\"]'"
            " END, CASE n % 2 WHEN 1 THEN n % 10 END"
        ),
    ),
)
BOUNDED: list[tuple[Query, int]] = [
    # Looks up at most this many jobs of each class, in an index of each.
    *((query, 5 * N) for query in (SQL.list_ready, SQL.list_parked)),
    # Jobs that are leased share an index with those that are scheduled and expected: one passes the other.
    *((query, ROWS + N) for query in (SQL.list_scheduled, SQL.list_leased)),
    (SQL.list_archived, N),
    (SQL.list_dead, N),
    (SQL.find_row, 3),
    # Finished rows are in no index: the statement reads the last ones, up to this number.
    (SQL.recent_completions, 10_000),
    (SQL.rerun_finished, 3),
    (SQL.rerun_archived, 3),
    (SQL.run_now, 3),
    (SQL.last_id, 3),
    *((query, 5 * N) for query in SQL.move.values()),
]


@pytest.fixture(scope="module")
def connection(pqcore_server: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a schema with a large table that is never vacuumed."""
    with psycopg.connect(pqcore_server, autocommit=True, prepare_threshold=None) as made:
        made.execute("DROP SCHEMA IF EXISTS cli_plans CASCADE")
        made.execute("CREATE SCHEMA cli_plans")
        made.execute("SET search_path = cli_plans")
        made.execute("SET pqcore.notify = off")
        PQ(made).create()
        made.execute("ALTER TABLE queue SET (autovacuum_enabled = off)")
        for columns, values in KINDS:
            made.execute(
                f"INSERT INTO queue (q_name, data, {columns})"
                f" SELECT 'jobs', '{{}}', {values} FROM generate_series(1, {ROWS}) AS n".encode()
            )
        made.execute(
            "INSERT INTO queue_archive (id, q_name, data, enqueued_at, dequeued_at, attempts)"
            f" SELECT -n, 'jobs', '1', now(), now(), 1 FROM generate_series(1, {ROWS}) AS n".encode()
        )
        made.execute(
            "INSERT INTO queue_dead (id, q_name, data, enqueued_at, attempts, reason)"
            f" SELECT -n - {ROWS}, 'jobs', '1', now(), 1, 'failed' FROM generate_series(1, {ROWS}) AS n".encode()
        )
        made.execute("ANALYZE queue_archive, queue_dead")
        yield made
        made.execute("DROP SCHEMA cli_plans CASCADE")


def _nodes(plan: Any) -> Iterator[Any]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


def offences(connection: psycopg.Connection[Any], query: Query, most: int) -> list[str]:
    """Return the scans that read too many pages, in a transaction that is rolled back."""
    ids = [row[0] for row in connection.execute("SELECT id FROM queue WHERE dequeued_at IS NULL LIMIT 100").fetchall()]
    values: dict[str, Any] = {"q_name": "jobs", "task": None, "age": None, "failed": 0, "n": N, "target": "other"}
    values |= {"channel": "other", "last": 2**62, "ids": ids, "headers": None, "most": None, "put_at": None}
    values |= {"search": None, "written": None, "skip": 0}
    values["id"] = {"rerun_finished": 150, "rerun_archived": -7}.get(query.name, ids[0])
    literals = [sql.Literal(value) for value in query.given(values)]
    given = sql.SQL("({})").format(sql.SQL(", ").join(literals)) if literals else sql.SQL("")
    connection.execute(f"PREPARE tried AS {query.numbered}".encode())
    connection.execute("BEGIN")
    try:
        command = sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE tried ") + given
        [(found,)] = connection.execute(command).fetchall()
    finally:
        connection.execute("ROLLBACK")
        connection.execute("DEALLOCATE tried")
    wrong = []
    for node in _nodes(found[0]["Plan"]):
        if node.get("Relation Name", "").startswith("queue") and "Scan" in node["Node Type"]:
            rows = node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
            if rows > most or (node["Node Type"] == "Seq Scan" and rows):
                wrong.append(f"{query.name}: {node['Node Type']} of {rows} rows of {node['Relation Name']}")
    return wrong


@pytest.mark.parametrize("known", ["VACUUM queue", "VACUUM ANALYZE queue"])
def test_command_statements_read_a_bounded_number_of_rows(connection: psycopg.Connection[Any], known: str) -> None:
    connection.execute(known.encode())
    assert [wrong for query, most in BOUNDED for wrong in offences(connection, query, most)] == []
