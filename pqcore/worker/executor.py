"""Running jobs: coroutine functions on the loop, others in threads or processes."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, Literal

from pqcore.db.watchdog import watchdog
from pqcore.events import FAILURES
from pqcore.hook_dispatch import call_hook, run_wrapped
from pqcore.operations.complete import Outcome
from pqcore.tasks.context import JobCancelled, JobContext, enter_job
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
from pqcore.worker.job_events import JobEvents
from pqcore.worker.pools import Processes, ResultNotSent, Threads, WorkerProcessDied, default_processes
from pqcore.worker.serializer_threads import Coding
from pqcore.worker.state import ActiveJob, QueueState, WorkerState

logger = logging.getLogger("pqcore.tasks")

TURNS = 3
"""Turns of the event loop in which a worker that is cancelled together with its jobs has noticed it."""
CRASH_PAUSE = 1.0
"""Seconds until a job is tried again whose process died; twice as many each time."""


class Execution:
    """Runs jobs, as many at once as there are places.

    Args:
        worker_state: What the worker's parts share.
        job_events: Who tells plugins.
        run_in: Where functions that are no coroutines run, unless their task says so.
        patience: Seconds that a thread has to end after its function was told to stop; see `_overdue`.
    """

    def __init__(
        self,
        worker_state: WorkerState,
        job_events: JobEvents,
        run_in: Literal["thread", "process"],
        patience: float = 20.0,
    ) -> None:
        self._patience = patience
        self._worker_state = worker_state
        self._job_events = job_events
        self._run_in = run_in
        self._places = worker_state.free
        self._context = contextvars.copy_context()
        self._threads = Threads(self._places, "pqcore-job")
        self._coding = Coding(worker_state, self._threads)
        self._processes: Processes | None = None

    def fill(self) -> None:
        """Fill free places with what was fetched ahead, the queues in turn."""
        worker_state = self._worker_state
        while not worker_state.draining.is_set() and (queue_state := worker_state.next()) is not None:
            if queue_state.buffer:
                self._begin(queue_state, queue_state.buffer.popleft())
            else:
                queue_state.asking, queue_state.reserved = False, 1
        worker_state.room.set()

    def stop(self, held: ActiveJob, reason: str) -> None:
        """Have a function stop: a coroutine is cancelled, a process killed, a thread told."""
        if held.ended or held.context is None or held.context.cancelled:
            return
        held.context.stop(reason)
        if held.cancellable and held.task is not None:
            held.task.cancel()
        elif held.thread is not None:
            asyncio.get_running_loop().call_later(self._patience, self._overdue, held, time.monotonic())

    def _overdue(self, held: ActiveJob, told_at: float) -> None:
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

    def give_up(self, queue_state: QueueState, *, at_once: bool = False) -> None:
        """Give back what still runs.

        Coroutines are cancelled, and given back when they have ended; threads are told, and
        their jobs free at once.

        Args:
            queue_state: The queue.
            at_once: Whether coroutines are not waited for, either.
        """
        for held in list(queue_state.held.values()):
            if held.ended:
                continue
            self.stop(held, "shutdown")
            if at_once or not held.cancellable:
                queue_state.decide(held, Outcome(held.job, "snooze", reason="shutdown"))

    async def close(self) -> None:
        """Let go of threads and coroutines that did not end, and kill processes."""
        tasks = [
            held.task
            for queue_state in self._worker_state.queue_states
            for held in queue_state.held.values()
            if held.task
        ]
        for task in tasks:
            task.cancel()
        if self._processes is not None:
            self._processes.close()
        self._threads.close()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        await self._threads.ended(calls=False)

    def _begin(self, queue_state: QueueState, held: ActiveJob) -> None:
        queue_state.started += 1
        if queue_state.queue.reads_quickly(held.job.serializer, held.job.raw):
            run = self._prepared(queue_state, held)
            if isinstance(run, Outcome):
                queue_state.decide(held, run)
                return
            held.run = run
        held.context = JobContext(queue_state.queue, held.job, self._leaves)
        held.began = time.perf_counter()
        self._worker_state.free -= 1
        # In a context like the worker's: a job begun by one that ends is not to see the variables that it set.
        begin, coroutine = asyncio.get_running_loop().create_task, self._execute(queue_state, held, held.context)
        held.task = self._context.copy().run(begin, coroutine)

    def _prepared(self, queue_state: QueueState, held: ActiveJob) -> Run | Outcome:
        """Read a job; a run of it, or how it ends without one."""
        try:
            return prepare(queue_state.queue, queue_state.queue, held.job)
        except BaseException as exc:
            if self._worker_state.interruptible:
                raise
            return put_off(queue_state.queue, held.job, exc, "unknown")  # no signal raises here: it is the job's own

    async def _execute(self, queue_state: QueueState, held: ActiveJob, context: JobContext) -> None:
        enter_job(context)  # in this task's own context, which ends with it
        outcome: Outcome | None
        try:
            run = held.run or await self._decoded(queue_state, held)
            if held.run is not None and self._job_events.hears("pqcore_job_started"):
                await call_hook("pqcore_job_started", self._job_events.event(queue_state, held))
            context.check()  # it could not be cancelled until now
            if isinstance(run, Outcome):
                outcome = run
            else:
                result = await self._call(queue_state, held, run)
                if held.job.raw_headers is None:
                    outcome = completed(queue_state.queue, held.job, result, finished=context.finished)
                else:
                    outcome = await self._completed(queue_state, held, result, finished=context.finished)
        except (asyncio.CancelledError, JobCancelled) as exc:
            held.error = exc
            if not context.stop_reason:
                await self._hear_of_shutdown(context)
            outcome = self._stopped(queue_state, held, context.stop_reason)
        except ResultNotSent as exc:
            if context.finished or not keeps_result(held.job):
                outcome = Outcome(held.job, "done", finished=context.finished)
            else:
                outcome = not_stored(queue_state.queue, held.job, exc)
        except WorkerProcessDied as exc:
            held.error = exc
            job_logger.error("job %d of %r: %s", held.job.id, queue_state.queue.name, exc)
            outcome = Outcome(held.job, "crash", delay=CRASH_PAUSE * 2 ** min(held.job.crashes, 10), reason="crashed")
        except BaseException as exc:  # noqa: BLE001 - whatever a task raises is the job's failure
            held.error = exc
            if isinstance(exc, KeyboardInterrupt) and context.leaves(exc):
                self._worker_state.interrupt(exc)  # raised here, it would end the event loop before jobs are given back
                outcome = Outcome(held.job, "snooze", reason="shutdown")
            elif held.run is None:
                outcome = put_off(queue_state.queue, held.job, exc, "unreadable")
            else:
                outcome = conclude(queue_state.queue, held.run, exc)
        finally:
            held.cancellable = False  # it is over: what comes is ours
            if held.timer is not None:
                held.timer.cancel()
            held.took = 0.0 if held.run is None else time.perf_counter() - held.began
            self._worker_state.free += 1
        if not held.ended:  # else it was given up meanwhile
            held.ended = True
            if outcome is None:
                await self._job_events.tell("pqcore_job_lost", queue_state, held)
                queue_state.held.pop(held.key, None)
                self._worker_state.look_quiet()
            else:
                if outcome.kind in FAILURES and held.run is not None:
                    await self._job_events.tell("pqcore_job_failed", queue_state, held, outcome)
                queue_state.decide(held, outcome)
        self.fill()

    async def _decoded(self, queue_state: QueueState, held: ActiveJob) -> Run | Outcome:
        """Read a job in a thread: decoding it may take long, and leases are lengthened meanwhile."""

        def read() -> Run | Outcome:
            held.thread = threading.get_ident()
            return self._prepared(queue_state, held)

        name = held.job.serializer or queue_state.queue.serializer_name
        held.cancellable = True
        await self._coding.turn(name)
        held.cancellable = False
        try:
            run = await self._coding.run(name, f"decoding job {held.job.id} of {queue_state.queue.name!r}", read)
        finally:
            held.thread = None
        if not isinstance(run, Outcome):
            held.run, held.began = run, time.perf_counter()
        return run

    async def _completed(self, queue_state: QueueState, held: ActiveJob, result: Any, *, finished: bool) -> Outcome:
        """How a job ends whose function returned; its result is encoded in a thread if that may take long."""
        queue, job = queue_state.queue, held.job
        end = partial(completed, queue, job, result, finished=finished)
        if finished or not keeps_result(job) or queue.writes_quickly(result):
            return end()
        held.cancellable = False  # it was done
        await self._coding.turn(queue.serializer_name)
        return await self._coding.run(
            queue.serializer_name, f"encoding the result of job {job.id} of {queue.name!r}", end
        )

    async def _call(self, queue_state: QueueState, held: ActiveJob, run: Run) -> Any:
        if run.task.is_coroutine:
            self._start_clock(held, run)
            held.cancellable = True
            with self._surrounding(queue_state, held):
                return await run.task.function(run.job.id, *run.args, **run.kwargs)
        if held.context is not None:
            held.context.leaves = _never  # no signal raises in another thread or process
        if (run.task.options.run_in or self._run_in) == "process":
            return await self._in_process(queue_state, held, run)
        self._start_clock(held, run)
        result = await self._threads.run(self._caller(queue_state, held, run))
        if inspect.isawaitable(result):  # from a function that is none of `async def`
            held.cancellable = True
            return await result
        return result

    async def _in_process(self, queue_state: QueueState, held: ActiveJob, run: Run) -> Any:
        if self._processes is None:
            self._processes = Processes(min(self._places, default_processes()))
        assert held.context is not None  # noqa: S101 - for the type checker
        held.cancellable = True
        async with self._processes.place() as process:
            self._start_clock(held, run)  # it waited for the process, too
            with self._surrounding(queue_state, held):
                return await process.run(run, held.context)

    def _caller(self, queue_state: QueueState, held: ActiveJob, run: Run) -> Callable[[], Any]:
        def call() -> Any:
            held.thread = threading.get_ident()
            with self._surrounding(queue_state, held):  # in the thread that makes the call
                return caller(run)()

        return call

    def _surrounding(self, queue_state: QueueState, held: ActiveJob) -> AbstractContextManager[None]:
        """What plugins put around a run; nothing, if there is none."""
        if not self._job_events.surrounds:
            return nullcontext()
        return run_wrapped("pqcore_around_run", self._job_events.event(queue_state, held))

    def _start_clock(self, held: ActiveJob, run: Run) -> None:
        held.began = time.perf_counter()
        if run.timeout is not None:
            held.timer = asyncio.get_running_loop().call_later(run.timeout, self.stop, held, "timeout")

    async def _hear_of_shutdown(self, context: JobContext) -> None:
        """Learn whether all of the worker is being cancelled, as `asyncio.run` does when its loop is interrupted."""
        for _ in range(TURNS):
            if self._worker_state.at_once.is_set():
                context.stop("shutdown")
                return
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    def _stopped(self, queue_state: QueueState, held: ActiveJob, reason: str) -> Outcome | None:
        """What becomes of a job whose function was stopped."""
        job, run = held.job, held.run
        if reason == "lost":
            return None
        if reason == "cancelled":
            path = "not decoded yet" if run is None else run.task.path
            logger.info("job %d of %r (%s) was cancelled", job.id, queue_state.queue.name, path)
            return Outcome(job, "drop", reason="cancelled")
        if reason == "shutdown":
            return Outcome(job, "snooze", reason="shutdown")
        assert held.error is not None  # noqa: S101 - for the type checker
        if run is None:  # cancelled from within, as its decoder was
            return put_off(queue_state.queue, job, held.error, "unreadable")
        held.error = as_failure(held.error, late=job if reason == "timeout" else None)
        return conclude(queue_state.queue, run, held.error)

    def _leaves(self, error: BaseException) -> bool:
        """Return whether Ctrl-C was pressed, and the event loop's thread had it: a function may raise no such thing."""
        return isinstance(error, KeyboardInterrupt) and self._worker_state.interruptible


def _never(error: BaseException) -> bool:
    return False
