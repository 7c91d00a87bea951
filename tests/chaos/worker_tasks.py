"""The content of worker processes: tasks that record their runs, and a plugin that records the worker's events."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pqcore.events import JobEvent
from pqcore.hookspecs import hookimpl
from pqcore.plugins import plugins
from pqcore.tasks import PQ, AsyncPQ, current

from .log import Log

NAME, GATED, OTHERS = "work", "gated", "others"
"""The queues: for jobs that end in their own transaction, for jobs under limits and in groups, and for other jobs."""
OPTIONS: dict[str, Any] = {"max_retries": 10**6, "max_crashes": 10**6, "retry_in": 0.05}
"""The options of all tasks: they are retried until they succeed, because functions need the failing server, too."""
TICK = "tick"
"""The argument of the periodic task, and the first part of its jobs' tokens."""
BRIEF = 0.03
"""The longest time of a job under limits, or in a group, in seconds."""
RECORD = "INSERT INTO runs (job, attempt, over) VALUES ({}, {}, {})"
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "work": (NAME, {}),
    "gated": (
        GATED,
        {
            "limits": lambda _, limits, *__: limits,
            "group": lambda _, __, group, *___: group,
            "tenant": lambda *arguments: arguments[3],
            "priority": lambda *arguments: arguments[4],
        },
    ),
    "kept": (OTHERS, {"keep_result": "1m"}),
    "interrupted": (OTHERS, {"retry_on": BaseException}),
    "interrupted_process": (OTHERS, {"retry_on": BaseException, "run_in": "process"}),
}
"""Each task's queue, and its options in addition to `OPTIONS`."""
_here: list[Any] = []


class FirstRunFails(Exception):
    """The failure of a job that is retried."""


def work(job_id: int, token: str) -> None:
    """Write the effect, and finish the job."""
    with _here[0] as cursor:
        cursor.execute("INSERT INTO effects VALUES (%s, %s, false)", [token, job_id])
        current().finish()


def gated(job_id: int, token: str, limits: dict[str, int], group: str | None, tenant: str | None, urgency: int) -> None:
    """Run for a moment, with a place under each limit, and the turn of the group."""
    del token, limits, tenant, urgency
    _record(job_id, over=False)
    time.sleep(BRIEF if group is None else BRIEF / 3)
    _record(job_id, over=True)


def _record(job_id: int, *, over: bool) -> None:
    with _here[0] as cursor:
        cursor.execute(RECORD.format(*["%s"] * 3), [job_id, current().job.token, over])


async def work_async(job_id: int, token: str) -> None:
    """`work`, over asyncpg."""
    async with _here[0] as connection:
        await connection.execute("INSERT INTO effects VALUES ($1, $2, false)", token, job_id)
        await current().finish()


async def gated_async(
    job_id: int, token: str, limits: dict[str, int], group: str | None, tenant: str | None, urgency: int
) -> None:
    """`gated`, over asyncpg."""
    del token, limits, tenant, urgency
    await _record_async(job_id, over=False)
    await asyncio.sleep(BRIEF if group is None else BRIEF / 3)
    await _record_async(job_id, over=True)


async def _record_async(job_id: int, *, over: bool) -> None:
    async with _here[0] as connection:
        await connection.execute(RECORD.format("$1", "$2", "$3"), job_id, current().job.token, over)


def kept(job_id: int, token: str) -> str:
    """Fail in the first run, and return a result that is kept in the next."""
    del job_id
    if current().attempt == 1:
        raise FirstRunFails
    return token


def interrupted(job_id: int, token: str) -> None:
    """Raise KeyboardInterrupt in the first run."""
    del job_id, token
    if current().attempt == 1:
        raise KeyboardInterrupt


async def interrupted_async(job_id: int, token: str) -> None:
    """Raise KeyboardInterrupt in the first run, as a coroutine."""
    interrupted(job_id, token)


def interrupted_process(job_id: int, token: str) -> None:
    """Raise KeyboardInterrupt in the first run, in a separate process."""
    interrupted(job_id, token)


def tick(job_id: int, token: str) -> None:
    """Do nothing: the checker only looks at the puts of the jobs."""


BLOCKING: dict[str, Callable[..., Any]] = {name: globals()[name] for name in TASKS}
ASYNCHRONOUS: dict[str, Callable[..., Any]] = {name: globals().get(f"{name}_async", BLOCKING[name]) for name in TASKS}
for functions in (BLOCKING, ASYNCHRONOUS):
    for name, function in functions.items():  # the path is the same in each process
        function.__module__, function.__name__, function.__qualname__ = "tests.chaos.worker_tasks", name, name
tick.__module__ = "tests.chaos.worker_tasks"


def declare(pq: Any, functions: Mapping[str, Callable[..., Any]] = BLOCKING) -> dict[str, Any]:
    """Declare the tasks; return the functions that put their jobs, by the functions' names.

    Args:
        pq: The queues, blocking or asynchronous.
        functions: The functions of the tasks.
    """
    return {name: pq[queue].task(**OPTIONS, **options)(functions[name]) for name, (queue, options) in TASKS.items()}


class Watcher:
    """A plugin that records how runs ended, according to the worker.

    Args:
        log: The log.
    """

    def __init__(self, log: Log) -> None:
        self._log = log

    def _tell(self, outcome: str, event: JobEvent) -> None:
        self._log.write({"act": "told", "outcome": outcome, "job": event.job.id, "attempt": event.job.token})

    @hookimpl
    def pqcore_job_succeeded(self, event: JobEvent) -> None:
        self._tell("done", event)

    @hookimpl
    def pqcore_job_failed(self, event: JobEvent) -> None:
        self._tell("failed", event)

    @hookimpl
    def pqcore_job_lost(self, event: JobEvent) -> None:
        self._tell("lost", event)


def queues() -> Any:
    """Return the queues of a worker process, over the backend that its environment names."""
    backend, dsn = os.environ["CHAOS_BACKEND"], os.environ["CHAOS_DSN"]
    options: dict[str, Any] = {"backend": backend, "pool_timeout": 5}
    made: Any = AsyncPQ(dsn, **options) if backend == "asyncpg" else PQ(dsn, **options)
    declare(made, ASYNCHRONOUS if backend == "asyncpg" else BLOCKING)
    missed = os.environ["CHAOS_MISSED"]
    made[OTHERS].periodic("* * * * * *", missed=missed, args=(TICK,))(made[OTHERS].task(**OPTIONS)(tick))
    _here[:] = [made[NAME]]
    plugins.register(Watcher(Log(Path(os.environ["CHAOS_LOG"]))))
    return made
