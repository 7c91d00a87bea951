"""The blocking face of tasks: `PQ` and `Queue`, with pq's names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, overload

from pqcore import queue as core
from pqcore.db.runtime import run_sync
from pqcore.job import Job
from pqcore.operations import batches, dead_letters
from pqcore.operations import put as putting
from pqcore.serializers import Serializer
from pqcore.tasks.declaring import Call, Task, TaskOptions, call_of, stored_calls
from pqcore.tasks.fetched_jobs import claim_owed
from pqcore.tasks.handles import Batch, Handle
from pqcore.tasks.periodic import Missed, Periodic, make_periodic, refuse_bare
from pqcore.tasks.work import WorkingQueue
from pqcore.times import TimeSpec


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


class Queue(WorkingQueue, core.Queue):
    """A queue of function calls; see `pqcore.Queue` and `TaskDeclarations`."""

    @overload
    def task(self, function: Callable[..., Any], /) -> Enqueuer: ...
    @overload
    def task(
        self,
        schedule_at: TimeSpec = None,
        expected_at: TimeSpec = None,
        max_retries: int = 0,
        retry_in: Any = "30s",
        **options: Any,
    ) -> Callable[[Callable[..., Any]], Enqueuer]: ...
    def task(
        self,
        schedule_at: Any = None,
        expected_at: TimeSpec = None,
        max_retries: int = 0,
        retry_in: Any = "30s",
        **options: Any,
    ) -> Any:
        """Declare a function as a task: calling it then puts a job, and returns its id.

        The function, which may be a coroutine function, is called with the job's id first.  ``@queue.task`` is the
        same as ``@queue.task()``.

        Args:
            schedule_at: As for `put`.
            expected_at: As for `put`.
            max_retries: How often it is tried again after an exception.
            retry_in: The time until then.
            **options: As in `TaskOptions`.

        Raises:
            ConfigurationError, InvalidTimeSpec: An option is none, or has a value that it cannot have.
        """
        if callable(schedule_at):  # @queue.task, without parentheses
            return self.task(None, expected_at, max_retries, retry_in, **options)(schedule_at)
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
        refuse_bare(cron)

        def decorate(function: Any) -> Enqueuer:
            task: Enqueuer = function if isinstance(function, Enqueuer) else self.task()(function)
            call = call_of(self, task.task, args, dict(kwargs or {}))
            self.add_periodic(make_periodic(call, cron, tz, missed, name))
            return task

        return decorate

    def bury(self, job: Job, error: BaseException | str | None = None, *, connection: Any = None) -> None:
        """Make a dead letter of a job; see `pqcore.Queue.bury`."""
        owed = None if job.leased else claim_owed(job)
        run_sync(dead_letters.bury(self.engine, self, job, error, connection, owed=owed))

    def put_call(self, call: Call) -> Handle:
        """Put a call; its job's id."""
        options = call.options
        times = (options.schedule_at, options.expected_at)
        put = putting.put_call(self.engine, self, call.data(), *times, call.connection, call.put_options())
        return Handle.of(self, *run_sync(put))

    def put_calls(self, *calls: Call, connection: Any = None) -> list[Handle]:
        """Put calls together, all or none; the ids in order."""
        ids = run_sync(batches.put_all(self.engine, [call.stored() for call in calls], connection))
        return [Handle.of(self, *identity) for identity in ids]

    def chain(self, *calls: Call, connection: Any = None) -> Handle:
        """Put calls to be made one after the other, each once the one before is done.

        Each finds what the one before returned in ``current().previous``.  If one
        fails for good, those after it wait with its dead letter.

        Returns:
            The first job's id.
        """
        first = batches.chain_calls([call.stored() for call in calls])
        return Handle.of(self, *run_sync(batches.put_all(self.engine, [first], connection))[0])

    def batch(self, *calls: Call | tuple[Call, ...], then: Call | None = None, connection: Any = None) -> Batch[Handle]:
        """Put calls together, and another when all of them have ended, well or not.

        Args:
            *calls: The calls; a tuple of them is a chain.
            then: What is put at the end; it finds in ``current().previous`` the
                ``batch``, and how many there were (``total``) and did not end well (``failed``).
            connection: As for `put`.
        """
        after = None if then is None else then.stored()
        number, ids = run_sync(batches.put_batch(self.engine, self, stored_calls(calls), after, connection))
        return Batch(number, [Handle.of(self, *identity) for identity in ids])


class PQ(core.PQ):
    """The queues of one table, as queues of function calls; see `pqcore.PQ`."""

    queue_class: type[core.Queue] = Queue

    def queue(self, name: str, *, serializer: Serializer | str | None = None, **options: Any) -> Queue:
        """A queue with options of its own; see `pqcore.PQ.queue`."""
        queue = super().queue(name, serializer=serializer, **options)
        assert isinstance(queue, Queue)  # noqa: S101 - for the type checker
        return queue

    def __getitem__(self, name: str) -> Queue:
        queue = super().__getitem__(name)
        assert isinstance(queue, Queue)  # noqa: S101 - for the type checker
        return queue


__all__ = ["PQ", "Enqueuer", "Periodic", "Queue"]
