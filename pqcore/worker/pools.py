"""Processes in which a worker calls functions that are not coroutine functions."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import pickle
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pqcore.operations.error_details import RemoteTraceback
from pqcore.tasks.context import JobContext
from pqcore.tasks.outcomes import Run
from pqcore.tasks.run_job import ResultNotSent, WorkerProcessDied
from pqcore.worker import process_main
from pqcore.worker.recycling import Recycling
from pqcore.worker.threads import Threads

logger = logging.getLogger("pqcore.tasks")

JOIN_TIMEOUT = 2.0
"""Seconds to wait for processes that are ending."""
RETIREMENT = 10.0
"""Seconds within which a replaced process must end by itself; after that, it is killed."""


class Process:
    """A process that makes one call at a time; if it dies or is killed, other processes go on.

    A thread starts the process with its first call, and then waits for answers.

    Args:
        threads: The threads.
        recycling: When the process is replaced.
    """

    def __init__(self, threads: Threads, recycling: Recycling) -> None:
        self._threads = threads
        self._recycling = recycling
        self._lock = threading.Lock()
        self._process: Any = None
        self._pipe: Any = None
        self._killed = False
        self._calls = 0
        self._memory = 0

    def usable(self) -> bool:
        """Return whether the process can make another call."""
        return not self._killed and self._process is not None and bool(self._process.is_alive())

    def retire_if_due(self) -> bool:
        """End the process if it has reached a limit; return whether it has. Call this method only between jobs."""
        if self._memory:
            reason = f"it holds {self._memory / 2**20:,.0f} MB of memory"
        elif self._recycling.jobs is not None and self._calls >= self._recycling.jobs:
            reason = f"it has run {self._calls} job{'s' if self._calls > 1 else ''}"
        else:
            return False
        logger.info("process %d is replaced: %s", self._process.pid, reason)
        self._killed = True
        self._pipe.close()
        return True

    async def run(self, run: Run, context: JobContext) -> Any:
        """Make a call; if the awaiting task is cancelled, the process is killed.

        Raises:
            WorkerProcessDied: The process died.
            ResultNotSent: The function returned, but its result did not get here.
        """
        try:
            return await self._threads.run(lambda: self._call(run, context))
        except asyncio.CancelledError:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill the process."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()

    def join(self) -> None:
        """Wait for the end of a killed process."""
        if self._process is not None:
            self._process.join(JOIN_TIMEOUT)

    def _call(self, run: Run, context: JobContext) -> Any:
        request = pickle.dumps(process_main.Request.of(run))
        self._start()
        try:
            self._pipe.send_bytes(request)
            while True:
                answer = self._pipe.recv_bytes()
                kind, value, note = pickle.loads(answer)  # noqa: S301 - from a process of ours
                if kind == "progress":
                    context.set_progress(value)
                elif kind == "finished":
                    context.finished = value
                elif kind == "memory":
                    self._memory = value
                else:
                    break
            self._calls += 1
        except (EOFError, OSError) as exc:
            self.kill()
            self._process.join()
            self._pipe.close()
            code = self._process.exitcode
            raise WorkerProcessDied(f"the process that ran {run.task.path} died, exit code {code}") from exc
        if kind == "raised":
            raise value from RemoteTraceback(note)
        context.finished = note
        if kind == "unsent":
            raise ResultNotSent(value)
        try:
            return pickle.loads(value)  # noqa: S301 - from a process of ours
        except BaseException as exc:
            raise ResultNotSent(f"what the function returned cannot be read in the worker: {exc}") from exc

    def _start(self) -> None:
        with self._lock:
            if self._process is not None or self._killed:
                return
            spawn = multiprocessing.get_context("spawn")
            self._pipe, theirs = spawn.Pipe()
            preloaded = tuple(process_main.PRELOADED_MODULES)
            self._process = spawn.Process(
                target=process_main.serve, args=(theirs, preloaded, self._recycling.memory), name="pqcore-job"
            )
            self._process.start()
            theirs.close()


class Processes:
    """A pool of processes, each of which runs one job at a time.

    A process finds a function by importing the function's module. Arguments and results are pickled.

    Args:
        number: The largest number of processes.
        recycling: When a process is replaced.
    """

    def __init__(self, number: int, recycling: Recycling) -> None:
        self._recycling = recycling
        self._slots = asyncio.Semaphore(number)
        self._threads = Threads(number, "pqcore-process")
        self._idle: list[Process] = []
        self._all: set[Process] = set()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Process]:
        """Wait for a free process, and reserve the process until the block ends."""
        async with self._slots:
            process = self._acquire()
            try:
                yield process
            finally:
                if not process.usable():
                    self._all.discard(process)
                elif process.retire_if_due():
                    asyncio.get_running_loop().call_later(RETIREMENT, self._end, process)
                else:
                    self._idle.append(process)

    def _acquire(self) -> Process:
        while self._idle:
            process = self._idle.pop()
            if process.usable():
                return process
            self._all.discard(process)
        process = Process(self._threads, self._recycling)
        self._all.add(process)
        return process

    def _end(self, process: Process) -> None:
        process.kill()
        self._all.discard(process)

    def close(self) -> None:
        """Kill the processes."""
        for process in self._all:
            process.kill()
        for process in self._all:
            process.join()
        self._threads.close()


def default_processes() -> int:
    """Return the default number of processes: one per core."""
    return os.cpu_count() or 1
