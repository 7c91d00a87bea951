"""Running jobs: coroutine functions on the loop, others in threads or processes."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, Literal

from pqcore.db.watchdog import watchdog
from pqcore.events import FAILURES, around, tell
from pqcore.operations.complete import Outcome
from pqcore.tasks.context import JobCancelled, JobContext, enter_job
from pqcore.tasks.declaring import logger
from pqcore.tasks.outcomes import (
    Run,
    as_failure,
    caller,
    completed,
    conclude,
    job_logger,
    keeps_result,
    not_stored,
    prepare,
    put_off,
)
from pqcore.worker.job_events import Teller
from pqcore.worker.pools import Processes, ResultNotSent, Threads, WorkerProcessDied, default_processes
from pqcore.worker.serializer_threads import Coding
from pqcore.worker.state import Floor, Held, Station

TURNS = 3
"""Turns of the event loop in which a worker that is cancelled together with its jobs has noticed it."""
CRASH_PAUSE = 1.0
"""Seconds until a job is tried again whose process died; twice as many each time."""


class Execution:
    """Runs jobs, as many at once as there are places.

    Args:
        floor: What the worker's parts share.
        teller: Who tells plugins.
        run_in: Where functions that are no coroutines run, unless their task says so.
        patience: Seconds that a thread has to end after its function was told to stop; see `_overdue`.
    """

    def __init__(
        self, floor: Floor, teller: Teller, run_in: Literal["thread", "process"], patience: float = 20.0
    ) -> None:
        self._patience = patience
        self._floor = floor
        self._teller = teller
        self._run_in = run_in
        self._places = floor.free
        self._context = contextvars.copy_context()
        self._threads = Threads(self._places, "pqcore-job")
        self._coding = Coding(floor, self._threads)
        self._processes: Processes | None = None

    def fill(self) -> None:
        """Fill free places with what was fetched ahead, the queues in turn."""
        floor = self._floor
        while not floor.draining.is_set() and (station := floor.next()) is not None:
            if station.buffer:
                self._begin(station, station.buffer.popleft())
            else:
                station.asking, station.reserved = False, 1
        floor.room.set()

    def stop(self, held: Held, reason: str) -> None:
        """Have a function stop: a coroutine is cancelled, a process killed, a thread told."""
        if held.ended or held.context is None or held.context.cancelled:
            return
        held.context.stop(reason)
        if held.cancellable and held.task is not None:
            held.task.cancel()
        elif held.thread is not None:
            asyncio.get_running_loop().call_later(self._patience, self._overdue, held, time.monotonic())

    def _overdue(self, held: Held, told_at: float) -> None:
        """Say that a thread goes on though its function was told to stop, and break off what it waits for.

        That is a statement in a transaction block of the thread's own. Nothing else that a thread does can be ended.
        """
        if held.task is None or held.task.done() or held.context is None or held.thread is None:
            return
        waited = time.monotonic() - told_at
        broken_off = watchdog.break_off_blocks_of(held.thread)
        logger.warning(
            "job %d of %r was told to stop %.1f s ago (%s), and its thread goes on:"
            " it keeps its place, lease and group%s",
            held.job.id,
            held.context.queue.name,
            waited,
            held.context.stop_reason,
            "; the connection of its transaction block, on which it waits, is broken off" if broken_off else "",
        )
        asyncio.get_running_loop().call_later(waited, self._overdue, held, told_at)

    def give_up(self, station: Station, *, at_once: bool = False) -> None:
        """Give back what still runs.

        Coroutines are cancelled, and given back when they have ended; threads are told, and
        their jobs free at once.

        Args:
            station: The queue.
            at_once: Whether coroutines are not waited for, either.
        """
        for held in list(station.held.values()):
            if held.ended:
                continue
            self.stop(held, "shutdown")
            if at_once or not held.cancellable:
                station.decide(held, Outcome(held.job, "snooze", reason="shutdown"))

    async def close(self) -> None:
        """Let go of threads and coroutines that did not end, and kill processes."""
        tasks = [held.task for station in self._floor.stations for held in station.held.values() if held.task]
        for task in tasks:
            task.cancel()
        if self._processes is not None:
            self._processes.close()
        self._threads.close()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        await self._threads.ended(calls=False)

    def _begin(self, station: Station, held: Held) -> None:
        station.started += 1
        if station.queue.reads_quickly(held.job.serializer, held.job.raw):
            run = self._prepared(station, held)
            if isinstance(run, Outcome):
                station.decide(held, run)
                return
            held.run = run
        held.context = JobContext(station.queue, held.job, self._leaves)
        held.began = time.perf_counter()
        self._floor.free -= 1
        # In a context like the worker's: a job begun by one that ends is not to see the variables that it set.
        begin, coroutine = asyncio.get_running_loop().create_task, self._execute(station, held, held.context)
        held.task = self._context.copy().run(begin, coroutine)

    def _prepared(self, station: Station, held: Held) -> Run | Outcome:
        """Read a job; a run of it, or how it ends without one."""
        try:
            return prepare(station.queue, station.queue, held.job)
        except BaseException as exc:
            if self._floor.interruptible:
                raise
            return put_off(station.queue, held.job, exc, "unknown")  # no signal raises here: it is the job's own

    async def _execute(self, station: Station, held: Held, context: JobContext) -> None:
        enter_job(context)  # in this task's own context, which ends with it
        outcome: Outcome | None
        try:
            run = held.run or await self._decoded(station, held)
            if held.run is not None and self._teller.hears("pqcore_job_started"):
                await tell("pqcore_job_started", self._teller.event(station, held))
            context.check()  # it could not be cancelled until now
            if isinstance(run, Outcome):
                outcome = run
            else:
                result = await self._call(station, held, run)
                if held.job.raw_headers is None:
                    outcome = completed(station.queue, held.job, result, finished=context.finished)
                else:
                    outcome = await self._completed(station, held, result, finished=context.finished)
        except (asyncio.CancelledError, JobCancelled) as exc:
            held.error = exc
            if not context.stop_reason:
                await self._hear_of_shutdown(context)
            outcome = self._stopped(station, held, context.stop_reason)
        except ResultNotSent as exc:
            if context.finished or not keeps_result(held.job):
                outcome = Outcome(held.job, "done", finished=context.finished)
            else:
                outcome = not_stored(station.queue, held.job, exc)
        except WorkerProcessDied as exc:
            held.error = exc
            job_logger.error("job %d of %r: %s", held.job.id, station.queue.name, exc)
            outcome = Outcome(held.job, "crash", delay=CRASH_PAUSE * 2 ** min(held.job.crashes, 10), reason="crashed")
        except BaseException as exc:  # noqa: BLE001 - whatever a task raises is the job's failure
            held.error = exc
            if isinstance(exc, KeyboardInterrupt) and context.leaves(exc):
                self._floor.interrupt(exc)  # raised here, it would end the event loop before jobs are given back
                outcome = Outcome(held.job, "snooze", reason="shutdown")
            elif held.run is None:
                outcome = put_off(station.queue, held.job, exc, "unreadable")
            else:
                outcome = conclude(station.queue, held.run, exc)
        finally:
            held.cancellable = False  # it is over: what comes is ours
            if held.timer is not None:
                held.timer.cancel()
            held.took = 0.0 if held.run is None else time.perf_counter() - held.began
            self._floor.free += 1
        if not held.ended:  # else it was given up meanwhile
            held.ended = True
            if outcome is None:
                await self._teller.tell("pqcore_job_lost", station, held)
                station.held.pop(held.key, None)
                self._floor.look_quiet()
            else:
                if outcome.end in FAILURES and held.run is not None:
                    await self._teller.tell("pqcore_job_failed", station, held, outcome)
                station.decide(held, outcome)
        self.fill()

    async def _decoded(self, station: Station, held: Held) -> Run | Outcome:
        """Read a job in a thread: decoding it may take long, and leases are lengthened meanwhile."""

        def read() -> Run | Outcome:
            held.thread = threading.get_ident()
            return self._prepared(station, held)

        name = held.job.serializer or station.queue.serializer_name
        held.cancellable = True
        await self._coding.turn(name)
        held.cancellable = False
        try:
            run = await self._coding.run(name, f"decoding job {held.job.id} of {station.queue.name!r}", read)
        finally:
            held.thread = None
        if not isinstance(run, Outcome):
            held.run, held.began = run, time.perf_counter()
        return run

    async def _completed(self, station: Station, held: Held, result: Any, *, finished: bool) -> Outcome:
        """How a job ends whose function returned; its result is encoded in a thread if that may take long."""
        queue, job = station.queue, held.job
        end = partial(completed, queue, job, result, finished=finished)
        if finished or not keeps_result(job) or queue.writes_quickly(result):
            return end()
        held.cancellable = False  # it was done
        await self._coding.turn(queue.serializer_name)
        return await self._coding.run(
            queue.serializer_name, f"encoding the result of job {job.id} of {queue.name!r}", end
        )

    async def _call(self, station: Station, held: Held, run: Run) -> Any:
        if run.task.is_coroutine:
            self._start_clock(held, run)
            held.cancellable = True
            with self._surrounding(station, held):
                return await run.task.function(run.job.id, *run.args, **run.kwargs)
        if held.context is not None:
            held.context.leaves = _never  # no signal raises in another thread or process
        if (run.task.options.run_in or self._run_in) == "process":
            return await self._in_process(station, held, run)
        self._start_clock(held, run)
        result = await self._threads.run(self._caller(station, held, run))
        if inspect.isawaitable(result):  # from a function that is none of `async def`
            held.cancellable = True
            return await result
        return result

    async def _in_process(self, station: Station, held: Held, run: Run) -> Any:
        if self._processes is None:
            self._processes = Processes(min(self._places, default_processes()))
        assert held.context is not None  # noqa: S101 - for the type checker
        held.cancellable = True
        async with self._processes.place() as process:
            self._start_clock(held, run)  # it waited for the process, too
            with self._surrounding(station, held):
                return await process.run(run, held.context)

    def _caller(self, station: Station, held: Held, run: Run) -> Callable[[], Any]:
        def call() -> Any:
            held.thread = threading.get_ident()
            with self._surrounding(station, held):  # in the thread that makes the call
                return caller(run)()

        return call

    def _surrounding(self, station: Station, held: Held) -> AbstractContextManager[None]:
        """What plugins put around a run; nothing, if there is none."""
        if not self._teller.surrounds:
            return nullcontext()
        return around("pqcore_around_run", self._teller.event(station, held))

    def _start_clock(self, held: Held, run: Run) -> None:
        held.began = time.perf_counter()
        if run.timeout is not None:
            held.timer = asyncio.get_running_loop().call_later(run.timeout, self.stop, held, "timeout")

    async def _hear_of_shutdown(self, context: JobContext) -> None:
        """Learn whether all of the worker is being cancelled, as `asyncio.run` does when its loop is interrupted."""
        for _ in range(TURNS):
            if self._floor.at_once.is_set():
                context.stop("shutdown")
                return
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    def _stopped(self, station: Station, held: Held, reason: str) -> Outcome | None:
        """What becomes of a job whose function was stopped."""
        job, run = held.job, held.run
        if reason == "lost":
            return None
        if reason == "cancelled":
            path = "not decoded yet" if run is None else run.task.path
            logger.info("job %d of %r (%s) was cancelled", job.id, station.queue.name, path)
            return Outcome(job, "drop", reason="cancelled")
        if reason == "shutdown":
            return Outcome(job, "snooze", reason="shutdown")
        assert held.error is not None  # noqa: S101 - for the type checker
        if run is None:  # cancelled from within, as its decoder was
            return put_off(station.queue, job, held.error, "unreadable")
        held.error = as_failure(held.error, late=job if reason == "timeout" else None)
        return conclude(station.queue, run, held.error)

    def _leaves(self, error: BaseException) -> bool:
        """Return whether Ctrl-C was pressed, and the event loop's thread had it: a function may raise no such thing."""
        return isinstance(error, KeyboardInterrupt) and self._floor.interruptible


def _never(error: BaseException) -> bool:
    return False
