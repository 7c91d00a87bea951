"""The executor runs jobs: coroutine functions on the event loop, others in threads or processes."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from pqcore.db.watchdog import watchdog
from pqcore.errors import PQError
from pqcore.operations import attempts
from pqcore.operations.error_details import KeepErrors
from pqcore.operations.job_outcome import Outcome
from pqcore.settings import QUICK_SIZE
from pqcore.tasks.context import JobContext
from pqcore.tasks.job_events import AROUND_RUN, JobEvents
from pqcore.tasks.outcomes import (
    Run,
    outcome_of_result,
    prepare,
    snooze_unrunnable,
    stores_result,
    warn_of_unkept_crash,
)
from pqcore.tasks.run_job import Runner, run_job
from pqcore.worker.job_log import log_end
from pqcore.worker.pools import Processes, default_processes
from pqcore.worker.recycling import Recycling
from pqcore.worker.serializer_threads import FAST_SIZE, SerializerThreads
from pqcore.worker.state import ActiveJob, Places, QueueState, WorkerState
from pqcore.worker.steps import CALL_IN_THREAD, TASK, Steps
from pqcore.worker.threads import Threads

logger = logging.getLogger("pqcore.tasks")

LOOP_TURNS = 3
"""Turns of the event loop after which a worker has noticed that it was cancelled together with its jobs."""


class Executor(Runner[ActiveJob]):
    """Runs jobs through `run_job`: concurrently, one in each slot.

    An asyncio task and a future for each job cost more than a short function. So a job in a thread has no task and no
    future, unless its hooks or its serializer must be awaited. One callback of the event loop takes all outcomes that
    threads have handed over.

    Args:
        worker_state: The state that the worker's parts share.
        job_events: Calls the hooks of plugins.
        run_in: Where functions that are not coroutine functions run, unless their tasks say otherwise.
        stop_timeout: Seconds that a thread has to end after its job was stopped; see `_warn_of_unstopped`.
        recycling: When a process that runs jobs is replaced.
        keep_errors: What is stored of exceptions, for tasks without an option of their own.
    """

    def __init__(
        self,
        worker_state: WorkerState,
        job_events: JobEvents,
        run_in: Literal["thread", "process"],
        stop_timeout: float = 20.0,
        recycling: Recycling = Recycling(),  # noqa: B008 - never changed
        keep_errors: KeepErrors = "all",
    ) -> None:
        super().__init__(job_events, suspends=True)
        self.keep_errors = keep_errors
        self._stop_timeout = stop_timeout
        self._recycling = recycling
        self._worker_state = worker_state
        self._run_in = run_in
        self._slots = worker_state.free_slots
        self._context = contextvars.copy_context()
        self._threads = Threads(self._slots, "pqcore-job")
        self._serializer_threads = SerializerThreads(worker_state, self._threads)
        self._processes: Processes | None = None
        self.stepped: set[Steps] = set()
        self._steps_jobs = job_events.hooks <= {AROUND_RUN}  # other hooks may await

    def start_jobs(self) -> None:
        """Start fetched jobs in free slots; the queues take turns."""
        worker_state = self._worker_state
        while not worker_state.draining.is_set() and (queue_state := worker_state.next_queue()) is not None:
            if (active := queue_state.next_job()) is not None:
                queue_state.buffer.remove(active)
                self._start(active)
            else:
                queue_state.wants_slot, queue_state.reserved_slots = False, 1
        worker_state.wake_fetchers.set()

    def accept(
        self,
        queue_state: QueueState,
        rows: Sequence[Any],
        leased_at: float,
        places: Mapping[int, Places] = MappingProxyType({}),
    ) -> None:
        """Run jobs that were leased, as soon as there are free slots; a worker that drains gives them back.

        Args:
            queue_state: The queue.
            rows: The rows of the jobs.
            leased_at: When the leases began, by the monotonic clock, in seconds.
            places: The places of jobs that were leased ahead, by job.
        """
        jobs = [queue_state.active_job(row, leased_at) for row in rows]
        for active in jobs if places else ():
            active.places = places.get(active.job.id)
        if jobs:
            self._worker_state.changes += 1
            queue_state.note_sizes(jobs)
            queue_state.active_jobs.update((active.key, active) for active in jobs)
            if self._worker_state.draining.is_set() or queue_state.quiet:
                queue_state.give_back(jobs)
            else:
                queue_state.buffer.extend(jobs)
        if queue_state.job_size > QUICK_SIZE:  # decoding takes long, so the next fetch is sent first
            asyncio.get_running_loop().call_soon(self.start_jobs)
        else:
            self.start_jobs()

    def stop(self, active: ActiveJob, reason: str) -> None:
        """Stop a function: cancel its coroutine, kill its process, or set `JobContext.cancelled` for its thread."""
        if active.ended or active.context is None or active.context.cancelled:
            return
        active.context.stop(reason)
        if active.cancellable and active.task is not None:
            active.task.cancel()
        elif active.thread is not None:
            asyncio.get_running_loop().call_later(self._stop_timeout, self._warn_of_unstopped, active, time.monotonic())

    def _warn_of_unstopped(self, active: ActiveJob, told_at: float) -> None:
        """Warn that a thread goes on although its job was stopped, and break off the statement that the thread runs.

        Only statements in a transaction block of the thread can be broken off. Nothing else can end a thread.
        """
        if not active.is_running or active.context is None or active.thread is None:
            return
        waited = time.monotonic() - told_at
        broken_off = watchdog.break_off_blocks_of(active.thread)
        logger.warning(
            "job %d of %r was told to stop %.1f s ago (%s), but its thread is still running:"
            " the job keeps its slot, lease and group%s",
            active.job.id,
            active.context.queue.name,
            waited,
            active.context.stop_reason,
            "; the connection on which its transaction block waits was closed" if broken_off else "",
        )
        asyncio.get_running_loop().call_later(waited, self._warn_of_unstopped, active, told_at)

    def give_back_running(self, queue_state: QueueState, *, at_once: bool = False) -> None:
        """Stop the running jobs, and give them back.

        A job in a coroutine is given back when the coroutine has ended. A job in a thread is given back immediately,
        although the thread may go on.

        Args:
            queue_state: The queue.
            at_once: Whether to give back jobs in coroutines immediately, too.
        """
        for active in list(queue_state.active_jobs.values()):
            if active.ended:
                continue
            self.stop(active, "shutdown")
            if at_once or not active.cancellable:
                queue_state.complete(active, Outcome(active.job, "snooze", reason="shutdown"))

    async def close(self) -> None:
        """Abandon threads and coroutines that have not ended, and kill processes."""
        for steps in list(self.stepped):
            steps.abandon()
        tasks = [
            active.task
            for queue_state in self._worker_state.queue_states
            for active in queue_state.active_jobs.values()
            if active.task
        ]
        for task in tasks:
            task.cancel()
        if self._processes is not None:
            self._processes.close()
        self._threads.close()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        await self._threads.ended(calls=False)

    def _start(self, active: ActiveJob) -> None:
        active.queue_state.started += 1
        has_crashed = active.job.token > 1 and active.job.crashes > 0  # then `run_job` first stores the crashed attempt
        if not has_crashed and self._reads_quickly(active):
            run = self._prepare(active)
            if isinstance(run, Outcome):
                run.keep_errors = self.keep_errors
                active.queue_state.complete(active, run)
                return
            active.run = run
        context = active.context = JobContext(active.queue, active.job, self._leaves)
        active.started_at = time.perf_counter()
        self._worker_state.free_slots -= 1
        if active.places is not None:
            active.places.used += 1
        # The job runs in a copy of the worker's context, and not in the context of the job whose end started this one.
        variables = self._context.copy()
        coroutine = run_job(self, active, context)
        if self._steps_jobs and active.run is not None and self._is_for_thread(active.run):
            steps = active.steps = Steps(self, active, coroutine, variables)
            self.stepped.add(steps)
            steps.settle()
        else:
            active.task = variables.run(asyncio.get_running_loop().create_task, coroutine)

    def _is_for_thread(self, run: Run) -> bool:
        return not run.task.is_coroutine and (run.task.options.run_in or self._run_in) == "thread"

    async def _in_task(self, active: ActiveJob) -> None:
        """Go on in a task, because the next steps await something."""
        if active.steps is not None:
            await TASK

    def _reads_quickly(self, active: ActiveJob) -> bool:
        """Return whether a job is decoded in the event loop: in a fraction of a millisecond, as far as can be known."""
        queue, job = active.queue, active.job
        if queue.reads_quickly(job.serializer, job.raw):
            return True
        name = job.serializer or queue.serializer_name
        return self._serializer_threads.is_fast(name) and queue.reads_quickly(job.serializer, job.raw, FAST_SIZE)

    def _prepare(self, active: ActiveJob) -> Run | Outcome:
        """Decode a job; return the call of its function, or the outcome of a job that cannot run."""
        began = time.thread_time() if len(active.job.raw) > QUICK_SIZE else None
        try:
            return prepare(active.queue, active.queue, active.job)
        except BaseException as exc:
            if self._worker_state.interruptible:
                raise
            # Signal handlers raise no exceptions here, so the exception comes from the job's module or data.
            return snooze_unrunnable(active.queue, active.job, exc, "unknown")
        finally:
            if began is not None:
                name = active.job.serializer or active.queue.serializer_name
                self._serializer_threads.note(name, time.thread_time() - began)

    # The methods that `run_job` calls

    async def decode(self, active: ActiveJob) -> Run | Outcome:
        """Decode a job in a thread, because decoding may take long; the event loop extends leases meanwhile."""

        def read() -> Run | Outcome:
            active.thread = threading.get_ident()
            return self._prepare(active)

        name = active.job.serializer or active.queue.serializer_name
        active.cancellable = True
        await self._serializer_threads.wait_turn(name)
        active.cancellable = False
        try:
            run = await self._serializer_threads.run(
                name, f"decoding job {active.job.id} of {active.queue.name!r}", read
            )
        finally:
            active.thread = None
        if not isinstance(run, Outcome):
            active.run, active.started_at = run, time.perf_counter()
        return run

    async def keep_crash(self, active: ActiveJob) -> None:
        """Record a crash, over the worker's own connections, if an earlier lease ended without an outcome."""
        try:
            await active.queue_state.bridge.call(attempts.keep_crash, active.queue, active.job)
        except PQError as exc:
            warn_of_unkept_crash(active.job, exc)

    async def call(self, active: ActiveJob, run: Run) -> Any:
        """Call the function: on the loop, in a thread, or in a process."""
        if run.task.is_coroutine:
            self._start_clock(active, run)
            active.cancellable = True
            with self.events.around(active):
                return await run.task.call(run.job, run.args, run.kwargs)
        if active.context is not None:
            active.context.leaves = _never  # signal handlers raise exceptions only in the main thread of this process
        if (run.task.options.run_in or self._run_in) == "process":
            return await self._call_in_process(active, run)
        self._start_clock(active, run)
        if active.steps is None:
            result = await self._threads.run(partial(self.call_here, active))
        else:
            await CALL_IN_THREAD
            if active.steps.error is not None:
                raise active.steps.error
            result = active.steps.result
        if inspect.isawaitable(result):  # from a function without `async def`
            await self._in_task(active)
            active.cancellable = True
            return await result
        return result

    async def complete(self, active: ActiveJob, result: Any, *, finished: bool) -> Outcome:
        """Return the outcome of a job whose function returned; a thread encodes a result that may take long."""
        queue, job = active.queue, active.job
        end = partial(outcome_of_result, queue, job, result, finished=finished)
        if finished or not stores_result(job) or queue.writes_quickly(result):
            return end()
        active.cancellable = False  # the function returned
        await self._in_task(active)
        await self._serializer_threads.wait_turn(queue.serializer_name)
        return await self._serializer_threads.run(
            queue.serializer_name, f"encoding the result of job {job.id} of {queue.name!r}", end
        )

    async def notice_shutdown(self, active: ActiveJob, context: JobContext) -> None:
        """Stop the context if the worker is being cancelled, as `asyncio.run` does when its loop is interrupted."""
        await self._in_task(active)
        for _ in range(LOOP_TURNS):
            if self._worker_state.stop_now.is_set():
                context.stop("shutdown")
                return
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    def release(self, active: ActiveJob) -> bool:
        """Free the slot of a job; return False if the job was given back while its function ran."""
        active.cancellable = False  # the function has ended: nothing can stop the remaining steps
        if active.timer is not None:
            active.timer.cancel()
        self._worker_state.free_slots += 1
        active.queue_state.note_run(time.perf_counter() - active.started_at)
        if active.places is not None:
            active.places.used -= 1
        is_open = not active.ended
        active.ended = True
        self.start_jobs()
        return is_open

    async def end(self, active: ActiveJob, outcome: Outcome | None) -> None:
        """Give an outcome to the completer, which stores it together with other outcomes, and calls its hook."""
        if outcome is not None:
            if not self.events.needs_ends:  # no hook needs these values any more, so their memory is freed
                active.run = active.context = None
                active.job.forget_decoded()
            active.queue_state.complete(active, outcome)
            return
        if self.events.logs_ends:
            log_end(self.events, active, None)
        await self.events.call("pqcore_job_lost", active)
        active.queue_state.active_jobs.pop(active.key, None)
        self._worker_state.notify_if_idle()

    def leave(self, error: BaseException) -> None:
        """Have the worker raise an error after it gave its jobs back: an error raised here would end the event loop."""
        self._worker_state.interrupt(error)

    async def _call_in_process(self, active: ActiveJob, run: Run) -> Any:
        if self._processes is None:
            self._processes = Processes(min(self._slots, default_processes()), self._recycling)
        assert active.context is not None  # noqa: S101 - for the type checker
        active.cancellable = True
        async with self._processes.slot() as process:
            self._start_clock(active, run)  # the timeout begins here, because it excludes the wait for a process
            with self.events.around(active):
                return await process.run(run, active.context)

    def call_in_thread(self, steps: Steps) -> None:
        """Call, in a thread, the function of a job that runs without an asyncio task."""
        try:
            self._threads.submit(steps)
        except RuntimeError as exc:  # no thread can be started
            steps.error = exc
            asyncio.get_running_loop().call_soon(steps.settle)

    def call_here(self, active: ActiveJob) -> Any:
        """Call the function in this thread."""
        active.thread = threading.get_ident()
        run = active.run
        assert run is not None  # noqa: S101 - for the type checker
        if AROUND_RUN not in self.events.hooks:
            return run.task.call(run.job, run.args, run.kwargs)
        with self.events.around(active):
            return run.task.call(run.job, run.args, run.kwargs)

    def _start_clock(self, active: ActiveJob, run: Run) -> None:
        active.started_at = time.perf_counter()
        if run.timeout is not None:
            active.timer = asyncio.get_running_loop().call_later(run.timeout, self.stop, active, "timeout")

    def _leaves(self, error: BaseException) -> bool:
        """Return whether an error is Ctrl-C in the event loop's thread, rather than a failure of a job."""
        return isinstance(error, KeyboardInterrupt) and self._worker_state.interruptible


def _never(error: BaseException) -> bool:
    return False
