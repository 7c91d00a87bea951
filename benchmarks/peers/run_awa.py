"""awa, through its Python client, whose engine is written in Rust, on its queue storage.

Only its worker can take a job. Its tables are append-only and rotated, and cannot be emptied, so each measurement has
its own queue.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .runner import MANY, Seen, System, Taken, clock, main

WORKERS = 500
"""Jobs that run concurrently: the best of 100 and 500 for empty jobs."""


@dataclass
class Noop:
    """The arguments of the job."""

    n: int


class Awa(System):
    """The system awa."""

    name = "awa"
    how = {
        "put": "client.insert(arguments)",
        "put_many": f"client.enqueue_many_copy({MANY:,} arguments)",
        "worker": f"client.start([(queue, {WORKERS})]); until the last has run",
        "serve": f"client.start([(queue, {WORKERS})])",
        "horizon_worker": "as for worker",
    }
    least = 2_000  # its worker takes a moment to start
    tables = ()
    unfinished = ""

    def __init__(self) -> None:
        self.number = 0
        self.queue = ""
        self.ran: Any = None

    async def setup(self, dsn: str) -> None:
        self.version = importlib.metadata.version("awa-pg")
        self.client = importlib.import_module("awa").AsyncClient(dsn)
        await self.client.migrate()
        await self.client.install_queue_storage()

    async def close(self) -> None:
        await self.client.close()

    async def sql(self, statement: str) -> Any:
        raise NotImplementedError

    async def reset(self) -> None:
        self.number += 1
        self.queue = f"bench{self.number}"

        async def noop(job: Any) -> None:
            self.ran(job.args.n)

        self.client.task(Noop, queue=self.queue)(noop)

    async def settle(self) -> None:
        transaction = await self.client.transaction()
        await transaction.execute("ANALYZE")
        await transaction.commit()

    async def count(self) -> int:
        for queue in await self.client.queue_stats():
            if queue.queue == self.queue:
                return int(queue.total_queued + queue.running + queue.retryable)
        return 0

    async def put(self, number: int) -> None:
        await self.client.insert(Noop(number), queue=self.queue)

    async def put_many(self, numbers: Sequence[int]) -> None:
        await self.client.enqueue_many_copy([Noop(number) for number in numbers], queue=self.queue)

    async def work(self, seen: Seen) -> float:
        self.ran = seen.ran
        await self.client.start([(self.queue, WORKERS)])
        try:
            await seen.all.wait()
            ended = clock()
            await self.until_finished()
        finally:
            await self.client.shutdown()
        return ended

    async def serve(self, taken: Taken) -> None:
        self.ran = lambda _: taken()
        await self.client.start([(self.queue, WORKERS)])
        try:
            await asyncio.Event().wait()
        finally:
            await self.client.shutdown()


if __name__ == "__main__":
    main(Awa())
