"""What a PQ does behind HAProxy when the primary dies, and HAProxy leads to a standby that is promoted."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pqcore.errors import PQError
from pqcore.worker import Worker
from pqcore_backends.embedded import EmbeddedServer

from .faces import PATIENCE, done, over, paused, worked
from .proxies import haproxy_before, replicated

REPLAYED = 0.5
"""Seconds after which the standby has replayed what was written."""


class Pair:
    """A primary and a standby behind HAProxy."""

    def __init__(self, primary: EmbeddedServer, standby: EmbeddedServer) -> None:
        self._primary = primary
        self._standby = standby

    def fail_over(self) -> None:
        """Kill the primary, and promote the standby."""
        time.sleep(REPLAYED)
        self._primary.kill()
        with psycopg.connect(self._standby.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")


@pytest.fixture
def pair() -> Iterator[Pair]:
    with replicated() as (primary, standby), haproxy_before([primary.dsn(), standby.dsn()], cut="1h") as dsn:
        os.environ["PQCORE_TEST_DSN"] = dsn
        yield Pair(primary, standby)


def test_waits_and_workers_go_on_after_a_promotion(driver: str, pair: Pair) -> None:
    async def scenario(pq: Any) -> None:
        queue, ran = pq["tasks"], asyncio.Event()

        @queue.task  # type: ignore[untyped-decorator]
        async def noted() -> None:
            ran.set()

        async def put_again() -> None:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    await done(noted())
                except PQError:  # until the standby is promoted, and HAProxy knows
                    assert time.monotonic() < deadline
                    await done(paused(pq, 0.1))
                else:
                    return

        async def work() -> None:
            worker = Worker(queue, lease=5)
            running = asyncio.ensure_future(worker.run())
            try:
                await done(noted())
                await asyncio.wait_for(ran.wait(), PATIENCE)
                ran.clear()
                await asyncio.to_thread(pair.fail_over)
                await put_again()
                await asyncio.wait_for(ran.wait(), PATIENCE)
            finally:
                worker.stop()
                await running

        await done(worked(pq, work))
        assert await done(queue.count()) == 0

    over(driver, scenario)
