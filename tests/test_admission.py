"""Admission of jobs whose rows another transaction has locked for a moment, as a concurrent take does."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import Any

import psycopg
import pytest

from pqcore import PQ, AsyncPQ
from pqcore.operations.concurrency_limits import _Admission
from pqcore.testing.harness import PATIENCE

FACES = [("psycopg2", PQ), ("psycopg", PQ), ("psycopg", AsyncPQ), ("asyncpg", AsyncPQ)]


async def maybe(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


@pytest.mark.parametrize(("backend", "face"), FACES)
def test_admission_decides_about_a_row_that_was_locked_briefly(
    dsn: str, backend: str, face: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _Admission._store
    stored: list[set[int]] = []

    async def main() -> None:
        pq = face(dsn, backend=backend)
        await maybe(pq.create())
        queue = pq["q"]
        await maybe(queue.put_many([1, 2, 3], limits={"l": 2}))
        with psycopg.connect(dsn) as other:

            async def locked_at_first(self: Any, decided: Any, tokens: Any) -> Any:
                if not stored:
                    other.execute("SELECT FROM queue FOR UPDATE")
                stored.append(await store(self, decided, tokens))
                if not other.closed:
                    other.rollback()
                return stored[-1]

            monkeypatch.setattr(_Admission, "_store", locked_at_first)
            leased = await maybe(queue.lease_many(3, 60, block=False))
        assert [job.data for job in leased] == [1, 2]
        stats = await maybe(queue.stats())
        assert (stats.leased, stats.parked) == (2, 1)
        await maybe(queue.ack_many(leased))
        third = await maybe(queue.lease(60, block=False))
        assert third.data == 3
        await maybe(pq.close())

    asyncio.run(main())


def test_admission_skips_a_row_that_stays_locked(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _Admission._store
    with PQ(dsn) as pq, psycopg.connect(dsn) as other:
        pq.create()
        queue = pq["q"]
        queue.put_many([1, 2], limits={"l": 2})

        async def locked(self: Any, decided: Any, tokens: Any) -> Any:
            other.execute("SELECT FROM queue WHERE id = 1 FOR UPDATE")
            return await store(self, decided, tokens)

        monkeypatch.setattr(_Admission, "_store", locked)
        began = time.monotonic()
        assert [job.data for job in queue.lease_many(2, 60, block=False)] == [2]
        assert time.monotonic() - began < 5
        other.rollback()
        monkeypatch.setattr(_Admission, "_store", store)
        job = queue.lease(60, wait=PATIENCE)
        assert job is not None
        assert job.data == 1
