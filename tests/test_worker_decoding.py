"""Where a worker decodes large jobs: in the event loop only if that is fast."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pqcore import tasks
from pqcore.settings import QUICK_SIZE
from pqcore.worker import Worker
from pqcore.worker.executor import Executor

NUMBER = 30


@pytest.fixture
def decoded_in_threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids of the jobs that a thread decoded."""
    ids: list[int] = []
    decode = Executor.decode

    async def noted(self: Executor, active: Any) -> Any:
        ids.append(active.job.id)
        return await decode(self, active)

    monkeypatch.setattr(Executor, "decode", noted)
    return ids


def work(dsn: str, argument: Any) -> None:
    done: list[int] = []

    def note(job_id: int, value: Any) -> None:
        assert value == argument
        done.append(job_id)

    async def run() -> None:
        async with tasks.AsyncPQ(dsn) as pq:
            await pq.create()
            queue = pq["q"]
            task = queue.task()(note)
            ids = await queue.put_calls(*[task.call(argument)] * NUMBER)
            await Worker(queue, burst=True, concurrency=2).run()
            assert sorted(done) == sorted(map(int, ids))

    asyncio.run(run())


def test_large_jobs_that_decode_fast_need_no_thread(dsn: str, decoded_in_threads: list[int]) -> None:
    work(dsn, "x" * (QUICK_SIZE + 1_000))
    assert 1 <= len(decoded_in_threads) < NUMBER


def test_large_jobs_that_decode_slowly_are_decoded_in_threads(dsn: str, decoded_in_threads: list[int]) -> None:
    work(dsn, [[n] for n in range(20_000)])
    assert len(decoded_in_threads) == NUMBER


def test_very_large_jobs_are_decoded_in_threads(dsn: str, decoded_in_threads: list[int]) -> None:
    work(dsn, "x" * 300_000)
    assert len(decoded_in_threads) == NUMBER
