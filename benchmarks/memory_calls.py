"""The work of a process whose memory is measured, with only public names of pqcore, because other builds do it, too."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from pqcore.worker import Worker

from .backends import Contender, Location, awaitable, closed
from .operations import QUEUE
from .worker_calls import noop, put_calls

Work: TypeAlias = Callable[[Contender, Any, int], Awaitable[int]]

SIZE = 100_000
"""The number of characters in the argument of a large job."""
BATCH = 10_000
"""The number of jobs that one call of ``get_many`` takes."""
WAITED_AT_ONCE = 0.001
"""Seconds added to the wait for a job for each queue that is waited on: all queues are looked at first."""


_STATUS = Path("/proc/self/status")


def held() -> float:
    """Return the present memory of this process, in MB: its resident set size, or `peak` if only that is known."""
    return _of_linux("VmRSS") or peak()


def peak() -> float:
    """Return the largest memory of this process so far, in MB; on Linux, since `forget_peak`."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return _of_linux("VmHWM") or most


def forget_peak() -> None:
    """Make `peak` start with the present memory of this process, if the system supports that."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _of_linux(name: str) -> float | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{name}:")), None)


def measured(contender: Contender, place: Location, operation: str, number: int) -> dict[str, float]:
    """Run an operation once, and return the memory before it, and the largest memory during it, in MB.

    Args:
        contender: The backend.
        place: The place of the table.
        operation: A key of `WORKS`.
        number: The number of jobs or queues.

    Returns:
        ``base``, ``peak``, and ``done``: the number of jobs put or taken, or of queues waited on.
    """
    return asyncio.run(_measured(contender, place, operation, number))


async def _measured(contender: Contender, place: Location, operation: str, number: int) -> dict[str, float]:
    pq = contender.open(place)
    try:
        queue = awaitable(contender, pq, f"{QUEUE}-before")
        await queue.put_many([{"n": 0}] * 2)
        await queue.get_many(2)
        base = held()
        forget_peak()
        done = await WORKS[operation](contender, pq, number)
        return {"base": base, "peak": peak(), "done": done}
    finally:
        await closed(contender, pq)


def _data(number: int) -> Iterator[dict[str, int]]:
    for n in range(number):
        yield {"order": n}


async def _put_many(contender: Contender, pq: Any, number: int) -> int:
    return len(await awaitable(contender, pq, QUEUE).put_many(_data(number)))


async def _get_many(contender: Contender, pq: Any, number: int) -> int:
    queue, taken = awaitable(contender, pq, QUEUE), 0
    while jobs := await queue.get_many(BATCH, block=False):
        taken += sum(1 for job in jobs if job.data is not None)
    return taken


async def _fill(contender: Contender, pq: Any, number: int) -> int:
    return len(await put_calls(pq[QUEUE], noop, number, SIZE))


async def _work(contender: Contender, pq: Any, number: int) -> int:
    queue, done = pq[QUEUE], 0

    def count(job_id: int, data: str) -> None:
        nonlocal done
        done += 1

    # the worker finds the function by the path in the jobs
    count.__module__, count.__qualname__ = noop.__module__, noop.__qualname__
    queue.task()(count)
    await Worker(queue, burst=True).run()
    return done


async def _wait(contender: Contender, pq: Any, number: int) -> int:
    seconds = 3 + number * WAITED_AT_ONCE
    found = await asyncio.gather(*(pq[f"{QUEUE}-{n}"].get(timeout=seconds) for n in range(number)))
    return sum(job is None for job in found)


WORKS: Mapping[str, Work] = {
    "put_many": _put_many,
    "get_many": _get_many,
    "fill": _fill,
    "worker": _work,
    "wait": _wait,
}
"""The operations."""
