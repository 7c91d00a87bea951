"""All drivers together, on one table."""

from __future__ import annotations

import asyncio
import multiprocessing
from typing import Any

from pqcore import PQ, AsyncPQ

JOBS = 20_000
CONSUMERS = [(backend, mode) for backend, mode in (("psycopg2", 0), ("psycopg", 0), ("psycopg", 1), ("asyncpg", 1))] * 2


def consume(backend: str, asynchronous: int, dsn: str, results: Any) -> None:
    """Take jobs until there are none."""
    taken = asyncio.run(_drain_async(backend, dsn)) if asynchronous else _drain(backend, dsn)
    results.put((backend, taken))


def _drain(backend: str, dsn: str) -> list[int]:
    taken = []
    with PQ(dsn, backend=backend) as pq:
        while (job := pq["q"].get(timeout=0)) is not None:
            taken.append(job.id)
    return taken


async def _drain_async(backend: str, dsn: str) -> list[int]:
    taken = []
    async with AsyncPQ(dsn, backend=backend) as pq:
        while (job := await pq["q"].get(timeout=0)) is not None:
            taken.append(job.id)
    return taken


def test_eight_processes_over_all_drivers_take_each_job_once(dsn: str) -> None:
    with PQ(dsn) as pq:
        pq.create()
        put = pq["q"].put_many(range(JOBS))
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        processes = [
            context.Process(target=consume, args=(backend, mode, dsn, results), daemon=True)
            for backend, mode in CONSUMERS
        ]
        for process in processes:
            process.start()
        taken = [results.get(timeout=120) for _ in processes]
        for process in processes:
            process.join(30)
        ids = [job for _, jobs in taken for job in jobs]
        assert len(ids) == len(set(ids))
        left = [job.id for job in pq["q"].get_many(1000, block=False)]  # skipped while another had it locked
        assert sorted(ids + left) == put
        assert pq["q"].count() == 0
        assert len(left) < len(processes)
