"""chancy, over psycopg 3's asynchronous pool: a worker in the program, with its asyncio executor.

Only its worker can take a job.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import logging
from collections.abc import Sequence
from typing import Any

from .runner import MANY, Seen, System, Taken, clock, main

CONCURRENCY = 500
"""Jobs that run concurrently: empty jobs are slower with 100, and no faster with 1,000."""

ran: Any = None


async def noop(*, n: int) -> None:
    """The job; a worker finds it by its name in this module."""
    ran(n)


class Chancy(System):
    """The system chancy."""

    name = "chancy, psycopg"
    how = {
        "put": "chancy.push(job)",
        "put_many": f"chancy.push_many({MANY:,} jobs)",
        "worker": f"Worker(chancy), Queue(executor=AsyncExecutor, concurrency={CONCURRENCY}, eager_polling=True)",
        "serve": "the same",
        "horizon_worker": "as for worker",
    }
    tables = ("chancy_jobs",)
    unfinished = "SELECT count(*) FROM chancy_jobs WHERE state NOT IN ('succeeded', 'failed')"

    async def setup(self, dsn: str) -> None:
        self.version = importlib.metadata.version("chancy")
        self.package: Any = importlib.import_module("chancy")
        self.chancy = self.package.Chancy(dsn, log=logging.getLogger("chancy"))
        await self.chancy.__aenter__()
        await self.chancy.migrate()
        executor = self.package.Chancy.Executor.Async
        queue = self.package.Queue("bench", executor=executor, concurrency=CONCURRENCY, eager_polling=True)
        await self.chancy.declare(queue)

    async def close(self) -> None:
        await self.chancy.__aexit__(None, None, None)

    async def sql(self, statement: str) -> Any:
        async with self.chancy.pool.connection() as connection:
            cursor = await connection.execute(statement)
            return (await cursor.fetchone())[0] if cursor.description else None

    def _job(self, number: int) -> Any:
        return self.package.Job(func=f"{__name__}.noop", kwargs={"n": number}, queue="bench")

    async def put(self, number: int) -> None:
        await self.chancy.push(self._job(number))

    async def put_many(self, numbers: Sequence[int]) -> None:
        async for _ in self.chancy.push_many([self._job(number) for number in numbers]):
            pass

    async def work(self, seen: Seen) -> float:
        global ran
        ran = seen.ran
        async with self._worker() as worker:
            await seen.all.wait()
            while await self.count():
                await worker.flush()  # otherwise outcomes are stored only once per second
            return clock()

    async def serve(self, taken: Taken) -> None:
        global ran
        ran = lambda _: taken()  # noqa: E731
        async with self._worker():
            await asyncio.Event().wait()

    def _worker(self) -> Any:
        return self.package.Worker(self.chancy, register_signal_handlers=False, shutdown_timeout=1)


if __name__ == "__main__":
    main(Chancy())
