"""akadze, over SQLAlchemy and asyncpg: limits by key, and workers that claim fairly between keys.

Only its limits are measured.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
from datetime import timedelta
from typing import Any

from .runner import PLACES, PLACES_OF_WORKER, Ran, System, main

POLL = timedelta(seconds=0.1)
"""The time between two looks of its worker, which nothing wakes; one second by default."""


class Akadze(System):
    """The system akadze 0.5."""

    name = "akadze, asyncpg"
    how = {
        "limited": f"set_limit(key, max_running={PLACES}); task.using(limit_key=key).enqueue_many();"
        f" Worker(fair=True, poll_interval={POLL.total_seconds()} s)",
        "tenant": "as for limited",
    }
    tables = ("akadze.jobs",)
    unfinished = "SELECT count(*) FROM akadze.jobs WHERE state IN ('queued', 'running')"

    async def setup(self, dsn: str) -> None:
        self.version = importlib.metadata.version("akadze")
        akadze: Any = importlib.import_module("akadze")
        schema: Any = importlib.import_module("akadze.schema")
        self.set_limit = akadze.set_limit
        self.worker = importlib.import_module("akadze.worker").Worker
        self.text = importlib.import_module("sqlalchemy").text
        await schema.migrate(dsn)
        self.app = akadze.Akadze(database_url=dsn)
        self.key_ran: Ran = lambda _: None
        self.limited: set[str] = set()

        async def keyed(key: str, seconds: float) -> None:
            self.key_ran(key)
            await asyncio.sleep(seconds)

        self.keyed = self.app.task("keyed")(keyed)

    async def close(self) -> None:
        await self.app.engine.dispose()

    async def sql(self, statement: str) -> Any:
        async with self.app.engine.begin() as connection:
            found = await connection.execute(self.text(statement))
            return found.scalar() if found.returns_rows else None

    async def put_keyed(self, key: str, number: int, seconds: float) -> None:
        async with self.app.engine.begin() as connection:
            if key not in self.limited:
                await self.set_limit(connection, key, max_running=PLACES)
                self.limited.add(key)
            put = self.keyed.using(session=connection, limit_key=key)
            if number == 1:
                await put.enqueue(key=key, seconds=seconds)
            else:
                await put.enqueue_many([{"key": key, "seconds": seconds}] * number)

    async def serve_keyed(self, ran: Ran) -> None:
        self.key_ran = ran
        worker = self.worker(self.app, slots=PLACES_OF_WORKER, poll_interval=POLL, fair=True)
        stop = asyncio.Event()
        serving = asyncio.ensure_future(worker.serve(stop))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            stop.set()
            await serving
            raise


if __name__ == "__main__":
    main(Akadze())
