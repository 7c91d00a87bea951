"""Running jobs: coroutine functions on the loop, others in threads or processes."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any, Literal

from pqcore.db.watchdog import watchdog
from pqcore.operations.job_outcome import Outcome
from pqcore.tasks.context import JobContext
from pqcore.tasks.job_events import JobEvents
from pqcore.tasks.outcomes import Run, caller, completed, keeps_result, prepare, put_off
from pqcore.tasks.run_job import Runner, run_job
from pqcore.worker.pools import Processes, Threads, default_processes
from pqcore.worker.serializer_threads import Coding
from pqcore.worker.state import ActiveJob, QueueState, WorkerState

logger = logging.getLogger("pqcore.tasks")

TURNS = 3
"""Turns of the event loop in which a worker that is cancelled together with its jobs has noticed it."""


class Executor(Runner[ActiveJob]):
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
        super().__init__(job_events, suspends=True)
        self._patience = patience
        self._worker_state = worker_state
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
                self._begin(queue_state.buffer.popleft())
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

    def _begin(self, attempt: ActiveJob) -> None:
        attempt.queue_state.started += 1
        if attempt.queue.reads_quickly(attempt.job.serializer, attempt.job.raw):
            run = self._prepare(attempt)
            if isinstance(run, Outcome):
                attempt.queue_state.decide(attempt, run)
                return
            attempt.run = run
        context = attempt.context = JobContext(attempt.queue, attempt.job, self._leaves)
        attempt.began = time.perf_counter()
        self._worker_state.free -= 1
        # In a context like the worker's: a job begun by one that ends must not see the variables that it set.
        attempt.task = self._context.copy().run(asyncio.get_running_loop().create_task, run_job(self, attempt, context))

    def _prepare(self, attempt: ActiveJob) -> Run | Outcome:
        """Read a job; the call of its function, or how it ends without one."""
        try:
            return prepare(attempt.queue, attempt.queue, attempt.job)
        except BaseException as exc:
            if self._worker_state.interruptible:
                raise
            return put_off(attempt.queue, attempt.job, exc, "unknown")  # no signal raises here: it is the job's own

    # What `run_job` asks for

    async def decode(self, attempt: ActiveJob) -> Run | Outcome:
        """Read a job in a thread: decoding it may take long, and leases are lengthened meanwhile."""

        def read() -> Run | Outcome:
            attempt.thread = threading.get_ident()
            return self._prepare(attempt)

        name = attempt.job.serializer or attempt.queue.serializer_name
        attempt.cancellable = True
        await self._coding.turn(name)
        attempt.cancellable = False
        try:
            run = await self._coding.run(name, f"decoding job {attempt.job.id} of {attempt.queue.name!r}", read)
        finally:
            attempt.thread = None
        if not isinstance(run, Outcome):
            attempt.run, attempt.began = run, time.perf_counter()
        return run

    async def call(self, attempt: ActiveJob, run: Run) -> Any:
        """Call the function: on the loop, in a thread, or in a process."""
        if run.task.is_coroutine:
            self._start_clock(attempt, run)
            attempt.cancellable = True
            with self.events.around(attempt):
                return await run.task.call(run.job, run.args, run.kwargs)
        if attempt.context is not None:
            attempt.context.leaves = _never  # no signal raises in another thread or process
        if (run.task.options.run_in or self._run_in) == "process":
            return await self._call_in_process(attempt, run)
        self._start_clock(attempt, run)
        result = await self._threads.run(partial(self._call_here, attempt, run))
        if inspect.isawaitable(result):  # from a function that is none of `async def`
            attempt.cancellable = True
            return await result
        return result

    async def complete(self, attempt: ActiveJob, result: Any, *, finished: bool) -> Outcome:
        """Return the outcome of a job whose function returned; a thread encodes the result if that may take long."""
        queue, job = attempt.queue, attempt.job
        end = partial(completed, queue, job, result, finished=finished)
        if finished or not keeps_result(job) or queue.writes_quickly(result):
            return end()
        attempt.cancellable = False  # it was done
        await self._coding.turn(queue.serializer_name)
        return await self._coding.run(
            queue.serializer_name, f"encoding the result of job {job.id} of {queue.name!r}", end
        )

    async def notice_shutdown(self, context: JobContext) -> None:
        """Learn whether all of the worker is being cancelled, as `asyncio.run` does when its loop is interrupted."""
        for _ in range(TURNS):
            if self._worker_state.at_once.is_set():
                context.stop("shutdown")
                return
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    def release(self, attempt: ActiveJob) -> bool:
        """Free the slot; False if the job was given up while its function ran."""
        attempt.cancellable = False  # the function has ended: nothing can stop the rest
        if attempt.timer is not None:
            attempt.timer.cancel()
        self._worker_state.free += 1
        is_open = not attempt.ended
        attempt.ended = True
        self.fill()
        return is_open

    async def end(self, attempt: ActiveJob, outcome: Outcome | None) -> None:
        """Have the completer store the outcome, with others, and call its hook."""
        if outcome is not None:
            attempt.queue_state.decide(attempt, outcome)
            return
        await self.events.call("pqcore_job_lost", attempt)
        attempt.queue_state.held.pop(attempt.key, None)
        self._worker_state.look_quiet()

    def leave(self, error: BaseException) -> None:
        """Have the worker raise this, once it has given its jobs back: raised here, it would end the event loop."""
        self._worker_state.interrupt(error)

    async def _call_in_process(self, attempt: ActiveJob, run: Run) -> Any:
        if self._processes is None:
            self._processes = Processes(min(self._places, default_processes()))
        assert attempt.context is not None  # noqa: S101 - for the type checker
        attempt.cancellable = True
        async with self._processes.place() as process:
            self._start_clock(attempt, run)  # it waited for the process, too
            with self.events.around(attempt):
                return await process.run(run, attempt.context)

    def _call_here(self, attempt: ActiveJob, run: Run) -> Any:
        """Call the function in this thread."""
        attempt.thread = threading.get_ident()
        with self.events.around(attempt):
            return caller(run)()

    def _start_clock(self, attempt: ActiveJob, run: Run) -> None:
        attempt.began = time.perf_counter()
        if run.timeout is not None:
            attempt.timer = asyncio.get_running_loop().call_later(run.timeout, self.stop, attempt, "timeout")

    def _leaves(self, error: BaseException) -> bool:
        """Return whether Ctrl-C was pressed, and the event loop's thread had it: a function may raise no such thing."""
        return isinstance(error, KeyboardInterrupt) and self._worker_state.interruptible


def _never(error: BaseException) -> bool:
    return False
