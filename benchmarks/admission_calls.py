"""Jobs under limits, and workers that run them, with only public names of pqcore, for other builds.

All workers of one measurement run in this process, each over its own `PQ`, so that one clock and one `Load` record all
starts and ends.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pqcore.worker import Worker

from .load_generators import ClientReport, clock
from .worker_calls import CHUNK

LIMIT = "tenant"
"""The name of the limit, or the prefix of several names."""
PAUSES = (0.02, 0.06)
"""The shortest and the longest pause between two samples, in seconds."""
Limits: TypeAlias = Mapping[str, int]


class LoadNotFinished(Exception):
    """The jobs did not all run within the given time."""


@dataclass
class Load:
    """A record of the workers' work in this process, as the jobs see it.

    Attributes:
        slots: The number of slots of all workers together.
        running: The number of jobs that run now.
        most: The largest number of jobs that ran concurrently.
        taken: The ids of the jobs that have started.
        times: When each of these jobs started.
        marks: The text that each of these jobs was put with.
        freed: When a slot was first free after `watch`; infinite if none was.
        expected: The number of ended jobs at which `all` is set.
        ended: The number of jobs that have ended.
    """

    slots: int = 0
    running: int = 0
    most: int = 0
    taken: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    freed: float = math.inf
    expected: float = math.inf
    ended: int = 0
    all: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, job_id: int, mark: str) -> None:
        """Record the start of a job."""
        self.running += 1
        self.most = max(self.most, self.running)
        self.taken.append(job_id)
        self.times.append(clock())
        self.marks.append(mark)

    def end(self) -> None:
        """Record the end of a job."""
        self.running -= 1
        self.ended += 1
        self.freed = min(self.freed, clock())
        if self.ended >= self.expected:
            self.all.set()

    def watch(self) -> None:
        """From now on, record when a slot is free."""
        self.freed = clock() if self.running < self.slots else math.inf

    def report(self, began: float, put: Sequence[int] = ()) -> ClientReport:
        """Return the work since a time."""
        return ClientReport(began, clock(), self.ended, put=[*put], taken=[*self.taken], times=[*self.times])


_load = Load()


async def held(job_id: int, seconds: float, mark: str = "") -> None:
    """Hold a slot for some seconds; for zero seconds, do nothing."""
    load = _load
    load.begin(job_id, mark)
    try:
        if seconds:
            await asyncio.sleep(seconds)
    finally:
        load.end()


async def asked(job_id: int) -> None:
    """Record the start of the other tenant's job."""
    _sample.start(job_id)


@dataclass
class _Sample:
    """A job of the other tenant that is waited for."""

    event: asyncio.Event = field(default_factory=asyncio.Event)
    started: float = 0.0
    taken: list[int] = field(default_factory=list)

    def start(self, job_id: int) -> None:
        self.started = clock()
        self.taken.append(job_id)
        self.event.set()


_sample = _Sample()


# Putting


def limits_of(places: int, keys: int = 1) -> Callable[[float, str], Limits]:
    """Return the function that makes a task's limits from a call's arguments; without places, there are no limits."""

    def limits(seconds: float, mark: str = "") -> Limits:
        return {f"{LIMIT}-{mark}" if keys > 1 else LIMIT: places} if places else {}

    return limits


def declare(queue: Any, function: Any, tenant: str | None = None, **options: Any) -> Any:
    """Return a task of a queue; if this build supports shares, its jobs have a separate share."""
    if tenant is not None and knows_shares(queue):
        options["tenant"] = tenant
    return queue.task(**options)(function)


def knows_shares(queue: Any) -> bool:
    """Return whether this build supports shares of tenants."""
    return "tenant" in inspect.signature(queue.put).parameters


async def put_held(task: Any, queue: Any, number: int, seconds: float, keys: int = 1, first: int = 0) -> list[int]:
    """Put jobs that hold a slot: one for each key in turn, or some for each key if there are more jobs.

    Args:
        task: The result of `declare` for `held`.
        queue: The queue of the task.
        number: The number of jobs.
        seconds: How long each job holds its slot.
        keys: The number of keys.
        first: The number of the first key.

    Returns:
        The ids.
    """
    calls = [task.call(seconds, str((first + index) % keys)) for index in range(min(keys, number))]
    if keys == 1 or number < 2 * keys:
        return await put_in_turn(queue, calls, number)
    ids: list[int] = []  # jobs with the same limits that are put together share a statement
    for index, call in enumerate(calls):
        ids += await put_in_turn(queue, [call], number * (index + 1) // keys - number * index // keys)
    return ids


async def put_in_turn(queue: Any, calls: Sequence[Any], number: int) -> list[int]:
    """Put calls in turn, up to a number; return the ids."""
    ids: list[int] = []
    for start in range(0, number, CHUNK):
        ids += await put(queue, [calls[index % len(calls)] for index in range(start, min(start + CHUNK, number))])
    return ids


async def put(queue: Any, calls: Sequence[Any]) -> list[int]:
    """Put calls over either face, without blocking the loop; return the ids."""
    return [int(each) for each in await called(queue.put_calls, *calls)]


async def called(method: Callable[..., Any], *arguments: Any) -> Any:
    """Call a method of a queue over either face, without blocking the loop; return its result."""
    if inspect.iscoroutinefunction(method):
        return await method(*arguments)
    return await asyncio.to_thread(method, *arguments)


# Running


@asynccontextmanager
async def workers(queues: Sequence[Any], load: Load, **options: Any) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run a worker for each queue, which must have its tasks; at the end, stop all workers and wait for them."""
    global _load
    _load = load
    made = [Worker(queue, **options) for queue in queues]
    load.slots = sum(worker.concurrency for worker in made)
    running = [asyncio.ensure_future(worker.run()) for worker in made]
    try:
        await asyncio.sleep(0)  # the workers start; one that has not started cannot be stopped
        yield running
    finally:
        for worker in made:
            worker.stop()
        await asyncio.gather(*running)


async def run_until(queues: Sequence[Any], number: int, patience: float, **options: Any) -> tuple[ClientReport, Load]:
    """Run workers until a number of jobs have ended.

    Raises:
        LoadNotFinished: The jobs have not ended within ``patience`` seconds.
    """
    load = Load(expected=number)
    began = clock()
    async with workers(queues, load, **options) as running:
        waiting = asyncio.ensure_future(load.all.wait())
        await asyncio.wait({waiting, *running}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        ended = load.ended
    if ended < number:
        msg = f"{ended:,} of {number:,} jobs ended within {patience:.0f} s"
        raise LoadNotFinished(msg)
    return load.report(began), load


def speed(times: Sequence[float], places: int) -> float:
    """Return the starts per second of jobs, of which ``places`` start together.

    The first jobs are left out, because the worker's own start takes seconds.
    """
    places = min(places, len(times) - 1)
    return (len(times) - places) / max(times[-1] - times[0], 1e-9)


# The other tenant


@dataclass(frozen=True)
class Backlog:
    """The jobs of a tenant.

    Attributes:
        task: The result of `declare` for `held`.
        number: How many jobs wait.
        seconds: How long each job holds its slot.
        keys: The number of limits that the jobs are under.
    """

    task: Any
    number: int
    seconds: float
    keys: int


async def sample_starts(
    queues: Sequence[Any], backlog: Backlog, *, samples: int, patience: float, **options: Any
) -> tuple[ClientReport, int]:
    """Run workers on a tenant's backlog, and put jobs of another tenant from time to time.

    The workers start `STARTS` times, because the memory that a worker builds up about the backlog is part of the
    measurement. Jobs of the backlog that have ended are put again, so that the backlog keeps its length.

    Args:
        queues: A queue for each worker; all have the backlog's task. Jobs are put through the first one.
        backlog: The tenant's jobs.
        samples: The largest number of jobs of the other tenant.
        patience: Seconds for all samples. The first job that has not started by then counts as started.
        options: Options of `Worker`.

    Returns:
        The work, whose times are the seconds until the other tenant's jobs started, each counted from when the job was
        put and a slot was free; zero if it started before slots were counted, `SETTLE` seconds later; and how many jobs
        did not start.
    """
    global _sample
    _sample = sample = _Sample()
    others = [declare(queue, asked, "other", limits={"other": 2}) for queue in queues]
    began, end, load = clock(), clock() + patience, Load()
    ids: list[int] = []
    times: list[float] = []
    replaced = 0
    starts = min(STARTS, samples)
    for start in range(starts):
        if clock() > end:
            break
        async with workers(queues, load, **options) as running:
            await _busy(load, len(load.taken) + min(load.slots, 2 * backlog.keys, backlog.number), end)
            while len(times) < samples * (start + 1) // starts and clock() < end:
                if ended := load.ended - replaced:
                    ids += await put_held(backlog.task, queues[0], ended, backlog.seconds, backlog.keys, replaced)
                    replaced += ended
                await asyncio.sleep(random.uniform(*PAUSES))
                sample.event.clear()
                ids += await put(queues[0], [others[0].call()])
                asked_at = clock()
                await asyncio.sleep(SETTLE)
                load.watch()
                waiting = asyncio.ensure_future(sample.event.wait())
                until = max(end - clock(), 0.1)
                await asyncio.wait({waiting, *running}, timeout=until, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if not sample.event.is_set():
                    times.append(clock() - asked_at)
                    break
                free = load.freed if load.freed < sample.started else asked_at
                times.append(max(sample.started - max(asked_at, free), 0.0))
    report = load.report(began, ids)
    report.taken += sample.taken
    report.count += len(sample.taken)
    report.times = times
    return report, len(times) - len(sample.taken)


SETTLE = 0.002
"""Seconds after the put at which slots are counted: a slot that gets a job within this time was not free any more."""
STARTS = 4
"""How often the workers start; the samples are divided between the starts."""


async def _busy(load: Load, number: int, end: float) -> None:
    """Wait until a number of jobs have started, or until a time."""
    while len(load.taken) < number and clock() < end:  # noqa: ASYNC110 - jobs set no event
        await asyncio.sleep(0.01)


async def feed(
    queues: Sequence[Any], calls: Sequence[Any], feeding: Any, seconds: float, **options: Any
) -> ClientReport:
    """Run workers for some seconds from their first job on, and put jobs so that they always have some.

    Args:
        queues: A queue for each worker, with its tasks.
        calls: The calls to put, repeatedly and in turn.
        feeding: The queue through which they are put.
        seconds: How long to run.
        options: Options of `Worker`.
    """
    load, began = Load(), clock()
    ids = await put_in_turn(feeding, calls, FED)
    async with workers(queues, load, **options) as running:
        while not (load.times and clock() > load.times[0] + seconds) and not any(each.done() for each in running):
            if len(ids) - load.ended < FED // 2:
                ids += await put_in_turn(feeding, calls, FED // 2)
            else:
                await asyncio.sleep(0.01)
    return load.report(began, ids)


FED = 4 * CHUNK
"""The largest number of waiting jobs while workers are fed."""


async def run_for(queues: Sequence[Any], seconds: float, patience: float, **options: Any) -> tuple[ClientReport, Load]:
    """Run workers for some seconds from their first job on, which must start within ``patience`` seconds."""
    load, began = Load(), clock()
    async with workers(queues, load, **options):
        await _busy(load, 1, began + patience)
        await asyncio.sleep(seconds)
    return load.report(began), load


def parts_of(load: Load, marks: Sequence[str], seconds: float) -> dict[str, float]:
    """Return which part of the jobs that started within some seconds of the first has each mark."""
    number = sum(time <= load.times[0] + seconds for time in load.times)
    began = load.marks[:number]
    return {mark: began.count(mark) / number for mark in marks}
