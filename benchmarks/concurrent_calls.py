"""Callers that call one operation concurrently over one `PQ`.

They are threads for a blocking backend, and tasks for an asynchronous one.

Other builds of pqcore run this module for `compare_builds`, so it imports only public names of pqcore.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .backends import Contender, awaitable
from .coroutines import run_sync
from .load_generators import PATIENCE, clock
from .operations import DATA, QUEUE

Call: TypeAlias = Callable[[], Coroutine[Any, Any, int | None]]
"""A function that runs the operation once; it returns the id of its job, or None if there was no job."""
CALLS = ("put", "get", "lease")
"""The operations."""
CALLERS = (1, 8, 64)
"""The numbers of concurrent callers."""


@dataclass
class Turn:
    """The calls of some seconds.

    Attributes:
        jobs: The ids of the jobs that were put or taken.
        in_time: How many calls returned before the time was over.
        times: The seconds of each call.
    """

    jobs: list[int] = field(default_factory=list)
    in_time: int = 0
    times: list[float] = field(default_factory=list)


def call_of(queue: Any, operation: str) -> Call:
    """Return a function that runs one of `CALLS` once.

    Args:
        queue: A queue whose methods are awaited.
        operation: The operation.
    """

    async def put() -> int | None:
        return int(await queue.put(DATA))

    async def get() -> int | None:
        job = await queue.get(block=False)
        return None if job is None else int(job.id)

    async def lease() -> int | None:
        job = await queue.lease(block=False)
        if job is None:
            return None
        acknowledged = job.ack()
        if asyncio.iscoroutine(acknowledged):
            await acknowledged
        return int(job.id)

    return {"put": put, "get": get, "lease": lease}[operation]


class Callers:
    """Concurrent callers of an operation.

    Args:
        contender: The backend of the `PQ`.
        pq: The `PQ` that they share.
        operation: One of `CALLS`.
        number: The number of concurrent callers.
    """

    def __init__(self, contender: Contender, pq: Any, operation: str, number: int) -> None:
        self._blocking = contender.blocking
        self._call = call_of(awaitable(contender, pq, QUEUE), operation)
        self._number = number

    async def turn(self, seconds: float) -> Turn:
        """Let all callers call repeatedly, until the time is over or no job is left."""
        if not self._blocking:
            until = clock() + seconds
            return _together(await asyncio.gather(*(self._again_and_again(until) for _ in range(self._number))))
        until = 0.0

        def begin() -> None:
            nonlocal until
            until = clock() + seconds

        barrier = threading.Barrier(self._number, begin, PATIENCE)

        def work() -> Turn:
            barrier.wait()
            return run_sync(self._again_and_again(until))

        if self._number == 1:
            return work()
        with ThreadPoolExecutor(self._number) as threads:
            return _together([done.result() for done in [threads.submit(work) for _ in range(self._number)]])

    async def _again_and_again(self, until: float) -> Turn:
        call, turn = self._call, Turn()
        ended = clock()
        while ended < until:
            began = ended
            job = await call()
            ended = clock()
            if job is None:
                break
            turn.jobs.append(job)
            turn.times.append(ended - began)
            turn.in_time += ended < until
        return turn


def _together(turns: Sequence[Turn]) -> Turn:
    made = Turn()
    for turn in turns:
        made.jobs += turn.jobs
        made.times += turn.times
        made.in_time += turn.in_time
    return made
