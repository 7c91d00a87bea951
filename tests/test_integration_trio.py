"""Queues on trio and anyio: `ThreadedPQ` on both loops, `AsyncPQ` with anyio on asyncio, a clear error on trio."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import psycopg
import pytest
import trio

from pqcore import PQ, AsyncPQ, Job
from pqcore.errors import ConfigurationError, LeaseLost, PQError, TableMissing
from pqcore.integrations.anyio import ThreadedPQ

LOOPS = ["asyncio", "trio"]


@pytest.fixture
def outside(dsn: str) -> Iterator[PQ]:
    """To look from outside."""
    with PQ(dsn, backend="psycopg") as pq:
        pq.create()
        yield pq


async def get_again_and_again(queue: Any, total: int) -> list[int]:
    """Get a number of jobs in calls that are cancelled, each after another time; return the data."""
    got: list[int] = []
    delay, longest = 0.0, 0.008
    while len(got) < total:
        delay += 0.0007
        if delay > longest:  # a busy machine may need longer for any call
            delay, longest = 0.0007, 2 * longest
        jobs: list[Any] = []
        with anyio.move_on_after(delay):
            jobs = await queue.get_many(2, timeout=5)
        got += [job.data for job in jobs]
    return got


def run(loop: str, scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with anyio.fail_after(30):
            await scenario()

    anyio.run(limited, backend=loop)


def waiters(outside: PQ) -> int:
    """Return how many sessions listen."""
    with outside["q"] as cursor:
        found = cursor.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchone()
        return int(found[0])


async def somebody_waits(outside: PQ) -> None:
    while not await anyio.to_thread.run_sync(waiters, outside):  # noqa: ASYNC110 - another process knows it
        await anyio.sleep(0.01)


# In threads, on both


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("backend", ["psycopg", "psycopg2"])
def test_threaded_pq_awaits_every_operation(dsn: str, loop: str, backend: str) -> None:
    async def scenario() -> None:
        async with ThreadedPQ(PQ(dsn, backend=backend)) as pq:
            with pytest.raises(TableMissing):
                await pq["q"].put(1)
            await pq.create()
            queue = pq["q"]
            assert queue is pq["q"]
            first = await queue.put({"a": 1}, expected_at="1m")
            assert await queue.put_many([2, 3]) == [first + 1, first + 2]
            assert [job.data for job in await queue.peek(9)] == [{"a": 1}, 2, 3]
            assert (await queue.count(), (await pq.stats())["q"].ready) == (3, 3)
            assert [(one.queue, one.number) for one in await pq.encodings()] == [("q", 3)]
            assert (await queue.reencode()).complete
            assert (await pq.reencode("q", every=True)).complete
            job = await queue.get()
            assert job is not None
            assert (job.id, job.data, job.leased) == (first, {"a": 1}, False)
            leased = await queue.lease(60)
            assert leased is not None
            await leased.extend("2m")
            await leased.update("new")
            assert leased.data == "new"
            await leased.nack()
            for lease in (queue.lease, lambda **times: queue.lease_many(5, **times)):
                with pytest.raises(ConfigurationError, match="timeout is the time to wait for a job"):
                    await lease(timeout=60)
            again, other = await queue.lease_many(5, 60, timeout=0)
            assert await queue.lease(60, timeout=0) is None
            with pytest.raises(LeaseLost):
                await leased.ack()
            await again.ack()
            assert again.data == "new"
            assert await queue.ack_many([other]) == []
            await queue.put("bury")
            await (await queue.get()).bury("of no use")  # type: ignore[union-attr]
            assert queue.blocking.dead.count("failed") == 1
            assert await queue.get(block=False) is None
            assert await queue.get_many(3, timeout=0) == []
            assert (await queue.status(first), await queue.cancel(first)) == ("done", False)
            own = pq.queue("own", retention="delete")
            await own.put(1)
            async for each in own:
                assert each is not None
                break
            assert await own.jobs("done") == []
            moved = [await own.put(number) for number in range(3)]
            assert (await own.move(queue, moved[:2], most=1), await own.move("q")) == (1, 2)
            assert [each.id for each in await queue.jobs("ready")] == moved

    run(loop, scenario)


@pytest.mark.parametrize("loop", LOOPS)
def test_threaded_pq_put_wakes_a_waiter(dsn: str, outside: PQ, loop: str) -> None:
    async def scenario() -> None:
        async with ThreadedPQ(PQ(dsn)) as pq:
            got: list[Any] = []

            async def take() -> None:
                job = await pq.queue("q", poll_interval=50).get(timeout=50)
                got.append(job and job.data)

            async with anyio.create_task_group() as group:
                group.start_soon(take)
                await somebody_waits(outside)
                began = time.monotonic()
                await pq["q"].put("woken")
            assert got == ["woken"]
            assert time.monotonic() - began < 20

    run(loop, scenario)


@pytest.mark.parametrize("loop", LOOPS)
def test_threaded_pq_waiters_leave_threads_to_other_calls(dsn: str, outside: PQ, loop: str) -> None:
    async def scenario() -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = 2
        async with ThreadedPQ(PQ(dsn)) as pq:
            got: list[Any] = []

            async def take() -> None:
                job = await pq["q"].get(timeout=50)
                got.append(job and job.data)

            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(take)
                await somebody_waits(outside)
                for number in range(5):
                    await pq["q"].put(number)
            assert sorted(got) == list(range(5))

    run(loop, scenario)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("lease", [False, True], ids=["get", "lease"])
def test_threaded_pq_get_that_is_cancelled_while_waiting_ends_soon(
    dsn: str, outside: PQ, loop: str, lease: bool
) -> None:
    async def scenario() -> None:
        async with ThreadedPQ(PQ(dsn)) as pq:
            queue = pq.queue("q", poll_interval=50)
            began = time.monotonic()
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: queue.lease(60, wait=50) if lease else queue.get(timeout=50))
                await somebody_waits(outside)
                group.cancel_scope.cancel()
            with anyio.move_on_after(0) as scope:  # before it began
                await queue.get(timeout=50)
            assert scope.cancelled_caught
            assert time.monotonic() - began < 20
            await queue.put("kept")
            await anyio.sleep(0.1)
            assert await queue.count() == 1

    run(loop, scenario)


class ActiveJob:
    """Hold every take of a `PQ` after its statement, so that a test can cancel the task at that point."""

    def __init__(self, pq: PQ, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken, self.go_on = threading.Event(), threading.Event()
        original = type(pq.engine).run_alone

        async def use(engine: Any, *given: Any, **more: Any) -> Any:
            result = await original(engine, *given, **more)
            if engine is pq.engine and isinstance(result, tuple) and result[0]:
                self.taken.set()
                assert self.go_on.wait(30)
            return result

        monkeypatch.setattr(type(pq.engine), "run_alone", use)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("lease", [False, True], ids=["get", "lease"])
def test_threaded_pq_get_that_is_cancelled_puts_its_job_back(
    dsn: str, outside: PQ, loop: str, lease: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking = PQ(dsn)

    async def scenario() -> None:
        async with ThreadedPQ(blocking) as pq:
            held = ActiveJob(blocking, monkeypatch)
            first = outside["q"].put("first")
            async with anyio.create_task_group() as group:
                group.start_soon(pq["q"].lease if lease else pq["q"].get)
                await anyio.to_thread.run_sync(held.taken.wait)
                assert outside["q"].count() == 0
                group.cancel_scope.cancel()
                held.go_on.set()
            job = outside["q"].get(block=False)  # the job is back as soon as the task has ended
            assert job is not None
            assert (job.id, job.data) == (first, "first")

    run(loop, scenario)


def test_threaded_pq_get_that_asyncio_cancels_puts_its_job_back(
    dsn: str, outside: PQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking = PQ(dsn)

    async def scenario() -> None:
        async with ThreadedPQ(blocking) as pq:
            held = ActiveJob(blocking, monkeypatch)
            outside["q"].put("first")
            task = asyncio.ensure_future(pq["q"].get())
            await asyncio.to_thread(held.taken.wait)
            task.cancel()
            asyncio.get_running_loop().call_later(0.05, held.go_on.set)
            with pytest.raises(asyncio.CancelledError):
                await task
            job = outside["q"].get(block=False)
            assert job is not None
            assert job.data == "first"

    asyncio.run(scenario())


@pytest.mark.parametrize("loop", LOOPS)
def test_threaded_pq_cancelled_repeatedly_loses_no_job(dsn: str, outside: PQ, loop: str) -> None:
    total = 30
    outside["q"].put_many(range(total))

    async def scenario() -> None:
        async with ThreadedPQ(PQ(dsn)) as pq:
            got = await get_again_and_again(pq["q"], total)
        assert sorted(got) == list(range(total))

    run(loop, scenario)


@pytest.mark.parametrize("loop", LOOPS)
def test_threaded_pq_put_that_has_begun_completes(dsn: str, outside: PQ, loop: str) -> None:
    async def scenario() -> None:
        async with ThreadedPQ(PQ(dsn)) as pq:
            began = threading.Event()

            def items() -> Iterator[int]:
                began.set()
                yield from range(3)

            async with anyio.create_task_group() as group:
                group.start_soon(lambda: pq["q"].put_many(items()))
                await anyio.to_thread.run_sync(began.wait)
                group.cancel_scope.cancel()
            assert outside["q"].count() == 3

    run(loop, scenario)


@pytest.mark.parametrize("loop", LOOPS)
def test_threaded_pq_transaction_runs_in_one_thread(dsn: str, outside: PQ, loop: str) -> None:
    outside["q"].put("in")
    with outside["q"] as cursor:
        cursor.execute("CREATE TABLE notes (note text)")

    async def scenario() -> None:
        async with ThreadedPQ(PQ(dsn, backend="psycopg")) as pq:

            def work(cursor: Any, note: str) -> Any:
                job: Job | None = pq["q"].blocking.get()
                assert job is not None
                cursor.execute("INSERT INTO notes VALUES (%s)", [note])
                pq["out"].blocking.put(job.data)
                if note == "fail":
                    raise ValueError(note)
                return job.data

            with pytest.raises(ValueError, match="fail"):
                await pq["q"].in_transaction(work, "fail")
            assert await pq["q"].in_transaction(work, "done") == "in"
            assert (await pq["q"].count(), await pq["out"].count()) == (0, 1)

    run(loop, scenario)
    with outside["q"] as cursor:
        assert cursor.execute("SELECT note FROM notes").fetchall() == [("done",)]


@pytest.mark.parametrize("loop", LOOPS)
def test_threaded_pq_errors_are_those_of_the_blocking_face(dsn: str, outside: PQ, loop: str) -> None:
    async def scenario() -> None:
        pq = ThreadedPQ(PQ(dsn))
        with pytest.raises(ConfigurationError, match="from 1 to 100,000"):
            await pq["q"].get_many(0)
        await pq.close()
        with pytest.raises(PQError, match="has been closed"):
            await pq["q"].get()

    run(loop, scenario)


# AsyncPQ


@pytest.mark.parametrize("backend", ["psycopg", "asyncpg"])
def test_async_pq_is_cancelled_by_anyio_on_asyncio(dsn: str, outside: PQ, backend: str) -> None:
    total = 30
    outside["q"].put_many(range(total))

    async def scenario() -> None:
        async with AsyncPQ(dsn, backend=backend) as pq:
            await pq["q"].count()
            got = await get_again_and_again(pq["q"], total)
            assert sorted(got) == list(range(total))
            with anyio.move_on_after(0.05) as scope:
                await pq["q"].get(timeout=50)
            assert scope.cancelled_caught
            async with anyio.create_task_group() as group:
                for number in range(5):
                    group.start_soon(pq["q"].put, number)
            assert await pq["q"].count() == 5
            with anyio.move_on_after(0.05) as scope:
                async with pq["q"]:
                    assert len(await pq["q"].get_many(5)) == 5
                    await anyio.sleep_forever()
            assert scope.cancelled_caught
            assert await pq["q"].count() == 5

    run("asyncio", scenario)


@pytest.mark.parametrize("backend", ["psycopg", "asyncpg"])
def test_async_pq_says_what_to_use_on_trio(dsn: str, backend: str) -> None:
    async def scenario() -> None:
        pq = AsyncPQ(dsn, backend=backend)
        for call in (pq.create, lambda: pq["q"].put(1), pq["q"].get, pq["q"].count, pq["q"].__aenter__):
            with pytest.raises(ConfigurationError, match=r"asyncio event loop.*pqcore\.integrations\.anyio"):
                await call()

    trio.run(scenario)
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT to_regclass('queue')").fetchone() == (None,)


def test_trio_and_anyio_are_not_imported_by_the_core() -> None:
    code = "import sys, pqcore, pqcore.tasks, pqcore.async_queue; assert not {'trio', 'anyio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
