"""Workloads of workers: jobs that are function calls, run under leases until none is left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from .backends import Contender, awaitable, closed
from .load_generators import ClientReport
from .measurement import Bench, Measurement, Table, observe
from .operations import QUEUE
from .worker_calls import drain, noop, plain, put_calls
from .workloads import Common, Options, Variant


@dataclass(frozen=True)
class Drain(Common):
    """One worker with the defaults, in one process."""

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
            await awaitable(contender, pq, QUEUE).count()  # this opens the connection
            try:
                return await drain(queue)
            finally:
                await closed(contender, pq)

        asyncio.run(fill())
        bench.server_observer.do(f"VACUUM ANALYZE {table.name}")
        return observe(table, lambda: [asyncio.run(work())], filled=filled)
