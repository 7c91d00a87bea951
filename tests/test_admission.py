"""Admission of jobs whose rows, or keys, another transaction has locked, as a concurrent take does."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import Any

import psycopg
import pytest

from pqcore import PQ, AsyncPQ
from pqcore.testing.harness import PATIENCE

FACES = [("psycopg2", PQ), ("psycopg", PQ), ("psycopg", AsyncPQ), ("asyncpg", AsyncPQ)]


async def maybe(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


@pytest.mark.parametrize(("backend", "face"), FACES)
def test_admission_waits_for_no_row_that_is_locked(dsn: str, backend: str, face: Any) -> None:
    async def main() -> None:
        pq = face(dsn, backend=backend)
        await maybe(pq.create())
        queue = pq["q"]
        await maybe(queue.put_many([1, 2, 3], limits={"l": 2}))
        with psycopg.connect(dsn) as other:
            other.execute("SELECT FROM queue WHERE id = 1 FOR UPDATE")
            began = time.monotonic()
            leased = [job for _ in range(2) for job in await maybe(queue.lease_many(3, 60, block=False))]
            assert time.monotonic() - began < PATIENCE
            assert [job.data for job in leased] == [2, 3]
            other.rollback()
        assert await maybe(queue.lease_many(3, 60, block=False)) == []
        await maybe(queue.ack_many(leased))
        first = await maybe(queue.lease(60, wait=PATIENCE))
        assert first.data == 1
        await maybe(pq.close())

    asyncio.run(main())


def test_admission_of_a_group_does_not_pass_a_first_job_that_is_locked(dsn: str) -> None:
    with PQ(dsn) as pq, psycopg.connect(dsn) as other:
        pq.create()
        queue = pq["q"]
        queue.put_many([1, 2], group="g")
        other.execute("SELECT FROM queue WHERE id = 1 FOR UPDATE")
        assert queue.lease_many(2, 60, block=False) == []
        other.rollback()
        [job] = queue.lease_many(2, 60, wait=PATIENCE)
        assert job.data == 1


def test_puts_under_crossing_keys_do_not_wait_for_each_other(dsn: str) -> None:
    with PQ(dsn) as pq, psycopg.connect(dsn) as one, psycopg.connect(dsn) as two:
        pq.create()
        queue = pq["q"]
        for connection in (one, two):
            connection.execute("SET lock_timeout = '5s'")
        queue.put("a", limits={"a": 1}, connection=one)
        queue.put("b", limits={"b": 1}, connection=two)
        queue.put("b", limits={"b": 1}, connection=one)
        queue.put("a", limits={"a": 1}, connection=two)
        for key in ("a", "b"):  # other sessions put, take and finish jobs under these keys meanwhile
            queue.put("mine", limits={key: 1})
            [job] = queue.lease_many(5, 60, block=False)
            assert job.data == "mine"
            job.ack()
        one.commit()
        two.commit()
        assert sorted(job.data for job in queue.lease_many(9, 60, block=False)) == ["a", "b"]
