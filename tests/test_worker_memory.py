"""The memory of a worker: objects that each job leaves behind."""

from __future__ import annotations

import asyncio
import gc
from typing import Any
from weakref import ref

import pytest

from pqcore import tasks
from pqcore.job import BaseJob
from pqcore.tasks import PQ, current
from pqcore.worker import Worker
from pqcore.worker.state import STATEMENT_SIZE, Prefetch, QueueState
from pqcore.worker.worker import PREFETCH_BYTES


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
def test_completed_job_leaves_no_garbage(dsn: str, kind: str) -> None:
    # A cycle of references for each job makes the collector run, which costs more than the job.
    seen: list[ref[Any]] = []

    def note(job_id: int) -> None:
        context = current()
        assert context is not None
        seen.extend([ref(context), ref(context.job)])

    async def note_in_loop(job_id: int) -> None:
        note(job_id)

    async def work() -> None:
        async with tasks.AsyncPQ(dsn) as pq:
            await pq.create()
            queue = pq["q"]
            task = queue.task()(note_in_loop if kind == "coroutine" else note)
            for _ in range(3):
                await task()
            gc.disable()
            try:
                await Worker(queue, burst=True).run()
                assert len(seen) == 6
                assert [alive for one in seen if (alive := one()) is not None] == []
            finally:
                gc.enable()

    asyncio.run(work())


async def bytes_ahead(dsn: str, number: int, size: int, **options: Any) -> int:
    """Run all jobs; return the most bytes of data that the worker held in jobs that it had fetched ahead."""
    most = done = 0

    async def look(job_id: int, text: str) -> None:
        nonlocal most, done
        [queue_state] = worker._worker_state.queue_states
        most = max(most, sum(len(active.job.raw) for active in queue_state.buffer))
        done += 1

    async with tasks.AsyncPQ(dsn) as pq:
        await pq.create()
        queue = pq["q"]
        task = queue.task()(look)
        await queue.put_calls(*[task.call("x" * size)] * number)
        worker = Worker(queue, burst=True, concurrency=4, **options)
        await worker.run()
    assert done == number
    return most


def test_worker_bounds_the_bytes_of_jobs_fetched_ahead(dsn: str) -> None:
    bounded = asyncio.run(bytes_ahead(dsn, 600, 5_000, prefetch_bytes=100_000))
    assert 5_000 < bounded <= 100_000


def test_worker_fetches_ahead_more_bytes_if_it_may(dsn: str) -> None:
    assert asyncio.run(bytes_ahead(dsn, 600, 5_000)) > 100_000


def test_job_larger_than_the_bound_of_bytes_runs(dsn: str) -> None:
    assert asyncio.run(bytes_ahead(dsn, 30, 50_000, prefetch_bytes=1_000)) <= 2 * 50_100
    assert asyncio.run(bytes_ahead(dsn, 30, 50_000, prefetch_bytes=0)) <= 2 * 50_100


def test_statement_fetches_large_jobs_a_few_at_a_time() -> None:
    assert fetched_sizes(200) == 1_000
    assert fetched_sizes(100_000) == 20
    assert fetched_sizes(10 * STATEMENT_SIZE) == 1


def fetched_sizes(size: int) -> int:
    """Return how many jobs of a given size one statement fetches, for a worker with 1,000 free slots."""
    queue_state = QueueState(PQ("postgresql://nowhere/")["q"], None)  # type: ignore[arg-type]
    queue_state.job_size = size
    return queue_state.fetch_size(1_000, Prefetch(1_000, PREFETCH_BYTES))


def test_job_that_a_function_keeps_has_its_data_afterwards(dsn: str) -> None:
    kept: list[BaseJob] = []

    async def work() -> None:
        async with tasks.AsyncPQ(dsn) as pq:
            await pq.create()
            queue = pq["q"]

            async def keep(job_id: int, text: str) -> None:
                kept.append(current().job)

            await queue.task()(keep)("kept")
            await Worker(queue, burst=True).run()

    asyncio.run(work())
    [job] = kept
    assert job.decoded_data is None
    assert job.decode()["args"] == ["kept"]
