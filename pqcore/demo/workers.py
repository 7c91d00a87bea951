"""The producers and consumers: examples of using pqcore, blocking and asynchronous."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from pqcore import PQ, AsyncPQ
from pqcore.demo.files import sha256
from pqcore.demo.messages import (
    Done,
    Failed,
    Holding,
    Message,
    Order,
    Put,
    Ready,
    RolledBack,
    Stopped,
    Task,
    WorkerPipe,
)
from pqcore.demo.tables import insert_order, insert_result, numbered

QUEUE = "files"
BATCH = 50
"""The number of jobs that a producer puts in succession."""
ORDERS = 10
"""The number of jobs of a batch that are put with an order each; the others are put together."""
IDLE = 0.25
"""Seconds that a consumer waits for a job before it looks for orders."""


class Cancelled(Exception):
    """The customer cancelled the order."""


def work(task: Task, pipe: Connection[Message, Order]) -> None:
    """Run a worker for the whole life of its process."""
    worker_pipe = WorkerPipe(pipe)
    with suppress(Stopped):
        try:
            if task.driver == "asyncpg":
                asyncio.run(produce_async(task, worker_pipe) if task.produces else consume_async(task, worker_pipe))
            elif task.produces:
                produce(task, worker_pipe)
            else:
                consume(task, worker_pipe)
        except Stopped:
            raise
        except Exception:  # noqa: BLE001 (the conductor gets any exception)
            worker_pipe.tell(Failed(traceback.format_exc()))


def produce(task: Task, worker_pipe: WorkerPipe) -> None:
    """Put some jobs singly, each in one transaction with its order, and the other jobs with put_many."""
    sql = insert_order(task.schema)
    with PQ(task.dsn, schema=task.schema, backend=task.driver) as pq:
        queue = pq[QUEUE]
        queue.count()  # opens the connection
        worker_pipe.tell(Ready())
        for orders, others in _batches(task, worker_pipe):
            for path in orders:
                with queue as cursor:
                    job = queue.put({"path": path})
                    cursor.execute(sql, (job, path, task.driver))
                worker_pipe.tell(Put([(job, path)], ordered=True))
            ids = queue.put_many({"path": path} for path in others)
            worker_pipe.tell(Put(list(zip(ids, others, strict=True)), ordered=False))
            with suppress(Cancelled), queue as cursor:
                job = queue.put({"path": orders[0]})
                cursor.execute(sql, (job, orders[0], task.driver))
                raise Cancelled
            worker_pipe.tell(RolledBack(job))


def consume(task: Task, worker_pipe: WorkerPipe) -> None:
    """Do jobs, each in one transaction with its result."""
    sql = insert_result(task.schema)
    hold = False
    with PQ(task.dsn, schema=task.schema, backend=task.driver) as pq:
        queue = pq[QUEUE]
        queue.count()
        worker_pipe.tell(Ready())
        worker_pipe.order()
        while True:
            with queue as cursor:
                job = queue.get(timeout=IDLE)
                hold = hold or (worker_pipe.has_order() and worker_pipe.order() is Order.HOLD)
                if job is None:
                    continue
                cursor.execute(sql, _result(task, job))
                if hold:
                    worker_pipe.tell(Holding(job.id))
                    worker_pipe.order()  # waits until this process is killed
            worker_pipe.tell(Done())


async def produce_async(task: Task, worker_pipe: WorkerPipe) -> None:
    """Put jobs as `produce` does, but with an `AsyncPQ`."""
    sql = numbered(insert_order(task.schema))
    async with AsyncPQ(task.dsn, schema=task.schema, backend=task.driver) as pq:
        queue = pq[QUEUE]
        await queue.count()
        worker_pipe.tell(Ready())
        for orders, others in _batches(task, worker_pipe):
            for path in orders:
                async with queue as connection:
                    job = await queue.put({"path": path})
                    await connection.execute(sql, job, path, task.driver)
                worker_pipe.tell(Put([(job, path)], ordered=True))
            ids = await queue.put_many({"path": path} for path in others)
            worker_pipe.tell(Put(list(zip(ids, others, strict=True)), ordered=False))
            with suppress(Cancelled):
                async with queue as connection:
                    job = await queue.put({"path": orders[0]})
                    await connection.execute(sql, job, orders[0], task.driver)
                    raise Cancelled
            worker_pipe.tell(RolledBack(job))


async def consume_async(task: Task, worker_pipe: WorkerPipe) -> None:
    """Do jobs as `consume` does, over an `AsyncPQ`."""
    sql = numbered(insert_result(task.schema))
    hold = False
    async with AsyncPQ(task.dsn, schema=task.schema, backend=task.driver) as pq:
        queue = pq[QUEUE]
        await queue.count()
        worker_pipe.tell(Ready())
        worker_pipe.order()
        while True:
            async with queue as connection:
                job = await queue.get(timeout=IDLE)
                hold = hold or (worker_pipe.has_order() and worker_pipe.order() is Order.HOLD)
                if job is None:
                    continue
                await connection.execute(sql, *_result(task, job))
                if hold:
                    worker_pipe.tell(Holding(job.id))
                    worker_pipe.order()
            worker_pipe.tell(Done())


def _batches(task: Task, worker_pipe: WorkerPipe) -> Iterator[tuple[list[str], list[str]]]:
    """Yield two lists of paths for each batch: those whose jobs are put together with a customer's order, and the rest.

    Before each half of the paths, wait for `Order.GO`.
    """
    for half in task.halves:
        worker_pipe.order()
        for begin in range(0, len(half), BATCH):
            batch = half[begin : begin + BATCH]
            yield batch[:ORDERS], batch[ORDERS:]


def _result(task: Task, job: Any) -> tuple[int, str, str, str, str]:
    path: str = job.data["path"]
    return job.id, path, sha256(task.directory / path), task.name, task.driver
