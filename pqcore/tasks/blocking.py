"""The blocking face of tasks: `PQ` and `Queue`, with pq's names."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pqcore import queue as core
from pqcore.errors import PQError, UnknownTask
from pqcore.events import JobEvent, around
from pqcore.job import Job
from pqcore.operations import calling, finishing, putting
from pqcore.operations.finishing import Outcome
from pqcore.operations.leasing import beat
from pqcore.runtime import drive
from pqcore.tasks.context import JobContext, enter_job, leave_job
from pqcore.tasks.declaring import Call, Task, TaskDeclarations, TaskOptions, call_of
from pqcore.tasks.handles import Batch, Handle
from pqcore.tasks.periodic import Missed, Periodic, make_periodic
from pqcore.tasks.running import UNKNOWN_PAUSE, caller, conclude, prepare
from pqcore.timespec import TimeSpec

WORK_LEASE = 60.0
"""Seconds for which `Queue.work` holds the job that it performs; it holds on while it does."""


class Enqueuer:
    """What a declared function becomes: calling it puts a job.

    Attributes:
        task: The task.
        queue: The queue that it is put into.
    """

    def __init__(self, queue: Queue, task: Task) -> None:
        functools.update_wrapper(self, task.function)
        self.task = task
        self.queue = queue
        self._path = task.path

    def __call__(self, *args: Any, **kwargs: Any) -> Handle:
        """Put a job; options of this call begin with an underscore: ``_schedule_at="5m"``.

        ``_connection`` puts it in the transaction of that connection.
        """
        return self.queue.put_call(call_of(self.queue, self.task, args, kwargs))

    def call(self, *args: Any, **kwargs: Any) -> Call:
        """The call, not put yet: for `Queue.chain`, `Queue.batch` and `Queue.put_calls`."""
        return call_of(self.queue, self.task, args, kwargs)


class Queue(TaskDeclarations, core.Queue):
    """A queue of function calls; see `pqcore.Queue` and `TaskDeclarations`."""

    def task(
        self,
        schedule_at: TimeSpec = None,
        expected_at: TimeSpec = None,
        max_retries: int = 0,
        retry_in: Any = "30s",
        **options: Any,
    ) -> Callable[[Callable[..., Any]], Enqueuer]:
        """Declare a function as a task: calling it then puts a job, and returns its id.

        The function, which may be a coroutine function, is called with the job's id first.

        Args:
            schedule_at: As for `put`.
            expected_at: As for `put`.
            max_retries: How often it is tried again after an exception.
            retry_in: The time until then.
            **options: As in `TaskOptions`.

        Raises:
            ConfigurationError, InvalidTimeSpec: An option is none, or has a value that it cannot have.
        """
        chosen = TaskOptions(schedule_at, expected_at, max_retries, retry_in, **options)
        return lambda function: Enqueuer(self, self.declare(function, chosen))

    def periodic(
        self,
        cron: str,
        tz: str = "UTC",
        missed: Missed = "latest",
        name: str | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Callable[[Any], Enqueuer]:
        """Have workers put a task at each tick of a cron expression, once however many they are.

        Args:
            cron: Five fields, six with seconds first, or ``@daily`` and the like.
            tz: The time zone that it is meant in.
            missed: What becomes of ticks that passed while there was no worker; see `Periodic`.
            name: What its ticks are remembered under; the function's path if not given.
            args: What the function is called with, after the job's id.
            kwargs: Likewise.

        Raises:
            ConfigurationError: The expression or time zone cannot be read, or the name is taken.
        """

        def decorate(function: Any) -> Enqueuer:
            task: Enqueuer = function if isinstance(function, Enqueuer) else self.task()(function)
            call = call_of(self, task.task, args, dict(kwargs or {}))
            self.add_periodic(make_periodic(call, cron, tz, missed, name))
            return task

        return decorate

    def put_call(self, call: Call) -> Handle:
        """Put a call; its job's id."""
        options = call.options
        times = (options.schedule_at, options.expected_at)
        job_id = drive(putting.put(self._engine, self, call.data(), *times, call.connection, call.put_options()))
        return Handle.of(self, job_id)

    def put_calls(self, *calls: Call, connection: Any = None) -> list[Handle]:
        """Put calls together, all or none; the ids in order."""
        ids = drive(calling.put_all(self._engine, [call.stored() for call in calls], connection))
        return [Handle.of(self, job_id) for job_id in ids]

    def chain(self, *calls: Call, connection: Any = None) -> Handle:
        """Put calls to be made one after the other, each once the one before is done.

        Each finds what the one before returned in ``current().previous``.  If one
        fails for good, those after it wait with its dead letter.

        Returns:
            The first job's id.
        """
        first = calling.chained([call.stored() for call in calls])
        return Handle.of(self, drive(calling.put_all(self._engine, [first], connection))[0])

    def batch(self, *calls: Call | tuple[Call, ...], then: Call | None = None, connection: Any = None) -> Batch[Handle]:
        """Put calls together, and another when all of them have ended, well or not.

        Args:
            *calls: The calls; a tuple of them is a chain.
            then: What is put at the end; it finds in ``current().previous`` the
                ``batch``, and how many there were (``total``) and did not end well (``failed``).
            connection: As for `put`.
        """
        stored = [
            calling.chained([link.stored() for link in call]) if isinstance(call, tuple) else call.stored()
            for call in calls
        ]
        after = None if then is None else then.stored()
        number, ids = drive(calling.put_batch(self._engine, self, stored, after, connection))
        return Batch(number, [Handle.of(self, job_id) for job_id in ids])

    def work(self, burst: bool = False) -> None:
        """Perform jobs as they come, one at a time, in this thread; with ``burst``, until there are none.

        A job is leased meanwhile: if the process dies, another performs it.  For more at once, see `Worker`.
        """
        self.logger.info("%r starts to perform jobs", self.name)
        while True:
            job = self.lease(WORK_LEASE)
            if job is not None:
                with self._held(job):
                    self.perform(job)
            elif burst:
                return

    def perform(self, job: Job) -> bool:
        """Call the function that a job names; True if it returned.

        A job that was leased is finished, or given back; one that was taken
        with `get` is finished already, and is put again if it is to be retried.
        """
        run = prepare(self, self, job)
        if isinstance(run, Outcome):
            return self._not_run(job, run)
        context = JobContext(self, job)
        token = enter_job(context)
        try:
            with around("pqcore_around_run", JobEvent(self.name, job, run.task.path)):
                result = caller(run)()
                if inspect.iscoroutine(result):
                    result = asyncio.run(_awaited(result))
        except Exception as exc:  # noqa: BLE001 - whatever a task raises is the job's failure, not the worker's
            return self.fail(job, job.data, exc)
        finally:
            leave_job(token)
        if job.leased:
            self._end(Outcome(job, "done", result=result, finished=context.finished))
        return True

    def fail(self, job: Job, data: dict[str, Any], e: BaseException | None = None) -> bool:
        """Have a failed job tried again if it has retries left, else say why; always False."""
        error = e if e is not None else PQError("failed")
        if job.leased:
            run = prepare(self, self, job)
            self._end(run if isinstance(run, Outcome) else conclude(self, run, error))
            return False
        retried = data.get("retried", 0)
        if data.get("max_retries", 0) > retried:
            again = self.put({**data, "retried": retried + 1}, data["retry_in"], job.expected_at)
            self.logger.info("put %r again as job %d", job, again)
        elif isinstance(e, UnknownTask):  # another worker may know it
            again = self.put(data, f"{UNKNOWN_PAUSE:.0f}s", job.expected_at)
            self.logger.error("%s; put %r again as job %d", e, job, again)
        else:
            self.logger.error("failed to perform %r", job, exc_info=e)
        return False

    def _not_run(self, job: Job, outcome: Outcome) -> bool:
        if job.leased:
            self._end(outcome)
        elif outcome.reason == "unknown":
            again = self.put(job.data, f"{UNKNOWN_PAUSE:.0f}s", job.expected_at)
            self.logger.error("put %r again as job %d", job, again)
        return False

    def _end(self, outcome: Outcome) -> None:
        if drive(finishing.finish(self._engine, self, [outcome])):
            self.logger.warning("%r was given to another meanwhile; what it did may be done again", outcome.job)

    @contextmanager
    def _held(self, job: Job) -> Iterator[None]:
        """Hold on to a lease, from a thread of its own, for as long as the block lasts."""
        over = threading.Event()

        def hold() -> None:
            while not over.wait(WORK_LEASE / 3):
                try:
                    drive(beat(self._engine, [job], WORK_LEASE))
                except PQError as exc:
                    self.logger.warning("could not hold on to %r: %s", job, exc)

        thread = threading.Thread(target=hold, name="pqcore-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


async def _awaited(coroutine: Any) -> Any:
    return await coroutine


class PQ(core.PQ):
    """The queues of one table, as queues of function calls; see `pqcore.PQ`."""

    queue_class: type[core.Queue] = Queue

    def __getitem__(self, name: str) -> Queue:
        queue = super().__getitem__(name)
        assert isinstance(queue, Queue)  # noqa: S101 - for the type checker
        return queue


__all__ = ["PQ", "Enqueuer", "Periodic", "Queue"]
