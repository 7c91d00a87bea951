"""What a worker leaves behind for each job."""

from __future__ import annotations

import asyncio
import gc
from typing import Any
from weakref import ref

import pytest

from pqcore import tasks
from pqcore.tasks import current
from pqcore.worker import Worker


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
