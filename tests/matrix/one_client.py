"""What a PQ does over a server that takes one client at a time: PGlite behind its socket server.

The tests run in a cell of the matrix. Each opens the only connection, and closes it at the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pqcore import PQ
from pqcore.db.runtime import run_sync
from pqcore.db.shared_session import SHARED
from pqcore.worker import Worker

from .faces import PATIENCE, done, over, paused, worked

CALLERS = 8


@pytest.fixture(autouse=True)
def _one_warning(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail if pqcore warns of anything but, once, that the session is shared."""
    with caplog.at_level(logging.WARNING, "pqcore"):
        yield
    said = [record.message for record in caplog.get_records("call") if record.name.startswith("pqcore")]
    assert said == [SHARED]


async def concurrently(pq: Any, *calls: Callable[[], Any]) -> list[Any]:
    """Call functions in threads, or await what they return in tasks."""
    if isinstance(pq, PQ):
        with ThreadPoolExecutor(len(calls)) as threads:
            return [call.result(PATIENCE) for call in [threads.submit(call) for call in calls]]
    awaited: list[Awaitable[Any]] = [call() for call in calls]
    return await asyncio.gather(*awaited)


def test_concurrent_callers_take_each_job_once(driver: str) -> None:
    async def scenario(pq: Any) -> None:
        queue = pq["jobs"]
        await concurrently(pq, *[lambda number=number: queue.put({"n": number}) for number in range(CALLERS)])
        await done(queue.put_many([{"n": number} for number in range(CALLERS, 40)]))
        taken = await concurrently(pq, *[lambda: queue.get_many(5) for _ in range(CALLERS)])
        assert sorted(job.data["n"] for jobs in taken for job in jobs) == list(range(40))
        assert await done(queue.count()) == 0

    over(driver, scenario)


def test_waiting_get_finds_a_later_put(driver: str) -> None:
    async def scenario(pq: Any) -> None:
        queue = pq["waited"]

        async def later() -> None:
            await done(paused(pq, 0.5))
            await done(queue.put("late"))

        put = (lambda: run_sync(later())) if isinstance(pq, PQ) else later
        job, _ = await concurrently(pq, lambda: queue.get(timeout=PATIENCE), put)
        assert job.data == "late"

    over(driver, scenario)


def test_leases_keys_and_transactions_hold(driver: str) -> None:
    async def scenario(pq: Any) -> None:
        queue = pq["kept"]
        first = await done(queue.put("a", dedup="k"))
        assert await done(queue.put("b", dedup="k")) == first
        job = await done(queue.lease(30))
        assert await done(queue.get(block=False)) is None
        await done(queue.nack(job))
        job = await done(queue.lease(30))
        assert job.id == first
        await done(queue.ack(job))

        async def fail() -> None:
            if isinstance(pq, PQ):
                with queue:
                    queue.put("undone")
                    raise ZeroDivisionError
            async with queue:
                await queue.put("undone")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert await done(queue.count()) == 0

    over(driver, scenario)


def test_worker_runs_tasks_that_put_others(driver: str) -> None:
    async def scenario(pq: Any) -> None:
        queue, all_ran = pq["tasks"], asyncio.Event()
        ran: list[int] = []

        @queue.task  # type: ignore[untyped-decorator]
        async def follow(number: int) -> None:
            ran.append(number)
            if number < CALLERS:
                await done(follow(number + 1))
            else:
                all_ran.set()

        async def work() -> None:
            worker = Worker(queue, poll_interval=0.1)
            running = asyncio.ensure_future(worker.run())
            try:
                await asyncio.wait_for(all_ran.wait(), PATIENCE)
            finally:
                worker.stop()
                await running

        await done(follow(1))
        await done(worked(pq, work))
        assert ran == list(range(1, CALLERS + 1))
        assert await done(queue.count()) == 0

    over(driver, scenario)
