"""Statements that psycopg has prepared, and that pqcore sends without a cursor."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from pqcore import PQ, AsyncPQ

TIMES = 8
"""More runs than psycopg waits for before it prepares a statement."""
NAME = "größe"
LATIN1 = "SET client_encoding TO latin1"


@pytest.fixture
def outside(dsn: str) -> PQ:
    pq = PQ(dsn, backend="psycopg2")
    pq.create()
    return pq


def test_name_of_a_queue_is_stored_right_after_the_client_encoding_changed(dsn: str, outside: PQ) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        queue = PQ(connection)[NAME]
        for number in range(TIMES):
            queue.put(number)
        connection.execute(LATIN1)
        for number in range(TIMES):
            queue.put(number)
        assert outside[NAME].count() == 2 * TIMES
        assert [job.data for job in queue.get_many(2 * TIMES)] == [*range(TIMES)] * 2


def test_name_of_a_queue_is_stored_right_after_the_client_encoding_changed_on_an_async_connection(
    dsn: str, outside: PQ
) -> None:
    async def scenario() -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            queue = AsyncPQ(connection)[NAME]
            for number in range(TIMES):
                await queue.put(number)
            await connection.execute(LATIN1)
            for number in range(TIMES):
                await queue.put(number)

    asyncio.run(scenario())
    assert outside[NAME].count() == 2 * TIMES


def test_prepared_put_joins_the_callers_pipeline(dsn: str, outside: PQ) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        queue = PQ(connection)["q"]
        for number in range(TIMES):
            queue.put(number)
        with connection.pipeline():
            assert queue.put("in a pipeline") > TIMES
        assert outside["q"].count() == TIMES + 1


def test_prepared_put_begins_the_callers_transaction(dsn: str, outside: PQ) -> None:
    with psycopg.connect(dsn) as connection:
        queue = PQ(dsn, backend="psycopg")["q"]
        for number in range(TIMES):
            queue.put(number, connection=connection)
            connection.commit()
        queue.put("rolled back", connection=connection)
        connection.rollback()
        assert outside["q"].count() == TIMES
        queue.put("committed", connection=connection)
        assert outside["q"].count() == TIMES
        connection.commit()
        assert outside["q"].count() == TIMES + 1
