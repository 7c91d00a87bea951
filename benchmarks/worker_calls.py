"""Calls that a worker runs, and the worker, with only public names of pqcore, for other builds."""

from __future__ import annotations

import asyncio
from typing import Any

from pqcore.worker import Worker

from .load_generators import ClientReport, clock

CHUNK = 2_000
"""The number of calls that are put together."""
_done: list[int] = []
_times: list[float] = []


async def noop(job_id: int, data: str = "") -> None:
    """Do nothing."""
    _done.append(job_id)
    _times.append(clock())


def plain(job_id: int, data: str = "") -> None:
    """Do nothing, in a thread."""
    _done.append(job_id)


async def put_calls(queue: Any, function: Any, number: int, size: int = 0) -> list[int]:
    """Put calls of a function, each with an argument of ``size`` characters; return the jobs' ids."""
    task = queue.task()(function)
    ids: list[int] = []
    step = max(min(CHUNK, 10_000_000 // (size + 1)), 1)
    arguments = ("x" * size,) if size else ()
    for start in range(0, number, step):
        calls = [task.call(*arguments)] * min(step, number - start)
        put = queue.put_calls(*calls)
        ids += map(int, await put if asyncio.iscoroutine(put) else put)
    return ids


async def drain(queue: Any, **options: Any) -> ClientReport:
    """Run all jobs in a worker of this process, from its start until it has stopped; options are those of `Worker`."""
    _done.clear()
    _times.clear()
    worker = Worker(queue, burst=True, **options)
    began = clock()
    await worker.run()
    return ClientReport(began, clock(), len(_done), taken=[*_done], times=[*_times])


def per_job(done: ClientReport, places: int) -> float:
    """Return the seconds between two jobs of a worker, without its start and its end.

    Args:
        done: The result of `drain`, with more jobs than places.
        places: The number of jobs that begin together, so that no job precedes the first ones.
    """
    return (done.times[-1] - done.times[0]) / (len(done.times) - places)
