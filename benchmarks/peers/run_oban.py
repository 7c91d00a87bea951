"""Oban for Python, over psycopg 3's asynchronous pool: a queue in the program, as in its documentation.

Only its worker can take a job.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

from .runner import MANY, Seen, System, Taken, main

LIMIT = 500
"""Jobs that run concurrently: the best of 20, 100 and 500 for empty jobs."""


class Oban(System):
    """The system Oban for Python."""

    name = "Oban, psycopg"
    how = {
        "put": "oban.enqueue(Worker.new(arguments))",
        "put_many": f"oban.enqueue_many({MANY:,} jobs)",
        "worker": f"Oban(pool=pool, queues={{'bench': {LIMIT}}})",
        "serve": f"Oban(pool=pool, queues={{'bench': {LIMIT}}})",
        "horizon_worker": "as for worker",
    }
    uvloop = True
    tables = ("oban_jobs",)
    unfinished = "SELECT count(*) FROM oban_jobs WHERE state IN ('available', 'executing', 'scheduled', 'retryable')"

    async def setup(self, dsn: str) -> None:
        self.version = importlib.metadata.version("oban")
        self.package: Any = importlib.import_module("oban")
        self.pool = await self.package.Oban.create_pool(dsn)
        await importlib.import_module("oban.schema").install(self.pool)
        self.oban = self.package.Oban(pool=self.pool)
        self.ran: Any = None
        ran = self._ran

        class Noop:
            async def process(self, job: Any) -> None:
                ran(job.id)

        self.noop = self.package.worker(queue="bench")(Noop)

    def _ran(self, job: int) -> None:
        self.ran(job)

    async def close(self) -> None:
        await self.pool.close()

    async def sql(self, statement: str) -> Any:
        async with self.pool.connection() as connection:
            cursor = await connection.execute(statement)
            return (await cursor.fetchone())[0] if cursor.description else None

    async def put(self, number: int) -> None:
        await self.oban.enqueue(self.noop.new({"n": number}))

    async def put_many(self, numbers: Sequence[int]) -> None:
        await self.oban.enqueue_many(self.noop.new({"n": number}) for number in numbers)

    async def work(self, seen: Seen) -> float:
        self.ran = seen.ran
        async with self._server():
            await seen.all.wait()
            return await self.until_finished()

    async def serve(self, taken: Taken) -> None:
        self.ran = lambda _: taken()
        async with self._server():
            await asyncio.Event().wait()

    def _server(self) -> Any:
        return self.package.Oban(pool=self.pool, name="bench", queues={"bench": LIMIT})


if __name__ == "__main__":
    main(Oban())
