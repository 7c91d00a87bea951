"""The process of one of two builds that are compared: it executes requests from its standard input.

Each request is a line with a JSON object, and so is each answer. The public methods of `BuildProcess` are the possible
requests. This code measures both builds: see `compare_builds`. So this module, and the benchmark modules that it
imports, use only public names of pqcore, because the other build may have other modules.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import pqcore

from .admission_calls import declare, held, limits_of, put_held, run_until, speed
from .backends import Location, closed, contenders
from .concurrent_calls import Callers, Turn
from .coroutines import run_sync
from .memory_calls import measured
from .operations import LIMITED, OF_BUILDS, OPERATIONS, QUEUE, awaited, calls, stepped
from .summary import percentile
from .worker_calls import drain, noop, per_job, put_calls

T = TypeVar("T")
PATIENCE = 100.0
"""Seconds that jobs under a limit may take, which is less than the time for an answer."""


class BuildProcess:
    """The measurements of one process: an operation over a backend, in slices, over one `PQ` at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pq: Any = None
        self._crowds: list[tuple[Any, Callers, Turn]] = []

    def backends(self, names: list[str]) -> dict[str, Any]:
        """Return the labels of the backends with these names, or of all installed ones if no name is given."""
        return {"backends": [each.label for each in contenders(names)]}

    def open(self, backend: str, dsn: str, schema: str, table: str) -> dict[str, Any]:
        """Create a table over a backend, which is named by its label."""
        [self._contender] = [each for each in contenders() if each.label == backend]
        self._place = Location(dsn, schema, table)
        self._run(self._create())
        return {}

    async def _create(self) -> None:
        pq = self._contender.open(self._place)
        try:
            creating = pq.create()
            if not self._contender.blocking:
                await creating
        finally:
            await closed(self._contender, pq)

    def memory(self, backend: str, dsn: str, schema: str, table: str, operation: str, number: int) -> dict[str, float]:
        """Run one operation, and return the memory of this process, which has done nothing before."""
        [contender] = [each for each in contenders() if each.label == backend]
        return measured(contender, Location(dsn, schema, table), operation, number)

    def begin(self, operation: str) -> dict[str, Any]:
        """Connect for an operation; the table is empty."""
        self._name = operation
        self._taken: list[int] = []
        self._put: list[int] = []
        self._pq = self._contender.open(self._place)
        if operation == "worker":
            self._pq[QUEUE].task()(noop)
        elif operation == LIMITED:
            self._task = declare(self._pq[QUEUE], held, limits=limits_of(OF_BUILDS[LIMITED].jobs))
        else:
            self._call = calls(self._pq[QUEUE], self._taken, blocking=self._contender.blocking)[operation]
        return {}

    def slice(self, ahead: int, number: int) -> dict[str, Any]:
        """Run an operation a number of times, or let a worker run the jobs; return the seconds that it took.

        Args:
            ahead: Calls before the timed ones; zero for a worker.
            number: The number of timed calls.
        """
        if self._name == "worker":
            return {"seconds": self._loop.run_until_complete(self._worked(number * OPERATIONS["worker"].jobs))}
        if self._name == LIMITED:
            return {"seconds": self._loop.run_until_complete(self._limited(number * OF_BUILDS[LIMITED].jobs))}
        return {"seconds": self._run(self._called(ahead, number))}

    async def _called(self, ahead: int, number: int) -> float:
        timed = stepped if self._contender.blocking else awaited
        await timed(self._call, ahead)
        return await timed(self._call, number)

    async def _worked(self, number: int) -> float:
        self._put += await put_calls(self._pq[QUEUE], noop, number)
        done = await drain(self._pq[QUEUE])
        self._taken += done.taken
        return per_job(done, OPERATIONS["worker"].jobs) * number

    async def _limited(self, number: int) -> float:
        """Return the seconds of jobs under a limit, from the first start to the last."""
        self._put += await put_held(self._task, self._pq[QUEUE], number, 0.0)
        done, _ = await run_until([self._pq[QUEUE]], number, PATIENCE)
        self._taken += done.taken
        return number / speed(done.times, OF_BUILDS[LIMITED].jobs)

    def end(self) -> dict[str, Any]:
        """Disconnect; return the ids of the jobs that were taken, and of those that were put for a worker."""
        pq, self._pq = self._pq, None
        self._run(closed(self._contender, pq))
        return {"put": self._put, "taken": self._taken}

    # Concurrent callers

    def gather(self, operation: str, callers: int, connections: int | None) -> dict[str, Any]:
        """Connect for concurrent callers, which then take turns.

        Args:
            operation: One of `concurrent_calls.CALLS`.
            callers: The number of callers.
            connections: The largest number of connections that they share; None for the default of `PQ`.
        """
        options = {} if connections is None else {"max_connections": connections}
        pq = self._contender.open(self._place, **options)
        self._crowds.append((pq, Callers(self._contender, pq, operation, callers), Turn()))
        return {}

    def turn(self, crowd: int, seconds: float, *, timed: bool) -> dict[str, Any]:
        """Let one group of callers, number ``crowd`` in the order of `gather`, call for some seconds.

        Returns:
            The number of calls that returned in that time, and of the jobs that were put or taken.
        """
        _, callers, all_turns = self._crowds[crowd]
        turn = self._run(callers.turn(seconds))
        all_turns.jobs += turn.jobs
        if timed:
            all_turns.times += turn.times
        return {"in_time": turn.in_time, "jobs": len(turn.jobs)}

    def disperse(self) -> dict[str, Any]:
        """Disconnect all callers; return the ids of their jobs, and p50 and p99 of each crowd's calls."""
        crowds, self._crowds = self._crowds, []
        for pq, _, _ in crowds:
            self._run(closed(self._contender, pq))
        times = [[percentile(turn.times, share) for share in (0.5, 0.99)] for _, _, turn in crowds]
        return {"jobs": [job for _, _, turn in crowds for job in turn.jobs], "times": times}

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return run_sync(work) if self._contender.blocking else self._loop.run_until_complete(work)


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # other output must not be taken for an answer
    process = BuildProcess()
    print(json.dumps({"version": pqcore.__version__, "file": pqcore.__file__}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = getattr(process, asked.pop("do"))(**asked)
        except Exception as exc:  # noqa: BLE001 - told to the process that asked
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        print(json.dumps(answer), file=answers, flush=True)
