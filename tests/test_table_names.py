"""Tables whose names also occur inside of pqcore's statements."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from statement_snapshots import DIALECTS, NAMES, UNPREPARED, queries

from pqcore import PQ
from pqcore.sql.clashes import _QUALIFIER, _WITH_QUERY, rename_clashes
from pqcore.sql.dialect import Dialect
from pqcore.sql.identifiers import TableName
from pqcore.worker import Worker

INSIDE = sorted(
    {
        name
        for query in queries(Dialect(NAMES, "numeric_dollar")).values()
        for pattern in (_WITH_QUERY, _QUALIFIER)
        for name in pattern.findall(query.sql)
    }
    - {"excluded"}  # SQL's own name of the row that ON CONFLICT refused
)
"""The names of WITH queries and aliases."""


def test_names_of_with_queries_are_found() -> None:
    assert {"hidden", "urgent", "waiting", "shares", "held"} <= set(INSIDE)


@pytest.mark.parametrize("kind", DIALECTS, ids=lambda kind: kind.name)
def test_table_has_no_name_of_a_with_query(kind: type[Dialect]) -> None:
    for name in INSIDE:
        for query in queries(kind(TableName(name), "numeric_dollar")).values():
            if f'"{name}"' in query.sql:
                found = {*_WITH_QUERY.findall(query.sql), *_QUALIFIER.findall(query.sql)}
                assert name not in found, query.name


def test_table_with_a_schema_needs_no_other_names() -> None:
    template = "WITH held AS (SELECT 1) SELECT held.x FROM {table}, held"
    assert rename_clashes(template, TableName("held", "public").substitutions()) == template
    assert "held_in_query.x" in rename_clashes(template, TableName("held").substitutions())


def test_statements_with_renamed_with_queries_are_valid(empty_dsn: str) -> None:
    with PQ(empty_dsn, backend="psycopg2") as pq:
        pq.create()
    usual, present = queries(Dialect(NAMES, "numeric_dollar")), "queue"
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        tables = [
            table for (table,) in connection.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'queue%'")
        ]
        for name in INSIDE:
            for table in tables:
                before, after = table.replace("queue", present, 1), table.replace("queue", name, 1)
                connection.execute(f'ALTER TABLE "{before}" RENAME TO "{after}"'.encode())
            present = name
            changed = 0
            for query in queries(Dialect(TableName(name), "numeric_dollar")).values():
                alike = usual[query.name].numbered.replace('"queue', f'"{name}')
                if query.numbered != alike and query.name not in UNPREPARED:
                    connection.execute(f"PREPARE tried AS {query.numbered}".encode())
                    connection.execute("DEALLOCATE tried")
                    changed += 1
            assert changed > 0, name


@pytest.mark.parametrize("name", ["hidden", "waiting", "urgent", "shares", "state", "held", "kept", "lanes"])
def test_jobs_of_a_table_of_the_name_are_taken_in_every_way(empty_dsn: str, name: str) -> None:
    pq, ran = PQ(empty_dsn, table=name, backend="psycopg2"), []
    pq.create()
    queue = pq["q"]

    @queue.task(limits={"key": 2}, tenant="a", max_retries=0)
    def work(number: int) -> None:
        ran.append(number)
        if number == 3:
            raise ValueError

    queue.put("plain")
    queue.put("soon", expected_at="1s")
    assert [job.data for job in queue.get_many(2, timeout=0)] == ["soon", "plain"]
    queue.put_calls(*[work.call(number) for number in range(4)])
    asyncio.run(Worker(queue, burst=True).run())
    assert sorted(ran) == [0, 1, 2, 3]
    assert [job.reason for job in queue.dead.list()] == ["failed"]
    assert queue.dead.retry_all() == 1
    assert queue.stats().parked + queue.stats().ready == 1
    queue.put("grouped", group="g", dedup="d")
    leased = queue.lease_many(5, 60, timeout=0)
    assert len(leased) == 2
    assert queue.ack_many(leased) == []
