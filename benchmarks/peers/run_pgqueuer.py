"""PgQueuer, over asyncpg or psycopg 3: one connection, with autovacuum set as its guide to performance recommends.

Single jobs and batches are measured by the methods that its manager calls.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from .runner import BATCH, HELD_AT_ONCE, MANY, POOL, Seen, System, Taken, clock, main

SIZE = 1_000
"""Jobs that its manager takes together: the best of 10, 100 and 1,000 for empty jobs."""


class PgQueuer(System):
    """The system PgQueuer 1."""

    name = "PgQueuer"
    how = {
        "memory": f"as for put_many, {HELD_AT_ONCE:,} of each",
        "put": "queries.enqueue(entrypoint, payload)",
        "put_many": f"queries.enqueue({MANY:,} entrypoints, payloads, priorities)",
        "lease": "what its manager calls: queries.dequeue(1), queries.log_jobs(1)",
        "get_many": f"what its manager calls: queries.dequeue({BATCH}), queries.log_jobs({BATCH})",
        "worker": f"run(mode=drain, batch_size={SIZE:,})",
        "serve": "run()",
        "horizon": "as for lease",
        "horizon_worker": "as for worker",
    }
    alike = {"get": "lease"}
    uvloop = True
    tables = ("pgqueuer", "pgqueuer_log")
    unfinished = "SELECT count(*) FROM pgqueuer"

    def __init__(self, driver: str) -> None:
        self.driver = driver
        if driver == "psycopg":
            self.least = 5_000  # the listener uses its connection for seconds before the first job

    async def setup(self, dsn: str) -> None:
        self.version = importlib.metadata.version("pgqueuer")
        self.dsn = dsn
        self.package: Any = importlib.import_module("pgqueuer")
        self.link = await self._link()
        self.queries = importlib.import_module("pgqueuer.queries").Queries(self.link)
        await self.queries.install()
        await self.queries.optimize_autovacuum()
        limits = importlib.import_module("pgqueuer.ports.repository").EntrypointExecutionParameter
        self.claim = {
            "entrypoints": {"noop": limits(concurrency_limit=0)},
            "queue_manager_id": uuid.uuid4(),
            "global_concurrency_limit": None,
            "heartbeat_timeout": timedelta(seconds=30),
        }

    async def _link(self) -> Any:
        drivers: Any = importlib.import_module("pgqueuer.db")
        if self.driver == "asyncpg":
            return drivers.AsyncpgDriver(await importlib.import_module("asyncpg").connect(self.dsn))
        connect = importlib.import_module("psycopg").AsyncConnection.connect
        return drivers.PsycopgDriver(await connect(self.dsn, autocommit=True))

    async def _unlink(self, link: Any) -> None:
        link.shutdown.set()
        await link._connection.close()

    async def close(self) -> None:
        await self._unlink(self.link)

    async def sql(self, statement: str) -> Any:
        if not statement.startswith("SELECT"):
            await self.link.execute(statement)
            return None
        [row] = await self.link.fetch(statement)
        [value] = row.values()
        return value

    async def put(self, number: int) -> None:
        await self.queries.enqueue("noop", b"%d" % number)

    async def put_many(self, numbers: Sequence[int]) -> None:
        n = len(numbers)
        await self.queries.enqueue(["noop"] * n, [b"%d" % number for number in numbers], [0] * n)

    async def lease(self) -> int | None:
        jobs = await self.get_many(1)
        return jobs[0] if jobs else None

    async def get_many(self, n: int) -> Sequence[int]:
        jobs = await self.queries.dequeue(batch_size=n, **self.claim)
        if jobs:
            await self.queries.log_jobs([(job, "successful", None) for job in jobs])
        return [int(job.id) for job in jobs]

    async def work(self, seen: Seen) -> float:
        modes: Any = importlib.import_module("pgqueuer.types")
        await self._run(seen.ran, batch_size=SIZE, mode=modes.QueueExecutionMode.drain)
        return self.ended

    async def serve(self, taken: Taken) -> None:
        await self._run(lambda _: taken())

    async def _run(self, ran: Callable[[int], None], **options: Any) -> None:
        link = await self._link()
        manager = self.package.PgQueuer(link)

        async def noop(job: Any) -> None:
            ran(int(job.id))

        manager.entrypoint("noop")(noop)
        try:
            await manager.run(**options)
            self.ended = clock()
        finally:
            await self._unlink(link)


class PgQueuerOverPool(PgQueuer):
    """PgQueuer over asyncpg, the only one of its drivers with a pool."""

    how = {
        **PgQueuer.how,
        "concurrent_put": f"as for put, over AsyncpgPoolDriver(asyncpg.create_pool(max_size={POOL}))",
        "concurrent_lease": "as for lease, over the same connections",
    }
    alike = {**PgQueuer.alike, "concurrent_get": "concurrent_lease"}

    async def shared(self) -> System:
        drivers: Any = importlib.import_module("pgqueuer.db")
        self.pool = await importlib.import_module("asyncpg").create_pool(self.dsn, min_size=POOL, max_size=POOL)
        shared = PgQueuer(self.driver)
        shared.queries = importlib.import_module("pgqueuer.queries").Queries(drivers.AsyncpgPoolDriver(self.pool))
        shared.claim = self.claim
        return shared

    async def unshare(self) -> None:
        await self.pool.close()


if __name__ == "__main__":
    [driver] = sys.argv[1:]
    main(PgQueuerOverPool(driver) if driver == "asyncpg" else PgQueuer(driver))
