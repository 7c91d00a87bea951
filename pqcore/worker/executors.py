"""Where functions run that are no coroutines: in threads, or in processes of their own."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any

from pqcore.tasks.declaring import TaskDeclarations
from pqcore.tasks.running import Run


class WorkerProcessDied(Exception):
    """The process that ran the function died: killed, out of memory, or by its own exit."""


class Threads:
    """Threads, as many as jobs may run at once."""

    def __init__(self, number: int) -> None:
        self._pool = ThreadPoolExecutor(number, thread_name_prefix="pqcore-job")

    async def run(self, call: Callable[[], Any]) -> Any:
        """Run a call in a thread, in the context of the caller."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: context.run(call))

    def close(self) -> None:
        """Let go of the threads; what runs in them is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Processes:
    """Processes, one a job at a time: each can be killed, or die, alone.

    Functions are found in them by importing their module; arguments and results are pickled.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._idle: list[ProcessPoolExecutor] = []
        self._all: list[ProcessPoolExecutor] = []
        self._places = asyncio.Semaphore(number)

    async def run(self, run: Run) -> Any:
        """Make a call in a process; if the awaiting task is cancelled, the process is killed.

        Raises:
            WorkerProcessDied: It died.
        """
        async with self._places:
            pool = self._idle.pop() if self._idle else self._open()
            try:
                future = asyncio.get_running_loop().run_in_executor(
                    pool, _call_by_path, run.task.path, run.job.id, tuple(run.args), dict(run.kwargs)
                )
                result = await future
            except BrokenProcessPool as exc:
                self._kill(pool)
                raise WorkerProcessDied(f"the process that ran {run.task.path} died") from exc
            except asyncio.CancelledError:
                self._kill(pool)
                raise
            except BaseException:
                self._idle.append(pool)
                raise
            self._idle.append(pool)
            return result

    def _open(self) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self._all.append(pool)
        return pool

    def _kill(self, pool: ProcessPoolExecutor) -> None:
        for process in list((pool._processes or {}).values()):  # noqa: SLF001 - public from Python 3.14 only
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
        self._all.remove(pool)

    def close(self) -> None:
        """Kill the processes."""
        for pool in self._all.copy():
            self._kill(pool)
        self._idle.clear()


def default_processes() -> int:
    """How many processes run jobs unless told otherwise: one a core."""
    return os.cpu_count() or 1


def _call_by_path(path: str, job_id: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make a call, in a process of `Processes`: the function was found by the worker before."""
    module = path
    while "." in module:
        module = module.rpartition(".")[0]
        with suppress(ModuleNotFoundError):
            importlib.import_module(module)
            break
    found: Any = TaskDeclarations.handler_registry.get(path)
    if found is None:
        found = importlib.import_module(module)
        for name in path.removeprefix(module + ".").split("."):
            found = getattr(found, name)
        found = getattr(found, "__wrapped__", found)
    return found(job_id, *args, **kwargs)
