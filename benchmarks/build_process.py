"""One of two builds that are measured side by side: a process that does what comes through its standard input.

Each line is an object of JSON, and each answer too. The functions of `Side` say what can be asked. Both builds are
measured by the same code, this one: see `compare_builds`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import pqcore
from pqcore.db.runtime import run_sync
from pqcore.errors import PQError

from . import load_generators, presets
from .backends import closed, contenders
from .measurement import QUEUE, Bench, Table, dropped
from .observer import Observer, named
from .targets import OPERATIONS, PairedRun, calls
from .worker_workloads import drain, noop, per_job, put_calls

T = TypeVar("T")


class BuildProcess:
    """What one process measures: an operation over a backend, in slices, over one `PQ` at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._bench: Bench | None = None
        self._table: Table | None = None
        self._paired_run: PairedRun | None = None
        self._pq: Any = None

    def backends(self, names: list[str]) -> dict[str, Any]:
        """Return the labels of the backends of these names; of all that are installed, if there are none."""
        return {"backends": [each.label for each in contenders(names)]}

    def open(self, backend: str, dsn: str, schema: str, scale: str) -> dict[str, Any]:
        """Create a table over a backend, given by its label, in a schema of its own."""
        [self._contender] = [each for each in contenders() if each.label == backend]
        server_observer = Observer(self._contender, dsn)
        self._bench = Bench(
            dsn, named(dsn), schema, server_observer, presets.SCALES[scale], load_generators.ClientProcesses()
        )
        self._table = self._bench.table(self._contender)
        return {}

    def begin(self, operation: str) -> dict[str, Any]:
        """Connect, and run an operation until it is warm; return the seconds of a call."""
        assert self._bench is not None
        assert self._table is not None
        self._table.empty()
        self._name = operation
        self._taken: list[int] = []
        self._put: list[int] = []
        self._pq = self._contender.open(self._table.place)
        if operation == "worker":
            self._pq[QUEUE].task()(noop)
        else:
            self._paired_run = PairedRun(self._bench, self._contender, operation, self._table)
            self._call = calls(self._contender, self._pq[QUEUE], self._paired_run.taken)[operation]
        number = max(20 // OPERATIONS[operation].jobs, 3)
        return {"seconds": [self.slice(number)["seconds"] / number for _ in range(2)][1]}

    def slice(self, number: int) -> dict[str, Any]:
        """Run an operation some times, or have a worker do the jobs of so many; return the seconds that it took."""
        if self._name == "worker":
            return {"seconds": self._loop.run_until_complete(self._worked(number * OPERATIONS["worker"].jobs))}
        assert self._paired_run is not None
        return {"seconds": self._run(self._paired_run.timed(self._call, number))}

    async def _worked(self, number: int) -> float:
        self._put += await put_calls(self._pq[QUEUE], noop, number)
        done = await drain(self._pq[QUEUE])
        self._taken += done.taken
        return per_job(done, OPERATIONS["worker"].jobs) * number

    def end(self) -> dict[str, Any]:
        """Disconnect; return how many jobs were lost, and how many came twice."""
        assert self._table is not None
        self._run(closed(self._contender, self._pq))
        if self._name != "worker":
            assert self._paired_run is not None
            lost, twice = self._paired_run.losses(self._paired_run.taken)
        else:
            distinct = len(set(self._taken))
            lost, twice = len(self._put) - distinct - self._table.count(), len(self._taken) - distinct
        assert self._bench is not None
        losses, self._bench.losses = self._bench.losses, []
        return {"lost": lost, "twice": twice, "losses": losses}

    def close(self) -> dict[str, Any]:
        """Drop the schema."""
        bench, self._bench = self._bench, None
        if bench is not None:
            with suppress(PQError):
                dropped(bench.server_observer, bench.schema)
            with suppress(PQError):
                bench.server_observer.close()
        return {}

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return run_sync(work) if self._contender.blocking else self._loop.run_until_complete(work)


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what anybody prints is no answer
    side = BuildProcess()
    print(json.dumps({"version": pqcore.__version__, "file": pqcore.__file__}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = getattr(side, asked.pop("do"))(**asked)
        except Exception as exc:  # noqa: BLE001 - told to the process that asked
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        print(json.dumps(answer), file=answers, flush=True)
    side.close()
