"""pqcore itself, over one of its backends, with defaults except that finished rows are deleted."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import sys
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from pqcore.tasks import PQ, AsyncPQ
from pqcore.worker import Worker

from .runner import HELD_AT_ONCE, MANY, PLACES, PLACES_OF_WORKER, Ran, Seen, System, Taken, clock, in_thread, main

BACKENDS = {"psycopg2": "blocking", "psycopg": "blocking", "psycopg-async": "async", "asyncpg": "async"}


class Pqcore(System):
    """The common parts of both faces."""

    name = "pqcore"
    how = {
        "memory": f"queue.put_many({HELD_AT_ONCE:,} data of a generator)",
        "put": "queue.put(data)",
        "put_many": f"queue.put_many({MANY:,} data)",
        "get": "queue.get()",
        "lease": "job = queue.lease(), job.ack()",
        "get_many": "queue.get_many(100)",
        "worker": "Worker(queue, burst=True); coroutines on the async face, functions in threads on the blocking one",
        "pickup": "queue.get()",
        "serve": "Worker(queue)",
        "horizon": "queue.get()",
        "horizon_worker": "as for worker",
        "limited": f"tasks with limits={{key: {PLACES}}} and tenant=key; Worker(queue)",
        "tenant": "as for limited",
        "concurrent_put": "as for put, over the connections that a PQ has by default",
        "concurrent_get": "as for get, over the same connections",
        "concurrent_lease": "as for lease, over the same connections",
    }
    tables = ("queue",)
    unfinished = "SELECT count(*) FROM queue"

    def __init__(self, driver: str) -> None:
        self.driver = driver
        self.version = importlib.metadata.version("pqcore")
        self.ran: Any = None
        self.queue: Any = None
        self.task: Any = None
        self.keyed: Any = None
        self.key_ran: Ran = lambda _: None

    def declare_keyed(self) -> None:
        """Declare the task of jobs under a key; if this pqcore supports shares, the key is also their share."""

        async def keyed(job_id: int, key: str, seconds: float) -> None:
            self.key_ran(key)
            if seconds:
                await asyncio.sleep(seconds)

        options: dict[str, Any] = {"limits": lambda key, seconds: {key: PLACES}}
        if "tenant" in inspect.signature(self.queue.put).parameters:
            options["tenant"] = lambda key, seconds: key
        self.keyed = self.queue.task(**options)(keyed)

    async def serve_keyed(self, ran: Ran) -> None:
        self.key_ran = ran
        await Worker(self.queue, concurrency=PLACES_OF_WORKER).run()

    async def work(self, seen: Seen) -> float:
        self.ran = seen.ran
        await Worker(self.queue, burst=True).run()
        return clock()

    async def serve(self, taken: Taken) -> None:
        self.ran = lambda _: taken()
        await Worker(self.queue).run()


class Blocking(Pqcore):
    """The blocking face."""

    threads = True

    async def setup(self, dsn: str) -> None:
        self.pq = PQ(dsn, backend=self.driver, retention="delete")
        self.pq.create()
        self.queue = self.pq["bench"]

        def noop(job_id: int) -> None:
            self.ran(job_id)

        self.task = self.queue.task()(noop)
        self.declare_keyed()

    async def put_keyed(self, key: str, number: int, seconds: float) -> None:
        self.queue.put_calls(*[self.keyed.call(key, seconds)] * number)

    async def close(self) -> None:
        self.pq.close()

    async def sql(self, statement: str) -> Any:
        with self.queue as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None

    async def put(self, number: int) -> None:
        self.queue.put({"n": number})

    async def put_many(self, numbers: Sequence[int]) -> None:
        self.queue.put_many({"n": number} for number in numbers)

    async def put_call(self, number: int) -> None:
        self.task()

    async def fill_calls(self, n: int) -> None:
        self.queue.put_calls(*[self.task.call()] * n)

    async def get(self) -> int | None:
        job = self.queue.get(block=False)
        return None if job is None else int(job.id)

    async def lease(self) -> int | None:
        job = self.queue.lease(block=False)
        if job is None:
            return None
        job.ack()
        return int(job.id)

    async def get_many(self, n: int) -> Sequence[int]:
        return [job.id for job in self.queue.get_many(n, block=False)]

    async def wait(self, taken: Taken, stop: threading.Event) -> None:
        await in_thread(partial(self._wait, taken, stop))

    def _wait(self, taken: Taken, stop: threading.Event) -> None:
        while not stop.is_set():
            if self.queue.get() is not None:
                taken()


class Asynchronous(Pqcore):
    """The asynchronous face."""

    async def setup(self, dsn: str) -> None:
        self.pq = AsyncPQ(dsn, backend=self.driver.removesuffix("-async"), retention="delete")
        await self.pq.create()
        self.queue = self.pq["bench"]

        async def noop(job_id: int) -> None:
            self.ran(job_id)

        self.task = self.queue.task()(noop)
        self.declare_keyed()

    async def put_keyed(self, key: str, number: int, seconds: float) -> None:
        await self.queue.put_calls(*[self.keyed.call(key, seconds)] * number)

    async def close(self) -> None:
        await self.pq.close()

    async def sql(self, statement: str) -> Any:
        async with self.queue as cursor:
            if self.driver == "asyncpg":
                return await cursor.fetchval(statement)
            await cursor.execute(statement)
            return (await cursor.fetchone())[0] if cursor.description else None

    async def put(self, number: int) -> None:
        await self.queue.put({"n": number})

    async def put_many(self, numbers: Sequence[int]) -> None:
        await self.queue.put_many({"n": number} for number in numbers)

    async def put_call(self, number: int) -> None:
        await self.task()

    async def fill_calls(self, n: int) -> None:
        await self.queue.put_calls(*[self.task.call()] * n)

    async def get(self) -> int | None:
        job = await self.queue.get(block=False)
        return None if job is None else int(job.id)

    async def lease(self) -> int | None:
        job = await self.queue.lease(block=False)
        if job is None:
            return None
        await job.ack()
        return int(job.id)

    async def get_many(self, n: int) -> Sequence[int]:
        return [job.id for job in await self.queue.get_many(n, block=False)]

    async def wait(self, taken: Taken, stop: threading.Event) -> None:
        while not stop.is_set():
            if await self.queue.get() is not None:
                taken()


if __name__ == "__main__":
    [backend] = sys.argv[1:]
    main(Blocking(backend) if BACKENDS[backend] == "blocking" else Asynchronous(backend))
