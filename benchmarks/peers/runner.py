"""One system, measured in a process of its own: what a system offers, how each workload is measured, the protocol.

Runs in a peer's environment, so it imports nothing but the standard library.

A process reads requests from stdin, one JSON object a line, and answers each with one on stdout:

    {"do": "setup", "dsn": "postgresql://..."}               -> {"version": ..., "how": {"put": ..., ...}, ...}
    {"do": "measure", "workload": "worker", ...}             -> {"figure": ..., "lost": 0, "repeated": 0, ...}

or, of a workload that is measured in slices, so that systems can take turns every moment,

    {"do": "begin", "workload": "get", "seconds": 0.3}       -> {}
    {"do": "slice", "seconds": 0.02}, as often as wanted     -> {"operations": ..., "seconds": ...}
    {"do": "end"}                                            -> {"lost": 0, "repeated": 0}

and ends when stdin does.  {"do": "age", "jobs": 2000} makes dead rows, for what is measured beside an old snapshot.
An answer {"error": "..."} says what went wrong.  Whatever a library prints goes to stderr.  All times are taken
here, beside the calls, so the protocol costs the figures nothing.
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
"""Jobs that wait when one is taken at a time."""

MANY = 1_000
"""Jobs put in one call."""

BATCH = 100
"""Jobs taken in one call."""

HELD_AT_ONCE = 100_000
"""Jobs put in one call, where memory is measured."""

CROWD = 2_000
"""Jobs that wait under a key, when one of another key is put."""

HELD = 0.2
"""Seconds that each of them takes."""

PLACES = 2
"""Jobs of a key that may run together, where a system can say how many."""

PLACES_OF_WORKER = 20
"""Slots of the worker that runs jobs of keys."""

KEYED_PATIENCE = 20.0
"""Seconds that all jobs of the other key may take, and that jobs under a limit may."""

CALLERS = 64
"""Threads or tasks of one process that call concurrently."""

POOL = 20
"""Connections that they share, where a system does not say how many: the best of 10, 20 and 64 for PGMQ."""

PATIENCE = 40.0
"""Seconds that a worker, or one job on its way, may take."""

clock = time.perf_counter


@dataclass(frozen=True)
class Workload:
    """What is measured.

    Attributes:
        key: Its name in requests and reports.
        title: Its name in tables.
        unit: ``/s``: jobs a second, the more the better; ``ms``: milliseconds, ``MB``: of memory, the fewer the better.
        what: What is done and counted.
        sliced: Whether it is measured in slices.
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
        jobs: What identifies each, in the order they were run.
        all: Set once as many were run as were put.
    """

    def __init__(self, expected: int) -> None:
        self.jobs: list[int] = []
        self.all = asyncio.Event()
        self._expected = expected
        self._loop = asyncio.get_running_loop()

    def ran(self, job: int) -> None:
        """Note a job; from any thread."""
        self.jobs.append(job)
        if len(self.jobs) == self._expected:
            self._loop.call_soon_threadsafe(self.all.set)


Taken = Callable[[], None]
Ran = Callable[[str], None]
"""Is told of the key of a job that runs."""


class System(ABC):
    """A queue, as its documentation says to use it.

    A subclass implements what it has, and says how in `how`; the rest is not measured.  A blocking
    system's methods block.  Jobs carry a number.
    """

    name: ClassVar[str]
    """What it is called."""
    how: ClassVar[Mapping[str, str]]
    """How it does each workload that it has, by `Workload.key`."""
    alike: ClassVar[Mapping[str, str]] = {}
    """Workloads that it does as it does another, so they are not measured again."""
    threads: ClassVar[bool] = False
    """Whether its concurrent callers are threads, as its methods block; else they are tasks."""
    uvloop: ClassVar[bool] = False
    """Whether its own programs run under uvloop."""
    tables: ClassVar[Sequence[str]]
    """The tables that hold jobs."""
    unfinished: ClassVar[str]
    """The statement that counts the jobs that are not finished."""

    least: int = 1_000
    """Jobs that its worker is given, at least, where there is time."""

    version: str = ""
    """The version that was installed, known after `setup`."""

    @abstractmethod
    async def setup(self, dsn: str) -> None:
        """Connect, and make the tables."""

    @abstractmethod
    async def sql(self, statement: str) -> Any:
        """Run a statement, committed; the first column of its first row, if it has one."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    async def reset(self) -> None:
        """Have no jobs, and no dead rows."""
        await self.sql(f"TRUNCATE {', '.join(self.tables)} CASCADE")

    async def settle(self) -> None:
        """Let the planner know what is there, as autovacuum would."""
        await self.sql(f"ANALYZE {', '.join(self.tables)}")

    async def count(self) -> int:
        """How many jobs are not finished."""
        return int(await self.sql(self.unfinished))

    async def fill(self, n: int) -> None:
        """Have ``n`` jobs wait; not timed."""
        for first in range(0, n, MANY):
            await self.put_many(range(first, min(n, first + MANY)))

    async def fill_calls(self, n: int) -> None:
        """Have ``n`` jobs wait for a worker."""
        await self.fill(n)

    async def put_call(self, number: int) -> None:
        """Put a job for a worker."""
        await self.put(number)

    async def put(self, number: int) -> None:
        """Put a job."""
        raise NotImplementedError

    async def put_many(self, numbers: Sequence[int]) -> None:
        """Put jobs at once."""
        raise NotImplementedError

    async def get(self) -> int | None:
        """Take and finish a job; what identifies it, None if there was none."""
        raise NotImplementedError

    async def lease(self) -> int | None:
        """Claim a job, and finish it in a further commit."""
        raise NotImplementedError

    async def get_many(self, n: int) -> Sequence[int]:
        """Take and finish up to ``n`` jobs."""
        raise NotImplementedError

    async def shared(self) -> System:
        """Return the system whose `put`, `get` and `lease` `CALLERS` callers may call concurrently."""
        return self

    async def unshare(self) -> None:
        """Disconnect what `shared` connected."""
        return

    async def work(self, seen: Seen) -> float:
        """Run a worker until all jobs are finished; when they were, by `clock`."""
        raise NotImplementedError

    async def wait(self, taken: Taken, stop: threading.Event) -> None:
        """Take and finish jobs as they come; once ``stop`` is set, one more."""
        raise NotImplementedError

    async def serve(self, taken: Taken) -> None:
        """Run a worker, whose job calls ``taken``, until cancelled."""
        raise NotImplementedError

    async def put_keyed(self, key: str, number: int, seconds: float) -> None:
        """Put jobs of a key, of which `PLACES` may run together; each takes some seconds."""
        raise NotImplementedError

    async def serve_keyed(self, ran: Ran) -> None:
        """Run a worker of `PLACES_OF_WORKER` slots, whose jobs first call ``ran``, until cancelled."""
        raise NotImplementedError

    async def until_finished(self) -> float:
        """Wait until no job is left, looking often; when that was."""
        while await self.count():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.002)
        return clock()


async def in_thread(body: Callable[[], None]) -> None:
    """Run something that blocks beside the loop; it is to end by itself, also when this is cancelled."""
    running = asyncio.get_running_loop().run_in_executor(None, body)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await running
        raise


class MeasurementFailed(Exception):
    """A workload could not be measured as it should be."""


@dataclass
class Slices:
    """A workload that is measured in slices, while it is.

    Attributes:
        key: The workload.
        put: How many jobs there were, or were put meanwhile.
        jobs: Those that were taken.
        operations, seconds: All slices together.
    """

    key: str
    put: int = 0
    jobs: list[int] = field(default_factory=list)
    operations: int = 0
    seconds: float = 0.0


@dataclass
class Measuring:
    """Measures the workloads of a system, and sees to it that no job is lost on the way.

    Each begins with empty tables.  The first of each is a warm-up, to be thrown away: it also tells how many
    jobs the next should have.

    Attributes:
        system: What is measured.
        rates: Jobs a second, as last measured, by workload.
        held: MB that the process had before its memory was measured for the first time.
        slices: The workload that was begun.
    """

    system: System
    rates: dict[str, float] = field(default_factory=dict)
    held: float | None = None
    slices: Slices = field(default_factory=lambda: Slices(""))

    # In slices

    async def begin(self, workload: str, seconds: float) -> None:
        """Begin a workload that is measured for so many seconds in all."""
        if workload != "horizon":
            await self.system.reset()
        self.slices = Slices(workload)
        if not workload.startswith("put"):
            least = 10 * BATCH
            put = DEPTH if workload != "get_many" else self._number(workload, 1.3 * seconds, least, 300 * BATCH)
            await self._wait_to_be_taken(put)

    async def _wait_to_be_taken(self, number: int) -> None:
        """Have so many jobs wait, those that are left included."""
        await self.system.fill(number - await self.system.count())
        await self.system.settle()
        self.slices.put = number

    async def slice(self, seconds: float) -> dict[str, Any]:
        """Go on with it for some seconds; what was done, which is nothing if no job is left."""
        slices = self.slices
        before = slices.operations
        took = await self._steps[slices.key](self, seconds)
        slices.seconds += took
        return {"operations": slices.operations - before, "seconds": took}

    async def end(self) -> dict[str, Any]:
        """End it: the jobs that are gone and were not seen, and those that were seen twice."""
        slices = self.slices
        if slices.seconds:
            self.rates[slices.key] = slices.operations / slices.seconds
        different = len(set(slices.jobs))
        lost = slices.put - await self.system.count() - different
        if slices.key == "horizon":
            await self._take_the_rest()
        return {"lost": lost, "repeated": len(slices.jobs) - different}

    async def _take_the_rest(self) -> None:
        """Leave nothing to a worker but what is put for it."""
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

    # At once

    async def measure(self, workload: str, seconds: float, samples: int) -> dict[str, Any]:
        """Measure a workload.

        Args:
            workload: Its key.
            seconds: How long, about.
            samples: How many jobs, where a latency is measured.

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
            await self.system.put_many(range(10))  # it is connected
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
            await _by_callers(operation, 0, put, jobs, threads=shared.threads)  # one call each, which connects
            before, began = len(jobs), clock()
            in_time = await _by_callers(operation, seconds, put, jobs, threads=shared.threads)
            slow = (len(jobs) - before) / (clock() - began)
        finally:
            await system.unshare()
        figure = self.rates[key] = in_time / seconds or slow  # a machine may be too busy for a call in time
        there = await system.count()
        different = len(jobs) if name == "put" else len(set(jobs))
        lost = different - there if name == "put" else put - there - different
        return {"figure": figure, "operations": len(jobs), "lost": lost, "repeated": len(jobs) - different}

    def _number(self, key: str, seconds: float, least: int, most: int) -> int:
        """How many jobs take so long, as last measured; whole batches."""
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
                await taker  # raises what ended it
                raise MeasurementFailed("what was to take jobs ended")
            return 1_000 * (at - began) if arrived.is_set() else None

        try:
            # It is not to be timed how a taker starts, and that may miss a job which is put meanwhile.
            await asyncio.sleep(0.2)
            while await once(0, 3) is None:
                if clock() - began > PATIENCE:
                    raise MeasurementFailed("no job was picked up")
            latencies: list[float] = []
            end = clock() + seconds
            for number in range(1, samples + 1):
                if clock() > end and latencies:
                    break  # this one is slow
                await asyncio.sleep(0.015 + 0.01 * (number * 0.618 % 1))  # idle again; at no fixed phase of any timer
                latency = await once(number, PATIENCE)
                if latency is None:
                    raise MeasurementFailed(f"a job was not picked up within {PATIENCE:.0f} s")
                latencies.append(latency)
        finally:
            if stop is not None:
                stop.set()
                with contextlib.suppress(Exception):
                    await put(0)  # one that waits in a thread ends when it has got another
                await asyncio.wait({taker}, timeout=2)
            for _ in range(5):  # some take a cancellation for a time-out
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
            for _ in range(200):  # what ran is finished a little later
                if not await self.system.count():
                    break
                await asyncio.sleep(0.01)
            left = await self.system.count()
        if len(times) < 2:
            raise MeasurementFailed(f"{len(times)} of {n:,} jobs ran within {KEYED_PATIENCE:.0f} s")
        figure = (len(times) - 1) / (times[-1] - times[0])  # of a slow one, those that ran in time
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
        """Put and take jobs, under an old snapshot that the caller holds; the horizon's workloads follow."""
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
    """Return what Linux says of the memory of this process: ``VmRSS``, what it has; ``VmHWM``, the most it has had."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MeasurementFailed("this system does not say how much memory a process has") from error
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


async def _by_callers(
    operation: Callable[[], Coroutine[Any, Any, Any]], seconds: float, most: int, jobs: list[Any], *, threads: bool
) -> int:
    """Have callers do an operation again and again, each one call after the other, and at least one.

    Args:
        operation: Puts or takes a job.
        seconds: How long.
        most: How many jobs can be taken; 0 where jobs are put.
        jobs: Is told what each call returned, if that was a job or a put.
        threads: Whether the callers are threads.

    Returns:
        How many calls returned in time.
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
                continue  # others had locked what is left
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
    """Run a worker for jobs of keys, and end it."""
    serving = asyncio.create_task(system.serve_keyed(ran))
    try:
        yield serving
    finally:
        for _ in range(5):  # some take a cancellation for a time-out
            serving.cancel()
            await asyncio.wait({serving}, timeout=2)
            if serving.done():
                break
        if serving.done() and not serving.cancelled() and (error := serving.exception()) is not None:
            raise error


async def _first(event: asyncio.Event, serving: asyncio.Task[None], patience: float) -> None:
    """Wait for something for some seconds, unless the worker ends."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({waiting, serving}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if serving.done():
        await serving  # raises what ended it
        raise MeasurementFailed("the worker ended")


# The protocol


def main(system: System) -> None:
    """Answer requests until stdin ends."""
    logging.disable(logging.WARNING)  # of everyone
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
    """What an error says, and what it comes from."""
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
