"""pq, over psycopg2, its only driver: one connection, as in its documentation."""

from __future__ import annotations

import importlib
import importlib.metadata
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from .runner import BATCH, CALLERS, MANY, Seen, System, Taken, clock, in_thread, main


class Pq(System):
    """The system pq 1.9."""

    name = "pq, psycopg2"
    how = {
        "put": "queue.put(data)",
        "put_many": f"with queue: queue.put(data), {MANY:,} times",
        "get": "queue.get()",
        "get_many": f"with queue: queue.get(), {BATCH} times",
        "worker": "pq.tasks: queue.work(burst=True)",
        "pickup": "queue.get()",
        "horizon": "queue.get()",
        "horizon_worker": "as for worker",
        "concurrent_put": f"as for put, over psycopg2.pool.ThreadedConnectionPool({CALLERS}, {CALLERS})",
        "concurrent_get": "as for get, over the same connections",
    }
    alike = {"serve": "pickup"}
    threads = True
    tables = ("queue",)
    unfinished = "SELECT count(*) FROM queue WHERE dequeued_at IS NULL"

    async def setup(self, dsn: str) -> None:
        self.version = importlib.metadata.version("pq")
        self.dsn = dsn
        self.connect: Any = partial(importlib.import_module("psycopg2").connect, dsn)
        self.new: Any = importlib.import_module("pq").PQ
        self.connection = self.connect()
        self.new(self.connection).create()
        self.queue = self.new(self.connection)["bench"]
        self.calls = importlib.import_module("pq.tasks").PQ(self.connection)["bench"]
        self.ran: Any = None

        def noop(job_id: int) -> None:
            self.ran(job_id)

        self.task = self.calls.task()(noop)

    async def close(self) -> None:
        self.connection.close()

    async def sql(self, statement: str) -> Any:
        with self.connection, self.connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None

    async def put(self, number: int) -> None:
        self.queue.put({"n": number})

    async def put_many(self, numbers: Sequence[int]) -> None:
        with self.queue:
            for number in numbers:
                self.queue.put({"n": number})

    async def put_call(self, number: int) -> None:
        self.task()

    async def fill_calls(self, n: int) -> None:
        with self.calls:
            for _ in range(n):
                self.task()

    async def get(self) -> int | None:
        job = self.queue.get(block=False)
        return None if job is None else int(job.id)

    async def shared(self) -> System:
        pool: Any = importlib.import_module("psycopg2.pool")
        self.pool = pool.ThreadedConnectionPool(CALLERS, CALLERS, self.dsn)
        shared = Pq()
        shared.queue = self.new(pool=self.pool)["bench"]
        return shared

    async def unshare(self) -> None:
        self.pool.closeall()

    async def get_many(self, n: int) -> Sequence[int]:
        with self.queue:
            jobs = [self.queue.get(block=False) for _ in range(n)]
        return [job.id for job in jobs if job is not None]

    async def work(self, seen: Seen) -> float:
        ended = clock()

        def ran(job_id: int) -> None:
            nonlocal ended
            seen.ran(job_id)
            ended = clock()  # pq finishes a job before it runs; after the last job, it waits for more

        self.ran = ran
        self.calls.work(burst=True)
        return ended

    async def wait(self, taken: Taken, stop: threading.Event) -> None:
        await in_thread(partial(self._wait, taken, stop))

    def _wait(self, taken: Taken, stop: threading.Event) -> None:
        connection = self.connect()
        queue = self.new(connection)["bench"]
        while not stop.is_set():
            if queue.get() is not None:
                taken()
        connection.close()


if __name__ == "__main__":
    main(Pq())
