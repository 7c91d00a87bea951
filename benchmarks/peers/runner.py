"""One system, measured in a process of its own: what a system offers, how each workload is measured, the protocol.

Runs in a peer's environment, so it imports nothing but the standard library.

A process reads requests from stdin, one JSON object a line, and answers each with one on stdout:

    {"do": "setup", "dsn": "postgresql://..."}      -> {"version": ..., "python": ..., "how": {...}, "alike": {...}}
    {"do": "measure", "workload": "put", ...}       -> {"figure": ..., "lost": 0, "repeated": 0, ...}

and ends when stdin does.  An answer {"error": "..."} says what went wrong.  Whatever a library prints goes
to stderr.  All times are taken here, beside the calls, so the protocol costs the figures nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
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
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, ClassVar

DEPTH = 2_000
"""Jobs that wait when one is taken at a time."""

MANY = 1_000
"""Jobs put in one call."""

BATCH = 100
"""Jobs taken in one call."""

CHUNK = 200
"""Jobs that a worker is given at once where dead rows are to be made."""

DEAD = 20_000
"""Jobs put and taken under an old snapshot before one at a time is, or as many as go in four times the time."""

PATIENCE = 60.0
"""Seconds that a worker, or one job on its way, may take."""

clock = time.perf_counter


@dataclass(frozen=True)
class Workload:
    """What is measured.

    Attributes:
        key: Its name in requests and reports.
        title: Its name in tables.
        unit: ``/s``: jobs a second, the more the better; ``ms``: milliseconds, the fewer the better.
        what: What is done and counted.
    """

    key: str
    title: str
    unit: str
    what: str


WORKLOADS = (
    Workload("put", "put 1", "/s", "one job a call, each committed"),
    Workload("put_many", f"put {MANY:,}", "/s", f"{MANY:,} jobs a call"),
    Workload("get", "get 1", "/s", f"one job at a time of {DEPTH:,}, taken and finished in the system's quickest way"),
    Workload("lease", "lease 1", "/s", f"one job at a time of {DEPTH:,}, claimed, and then finished: two commits"),
    Workload("get_many", f"get {BATCH}", "/s", f"{BATCH} jobs at a time, taken and finished"),
    Workload("worker", "worker", "/s", "no-op jobs through one worker process, from its start until all are finished"),
    Workload("pickup", "pickup", "ms", "from the call that puts a job to a waiting taker: the median"),
    Workload("serve", "pickup, worker", "ms", "from the call that puts a job to its function in an idle worker"),
    Workload(
        "horizon",
        "old snapshot",
        "/s",
        f"get 1 while a session holds an old snapshot, after {DEAD:,} jobs, or as many as the system takes in a while",
    ),
)


class Seen:
    """The jobs that a worker has run.

    Attributes:
        jobs: What identifies each, in the order they were run.
        all: Set once as many were run as were put.
    """

    def __init__(self, expected: int) -> None:
        self.jobs: list[Hashable] = []
        self.all = asyncio.Event()
        self._expected = expected
        self._loop = asyncio.get_running_loop()

    def ran(self, job: Hashable) -> None:
        """Note a job; from any thread."""
        self.jobs.append(job)
        if len(self.jobs) == self._expected:
            self._loop.call_soon_threadsafe(self.all.set)


Taken = Callable[[], None]


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
    uvloop: ClassVar[bool] = False
    """Whether its own programs run under uvloop."""
    tables: ClassVar[Sequence[str]]
    """The tables that hold jobs."""
    unfinished: ClassVar[str]
    """The statement that counts the jobs that are not finished."""

    least: int = 200
    """Jobs that its worker is given, at least."""

    version: str = ""
    """The version that was installed, known after `setup`."""

    @abstractmethod
    async def setup(self, dsn: str) -> None:
        """Connect, and make the tables."""

    @abstractmethod
    async def sql(self, statement: str) -> Any:
        """Run a statement, committed; the first column of its first row, if it has one."""

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

    async def get(self) -> Hashable:
        """Take and finish a job; what identifies it, None if there was none."""
        raise NotImplementedError

    async def lease(self) -> Hashable:
        """Claim a job, and finish it in a further commit."""
        raise NotImplementedError

    async def get_many(self, n: int) -> Sequence[Hashable]:
        """Take and finish up to ``n`` jobs."""
        raise NotImplementedError

    async def work(self, seen: Seen) -> float:
        """Run a worker until all jobs are finished; when they were, by `clock`."""
        raise NotImplementedError

    async def wait(self, taken: Taken, stop: threading.Event) -> None:
        """Take and finish jobs as they come; once ``stop`` is set, one more."""
        raise NotImplementedError

    async def serve(self, taken: Taken) -> None:
        """Run a worker, whose job calls ``taken``, until cancelled."""
        raise NotImplementedError

    async def until_finished(self) -> float:
        """Wait until no job is left, looking often; when that was."""
        while await self.count():
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


class Failed(Exception):
    """A workload could not be measured as it should be."""


@dataclass
class Measuring:
    """Measures the workloads of a system, and sees to it that no job is lost on the way.

    Each begins with empty tables.  The first of each is a warm-up, to be thrown away: it also tells how many
    jobs the next should have.

    Attributes:
        system: What is measured.
        rates: Jobs a second, as last measured, by workload.
    """

    system: System
    rates: dict[str, float] = field(default_factory=dict)

    async def measure(self, workload: str, seconds: float, samples: int) -> dict[str, Any]:
        """Measure a workload.

        Args:
            workload: Its key.
            seconds: How long, about.
            samples: How many jobs, where a latency is measured.

        Returns:
            ``figure``, ``operations``, ``lost``, ``repeated``; and ``latencies`` in milliseconds, or how many jobs were
            taken ``before``, under an old snapshot.
        """
        measures: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "put": lambda: self._put(seconds),
            "put_many": lambda: self._put_many(seconds),
            "get": lambda: self._get("get", self.system.get, seconds),
            "lease": lambda: self._get("lease", self.system.lease, seconds),
            "get_many": lambda: self._get_many(seconds),
            "worker": lambda: self._worker(seconds),
            "pickup": lambda: self._pickup(samples, 5 * seconds),
            "serve": lambda: self._serve(samples, 5 * seconds),
            "horizon": lambda: self._horizon(seconds),
        }
        await self.system.reset()
        return await measures[workload]()

    async def _put(self, seconds: float) -> dict[str, Any]:
        put = self.system.put
        done = 0
        began = clock()
        end = began + seconds
        while clock() < end:
            await put(done)
            done += 1
        took = clock() - began
        return self._rate("put", done, took, lost=done - await self.system.count())

    async def _put_many(self, seconds: float) -> dict[str, Any]:
        done = 0
        took = 0.0
        while took < seconds:
            numbers = range(done, done + MANY)
            began = clock()
            await self.system.put_many(numbers)
            took += clock() - began
            done += MANY
        return self._rate("put_many", done, took, lost=done - await self.system.count())

    async def _get(self, key: str, get: Callable[[], Awaitable[Hashable]], seconds: float) -> dict[str, Any]:
        await self.system.fill(DEPTH - await self.system.count())
        await self.system.settle()
        jobs: list[Hashable] = []
        began = clock()
        end = began + seconds
        while clock() < end and len(jobs) < DEPTH:
            job = await get()
            if job is None:
                break
            jobs.append(job)
        took = clock() - began
        return await self._taken(key, DEPTH, jobs, took)

    async def _get_many(self, seconds: float) -> dict[str, Any]:
        n = self._number("get_many", seconds, 10 * BATCH, 300 * BATCH)
        await self.system.fill(n)
        await self.system.settle()
        jobs: list[Hashable] = []
        began = clock()
        while len(jobs) < n and clock() - began < 4 * seconds:
            found = await self.system.get_many(BATCH)
            if not found:
                break
            jobs += found
        took = clock() - began
        return await self._taken("get_many", n, jobs, took)

    async def _worker(self, seconds: float) -> dict[str, Any]:
        n = self._number("worker", 1.5 * seconds, self.system.least, 300 * BATCH)
        await self.system.fill_calls(n)
        await self.system.settle()
        seen = Seen(n)
        began = clock()
        ended = await asyncio.wait_for(self.system.work(seen), PATIENCE)
        different = len(set(seen.jobs))
        lost = max(n - different, await self.system.count())
        return self._rate("worker", n, ended - began, lost, len(seen.jobs) - different)

    def _number(self, key: str, seconds: float, least: int, most: int) -> int:
        """How many jobs take so long, as last measured; whole batches."""
        wanted = math.ceil(self.rates.get(key, 0) * seconds / BATCH) * BATCH
        return max(least, min(most, wanted))

    async def _taken(self, key: str, put: int, jobs: Sequence[Hashable], took: float) -> dict[str, Any]:
        """What was found, with the jobs that are gone and were not seen, and those seen twice."""
        gone = put - await self.system.count()
        different = len(set(jobs))
        return self._rate(key, len(jobs), took, gone - different, len(jobs) - different)

    def _rate(self, key: str, done: int, took: float, lost: int, repeated: int = 0) -> dict[str, Any]:
        self.rates[key] = done / took
        return {"figure": done / took, "operations": done, "seconds": took, "lost": lost, "repeated": repeated}

    # Latencies

    async def _pickup(self, samples: int, seconds: float) -> dict[str, Any]:
        stop = threading.Event()
        return await self._latencies(samples, seconds, lambda taken: self.system.wait(taken, stop), self.system.put, stop)

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

        async def once(number: int) -> float:
            arrived.clear()
            began = clock()
            await put(number)
            waiting = asyncio.create_task(arrived.wait())
            await asyncio.wait({waiting, taker}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                if taker.done():
                    await taker
                raise Failed(f"a job was not picked up within {PATIENCE:.0f} s")
            return 1_000 * (at - began)

        try:
            await once(0)  # it is not to be timed how a taker starts
            latencies: list[float] = []
            end = clock() + seconds
            for number in range(1, samples + 1):
                if clock() > end and len(latencies) > 2:
                    break  # this one is slow
                await asyncio.sleep(0.015 + 0.01 * (number * 0.618 % 1))  # idle again; at no fixed phase of any timer
                latencies.append(await once(number))
        finally:
            if stop is not None:
                stop.set()
                with contextlib.suppress(Exception):
                    await put(0)  # one that waits in a thread ends when it has got another
            taker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await taker
        middle = sorted(latencies)[len(latencies) // 2]
        return {"figure": middle, "latencies": latencies, "operations": len(latencies), "lost": 0, "repeated": 0}

    # Dead rows

    async def _horizon(self, seconds: float) -> dict[str, Any]:
        """Jobs are put and taken, quickly; then some are taken one at a time, and timed.  The caller holds the snapshot."""
        how = self.system.how
        before = 0
        end = clock() + 4 * seconds
        while before < DEAD and clock() < end:
            before += await self._age(end)
        get = self.system.get if "get" in how else self.system.lease if "lease" in how else None
        found = await self._worker(seconds) if get is None else await self._get("horizon", get, seconds)
        return {**found, "before": before}

    async def _age(self, end: float) -> int:
        """Put and take jobs, until a time at most; how many were taken."""
        system = self.system
        if "get_many" not in system.how and "worker" in system.how:
            await system.fill_calls(CHUNK)
            seen = Seen(CHUNK)
            await asyncio.wait_for(system.work(seen), PATIENCE)
            return len(seen.jobs)
        await system.fill(MANY)
        taken = 0
        while taken < MANY and (clock() < end or taken == 0):
            taken += len(await system.get_many(BATCH))
        return taken


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
            answer = {"error": f"{type(error).__name__}: {error}".strip(": ").partition("\n")[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    if ready:
        await system.close()


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
    return await measuring.measure(request["workload"], request["seconds"], request["samples"])
