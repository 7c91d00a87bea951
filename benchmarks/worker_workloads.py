"""Workloads of workers: jobs that are function calls, run under leases until there are none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pqcore.worker import Worker

from .backends import Contender, awaitable, closed
from .load_generators import ClientReport, clock
from .measurement import QUEUE, Bench, Measurement, Table, observe
from .workloads import Common, Options, Variant

CHUNK = 2_000
"""Calls that are put together."""
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
    """Put calls of a function, each with an argument of so many characters; the jobs' ids."""
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
    """Have a worker of this process do all jobs, from its start until it has stopped; options are those of `Worker`."""
    _done.clear()
    _times.clear()
    worker = Worker(queue, burst=True, **options)
    began = clock()
    await worker.run()
    return ClientReport(began, clock(), len(_done), taken=[*_done], times=[*_times])


def per_job(done: ClientReport, places: int) -> float:
    """Return the seconds between two jobs of a worker, without its start and its end.

    Args:
        done: What `drain` returned, of more jobs than places.
        places: Jobs that begin together: the time of the first ones is none.
    """
    return (done.times[-1] - done.times[0]) / (len(done.times) - places)


@dataclass(frozen=True)
class Drain(Common):
    """One worker, in one process, as it is by default."""

    name: str = "worker"
    title: str = "a worker, until no job is left"

    def variants(self, options: Options) -> Sequence[Variant]:
        number = options.scale.worked
        return [
            Variant("no-op", parameters={"function": noop, "number": number, "size": 0}),
            Variant("no-op in threads", parameters={"function": plain, "number": number, "size": 0}),
            Variant("1 KB", parameters={"function": noop, "number": number, "size": 1_000}),
            Variant("100 KB", parameters={"function": noop, "number": max(number // 40, 20), "size": 100_000}),
        ]

    def turn(self, bench: Bench, table: Table, contender: Contender, variant: Variant) -> Measurement:
        table.empty()
        filled: list[int] = []

        async def fill() -> None:
            pq = contender.open(table.place)
            filled.extend(await put_calls(pq[QUEUE], *variant.parameters.values()))
            await closed(contender, pq)

        async def work() -> ClientReport:
            pq = contender.open(table.place)
            queue = pq[QUEUE]
            queue.task()(variant.parameters["function"])
            await awaitable(contender, pq, QUEUE).count()  # it is connected
            try:
                return await drain(queue)
            finally:
                await closed(contender, pq)

        asyncio.run(fill())
        bench.server_observer.do(f"VACUUM ANALYZE {table.name}")
        return observe(table, lambda: [asyncio.run(work())], filled=filled)
