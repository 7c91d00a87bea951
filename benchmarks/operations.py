"""The operations of a queue that are measured in turns, called as users call them.

Other builds of pqcore run this module for `compare_builds`, so it imports only public names of pqcore.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Call: TypeAlias = Callable[[], Any]

DATA: dict[str, Any] = {"order": 12345, "to": "ann@example.com"}
"""The data of a job."""
QUEUE = "jobs"
MANY = 100
"""The number of jobs that are put, taken or leased together."""
PLACES = 20
"""The number of jobs that the worker of the targets runs concurrently: the default of `Worker`, without prefetching."""


@dataclass(frozen=True)
class Operation:
    """An operation that is compared.

    Attributes:
        title: The title of the operation.
        jobs: The number of jobs in one call. The number is low, so that the time of a statement is visible.
        takes: Whether the operation needs existing jobs.
        floor: The lowest share of pgbench's rate; see docs/benchmark-targets.md.
        script: The script of `pgbench.SCRIPTS` that does the same.
    """

    title: str
    jobs: int
    takes: bool
    floor: float
    script: str


OPERATIONS: Mapping[str, Operation] = {
    "put": Operation("put one", 1, takes=False, floor=0.25, script="put"),
    "get": Operation("get one", 1, takes=True, floor=0.25, script="get"),
    "transactional_get": Operation("get one in a transaction", 1, True, floor=0.25, script="transactional_get"),
    "put_many": Operation(f"put {MANY} together", MANY, takes=False, floor=0.3, script="put_many"),
    "get_many": Operation(f"get {MANY} together", MANY, takes=True, floor=0.2, script="get_many"),
    "lease_ack": Operation(f"lease {MANY} and acknowledge them", MANY, takes=True, floor=0.2, script="lease_ack"),
    "worker": Operation(f"a worker's no-op jobs, {PLACES} together", PLACES, True, floor=0.15, script="worker"),
}

LIMITED = "limited_worker"
"""An operation without a bare loop: two builds are compared at it only if it is named."""
MEMORY = "memory"
"""Not an operation, but the memory of processes: two builds are compared at it only if it is named."""
OF_BUILDS: Mapping[str, Operation] = {
    **OPERATIONS,
    LIMITED: Operation("a worker's no-op jobs under a limit of 2", 2, True, floor=0.0, script=""),
}
"""The operations at which two builds can be compared."""


def _blocking(queue: Any, taken: list[int]) -> dict[str, Call]:
    def keep(jobs: Any) -> None:
        for job in jobs:
            taken.append(job.id)
            _ = job.data

    def transactional_get() -> None:
        with queue:
            keep([queue.get()])

    def lease_ack() -> None:
        jobs = queue.lease_many(MANY)
        queue.ack_many(jobs)
        keep(jobs)

    return {
        "put": lambda: queue.put(DATA),
        "put_many": lambda: queue.put_many([DATA] * MANY),
        "get": lambda: keep([queue.get()]),
        "transactional_get": transactional_get,
        "get_many": lambda: keep(queue.get_many(MANY)),
        "lease_ack": lease_ack,
    }


def _asynchronous(queue: Any, taken: list[int]) -> dict[str, Call]:
    def keep(jobs: Any) -> None:
        for job in jobs:
            taken.append(job.id)
            _ = job.data

    async def get() -> None:
        keep([await queue.get()])

    async def transactional_get() -> None:
        async with queue:
            keep([await queue.get()])

    async def get_many() -> None:
        keep(await queue.get_many(MANY))

    async def lease_ack() -> None:
        jobs = await queue.lease_many(MANY)
        await queue.ack_many(jobs)
        keep(jobs)

    return {
        "put": lambda: queue.put(DATA),
        "put_many": lambda: queue.put_many([DATA] * MANY),
        "get": get,
        "transactional_get": transactional_get,
        "get_many": get_many,
        "lease_ack": lease_ack,
    }


def calls(queue: Any, taken: list[int], *, blocking: bool) -> dict[str, Call]:
    """Return a function for each operation except a worker's; the functions record the ids of jobs that they take.

    Args:
        queue: The queue.
        taken: The list that receives the ids.
        blocking: Whether the queue is that of a `PQ`; otherwise it is that of an `AsyncPQ`, and the functions' results
            are awaited.
    """
    return (_blocking if blocking else _asynchronous)(queue, taken)


async def stepped(call: Call, number: int) -> float:
    """Return the seconds of some blocking calls."""
    began = time.perf_counter()
    for _ in range(number):
        call()
    return time.perf_counter() - began


async def awaited(call: Call, number: int) -> float:
    """Return the seconds of some awaited calls."""
    began = time.perf_counter()
    for _ in range(number):
        await call()
    return time.perf_counter() - began
