"""No-op jobs through one asynchronous worker process, beside PgQueuer's, on the same server in alternation.

    python -m benchmarks.worker --jobs 20000 --rounds 3

Each round puts the jobs, then times a worker from its start until all are done and it has
stopped.  Prints medians, the spread, and the ratio to the best of the peer's.  PgQueuer is to be
installed beside; without it pqcore is measured alone.  Durability is the server's default.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import statistics
import time
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg
import psycopg

from pqcore.tasks import AsyncPQ
from pqcore.worker import Worker
from pqcore_backends.embedded import EmbeddedServer

Measure = Callable[[str, int], Coroutine[Any, Any, float]]


async def noop(job_id: int) -> None:
    """Do nothing."""


def ours(backend: str) -> Measure:
    """The worker of pqcore, over a backend, as it is by default, but for finished rows: they are deleted."""

    async def measure(dsn: str, jobs: int) -> float:
        pq = AsyncPQ(dsn, backend=backend, retention="delete", table=f"bench_{backend}")
        await pq.create()
        queue = pq["noop"]
        task = queue.task()(noop)
        await queue.put_calls(*[task.call()] * jobs)
        worker = Worker(queue, burst=True)
        began = time.perf_counter()
        await worker.run()
        took = time.perf_counter() - began
        assert await queue.count() == 0
        await pq.close()
        return jobs / took

    return measure


def pgqueuer(backend: str, batch: int) -> Measure:
    """PgQueuer's manager in its drain mode."""

    async def measure(dsn: str, jobs: int) -> float:
        from pgqueuer import PgQueuer
        from pgqueuer.db import AsyncpgDriver, PsycopgDriver
        from pgqueuer.queries import Queries
        from pgqueuer.types import QueueExecutionMode

        connection: Any
        driver: Any
        if backend == "asyncpg":
            connection = await asyncpg.connect(dsn)
            driver = AsyncpgDriver(connection)
        else:
            connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
            driver = PsycopgDriver(connection)
        queries = Queries(driver)
        if not await queries.schema_is_installed():
            await queries.install()
        await queries.enqueue(["noop"] * jobs, [None] * jobs, [0] * jobs)
        done = 0
        manager = PgQueuer(driver)

        @manager.entrypoint("noop")
        async def run(job: Any) -> None:
            nonlocal done
            done += 1

        began = time.perf_counter()
        await manager.run(batch_size=batch, mode=QueueExecutionMode.drain)
        took = time.perf_counter() - began
        assert done == jobs, (done, jobs)
        await connection.close()
        return jobs / took

    return measure


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dsn", help="a server (default: an embedded one)")
    arguments = parser.parse_args()
    measures: dict[str, Measure] = {f"pqcore, {backend}": ours(backend) for backend in ("asyncpg", "psycopg")}
    try:
        version = importlib.metadata.version("pgqueuer")
    except importlib.metadata.PackageNotFoundError:
        print("PgQueuer is not installed: pip install pgqueuer")
    else:
        for backend in ("asyncpg", "psycopg"):
            for batch in (100, 1_000):
                measures[f"PgQueuer {version}, {backend}, batches of {batch}"] = pgqueuer(backend, batch)
    if arguments.dsn:
        report(measures, arguments.dsn, arguments.jobs, arguments.rounds)
    else:
        with EmbeddedServer() as server:
            report(measures, server.dsn(), arguments.jobs, arguments.rounds)


def report(measures: dict[str, Measure], dsn: str, jobs: int, rounds: int) -> None:
    """Measure in alternation, and print a table."""
    figures: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            figures[name].append(asyncio.run(measure(dsn, jobs)))
    peers = [statistics.median(found) for name, found in figures.items() if not name.startswith("pqcore")]
    for name, found in figures.items():
        median = statistics.median(found)
        ratio = f"  {median / max(peers):5.2f} x the peer's best" if peers and name.startswith("pqcore") else ""
        print(f"{name:45} {median:9,.0f}/s  ({min(found):,.0f} to {max(found):,.0f}){ratio}")


if __name__ == "__main__":
    main()
