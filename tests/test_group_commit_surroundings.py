"""Concurrent calls that travel in groups, in unusual surroundings: poolers, isolation levels, event loops, pools."""

from __future__ import annotations

import asyncio
import gc
import queue as queues
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any

import psycopg
import pytest

from pooler import pooler
from pqcore import PQ, AsyncPQ
from pqcore.errors import PoolTimeout

BACKENDS = [("psycopg2", "blocking"), ("psycopg", "blocking"), ("psycopg", "async"), ("asyncpg", "async")]
IDS = [f"{backend}-{mode}" for backend, mode in BACKENDS]
each_backend = pytest.mark.parametrize(("backend", "mode"), BACKENDS, ids=IDS)
asynchronous = pytest.mark.parametrize("backend", ["psycopg", "asyncpg"])
CALLERS, EACH = 24, 8
"""The number of callers, and of the jobs that each one puts."""
PATIENCE = 30.0
"""Seconds that all calls may take."""
Done = dict[str, int]
"""The id of each job by its data."""


def put_in_threads(dsn: str, backend: str, **options: Any) -> Done:
    with PQ(dsn, backend=backend, **options) as pq, ThreadPoolExecutor(CALLERS) as threads:
        queue = pq["q"]

        def work(number: int) -> Done:
            return {f"{number}-{n}": int(queue.put(f"{number}-{n}")) for n in range(EACH)}

        return {data: job for done in threads.map(work, range(CALLERS)) for data, job in done.items()}


async def put_in_tasks(dsn: str, backend: str, **options: Any) -> Done:
    async with AsyncPQ(dsn, backend=backend, **options) as pq:
        queue = pq["q"]

        async def work(number: int) -> Done:
            return {f"{number}-{n}": int(await queue.put(f"{number}-{n}")) for n in range(EACH)}

        found = await asyncio.wait_for(asyncio.gather(*map(work, range(CALLERS))), PATIENCE)
        return {data: job for done in found for data, job in done.items()}


def put_by_many(dsn: str, backend: str, mode: str, **options: Any) -> Done:
    """Let callers put jobs concurrently; return the ids by data."""
    if mode == "blocking":
        return put_in_threads(dsn, backend, **options)
    return asyncio.run(put_in_tasks(dsn, backend, **options))


def take_by_many(dsn: str, backend: str, mode: str) -> list[tuple[str, int]]:
    """Let callers get all jobs concurrently; return data and ids in the order of the gets."""
    if mode == "blocking":
        with PQ(dsn, backend=backend) as pq, ThreadPoolExecutor(CALLERS) as threads:
            queue = pq["q"]

            def work(_: int) -> list[tuple[str, int]]:
                return [(job.data, job.id) for job in iter(lambda: queue.get(block=False), None)]

            return [each for found in threads.map(work, range(CALLERS)) for each in found]

    async def run() -> list[tuple[str, int]]:
        async with AsyncPQ(dsn, backend=backend) as pq:
            queue = pq["q"]

            async def work() -> list[tuple[str, int]]:
                found = []
                while (job := await queue.get(block=False)) is not None:
                    found.append((job.data, job.id))
                return found

            taken = await asyncio.wait_for(asyncio.gather(*(work() for _ in range(CALLERS))), PATIENCE)
            return [each for found in taken for each in found]

    return asyncio.run(run())


def stored(dsn: str) -> tuple[Done, int]:
    """Return the ids of all jobs by their data, and the number of transactions that put them."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT data #>> '{}', id, xmin::text FROM queue").fetchall()
    assert len({data for data, _, _ in rows}) == len(rows)
    return {data: job for data, job, _ in rows}, len({xmin for _, _, xmin in rows})


@pytest.fixture
def table(dsn: str) -> str:
    with PQ(dsn) as pq:
        pq.create()
    return dsn


@each_backend
def test_concurrent_puts_and_gets_behind_a_pooler_are_each_callers_own(table: str, backend: str, mode: str) -> None:
    with pooler(table, queues.Queue) as through:
        done = put_by_many(through, backend, mode)
        found, transactions = stored(table)
        assert done == found
        assert transactions < CALLERS * EACH
        assert sorted(take_by_many(through, backend, mode)) == sorted(done.items())


@each_backend
def test_concurrent_puts_and_gets_under_serializable_are_each_callers_own(table: str, backend: str, mode: str) -> None:
    with psycopg.connect(table, autocommit=True) as connection:
        [name] = connection.execute("SELECT current_database()").fetchone() or [""]
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    done = put_by_many(table, backend, mode)
    assert stored(table)[0] == done
    assert sorted(take_by_many(table, backend, mode)) == sorted(done.items())


@each_backend
def test_concurrent_puts_over_one_connection_travel_together(table: str, backend: str, mode: str) -> None:
    done = put_by_many(table, backend, mode, max_connections=1)
    found, transactions = stored(table)
    assert done == found
    assert transactions < CALLERS * EACH


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """Call each function in a thread; return the results or exceptions."""

    def caught(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as exc:
            return exc

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(caught, calls))


@pytest.mark.parametrize("backend", ["psycopg2", "psycopg"])
def test_threads_that_find_no_free_connection_are_each_told_in_time(table: str, backend: str) -> None:
    with PQ(table, backend=backend, max_connections=1, pool_timeout=2.0) as pq:
        queue = pq["q"]
        held, over = threading.Event(), threading.Event()

        def hold() -> None:
            with queue:
                queue.put("held")
                held.set()
                over.wait(PATIENCE)

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(PATIENCE)
        began = time.monotonic()
        answers = in_threads(*[lambda: queue.put("refused")] * CALLERS)
        assert time.monotonic() - began < PATIENCE / 3
        assert {type(answer) for answer in answers} == {PoolTimeout}
        assert len({id(answer) for answer in answers}) == CALLERS
        over.set()
        holder.join()
        assert {type(answer) for answer in in_threads(*[lambda: queue.put("put")] * CALLERS)} == {int}


@asynchronous
def test_tasks_that_find_no_free_connection_are_each_told_in_time(table: str, backend: str) -> None:
    async def act() -> None:
        async with AsyncPQ(table, backend=backend, max_connections=1, pool_timeout=2.0) as pq:
            queue = pq["q"]

            async def together() -> list[Any]:
                calls = [Context().run(asyncio.ensure_future, queue.put("a")) for _ in range(CALLERS)]  # in no block
                return list(await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PATIENCE / 3))

            async with queue:
                await queue.put("held")
                answers = await together()
            assert {type(answer) for answer in answers} == {PoolTimeout}
            assert len({id(answer) for answer in answers}) == CALLERS
            assert {type(answer) for answer in await together()} == {int}

    asyncio.run(act())


@pytest.fixture
def slow(table: str) -> str:
    """A table with a trigger that makes a put of "slow" take long."""
    with psycopg.connect(table, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            """ IF NEW.data::text = '"slow"' THEN PERFORM pg_sleep(0.4); END IF; RETURN NEW; END $$"""
        )
        connection.execute("CREATE TRIGGER slow BEFORE INSERT ON queue FOR EACH ROW EXECUTE FUNCTION slow()")
    return table


@asynchronous
@pytest.mark.parametrize("seconds", [0, 0.02, 0.1])
def test_loop_that_ends_amid_concurrent_puts_leaves_nothing_behind(
    slow: str, backend: str, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    pq = AsyncPQ(slow, backend=backend, max_connections=3)
    queue = pq["q"]

    async def leave() -> None:
        calls.extend(asyncio.ensure_future(queue.put("slow" if n == 7 else n)) for n in range(CALLERS))
        await asyncio.sleep(seconds)

    async def go_on() -> None:
        await asyncio.wait_for(asyncio.gather(*(queue.put(n) for n in range(CALLERS))), PATIENCE)
        await pq.close()

    calls: list[asyncio.Future[int]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(leave())
        gc.collect()
        asyncio.run(go_on())
        gc.collect()
    assert all(call.done() for call in calls)
    assert [message for message in caplog.messages if "destroyed" in message] == []


@pytest.mark.parametrize("backend", ["psycopg2", "psycopg"])
def test_closed_pq_reports_the_outcome_of_puts_to_waiting_threads(slow: str, backend: str) -> None:
    pq = PQ(slow, backend=backend, max_connections=2)
    queue = pq["q"]
    begun = threading.Barrier(CALLERS + 1)

    def put(number: int) -> Callable[[], int]:
        def call() -> int:
            begun.wait(PATIENCE)
            return queue.put("slow" if number == 0 else number)

        return call

    def close() -> None:
        begun.wait(PATIENCE)
        time.sleep(0.05)  # most puts wait by then
        pq.close()

    with ThreadPoolExecutor(1) as closer:
        closing = closer.submit(close)
        answers = in_threads(*map(put, range(CALLERS)))
        closing.result(PATIENCE)
    found = {job: data for data, job in stored(slow)[0].items()}
    for number, answer in enumerate(answers):
        if isinstance(answer, int):
            assert found[answer] == ("slow" if number == 0 else str(number))
