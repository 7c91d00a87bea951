"""Workers that run in spawned processes, and functions for them; all are importable, as spawning requires.

The table ``runs`` in the test's schema records what such a worker runs: a function writes a row when it begins, and
updates the row when it ends. Functions that must wait do so until their job's row is in the table ``released``.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pqcore import tasks
from pqcore.backend import Mode, Row
from pqcore.db.runtime import run_sync
from pqcore.job import AsyncJob, Job
from pqcore.sql.identifiers import quote
from pqcore.tasks.context import current
from pqcore.testing.connections import statement
from pqcore.worker import Worker

LOOK = 0.01
"""Seconds between looks at the table ``released``."""
MOMENT = 0.02
"""Seconds that `run` takes."""
NAP = 0.5
"""Seconds that `nap` takes."""


@dataclass(frozen=True)
class Site:
    """The place of a worker's queue, and the worker's options.

    Attributes:
        backend: The backend.
        mode: The backend's mode.
        dsn: The DSN of the server.
        schema: The schema of the tables.
        options: The options of the worker.
        task: The options of the tasks.
    """

    backend: str
    mode: Mode
    dsn: str
    schema: str
    options: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)

    def table(self, name: str) -> str:
        """Return the quoted name of a table of the test."""
        return f"{quote(self.schema)}.{quote(name)}"

    def tables(self) -> list[str]:
        """Return the statements that make the tables."""
        columns = "job bigint, attempt int, worker int, ended text, at timestamptz DEFAULT clock_timestamp()"
        return [
            f"CREATE TABLE {self.table('runs')} ({columns}, PRIMARY KEY (job, attempt))",
            f"CREATE TABLE {self.table('released')} (job bigint PRIMARY KEY)",
        ]

    def function(self, name: str) -> Callable[..., Any]:
        """Return one of `FUNCTIONS`, in the form for this kind of backend."""
        found: Callable[..., Any] = globals()[name if self.mode == "blocking" else f"{name}_async"]
        return found


FUNCTIONS = ("run", "hold", "nap")

_here: list[tuple[Site, Any]] = []
"""The site and the queue of a worker's process."""


async def _sql(text: str, *, rows: bool = False) -> Sequence[Row]:
    query = statement(text, rows=rows)
    found: Sequence[Row] = await _here[0][1].engine.run(lambda session: session.execute(query), protect=False)
    return found


async def _begin(job_id: int) -> None:
    runs, attempt = _here[0][0].table("runs"), current().job.token
    await _sql(f"INSERT INTO {runs} (job, attempt, worker) VALUES ({job_id}, {attempt}, {os.getpid()})")


async def _end(job_id: int, how: str) -> None:
    runs, attempt = _here[0][0].table("runs"), current().job.token
    await _sql(f"UPDATE {runs} SET ended = '{how}' WHERE job = {job_id} AND attempt = {attempt}")


async def _released(job_id: int) -> bool:
    released = _here[0][0].table("released")
    return bool(await _sql(f"SELECT job FROM {released} WHERE job = {job_id}", rows=True))


def run(job_id: int) -> None:
    """Record the run, which takes `MOMENT` seconds."""
    run_sync(_begin(job_id))
    time.sleep(MOMENT)


async def run_async(job_id: int) -> None:
    """Record the run, which takes `MOMENT` seconds."""
    await _begin(job_id)
    await asyncio.sleep(MOMENT)


def hold(job_id: int) -> None:
    """Record the start, and wait until the test releases or stops the job."""
    run_sync(_begin(job_id))
    while not run_sync(_released(job_id)):
        if current().wait(LOOK):
            run_sync(_end(job_id, current().stop_reason))
            current().check()
    run_sync(_end(job_id, "released"))


async def hold_async(job_id: int) -> None:
    """Record the start, and wait until the test releases or stops the job."""
    await _begin(job_id)
    try:
        while not await _released(job_id):  # noqa: ASYNC110 - it is written into a table
            await asyncio.sleep(LOOK)
    except asyncio.CancelledError:
        await _end(job_id, current().stop_reason)
        raise
    await _end(job_id, "released")


def nap(job_id: int) -> None:
    """Sleep on the first run, without reacting to anything."""
    run_sync(_begin(job_id))
    if current().attempt == 1:
        time.sleep(NAP)
    run_sync(_end(job_id, "slept"))


async def nap_async(job_id: int) -> None:
    """Sleep on the first run, without reacting to anything."""
    await _begin(job_id)
    if current().attempt == 1:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(NAP)
    await _end(job_id, "slept")


def deaf(job_id: int) -> None:
    """Record the start, and never end, even if told to stop; for blocking backends."""
    run_sync(_begin(job_id))
    threading.Event().wait()


def interrupt(job_id: int, kind: str) -> None:
    """Raise an exception that ends programs."""
    raise INTERRUPTS[kind]


async def interrupt_async(job_id: int, kind: str, *, apart: bool = False) -> None:
    """Raise an exception that ends programs; with ``apart``, in a separate task."""
    if apart:
        await asyncio.gather(interrupt_async(job_id, kind))
    raise INTERRUPTS[kind]


INTERRUPTS: dict[str, type[BaseException]] = {
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": SystemExit,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "BaseException": BaseException,
}


def work_here(site: Site, pipe: Connection) -> None:
    """Run `Queue.work` in the main thread until an exception ends it; report the start, and what ended it."""
    with tasks.PQ(site.dsn, schema=site.schema, backend=site.backend) as pq:
        queue = pq["q"]
        _here[:] = [(site, queue)]
        for name in FUNCTIONS:
            queue.task(**site.task)(site.function(name))
        queue.count()  # this opens the connection
        pipe.send("starts")
        try:
            queue.work()
        except BaseException as exc:
            pipe.send(type(exc).__name__)


def work(site: Site, pipe: Connection) -> None:
    """Run a worker until a signal stops it; report when it starts and when it has stopped."""
    if site.mode == "blocking":
        with tasks.PQ(site.dsn, schema=site.schema, backend=site.backend) as pq:
            asyncio.run(_work(site, pq["q"], pipe))
    else:
        asyncio.run(_work_async(site, pipe))
    pipe.send("stopped")


async def _work_async(site: Site, pipe: Connection) -> None:
    async with tasks.AsyncPQ(site.dsn, schema=site.schema, backend=site.backend) as pq:
        await _work(site, pq["q"], pipe)


async def _work(site: Site, queue: Any, pipe: Connection) -> None:
    _here[:] = [(site, queue)]
    for name in FUNCTIONS:
        queue.task(**site.task)(site.function(name))
    queue.task()(deaf)
    queue.task()(interrupt)
    queue.task()(interrupt_async)
    pipe.send("starts")
    await Worker(queue, **site.options).run(handle_signals=True)


# Functions for a worker's own processes (``run_in="process"``)


def add(job_id: int, a: int, b: int) -> tuple[int, int]:
    """Return the sum, and the process that computed it."""
    return a + b, os.getpid()


def exit_at_once(job_id: int) -> None:
    """End the process that runs the job."""
    os._exit(3)


def sleep_long(job_id: int) -> None:
    """Sleep for longer than any test lasts."""
    time.sleep(3600)


def fail(job_id: int, what: str) -> None:
    """Raise an exception that can be pickled, but not unpickled."""
    raise Unreadable(what, 1)


class Unreadable(Exception):
    """An object that can be pickled, but not unpickled."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


def tell(job_id: int) -> dict[str, Any]:
    """Return what a function can read about its job."""
    context = current()
    context.progress({"at": 1})
    return {"id": context.id, "attempt": context.attempt, "previous": context.previous}


def describe_job(job: Job | AsyncJob, word: str) -> list[Any]:
    """Return a description of the job, which pqcore passes to this function as its first argument."""
    return [type(job).__name__, job.id, job.attempts, word]


def repeat_word(word: str, times: int) -> str:
    """Repeat the word, and return the result; pqcore calls this function without the job."""
    return word * times


def describe_id(job_id: int, word: str) -> list[Any]:
    """Return the arguments; as in pq, the first argument is the id of the job."""
    return [job_id, word]


def return_opaque(job_id: int, path: str) -> Any:
    """Record the run, and return a value that cannot be pickled."""
    with Path(path).open("a") as file:
        file.write("run\n")
    return threading.Lock()
