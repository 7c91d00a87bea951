"""One system, measured in its own process: the methods of a system, the measurement of each workload, and the protocol.

This module runs in a peer's environment, so it imports only the standard library.

The process reads requests from stdin, one JSON object on each line, and answers each with one on stdout:

    {"do": "setup", "dsn": "postgresql://..."}               -> {"version": ..., "how": {"put": ..., ...}, ...}
    {"do": "measure", "workload": "worker", ...}             -> {"figure": ..., "lost": 0, "repeated": 0, ...}

or, for a workload that is measured in slices, so that systems can alternate quickly,

    {"do": "begin", "workload": "get", "seconds": 0.3}       -> {}
    {"do": "slice", "seconds": 0.02}, as often as wanted     -> {"operations": ..., "seconds": ...}
    {"do": "end"}                                            -> {"lost": 0, "repeated": 0}

and ends when stdin does. {"do": "age", "jobs": 2000} makes dead rows, for workloads under an old snapshot. An answer
{"error": "..."} says what went wrong. Output of libraries goes to stderr. All times are measured here, around the
calls, so the protocol does not affect the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import json
import logging
import math
import os
import platform
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar

DEPTH = 2_000
"""The number of waiting jobs when jobs are taken one by one."""

MANY = 1_000
"""The number of jobs put in one call."""

BATCH = 100
"""The number of jobs taken in one call."""

HELD_AT_ONCE = 100_000
"""The number of jobs put in one call when memory is measured."""

CROWD = 2_000
"""The number of jobs that wait under a key when a job of another key is put."""

HELD = 0.2
"""Seconds that each of these jobs takes."""

PLACES = 2
"""The number of jobs of a key that may run concurrently, if a system can limit it."""

PLACES_OF_WORKER = 20
"""The number of slots of the worker that runs jobs of keys."""

KEYED_PATIENCE = 20.0
"""Seconds that all jobs of the other key may take, and that jobs under a limit may take."""

CALLERS = 64
"""The number of threads or tasks of one process that call concurrently."""

POOL = 20
"""The number of connections that they share, if a system has no default: the best of 10, 20 and 64 for PGMQ."""

PATIENCE = 40.0
"""Seconds that a worker may take, or a single job."""

clock = time.perf_counter


@dataclass(frozen=True)
class Workload:
    """A workload.

    Attributes:
        key: The name in requests and reports.
        title: The name in tables.
        unit: ``/s``: jobs per second, where more is better; ``ms``: milliseconds, or ``MB``: memory, where less is
            better.
        what: A description of what is done and counted.
        sliced: Whether the workload is measured in slices.
    """

    key: str
    title: str
    unit: str
    what: str
    sliced: bool = False


MEMORY = "memory"
"""The workload whose figure is memory."""
CONCURRENT = ("concurrent_put", "concurrent_get", "concurrent_lease")
"""The workloads of concurrent callers."""

_AGED = "after others were put and taken"

WORKLOADS = (
    Workload(
        MEMORY,
        "memory",
        "MB",
        f"the most memory of the process while it puts {HELD_AT_ONCE:,} jobs in one call, over what it had before",
    ),
    Workload("put", "put 1", "/s", "one job a call, each committed", sliced=True),
    Workload("put_many", f"put {MANY:,}", "/s", f"{MANY:,} jobs a call", sliced=True),
    Workload("get", "get 1", "/s", f"one job at a time of {DEPTH:,}, taken and finished the quickest way", sliced=True),
    Workload(
        "lease", "lease 1", "/s", f"one job at a time of {DEPTH:,}, claimed, then finished: two commits", sliced=True
    ),
    Workload("get_many", f"get {BATCH}", "/s", f"{BATCH} jobs at a time, taken and finished", sliced=True),
    Workload("worker", "worker", "/s", "no-op jobs through one worker process, from its start until all are finished"),
    Workload("pickup", "pickup", "ms", "from the call that puts a job to a waiting taker: the median"),
    Workload("serve", "pickup, worker", "ms", "from the call that puts a job to its function in an idle worker"),
    Workload("horizon", "get 1, old", "/s", f"get 1 while a session holds an old snapshot, {_AGED}", sliced=True),
    Workload("horizon_worker", "worker, old", "/s", f"worker while a session holds an old snapshot, {_AGED}"),
    Workload(
        "limited",
        "worker, limited",
        "/s",
        f"no-op jobs of one key, of which {PLACES} may run together (1 where a system knows no other number)",
    ),
    Workload(
        "tenant",
        "other key",
        "ms",
        f"from the call that puts a job of another key to its function, while {CROWD:,} jobs of {HELD:g} s wait so",
    ),
    *(
        Workload(
            key, f"{key.removeprefix('concurrent_')} 1, {CALLERS}", "/s", f"{what}, by {CALLERS} callers of a process"
        )
        for key, what in zip(CONCURRENT, ("one job a call", "as get 1", "as lease 1"), strict=True)
    ),
)


class Seen:
    """The jobs that a worker has run.

    Attributes:
        jobs: The identity of each job, in the order of the runs.
        all: An event that is set after as many runs as puts.
    """

    def __init__(self, expected: int) -> None:
        self.jobs: list[int] = []
        self.all = asyncio.Event()
        self._expected = expected
        self._loop = asyncio.get_running_loop()

    def ran(self, job: int) -> None:
        """Record a job; any thread may call this."""
        self.jobs.append(job)
        if len(self.jobs) == self._expected:
            self._loop.call_soon_threadsafe(self.all.set)


Taken = Callable[[], None]
Ran = Callable[[str], None]
"""A function that is called with the key of a job that runs."""


class System(ABC):
    """A queue, used as its documentation says.

    A subclass implements the workloads that the system supports, and describes them in `how`; others are not measured.
    The methods of a blocking system block. Each job carries a number.
    """

    name: ClassVar[str]
    """The name of the system."""
    how: ClassVar[Mapping[str, str]]
    """The way in which the system does each supported workload, by `Workload.key`."""
    alike: ClassVar[Mapping[str, str]] = {}
    """Workloads that the system does in the same way as another, so that they are not measured again."""
    threads: ClassVar[bool] = False
    """Whether the concurrent callers are threads, because the methods block; otherwise they are tasks."""
    uvloop: ClassVar[bool] = False
    """Whether its own programs run under uvloop."""
    tables: ClassVar[Sequence[str]]
    """The tables that hold jobs."""
    unfinished: ClassVar[str]
    """The statement that counts the jobs that are not finished."""

    least: int = 1_000
    """The smallest number of jobs for the worker, if there is time."""

    version: str = ""
    """The installed version, known after `setup`."""

    @abstractmethod
    async def setup(self, dsn: str) -> None:
        """Connect, and make the tables."""

    @abstractmethod
    async def sql(self, statement: str) -> Any:
        """Run a statement and commit it; return the first column of its first row, if it has one."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    async def reset(self) -> None:
        """Remove all jobs and dead rows."""
        await self.sql(f"TRUNCATE {', '.join(self.tables)} CASCADE")

    async def settle(self) -> None:
        """Update the planner's statistics, as autovacuum would."""
        await self.sql(f"ANALYZE {', '.join(self.tables)}")

    async def count(self) -> int:
        """Return the number of unfinished jobs."""
        return int(await self.sql(self.unfinished))

    async def fill(self, n: int) -> None:
        """Make ``n`` jobs wait; this is not timed."""
        for first in range(0, n, MANY):
            await self.put_many(range(first, min(n, first + MANY)))

    async def fill_calls(self, n: int) -> None:
        """Make ``n`` jobs wait for a worker."""
        await self.fill(n)

    async def put_call(self, number: int) -> None:
        """Put a job for a worker."""
        await self.put(number)

    async def put(self, number: int) -> None:
        """Put a job."""
        raise NotImplementedError

    async def put_many(self, numbers: Sequence[int]) -> None:
        """Put jobs together."""
        raise NotImplementedError

    async def get(self) -> int | None:
        """Take and finish a job; return its identity, or None if there was none."""
        raise NotImplementedError

    async def lease(self) -> int | None:
        """Lease a job, and finish it in a second commit."""
        raise NotImplementedError

    async def get_many(self, n: int) -> Sequence[int]:
        """Take and finish up to ``n`` jobs."""
        raise NotImplementedError

    async def shared(self) -> System:
        """Return the system whose `put`, `get` and `lease` `CALLERS` callers may call concurrently."""
        return self

    async def unshare(self) -> None:
        """Disconnect the system that `shared` connected."""
        return

    async def work(self, seen: Seen) -> float:
        """Run a worker until all jobs are finished; return when they were, by `clock`."""
        raise NotImplementedError

    async def wait(self, taken: Taken, stop: threading.Event) -> None:
        """Take and finish jobs as they come; after ``stop`` is set, take one more."""
        raise NotImplementedError

    async def serve(self, taken: Taken) -> None:
        """Run a worker whose job calls ``taken``, until cancelled."""
        raise NotImplementedError

    async def put_keyed(self, key: str, number: int, seconds: float) -> None:
        """Put jobs of a key, of which `PLACES` may run concurrently; each takes some seconds."""
        raise NotImplementedError

    async def serve_keyed(self, ran: Ran) -> None:
        """Run a worker of `PLACES_OF_WORKER` slots, whose jobs first call ``ran``, until cancelled."""
        raise NotImplementedError

    async def until_finished(self) -> float:
        """Wait until no job is left, checking often; return when that was."""
        while await self.count():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.002)
        return clock()


async def in_thread(body: Callable[[], None]) -> None:
    """Run a blocking function next to the loop; it must end by itself, even if this is cancelled."""
    running = asyncio.get_running_loop().run_in_executor(None, body)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await running
        raise


class MeasurementFailed(Exception):
    """A workload could not be measured correctly."""


@dataclass
class Slices:
    """The state of a workload that is being measured in slices.

    Attributes:
        key: The workload.
        put: The number of jobs that existed, or were put meanwhile.
        jobs: The jobs that were taken.
        operations, seconds: The sums over all slices.
    """

    key: str
    put: int = 0
    jobs: list[int] = field(default_factory=list)
    operations: int = 0
    seconds: float = 0.0


@dataclass
class Measuring:
    """The measurement of a system's workloads, with a check that no job is lost.

    Each measurement begins with empty tables. The first measurement of each workload is a warm-up whose result is
    dropped; it also determines the number of jobs for the next.

    Attributes:
        system: The system.
        rates: The last measured jobs per second, by workload.
        held: The memory of the process, in MB, before its memory was measured for the first time.
        slices: The workload that was begun.
    """

    system: System
    rates: dict[str, float] = field(default_factory=dict)
    held: float | None = None
    slices: Slices = field(default_factory=lambda: Slices(""))

    # Measuring in slices

    async def begin(self, workload: str, seconds: float) -> None:
        """Begin a workload that is measured for this number of seconds in all."""
        if workload != "horizon":
            await self.system.reset()
        self.slices = Slices(workload)
        if not workload.startswith("put"):
            least = 10 * BATCH
            put = DEPTH if workload != "get_many" else self._number(workload, 1.3 * seconds, least, 300 * BATCH)
            await self._wait_to_be_taken(put)

    async def _wait_to_be_taken(self, number: int) -> None:
        """Make this number of jobs wait, including those that are left."""
        await self.system.fill(number - await self.system.count())
        await self.system.settle()
        self.slices.put = number

    async def slice(self, seconds: float) -> dict[str, Any]:
        """Continue for some seconds; return the work done, which is nothing if no job is left."""
        slices = self.slices
        before = slices.operations
        took = await self._steps[slices.key](self, seconds)
        slices.seconds += took
        return {"operations": slices.operations - before, "seconds": took}

    async def end(self) -> dict[str, Any]:
        """End the workload; return the jobs that disappeared, and those that were seen twice."""
        slices = self.slices
        if slices.seconds:
            self.rates[slices.key] = slices.operations / slices.seconds
        different = len(set(slices.jobs))
        lost = slices.put - await self.system.count() - different
        if slices.key == "horizon":
            await self._take_the_rest()
        return {"lost": lost, "repeated": len(slices.jobs) - different}

    async def _take_the_rest(self) -> None:
        """Leave a worker only the jobs that are put for it."""
        system = self.system
        if "get_many" in system.how:
            while await system.get_many(BATCH):
                pass
        else:
            while await system.lease() is not None:
                pass

    async def _put(self, seconds: float) -> float:
        put = self.system.put
        slices = self.slices
        began = clock()
        end = began + seconds
        while clock() < end:
            await put(slices.put)
            slices.put += 1
            slices.operations += 1
        return clock() - began

    async def _put_many(self, seconds: float) -> float:
        slices = self.slices
        took = 0.0
        while took < seconds:
            numbers = range(slices.put, slices.put + MANY)
            began = clock()
            await self.system.put_many(numbers)
            took += clock() - began
            slices.put += MANY
            slices.operations += MANY
        return took

    async def _get(self, seconds: float) -> float:
        return await self._get_by(self.system.get, seconds)

    async def _lease(self, seconds: float) -> float:
        return await self._get_by(self.system.lease, seconds)

    async def _horizon(self, seconds: float) -> float:
        return await self._get_by(self.system.get if "get" in self.system.how else self.system.lease, seconds)

    async def _get_by(self, get: Callable[[], Awaitable[int | None]], seconds: float) -> float:
        jobs = self.slices.jobs
        first = len(jobs)
        most = self.slices.put
        began = clock()
        end = began + seconds
        while clock() < end and len(jobs) < most:
            job = await get()
            if job is None:
                break
            jobs.append(job)
        took = clock() - began
        self.slices.operations += len(jobs) - first
        return took

    async def _get_many(self, seconds: float) -> float:
        jobs = self.slices.jobs
        first = len(jobs)
        most = self.slices.put
        began = clock()
        end = began + seconds
        while clock() < end and len(jobs) < most:
            found = await self.system.get_many(BATCH)
            if not found:
                break
            jobs += found
        took = clock() - began
        self.slices.operations += len(jobs) - first
        return took

    _steps: ClassVar[dict[str, Callable[[Measuring, float], Awaitable[float]]]] = {
        "put": _put,
        "put_many": _put_many,
        "get": _get,
        "lease": _lease,
        "get_many": _get_many,
        "horizon": _horizon,
    }

    # Measuring in one piece

    async def measure(self, workload: str, seconds: float, samples: int) -> dict[str, Any]:
        """Measure a workload.

        Args:
            workload: The key of the workload.
            seconds: The approximate length.
            samples: The number of jobs for a latency.

        Returns:
            ``figure``, ``operations``, ``lost``, ``repeated``; and ``latencies`` in milliseconds.
        """
        measures: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            MEMORY: self._memory,
            "worker": lambda: self._worker(seconds),
            "horizon_worker": lambda: self._worker(seconds),
            "pickup": lambda: self._pickup(samples, 5 * seconds),
            "serve": lambda: self._serve(samples, 5 * seconds),
            "limited": lambda: self._limited(seconds),
            "tenant": lambda: self._tenant(samples),
            **{key: partial(self._concurrent, key, seconds) for key in CONCURRENT},
        }
        if workload != "horizon_worker":
            await self.system.reset()
        return await measures[workload]()

    async def _memory(self) -> dict[str, Any]:
        if self.held is None:
            await self.system.put_many(range(10))  # the system is connected
            await self.system.reset()
            self.held = _megabytes("VmRSS")
        await self.system.put_many(range(HELD_AT_ONCE))
        lost = HELD_AT_ONCE - await self.system.count()
        figure = max(_megabytes("VmHWM") - self.held, 0.1)
        return {"figure": figure, "operations": HELD_AT_ONCE, "lost": max(lost, 0), "repeated": max(-lost, 0)}

    async def _worker(self, seconds: float) -> dict[str, Any]:
        least = math.ceil(self.system.least * min(1, seconds / 0.3))
        n = self._number("worker", 1.5 * seconds, least, 300 * BATCH)
        await self.system.fill_calls(n)
        await self.system.settle()
        seen = Seen(n)
        began = clock()
        took = await asyncio.wait_for(self.system.work(seen), PATIENCE) - began
        self.rates["worker"] = n / took
        different = len(set(seen.jobs))
        lost = max(n - different, await self.system.count())
        return {"figure": n / took, "operations": n, "lost": lost, "repeated": len(seen.jobs) - different}

    async def _concurrent(self, key: str, seconds: float) -> dict[str, Any]:
        system, name = self.system, key.removeprefix("concurrent_")
        put = 0
        if name != "put":
            put = self._number(key, 2 * seconds, DEPTH, 1_000 * BATCH)
            await system.fill(put)
            await system.settle()
        shared = await system.shared()
        numbers = itertools.count()
        operation = (lambda: shared.put(next(numbers))) if name == "put" else getattr(shared, name)
        jobs: list[Any] = []
        try:
            await _by_callers(operation, 0, put, jobs, threads=shared.threads)  # one call of each kind, which connects
            before, began = len(jobs), clock()
            in_time = await _by_callers(operation, seconds, put, jobs, threads=shared.threads)
            slow = (len(jobs) - before) / (clock() - began)
        finally:
            await system.unshare()
        figure = self.rates[key] = in_time / seconds or slow  # the machine may be too busy for a call in time
        there = await system.count()
        different = len(jobs) if name == "put" else len(set(jobs))
        lost = different - there if name == "put" else put - there - different
        return {"figure": figure, "operations": len(jobs), "lost": lost, "repeated": len(jobs) - different}

    def _number(self, key: str, seconds: float, least: int, most: int) -> int:
        """Return how many jobs take this long, by the last measurement, in whole batches."""
        wanted = math.ceil(self.rates.get(key, 0) * seconds / BATCH) * BATCH
        return max(least, min(most, wanted))

    # Latencies

    async def _pickup(self, samples: int, seconds: float) -> dict[str, Any]:
        stop = threading.Event()
        return await self._latencies(
            samples, seconds, lambda taken: self.system.wait(taken, stop), self.system.put, stop
        )

    async def _serve(self, samples: int, seconds: float) -> dict[str, Any]:
        return await self._latencies(samples, seconds, self.system.serve, self.system.put_call, None)

    async def _latencies(
        self,
        samples: int,
        seconds: float,
        take: Callable[[Taken], Coroutine[Any, Any, None]],
        put: Callable[[int], Awaitable[None]],
        stop: threading.Event | None,
    ) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        at = 0.0

        def taken() -> None:
            nonlocal at
            at = clock()
            loop.call_soon_threadsafe(arrived.set)

        taker = asyncio.create_task(take(taken))
        began = clock()

        async def once(number: int, patience: float) -> float | None:
            arrived.clear()
            began = clock()
            await put(number)
            waiting = asyncio.create_task(arrived.wait())
            await asyncio.wait({waiting, taker}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if taker.done():
                await taker  # raises the error that ended it
                raise MeasurementFailed("what was to take jobs ended")
            return 1_000 * (at - began) if arrived.is_set() else None

        try:
            # The start of a taker must not be timed, and the taker may miss a job that is put during its start.
            await asyncio.sleep(0.2)
            while await once(0, 3) is None:
                if clock() - began > PATIENCE:
                    raise MeasurementFailed("no job was picked up")
            latencies: list[float] = []
            end = clock() + seconds
            for number in range(1, samples + 1):
                if clock() > end and latencies:
                    break  # this system is slow
                await asyncio.sleep(0.015 + 0.01 * (number * 0.618 % 1))  # idle again, at a varying phase of any timer
                latency = await once(number, PATIENCE)
                if latency is None:
                    raise MeasurementFailed(f"a job was not picked up within {PATIENCE:.0f} s")
                latencies.append(latency)
        finally:
            if stop is not None:
                stop.set()
                with contextlib.suppress(Exception):
                    await put(0)  # a taker that waits in a thread ends after it has received another job
                await asyncio.wait({taker}, timeout=2)
            for _ in range(5):  # some systems take a cancellation for a timeout
                taker.cancel()
                await asyncio.wait({taker}, timeout=1)
                if taker.done():
                    break
            if taker.done() and not taker.cancelled() and (error := taker.exception()) is not None:
                raise error
        middle = sorted(latencies)[len(latencies) // 2]
        return {"figure": middle, "latencies": latencies, "operations": len(latencies), "lost": 0, "repeated": 0}

    # Keys

    async def _limited(self, seconds: float) -> dict[str, Any]:
        n = self._number("limited", 3 * seconds, round(300 * min(1, seconds / 0.3)), 100 * BATCH)
        await self.system.put_keyed("crowd", n, 0.0)
        await self.system.settle()
        times: list[float] = []
        all_ran = asyncio.Event()
        loop = asyncio.get_running_loop()

        def ran(key: str) -> None:
            times.append(clock())
            if len(times) == n:
                loop.call_soon_threadsafe(all_ran.set)

        async with _serving(self.system, ran) as serving:
            await _first(all_ran, serving, KEYED_PATIENCE)
            for _ in range(200):  # jobs that ran are finished a little later
                if not await self.system.count():
                    break
                await asyncio.sleep(0.01)
            left = await self.system.count()
        if len(times) < 2:
            raise MeasurementFailed(f"{len(times)} of {n:,} jobs ran within {KEYED_PATIENCE:.0f} s")
        figure = (len(times) - 1) / (times[-1] - times[0])  # for a slow system, the jobs that ran in time
        self.rates["limited"] = figure
        lost = max(n - len(times), left) if all_ran.is_set() else 0
        return {"figure": figure, "operations": len(times), "lost": lost, "repeated": max(len(times) - n, 0)}

    async def _tenant(self, samples: int) -> dict[str, Any]:
        await self.system.put_keyed("crowd", CROWD, HELD)
        await self.system.settle()
        loop = asyncio.get_running_loop()
        events = {"crowd": asyncio.Event(), "other": asyncio.Event()}
        at = 0.0

        def ran(key: str) -> None:
            nonlocal at
            if key == "other":
                at = clock()
            loop.call_soon_threadsafe(events[key].set)

        latencies: list[float] = []
        async with _serving(self.system, ran) as serving:
            await _first(events["crowd"], serving, KEYED_PATIENCE)
            end = clock() + KEYED_PATIENCE
            for number in range(1, samples + 1):
                if clock() > end:
                    break
                await asyncio.sleep(0.02 + 0.04 * (number * 0.618 % 1))
                events["other"].clear()
                began = clock()
                await self.system.put_keyed("other", 1, 0.0)
                await _first(events["other"], serving, max(end - clock(), 1))
                if not events["other"].is_set():
                    if latencies:
                        break
                    raise MeasurementFailed(f"the job of the other key did not start within {KEYED_PATIENCE:.0f} s")
                latencies.append(1_000 * (at - began))
        middle = sorted(latencies)[len(latencies) // 2]
        return {"figure": middle, "latencies": latencies, "operations": len(latencies), "lost": 0, "repeated": 0}

    # Dead rows

    async def age(self, number: int) -> None:
        """Put and take jobs under an old snapshot that the caller holds; the workloads for old snapshots follow."""
        await self.system.reset()
        for first in range(0, number, MANY):
            await self._put_and_take(min(MANY, number - first))

    async def _put_and_take(self, number: int) -> None:
        system = self.system
        if "get_many" not in system.how:
            await system.fill_calls(number)
            await system.settle()
            await asyncio.wait_for(system.work(Seen(number)), PATIENCE)
            return
        await system.fill(number)
        while number > 0:
            found = await system.get_many(min(number, BATCH))
            if not found:
                raise MeasurementFailed(f"{number} jobs that were put were not found")
            number -= len(found)


def _megabytes(name: str) -> float:
    """Return what Linux reports about this process's memory.

    ``VmRSS``, its present size, or ``VmHWM``, its largest size.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MeasurementFailed("this system does not say how much memory a process has") from error
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


async def _by_callers(
    operation: Callable[[], Coroutine[Any, Any, Any]], seconds: float, most: int, jobs: list[Any], *, threads: bool
) -> int:
    """Let callers repeat an operation, one call after the other, at least once.

    Args:
        operation: A function that puts or takes a job.
        seconds: The length.
        most: The number of jobs that can be taken; 0 if jobs are put.
        jobs: A list that receives the result of each call that was a job or a put.
        threads: Whether the callers are threads.

    Returns:
        The number of calls that returned in time.
    """
    until = clock() + seconds

    async def caller() -> int:
        in_time, calls = 0, 0
        while not calls or clock() < until:
            calls += 1
            job = await operation()
            if job is None and most:
                if len(jobs) >= most:
                    break
                continue  # other callers had locked the rest
            jobs.append(job)
            in_time += clock() < until
        return in_time

    if not threads:
        return sum(await asyncio.gather(*(caller() for _ in range(CALLERS))))
    barrier = threading.Barrier(CALLERS)

    def blocking() -> int:
        nonlocal until
        if barrier.wait() == 0:
            until = clock() + seconds
        barrier.wait()
        try:
            caller().send(None)
        except StopIteration as stop:
            return int(stop.value)
        raise MeasurementFailed("a call that blocks did not block")

    with ThreadPoolExecutor(CALLERS) as executor:
        return sum(done.result() for done in [executor.submit(blocking) for _ in range(CALLERS)])


@contextlib.asynccontextmanager
async def _serving(system: System, ran: Ran) -> AsyncIterator[asyncio.Task[None]]:
    """Run a worker for jobs of keys, and stop it."""
    serving = asyncio.create_task(system.serve_keyed(ran))
    try:
        yield serving
    finally:
        for _ in range(5):  # some systems take a cancellation for a timeout
            serving.cancel()
            await asyncio.wait({serving}, timeout=2)
            if serving.done():
                break
        if serving.done() and not serving.cancelled() and (error := serving.exception()) is not None:
            raise error


async def _first(event: asyncio.Event, serving: asyncio.Task[None], patience: float) -> None:
    """Wait for an event for some seconds, unless the worker ends."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({waiting, serving}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if serving.done():
        await serving  # raises the error that ended it
        raise MeasurementFailed("the worker ended")


# The protocol


def main(system: System) -> None:
    """Answer requests until stdin ends."""
    logging.disable(logging.WARNING)  # all exceptions, of any system
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if system.uvloop:
        with contextlib.suppress(ImportError):
            importlib.import_module("uvloop").run(_answer(system, answers))
            return
    asyncio.run(_answer(system, answers))


async def _answer(system: System, answers: IO[str]) -> None:
    measuring = Measuring(system)
    loop = asyncio.get_running_loop()
    ready = False
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            answer = await _carry_out(measuring, json.loads(line))
            ready = True
        except Exception as error:  # noqa: BLE001 - the caller tells of it, and goes on with others
            traceback.print_exc()
            answer = {"error": _said(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    if ready:
        await system.close()


def _said(error: BaseException) -> str:
    """Return the message of an error, and those of its causes."""
    said = f"{type(error).__name__}: {error}".strip(": ").partition("\n")[0]
    return said if error.__cause__ is None else f"{said} ({_said(error.__cause__)})"


async def _carry_out(measuring: Measuring, request: dict[str, Any]) -> dict[str, Any]:
    system = measuring.system
    if request["do"] == "setup":
        await system.setup(request["dsn"])
        return {
            "version": system.version,
            "python": platform.python_version(),
            "how": dict(system.how),
            "alike": dict(system.alike),
        }
    if request["do"] == "age":
        await measuring.age(request["jobs"])
        return {}
    if request["do"] == "begin":
        await measuring.begin(request["workload"], request["seconds"])
        return {}
    if request["do"] == "slice":
        return await measuring.slice(request["seconds"])
    if request["do"] == "end":
        return await measuring.end()
    return await measuring.measure(request["workload"], request["seconds"], request["samples"])
