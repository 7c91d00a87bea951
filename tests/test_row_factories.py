"""Connections and pools whose users configured other row types, or other codecs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import psycopg
import psycopg2
import psycopg2.extras
import psycopg2.pool
import psycopg_pool
import pytest
from psycopg.rows import class_row, dict_row, namedtuple_row

from pqcore import PQ, AsyncPQ


def use(pq: PQ) -> None:
    """Everything that reads rows."""
    pq.create()
    queue = pq["q"]
    job_id = queue.put({"a": [1, None]}, expected_at="1h")
    assert [job.id for job in queue.peek()] == [job_id]
    assert (len(queue), queue.stats().ready) == (1, 1)
    job = queue.get()
    assert job is not None
    assert (job.id, job.data) == (job_id, {"a": [1, None]})
    assert queue.get(timeout=0.01) is None
    queue.put_many(range(3))
    with queue as cursor:
        assert [job.data for job in queue.get_many(2)] == [0, 1]
        assert cursor is not None
    leased = queue.lease()
    assert leased is not None
    leased.ack()


@pytest.mark.parametrize(
    "factory", [psycopg2.extras.NamedTupleCursor, psycopg2.extras.RealDictCursor, psycopg2.extras.DictCursor]
)
@pytest.mark.parametrize("autocommit", [False, True])
def test_psycopg2_cursor_factories_change_no_result(dsn: str, factory: Any, autocommit: bool) -> None:
    connection = psycopg2.connect(dsn, cursor_factory=factory)
    connection.autocommit = autocommit
    use(PQ(connection))
    assert connection.autocommit is autocommit
    with PQ(connection)["q"] as cursor:
        assert isinstance(cursor, factory)
    connection.close()


@pytest.mark.parametrize("factory", [psycopg2.extras.NamedTupleCursor, psycopg2.extras.RealDictCursor])
def test_psycopg2_pools_with_cursor_factories_change_no_result(dsn: str, factory: Any) -> None:
    with PQ(pool=psycopg2.pool.ThreadedConnectionPool(1, 2, dsn, cursor_factory=factory)) as pq:
        use(pq)


@pytest.mark.parametrize("factory", [dict_row, namedtuple_row, class_row(dict)])
@pytest.mark.parametrize("autocommit", [False, True])
def test_psycopg_row_factories_change_no_result(dsn: str, factory: Any, autocommit: bool) -> None:
    with psycopg.connect(dsn, row_factory=factory, autocommit=autocommit) as connection:
        use(PQ(connection))
        assert connection.autocommit is autocommit


def test_psycopg_pools_with_row_factories_change_no_result(dsn: str) -> None:
    pool = psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=2, kwargs={"row_factory": dict_row}, open=True)
    with PQ(pool=pool) as pq:
        use(pq)


def test_asyncpg_json_codecs_change_no_result(dsn: str) -> None:
    async def scenario() -> None:
        connection = await asyncpg.connect(dsn)
        for kind in ("json", "jsonb"):
            await connection.set_type_codec(kind, schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
        async with AsyncPQ(connection) as pq:
            await pq.create()
            await pq["q"].put({"a": [1, None]})
            job = await pq["q"].get()
            assert job is not None
            assert job.data == {"a": [1, None]}

    asyncio.run(scenario())
