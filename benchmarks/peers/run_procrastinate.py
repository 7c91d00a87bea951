"""Procrastinate, over psycopg 3's asynchronous connector, which its workers need.

Its documentation has only a worker for taking jobs, so single jobs are measured by the methods that the worker calls.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

from .runner import HELD_AT_ONCE, MANY, PLACES_OF_WORKER, POOL, Ran, Seen, System, Taken, clock, main

CONCURRENCY = 30
"""The number in its guide to concurrency."""

POLL = 0.1
"""Seconds between two looks of its worker for jobs of keys, because the end of such a job wakes nobody; 5 by default.
"""


class Procrastinate(System):
    """The system Procrastinate 3."""

    name = "Procrastinate, psycopg"
    how = {
        "memory": f"as for put_many, {HELD_AT_ONCE:,} arguments",
        "put": "task.defer_async(n=...)",
        "put_many": f"task.batch_defer_async({MANY:,} arguments)",
        "lease": "what a worker calls: job_manager.fetch_job(), job_manager.finish_job(delete_job=True)",
        "worker": f"run_worker_async(wait=False, concurrency={CONCURRENCY}, delete_jobs='always')",
        "serve": f"run_worker_async(concurrency={CONCURRENCY}, delete_jobs='always')",
        "horizon": "as for lease",
        "horizon_worker": "as for worker",
        "limited": "task.configure(lock=key), so 1 of a key runs: its only limit by key;"
        f" run_worker_async(fetch_job_polling_interval={POLL})",
        "tenant": "as for limited",
        "concurrent_put": f"as for put, over its pool: PsycopgConnector(min_size={POOL}, max_size={POOL})",
        "concurrent_lease": "as for lease, over its pool",
    }
    alike = {"get": "lease", "concurrent_get": "concurrent_lease"}
    tables = ("procrastinate_jobs", "procrastinate_events")
    unfinished = "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"

    async def setup(self, dsn: str) -> None:
        self.version = importlib.metadata.version("procrastinate")
        procrastinate: Any = importlib.import_module("procrastinate")
        self.done = importlib.import_module("procrastinate.jobs").Status.SUCCEEDED
        self.connector = procrastinate.PsycopgConnector(conninfo=dsn, min_size=POOL, max_size=POOL)
        self.app = procrastinate.App(connector=self.connector)
        await self.app.open_async()
        await self.app.schema_manager.apply_schema_async()
        self.ran: Any = None

        async def noop(n: int) -> None:
            self.ran(n)

        self.task = self.app.task(name="noop", queue="bench")(noop)
        self.key_ran: Ran = lambda _: None

        async def keyed(key: str, seconds: float) -> None:
            self.key_ran(key)
            await asyncio.sleep(seconds)

        self.keyed = self.app.task(name="keyed", queue="bench")(keyed)

    async def close(self) -> None:
        await self.app.close_async()

    async def sql(self, statement: str) -> Any:
        if not statement.startswith("SELECT"):
            await self.connector.execute_query_async(statement)
            return None
        [value] = (await self.connector.execute_query_one_async(statement)).values()
        return value

    async def settle(self) -> None:
        await super().settle()
        # Workers delete other workers' records that are older than 30 seconds.
        self.worker = await self.app.job_manager.register_worker()

    async def put(self, number: int) -> None:
        await self.task.defer_async(n=number)

    async def put_many(self, numbers: Sequence[int]) -> None:
        await self.task.batch_defer_async(*({"n": number} for number in numbers))

    async def lease(self) -> int | None:
        manager = self.app.job_manager
        job = await manager.fetch_job(queues=["bench"], worker_id=self.worker)
        if job is None:
            return None
        await manager.finish_job(job=job, status=self.done, delete_job=True)
        return int(job.id)

    async def put_keyed(self, key: str, number: int, seconds: float) -> None:
        calls = [{"key": key, "seconds": seconds}] * number
        await self.keyed.configure(lock=key).batch_defer_async(*calls)

    async def serve_keyed(self, ran: Ran) -> None:
        self.key_ran = ran
        await self._run(wait=True, concurrency=PLACES_OF_WORKER, fetch_job_polling_interval=POLL)

    async def work(self, seen: Seen) -> float:
        self.ran = seen.ran
        await self._run(wait=False)
        return clock()

    async def serve(self, taken: Taken) -> None:
        self.ran = lambda _: taken()
        await self._run(wait=True)

    async def _run(self, *, wait: bool, concurrency: int = CONCURRENCY, **options: Any) -> None:
        await self.app.run_worker_async(
            queues=["bench"],
            wait=wait,
            concurrency=concurrency,
            delete_jobs="always",
            install_signal_handlers=False,
            **options,
        )


if __name__ == "__main__":
    main(Procrastinate())
