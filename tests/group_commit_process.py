"""Concurrent callers of one process, run by `test_group_commit_crashes`, which kills it or its server.

Each caller writes its answers to stdout, one line per call: ``acked`` with the job's id and data, ``unknown`` or
``refused`` with the data.  A line is one write, so a process that is killed writes whole lines.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from pqcore import PQ, AsyncPQ
from pqcore.errors import OutcomeUnknown, PQError

CALLERS = 64
Step = Callable[[str], Coroutine[Any, Any, "tuple[int, Any] | None"]]


def tell(*words: object) -> None:
    os.write(1, f"{' '.join(map(str, words))}\n".encode())


async def result_of(value: Any) -> Any:
    """Return the result of a call of either face."""
    return await value if asyncio.iscoroutine(value) else value


def step_of(act: str, queue: Any) -> Step:
    """Return the function that a caller repeats with unique data; it returns None if there is no job."""

    async def put(data: str) -> tuple[int, Any] | None:
        return int(await result_of(queue.put(data))), data

    async def get(data: str) -> tuple[int, Any] | None:
        job = await result_of(queue.get(block=False))
        return None if job is None else (job.id, job.data)

    async def lease(data: str) -> tuple[int, Any] | None:
        job = await result_of(queue.lease(60, block=False))
        if job is None:
            return None
        tell("leased", job.id, job.data)
        await result_of(job.ack())
        return job.id, job.data

    return {"put": put, "get": get, "lease": lease}[act]


async def caller(step: Step, number: int) -> None:
    """Call until there is no job, or until the server is gone."""
    count = 0
    while True:
        count += 1
        data = f"{number}-{count}"
        try:
            done = await step(data)
        except OutcomeUnknown:
            tell("unknown", data)
            return
        except PQError as exc:
            tell("refused", data, type(exc).__name__)
            return
        if done is None:
            return
        tell("acked", *done)


def in_threads(act: str, backend: str, dsn: str) -> None:
    with PQ(dsn, backend=backend) as pq:

        def work(number: int) -> None:
            try:
                caller(step_of(act, pq["q"]), number).send(None)
            except StopIteration:
                return

        threads = [threading.Thread(target=work, args=[number]) for number in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


async def in_tasks(act: str, backend: str, dsn: str) -> None:
    async with AsyncPQ(dsn, backend=backend) as pq:
        await asyncio.gather(*(caller(step_of(act, pq["q"]), number) for number in range(CALLERS)))


def main(act: str, backend: str, mode: str, dsn: str) -> None:
    if mode == "blocking":
        in_threads(act, backend, dsn)
    else:
        asyncio.run(in_tasks(act, backend, dsn))


if __name__ == "__main__":
    main(*sys.argv[1:])
