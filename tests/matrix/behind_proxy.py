"""What a PQ does behind a proxy that ends idle connections, or that sends reads to a standby.

The tests run in a cell of the matrix. Nothing is sent for longer than the proxy allows, and for longer than pqcore goes
without planning its statements again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pqcore import PQ
from pqcore.worker import Worker

from .faces import done, dsn, over, paused, worked

IDLE = 13.0
"""Seconds for which nothing is sent."""
LATE = 5.0
"""Seconds within which a job that is put then is found."""
WARM = 8
"""Calls until the statements are prepared."""


@pytest.fixture(autouse=True)
def _no_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail if pqcore logs an error."""
    with caplog.at_level(logging.INFO, "pqcore"):
        yield
    said = [record for record in caplog.get_records("call") if record.name.startswith("pqcore")]
    assert [record.getMessage() for record in said if record.levelno >= logging.ERROR] == []


def put_later(driver: str, name: str) -> threading.Timer:
    """Have another client put a job when nothing has been sent for long."""

    def put() -> None:
        with PQ(dsn(), table=f"{driver} queue") as other:
            other[name].put("late")

    timer = threading.Timer(IDLE, put)
    timer.start()
    return timer


async def warm(queue: Any) -> None:
    """Put and take jobs until the statements are prepared."""
    for number in range(WARM):
        await done(queue.put(number))
        job = await done(queue.get())
        assert job is not None, "a put is seen by the next get"
        assert job.data == number


def test_waiting_get_outlives_idle_time(driver: str) -> None:
    async def scenario(pq: Any) -> None:
        queue = pq["waited"]
        await warm(queue)
        began, timer = time.monotonic(), put_later(driver, "waited")
        job = await done(queue.get(timeout=IDLE + 4 * LATE))
        assert job is not None
        assert job.data == "late"
        assert time.monotonic() - began < IDLE + LATE
        timer.join()
        await warm(queue)

    over(driver, scenario)


def test_call_after_idle_time_raises_no_error(driver: str) -> None:
    async def scenario(pq: Any) -> None:
        await warm(pq["idle"])
        await done(paused(pq, IDLE))
        await warm(pq["idle"])

    over(driver, scenario)


def test_key_of_a_put_is_known_to_the_next(driver: str) -> None:
    async def scenario(pq: Any) -> None:
        queue = pq["keys"]
        for number in range(3 * WARM):
            first = await done(queue.put(number, dedup="key"))
            assert await done(queue.put(number, dedup="key")) == first
            job = await done(queue.lease(30))
            assert job.id == first
            await done(queue.ack(job))

    over(driver, scenario)


def test_worker_outlives_idle_time(driver: str) -> None:
    async def scenario(pq: Any) -> None:
        queue, ran = pq["tasks"], asyncio.Event()

        @queue.task  # type: ignore[untyped-decorator]
        async def noted() -> None:
            ran.set()

        async def work() -> None:
            worker = Worker(queue)
            running = asyncio.ensure_future(worker.run())
            try:
                for pause in (0.0, IDLE):
                    await asyncio.sleep(pause)
                    await done(noted())
                    await asyncio.wait_for(ran.wait(), LATE)
                    ran.clear()
            finally:
                worker.stop()
                await running

        await done(worked(pq, work))

    over(driver, scenario)
