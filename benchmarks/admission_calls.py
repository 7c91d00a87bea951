"""Jobs under limits, and workers that run them: with pqcore's public names alone, as other builds are measured so, too.

All workers of one measurement run in this process, each over a `PQ` of its own, so that one clock and one `Load` see
all starts and ends.
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
"""The name of the limit, or the beginning of the names of several."""
PAUSES = (0.02, 0.06)
"""The least and the most seconds between two samples."""
Limits: TypeAlias = Mapping[str, int]


class LoadNotFinished(Exception):
    """The jobs did not all run within the time that they were given."""


@dataclass
class Load:
    """What the workers of this process do, as the jobs themselves see it.

    Attributes:
        slots: The slots of all workers together.
        running: Jobs that run now.
        most: The most jobs that ran together.
        taken: Ids of the jobs that began.
        times: When each of them began.
        marks: The text that each of them was put with.
        freed: When a slot was free first since `watch`; infinite if none was.
        expected: The number of ended jobs at which `all` is set.
        ended: Jobs that have ended.
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
        """Note the start of a job."""
        self.running += 1
        self.most = max(self.most, self.running)
        self.taken.append(job_id)
        self.times.append(clock())
        self.marks.append(mark)

    def end(self) -> None:
        """Note the end of a job."""
        self.running -= 1
        self.ended += 1
        self.freed = min(self.freed, clock())
        if self.ended >= self.expected:
            self.all.set()

    def watch(self) -> None:
        """Note from now on when a slot is free."""
        self.freed = clock() if self.running < self.slots else math.inf

    def report(self, began: float, put: Sequence[int] = ()) -> ClientReport:
        """Return what was done since a time."""
        return ClientReport(began, clock(), self.ended, put=[*put], taken=[*self.taken], times=[*self.times])


_load = Load()


async def held(job_id: int, seconds: float, mark: str = "") -> None:
    """Hold a slot for some seconds; for none, do nothing."""
    load = _load
    load.begin(job_id, mark)
    try:
        if seconds:
            await asyncio.sleep(seconds)
    finally:
        load.end()


async def asked(job_id: int) -> None:
    """Note the start of the other tenant's job."""
    _sample.start(job_id)


@dataclass
class _Sample:
    """The other tenant's job that is waited for."""

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
    """Return the function of a call's arguments that gives the limits of a task; no limits for no places."""

    def limits(seconds: float, mark: str = "") -> Limits:
        return {f"{LIMIT}-{mark}" if keys > 1 else LIMIT: places} if places else {}

    return limits


def declare(queue: Any, function: Any, tenant: str | None = None, **options: Any) -> Any:
    """Return a task of a queue; its jobs have a share of their own where this build knows shares."""
    if tenant is not None and knows_shares(queue):
        options["tenant"] = tenant
    return queue.task(**options)(function)


def knows_shares(queue: Any) -> bool:
    """Return whether this build knows shares of tenants."""
    return "tenant" in inspect.signature(queue.put).parameters


async def put_held(task: Any, queue: Any, number: int, seconds: float, keys: int = 1, first: int = 0) -> list[int]:
    """Put jobs that hold a slot: one after the other under each of the keys, or if there are more, some for each key.

    Args:
        task: What `declare` returned for `held`.
        queue: Its queue.
        number: How many jobs.
        seconds: For how long each holds its slot.
        keys: How many keys there are.
        first: The number of the first key.

    Returns:
        The ids.
    """
    calls = [task.call(seconds, str((first + index) % keys)) for index in range(min(keys, number))]
    if keys == 1 or number < 2 * keys:
        return await put_in_turn(queue, calls, number)
    ids: list[int] = []  # jobs put together that name the same limits are one statement
    for index, call in enumerate(calls):
        ids += await put_in_turn(queue, [call], number * (index + 1) // keys - number * index // keys)
    return ids


async def put_in_turn(queue: Any, calls: Sequence[Any], number: int) -> list[int]:
    """Put some calls, one after the other and again from the first, up to a number; return the ids."""
    ids: list[int] = []
    for start in range(0, number, CHUNK):
        ids += await put(queue, [calls[index % len(calls)] for index in range(start, min(start + CHUNK, number))])
    return ids


async def put(queue: Any, calls: Sequence[Any]) -> list[int]:
    """Put calls over either face, without holding up the loop; return the ids."""
    return [int(each) for each in await called(queue.put_calls, *calls)]


async def called(method: Callable[..., Any], *arguments: Any) -> Any:
    """Call a method of a queue over either face, without holding up the loop; return its result."""
    if inspect.iscoroutinefunction(method):
        return await method(*arguments)
    return await asyncio.to_thread(method, *arguments)


# Running


@asynccontextmanager
async def workers(queues: Sequence[Any], load: Load, **options: Any) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Have a worker run over each queue, which must have its tasks; at the end all are stopped and have ended."""
    global _load
    _load = load
    made = [Worker(queue, **options) for queue in queues]
    load.slots = sum(worker.concurrency for worker in made)
    running = [asyncio.ensure_future(worker.run()) for worker in made]
    try:
        await asyncio.sleep(0)  # they begin: a worker that has not cannot be stopped
        yield running
    finally:
        for worker in made:
            worker.stop()
        await asyncio.gather(*running)


async def run_until(queues: Sequence[Any], number: int, patience: float, **options: Any) -> tuple[ClientReport, Load]:
    """Have workers run until a number of jobs have ended.

    Raises:
        LoadNotFinished: They have not within ``patience`` seconds.
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
    """Return the starts per second of jobs, of which ``places`` begin together.

    The first ones are left out, as the seconds of a worker's own start are.
    """
    places = min(places, len(times) - 1)
    return (len(times) - places) / max(times[-1] - times[0], 1e-9)


# The other tenant


@dataclass(frozen=True)
class Backlog:
    """A tenant's jobs.

    Attributes:
        task: What `declare` returned for `held`.
        number: How many wait.
        seconds: For how long each holds its slot.
        keys: How many limits they are under.
    """

    task: Any
    number: int
    seconds: float
    keys: int


async def sample_starts(
    queues: Sequence[Any], backlog: Backlog, *, samples: int, patience: float, **options: Any
) -> tuple[ClientReport, int]:
    """Have workers run a tenant's backlog, and put a job of another tenant from time to time.

    The workers start `STARTS` times, as what a worker keeps in memory of the backlog is part of what is measured.
    What has ended of the backlog is put again, so that it keeps its length.

    Args:
        queues: A queue for each worker, which have the backlog's task. The first one is put over, too.
        backlog: The tenant's jobs.
        samples: Jobs of the other tenant, at most.
        patience: Seconds that all samples may take. The first job that has not started by then counts as started.
        options: Of `Worker`.

    Returns:
        What was done, with the seconds until the other tenant's jobs started as its times, each counted from the
        moment at which the job was put and a slot was free; and how many of the jobs did not start.
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
                load.watch()
                asked_at = clock()
                ids += await put(queues[0], [others[0].call()])
                waiting = asyncio.ensure_future(sample.event.wait())
                until = max(end - clock(), 0.1)
                await asyncio.wait({waiting, *running}, timeout=until, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if not sample.event.is_set():
                    times.append(clock() - asked_at)
                    break
                free = load.freed if load.freed < sample.started else asked_at
                times.append(sample.started - max(asked_at, free))
    report = load.report(began, ids)
    report.taken += sample.taken
    report.count += len(sample.taken)
    report.times = times
    return report, len(times) - len(sample.taken)


STARTS = 4
"""Starts of the workers, between which the samples are divided."""


async def _busy(load: Load, number: int, end: float) -> None:
    """Wait until a number of jobs have begun, or until a time."""
    while len(load.taken) < number and clock() < end:  # noqa: ASYNC110 - jobs tell nobody
        await asyncio.sleep(0.01)


async def feed(
    queues: Sequence[Any], calls: Sequence[Any], feeding: Any, seconds: float, **options: Any
) -> ClientReport:
    """Have workers run for some seconds from their first job on, and put jobs so that they always have some.

    Args:
        queues: A queue for each worker, which have their tasks.
        calls: What is put, again and again, in turn.
        feeding: The queue over which they are put.
        seconds: How long.
        options: Of `Worker`.
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
"""Jobs that wait, at most, while workers are fed."""


async def run_for(queues: Sequence[Any], seconds: float, patience: float, **options: Any) -> tuple[ClientReport, Load]:
    """Have workers run for some seconds from their first job on, which must begin within ``patience`` seconds."""
    load, began = Load(), clock()
    async with workers(queues, load, **options):
        await _busy(load, 1, began + patience)
        await asyncio.sleep(seconds)
    return load.report(began), load


def parts_of(load: Load, marks: Sequence[str], seconds: float) -> dict[str, float]:
    """Return what part of the jobs that began within some seconds of the first has each of the marks."""
    number = sum(time <= load.times[0] + seconds for time in load.times)
    began = load.marks[:number]
    return {mark: began.count(mark) / number for mark in marks}
